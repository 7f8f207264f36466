"""What Prometheus shows of a cluster: rates over a window, late by a scrape or more, and sometimes nothing new.

An autoscaler never sees the cluster itself. How late, how smooth and how complete its numbers are decides as much
about the outcome as its rule does, so all three differ from workload to workload here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_simulator.columns import by_column, by_row, each, stack
from understudy_simulator.service import histogram_quantile

LATENCY_EDGES_RATIO = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.5, 5.0, 10.0, 20.0)
"""Upper edges of the latency buckets over the workload's threshold, where nothing else is said."""
ERRORS, CPU, REQUESTS = 0, 1, slice(2, None)
"""Columns of a scrape: errors, CPU core-seconds, then requests at or under each latency edge, and all of them."""
QUANTILE = 0.99


def window(lag_s: Array, window_s: Array, tick_s: float, reach_s: float = 0.0) -> Array:
    """Share of each scrape in the window that a query at the end of a tick looks at, `[N, R]`, oldest first.

    Args:
        lag_s: `[N]` age of the newest sample that the query can find.
        window_s: `[N]` length of the rate's window.
        tick_s: scrape interval.
        reach_s: age up to which there are columns, even if no query looks so far back.
    """
    xp = namespace(lag_s)
    scrapes = int(np.ceil(max(float(xp.max(lag_s + window_s)), reach_s) / tick_s - 1e-9))
    shares = []
    for age in reversed(range(scrapes)):
        begins = maximum(xp, lag_s, age * tick_s)
        ends = minimum(xp, lag_s + window_s, (age + 1) * tick_s)
        shares.append(maximum(xp, ends - begins, 0.0) / tick_s)
    return stack(*shares)


def read(
    scrapes: Sequence[Array],
    shares: Array,
    latency_threshold_s: Array,
    edges_ratio: Sequence[float],
    cpu_request_cores: Array,
    tick_s: float,
) -> Array:
    """The signals as the autoscaler's queries return them, `[N, S]`.

    In the order and units of `understudy_policy.signals.Signal`. As in Prometheus, latency and shares are NaN while
    there are no requests, and misses cannot be told without a bucket that ends at the threshold. The CPU request is
    one pod's.

    Args:
        scrapes: R scrapes `[N, K + 3]`, what was added to every counter, oldest first.
        shares: `[N, R]` from `window`.
        latency_threshold_s: `[N]`.
        edges_ratio: upper edges of the K latency buckets over the threshold.
        cpu_request_cores: `[N]`.
        tick_s: scrape interval.
    """
    xp, weights = namespace(shares), list(by_column(shares))

    def in_window(*added: Array) -> Array:
        return sum(weight * one for weight, one in zip(weights, added, strict=True))

    window_s, total = tick_s * sum(weights), each(in_window, *map(by_column, scrapes))
    requests = total[REQUESTS]
    handled = requests[-1]

    def share(part: Array) -> Array:
        return xp.where(handled > 0, part / maximum(xp, handled, 1e-9), xp.nan)

    in_time = requests[edges_ratio.index(1.0)] if 1.0 in edges_ratio else None
    missed = xp.full_like(handled, xp.nan) if in_time is None else share(maximum(xp, handled - in_time, 0.0))
    latency_s = latency_threshold_s * histogram_quantile(QUANTILE, edges_ratio, by_row(requests))
    return stack(
        handled / window_s,
        latency_s,
        share(total[ERRORS]),
        total[CPU] / window_s,
        cpu_request_cores,
        missed,
    )
