"""Puts a recording of kube-controller-manager before our HPA reference and compares every decision.

Only the grouping of pods and the keeping of past decisions are written here, since telemetry and the caller do those
in the product; all arithmetic, and what is forgotten, is that of `understudy_policy.references`. What the controller
did is fed back after each decision, so that one difference cannot breed others.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpa_cases import DEFAULT_STABILIZATION_S
from understudy_policy.references import hpa
from understudy_policy.references.behavior import (
    DEFAULT_TOLERANCE,
    NO_RECOMMENDATION,
    POLICY_NONE,
    POLICY_PERCENT,
    POLICY_PODS,
    SELECT_DISABLED,
    SELECT_MAX,
    SELECT_MIN,
    Behavior,
    Direction,
    overwrite,
)

RECORDING = Path(__file__).parent / "data" / "hpa.json.gz"
_SELECT = {"Max": SELECT_MAX, "Min": SELECT_MIN, "Disabled": SELECT_DISABLED}
_POLICY = {"Pods": POLICY_PODS, "Percent": POLICY_PERCENT}
_SLOTS = 2

CLOCK = "an age lay on a window's end to within the time that the decision took"
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Difference:
    """One decision that our reference takes otherwise."""

    workload: str
    index: int
    controller: int
    reference: int
    reason: str


@dataclass
class Comparison:
    """What a recording came to."""

    kubernetes: str
    decisions: int = 0
    autoscalers: int = 0
    changes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """How often each thing decided, by the reference's account."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Decisions by the autoscaler's metrics."""
    clock_uncertain: int = 0
    longest_s: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    decided: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)
    """By autoscaler: seconds, and the replicas by controller and by reference."""

    @property
    def identical_ratio(self) -> float:
        return 1 - len(self.differences) / self.decisions


@dataclass
class _Memory:
    """What kube-controller-manager remembers of one autoscaler, a column for each thing."""

    recommendation_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    recommendation: np.ndarray = field(default_factory=lambda: np.empty((1, 0), np.int64))
    change_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    change: np.ndarray = field(default_factory=lambda: np.empty((1, 0), np.int64))
    place: np.ndarray = field(default_factory=lambda: np.empty((1, 0), np.int64))
    places: np.ndarray = field(default_factory=lambda: np.zeros((1, 2), np.int64))

    def recommended(self, at_s: float, replicas: int) -> None:
        """Remember a recommendation."""
        self.recommendation_s = np.append(self.recommendation_s, at_s)
        self.recommendation = _append(self.recommendation, replicas)

    def changed(self, at_s: float, change: int, behavior: Behavior, forgets: bool) -> None:
        """Remember a change, in the place of another where the controller does so."""
        kept, place, self.places = overwrite(
            _column(change), at_s, behavior, self.change_s, self.change, self.place, self.places
        )
        if not forgets:
            kept = self.change
        self.change_s = np.append(self.change_s, at_s)
        self.change, self.place = _append(kept, change), _append(self.place, place[0])


def load(path: Path = RECORDING) -> dict[str, Any]:
    """A recording as `hpa_live.save` wrote it."""
    recording: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return recording


def looks_back_apart(workload: Mapping[str, Any]) -> bool:
    """Whether one direction of an autoscaler counts events that the controller may forget for the other's sake."""
    behavior = _behavior(workload["hpa"])
    return bool(behavior.scale_up.policy_period_s.max() != behavior.scale_down.policy_period_s.max())


def compare(recording: Mapping[str, Any], *, forgets: bool = True) -> Comparison:
    """Decide again all that was decided; where it does not forget, as if the controller never overwrote an event."""
    result = Comparison(recording["kubernetes"], autoscalers=len(recording["workloads"]))
    for workload in recording["workloads"]:
        _compare_one(workload, result, forgets)
    return result


def _compare_one(workload: Mapping[str, Any], result: Comparison, forgets: bool) -> None:
    spec, memory = workload["hpa"], _Memory()
    behavior = _behavior(spec)
    has_behavior = "behavior" in spec
    kind = " + ".join(metric_name(metric) for metric in spec["metrics"])
    for index, decision in enumerate(workload["decisions"]):
        at_s, replicas, written = decision["at_s"], decision["replicas"], decision["desired"]
        if not len(memory.recommendation_s):
            memory.recommended(at_s, replicas)
        desired, held = _proposal(spec, behavior, workload["request_milli"], decision)
        in_bounds = spec["minReplicas"] <= replicas <= spec["maxReplicas"]
        expected_reads = ["pods" if m["type"] == "Resource" else "external" for m in spec["metrics"]]
        assert decision["reads"] == (expected_reads if in_bounds else []), (workload["name"], index, decision)
        if held and in_bounds:
            ours, reason = replicas, None
        else:
            ours, reason = _normalized(spec, behavior, memory, at_s, replicas, desired)
        uncertain = _is_uncertain(decision, spec, behavior, memory)
        result.decisions += 1
        result.changes += written != replicas
        result.clock_uncertain += uncertain
        result.longest_s = max(result.longest_s, decision["took_s"])
        name = "MetricUnavailable" if reason is None else hpa.LimitReason(reason).condition
        result.reasons[name] = result.reasons.get(name, 0) + 1
        result.kinds[kind] = result.kinds.get(kind, 0) + 1
        result.decided.setdefault(workload["name"], []).append((at_s, written, ours))
        if ours != written:
            why = CLOCK if uncertain else UNEXPLAINED
            result.differences.append(Difference(workload["name"], index, written, ours, why))
        if in_bounds and not held:
            memory.recommended(at_s, desired)
        if written != replicas and has_behavior:
            memory.changed(at_s + decision["took_s"], written - replicas, behavior, forgets)


def _normalized(
    spec: Mapping[str, Any], behavior: Behavior, memory: _Memory, at_s: float, replicas: int, desired: int
) -> tuple[int, int]:
    """`normalize` of one workload."""
    # One ring for both: what is remembered of either kind is a column, and means nothing to the other.
    time_s = np.concatenate([memory.recommendation_s, memory.change_s])
    nothing = np.full_like(memory.change, NO_RECOMMENDATION)
    recommendation = np.concatenate([memory.recommendation, nothing], axis=1)
    change = np.concatenate([np.zeros_like(memory.recommendation), memory.change], axis=1)
    rows = (_column(desired), _column(replicas), _column(spec["minReplicas"]), _column(spec["maxReplicas"]))
    if "behavior" not in spec:
        found = hpa.normalize_legacy(*rows, at_s, time_s, recommendation, DEFAULT_STABILIZATION_S)
    else:
        found = hpa.normalize(*rows, behavior, at_s, time_s, recommendation, change)
    return int(found[0][0]), int(found[1][0])


def _proposal(
    spec: Mapping[str, Any], behavior: Behavior, request_milli: int, decision: Mapping[str, Any]
) -> tuple[int, bool]:
    """What the metrics ask for, and whether the HPA stands still for want of them."""
    current, status = _column(decision["replicas"]), _column(decision["status_replicas"])
    pods, tolerances = decision["pods"], (behavior.scale_up.tolerance, behavior.scale_down.tolerance)
    proposals, valid = [], []
    for metric in spec["metrics"]:
        target = metric.get("external", metric.get("resource"))["target"]
        if metric["type"] == "Resource":
            sums = _pod_sums(pods, request_milli)
            if "averageUtilization" in target:
                rule, amount = hpa.resource_utilization, _column(target["averageUtilization"])
            else:
                rule, amount = hpa.pods_average, _column(milli(target["averageValue"]))
            rows, usable = rule(sums, current, amount, *tolerances)
            proposals.append(rows)
            valid.append(usable)
            continue
        total = _column(sum(decision["external_milli"]))
        usable = _column(bool(decision["external_milli"]))
        if "averageValue" in target:
            rows = hpa.external_average_value(
                total, _column(milli(target["averageValue"])), status, *tolerances
            )
        else:
            # The controller wants to see pods even where the number of those ready is nought.
            usable = usable & (len(pods) > 0)
            ready = _column(sum(slot.startswith("ready") for slot in pods))
            rows = hpa.external_value(total, _column(milli(target["value"])), current, ready, *tolerances)
        proposals.append(rows)
        valid.append(usable)
    desired, held = hpa.combine(np.stack(proposals), np.stack(valid).astype(bool), current)
    return int(desired[0]), bool(held[0])


def _pod_sums(pods: Mapping[str, int | None], request_milli: int) -> hpa.PodSums:
    """The pods as the HPA groups them for CPU: a broken pod was ready once, and a failed one counts nowhere."""
    running = {slot: usage for slot, usage in pods.items() if slot.startswith(("ready", "broken", "unready"))}
    # A pod that runs and has no metric is missing, ready or not.
    missing = sum(usage is None for usage in running.values())
    measured = [u for slot, u in running.items() if u is not None and not slot.startswith("unready")]
    unready = sum(slot.startswith("pending") for slot in pods) + len(running) - missing - len(measured)
    return hpa.PodSums(
        ready=_column(len(measured)),
        ready_usage_milli=_column(sum(measured)),
        ready_request_milli=_column(len(measured) * request_milli),
        missing=_column(missing),
        missing_request_milli=_column(missing * request_milli),
        unready=_column(unready),
        unready_request_milli=_column(unready * request_milli),
    )


def _is_uncertain(
    decision: Mapping[str, Any], spec: Mapping[str, Any], behavior: Behavior, memory: _Memory
) -> bool:
    """Whether an age may lie on either side of a window, since a decision takes a while."""
    slack_s = decision["took_s"] + 0.05
    windows_s: set[float] = {DEFAULT_STABILIZATION_S}
    for rules in (behavior.scale_up, behavior.scale_down) if "behavior" in spec else ():
        windows_s |= {float(rules.stabilization_window_s[0]), *map(float, rules.policy_period_s[0])}
    ages_s = decision["at_s"] - np.concatenate([memory.recommendation_s[-20:], memory.change_s[-20:]])
    return any(w > 0 and abs(age - w) < slack_s for age in ages_s for w in windows_s)


def _behavior(spec: Mapping[str, Any]) -> Behavior:
    given = spec.get("behavior", {})
    return Behavior(
        _direction(given.get("scaleUp", {}), 0),
        _direction(given.get("scaleDown", {}), DEFAULT_STABILIZATION_S),
    )


def _direction(rules: Mapping[str, Any], default_window_s: int) -> Direction:
    """A direction as the API server has stored it, that is with its defaults, but for the controller's own."""
    policies: Iterable[Mapping[str, Any]] = rules.get("policies", ())
    slots = [(_POLICY[p["type"]], p["value"], p["periodSeconds"]) for p in policies]
    slots += [(POLICY_NONE, 0, 0)] * (_SLOTS - len(slots))
    kinds, values, periods = (np.array([row]) for row in zip(*slots, strict=True))
    tolerance = milli(rules["tolerance"]) * 10**-3 if "tolerance" in rules else DEFAULT_TOLERANCE
    return Direction(
        stabilization_window_s=_column(rules.get("stabilizationWindowSeconds", default_window_s)),
        select=_column(_SELECT[rules.get("selectPolicy", "Max")]),
        policy_type=kinds,
        policy_value=values,
        policy_period_s=periods,
        tolerance=np.array([tolerance]),
    )


def milli(quantity: str) -> int:
    """A quantity such as `250m` or `2` in milli-units."""
    return int(quantity[:-1]) if quantity.endswith("m") else 1000 * int(quantity)


def metric_name(metric: Mapping[str, Any]) -> str:
    """Such as `CPU Utilization`."""
    target = metric.get("external", metric.get("resource"))["target"]
    return ("CPU" if metric["type"] == "Resource" else "external") + f" {target['type']}"


def _column(value: float) -> np.ndarray:
    return np.array([value])


def _append(ring: np.ndarray, newest: int) -> np.ndarray:
    return np.append(ring, [[newest]], axis=1)
