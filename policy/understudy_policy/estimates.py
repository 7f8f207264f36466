"""What the operator learns about a workload without being told: capacity of a pod, time to ready."""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.rows import Array, is_unknown, minimum, namespace
from understudy_policy.signals import Signal

CAPACITY_WEIGHT = 0.02
"""Weight of a new sample in the moving estimate: about fifty ticks of memory."""

STARTUP_WEIGHT = 0.3
DEFAULT_STARTUP_TICKS = 4.0


@dataclass
class Estimates:
    """Moving estimates, one row per workload.

    Attributes:
        log_capacity: `[N]` float64, log of requests per second of one pod at full use of its CPU request;
            NaN until seen.
        log_capacity_variance: `[N]` float64, its moving variance.
        startup_ticks: `[N]` ticks from asking for pods to having them ready.
        pending_ticks: `[N]` ticks for which fewer pods have been ready than asked for.
    """

    log_capacity: Array
    log_capacity_variance: Array
    startup_ticks: Array
    pending_ticks: Array


def update(estimates: Estimates, values: Array, replicas: Array, ready: Array) -> Estimates:
    """Fold one tick into the estimates.

    Requests per CPU-second times the CPU request of a pod is what a pod serves at full use. A sample is taken only
    where pods are at work (5 % of their request or more), because idle cost would hide in the ratio below that.

    Args:
        estimates: the estimates so far.
        values: `[N, S]` believed signal values, NaN where unknown.
        replicas: `[N]` desired replicas.
        ready: `[N]` ready replicas.
    """
    xp = namespace(values)
    rate, used, requested = (
        values[:, Signal.REQUEST_RATE],
        values[:, Signal.CPU_USAGE],
        values[:, Signal.CPU_REQUEST],
    )
    available = requested * xp.astype(ready, values.dtype)
    usable = (rate > 0) & (requested > 0) & (ready > 0) & (used > 0.05 * available)
    one = xp.ones_like(rate)
    sample = xp.log(xp.where(usable, rate * requested, one) / xp.where(usable, used, one))
    first = usable & is_unknown(estimates.log_capacity)
    error = xp.where(usable & ~first, sample - estimates.log_capacity, xp.zeros_like(sample))
    capacity = xp.where(first, sample, estimates.log_capacity + CAPACITY_WEIGHT * error)
    variance = (1 - CAPACITY_WEIGHT) * (estimates.log_capacity_variance + CAPACITY_WEIGHT * error * error)
    variance = xp.where(usable & ~first, variance, estimates.log_capacity_variance)

    waiting = ready < replicas
    pending = xp.where(waiting, estimates.pending_ticks + 1, xp.zeros_like(estimates.pending_ticks))
    arrived = ~waiting & (estimates.pending_ticks > 0)
    seen = xp.astype(minimum(xp, estimates.pending_ticks, 240), values.dtype)
    startup = xp.where(
        arrived,
        estimates.startup_ticks + STARTUP_WEIGHT * (seen - estimates.startup_ticks),
        estimates.startup_ticks,
    )
    return Estimates(capacity, variance, startup, pending)


def capacity_rps(given: Array, estimates: Estimates) -> Array:
    """`[N]` requests per second of one pod: as given, else as estimated, else NaN."""
    xp = namespace(given)
    return xp.where(is_unknown(given), xp.exp(estimates.log_capacity), given)
