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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_simulator.columns import by_column, by_row, once

TINY = 1e-9
CLOSE = 0.01
"""Relative distance that is kept between the rates of serving and of waiting; single precision needs it."""


@dataclass(frozen=True)
class Service:
    """How a workload's pods serve; every field is `[N]`.

    Service time is a constant plus an exponential part with the given mean and variation, so `service_cv` is
    at most 1. A pod works on `capacity_rps * service_s` requests at once. Where pods share their processor
    among all requests present, the mean latency is that of M/M/c whatever `service_cv` is, and a request's
    wait is in proportion to its own service time.

    Attributes:
        capacity_rps: requests per second that one pod serves when fully busy.
        service_s: mean time of serving one request without waiting.
        service_cv: standard deviation of the service time over its mean, 0 to 1.
        timeout_s: wait after which a client gives up; it bounds the queue.
        sharing: 1 where the processor is shared, 0 for first come, first served; None: the latter everywhere.
    """

    capacity_rps: Array
    service_s: Array
    service_cv: Array
    timeout_s: Array
    sharing: Array | None = None


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
        wait_rate: one over the mean of that wait in seconds, for those that do.
        slowdown: by how much longer a request takes than on warmed-up pods.
    """

    admitted: Array
    served: Array
    dropped: Array
    utilization: Array
    wait_first_s: Array
    wait_last_s: Array
    wait_share: Array
    wait_rate: Array
    slowdown: Array


def serve(
    service: Service,
    backlog: Array,
    arrivals: Array,
    pods: Array,
    normals: Array,
    dt_s: float,
    slowdown: Array | None = None,
) -> tuple[Array, Flow]:
    """Serve for one sub-step.

    Args:
        service: the workloads.
        backlog: `[N]` requests waiting at the start.
        arrivals: `[N]` requests that arrive.
        pods: `[N]` ready pods.
        normals: `[N]` standard normal draws: how much work the requests happened to bring (0: the mean).
        dt_s: length of the sub-step.
        slowdown: `[N]` by how much longer a request takes than on warmed-up pods; None: no longer.

    Returns:
        The backlog at the end, `[N]`, and what became of the requests.
    """
    xp = namespace(backlog)
    slowdown = xp.ones_like(pods) if slowdown is None else slowdown
    capacity_rps = pods * service.capacity_rps / slowdown
    capacity = capacity_rps * dt_s
    safe_rps = maximum(xp, capacity_rps, TINY)
    present = backlog + arrivals
    busy = minimum(xp, present, capacity)
    cv = service.service_cv
    if service.sharing is not None:
        # However the service times vary: a shared processor holds as many requests as if they were exponential.
        cv = xp.where(service.sharing > 0, xp.ones_like(cv), cv)
    # Requests bring more or less work than the mean. One more pod never serves fewer for it.
    saved = cv * busy**0.5 * normals
    done = maximum(xp, capacity + saved, 0.0)
    waiting = maximum(xp, present - done, 0.0)
    after = minimum(xp, waiting, service.timeout_s * capacity_rps)
    dropped = waiting - after

    safe_capacity = maximum(xp, capacity, TINY)
    load = minimum(xp, present / safe_capacity, 1.0)
    servers = pods * (service.capacity_rps * service.service_s)
    # A power, written so that a load of nothing and of one are exact.
    wait_share = xp.exp(((2.0 * (servers + 1.0)) ** 0.5 - 1.0) * xp.log(maximum(xp, load, 1e-30)))
    cv_squared = cv**2
    # The mean wait in the stationary state, below what a random walk can reach within the sub-step; as rates.
    stationary = 2.0 * (1.0 - load) / (1.0 + cv_squared)
    reachable = 6.25 / maximum(xp, arrivals + cv_squared * busy, TINY)
    flow = Flow(
        admitted=maximum(xp, arrivals - dropped, 0.0),
        served=present - waiting,
        dropped=dropped,
        utilization=minimum(xp, maximum(xp, present - saved, 0.0), capacity) / safe_capacity,
        wait_first_s=minimum(xp, backlog / safe_rps, service.timeout_s),
        wait_last_s=after / safe_rps,
        wait_share=wait_share,
        wait_rate=safe_rps * (stationary * stationary + reachable) ** 0.5,
        slowdown=slowdown,
    )
    return after, flow


def mean_latency_s(service: Service, flow: Flow) -> Array:
    """Mean time from arrival to answer of the requests that are served, `[N]`."""
    queue_s = 0.5 * (flow.wait_first_s + flow.wait_last_s)
    return service.service_s * flow.slowdown + queue_s + flow.wait_share / flow.wait_rate


@dataclass(frozen=True)
class Latency:
    """How long the requests of one sub-step take; every field is `[N]`.

    It is a constant, plus an exponential time of service, plus an exponential wait for some of them. A shared
    processor makes every request longer in the same proportion instead: then the service is stretched and nobody
    waits.

    Attributes:
        first_s: the constant part for who comes first in the sub-step, with the wait for the backlog.
        last_s: the same for who comes last.
        service_rate: one over the mean of the exponential part of the service.
        wait_rate: one over the mean of the wait, for those who wait.
        both: weight of the sum of the two in the tail of the distribution.
    """

    first_s: Array
    last_s: Array
    service_rate: Array
    wait_rate: Array
    both: Array

    def share_over(self, threshold_s: Array, looks: Sequence[float] = (0.25, 0.75)) -> Array:
        """Share of the served requests whose latency exceeds a threshold, `[N]` or `[K, N]`.

        Args:
            threshold_s: `[N]` or `[K, N]` latencies.
            looks: points of the way from first to last that stand for the whole sub-step.
        """
        xp = namespace(threshold_s)
        over: Any = 0.0
        for look in looks:
            spare_s = maximum(xp, threshold_s - (self.first_s + look * (self.last_s - self.first_s)), 0.0)
            served_slowly = xp.exp(-self.service_rate * spare_s)
            waited = xp.exp(-self.wait_rate * spare_s) - served_slowly
            over = over + minimum(xp, served_slowly + self.both * waited, 1.0)
        return over / len(looks)


def latency(service: Service, flow: Flow) -> Latency:
    """The distribution of the latencies of what `serve` served."""
    xp = namespace(flow.served)
    service_s, wait_share = service.service_s * flow.slowdown, flow.wait_share
    first_s, last_s = flow.wait_first_s, flow.wait_last_s
    if service.sharing is not None:
        shared, nothing = service.sharing > 0, xp.zeros_like(wait_share)
        service_s = xp.where(shared, mean_latency_s(service, flow), service_s)
        wait_share, first_s, last_s = (
            xp.where(shared, nothing, own) for own in (wait_share, first_s, last_s)
        )
    service_rate = 1.0 / maximum(xp, service.service_cv * service_s, TINY)
    # Where the two rates are equal the formula has a gap; a wait that is a little longer or shorter steps over it.
    longer = minimum(xp, flow.wait_rate, (1.0 - CLOSE) * service_rate)
    shorter = maximum(xp, flow.wait_rate, (1.0 + CLOSE) * service_rate)
    wait_rate = xp.where(flow.wait_rate < service_rate, longer, shorter)
    fixed_s = service_s * (1.0 - service.service_cv)
    both = wait_share * service_rate / (service_rate - wait_rate)
    return Latency(*once(fixed_s + first_s, fixed_s + last_s, service_rate, wait_rate, both))


def share_over(service: Service, flow: Flow, threshold_s: Array) -> Array:
    """Share of the served requests whose latency exceeds each threshold, `[N, K]`; see `Latency`."""
    return by_row(latency(service, flow).share_over(by_column(threshold_s)))


def histogram_quantile(q: float, edges: Sequence[float], counts: Array) -> Array:
    """Quantile from cumulative bucket counts as Prometheus computes it: linear within a bucket.

    Args:
        q: the quantile, 0 to 1.
        edges: K upper edges of the buckets, rising.
        counts: `[N, K + 1]` requests at or under each edge; the last column is all of them.

    Returns:
        `[N]` in the unit of the edges; the highest edge if the quantile lies beyond it, NaN where there are no
        requests.
    """
    xp = namespace(counts)
    rank, nothing = q * counts[:, -1], xp.zeros_like(counts[:, -1])
    lower, upper, below, reached = nothing, nothing + edges[-1], nothing, nothing
    # From the last bucket down: the lowest one that reaches the rank is the one that stays.
    for k in reversed(range(len(edges))):
        here = counts[:, k] >= rank
        lower = xp.where(here, edges[k - 1] if k else 0.0, lower)
        upper = xp.where(here, edges[k], upper)
        below = xp.where(here, counts[:, k - 1] if k else 0.0, below)
        reached = xp.where(here, counts[:, k], reached)
    inside = minimum(xp, (rank - below) / maximum(xp, reached - below, TINY), 1.0)
    inside = xp.where(reached > 0, maximum(xp, inside, 0.0), 1.0)
    return xp.where(counts[:, -1] > 0, lower + (upper - lower) * inside, xp.nan)
