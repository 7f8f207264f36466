"""A workload's own past as a place to learn in: its load as it came, met again at other moments with other luck.

A policy that is trained further for one workload must not see what it will be judged on. So a past is cut here,
before any learner gets hold of it; everything that is drawn from it follows from what it holds.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy_policy import history
from understudy_policy.rows import Array
from understudy_simulator import scenario
from understudy_simulator.audition import PAST_TICKS, Episode
from understudy_simulator.cluster import Profile
from understudy_simulator.protocol import CEILING, STARTUP_SIGMA, TICK_S, Cell
from understudy_simulator.scenario import Ranges, Stock
from understudy_simulator.traces import SMOOTHING_S, Trace

Floats = NDArray[np.float64]

LEAST_S = 2 * 3600.0
"""Shortest load that can be learned from: as long as an episode."""

STARTUP_FACTOR = 1.2
"""The median start-up of an episode lies within this factor of what is known."""

SWELL_PERIODS_S = (20 * 60.0, 4 * 3600.0)
"""Of the slow waves on an episode's load (log)."""

_WAVES = 4

_BLOCK, _DAY = history.BLOCK_TICKS, history.BLOCKS_PER_DAY * history.BLOCK_TICKS


class PastError(ValueError):
    """A past cannot be learned from; the message says why, and what can."""


class TooShortError(PastError):
    """There is not enough of it."""


@dataclass(frozen=True)
class Variation:
    """How far an episode may lie from the past that it is taken from.

    A past is short: what is learned from it as it came is learned by heart.

    Attributes:
        load: its rate is up to so many times as high, or as low (log-uniform).
        pace: its time runs up to so many times as fast, or as slowly (log-uniform).
        swell: standard deviation of the logarithm of slow waves on its rate.
    """

    load: float = 1.0
    pace: float = 1.0
    swell: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        for name, least in (("load", 1.0), ("pace", 1.0), ("swell", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least:g} or more")


AS_IT_CAME = Variation()


def _too_short(name: str, duration_s: float) -> str:
    return f"{name}: {duration_s / 3600:.1f} h to learn from; give {LEAST_S / 3600:g} h or more"


@dataclass(frozen=True)
class Past:
    """What is known of a workload.

    Attributes:
        curve: its request rate, from time 0 up to now; its samples may be longer than a tick.
        dispersion: variance over mean of its arrivals in a sub-step.
        service: how its pods serve.
        startup_s: median start-up.
        startup_sigma: standard deviation of its logarithm.
    """

    curve: Trace
    dispersion: float
    service: Profile
    startup_s: float
    startup_sigma: float = STARTUP_SIGMA

    def __post_init__(self) -> None:
        if self.curve.duration_s < LEAST_S:
            raise TooShortError(_too_short(self.curve.name, self.curve.duration_s))
        if not self.curve.requests_per_second.any():
            raise PastError(
                f"{self.curve.name}: no request in the {self.curve.duration_s / 3600:.1f} h to learn from; "
                "give a history with load in it"
            )
        longest_s = scenario.LONGEST_STARTUP_S / STARTUP_FACTOR
        if self.startup_s > longest_s:
            raise PastError(
                f"{self.curve.name}: startup_s is {self.startup_s:g}; "
                f"one can learn with start-ups of up to {longest_s:g} s"
            )

    def fingerprint(self) -> str:
        """Changes with anything that is drawn from it."""
        facts = sorted((asdict(self) | {"curve": self.curve.step_s}).items())
        return hashlib.sha256(repr(facts).encode() + self.curve.requests_per_second.tobytes()).hexdigest()

    def lineage(self) -> dict[str, Any]:
        """What an artefact says about it."""
        return {
            "name": self.curve.name,
            "sha256": self.fingerprint(),
            "span_s": self.curve.duration_s,
            "step_s": self.curve.step_s,
            "dispersion": self.dispersion,
            "startup_s": self.startup_s,
            "service": asdict(self.service),
        }


def between(curve: Trace, start_s: float = -math.inf, end_s: float = math.inf) -> Trace:
    """The part of a rate curve that tells of this time alone, from time 0 on.

    Samples that were smoothed with what lies outside are left out.

    Raises:
        PastError: next to nothing is left.
    """
    reach_s = max(curve.step_s, 0.5 * SMOOTHING_S)
    first_s, last_s = curve.timestamp_s - reach_s, curve.timestamp_s + curve.step_s + reach_s
    inside = (first_s >= start_s - 1e-9) & (last_s <= end_s + 1e-9)
    if inside.sum() < 2:
        raise TooShortError(_too_short(curve.name, curve.step_s * inside.sum()))
    time_s = curve.timestamp_s[inside]
    return replace(
        curve, timestamp_s=time_s - time_s[0], requests_per_second=curve.requests_per_second[inside]
    )


def of_cell(cell: Cell) -> tuple[Past, Past, Past]:
    """What policies may learn from before they are judged on a cell.

    Returns:
        Its past without the first half, without the second half, and all of it.

    Raises:
        PastError: a half is too short.
    """
    half_s, end_s = cell.half_past_tick * TICK_S, cell.past_ticks * TICK_S

    def past(start_s: float, end_s: float) -> Past:
        return Past(between(cell.curve, start_s, end_s), cell.dispersion, cell.service, cell.startup_s)

    whole = past(-math.inf, end_s)
    try:
        return past(half_s, end_s), past(-math.inf, half_s), whole
    except PastError as error:
        raise PastError(f"half of the past is played by who learned from the other half: {error}") from error


def ranges(past: Past) -> Ranges:
    """A workload as it is known, with what may well be otherwise: start-up, scatter, telemetry, the given capacity."""
    service = past.service

    def exactly(value: float) -> tuple[float, float]:
        return value, value

    def about(value: float, factor: float) -> tuple[float, float]:
        return value / factor, value * factor

    low, high = about(past.dispersion, 1.25)
    return Ranges(
        mean_pods=exactly(float(past.curve.requests_per_second.mean()) / service.capacity_rps),
        capacity_rps=exactly(service.capacity_rps),
        slots=exactly(service.capacity_rps * service.service_s),
        service_cv=exactly(service.service_cv),
        threshold_ratio=exactly(service.latency_threshold_s / service.service_s),
        timeout_ratio=exactly(service.timeout_s / service.latency_threshold_s),
        dispersion=(max(low, 1.0), max(high, 1.0)),
        startup_median_s=about(past.startup_s, STARTUP_FACTOR),
        startup_sigma=exactly(past.startup_sigma),
        termination_s=(3.0, 10.0),
        cpu_request_cores=exactly(1.0),
        metric_lag_s=(10.0, 15.0),
        metric_window_s=(50.0, 60.0),
        dropout=(0.0, 0.02),
        sharing_share=0.0,
        warmup_share=0.0,
        retry_share=0.0,
        node_share=0.0,
        capacity_error=0.05,
        capacity_unknown_share=0.0,
        reference_target=exactly(0.7),
        slo_nines=exactly(2.0),
        forgetful_share=0.1,
    )


def draw(
    count: int,
    ticks: int,
    past: Past,
    own: Stock,
    rng: np.random.Generator,
    since_s: float = 0.0,
    vary: Variation = AS_IT_CAME,
) -> Episode:
    """Draw episodes of one workload; in NumPy, single precision.

    Each begins at some moment of the past. What lies before the first sample is not remembered, as it will not be when
    the policy begins its work.

    Args:
        count: how many.
        ticks: length of an episode.
        past: the workload.
        own: any stock of loads that are long enough; none of them is used.
        rng: source of the draws; the same state gives the same episodes.
        since_s: the earliest beginning of an episode; what lies before is remembered.
        vary: how far episodes lie from the past.

    Raises:
        PastError: the past is shorter than an episode.
    """
    rates, earliest = _by_tick(past.curve), math.ceil(since_s / TICK_S)
    if len(rates) - earliest < ticks:
        raise PastError(
            f"{past.curve.name}: {len(rates) - earliest} ticks to learn from; give {ticks} or more, "
            "or a shorter world.episode_ticks"
        )
    known = ranges(past)
    services = scenario.draw(count, ticks, own, rng, known)

    def up_to(factor: float) -> Floats:
        return np.exp(rng.uniform(-math.log(factor), math.log(factor), (count, 1)))

    factor = up_to(vary.load)
    pace = np.minimum(up_to(vary.pace), (len(rates) - earliest) / ticks)
    latest = np.floor(len(rates) - pace * ticks)
    begin = earliest + np.floor(rng.random((count, 1)) * (latest - earliest + 1))
    # Middles of ticks, in ticks of the past: what rates are told at.
    at = begin + pace * (np.arange(PAST_TICKS + ticks) - PAST_TICKS + 0.5)
    rate_rps = factor * past.curve.rates_at(TICK_S * at)
    rate_rps *= _swell(rate_rps.shape, vary.swell, rng)
    forgetful = rng.random(count) < known.forgetful_share
    seen = scenario.observed(rate_rps, services.dispersion.astype(np.float64), forgetful, rng)
    blocks = begin + pace * (np.arange(services.yesterday_rps.shape[1]) * _BLOCK - PAST_TICKS)
    capacity_rps, mean_rps = past.service.capacity_rps, float(rates.mean())
    most_rps = np.maximum(factor[:, 0] * rates.max(), rate_rps.max(axis=1))
    most = np.ceil(CEILING * most_rps / capacity_rps).astype(np.int64) + 4

    def stored(values: Floats) -> Array:
        return scenario.single(scenario.by_tick(values))

    return replace(
        services,
        settings=replace(services.settings, max_replicas=most),
        # The same unit for all: at night a pod costs what it costs by day.
        mean_rps=scenario.single(factor[:, 0] * mean_rps),
        rate_rps=stored(rate_rps),
        observed_rps=stored(np.where(at[:, :PAST_TICKS] < 0, np.nan, seen)),
        yesterday_rps=stored(factor * _means(rates, blocks - _DAY, pace * _BLOCK)),
        last_week_rps=stored(factor * _means(rates, blocks - 7 * _DAY, pace * _BLOCK)),
        service=np.zeros(count, np.int64),
    )


def _by_tick(curve: Trace) -> Floats:
    return curve.rates_at(TICK_S * (np.arange(int(curve.duration_s / TICK_S)) + 0.5))


def _means(rates: Floats, begin: Floats, length: Floats) -> Floats:
    """Mean rates of so many ticks that begin at these; NaN where they are not all known."""
    total = np.concatenate([[0.0], np.cumsum(rates)])
    known = (begin >= 0) & (begin + length <= len(rates))
    before, after = (np.interp(at, np.arange(len(total)), total) for at in (begin, begin + length))
    return np.where(known, (after - before) / length, np.nan)


def _swell(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> Floats:
    """Slow waves `[N, T]` to multiply rates by, with this standard deviation of their logarithm."""
    count, ticks = shape
    shortest, longest = np.log(SWELL_PERIODS_S)
    period_s = np.exp(rng.uniform(shortest, longest, (_WAVES, count, 1)))
    height = rng.normal(0.0, deviation * math.sqrt(2.0 / _WAVES), (_WAVES, count, 1))
    turns = TICK_S * np.arange(ticks) / period_s + rng.random((_WAVES, count, 1))
    return np.exp((height * np.sin(2.0 * np.pi * turns)).sum(axis=0))
