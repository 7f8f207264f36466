"""Policies at work on synthetic workloads: constant rows of the action table cheaply, an actor with all it sees.

The operator's own decision program runs here, so what an actor learns on is what it will be shown. A constant row
needs no observation: leaving that out makes the sweep over the table several times cheaper, with the same replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy_policy import actions, decision, signals
from understudy_policy.rows import take
from understudy_policy.signals import Signal
from understudy_simulator import cluster
from understudy_simulator.cluster import Draws, Outcome
from understudy_simulator.score import score
from understudy_trainer.workloads import PAST_TICKS, TICK_S, Floats, Workloads

HEADROOM = 1.3
"""Ready pods at the start over the demand of that moment."""

SWEEP_ROWS = 1600
"""Rows that a sweep steps at once: enough to hide Python's overhead, few enough to stay in the cache."""

Choose = Callable[[int, Floats, NDArray[np.bool_]], Floats]
"""`(tick, features [N, F], allowed [N, A]) → probabilities [N, A]`, asked at every decision of the actor."""


@dataclass(frozen=True)
class Result:
    """What policies cost; arrays of one shape.

    Attributes:
        cost: pod-seconds over the demand.
        violation: share of requests that missed the objective.
    """

    cost: NDArray[np.float64]
    violation: NDArray[np.float64]

    def adjusted(self, price: Floats, slo_target: Floats) -> NDArray[np.float64]:
        """Cost plus the price of every missed request beyond the objective; arguments are broadcast."""
        return self.cost + price * np.maximum(self.violation - (1.0 - slo_target), 0.0)


class _World:
    """Workloads in motion, with the sums that are judged."""

    def __init__(self, workloads: Workloads) -> None:
        self.workloads = workloads
        config, settings = workloads.cluster, workloads.settings
        demand = workloads.first_rps / config.service.capacity_rps
        self.replicas = np.clip(np.ceil(HEADROOM * demand), settings.min_replicas, settings.max_replicas)
        single = config.startup.dtype
        self.state = cluster.initial(config, self.replicas.astype(single), workloads.first_rps.astype(single))
        self.ready = self.replicas
        self.sums = np.zeros((3, len(self.replicas)))

    def signals(self) -> NDArray[np.float64]:
        """`[N, S]` as the operator's queries return them."""
        values: NDArray[np.float64] = cluster.observe(self.workloads.cluster, self.state).astype(np.float64)
        return values

    def step(self, tick: int, replicas: NDArray[np.float64]) -> None:
        """Let a tick pass with so many replicas."""
        own = self.workloads
        chance = Draws(startup=own.startup_draws[:, tick], service=own.service_draws[:, tick])
        outcome: Outcome
        self.state, outcome = cluster.step(
            own.cluster, self.state, replicas.astype(own.arrivals.dtype), own.arrivals[:, tick], chance
        )
        self.replicas, self.ready = replicas, outcome.ready
        self.sums += np.stack([outcome.arrivals, outcome.violations, outcome.pod_seconds])

    def result(self) -> Result:
        arrivals, violations, pod_seconds = self.sums
        judged = score(arrivals, violations, pod_seconds, self.workloads.cluster.service.capacity_rps)
        return Result(judged.cost, judged.violation)


def play(
    workloads: Workloads, choose: Choose, record: Callable[[Floats], None] = lambda features: None
) -> Result:
    """Let an actor write the replicas of all workloads, through the whole decision program but the guards.

    Args:
        workloads: where.
        choose: the actor.
        record: is given the features `[N, F]` of every decision.

    Returns:
        What it cost, `[N]` each.
    """
    world, settings = _World(workloads), workloads.settings
    count = len(world.replicas)
    state = _with_past(workloads)
    known = np.zeros((count, len(Signal)), np.int64)
    probabilities: Floats = np.full((count, len(actions.TABLE)), np.nan)
    for tick in range(workloads.ticks):
        seen = decision.Seen(
            samples=signals.Samples(world.signals(), np.zeros((count, len(Signal))), known),
            replicas=world.replicas.astype(np.int64),
            ready=world.ready.astype(np.int64),
            authority=np.ones(count),
            override=np.full(count, -1),
            killed=np.zeros(count, np.int64),
            now_s=(PAST_TICKS + tick) * TICK_S,
        )
        state, observation = decision.observe(settings, state, seen)
        if tick % actions.DECISION_TICKS == 0:
            record(observation.features)
            probabilities = choose(tick, observation.features, observation.allowed)
        state, decided = decision.decide(settings, state, observation, probabilities)
        world.step(tick, decided.proposal.astype(np.float64))
    return world.result()


def _with_past(workloads: Workloads) -> decision.State:
    state = decision.initial_state(len(workloads.first_rps))
    blocks = workloads.past_blocks_rps.shape[1]
    state.history.blocks[:, :blocks] = workloads.past_blocks_rps
    state.history.block_head = blocks - 1
    for tick in range(PAST_TICKS):
        state.history.advance(tick * TICK_S, workloads.past_rps[:, tick])
    return state


def sweep(workloads: Workloads, progress: Callable[[float], None] = lambda share: None) -> Result:
    """What every constant row of the action table costs on every workload, `[N, A]` each.

    Args:
        workloads: where.
        progress: is told the share that is done.
    """
    count, width = len(workloads.first_rps), len(actions.TABLE)
    cost, violation = np.empty((count, width)), np.empty((count, width))
    rules = [np.flatnonzero(rule == actions.ROW_RULE) for rule in range(actions.RULES)]
    chunks = list(_chunks(count, SWEEP_ROWS // max(len(rows) for rows in rules)))
    for done, chunk in enumerate(chunks):
        for rows in rules:
            result = _constant(take(workloads, np.repeat(chunk, len(rows))), np.tile(rows, len(chunk)))
            cost[np.ix_(chunk, rows)] = result.cost.reshape(len(chunk), -1)
            violation[np.ix_(chunk, rows)] = result.violation.reshape(len(chunk), -1)
        progress((done + 1) / len(chunks))
    return Result(cost, violation)


def _chunks(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _constant(workloads: Workloads, row: NDArray[np.int64]) -> Result:
    """One constant row per workload, all of one rule."""
    world, settings, first = _World(workloads), workloads.settings, actions.TABLE[row[0]]
    kept = actions.CARRY_TICKS + 1 if first.carried else first.window_ticks
    recent = np.empty((kept, len(row)), np.float32)
    for age in range(1, kept + 1):
        recent[-age] = workloads.past_rps[:, -age]
    rates = np.empty((len(row), actions.RULES), np.float32)
    for tick in range(workloads.ticks):
        now, oldest = tick % kept, (tick + 1) % kept
        recent[now] = world.signals()[:, Signal.REQUEST_RATE]
        if first.carried:
            rates[:] = actions.carried_forward(recent[now], recent[oldest])[:, None]
        else:
            rates[:] = np.fmax.reduce(recent, axis=0)[:, None]
        asked = actions.replicas_of(row, rates, settings.given_capacity_rps)
        world.step(tick, np.clip(asked, settings.min_replicas, settings.max_replicas))
    return world.result()
