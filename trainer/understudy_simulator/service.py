"""The queue and the servers behind it: what a number of ready pods makes of the requests that come.

Simulating every request would be exact and far too slow for learning. Instead a sub-step of about a second is
treated in two parts. What takes longer than a sub-step (overload, bursts, the random work of requests) is a
fluid backlog, drained at the pods' capacity. What happens within it is the stationary wait of a queue with
many servers (Sakasegawa's formula with the Allen-Cunneen correction), held below what a random walk can build
up in one sub-step, so that nothing is counted twice. Against the closed forms of M/M/c and M/D/c the mean
wait is within 15 % or a twentieth of a service time, for loads of 50 % to 95 % and sub-steps of more than ten
service times (tests/unit/test_simulator_service.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy_policy.rows import Array, maximum, minimum, namespace

TINY = 1e-9


@dataclass(frozen=True)
class Service:
    """How a workload's pods serve; every field is `[N]`.

    Service time is a constant plus an exponential part with the given mean and variation, so `service_cv` is
    at most 1. A pod works on `capacity_rps * service_s` requests at once.

    Attributes:
        capacity_rps: requests per second that one pod serves when fully busy.
        service_s: mean time of serving one request without waiting.
        service_cv: standard deviation of the service time over its mean, 0 to 1.
        timeout_s: wait after which a client gives up; it bounds the queue.
    """

    capacity_rps: Array
    service_s: Array
    service_cv: Array
    timeout_s: Array


@dataclass(frozen=True)
class Flow:
    """What became of the requests of one sub-step; every field is `[N]`.

    Attributes:
        admitted: arrivals that did not have to give up.
        served: requests completed.
        dropped: requests given up: timed out in the queue, or no pod there.
        utilization: share of the ready pods' capacity that was used, 0 to 1.
        wait_first_s: wait for the backlog at the start of the sub-step.
        wait_last_s: the same at its end.
        wait_share: share of requests that also wait for the fluctuation within the sub-step.
        wait_scale_s: mean of that wait, for those that do.
    """

    admitted: Array
    served: Array
    dropped: Array
    utilization: Array
    wait_first_s: Array
    wait_last_s: Array
    wait_share: Array
    wait_scale_s: Array


def serve(
    service: Service, backlog: Array, arrivals: Array, pods: Array, normals: Array, dt_s: float
) -> tuple[Array, Flow]:
    """Serve for one sub-step.

    Args:
        service: the workloads.
        backlog: `[N]` requests waiting at the start.
        arrivals: `[N]` requests that arrive.
        pods: `[N]` ready pods.
        normals: `[N]` standard normal draws: how much work the requests happened to bring (0: the mean).
        dt_s: length of the sub-step.

    Returns:
        The backlog at the end and what happened. `backlog + arrivals == served + dropped + new backlog`.
    """
    xp = namespace(backlog)
    capacity_rps = pods * service.capacity_rps
    capacity = capacity_rps * dt_s
    safe_rps = maximum(xp, capacity_rps, TINY)
    present = backlog + arrivals
    busy = minimum(xp, present, capacity)
    # Requests bring more or less work than the mean. One more pod never serves fewer for it.
    saved = service.service_cv * busy**0.5 * normals
    done = maximum(xp, capacity + saved, 0.0)
    waiting = maximum(xp, present - done, 0.0)
    after = minimum(xp, waiting, service.timeout_s * capacity_rps)
    dropped = waiting - after

    load = minimum(xp, present / maximum(xp, capacity, TINY), 1.0)
    servers = capacity_rps * service.service_s
    wait_share = load ** ((2.0 * (servers + 1.0)) ** 0.5 - 1.0)
    cv_squared = service.service_cv**2
    stationary_s = 0.5 * (1.0 + cv_squared) / (safe_rps * maximum(xp, 1.0 - load, TINY))
    reachable_s = 0.4 * (arrivals + cv_squared * busy) ** 0.5 / safe_rps
    flow = Flow(
        admitted=maximum(xp, arrivals - dropped, 0.0),
        served=present - waiting,
        dropped=dropped,
        utilization=minimum(xp, maximum(xp, present - saved, 0.0), capacity) / maximum(xp, capacity, TINY),
        wait_first_s=minimum(xp, backlog / safe_rps, service.timeout_s),
        wait_last_s=after / safe_rps,
        wait_share=wait_share,
        wait_scale_s=1.0 / (stationary_s**-2 + maximum(xp, reachable_s, TINY) ** -2) ** 0.5,
    )
    return after, flow


def mean_latency_s(service: Service, flow: Flow) -> Array:
    """Mean time from arrival to answer of the requests that are served, `[N]`."""
    return (
        service.service_s + 0.5 * (flow.wait_first_s + flow.wait_last_s) + flow.wait_share * flow.wait_scale_s
    )


def share_over(service: Service, flow: Flow, threshold_s: Array) -> Array:
    """Share of the served requests whose latency exceeds each threshold, `[N, K]`.

    Args:
        service: the workloads.
        flow: what `serve` returned.
        threshold_s: `[N, K]` latencies.
    """
    xp = namespace(threshold_s)
    mean_s = maximum(xp, service.service_cv * service.service_s, TINY)[:, None]
    spare_s = threshold_s - (service.service_s * (1.0 - service.service_cv))[:, None]
    first_s, last_s = flow.wait_first_s[:, None], flow.wait_last_s[:, None]
    # The backlog's wait runs from first to last within the sub-step; two points of it stand for the whole.
    early = _tail(xp, spare_s - (0.75 * first_s + 0.25 * last_s), mean_s, flow)
    late = _tail(xp, spare_s - (0.25 * first_s + 0.75 * last_s), mean_s, flow)
    return 0.5 * (early + late)


def _tail(xp: Any, spare_s: Array, mean_s: Array, flow: Flow) -> Array:
    """P(S + W > spare): S exponential; W exponential too for the share that waits, else 0."""
    spare_s = maximum(xp, spare_s, 0.0)
    service_rate, wait_rate = 1.0 / mean_s, 1.0 / flow.wait_scale_s[:, None]
    slow, gap = minimum(xp, service_rate, wait_rate), xp.abs(service_rate - wait_rate)
    # (1 - exp(-gap t)) / gap, which is t where the two rates agree
    spread = xp.where(gap * spare_s > 1e-6, -xp.expm1(-gap * spare_s) / maximum(xp, gap, TINY), spare_s)
    both = service_rate * xp.exp(-slow * spare_s) * spread
    return minimum(xp, xp.exp(-service_rate * spare_s) + flow.wait_share[:, None] * both, 1.0)


def histogram_quantile(q: float, edges_s: Array, counts: Array) -> Array:
    """Quantile from cumulative bucket counts as Prometheus computes it: linear within a bucket.

    Args:
        q: the quantile, 0 to 1.
        edges_s: `[N, K]` upper edges, rising.
        counts: `[N, K + 1]` requests at or under each edge; the last column is all of them.

    Returns:
        `[N]` seconds; the highest edge if the quantile lies beyond it, NaN where there are no requests.
    """
    xp = namespace(counts)
    zero = xp.zeros_like(counts[:, :1])
    rank = q * counts[:, -1:]
    below = xp.concat([zero, counts[:, :-2]], axis=1)
    lower_s = xp.concat([zero, edges_s[:, :-1]], axis=1)
    inside = (rank - below) / maximum(xp, counts[:, :-1] - below, TINY)
    value_s = lower_s + (edges_s - lower_s) * xp.clip(inside, 0.0, 1.0)
    # Buckets left of the rank are full and give their upper edge, those right of it their lower edge: the
    # rank's own bucket gives the only value between, which is the smallest of the buckets that reach the
    # rank.
    reaches = counts[:, :-1] >= rank
    quantile_s = xp.min(xp.where(reaches, value_s, edges_s[:, -1:]), axis=1)
    return xp.where(counts[:, -1] > 0, quantile_s, xp.full_like(quantile_s, xp.nan))
