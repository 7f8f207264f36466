"""Everything that a service may be, drawn anew for every episode: what a learner never saw, it cannot rely on.

Loads are costly to draw and cheap to reuse, so a *stock* of curves is drawn once and every episode takes other parts of
them, at another pace, scaled to another size and with other luck. Whatever else is uncertain about a cluster is a range
of `Ranges`, and can be switched off by narrowing it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy_policy import history
from understudy_policy.rows import as_torch_or_numpy
from understudy_policy.settings import Settings
from understudy_simulator import audition, pods
from understudy_simulator.audition import PAST_TICKS, Episode
from understudy_simulator.cluster import ClusterConfig, Profile, configure
from understudy_simulator.generators import FAMILIES, generate
from understudy_simulator.nodes import AMPLE, Nodes
from understudy_simulator.serving import Retries, Warmup

Floats = NDArray[np.float64]
Range = tuple[float, float]

USUAL_LAG_S, USUAL_WINDOW_S = 15.0, 60.0
"""Age of a sample and window of a rate with a scrape every 15 s and queries over a minute."""

STARTUP_HORIZON_S, NODE_HORIZON_S = 720.0, 480.0
"""Start-ups are told apart up to here, and the few that take longer are over then: tables are equally wide whatever was
drawn, so draws can be put together, and a compiled model is compiled once."""

LONGEST_STARTUP_S = 0.5 * STARTUP_HORIZON_S
"""Longest median of a start-up: beyond, more than a few pods would begin to serve when the table ends."""

LONGEST_REACH_S = USUAL_LAG_S + USUAL_WINDOW_S
"""Age of the oldest scrape that a query can look at: so wide is the table of metrics."""

_DAY_TICKS = history.BLOCKS_PER_DAY * history.BLOCK_TICKS


@dataclass(frozen=True)
class Ranges:
    """From where to where each property of a workload is drawn; evenly, or (log) evenly in its logarithm.

    A property with a share is drawn for that share of the workloads; the others are without it.
    """

    plain_share: float = 0.5
    """Workloads without any complication: a given capacity that is right, pods that are warm at once, nodes enough,
    clients that give up, and telemetry as it usually is (`USUAL_LAG_S`, `USUAL_WINDOW_S`, nothing lost)."""

    mean_pods: Range = (2.0, 100.0)
    """Mean demand in pods (log)."""
    capacity_rps: Range = (0.3, 60.0)
    """Requests per second of one pod (log)."""
    slots: Range = (0.5, 8.0)
    """Requests that a pod works on at once (log); with the capacity they give the service time."""
    service_cv: Range = (0.3, 1.0)
    threshold_ratio: Range = (5.0, 15.0)
    """Latency threshold over service time (log)."""
    timeout_ratio: Range = (2.0, 20.0)
    """Time-out over latency threshold (log)."""
    dispersion: Range = (1.0, 10.0)
    """Variance over mean of the arrivals in a sub-step (log)."""
    startup_median_s: Range = (10.0, 240.0)
    """(log)"""
    startup_sigma: Range = (0.1, 0.5)
    termination_s: Range = (1.0, 30.0)
    """(log)"""
    cpu_request_cores: Range = (0.1, 4.0)
    """(log)"""
    metric_lag_s: Range = (0.0, 15.0)
    metric_window_s: Range = (30.0, 60.0)
    dropout: Range = (0.0, 0.05)
    sharing_share: float = 0.5
    """Workloads whose pods share their processor."""
    warmup_share: float = 0.4
    warmup_slowdown: Range = (1.2, 4.0)
    warmup_decay_s: Range = (20.0, 120.0)
    retry_share: float = 0.3
    """Workloads whose clients send again what was given up."""
    retried: Range = (0.1, 0.7)
    backoff_s: Range = (2.0, 30.0)
    node_share: float = 0.3
    """Workloads that need nodes of their own for what exceeds the mean demand by up to a half."""
    node_startup_s: Range = (40.0, 180.0)
    """(log)"""
    pods_per_node: Range = (2.0, 30.0)
    """(log)"""
    max_over_peak: Range = (1.2, 4.0)
    """`maxReplicas` over what the peak needs."""
    capacity_error: float = 0.12
    """Standard deviation of the logarithm of a given capacity's error, where it has one (half of them)."""
    capacity_unknown_share: float = 0.25
    """Workloads whose capacity nobody gave."""
    reference_target: Range = (0.5, 0.85)
    price: Range = (0.5, 30.0)
    """Price of a missed request (log)."""
    slo_nines: Range = (1.0, 3.0)
    """−log10 of the share of requests that may miss the objective."""
    forgetful_share: float = 0.25
    """Workloads of which only a part of the last hour is known."""
    yesterday_share: float = 0.7
    """Of the loads that are longer than a day: those whose yesterday is known; half of them know last week, too."""
    families: tuple[str, ...] = field(default_factory=lambda: (*FAMILIES, *["mixture"] * 4, *["drift"] * 2))
    """Of the loads, in equal parts; one that is named again has as many more."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; a share lies between 0 and 1.")
            if name != "families" and isinstance(value, tuple) and not value[0] <= value[1]:
                raise ValueError(f"{name} is {value}; give the lower end first.")
        if self.startup_median_s[1] > LONGEST_STARTUP_S:
            raise ValueError(
                f"startup_median_s goes up to {self.startup_median_s[1]:g}; give {LONGEST_STARTUP_S:g} s or less."
            )
        if self.metric_lag_s[1] + self.metric_window_s[1] > LONGEST_REACH_S:
            raise ValueError(
                f"metric_lag_s goes up to {self.metric_lag_s[1]:g} and metric_window_s to "
                f"{self.metric_window_s[1]:g}; give {LONGEST_REACH_S:g} s or less together."
            )


@dataclass(frozen=True)
class Stock:
    """Curves to take loads from.

    Attributes:
        short: `[P, L]` float32, some hours; all moments of a service find a part to themselves.
        long: `[P, M]` float32, a day more, so that yesterday can be told.
    """

    short: NDArray[np.float32]
    long: NDArray[np.float32]


def stock(
    curves: int,
    rng: np.random.Generator,
    ticks: int = 960,
    families: tuple[str, ...] = tuple(FAMILIES),
    moments: int = 1,
) -> Stock:
    """Draw a stock of loads, each family in equal parts.

    Args:
        curves: of either length.
        rng: source of the draws.
        ticks: longest episode that will be cut from it.
        families: names in `generators.FAMILIES`.
        moments: of every service that will be drawn.
    """
    span = _span(PAST_TICKS + ticks, moments)

    def draw(samples: int) -> NDArray[np.float32]:
        parts = np.array_split(np.arange(curves), len(families))
        drawn = [
            generate(family, samples * TICK_S, TICK_S, rng, len(part)).astype(np.float32)
            for family, part in zip(families, parts, strict=True)
            if len(part)
        ]
        return np.concatenate(drawn)[rng.permutation(curves)]

    return Stock(short=draw(span), long=draw(_DAY_TICKS + span))


def _span(samples: int, moments: int) -> int:
    """Samples of a curve of which so many pieces are taken: apart from each other, with room to move."""
    return 2 * samples if moments == 1 else moments * samples * 5 // 4


TICK_S = 15.0


def draw(
    count: int,
    ticks: int,
    own: Stock,
    rng: np.random.Generator,
    ranges: Ranges | None = None,
    moments: int = 1,
) -> Episode:
    """Draw workloads for an episode; in NumPy, single precision.

    Args:
        count: how many.
        ticks: length of the episode, a multiple of four.
        own: where their loads come from.
        rng: source of the draws; the same state gives the same workloads.
        ranges: what they may be; by default everything.
        moments: so many rows in a row are the same service at different times, with other luck.

    Raises:
        ValueError: the stock's curves are shorter than the episode.
    """
    ranges = ranges or Ranges()
    draws = _Draws(count, rng, ranges.plain_share, moments)
    samples = PAST_TICKS + ticks
    if own.short.shape[1] // moments < samples:
        raise ValueError(
            f"ticks is {ticks}; this stock was drawn for at most {own.short.shape[1] // moments - PAST_TICKS} "
            f"at each of {moments} moments."
        )
    shape, yesterday = _loads(samples, own, draws, ranges)
    scale = 1.0 / np.maximum(draws.mean(shape[:, PAST_TICKS:].mean(axis=1)), 1e-6)
    capacity_rps, mean_pods = draws.log(ranges.capacity_rps), draws.log(ranges.mean_pods)
    scale *= mean_pods * capacity_rps
    rate_rps = shape * scale[:, None]
    peak_pods = draws.most(rate_rps[:, PAST_TICKS:].max(axis=1)) / capacity_rps
    dispersion = draws.log(ranges.dispersion)
    config, threshold_s = _cluster(draws, ranges, capacity_rps, mean_pods)
    yesterday = yesterday * scale[:, None]
    last_week = yesterday * np.exp(0.15 * rng.standard_normal(yesterday.shape))
    last_week[rng.random(count) < 0.5] = np.nan
    error = np.exp(np.clip(ranges.capacity_error * draws.normal(), -0.3, 0.3) * draws.trouble(0.5))
    episode = Episode(
        cluster=config,
        settings=Settings.unguarded(
            min_replicas=np.ones(count, np.int64),
            max_replicas=np.ceil(peak_pods * draws.even(ranges.max_over_peak)).astype(np.int64) + 1,
            latency_threshold_s=threshold_s,
            slo_target=1.0 - 10 ** -draws.even(ranges.slo_nines),
            missed_request_price=draws.log(ranges.price),
            given_capacity_rps=np.where(
                draws.trouble(ranges.capacity_unknown_share), np.nan, capacity_rps * error
            ),
            reference_target=draws.even(ranges.reference_target),
            tick_s=TICK_S,
        ),
        seeds=rng.integers(-(2**31), 2**31, count).astype(np.int32),
        dispersion=dispersion,
        rate_rps=by_tick(rate_rps),
        mean_rps=mean_pods * capacity_rps,
        observed_rps=by_tick(observed(rate_rps, dispersion, draws.some(ranges.forgetful_share), rng)),
        yesterday_rps=by_tick(yesterday),
        last_week_rps=by_tick(last_week),
        service=1 + draws.service,
        **audition.table(rate_rps),
    )
    return as_torch_or_numpy(episode, single)


class _Draws:
    """Draws for all workloads at once: the same for all moments of a service."""

    def __init__(self, count: int, rng: np.random.Generator, plain_share: float, moments: int = 1) -> None:
        self.rng, self.moments = rng, moments
        self.service = np.arange(count) // moments
        self.first = np.arange(0, count, moments)
        self.services = len(self.first)
        self.plain = self.some(plain_share)

    def each(self, drawn: NDArray[Any]) -> NDArray[Any]:
        """What was drawn for the services, for each of their moments."""
        return drawn[self.service]

    def mean(self, values: Floats) -> Floats:
        """Mean over the moments of a service, for each of them."""
        return self.each(np.add.reduceat(values, self.first) / np.bincount(self.service))

    def most(self, values: Floats) -> Floats:
        """The same with the largest."""
        return self.each(np.maximum.reduceat(values, self.first))

    def even(self, between: Range) -> Floats:
        return self.each(self.rng.uniform(*between, self.services))

    def normal(self) -> Floats:
        return self.each(self.rng.standard_normal(self.services))

    def log(self, between: Range) -> Floats:
        return np.exp(self.even((math.log(between[0]), math.log(between[1]))))

    def some(self, share: float) -> NDArray[np.bool_]:
        return self.each(self.rng.random(self.services)) < share

    def trouble(self, share: float) -> NDArray[np.bool_]:
        """A share of those that are not plain."""
        return self.some(share) & ~self.plain

    def usual(self, value: float, between: Range) -> Floats:
        """What plain workloads have, and what the others may."""
        return np.where(self.plain, value, self.even(between))


def _cluster(
    draws: _Draws, ranges: Ranges, capacity_rps: Floats, mean_pods: Floats
) -> tuple[ClusterConfig, Floats]:
    service_s = draws.log(ranges.slots) / capacity_rps
    threshold_s = service_s * draws.log(ranges.threshold_ratio)
    timeout_s = threshold_s * draws.log(ranges.timeout_ratio)
    node_s = draws.log(ranges.node_startup_s)
    sigma = np.full(len(draws.service), 0.3)
    room = np.ceil(mean_pods * draws.even((1.0, 1.5)))
    columns = (capacity_rps, service_s, draws.even(ranges.service_cv), threshold_s, timeout_s)
    config = configure(
        [Profile(*(float(value) for value in row)) for row in zip(*columns, strict=True)],
        startup_median_s=draws.log(ranges.startup_median_s),
        startup_sigma=draws.even(ranges.startup_sigma),
        cpu_request_cores=draws.log(ranges.cpu_request_cores),
        tick_s=TICK_S,
        termination_s=draws.log(ranges.termination_s),
        metric_lag_s=draws.usual(USUAL_LAG_S, ranges.metric_lag_s),
        metric_window_s=draws.usual(USUAL_WINDOW_S, ranges.metric_window_s),
        sharing=draws.some(ranges.sharing_share),
        dropout=draws.usual(0.0, ranges.dropout),
        warmup=Warmup(
            slowdown=np.where(draws.trouble(ranges.warmup_share), draws.even(ranges.warmup_slowdown), 1.0),
            decay_s=draws.even(ranges.warmup_decay_s),
        ),
        retries=Retries(
            share=np.where(draws.trouble(ranges.retry_share), draws.even(ranges.retried), 0.0),
            backoff_s=draws.even(ranges.backoff_s),
        ),
        nodes=Nodes(
            free_pods=np.where(draws.trouble(ranges.node_share), room, AMPLE),
            pods_per_node=np.round(draws.log(ranges.pods_per_node)),
            idle_s=np.full(len(draws.service), 600.0),
            startup=pods.startup_cdf(node_s, sigma, TICK_S, NODE_HORIZON_S),
        ),
        startup_horizon_s=STARTUP_HORIZON_S,
        metric_reach_s=LONGEST_REACH_S,
    )
    return config, threshold_s


def _loads(samples: int, own: Stock, draws: _Draws, ranges: Ranges) -> tuple[Floats, Floats]:
    """Shapes `[N, samples]`, and yesterday's five-minute means `[N, samples / 20 + 3]` (NaN where unknown)."""
    rng, count, moments = draws.rng, len(draws.service), draws.moments
    blocks = samples // history.BLOCK_TICKS + 3
    shape, yesterday = np.empty((count, samples)), np.full((count, blocks), np.nan)
    is_long = draws.some(0.5)
    # Every moment of a service has a part of its curve to itself.
    part_of = np.arange(count) % moments
    span = own.short.shape[1] // moments
    rows = np.flatnonzero(~is_long)
    # A short curve runs at its own pace; a day stays a day.
    pace = np.exp(draws.even((0.0, np.log(span / samples))))[rows]
    slack = span - 1 - pace * (samples - 1)
    begin = part_of[rows] * span + rng.random(len(rows)) * slack
    at = begin[:, None] + pace[:, None] * np.arange(samples)
    whole = np.minimum(at.astype(np.int64), own.short.shape[1] - 2)
    curve = draws.each(rng.integers(0, len(own.short), draws.services))[rows][:, None]
    part = at - whole
    shape[rows] = (1.0 - part) * own.short[curve, whole] + part * own.short[curve, whole + 1]

    rows = np.flatnonzero(is_long)
    curve = draws.each(rng.integers(0, len(own.long), draws.services))[rows][:, None]
    span = (own.long.shape[1] - _DAY_TICKS) // moments
    start = _DAY_TICKS + part_of[rows] * span + rng.integers(0, span - samples + 1, len(rows))
    start = start[:, None]
    shape[rows] = own.long[curve, start + np.arange(samples)]
    ticks = blocks * history.BLOCK_TICKS
    before = own.long[curve, np.minimum(start - _DAY_TICKS + np.arange(ticks), own.long.shape[1] - 1)]
    means = before.reshape(len(rows), blocks, history.BLOCK_TICKS).mean(axis=2)
    known = draws.some(ranges.yesterday_share)[rows]
    yesterday[rows] = np.where(known[:, None], means, np.nan)
    return shape, yesterday


def observed(
    rate_rps: Floats, dispersion: Floats, forgetful: NDArray[np.bool_], rng: np.random.Generator
) -> Floats:
    """The rate as a query over a minute showed it; of some workloads only the end of the past is remembered."""
    observed = rate_rps[:, :PAST_TICKS]
    variance = observed * dispersion[:, None] / TICK_S
    noisy = np.maximum(observed + np.sqrt(variance) * rng.standard_normal(observed.shape), 0.0)
    total = np.cumsum(np.concatenate([np.repeat(noisy[:, :1], 4, axis=1), noisy], axis=1), axis=1)
    observed = (total[:, 4:] - total[:, :-4]) / 4.0
    forgotten = rng.integers(0, PAST_TICKS - 20, len(observed)) * forgetful
    return np.where(np.arange(PAST_TICKS) < forgotten[:, None], np.nan, observed)


def by_tick(rows: Floats) -> Floats:
    """The same array, tick by tick in memory."""
    return np.ascontiguousarray(rows.T).T


def single(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same in single precision, where it was in double."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def episodes(
    count: int, ticks: int, rng: np.random.Generator, ranges: Ranges | None = None, curves: int = 1024
) -> Iterator[Episode]:
    """Episodes without end; the stock of curves is drawn anew, bit by bit, as they go.

    Args:
        count: workloads at once.
        ticks: length of an episode.
        rng: source of the draws.
        ranges: what workloads may be.
        curves: size of the stock.
    """
    ranges = ranges or Ranges()
    own = stock(curves, rng, ticks, ranges.families)
    fresh = max(curves // 32, len(ranges.families))
    while True:
        yield draw(count, ticks, own, rng, ranges)
        more, at = stock(fresh, rng, ticks, ranges.families), rng.choice(curves, fresh, replace=False)
        own.short[at], own.long[at] = more.short, more.long
