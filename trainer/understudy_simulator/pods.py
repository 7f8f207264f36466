"""Pods in aggregate: between asking for a pod and having it lies the delay that autoscaling is all about.

All pods of a workload are one row `schedule[N, B]`: how many of the pods that exist now will be ready `j` ticks
from now, were nothing changed. Its first column is what is ready, its last what exists. Creating, removing and
waiting are then one pass over it. Nodes are kept in the same way.
"""

from __future__ import annotations

import math
from typing import Any

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_simulator.columns import by_column, by_row, once, stack


def startup_cdf(median_s: Array, sigma: Array, tick_s: float, horizon_s: float) -> Array:
    """Probability that a new pod is ready `j` ticks after its creation, `[N, B + 1]`.

    Start-up (creation to ready) is log-normal; what would last beyond the horizon is ready at the horizon.

    Args:
        median_s: `[N]` median start-up.
        sigma: `[N]` standard deviation of its logarithm, above 0.
        tick_s: length of a tick.
        horizon_s: longest start-up that is told apart.
    """
    xp = namespace(median_s)
    last = max(math.ceil(horizon_s / tick_s), 1)
    by_age = [xp.zeros_like(median_s)]
    for age in range(1, last):
        by_age.append(_normal_cdf(xp, (math.log(age * tick_s) - xp.log(median_s)) / sigma))
    return stack(*by_age, xp.ones_like(median_s))


def horizon_s(median_s: Array, sigma: Array) -> float:
    """Longest start-up worth telling apart: one pod in two thousand takes longer."""
    xp = namespace(median_s)
    return float(xp.max(median_s * xp.exp(3.3 * sigma)))


def _normal_cdf(xp: Any, x: Array) -> Array:
    """Abramowitz and Stegun 26.2.17 (error under 1e-7): the array API has no error function."""
    t = 1.0 / (1.0 + 0.2316419 * xp.abs(x))
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = tail * xp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return xp.where(x > 0, 1.0 - tail, tail)


def all_ready(replicas: Array, startup: Array) -> Array:
    """The schedule of `replicas[N]` pods that are ready already."""
    return by_row(replicas + namespace(startup).zeros_like(by_column(startup)[1:]))


def ready(schedule: Array) -> Array:
    """Pods that are ready now, `[N]`."""
    return schedule[:, 0]


def ready_within(first: Array, last: Array, share: float) -> Array:
    """Pods that are ready when this share of the tick is over, `[N]`: spread evenly over it, and whole.

    Args:
        first, last: `[N]` pods ready at the start of the tick and at its end.
        share: of the tick, 0 to 1.
    """
    return first + namespace(first).floor((last - first) * share + 0.5)


def existing(schedule: Array) -> Array:
    """Pods that exist now, ready or starting, `[N]`."""
    return schedule[:, -1]


def advance(schedule: Array, replicas: Array, startup: Array, uniform: Array) -> Array:
    """Create or remove pods so that `replicas` exist, and let a tick pass.

    As a ReplicaSet does, removal takes pods that are not ready first: of those that are ready, the smaller of
    `ready(schedule)` and `replicas` stay. New pods share one uniform draw: pod by pod the start-up has exactly the
    given distribution, and counts stay whole (systematic sampling).

    Args:
        schedule: `[N, B]`.
        replicas: `[N]` pods wanted, whole.
        startup: `[N, B + 1]` from `startup_cdf`.
        uniform: `[N]` draws from [0, 1).

    Returns:
        The schedule a tick later.
    """
    xp = namespace(schedule)
    created = maximum(xp, replicas - existing(schedule), 0.0)
    # So far below 1 that the sum with all of them does not round up to one more, in single precision.
    uniform = minimum(xp, uniform, 1.0 - 2.0**-23 * (created + 1.0))
    replicas, created, uniform = once(replicas, created, uniform)
    kept = minimum(xp, by_column(schedule)[1:], replicas)
    started = xp.floor(created * by_column(startup)[1:-1] + uniform)
    return by_row(xp.concat([kept + started, replicas[None]], axis=0))
