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

from understudy_policy.rows import Array, maximum, minimum, namespace, shared
from understudy_policy.signals import Signal
from understudy_simulator import chance, metrics, pods
from understudy_simulator import nodes as machines
from understudy_simulator.arrivals import arrivals_from_normals
from understudy_simulator.columns import by_column, by_row, stack
from understudy_simulator.nodes import Nodes, NodeState
from understudy_simulator.service import Service, histogram_quantile
from understudy_simulator.serving import TINY, Retries, Waiting, Warmup, serve_tick


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
    """What does not change while workloads run. A part that is None is switched off for all of them.

    Attributes:
        service: how pods serve.
        latency_threshold_s: `[N]` latency above which a request counts as missed.
        cpu_request_cores: `[N]` CPU request of one pod; a fully busy pod uses exactly that.
        startup: `[N, B + 1]` from `pods.startup_cdf`.
        termination_s: `[N]` time that a removed pod still costs.
        window: `[N, R]` from `metrics.window`: how late and how long metrics are.
        dropout: `[N]` probability that a scrape fails and the signals stay as they were.
        warmup: how pods get up to speed.
        retries: what clients do when they had to give up.
        nodes: how room for pods comes and goes.
        tick_s: control period and scrape interval.
        sub_steps: parts of a tick in which the queue is computed.
        latency_edges_ratio: upper edges of the K latency buckets over the threshold, rising.
    """

    service: Service
    latency_threshold_s: Array
    cpu_request_cores: Array
    startup: Array
    termination_s: Array
    window: Array
    dropout: Array | None = None
    warmup: Warmup | None = None
    retries: Retries | None = None
    nodes: Nodes | None = None
    tick_s: float = shared(default=15.0)
    sub_steps: int = shared(default=3)
    latency_edges_ratio: tuple[float, ...] = shared(default=metrics.LATENCY_EDGES_RATIO)

    @property
    def sub_step_s(self) -> float:
        """Length of a sub-step in seconds."""
        return self.tick_s / self.sub_steps


@dataclass(frozen=True)
class ClusterState:
    """What changes from tick to tick.

    Attributes:
        schedule: `[N, B]` pods that have room, see `pods`.
        backlog: `[N]` requests waiting.
        cold: `[N]` ready pods, each counted by how far it is from warmed up (1: just ready).
        retrying: `[N]` requests that will be sent again.
        scrapes: of the last R ticks, oldest first: `[N, K + 3]` what was added to every counter, see `metrics`.
        signals: `[N, S]` what the autoscaler's queries return now.
        signals_age_s: `[N]` time since the last scrape that succeeded.
        nodes: nodes that were added; None where nodes are switched off.
    """

    schedule: Array
    backlog: Array
    cold: Array
    retrying: Array
    scrapes: tuple[Array, ...]
    signals: Array
    signals_age_s: Array
    nodes: NodeState | None = None


@dataclass(frozen=True)
class Draws:
    """The chance in one tick.

    Attributes:
        startup: `[N]` uniform draws from [0, 1): the start-up of the pods created in this tick.
        service: `[N, sub_steps]` standard normals: how much work the requests happened to bring.
        scrape: `[N]` uniform draws: whether the scrape fails; needed where there are dropouts.
        node: `[N]` uniform draws: how long nodes take; needed where there are nodes.
    """

    startup: Array
    service: Array
    scrape: Array | None = None
    node: Array | None = None


@dataclass(frozen=True)
class Outcome:
    """What happened in one tick, as nobody inside the cluster could know it; every field is `[N]` but one.

    Attributes:
        arrivals: requests that came, each counted once however often it was sent.
        served: requests answered.
        dropped: attempts given up (timed out, or no pod).
        retried: those of them that will be sent again.
        violations: requests over the latency threshold, predicted on arrival, or dropped at the first attempt.
        within: `[N, K]` served at or under each edge of `ClusterConfig.latency_edges_ratio` times the threshold.
        pod_seconds: existence of pods, from creation to the end of their termination.
        node_seconds: existence of nodes that were added.
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
    retried: Array
    violations: Array
    within: Array
    pod_seconds: Array
    node_seconds: Array
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
    *,
    termination_s: ArrayLike = 5.0,
    metric_lag_s: ArrayLike | None = None,
    metric_window_s: ArrayLike | None = None,
    sharing: ArrayLike | None = None,
    dropout: ArrayLike | None = None,
    warmup: Warmup | None = None,
    retries: Retries | None = None,
    nodes: Nodes | None = None,
    latency_edges_ratio: Sequence[float] = metrics.LATENCY_EDGES_RATIO,
    startup_horizon_s: float | None = None,
    metric_reach_s: float = 0.0,
) -> ClusterConfig:
    """A configuration in NumPy float64, one row per profile; `rows.as_torch_or_numpy` carries it elsewhere.

    Args:
        profiles: one per workload.
        startup_median_s: median of the log-normal start-up, for all or `[N]`.
        startup_sigma: standard deviation of its logarithm, for all or `[N]`.
        cpu_request_cores: CPU request of one pod, for all or `[N]`.
        tick_s: control period.
        sub_steps: parts of a tick.
        termination_s: time that a removed pod still costs, for all or `[N]`.
        metric_lag_s: age of the newest sample, for all or `[N]`; by default a tick.
        metric_window_s: window of a rate, for all or `[N]`; by default four ticks.
        sharing: 1 where the processor is shared, see `Service`.
        dropout, warmup, retries, nodes, latency_edges_ratio: see `ClusterConfig`.
        startup_horizon_s, metric_reach_s: widths of the tables of start-ups and of metrics, which otherwise follow from
            the slowest: longest start-up that is told apart, and age of the oldest scrape that there is room for.
    """

    def column(values: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(values, np.float64), (len(profiles),)).copy()

    median_s, sigma = column(startup_median_s), column(startup_sigma)
    if not (np.all(median_s > 0) and np.all(sigma > 0)):
        raise ValueError("startup_median_s and startup_sigma must be above 0; use 0.01 for next to none.")
    lag_s = column(tick_s if metric_lag_s is None else metric_lag_s)
    window_s = column(4.0 * tick_s if metric_window_s is None else metric_window_s)
    if not (np.all(lag_s >= 0) and np.all(window_s > 0)):
        raise ValueError("metric_lag_s must be 0 or more and metric_window_s above 0; give seconds.")
    edges = np.array([0.0, *latency_edges_ratio])
    if len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise ValueError(f"latency_edges_ratio is {latency_edges_ratio}; give edges above 0 that rise.")
    return ClusterConfig(
        service=Service(
            capacity_rps=column([p.capacity_rps for p in profiles]),
            service_s=column([p.service_s for p in profiles]),
            service_cv=column([p.service_cv for p in profiles]),
            timeout_s=column([p.timeout_s for p in profiles]),
            sharing=None if sharing is None else column(sharing),
        ),
        latency_threshold_s=column([p.latency_threshold_s for p in profiles]),
        cpu_request_cores=column(cpu_request_cores),
        startup=pods.startup_cdf(
            median_s, sigma, tick_s, startup_horizon_s or pods.horizon_s(median_s, sigma)
        ),
        termination_s=column(termination_s),
        window=metrics.window(lag_s, window_s, tick_s, metric_reach_s),
        dropout=None if dropout is None else column(dropout),
        warmup=warmup,
        retries=retries,
        nodes=nodes,
        tick_s=tick_s,
        sub_steps=sub_steps,
        latency_edges_ratio=tuple(latency_edges_ratio),
    )


def initial(config: ClusterConfig, replicas: Array, rate_rps: Array) -> ClusterState:
    """A cluster that has served a steady rate with ready pods for as long as metrics remember.

    Args:
        config: the workloads.
        replicas: `[N]` ready pods, whole.
        rate_rps: `[N]` arrival rate.
    """
    xp, remembered = namespace(rate_rps), config.window.shape[1]
    nothing, counters = xp.zeros_like(rate_rps), len(config.latency_edges_ratio) + 3
    empty = ClusterState(
        schedule=pods.all_ready(replicas, config.startup),
        backlog=nothing,
        cold=nothing,
        retrying=nothing,
        scrapes=tuple(stack(*[nothing] * counters) for _ in range(remembered)),
        signals=stack(*[nothing] * len(Signal)),
        signals_age_s=nothing,
        nodes=None if config.nodes is None else machines.initial(config.nodes, replicas),
    )
    steady, calm = ([value] * config.sub_steps for value in (rate_rps * config.sub_step_s, nothing))
    draws = Draws(startup=nothing, service=stack(*calm), scrape=nothing + 1.0, node=nothing)
    state, _ = step(config, empty, replicas, stack(*steady), draws)
    # Arrays of their own: a compiler looks at which of them are the same.
    scrapes = tuple(xp.asarray(state.scrapes[-1], copy=True) for _ in range(remembered))
    return replace(state, scrapes=scrapes, signals=_read(config, scrapes))


def draw(
    config: ClusterConfig, rate_rps: Array, dispersion: Array, seeds: Array, tick: Array | int
) -> tuple[Array, Draws]:
    """Draw the chance of a tick: the same for the same seeds and tick, whatever the policy does.

    Args:
        config: the workloads.
        rate_rps: `[N]` expected arrival rate; its dtype is that of the result.
        dispersion: `[N]` variance over mean of the requests per sub-step, at least 1.
        seeds: `[N]` int32.
        tick: number of the tick, an int or an array of one int32.

    Returns:
        `[N, sub_steps]` arrivals (not whole, see `arrivals_from_normals`), and the draws: both for `step`.
    """
    xp = namespace(rate_rps)
    steps = config.sub_steps
    startup, scrape, node = (xp.astype(u, rate_rps.dtype) for u in chance.uniforms(seeds, tick, 3))
    normal = [xp.astype(z, rate_rps.dtype) for z in chance.normals(seeds, tick, 2 * steps, skip=4)]
    expected = rate_rps * config.sub_step_s
    arrivals = [arrivals_from_normals(expected, dispersion, z) for z in normal[:steps]]
    service = stack(*normal[steps:])
    return stack(*arrivals), Draws(startup=startup, service=service, scrape=scrape, node=node)


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
    nodes, hosted, node_count = state.nodes, replicas, xp.zeros_like(replicas)
    if config.nodes is not None and state.nodes is not None:
        nodes, hosted, node_count = machines.provide(
            config.nodes, state.nodes, replicas, draws.node, config.tick_s
        )
    removed = maximum(xp, pods.existing(state.schedule) - hosted, 0.0)
    before = pods.ready(state.schedule)
    kept = minimum(xp, before, hosted)
    schedule = pods.advance(state.schedule, hosted, config.startup, draws.startup)
    ready = pods.ready(schedule)
    # In every sub-step the pods that are ready in its middle serve; at last those that are ready at the end.
    shares = [(k + 0.5) / config.sub_steps for k in range(config.sub_steps)]
    serving = [*(pods.ready_within(kept, ready, share) for share in shares), ready]
    # Who is removed is no colder than the others.
    cold = state.cold * (kept / maximum(xp, before, 1.0))
    waiting = Waiting(state.backlog, state.retrying, cold=cold + (serving[0] - kept))
    waiting, tally, within = serve_tick(
        config.service,
        config.latency_threshold_s,
        config.latency_edges_ratio,
        config.warmup,
        config.retries,
        waiting,
        serving,
        arrivals,
        draws.service,
        config.sub_step_s,
    )

    cpu = config.cpu_request_cores * tally.used_s
    handled = tally.served + tally.dropped
    scrape = stack(tally.dropped, cpu, *within, handled)
    scrapes = (*state.scrapes[1:], scrape)
    signals, age_s = _scrape(config, state, scrapes, draws)
    after = ClusterState(
        schedule=schedule,
        backlog=waiting.backlog,
        cold=waiting.cold,
        retrying=waiting.retrying,
        scrapes=scrapes,
        signals=signals,
        signals_age_s=age_s,
        nodes=nodes,
    )
    return after, Outcome(
        arrivals=sum(arrivals[:, k] for k in range(config.sub_steps)),
        served=tally.served,
        dropped=tally.dropped,
        retried=tally.retried,
        violations=tally.violations,
        within=by_row(within),
        pod_seconds=replicas * config.tick_s + removed * config.termination_s,
        node_seconds=node_count * config.tick_s,
        ready=ready,
        pending=replicas - ready,
        utilization=tally.used_s / maximum(xp, tally.ready_s, TINY),
        latency_mean_s=tally.latency_s / maximum(xp, tally.served, TINY),
        latency_p99_s=config.latency_threshold_s
        * histogram_quantile(metrics.QUANTILE, config.latency_edges_ratio, scrape[:, metrics.REQUESTS]),
        cpu_usage_cores=cpu / config.tick_s,
        cpu_request_cores=config.cpu_request_cores * tally.ready_s / config.tick_s,
    )


def observe(config: ClusterConfig, state: ClusterState) -> Array:
    """The signals as the autoscaler's queries return them at the end of a tick, `[N, S]`; see `metrics.read`."""
    return state.signals


def _read(config: ClusterConfig, scrapes: tuple[Array, ...]) -> Array:
    return metrics.read(
        scrapes,
        config.window,
        config.latency_threshold_s,
        config.latency_edges_ratio,
        config.cpu_request_cores,
        config.tick_s,
    )


def _scrape(
    config: ClusterConfig, state: ClusterState, scrapes: tuple[Array, ...], draws: Draws
) -> tuple[Array, Array]:
    """The signals after this tick's scrape and their age: the old ones, a tick older, where it failed."""
    signals = _read(config, scrapes)
    if config.dropout is None or draws.scrape is None:
        return signals, state.signals_age_s
    xp = namespace(signals)
    failed = draws.scrape < config.dropout
    age_s = xp.where(failed, state.signals_age_s + config.tick_s, xp.zeros_like(state.signals_age_s))
    return by_row(xp.where(failed, by_column(state.signals), by_column(signals))), age_s
