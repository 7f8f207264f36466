"""Pods in aggregate: between asking for a pod and having it lies the delay that autoscaling is all about.

All pods of a workload are one row `schedule[N, B + 1]`: how many of the pods that exist now will be ready
`j` sub-steps from now, were nothing changed. Its first column is what is ready, its last what exists.
Creating, removing and waiting are then one array operation each.
"""

from __future__ import annotations

import math
from typing import Any

from understudy_policy.rows import Array, maximum, minimum, namespace


def startup_cdf(median_s: Array, sigma: Array, step_s: float, horizon_s: float) -> Array:
    """Probability that a new pod is ready `j` sub-steps after its creation, `[N, B + 1]`.

    Start-up (creation to ready) is log-normal; what would last beyond the horizon is ready at the horizon.

    Args:
        median_s: `[N]` median start-up.
        sigma: `[N]` standard deviation of its logarithm, above 0.
        step_s: length of a sub-step.
        horizon_s: longest start-up that is told apart.
    """
    xp = namespace(median_s)
    columns = math.ceil(horizon_s / step_s)
    time_s = step_s * xp.arange(1, columns, dtype=median_s.dtype, device=median_s.device)
    deviation = (xp.log(time_s)[None, :] - xp.log(median_s)[:, None]) / sigma[:, None]
    zero = xp.zeros_like(median_s)[:, None]
    return xp.concat([zero, _normal_cdf(xp, deviation), zero + 1.0], axis=1)


def _normal_cdf(xp: Any, x: Array) -> Array:
    """Abramowitz and Stegun 26.2.17 (error under 1e-7): the array API has no error function."""
    t = 1.0 / (1.0 + 0.2316419 * xp.abs(x))
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = tail * xp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return xp.where(x > 0, 1.0 - tail, tail)


def all_ready(replicas: Array, startup: Array) -> Array:
    """The schedule of `replicas[N]` pods that are ready already."""
    xp = namespace(startup)
    return replicas[:, None] + xp.zeros_like(startup)


def ready(schedule: Array) -> Array:
    """Pods that are ready now, `[N]`."""
    return schedule[:, 0]


def existing(schedule: Array) -> Array:
    """Pods that exist now, ready or starting, `[N]`."""
    return schedule[:, -1]


def scale(schedule: Array, replicas: Array, startup: Array, uniform: Array) -> Array:
    """Create or remove pods so that `replicas` exist.

    As a ReplicaSet does, removal takes pods that are not ready first. New pods share one uniform draw: pod by
    pod the start-up has exactly the given distribution, and counts stay whole (systematic sampling).

    Args:
        schedule: `[N, B + 1]`.
        replicas: `[N]` pods wanted, whole.
        startup: `[N, B + 1]` from `startup_cdf`.
        uniform: `[N]` draws from [0, 1).
    """
    xp = namespace(schedule)
    created = maximum(xp, replicas - existing(schedule), 0.0)
    kept = minimum(xp, schedule, replicas[:, None])
    # At most all of them: in single precision a large count plus the draw may round up to one more.
    return kept + minimum(xp, xp.floor(created[:, None] * startup + uniform[:, None]), created[:, None])


def advance(schedule: Array, sub_steps: int) -> Array:
    """The schedule `sub_steps` sub-steps later."""
    xp = namespace(schedule)
    last = xp.broadcast_to(schedule[:, -1:], (schedule.shape[0], sub_steps))
    return xp.concat([schedule[:, sub_steps:], last], axis=1)
