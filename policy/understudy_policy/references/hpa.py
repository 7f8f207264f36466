"""The HorizontalPodAutoscaler's arithmetic, exactly: the rule that carries on whenever the actor may not act.

"Never worse than the HPA" can only be claimed, and a hand-over can only be smooth, if the number beside the
actor is the very number kube-controller-manager would write. So quantities are integer milli-units whose
division truncates, ratios are float64 in Kubernetes' own order of operations, and results are capped to
int32. Every function takes NumPy arrays or torch tensors whose axis 0 is the workload, and returns new ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.references.behavior import (
    DEFAULT_DOWNSCALE_STABILIZATION_S,
    NO_RECOMMENDATION,
    Behavior,
    LimitReason,
    as_capped_int,
    as_float,
    as_int,
    limit,
    stabilize,
)
from understudy_policy.rows import Array, maximum, minimum, namespace

LEGACY_SCALE_UP_FACTOR = 2
LEGACY_SCALE_UP_MINIMUM = 4


@dataclass(frozen=True)
class PodSums:
    """The pods of every workload, grouped as HPA groups them and summed; all int64 `[N]`, none below 0.

    The groups, by the first line that fits a pod:

    * none: it is being deleted, or has failed;
    * unready: it is pending;
    * missing: it has no metric, whether it is ready or not;
    * for CPU, unready: within five minutes of its start (`--horizontal-pod-autoscaler-cpu-initialization-period`)
      it is not ready, or was not throughout the sample; later it is not ready and never was, that is: its
      readiness last changed within 30 s of its start (`--horizontal-pod-autoscaler-initial-readiness-delay`);
    * ready: all others, also a pod that was ready once and is not any more.

    Whoever looks at no single pods cannot group them so: `observed` says what it makes of theirs. For pods of
    one template the sums lose nothing; where requests differ among the missing pods and the target is above
    100 %, they may be about one milli-unit per missing pod off.
    """

    ready: Array
    """Pods whose metric counts."""
    ready_usage_milli: Array
    ready_request_milli: Array
    missing: Array
    """Pods that should have a metric and have none: full on the way down, idle on the way up."""
    missing_request_milli: Array
    unready: Array
    """Pods that cannot serve yet: left out on the way down, idle on the way up."""
    unready_request_milli: Array


def resource_utilization(
    pods: PodSums, current: Array, target_percent: Array, tolerance_up: Array, tolerance_down: Array
) -> tuple[Array, Array]:
    """Replicas that a `Resource` metric with a `Utilization` target asks for.

    Args:
        pods: The workloads' pods.
        current: `spec.replicas` of the scale `[N]`.
        target_percent: Target utilisation in percent of the request, integers above 0 `[N]`.
        tolerance_up: Share above the target that changes nothing `[N]`.
        tolerance_down: Share below the target that changes nothing `[N]`.

    Returns:
        Replicas (int64 `[N]`; current where invalid) and whether the metric is usable at all (bool `[N]`):
        HPA answers with an error where no ready pod has a metric or the request is missing.
    """
    xp = namespace(current)
    # A missing pod is taken to use all of its request (or the target, if that is higher). Kubernetes
    # truncates pod by pod; so does this for pods with equal requests.
    percent = maximum(xp, target_percent, 100)
    divisor = maximum(xp, pods.missing, 1)
    each, rest = pods.missing_request_milli // divisor, pods.missing_request_milli % divisor
    missing_usage_milli = pods.missing * (each * percent // 100) + rest * percent // 100
    weights = (pods.ready_request_milli, pods.missing_request_milli, pods.unready_request_milli)
    return _from_pods(
        pods, weights, 100, missing_usage_milli, current, target_percent, (tolerance_up, tolerance_down)
    )


def pods_average(
    pods: PodSums, current: Array, target_average_milli: Array, tolerance_up: Array, tolerance_down: Array
) -> tuple[Array, Array]:
    """Replicas that a `Pods` (or raw `Resource`) metric with an `AverageValue` target asks for.

    Like `resource_utilization`, but the requests in `pods` are not looked at, and a missing pod is taken to
    be right at the target. `target_average_milli` is above 0.
    """
    weights = (pods.ready, pods.missing, pods.unready)
    missing_usage_milli = pods.missing * target_average_milli
    return _from_pods(
        pods, weights, 1, missing_usage_milli, current, target_average_milli, (tolerance_up, tolerance_down)
    )


def external_average_value(
    metric_milli: Array,
    target_milli: Array,
    status_replicas: Array,
    tolerance_up: Array,
    tolerance_down: Array,
) -> Array:
    """Replicas that an `External` or `Object` metric with an `AverageValue` target asks for, int64 `[N]`.

    This is the rule of a KEDA trigger, too.

    Args:
        metric_milli: The metric, summed over its series, in milli-units `[N]`.
        target_milli: Target per replica in milli-units, above 0 `[N]`.
        status_replicas: `status.replicas` of the scale `[N]`.
        tolerance_up: Share above the target that changes nothing `[N]`.
        tolerance_down: Share below the target that changes nothing `[N]`.
    """
    xp = namespace(metric_milli)
    metric, target, status = (as_float(a) for a in (metric_milli, target_milli, status_replicas))
    ratio = metric / (target * maximum(xp, status, 1.0))
    hold = (status_replicas > 0) & _within(ratio, tolerance_up, tolerance_down)
    return xp.where(hold, as_int(status_replicas), _ceil(metric / target))


def external_value(
    metric_milli: Array,
    target_milli: Array,
    current: Array,
    ready: Array,
    tolerance_up: Array,
    tolerance_down: Array,
) -> Array:
    """Replicas that an `External` or `Object` metric with a `Value` target asks for, int64 `[N]`.

    Args:
        metric_milli: The metric, summed over its series, in milli-units `[N]`.
        target_milli: Target in milli-units, above 0 `[N]`.
        current: `spec.replicas` of the scale `[N]`; from 0 neither pods nor tolerance count.
        ready: Pods that are running and ready `[N]`.
        tolerance_up: Share above the target that changes nothing `[N]`.
        tolerance_down: Share below the target that changes nothing `[N]`.
    """
    xp = namespace(metric_milli)
    ratio = as_float(metric_milli) / as_float(target_milli)
    hold = (current > 0) & _within(ratio, tolerance_up, tolerance_down)
    pods = xp.where(current > 0, as_float(ready), 1.0)
    return xp.where(hold, as_int(current), _ceil(ratio * pods))


def combine(proposals: Array, valid: Array, current: Array) -> tuple[Array, Array]:
    """The largest of what M metrics ask for, but never fewer than now while one of them is silent.

    Args:
        proposals: Replicas per metric `[M, N]`.
        valid: Whether the metric could be read `[M, N]`.
        current: `spec.replicas` of the scale `[N]`.

    Returns:
        Desired replicas (int64 `[N]`) and where HPA computes nothing and stands still (bool `[N]`; desired is
        current there, and `NO_RECOMMENDATION` is what belongs into the ring).
    """
    xp = namespace(proposals, valid, current)
    current = as_int(current)
    best = xp.max(xp.where(valid, as_int(proposals), 0), axis=0)
    best = maximum(xp, best, 0)
    held = ~xp.any(valid, axis=0) | (~xp.all(valid, axis=0) & (best < current))
    return xp.where(held, current, best), held


def normalize(
    desired: Array,
    current: Array,
    min_replicas: Array,
    max_replicas: Array,
    behavior: Behavior,
    now_s: float,
    time_s: Array,
    recommendation: Array,
    change: Array,
) -> tuple[Array, Array]:
    """From what the metrics ask for to what HPA would write, with `spec.behavior`.

    Stabilise first, then limit the rate. A scale outside its bounds goes straight to the nearer bound, and
    one at zero (with a minimum above zero) is switched off: in both cases HPA computes no recommendation, and
    `NO_RECOMMENDATION` belongs into the ring. Arguments as in `stabilize` and `limit`.

    Returns:
        Replicas (int64 `[N]`) and the `LimitReason` that bound last (int64 `[N]`).
    """
    xp = namespace(desired, current, recommendation, change)
    desired, current = as_int(desired), as_int(current)
    steady = stabilize(desired, current, behavior, now_s, time_s, recommendation)
    # Rates look back less far than stabilisation: the ring of changes may hold only the newest columns.
    change_s = time_s[time_s.shape[0] - change.shape[1] :]
    replicas, reason = limit(steady, current, behavior, min_replicas, max_replicas, now_s, change_s, change)
    stabilized = (steady != desired) & (reason == LimitReason.DESIRED_WITHIN_RANGE.value)
    reason = xp.where(stabilized & (desired > current), LimitReason.SCALE_UP_STABILIZED.value, reason)
    reason = xp.where(stabilized & (desired < current), LimitReason.SCALE_DOWN_STABILIZED.value, reason)
    return _bypass(replicas, reason, current, min_replicas, max_replicas)


def normalize_legacy(
    desired: Array,
    current: Array,
    min_replicas: Array,
    max_replicas: Array,
    now_s: float,
    time_s: Array,
    recommendation: Array,
    stabilization_window_s: float = DEFAULT_DOWNSCALE_STABILIZATION_S,
) -> tuple[Array, Array]:
    """`normalize` for an HPA without `spec.behavior`: highest recent recommendation, at most doubling.

    Its window is closed (a recommendation exactly as old as the window counts), and it may scale *up* on an
    old recommendation: both as in kube-controller-manager.
    """
    xp = namespace(desired, current, recommendation)
    desired, current = as_int(desired), as_int(current)
    counts = as_float(time_s) >= now_s - stabilization_window_s
    highest = as_int(xp.max(xp.where(counts[None, :], recommendation, NO_RECOMMENDATION), axis=1))
    steady = maximum(xp, desired, highest)
    low, high = as_int(min_replicas), as_int(max_replicas)
    ceiling = maximum(xp, LEGACY_SCALE_UP_FACTOR * current, LEGACY_SCALE_UP_MINIMUM)
    allowed = minimum(xp, high, ceiling)
    reason = xp.where(steady != desired, LimitReason.SCALE_DOWN_STABILIZED.value, xp.zeros_like(steady))
    reason = xp.where(steady > allowed, LimitReason.TOO_MANY_REPLICAS.value, reason)
    reason = xp.where((steady > allowed) & (high > ceiling), LimitReason.SCALE_UP_LIMIT.value, reason)
    reason = xp.where(steady < low, LimitReason.TOO_FEW_REPLICAS.value, reason)
    replicas = xp.where(steady < low, low, minimum(xp, steady, allowed))
    return _bypass(replicas, reason, current, min_replicas, max_replicas)


def _from_pods(
    pods: PodSums,
    weights: tuple[Array, Array, Array],
    scale: int,
    missing_usage_milli: Array,
    current: Array,
    target: Array,
    tolerances: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Usage over weight (requests, or one per pod) of the ready pods, then of all that HPA lets count."""
    xp = namespace(current)
    ready, missing, unready = weights
    valid = (pods.ready > 0) & (ready > 0)

    def ratio_of(usage_milli: Array, weight: Array) -> Array:
        return as_float(scale * usage_milli // xp.where(valid, weight, 1)) / as_float(target)

    first = ratio_of(pods.ready_usage_milli, ready)
    up, down = first > 1, first < 1
    # Doubt works against the change: missing pods idle on the way up and are full on the way down.
    usage_milli = pods.ready_usage_milli + xp.where(down, missing_usage_milli, 0)
    ratio = ratio_of(usage_milli, ready + missing + xp.where(up, unready, 0))
    counted = pods.ready + pods.missing + xp.where(up, pods.unready, 0)
    replicas, current = _ceil(ratio * as_float(counted)), as_int(current)

    turned = (up & (ratio < 1)) | (down & (ratio > 1)) | (first == 1)
    against = ((ratio < 1) & (replicas > current)) | ((ratio > 1) & (replicas < current))
    # With every pod accounted for, HPA trusts its result even where it goes against the ratio.
    certain = (pods.missing == 0) & ~(up & (pods.unready > 0))
    hold = ~valid | _within(ratio, *tolerances) | turned | (against & ~certain)
    return xp.where(hold, current, replicas), valid


def _bypass(
    replicas: Array, reason: Array, current: Array, min_replicas: Array, max_replicas: Array
) -> tuple[Array, Array]:
    """A scale that someone else left outside its bounds, or at zero."""
    xp = namespace(replicas)
    low, high = as_int(min_replicas), as_int(max_replicas)
    off = (current == 0) & (low != 0)
    above, below = current > high, (current < low) & ~off
    replicas = xp.where(above, high, xp.where(below, low, xp.where(off, 0, replicas)))
    reason = xp.where(above, LimitReason.TOO_MANY_REPLICAS.value, reason)
    reason = xp.where(below, LimitReason.TOO_FEW_REPLICAS.value, reason)
    return replicas, xp.where(off, LimitReason.SCALING_DISABLED.value, reason)


def _within(ratio: Array, tolerance_up: Array, tolerance_down: Array) -> Array:
    return (ratio >= 1.0 - tolerance_down) & (ratio <= 1.0 + tolerance_up)


def _ceil(value: Array) -> Array:
    return as_capped_int(namespace(value).ceil(value))
