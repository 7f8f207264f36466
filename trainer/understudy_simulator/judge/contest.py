"""One batch of cells, held in one pass: every configuration of everybody on every seed, past first.

The past is run by everyone with the same start, then the future with the same start again; memories (rings,
yesterday, the actor's history) carry on across the cut, as they would in a cluster. Who is chosen on the past
is decided later, from the figures: nothing here looks at a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from understudy_policy.references.rule import RuleSignals
from understudy_policy.rows import shared, take
from understudy_simulator.clairvoyant import Bound, bound
from understudy_simulator.judge.world import FIGURES, Floats, Ints, Luck, World
from understudy_simulator.protocol import STARTUP_SIGMA, TICK_S, Cell, draw, expected_rps


@dataclass(frozen=True)
class Where:
    """The row that a configuration is placed in; every field is `[N]`, where nothing else is said.

    Attributes:
        cell: int64, which of the cells that are held together.
        half_past_s, past_s: where the second half of the past begins, and where the future does.
        capacity_rps: requests per second of one pod.
        service_s: mean service time.
        latency_threshold_s: of the objective.
        min_replicas, max_replicas: int64.
        static_replicas: int64, the 95th percentile of the past's demand in pods.
        startup_s: median start-up.
        future_rps: `[cells, T]` the rate that arrivals are drawn around, from the beginning to the end: for nobody but
            the perfect forecast.
        aim_cost, aim_violation: `[N, K]` on the past, of a rule over five minutes at each of `audition.AIMS`; None:
            nobody looked.
    """

    cell: Ints
    half_past_s: Floats
    past_s: Floats
    capacity_rps: Floats
    service_s: Floats
    latency_threshold_s: Floats
    min_replicas: Ints
    max_replicas: Ints
    static_replicas: Ints
    startup_s: Floats
    future_rps: Floats = shared()
    aim_cost: Floats | None = None
    aim_violation: Floats | None = None


class Player(Protocol):
    """Decides for a block of rows, tick after tick."""

    def decide(self, values: Floats, seen: RuleSignals, now_s: float) -> Ints:
        """Replicas to have from now on, int64 `[N]`, from all signals `[N, S]` or those of the rules."""


@dataclass(frozen=True)
class Entrant:
    """A rule or a policy with all configurations that it is calibrated over.

    Attributes:
        name: `hpa`, `keda`, `row`, …; of a policy, its file's name.
        labels: one per configuration, for people.
        play: makes the player of N rows, given the configuration of each (int64 `[N]`) and where it is placed.
        policy: whether this is a learned policy.
    """

    name: str
    labels: tuple[str, ...]
    play: Callable[[Ints, Where], Player]
    policy: bool = False


@dataclass(frozen=True)
class CellResult:
    """Everything that is known of a cell afterwards.

    Attributes:
        entrants: name of the entrant of every configuration, C of them.
        labels: what it is.
        past, future: `[len(FIGURES), C, seeds]`.
        bound: `[seeds]` clairvoyant adjusted cost of the future.
        replicas: `[T, C]` int16 replicas in the future of the first seed.
        demand_pods: `[T]` what its arrivals would fill, per minute.
        needed: `[T]` pods that they needed.
    """

    entrants: tuple[str, ...]
    labels: tuple[str, ...]
    past: NDArray[np.float64]
    future: NDArray[np.float64]
    bound: NDArray[np.float64]
    replicas: NDArray[np.int16]
    demand_pods: NDArray[np.float64]
    needed: NDArray[np.int64]


def hold(cells: Sequence[Cell], entrants: Sequence[Entrant], aims: Entrant | None = None) -> list[CellResult]:
    """Run everybody on cells of equal length.

    Args:
        cells: with the same `ticks`, `past_ticks` and `seeds`.
        entrants: who takes part.
        aims: play the past before everybody else, so that policies can be told the best of them.

    Returns:
        One result per cell.
    """
    first = cells[0]
    if any((c.ticks, c.past_ticks, c.seeds) != (first.ticks, first.past_ticks, first.seeds) for c in cells):
        raise ValueError("cells differ in ticks, past_ticks or seeds; hold those that agree together.")
    chances = [draw(cell) for cell in cells]
    future = slice(first.past_ticks, None)
    bounds = [
        [
            bound(
                cell.service,
                chance.arrivals[seed, future],
                chance.service[seed, future],
                cell.startup_s,
                STARTUP_SIGMA,
                cell.start_replicas(first.past_ticks),
                cell.max_replicas,
                TICK_S,
            )
            for seed in range(cell.seeds)
        ]
        for cell, chance in zip(cells, chances, strict=True)
    ]
    luck, needed = Luck.of(chances), _needed(bounds, first.past_ticks)
    layout = _Layout(len(cells), first.seeds, [len(e.labels) for e in entrants])
    world = World(cells, luck, layout.run, needed)
    where = _where(cells)
    if aims is not None:
        cost, violation = _on_the_past(cells, luck, needed, aims, where)
        where = replace(where, aim_cost=cost, aim_violation=violation)
    where = take(where, world.cell)
    players = [
        entrant.play(layout.configuration[block], take(where, block))
        for entrant, block in zip(entrants, layout.blocks, strict=True)
    ]
    *figures, replicas = _run(world, players, layout, first)
    past, judged = (layout.by_cell(part) for part in figures)
    names = tuple(entrant.name for entrant in entrants for _ in entrant.labels)
    labels = tuple(label for entrant in entrants for label in entrant.labels)
    return [
        CellResult(
            entrants=names,
            labels=labels,
            past=past[k],
            future=judged[k],
            bound=np.array([one.adjusted for one in bounds[k]]),
            replicas=replicas[:, k],
            demand_pods=_per_minute(chance.arrivals[0, future].sum(axis=1))
            / (TICK_S * cell.service.capacity_rps),
            needed=bounds[k][0].needed,
        )
        for k, (cell, chance) in enumerate(zip(cells, chances, strict=True))
    ]


def _on_the_past(
    cells: Sequence[Cell], luck: Luck, needed: Ints, entrant: Entrant, where: Where
) -> tuple[Floats, Floats]:
    """Mean cost and violation `[cells, configurations]` of somebody who plays the past alone."""
    layout = _Layout(len(cells), cells[0].seeds, [len(entrant.labels)])
    world = World(cells, luck, layout.run, needed)
    player = entrant.play(layout.configuration, take(where, world.cell))
    for _ in _play(world, [player], layout, range(cells[0].past_ticks)):
        pass
    figures = layout.by_cell(world.figures()).mean(axis=-1)
    return figures[:, FIGURES.index("cost")], figures[:, FIGURES.index("violation")]


class _Layout:
    """Where each configuration of each entrant sits: entrant by entrant, then cell, configuration, seed."""

    def __init__(self, cells: int, seeds: int, sizes: Sequence[int]) -> None:
        self.blocks: list[slice] = []
        self._shapes = [(cells, size, seeds) for size in sizes]
        runs, configurations, start = [], [], 0
        for shape in self._shapes:
            cell, configuration, seed = (axis.ravel() for axis in np.indices(shape))
            runs.append(cell * seeds + seed)
            configurations.append(configuration)
            self.blocks.append(slice(start, start + len(cell)))
            start += len(cell)
        self.run = np.concatenate(runs)
        self.configuration = np.concatenate(configurations)
        self.first_seed = self.run % seeds == 0

    def by_cell(self, values: NDArray[Any]) -> NDArray[Any]:
        """`[cells, ..., C, seeds]` from `[..., N]`."""
        parts = [
            values[..., block].reshape(*values.shape[:-1], *shape)
            for block, shape in zip(self.blocks, self._shapes, strict=True)
        ]
        return np.moveaxis(np.concatenate(parts, axis=-2), -3, 0)

    def of_first_seed(self, values: NDArray[Any]) -> NDArray[Any]:
        """`[T, cells, C]` from `[T, rows of the first seed]`."""
        parts, start = [], 0
        for cells, size, _ in self._shapes:
            parts.append(values[:, start : start + cells * size].reshape(-1, cells, size))
            start += cells * size
        return np.concatenate(parts, axis=2)


def _run(
    world: World,
    players: Sequence[Player],
    layout: _Layout,
    cell: Cell,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int16]]:
    """Figures of the past and of the future `[F, N]`, and the replicas of the first seed `[T, cells, C]`."""
    for _ in _play(world, players, layout, range(cell.past_ticks)):
        pass
    past = world.figures()
    most = np.iinfo(np.int16).max
    replicas = [
        np.minimum(wanted[layout.first_seed], most).astype(np.int16)
        for wanted in _play(world, players, layout, range(cell.past_ticks, cell.ticks))
    ]
    return past, world.figures(), layout.of_first_seed(np.stack(replicas))


def _play(world: World, players: Sequence[Player], layout: _Layout, ticks: range) -> Iterator[Ints]:
    """Let everybody play from a start of the world; what was asked for in each tick, `[N]`, as it passes."""
    world.begin(ticks.start)
    for tick in ticks:
        wanted = np.zeros(len(layout.run), np.int64)
        for player, block in zip(players, layout.blocks, strict=True):
            wanted[block] = player.decide(world.values[block], take(world.seen, block), tick * TICK_S)
        world.step(wanted)
        yield wanted


def _where(cells: Sequence[Cell]) -> Where:
    """Of every cell."""
    # Whole samples: one across the cut knows of the future.
    past = [c.curve.timestamp_s + c.curve.step_s <= c.past_ticks * TICK_S for c in cells]
    static = [
        max(1, int(np.ceil(np.quantile(c.curve.requests_per_second[p], 0.95) / c.service.capacity_rps)))
        for c, p in zip(cells, past, strict=True)
    ]
    return Where(
        cell=np.arange(len(cells)),
        half_past_s=np.array([c.half_past_tick * TICK_S for c in cells]),
        past_s=np.array([c.past_ticks * TICK_S for c in cells]),
        capacity_rps=np.array([c.service.capacity_rps for c in cells]),
        service_s=np.array([c.service.service_s for c in cells]),
        latency_threshold_s=np.array([c.service.latency_threshold_s for c in cells]),
        min_replicas=np.ones(len(cells), np.int64),
        max_replicas=np.array([c.max_replicas for c in cells]),
        static_replicas=np.array(static),
        startup_s=np.array([c.startup_s for c in cells]),
        future_rps=np.stack([expected_rps(c).mean(axis=1) for c in cells]),
    )


def _needed(bounds: Sequence[Sequence[Bound]], past_ticks: int) -> Ints:
    """`[T, runs]`; 1 throughout the past, which nobody asks about."""
    needed = np.stack([one.needed for runs in bounds for one in runs], axis=1)
    return np.concatenate([np.ones((past_ticks, needed.shape[1]), np.int64), needed])


def _per_minute(values: Floats) -> NDArray[np.float64]:
    """Centred mean over a minute of ticks."""
    width = round(60.0 / TICK_S)
    return np.convolve(values, np.full(width, 1.0 / width), mode="same")
