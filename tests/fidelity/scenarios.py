"""Bursts, overload, start-up and timeouts, put before the model and before the event-by-event simulation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from event_simulation import Cluster, Workload
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.cluster import PROFILES, Draws, Profile, configure, initial, step

TICK_S, SUB_STEPS = 15.0, 3
SUB_STEP_S = TICK_S / SUB_STEPS


@dataclass(frozen=True)
class Scenario:
    """A load and the replicas that meet it, both per tick; the load in shares of one pod's capacity."""

    name: str
    load: Sequence[float]
    replicas: Sequence[int]
    profile: Profile = PROFILES["web"]
    startup_median_s: float = 30.0
    startup_sigma: float = 0.4
    dispersion: float = 1.0
    lanes: int = 2
    """Runs, event by event; more where much depends on few draws."""

    def arrivals(self, lanes: int, seed: int = 0) -> np.ndarray:
        """Whole requests, `[lanes, ticks * SUB_STEPS]`."""
        expected = np.repeat(np.asarray(self.load), SUB_STEPS) * self.profile.capacity_rps * SUB_STEP_S
        rng = np.random.default_rng(seed)
        return draw_arrivals(rng, np.broadcast_to(expected, (lanes, len(expected))), self.dispersion)


@dataclass(frozen=True)
class Figures:
    """What the users of a scenario saw."""

    missed_share: float
    """Requests over the latency threshold or given up."""
    p95_s: float
    """Latency that 5 % of all requests exceed; infinite where more than that were given up."""


def _phases(*phases: tuple[int, float]) -> list[float]:
    return [value for ticks, value in phases for _ in range(ticks)]


WEB, API, LLM = (PROFILES[name] for name in ("web", "api", "llm"))
SCENARIOS = (
    Scenario("steady at 70 %", _phases((40, 2.8)), [4] * 40),
    Scenario("steady at 90 %", _phases((40, 7.2)), [8] * 40),
    Scenario("clumped arrivals", _phases((40, 5.6)), [8] * 40, dispersion=4.0),
    Scenario("burst of half a minute", _phases((12, 2.4), (2, 6.4), (18, 2.4)), [4] * 32),
    Scenario("flash crowd, scaled late", _phases((10, 3.0), (22, 7.5)), [5] * 12 + [12] * 20),
    Scenario("overload with timeouts", _phases((10, 2.8), (10, 5.2), (12, 2.0)), [4] * 32),
    Scenario("short timeout", _phases((10, 2.8), (10, 4.6), (12, 2.0)), [4] * 32, replace(WEB, timeout_s=1.0)),
    Scenario("slow, unequal start-up", _phases((8, 6.0), (40, 16.0)), [10] * 8 + [24] * 40, LLM,
             startup_median_s=60.0, startup_sigma=0.8, lanes=60),
    Scenario("scaled in too far", _phases((40, 3.2)), [6] * 10 + [3] * 10 + [6] * 20, startup_median_s=20.0),
    Scenario("slower requests", _phases((30, 4.0), (6, 9.0), (24, 4.0)), [6] * 33 + [12] * 27, API, lanes=6),
    Scenario("inference", _phases((40, 8.0), (8, 16.0), (52, 8.0)), [12] * 44 + [20] * 56, LLM,
             startup_median_s=90.0, lanes=40),
)  # fmt: skip


def model(scenario: Scenario, lanes: int = 32, seed: int = 0) -> Figures:
    """What the vectorised model says.

    Rows that differ in nothing but their latency threshold give the whole distribution of the latencies.
    """
    profile = scenario.profile
    fastest_s, slowest_s = 0.2 * profile.service_s, profile.timeout_s + 12 * profile.service_s
    thresholds_s = np.append(np.geomspace(fastest_s, slowest_s, 120), profile.latency_threshold_s)
    rows = [replace(profile, latency_threshold_s=float(t)) for t in thresholds_s] * lanes
    config = configure(
        rows, scenario.startup_median_s, scenario.startup_sigma, tick_s=TICK_S, sub_steps=SUB_STEPS
    )
    arrivals = np.repeat(scenario.arrivals(lanes, seed), len(thresholds_s), axis=0)
    rng, n = np.random.default_rng([seed, 1]), len(rows)
    missed, came = np.zeros(n), np.zeros(n)
    state = initial(
        config, np.full(n, float(scenario.replicas[0])), np.full(n, scenario.load[0] * profile.capacity_rps)
    )
    for tick, replicas in enumerate(scenario.replicas):
        now = arrivals[:, tick * SUB_STEPS : (tick + 1) * SUB_STEPS]
        startup = np.repeat(rng.random(lanes), len(thresholds_s))
        service = np.repeat(rng.standard_normal((lanes, SUB_STEPS)), len(thresholds_s), axis=0)
        state, outcome = step(config, state, np.full(n, float(replicas)), now, Draws(startup, service))
        missed, came = missed + outcome.violations, came + outcome.arrivals
    shares = missed.reshape(lanes, -1).sum(0) / came.reshape(lanes, -1).sum(0)
    curve = np.minimum.accumulate(shares[:-1])
    over = np.flatnonzero(curve > 0.05)
    p95_s = float(np.interp(-0.05, -curve, thresholds_s[:-1])) if over[-1] + 1 < len(curve) else float("inf")
    return Figures(float(shares[-1]), p95_s)


def events(scenario: Scenario, seed: int = 0) -> Figures:
    """What happens to the requests one by one."""
    profile = scenario.profile
    workload = Workload(
        profile.service_s,
        profile.service_cv,
        profile.timeout_s,
        scenario.startup_median_s,
        scenario.startup_sigma,
    )
    latencies_s = np.concatenate(
        [
            Cluster(workload, scenario.replicas[0], seed=1000 + lane).run(
                arrivals, SUB_STEP_S, scenario.replicas, TICK_S
            )
            for lane, arrivals in enumerate(scenario.arrivals(scenario.lanes, seed))
        ]
    )
    p95_s = float(np.quantile(latencies_s, 0.95, method="inverted_cdf"))
    return Figures(float(np.mean(latencies_s > profile.latency_threshold_s)), p95_s)
