"""What Prometheus shows of a cluster: rates over a window, late by a scrape or more, and sometimes nothing new.

An autoscaler never sees the cluster itself. How late, how smooth and how complete its numbers are decides as much
about the outcome as its rule does, so all three differ from workload to workload here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_simulator.columns import by_column, by_row, stack
from understudy_simulator.service import histogram_quantile

LATENCY_EDGES_RATIO = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.5, 5.0, 10.0, 20.0)
"""Latency buckets over the workload's threshold; 1 must be among them, it tells the late requests."""
THRESHOLD = LATENCY_EDGES_RATIO.index(1.0)
BUCKETS = len(LATENCY_EDGES_RATIO)
ALL, ERRORS, CPU = BUCKETS, BUCKETS + 1, BUCKETS + 2
COUNTERS = BUCKETS + 3
"""Columns of what is scraped: requests at or under each latency edge, all requests, errors, CPU core-seconds."""
QUANTILE = 0.99


def window(lag_s: Array, window_s: Array, tick_s: float) -> Array:
    """Share of each scrape in the window that a query at the end of a tick looks at, `[N, R]`, oldest first.

    Args:
        lag_s: `[N]` age of the newest sample that the query can find.
        window_s: `[N]` length of the rate's window.
        tick_s: scrape interval.
    """
    xp = namespace(lag_s)
    scrapes = int(np.ceil(float(xp.max(lag_s + window_s)) / tick_s - 1e-9))
    shares = []
    for age in reversed(range(scrapes)):
        begins = maximum(xp, lag_s, age * tick_s)
        ends = minimum(xp, lag_s + window_s, (age + 1) * tick_s)
        shares.append(maximum(xp, ends - begins, 0.0) / tick_s)
    return stack(*shares)


def edges_s(latency_threshold_s: Array) -> Array:
    """Upper edges of the latency buckets, `[N, K]` seconds."""
    return stack(*(ratio * latency_threshold_s for ratio in LATENCY_EDGES_RATIO))


def read(scraped: Array, shares: Array, edges: Array, cpu_request_cores: Array, tick_s: float) -> Array:
    """The signals as the autoscaler's queries return them, `[N, S]`.

    In the order and units of `understudy_policy.signals.Signal`. As in Prometheus, latency and error share are NaN
    while there are no requests. The CPU request is one pod's.

    Args:
        scraped: `[N, R, COUNTERS]` increments per scrape, oldest first.
        shares: `[N, R]` from `window`.
        edges: `[N, K]` from `edges_s`.
        cpu_request_cores: `[N]`.
        tick_s: scrape interval.
    """
    xp = namespace(scraped)
    total = _weighted(shares, scraped)
    window_s = tick_s * _total(shares)
    handled = total[:, ALL]
    errors = xp.where(
        handled > 0, total[:, ERRORS] / maximum(xp, handled, 1e-9), xp.full_like(handled, xp.nan)
    )
    latency_s = histogram_quantile(QUANTILE, edges, total[:, : ALL + 1])
    return stack(handled / window_s, latency_s, errors, total[:, CPU] / window_s, cpu_request_cores)


def _weighted(shares: Array, scraped: Array) -> Array:
    # Unrolled: a handful of scrapes, and each stays one pass over the workloads.
    total: Any = 0.0
    for k in range(scraped.shape[1]):
        total = total + shares[:, k] * by_column(scraped[:, k])
    return by_row(total)


def _total(shares: Array) -> Array:
    total: Any = 0.0
    for k in range(shares.shape[1]):
        total = total + shares[:, k]
    return total
