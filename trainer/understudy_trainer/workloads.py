"""Randomised synthetic workloads to learn on: nothing that a service may be is known in advance, so all is drawn.

Arrivals and every other chance are drawn once and kept, so that two policies can be compared on the very same luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy_policy import history
from understudy_policy.rows import as_torch_or_numpy
from understudy_policy.settings import Settings
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.cluster import ClusterConfig, Profile, configure
from understudy_simulator.generators import FAMILIES, generate

TICK_S = 15.0
PAST_TICKS = history.TICKS
PAST_BLOCKS = history.BLOCKS_PER_DAY
"""Five-minute means before the past ticks: enough to know yesterday."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Workloads:
    """N workloads and all chance that they meet in T ticks.

    Attributes:
        settings: what people asked for; the capacity that they give is off by up to a third for half of them.
        cluster: what the workloads really are, in single precision.
        arrivals: `[N, T, sub_steps]` requests.
        startup_draws: `[N, T]` uniform.
        service_draws: `[N, T, sub_steps]` standard normal.
        past_rps: `[N, PAST_TICKS]` request rate that was observed before the first tick, NaN where unknown.
        past_blocks_rps: `[N, PAST_BLOCKS]` means of the day before that, NaN where unknown.
        first_rps: `[N]` true rate at the first tick.
    """

    settings: Settings
    cluster: ClusterConfig
    arrivals: Floats
    startup_draws: Floats
    service_draws: Floats
    past_rps: Floats
    past_blocks_rps: Floats
    first_rps: Floats

    @property
    def ticks(self) -> int:
        """Length of the episode."""
        return self.arrivals.shape[1]


def draw(count: int, ticks: int, rng: np.random.Generator, sub_steps: int = 3) -> Workloads:
    """Draw workloads from every family of loads.

    Half of the loads cover the episode only, so that their events fall into it; the other half covers a day and more,
    so that yesterday is known.

    Args:
        count: how many.
        ticks: length of the episode.
        rng: source of the draws; the same state gives the same workloads.
        sub_steps: parts of a tick in which queues are computed.
    """

    def log_uniform(low: float, high: float) -> NDArray[np.float64]:
        return np.exp(rng.uniform(np.log(low), np.log(high), count))

    shape, day_known = _shapes(count, ticks, rng)
    capacity_rps, mean_pods = log_uniform(0.5, 50.0), log_uniform(2.0, 100.0)
    service_s = log_uniform(0.5, 8.0) / capacity_rps
    threshold_s = service_s * log_uniform(5.0, 15.0)
    timeout_s = threshold_s * log_uniform(2.0, 20.0)
    cluster = configure(
        [
            Profile(c, s, v, h, t)
            for c, s, v, h, t in zip(
                capacity_rps, service_s, rng.uniform(0.3, 1.0, count), threshold_s, timeout_s, strict=True
            )
        ],
        startup_median_s=log_uniform(30.0, 180.0),
        startup_sigma=rng.uniform(0.1, 0.4, count),
        cpu_request_cores=log_uniform(0.1, 4.0),
        tick_s=TICK_S,
        sub_steps=sub_steps,
    )
    rate_rps = shape * (mean_pods * capacity_rps)[:, None]
    dispersion = log_uniform(1.0, 8.0)[:, None, None]
    expected = np.repeat(rate_rps[:, -(ticks + PAST_TICKS) :, None] * (TICK_S / sub_steps), sub_steps, axis=2)
    arrivals = draw_arrivals(rng, expected, dispersion)
    peak_pods = mean_pods * shape[:, -ticks:].max(axis=1)
    capacity_error = np.exp(rng.normal(0.0, 0.12, count).clip(-0.3, 0.3) * (rng.random(count) < 0.5))
    return Workloads(
        settings=Settings.unguarded(
            min_replicas=np.ones(count, np.int64),
            max_replicas=np.ceil(peak_pods * rng.uniform(1.2, 4.0, count)).astype(np.int64),
            latency_threshold_s=threshold_s,
            slo_target=1.0 - 10 ** -rng.uniform(*SLO_NINES, count),
            missed_request_price=log_uniform(*PRICES),
            given_capacity_rps=capacity_rps * capacity_error,
            reference_target=rng.uniform(0.5, 0.85, count),
            tick_s=TICK_S,
        ),
        cluster=as_torch_or_numpy(cluster, lambda array: array.astype(np.float32)),
        arrivals=arrivals[:, PAST_TICKS:].astype(np.float32),
        startup_draws=rng.random((count, ticks), np.float32),
        service_draws=rng.standard_normal((count, ticks, sub_steps), np.float32),
        past_rps=_observed_past(arrivals[:, :PAST_TICKS].sum(axis=2) / TICK_S, rng),
        past_blocks_rps=_blocks(rate_rps, day_known, ticks),
        first_rps=rate_rps[:, -ticks],
    )


SLO_NINES = (1.0, 3.0)
"""Range of −log10 of the share of requests that may miss the objective: 10 % to 0.1 %."""

PRICES = (0.5, 30.0)
"""Range of the price of a missed request."""


def _shapes(
    count: int, ticks: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rates of mean 1, `[N, day + past + ticks]` (NaN before a short load begins), and where the day is covered."""
    episode = PAST_TICKS + ticks
    day = PAST_BLOCKS * history.BLOCK_TICKS
    shape = np.full((count, day + episode), np.nan)
    kinds = [(family, long) for family in FAMILIES for long in (False, True)]
    kind_of = rng.permutation(np.arange(count) % len(kinds))
    for kind, (family, long) in enumerate(kinds):
        rows = np.flatnonzero(kind_of == kind)
        if len(rows):
            samples = shape.shape[1] if long else episode
            shape[rows, -samples:] = generate(family, samples * TICK_S, TICK_S, rng, len(rows))
    return shape, kind_of % 2 == 1


def _observed_past(rate_rps: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """The rate as a query over a window of four ticks shows it; a quarter of the workloads remember only a part."""
    total = np.cumsum(np.concatenate([np.repeat(rate_rps[:, :1], 4, axis=1), rate_rps], axis=1), axis=1)
    observed = (total[:, 4:] - total[:, :-4]) / 4.0
    count, ticks = observed.shape
    forgotten = rng.integers(0, ticks - 20, count) * (rng.random(count) < 0.25)
    return np.where(np.arange(ticks)[None, :] < forgotten[:, None], np.nan, observed).astype(np.float32)


def _blocks(rate_rps: NDArray[np.float64], day_known: NDArray[np.bool_], ticks: int) -> NDArray[np.float32]:
    day = rate_rps[:, : -(ticks + PAST_TICKS)].reshape(len(rate_rps), PAST_BLOCKS, history.BLOCK_TICKS)
    return np.where(day_known[:, None], day.mean(axis=2), np.nan).astype(np.float32)
