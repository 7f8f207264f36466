"""The HPA's arithmetic where nobody looks at single pods: all that is known of them are sums, as telemetry has them.

How many pods exist (`status.replicas`), how many of those are ready (`readyReplicas`), and the CPU of all of them. So
this departs from the pod-by-pod rules at `hpa.PodSums` in five things: a pod that exists and is not ready is unready,
while the HPA calls it missing if it runs without a metric (on the way down it then counts as busy) and ready if it
broke after its first five minutes; a ready pod without a metric is idle, not missing; one that has just become ready
is ready at once; and what pods that are not ready use counts as used by those that are.
"""

from __future__ import annotations

from understudy_policy.references import hpa
from understudy_policy.references.behavior import Behavior, as_float, as_int
from understudy_policy.rows import Array, is_unknown, maximum, minimum, namespace
from understudy_policy.settings import REFERENCE_CPU, Settings
from understudy_policy.signals import Signal

_EXACT_INTEGERS = 2.0**52


def recommend(
    settings: Settings, values: Array, capacity_rps: Array, current: Array, created: Array, ready: Array
) -> tuple[Array, Array]:
    """What an HPA on the same telemetry would recommend.

    Args:
        settings: which signal it goes by, and at which target.
        values: `[N, S]` believed values, NaN where not fresh.
        capacity_rps: `[N]` of a pod, NaN where unknown.
        current: `[N]` int64 `spec.replicas`.
        created: `[N]` int64 `status.replicas`.
        ready: `[N]` int64 `status.readyReplicas`.

    Returns:
        Replicas `[N]` int64, `current` where it cannot know; and `[N]` bool, where it can.
    """
    xp = namespace(values)
    percent = as_int(xp.round(settings.reference_target * 100))
    wanted_by_cpu, cpu_known = by_cpu(
        values[:, Signal.CPU_USAGE],
        values[:, Signal.CPU_REQUEST],
        percent,
        current,
        created,
        ready,
        settings.behavior,
    )
    rate, per_pod = values[:, Signal.REQUEST_RATE], milli(settings.reference_target * capacity_rps)
    up, down = settings.behavior.scale_up.tolerance, settings.behavior.scale_down.tolerance
    wanted_by_rate = hpa.external_average_value(milli(rate), maximum(xp, per_pod, 1), created, up, down)
    rate_known = ~is_unknown(rate) & ~is_unknown(capacity_rps) & (per_pod > 0)
    goes_by_cpu = settings.reference_signal == REFERENCE_CPU
    known = xp.where(goes_by_cpu, cpu_known, rate_known)
    return xp.where(known, xp.where(goes_by_cpu, wanted_by_cpu, wanted_by_rate), current), known


def by_cpu(
    usage_cores: Array,
    request_cores: Array,
    percent: Array,
    current: Array,
    created: Array,
    ready: Array,
    behavior: Behavior,
) -> tuple[Array, Array]:
    """Replicas at a target utilisation of the CPU request.

    Args:
        usage_cores: `[N]` of all pods together, NaN where unknown.
        request_cores: `[N]` of one pod, NaN where unknown.
        percent: `[N]` int64 `averageUtilization`.
        current, created, ready: see `recommend`.
        behavior: of which only the tolerances are looked at.

    Returns:
        Replicas `[N]` int64, and `[N]` bool, where they are known.
    """
    xp = namespace(usage_cores)
    request = milli(request_cores)
    none, unready = xp.zeros_like(current), maximum(xp, created - ready, 0)
    pods = hpa.PodSums(
        ready=ready,
        ready_usage_milli=milli(usage_cores),
        ready_request_milli=request * ready,
        missing=none,
        missing_request_milli=none,
        unready=unready,
        unready_request_milli=request * unready,
    )
    up, down = behavior.scale_up.tolerance, behavior.scale_down.tolerance
    wanted, valid = hpa.resource_utilization(pods, current, percent, up, down)
    return wanted, valid & ~is_unknown(usage_cores) & ~is_unknown(request_cores)


def milli(value: Array) -> Array:
    """Thousandths as integers, rounded up as the resource metrics API does; 0 where unknown."""
    xp = namespace(value)
    scaled = xp.where(is_unknown(value), xp.zeros_like(value), value) * 1000.0
    # What float arithmetic added to a whole number must not become one more.
    return as_int(xp.ceil(minimum(xp, as_float(scaled), _EXACT_INTEGERS) - 1e-6))
