"""What nobody can beat: a lower bound on the adjusted cost, for telling how much is left to be won.

"Better than the HPA" says little where even perfect foresight would save 3 %. The bound knows every arrival in
advance but waits for pods like everybody else.

**Claim.** With A requests in all, demand D (pod-seconds at full use), ticks of h seconds, `n[t]` the most
pods that are ready in tick t, m[t](n) the requests missed in tick t by n ready pods *without any backlog from
before*, and p the price of a missed request: for all 0 ≤ μ ≤ λ ≤ p, μ ≤ 1,

    adjusted ≥ min over n of (1−μ)·Σ_t h·n[t]/D + u·(switch-ons of n)/D + (λ−μ)·Σ_t m[t](n[t])/A
               + μ·(1−ε) − λ·budget.

**Proof.**

1. p·max(0, v − budget) ≥ λ·(v − budget) for 0 ≤ λ ≤ p: weak duality on the budget.
2. Pods are created and removed at the start of a tick only, so each pod that is ready at some time in tick t
   exists during all of it: pod-seconds ≥ Σ h·n[t], plus what pods cost before they are ready. Each rise of n
   by one is a pod that became ready, and it had existed for its start-up. `u` is the median, or the mean of the
   start-up in whole ticks if that is less. A policy that does not know a start-up before it has happened
   pays at least that per pod on average (giving up on a slow pod costs more than waiting, because the hazard
   of a log-normal start-up rises until past its median); one run may be lucky by its own draws.
3. A backlog only makes requests wait longer, and more pods never miss more, so what is missed in tick t is at
   least m[t](n[t]).
4. Whoever is not missed is served, which takes capacity: Σ h·n[t]/D + v ≥ 1 − ε. Here ε covers what may still
   wait at the end (at most the arrivals of three timeouts) and three standard deviations of luck in the work
   that requests bring. This tells the bound of the backlog that step 3 forgets; weak duality again, with μ.
5. Replace m[t] by a convex function under it. Then the objective is a sum over pods: the k-th pod costs
   (1−μ)·h/D per tick, saves (λ−μ)/A·(m[t](k−1) − m[t](k)), which falls in k, and costs u/D when switched on.
   Choosing each pod's on and off alone can only lower the minimum, and is a dynamic programme of two states. □

The first pod is always on, and the pods of the start are on without a start-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy_simulator.cluster import Profile
from understudy_simulator.score import MISSED_REQUEST_PRICE, VIOLATION_BUDGET
from understudy_simulator.service import Service, serve, share_over

Floats = NDArray[np.floating]

PRICES = tuple(
    (MISSED_REQUEST_PRICE * share, work)
    for share in (0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0)
    for work in (0.0, 0.4, 0.7, 0.9, 1.0)
)
"""The pairs (λ, μ) that are tried: each gives a bound, the largest one counts."""

_SPARE = 1.6
"""Levels are told apart up to this multiple of the largest load of a tick; above it pods save next to nothing."""

_CHUNK = 1 << 19


@dataclass(frozen=True)
class Bound:
    """The bound of one run, and what the demand asked for.

    Attributes:
        adjusted: lower bound on cost plus the price of missed requests.
        needed: `[T]` fewest ready pods that miss no more than the budget in the minute that ends with a tick.
    """

    adjusted: float
    needed: NDArray[np.int64]


def missed_requests(
    profile: Profile, arrivals: Floats, normals: Floats, pods: NDArray[np.int64], sub_step_s: float
) -> NDArray[np.float32]:
    """Requests over the latency threshold or dropped, per tick and number of ready pods, without backlog.

    Args:
        profile: the kind of service.
        arrivals: `[T, sub_steps]` requests.
        normals: `[T, sub_steps]` how much work they brought, as the cluster model draws it.
        pods: `[L]` numbers of ready pods.
        sub_step_s: length of a sub-step.

    Returns:
        `[T, L]`.
    """
    service = Service(
        *(
            np.full(1, value, np.float32)
            for value in (profile.capacity_rps, profile.service_s, profile.service_cv, profile.timeout_s)
        )
    )
    threshold_s = np.full((1, 1), profile.latency_threshold_s, np.float32)
    missed = np.zeros((len(arrivals), len(pods)), np.float32)
    at_once = max(1, _CHUNK // len(pods))
    for start in range(0, len(arrivals), at_once):
        chunk = slice(start, start + at_once)
        shape = missed[chunk].shape
        ready = np.broadcast_to(pods.astype(np.float32), shape).ravel()
        for k in range(arrivals.shape[1]):
            came = np.broadcast_to(arrivals[chunk, k, None], shape).astype(np.float32).ravel()
            luck = np.broadcast_to(normals[chunk, k, None], shape).astype(np.float32).ravel()
            _, flow = serve(service, np.zeros_like(came), came, ready, luck, sub_step_s)
            late = share_over(service, flow, threshold_s)[:, 0] * flow.admitted
            missed[chunk] += (flow.dropped + late).reshape(shape)
    return missed


def convex_gains(missed: Floats) -> Floats:
    """What each further pod saves, by a convex function that is nowhere above `missed`.

    Its first piece is the steepest chord from the first column (too few pods miss nearly everything, so the
    curve bends the wrong way there); behind that, a gain counts at least as much as any later one.

    Args:
        missed: `[T, L]` falling along L.

    Returns:
        `[T, L - 1]` gains, falling along L, not below 0.
    """
    steps = np.arange(1, missed.shape[1], dtype=missed.dtype)
    chords = (missed[:, :1] - missed[:, 1:]) / steps
    last = chords.shape[1] - 1 - np.argmax(chords[:, ::-1], axis=1)
    steepest = np.take_along_axis(chords, last[:, None], axis=1)
    gains = np.maximum(missed[:, :-1] - missed[:, 1:], 0.0)
    gains = np.where(np.arange(chords.shape[1]) <= last[:, None], steepest, gains)
    return np.maximum.accumulate(gains[:, ::-1], axis=1)[:, ::-1]


def cheapest(
    gains: Floats, pod_tick: Floats, switch_on: float, start: int, prices: Floats
) -> NDArray[np.float64]:
    """The least total of pods, start-ups and missed requests over all paths, for each pair of prices.

    Args:
        gains: `[T, K]` requests that the (k + 2)th pod saves in a tick, falling along K.
        pod_tick: `[P]` cost of a pod for a tick.
        switch_on: cost of a start-up.
        start: pods that are ready at the start.
        prices: `[P]` cost of a missed request.

    Returns:
        `[P]` costs of the pods beyond the first, less what they save.
    """
    # on − off, the one number that a programme of two states needs to carry, and the value of being off.
    ahead = np.where(np.arange(gains.shape[1]) + 2 <= start, 0.0, switch_on).astype(gains.dtype)
    ahead = np.broadcast_to(ahead, (len(prices), gains.shape[1])).copy()
    off = np.zeros(ahead.shape)
    cost, price = (np.asarray(a, gains.dtype)[:, None] for a in (pod_tick, prices))
    for saved in gains:
        np.clip(ahead, 0.0, switch_on, out=ahead)
        ahead += cost - price * saved
        off += np.minimum(ahead, 0.0)
    # min(off, on) after each tick is off + min(0, ahead), which `off` has taken already.
    total: NDArray[np.float64] = off.sum(axis=1)
    return total


def startup_paid_s(median_s: float, sigma: float, tick_s: float) -> float:
    """Start-up that every pod is charged in the bound: see step 2 of the proof."""
    ticks = np.arange(1, 1 + math.ceil(median_s * math.exp(6.0 * sigma) / tick_s))
    beyond = [0.5 * math.erfc(math.log(t * tick_s / median_s) / (sigma * math.sqrt(2.0))) for t in ticks]
    return min(median_s, tick_s * sum(beyond))


def bound(
    profile: Profile,
    arrivals: Floats,
    normals: Floats,
    startup_s: float,
    startup_sigma: float,
    start: int,
    max_replicas: int,
    tick_s: float,
) -> Bound:
    """The delay-feasible lower bound of one run.

    Args:
        profile: the kind of service.
        arrivals: `[T, sub_steps]` requests.
        normals: `[T, sub_steps]` how much work they brought.
        startup_s: median start-up.
        startup_sigma: standard deviation of its logarithm.
        start: pods that are ready at the start.
        max_replicas: most pods that anybody may have.
        tick_s: control period.
    """
    requests = float(arrivals.sum(dtype=np.float64))
    demand_s = requests / profile.capacity_rps
    load = float(arrivals.sum(axis=1).max()) / (profile.capacity_rps * tick_s)
    top = min(max_replicas, math.ceil(_SPARE * load) + 8)
    # The last column stands for all that lies above it.
    levels = np.append(np.arange(1, top + 1), max(top + 1, max_replicas))
    missed = missed_requests(profile, arrivals, normals, levels, tick_s / arrivals.shape[1])
    paid_s = startup_paid_s(startup_s, startup_sigma, tick_s)
    price, work = np.array(PRICES).T
    pod_tick, missed_price = (1.0 - work) * tick_s / demand_s, (price - work) / requests
    rest = cheapest(convex_gains(missed), pod_tick, paid_s / demand_s, start, missed_price)
    first = len(arrivals) * pod_tick + missed_price * missed[:, 0].sum(dtype=np.float64)
    last_ticks = math.ceil(3.0 * profile.timeout_s / tick_s)
    waiting = float(arrivals[-last_ticks:].sum(dtype=np.float64))
    slack = (waiting + 3.0 * profile.service_cv * math.sqrt(requests)) / requests
    bounds = first + rest + work * (1.0 - slack) - price * VIOLATION_BUDGET
    return Bound(
        adjusted=float(np.max(bounds)),
        needed=_needed(missed, arrivals.sum(axis=1), levels, round(60.0 / tick_s)),
    )


def _needed(missed: Floats, arrivals: Floats, levels: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Fewest pods within the budget over a sliding window of ticks; the most there are where none is."""
    total = np.cumsum(np.concatenate([np.zeros((1, missed.shape[1])), missed], axis=0), axis=0)
    came = np.cumsum(np.concatenate([[0.0], arrivals]))
    last = np.arange(1, len(arrivals) + 1)
    first = np.maximum(last - window, 0)
    enough = (total[last] - total[first]) <= VIOLATION_BUDGET * (came[last] - came[first])[:, None]
    return np.where(enough.any(axis=1), levels[np.argmax(enough, axis=1)], levels[-2])
