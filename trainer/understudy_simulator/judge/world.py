"""The cluster model under a contest: many rows that share arrivals and luck, and the sums they are judged by.

Every row is one configuration on one seed of one cell. Rows of the same cell and seed meet the very same
chance, so that a difference between two of them is a difference between their decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy_policy.references.rule import RuleSignals
from understudy_policy.rows import as_torch_or_numpy, take
from understudy_policy.signals import Signal
from understudy_simulator import cluster
from understudy_simulator.cluster import ClusterConfig, Draws, Outcome
from understudy_simulator.metrics import LATENCY_EDGES_RATIO
from understudy_simulator.pods import horizon_s
from understudy_simulator.protocol import STARTUP_SIGMA, SUB_STEPS, TICK_S, Cell, Chance, Protocol
from understudy_simulator.score import score
from understudy_simulator.service import histogram_quantile

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

SLOWEST_S = max(Protocol().startup_s)
QUANTILES = (0.5, 0.95, 0.99)
FIGURES = (
    "cost",
    "violation",
    "adjusted",
    "actions_per_hour",
    "reversals_per_hour",
    "latency_p50_s",
    "latency_p95_s",
    "latency_p99_s",
    "theta_under",
    "theta_over",
    "tau_under",
    "tau_over",
    "instability",
)
"""What is reported of every row. The SPEC elasticity metrics are shares: theta of the needed pods missing or in
excess (mean), tau of the time with too few or too many, instability of the time in which supply and need move in
different directions; what is needed is `clairvoyant.Bound.needed`."""


@dataclass(frozen=True)
class Luck:
    """The chance of some cells, by tick.

    Attributes:
        arrivals, service: `[T, sub_steps, runs]` float32; a run is a seed of a cell.
        startup: `[T, runs]` float32.
    """

    arrivals: NDArray[np.float32]
    startup: NDArray[np.float32]
    service: NDArray[np.float32]

    @classmethod
    def of(cls, chances: Sequence[Chance]) -> Luck:
        """The chance of cells of equal length, their seeds one after the other."""
        arrivals = np.concatenate([chance.arrivals for chance in chances])
        service = np.concatenate([chance.service for chance in chances])
        startup = np.concatenate([chance.startup for chance in chances])
        return cls(
            np.ascontiguousarray(arrivals.transpose(1, 2, 0)),
            np.ascontiguousarray(startup.T),
            np.ascontiguousarray(service.transpose(1, 2, 0)),
        )


class World:
    """Rows in motion.

    Attributes:
        replicas: `[N]` int64 that exist.
        seen: the signals of this moment.
    """

    def __init__(self, cells: Sequence[Cell], luck: Luck, run: Ints, needed: Ints) -> None:
        """Make the rows.

        Args:
            cells: of equal length and equally many seeds.
            luck: their chance.
            run: `[N]` the run that each row takes part in.
            needed: `[T, runs]` pods that the demand asked for, for the elasticity metrics.
        """
        seeds = cells[0].seeds
        of_run = np.arange(len(cells)).repeat(seeds)
        startup_s = np.array([cell.startup_s for cell in cells])
        config = cluster.configure(
            [cell.service for cell in cells],
            startup_median_s=startup_s,
            startup_sigma=STARTUP_SIGMA,
            tick_s=TICK_S,
            sub_steps=SUB_STEPS,
            # Of the slowest, whoever else is there: nobody's pods shall start otherwise beside other cells.
            startup_horizon_s=horizon_s(np.maximum(startup_s, SLOWEST_S), np.array(STARTUP_SIGMA)),
        )
        config = as_torch_or_numpy(config, lambda array: array.astype(np.float32))
        self.cells, self.run, self.cell = cells, run, of_run[run]
        self._config: ClusterConfig = take(config, self.cell)
        self._luck, self._needed = luck, needed
        self._capacity_rps = np.array([cell.service.capacity_rps for cell in cells])[self.cell]
        self._never = np.zeros(len(run), bool)

    def begin(self, tick: int) -> None:
        """Start (again) at a tick, with everybody's ready pods of that moment and no sums."""
        start = np.array([cell.start_replicas(tick) for cell in self.cells])[self.cell]
        rate = np.array([cell.curve.rate_at(tick * TICK_S) for cell in self.cells])[self.cell]
        self.replicas: Ints = start.astype(np.int64)
        self._state = cluster.initial(self._config, start.astype(np.float32), rate.astype(np.float32))
        self._tick = tick
        self._ready: Ints = self.replicas.copy()
        self._concurrency: Floats = rate * np.array([c.service.service_s for c in self.cells])[self.cell]
        self._sums = _Sums(len(self.run))
        self.look()

    def look(self) -> None:
        """Read the signals as they are now."""
        self.values = np.asarray(cluster.observe(self._config, self._state), np.float64)
        self.seen = RuleSignals(
            rate_rps=self.values[:, Signal.REQUEST_RATE],
            cpu_usage_cores=self.values[:, Signal.CPU_USAGE],
            cpu_request_cores=self.values[:, Signal.CPU_REQUEST],
            concurrency=self._concurrency,
            replicas=self.replicas,
            ready=self._ready,
            capacity_rps=self._capacity_rps,
            failed=self._never,
        )

    def step(self, replicas: Ints) -> None:
        """Let a tick pass with so many replicas."""
        tick, luck = self._tick, self._luck
        # The runs are along the fast axis in memory, and so are the rows that the cluster model walks.
        arrivals = np.take(luck.arrivals[tick], self.run, axis=1).T
        chance = Draws(
            startup=luck.startup[tick][self.run], service=np.take(luck.service[tick], self.run, axis=1).T
        )
        self._state, outcome = cluster.step(
            self._config, self._state, replicas.astype(np.float32), arrivals, chance
        )
        self._sums.add(outcome, replicas - self.replicas, self._needed[tick][self.run])
        self.replicas = replicas
        self._ready = outcome.ready.astype(np.int64)
        self._concurrency = (outcome.served / TICK_S * outcome.latency_mean_s).astype(np.float64)
        self._tick += 1
        self.look()

    def figures(self) -> NDArray[np.float64]:
        """`[len(FIGURES), N]` since `begin`."""
        threshold_s = np.array([cell.service.latency_threshold_s for cell in self.cells])[self.cell]
        return self._sums.figures(self._capacity_rps, threshold_s)


class _Sums:
    """What is added up tick by tick."""

    def __init__(self, count: int) -> None:
        self.ticks = 0
        self.requests, self.missed, self.pod_seconds = np.zeros((3, count))
        self.actions, self.reversals, self.unstable = np.zeros((3, count))
        self.under, self.over, self.time_under, self.time_over = np.zeros((4, count))
        self.within = np.zeros((count, len(LATENCY_EDGES_RATIO) + 1))
        self.last_sign = np.zeros(count)
        self.before: tuple[Floats, Floats] | None = None

    def add(self, outcome: Outcome, change: Ints, needed: Ints) -> None:
        self.ticks += 1
        self.requests += outcome.arrivals
        self.missed += outcome.violations
        self.pod_seconds += outcome.pod_seconds
        sign = np.sign(change).astype(np.float64)
        self.actions += sign != 0
        self.reversals += sign * self.last_sign < 0
        self.last_sign = np.where(sign != 0, sign, self.last_sign)
        self.within[:, :-1] += outcome.within
        self.within[:, -1] += outcome.served
        ready, need = outcome.ready.astype(np.float64), needed.astype(np.float64)
        excess = (ready - need) / need
        self.under += np.maximum(-excess, 0.0)
        self.over += np.maximum(excess, 0.0)
        self.time_under += excess < 0
        self.time_over += excess > 0
        if self.before is not None:
            self.unstable += np.sign(ready - self.before[0]) != np.sign(need - self.before[1])
        self.before = ready, need

    def figures(self, capacity_rps: Floats, threshold_s: Floats) -> NDArray[np.float64]:
        judged = score(self.requests, self.missed, self.pod_seconds, capacity_rps)
        hours, ticks = self.ticks * TICK_S / 3600.0, float(self.ticks)
        return np.stack(
            [
                judged.cost,
                judged.violation,
                judged.adjusted,
                self.actions / hours,
                self.reversals / hours,
                *(threshold_s * histogram_quantile(q, LATENCY_EDGES_RATIO, self.within) for q in QUANTILES),
                self.under / ticks,
                self.over / ticks,
                self.time_under / ticks,
                self.time_over / ticks,
                self.unstable / max(ticks - 1.0, 1.0),
            ]
        )
