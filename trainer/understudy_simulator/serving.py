"""The requests of one tick: queued, served, given up and sent again, by pods that come and warm up meanwhile.

A tick of fifteen seconds is too coarse for a queue that fills within one, so it is served in a few sub-steps; what
they have in common is summed up here, because nobody outside looks at less than a tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy_policy.rows import Array, maximum, namespace
from understudy_simulator.columns import by_column, each, once, stack
from understudy_simulator.service import Latency, Service, latency, mean_latency_s, serve

TINY = 1e-9


@dataclass(frozen=True)
class Warmup:
    """Pods that are ready but slow: caches are empty, code is interpreted.

    Attributes:
        slowdown: `[N]` by how much longer a request takes on a pod that just became ready; 1: no longer.
        decay_s: `[N]` time in which what is too slow falls to a third (1/e).
    """

    slowdown: Array
    decay_s: Array


@dataclass(frozen=True)
class Retries:
    """Clients that come back with what was given up, and so keep an overload alive.

    Attributes:
        share: `[N]` share of the requests given up that are sent again, below 1; 0: none.
        backoff_s: `[N]` mean time until then.
    """

    share: Array
    backoff_s: Array


@dataclass(frozen=True)
class Waiting:
    """What one tick leaves to the next; every field is `[N]`.

    Attributes:
        backlog: requests waiting.
        retrying: requests that will be sent again.
        cold: ready pods, each counted by how far it is from warmed up (1: just ready).
    """

    backlog: Array
    retrying: Array
    cold: Array


@dataclass(frozen=True)
class Tally:
    """Sums over a tick; every field is `[N]`.

    Attributes:
        served: requests answered.
        dropped: attempts given up.
        retried: those of them that will be sent again.
        violations: requests over the threshold or given up, at their first attempt.
        latency_s: all latencies of what was served.
        used_s: pod-seconds of work.
        ready_s: pod-seconds of ready pods.
    """

    served: Array
    dropped: Array
    retried: Array
    violations: Array
    latency_s: Array
    used_s: Array
    ready_s: Array


def serve_tick(
    service: Service,
    latency_threshold_s: Array,
    edges_ratio: Sequence[float],
    warmup: Warmup | None,
    retries: Retries | None,
    waiting: Waiting,
    ready: Sequence[Array],
    arrivals: Array,
    work: Array,
    dt_s: float,
) -> tuple[Waiting, Tally, Array]:
    """Serve for one tick.

    Args:
        service: how pods serve.
        latency_threshold_s: `[N]`.
        edges_ratio: upper edges of the K latency buckets over the threshold.
        warmup, retries: None where switched off.
        waiting: what the last tick left.
        ready: `[N]` pods ready in every sub-step, and at the end.
        arrivals: `[N, sub_steps]` requests sent for the first time.
        work: `[N, sub_steps]` standard normals: how much work the requests happened to bring.
        dt_s: length of a sub-step.

    Returns:
        What is left to the next tick, the sums, and how many were served at or under each edge, `[K, N]`.
    """
    xp = namespace(waiting.backlog)
    backlog, retrying, cold = waiting.backlog, waiting.retrying, waiting.cold
    edges_s = by_column(stack(*(ratio * latency_threshold_s for ratio in edges_ratio)))
    parts: list[Tally] = []
    queues: list[Latency] = []
    for k in range(arrivals.shape[1]):
        pods, fresh = ready[k], arrivals[:, k]
        # Those sent for the first time, of all that are sent; who comes back has been counted.
        offered, first, returned = fresh, xp.ones_like(fresh), xp.zeros_like(fresh)
        if retries is not None:
            returned = retrying * -xp.expm1(-dt_s / retries.backoff_s)
            offered = fresh + returned
            first = (fresh + TINY) / (offered + TINY)
        slowdown = None if warmup is None else _slowdown(warmup, pods, cold)
        backlog, flow = serve(service, backlog, offered, pods, work[:, k], dt_s, slowdown)
        again = returned * 0.0 if retries is None else retries.share * flow.dropped
        took = latency(service, flow)
        late = took.share_over(latency_threshold_s)
        queues.append(took)
        parts.append(
            Tally(
                served=flow.served,
                dropped=flow.dropped,
                retried=again,
                violations=first * (flow.dropped + late * flow.admitted),
                latency_s=mean_latency_s(service, flow) * flow.served,
                used_s=flow.utilization * pods * dt_s,
                ready_s=pods * dt_s,
            )
        )
        retrying = retrying - returned + again
        if warmup is not None:
            cold = cold * xp.exp(-dt_s / warmup.decay_s) + (ready[k + 1] - pods)
    served = once(*(part.served for part in parts))

    def within(edge_s: Array) -> Array:
        # One look at the queue per sub-step is enough for a histogram that spans many of them.
        shares = (1.0 - took.share_over(edge_s, looks=(0.5,)) for took in queues)
        return sum(count * share for count, share in zip(served, shares, strict=True))

    return Waiting(backlog, retrying, cold), _sum(parts), each(within, edges_s)


def _sum(parts: Sequence[Tally]) -> Tally:
    total = vars(parts[0])
    for part in parts[1:]:
        total = {name: value + getattr(part, name) for name, value in total.items()}
    return Tally(**total)


def _slowdown(warmup: Warmup, ready: Array, cold: Array) -> Array:
    """By how much longer requests take for the pods that are not warmed up, `[N]`.

    A pod that takes f times as long serves 1/f of the requests; their mean over all requests served is then the
    ready pods over the warmed-up pods that would serve as many.
    """
    xp = namespace(ready)
    worth = ready - cold * (1.0 - 1.0 / warmup.slowdown)
    return xp.where(ready > 0, ready / maximum(xp, worth, TINY), xp.ones_like(ready))
