"""One control period of a cluster, for any number of workloads at once: replicas in, consequences out.

`step` is what a policy lives in. Replicas asked for become pods after their start-up, pods serve requests or
fail to, and the autoscaler sees of all that only what Prometheus would show it: rates over a window, one
scrape late. It is pure, and runs on NumPy or torch alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from understudy_policy.rows import Array, maximum, namespace, shared
from understudy_simulator import pods
from understudy_simulator.service import Flow, Service, histogram_quantile, mean_latency_s, serve, share_over

LATENCY_EDGES_RATIO = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.5, 5.0, 10.0, 20.0)
"""Latency buckets over the workload's threshold; 1 must be among them, it tells the late requests."""
_THRESHOLD = LATENCY_EDGES_RATIO.index(1.0)
_ALL, _ERRORS, _CPU = -3, -2, -1
QUANTILE = 0.99


@dataclass(frozen=True)
class Profile:
    """What kind of service a workload is.

    Attributes:
        capacity_rps: requests per second that one pod serves when fully busy.
        service_s: mean time of serving one request without waiting.
        service_cv: standard deviation of the service time over its mean, 0 to 1.
        latency_threshold_s: latency above which a request counts as missed.
        timeout_s: wait after which a client gives up.
    """

    capacity_rps: float
    service_s: float
    service_cv: float
    latency_threshold_s: float
    timeout_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 and name != "service_cv":
                raise ValueError(f"{name} is {value}; it must be above 0.")
        if not 0 <= self.service_cv <= 1:
            raise ValueError(f"service_cv is {self.service_cv}; the service model knows 0 to 1.")


PROFILES = {
    "web": Profile(25.0, 0.040, 1.0, 0.250, 5.0),
    "api": Profile(5.0, 0.200, 0.7, 1.0, 10.0),
    "llm": Profile(0.5, 2.0, 0.7, 10.0, 60.0),
}


@dataclass(frozen=True)
class ClusterConfig:
    """What does not change while workloads run.

    Attributes:
        service: how pods serve.
        latency_threshold_s: `[N]` latency above which a request counts as missed.
        cpu_request_cores: `[N]` CPU request of one pod; a fully busy pod uses exactly that.
        startup: `[N, B + 1]` from `pods.startup_cdf`.
        tick_s: control period and scrape interval.
        sub_steps: parts of a tick in which the queue is computed.
        window_ticks: ticks in the window of a rate.
        lag_ticks: ticks by which metrics are late.
        termination_s: time that a removed pod still costs.
    """

    service: Service
    latency_threshold_s: Array
    cpu_request_cores: Array
    startup: Array
    tick_s: float = shared(default=15.0)
    sub_steps: int = shared(default=3)
    window_ticks: int = shared(default=4)
    lag_ticks: int = shared(default=1)
    termination_s: float = shared(default=5.0)

    @property
    def sub_step_s(self) -> float:
        """Length of a sub-step in seconds."""
        return self.tick_s / self.sub_steps


@dataclass(frozen=True)
class ClusterState:
    """What changes from tick to tick.

    Attributes:
        schedule: `[N, B + 1]` pods, see `pods`.
        backlog: `[N]` requests waiting.
        scraped: `[N, lag + window, K + 3]` increments of every counter per tick, oldest first: requests at or
            under each latency edge, all requests, errors, CPU core-seconds.
    """

    schedule: Array
    backlog: Array
    scraped: Array


@dataclass(frozen=True)
class Draws:
    """The chance in one tick.

    Attributes:
        startup: `[N]` uniform draws from [0, 1): the start-up of the pods created in this tick.
        service: `[N, sub_steps]` standard normals: how much work the requests happened to bring.
    """

    startup: Array
    service: Array


@dataclass(frozen=True)
class Outcome:
    """What happened in one tick, as nobody inside the cluster could know it; every field is `[N]`.

    Attributes:
        arrivals: requests that came.
        served: requests answered.
        dropped: requests given up (timed out, or no pod).
        violations: requests over the latency threshold, predicted on arrival, or dropped.
        pod_seconds: existence of pods, from creation to the end of their termination.
        ready: ready pods at the end.
        pending: pods at the end that exist and are not ready.
        utilization: share of the ready pods' capacity that was used, 0 to 1.
        latency_mean_s: mean latency of what was served.
        latency_p99_s: 99th percentile from the latency buckets; NaN without requests.
        cpu_usage_cores: CPU in use.
        cpu_request_cores: CPU requests of the ready pods.
    """

    arrivals: Array
    served: Array
    dropped: Array
    violations: Array
    pod_seconds: Array
    ready: Array
    pending: Array
    utilization: Array
    latency_mean_s: Array
    latency_p99_s: Array
    cpu_usage_cores: Array
    cpu_request_cores: Array


def configure(
    profiles: Sequence[Profile],
    startup_median_s: ArrayLike = 30.0,
    startup_sigma: ArrayLike = 0.4,
    cpu_request_cores: ArrayLike = 1.0,
    tick_s: float = 15.0,
    sub_steps: int = 3,
) -> ClusterConfig:
    """A configuration in NumPy float64, one row per profile; `rows.as_torch_or_numpy` carries it elsewhere.

    Args:
        profiles: one per workload.
        startup_median_s: median of the log-normal start-up, for all or `[N]`.
        startup_sigma: standard deviation of its logarithm, for all or `[N]`.
        cpu_request_cores: CPU request of one pod, for all or `[N]`.
        tick_s: control period.
        sub_steps: parts of a tick.
    """

    def column(values: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(values, np.float64), (len(profiles),)).copy()

    median_s, sigma = column(startup_median_s), column(startup_sigma)
    if not (np.all(median_s > 0) and np.all(sigma > 0)):
        raise ValueError("startup_median_s and startup_sigma must be above 0; use 0.01 for next to none.")
    horizon_s = float(np.max(median_s * np.exp(3.3 * sigma)))
    return ClusterConfig(
        service=Service(
            capacity_rps=column([p.capacity_rps for p in profiles]),
            service_s=column([p.service_s for p in profiles]),
            service_cv=column([p.service_cv for p in profiles]),
            timeout_s=column([p.timeout_s for p in profiles]),
        ),
        latency_threshold_s=column([p.latency_threshold_s for p in profiles]),
        cpu_request_cores=column(cpu_request_cores),
        startup=pods.startup_cdf(median_s, sigma, tick_s / sub_steps, max(horizon_s, tick_s)),
        tick_s=tick_s,
        sub_steps=sub_steps,
    )


def initial(config: ClusterConfig, replicas: Array, rate_rps: Array) -> ClusterState:
    """A cluster that has served a steady rate with ready pods for as long as metrics remember.

    Args:
        config: the workloads.
        replicas: `[N]` ready pods, whole.
        rate_rps: `[N]` arrival rate.
    """
    xp = namespace(replicas)
    ticks, counters = config.lag_ticks + config.window_ticks, len(LATENCY_EDGES_RATIO) + 3
    empty = ClusterState(
        schedule=pods.all_ready(replicas, config.startup),
        backlog=xp.zeros_like(rate_rps),
        scraped=rate_rps[:, None, None]
        * xp.zeros((ticks, counters), dtype=rate_rps.dtype, device=rate_rps.device),
    )
    nothing = xp.zeros_like(rate_rps)[:, None] * xp.zeros_like(config.startup[:1, : config.sub_steps])
    steady = rate_rps[:, None] * config.sub_step_s + nothing
    state, _ = step(config, empty, replicas, steady, Draws(startup=nothing[:, 0], service=nothing))
    return replace(state, scraped=xp.broadcast_to(state.scraped[:, -1:, :], state.scraped.shape))


def step(
    config: ClusterConfig, state: ClusterState, replicas: Array, arrivals: Array, draws: Draws
) -> tuple[ClusterState, Outcome]:
    """One tick: set the replicas, then let requests come.

    Args:
        config: the workloads.
        state: how they stand.
        replicas: `[N]` pods wanted from now on, whole numbers as floats.
        arrivals: `[N, sub_steps]` requests.
        draws: the tick's chance.
    """
    xp = namespace(state.backlog)
    existed = pods.existing(state.schedule)
    schedule = pods.scale(state.schedule, replicas, config.startup, draws.startup)
    removed = maximum(xp, existed - replicas, 0.0)
    edges_s = latency_edges_s(config)

    backlog, tally = state.backlog, _Tally(state.backlog)
    for k in range(config.sub_steps):
        ready = schedule[:, k]
        backlog, flow = serve(
            config.service, backlog, arrivals[:, k], ready, draws.service[:, k], config.sub_step_s
        )
        tally.add(
            flow, share_over(config.service, flow, edges_s), ready, mean_latency_s(config.service, flow)
        )
    schedule = pods.advance(schedule, config.sub_steps)

    all_s = config.sub_steps * config.sub_step_s
    cpu = config.cpu_request_cores * tally.used_s * config.sub_step_s
    request = config.cpu_request_cores * tally.ready_s * config.sub_step_s
    handled = tally.served + tally.dropped
    row = xp.concat([tally.within, xp.stack([handled, tally.dropped, cpu], axis=1)], axis=1)
    scraped = xp.concat([state.scraped[:, 1:, :], row[:, None, :]], axis=1)
    outcome = Outcome(
        arrivals=xp.sum(arrivals, axis=1),
        served=tally.served,
        dropped=tally.dropped,
        violations=tally.violations,
        pod_seconds=replicas * all_s + removed * config.termination_s,
        ready=pods.ready(schedule),
        pending=pods.existing(schedule) - pods.ready(schedule),
        utilization=tally.used_s / maximum(xp, tally.ready_s, 1e-9),
        latency_mean_s=tally.latency_s / maximum(xp, tally.served, 1e-9),
        latency_p99_s=histogram_quantile(QUANTILE, edges_s, row[:, : _ALL + 1]),
        cpu_usage_cores=cpu / all_s,
        cpu_request_cores=request / all_s,
    )
    return ClusterState(schedule=schedule, backlog=backlog, scraped=scraped), outcome


class _Tally:
    """Sums over the sub-steps of one tick."""

    def __init__(self, like: Array) -> None:
        zero = namespace(like).zeros_like(like)
        self.served = self.dropped = self.violations = self.used_s = self.ready_s = self.latency_s = zero
        self.within = zero[:, None]

    def add(self, flow: Flow, over: Array, ready: Array, mean_s: Array) -> None:
        self.served = self.served + flow.served
        self.dropped = self.dropped + flow.dropped
        self.violations = self.violations + flow.dropped + over[:, _THRESHOLD] * flow.admitted
        self.used_s = self.used_s + flow.utilization * ready
        self.ready_s = self.ready_s + ready
        self.latency_s = self.latency_s + mean_s * flow.served
        self.within = self.within + (1.0 - over) * flow.served[:, None]


def latency_edges_s(config: ClusterConfig) -> Array:
    """Upper edges of the latency buckets, `[N, K]` seconds."""
    xp = namespace(config.latency_threshold_s)
    return xp.stack([ratio * config.latency_threshold_s for ratio in LATENCY_EDGES_RATIO], axis=1)


def observe(config: ClusterConfig, state: ClusterState) -> Array:
    """The signals as the autoscaler's queries return them at the end of a tick, `[N, S]`.

    In the order and units of `understudy_policy.signals.Signal`: rates over the window, one scrape late. As
    in Prometheus, latency and error share are NaN while there are no requests. The CPU request is one pod's.
    """
    xp = namespace(state.scraped)
    total = xp.sum(state.scraped[:, : config.window_ticks, :], axis=1)
    window_s = config.window_ticks * config.tick_s
    handled = total[:, _ALL]
    errors = xp.where(
        handled > 0, total[:, _ERRORS] / maximum(xp, handled, 1e-9), xp.full_like(handled, xp.nan)
    )
    latency_s = histogram_quantile(QUANTILE, latency_edges_s(config), total[:, : _ALL + 1])
    cpu_usage = total[:, _CPU] / window_s
    return xp.stack([handled / window_s, latency_s, errors, cpu_usage, config.cpu_request_cores], axis=1)
