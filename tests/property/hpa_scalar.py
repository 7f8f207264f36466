"""The HPA pod by pod and event by event, in plain Python: slow, literal, and without a line of the real one.

It follows kube-controller-manager's own structure (two directions, lists of timestamped events), so that a
slip in the vectorised arithmetic cannot be repeated here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Pod:
    group: Literal["ready", "missing", "unready"]
    usage_milli: int
    request_milli: int


@dataclass(frozen=True)
class Tolerance:
    up: float = 0.1
    down: float = 0.1

    def is_within(self, ratio: float) -> bool:
        return (1.0 - self.down) <= ratio <= (1.0 + self.up)


@dataclass(frozen=True)
class Policy:
    type: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True)
class Rules:
    stabilization_window_s: float
    select: Literal["Max", "Min", "Disabled"]
    policies: tuple[Policy, ...]


@dataclass
class History:
    """What kube-controller-manager remembers of one HPA: (time, recommendation) and (time, positive change)."""

    recommendations: list[tuple[float, int]] = field(default_factory=list)
    up_events: list[tuple[float, int]] = field(default_factory=list)
    down_events: list[tuple[float, int]] = field(default_factory=list)

    def record(self, time: float, before: int, after: int, up: Rules, down: Rules) -> None:
        """Remember a change: in the place of the last event that its own direction no longer needs."""
        events, rules = (self.up_events, up) if after > before else (self.down_events, down)
        longest = max(policy.period_s for policy in rules.policies)
        old_index = None
        for i, (event_time, _) in enumerate(events):
            if event_time < time - longest:
                old_index = i
        if old_index is None:
            events.append((time, abs(after - before)))
        else:
            events[old_index] = (time, abs(after - before))


def truncated(numerator: int, denominator: int) -> int:
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def ceil32(value: float) -> int:
    return max(-INT32_MAX, min(INT32_MAX, math.ceil(value)))


def utilization_ratio(metrics: dict[int, int], requests: dict[int, int], target: int) -> float:
    total_request = sum(requests[pod] for pod in metrics)
    if total_request == 0:
        raise ValueError("no metrics returned matched known pods")
    return float(truncated(sum(metrics.values()) * 100, total_request)) / float(target)


def usage_ratio(metrics: dict[int, int], target: int) -> float:
    return float(truncated(sum(metrics.values()), len(metrics))) / float(target)


def pod_metric(pods: list[Pod], current: int, target: int, tolerance: Tolerance, *, utilization: bool) -> int:
    """Replicas by a Resource/Utilization or a Pods/AverageValue metric; ValueError where HPA has none."""
    requests = {i: pod.request_milli for i, pod in enumerate(pods)}
    metrics = {i: pod.usage_milli for i, pod in enumerate(pods) if pod.group == "ready"}
    missing = [i for i, pod in enumerate(pods) if pod.group == "missing"]
    unready = [i for i, pod in enumerate(pods) if pod.group == "unready"]
    if not metrics:
        raise ValueError("did not receive metrics for targeted pods (pods might be unready)")

    def ratio_now() -> float:
        return utilization_ratio(metrics, requests, target) if utilization else usage_ratio(metrics, target)

    ready_count = len(metrics)
    ratio = ratio_now()
    scale_up_with_unready = bool(unready) and ratio > 1.0
    if not scale_up_with_unready and not missing:
        return current if tolerance.is_within(ratio) else ceil32(ratio * float(ready_count))
    if missing and ratio < 1.0:
        for pod in missing:
            metrics[pod] = truncated(requests[pod] * max(100, target), 100) if utilization else target
    elif missing and ratio > 1.0:
        for pod in missing:
            metrics[pod] = 0
    if scale_up_with_unready:
        for pod in unready:
            metrics[pod] = 0
    new_ratio = ratio_now()
    if tolerance.is_within(new_ratio) or (ratio < 1.0 < new_ratio) or (new_ratio < 1.0 < ratio):
        return current
    replicas = ceil32(new_ratio * float(len(metrics)))
    if (new_ratio < 1.0 and replicas > current) or (new_ratio > 1.0 and replicas < current):
        return current
    return replicas


def external_average(metric: int, target: int, status_replicas: int, tolerance: Tolerance) -> int:
    denominator = float(target) * float(status_replicas)
    if denominator > 0 and tolerance.is_within(float(metric) / denominator):
        return status_replicas
    return ceil32(float(metric) / float(target))


def external_value(metric: int, target: int, current: int, ready: int, tolerance: Tolerance) -> int:
    ratio = float(metric) / float(target)
    if current == 0:
        return ceil32(ratio)
    return current if tolerance.is_within(ratio) else ceil32(ratio * float(ready))


def combine(proposals: list[int | None], current: int) -> int | None:
    """The largest proposal; None where HPA holds."""
    best, invalid = 0, 0
    for proposal in proposals:
        if proposal is None:
            invalid += 1
        elif best == 0 or proposal > best:
            best = proposal
    if invalid == len(proposals) or (invalid > 0 and best < current):
        return None
    return best


def stabilize(desired: int, current: int, up: Rules, down: Rules, history: History, now: float) -> int:
    up_recommendation = down_recommendation = desired
    for time, recommendation in history.recommendations:
        if time > now - up.stabilization_window_s:
            up_recommendation = min(recommendation, up_recommendation)
        if time > now - down.stabilization_window_s:
            down_recommendation = max(recommendation, down_recommendation)
    recommendation = current
    if recommendation < up_recommendation:
        recommendation = up_recommendation
    if recommendation > down_recommendation:
        recommendation = down_recommendation
    return recommendation


def period_start(current: int, history: History, period_s: float, now: float) -> int:
    added = sum(change for time, change in history.up_events if time > now - period_s)
    deleted = sum(change for time, change in history.down_events if time > now - period_s)
    return current - added + deleted


def scale_up_limit(current: int, rules: Rules, history: History, now: float) -> int:
    if rules.select == "Disabled":
        return current
    result, choose = (INT32_MAX, min) if rules.select == "Min" else (-INT32_MAX, max)
    for policy in rules.policies:
        start = period_start(current, history, policy.period_s, now)
        if policy.type == "Pods":
            proposed = start + policy.value
        else:
            proposed = math.ceil(float(start) * (1 + float(policy.value) / 100))
        result = choose(result, proposed)
    return result


def scale_down_limit(current: int, rules: Rules, history: History, now: float) -> int:
    if rules.select == "Disabled":
        return current
    result, choose = (-INT32_MAX, max) if rules.select == "Min" else (INT32_MAX, min)
    for policy in rules.policies:
        start = period_start(current, history, policy.period_s, now)
        if policy.type == "Pods":
            proposed = start - policy.value
        else:
            proposed = int(float(start) * (1 - float(policy.value) / 100))
        result = choose(result, proposed)
    return result


def limit(
    desired: int, current: int, up: Rules, down: Rules, low: int, high: int, history: History, now: float
) -> tuple[int, str]:
    if desired > current:
        rate = max(scale_up_limit(current, up, history, now), current)
        allowed, reason = (rate, "ScaleUpLimit") if high > rate else (high, "TooManyReplicas")
        if desired > allowed:
            return allowed, reason
    elif desired < current:
        rate = min(scale_down_limit(current, down, history, now), current)
        allowed, reason = (rate, "ScaleDownLimit") if low < rate else (low, "TooFewReplicas")
        if desired < allowed:
            return allowed, reason
    return desired, "DesiredWithinRange"


def bypass(current: int, low: int, high: int) -> tuple[int, str] | None:
    """What reconcile() does before it looks at any metric."""
    if current == 0 and low != 0:
        return 0, "ScalingDisabled"
    if current > high:
        return high, "TooManyReplicas"
    if current < low:
        return low, "TooFewReplicas"
    return None


def normalize(
    desired: int, current: int, low: int, high: int, up: Rules, down: Rules, history: History, now: float
) -> tuple[int, str]:
    if outside := bypass(current, low, high):
        return outside
    steady = stabilize(desired, current, up, down, history, now)
    replicas, reason = limit(steady, current, up, down, low, high, history, now)
    if reason == "DesiredWithinRange" and steady != desired:
        reason = "ScaleUpStabilized" if desired >= current else "ScaleDownStabilized"
    return replicas, reason


def normalize_legacy(
    desired: int, current: int, low: int, high: int, history: History, now: float, window_s: float
) -> tuple[int, str]:
    if outside := bypass(current, low, high):
        return outside
    steady = desired
    for time, recommendation in history.recommendations:
        if not time < now - window_s:
            steady = max(steady, recommendation)
    ceiling = int(max(2.0 * float(current), 4.0))
    allowed, reason = (ceiling, "ScaleUpLimit") if high > ceiling else (high, "TooManyReplicas")
    if steady < low:
        return low, "TooFewReplicas"
    if steady > allowed:
        return allowed, reason
    return steady, "ScaleDownStabilized" if steady != desired else "DesiredWithinRange"
