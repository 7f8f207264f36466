"""The world that a policy is trained in: thousands of made-up services, each lived through beside a calibrated rule.

What an actor earns is the *difference* to what a constant row of its own action table earned on the very same arrivals
and start-ups. The load is an input that no action changes and most of what a return varies by, so this takes away most
of the noise (in the literature: input-dependent baselines, arXiv:1807.02264; common random numbers). Nothing is lost:
a number that no action changes does not change which action is best. The difference is told in units of a usual
cost, so that a service in trouble does not shout the others down, whatever its preference.

For the same reason the critic may look ahead, by `hints` that the actor never sees.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_policy import actions, features
from understudy_policy.actions import DECISION_TICKS, Row
from understudy_policy.rows import as_torch_or_numpy, map_rows
from understudy_simulator import audition, scenario
from understudy_simulator.audition import AIM_ROWS, Episode, State, Terms
from understudy_simulator.generators import FAMILIES
from understudy_trainer import config as command_line
from understudy_trainer.environment import Step, View
from understudy_trainer.hints import HINTS, what_comes

Source = Callable[[np.random.Generator, "AutoscalingConfig"], Episode]
"""Draws the services of a batch, in NumPy."""

REFERENCE_ROWS = tuple(
    actions.TABLE.index(row)
    for row in (Row(4, 0.95), Row(20, 0.58), Row(20, 0.75), Row(20, 0.95), Row(60, 0.66), Row(60, 0.84))
)
"""Rows that the reference is calibrated over. A few do: it only has to be good, the best of them all is not needed."""

ALIKE = 128
"""Services on either side in the order of prices that say what is usual at a price."""


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class AutoscalingConfig:
    """The world to learn in."""

    workloads: int = Field(default=2048, ge=1)
    """Services at once."""
    episode_ticks: int = Field(default=480, ge=DECISION_TICKS, multiple_of=DECISION_TICKS)
    """Length of an episode in ticks of 15 s; then it is truncated."""
    moments: int = Field(default=4, ge=1)
    """Times at which every service of a batch is met; how it is scaled best is known from the others. With 1 nobody is
    told anything, and `own_share` should be lower."""
    uncalibrated_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the moments at which nobody has looked how the service is scaled best."""
    curves: int = Field(default=256, ge=len(FAMILIES))
    """Loads drawn for a batch of services; each serves several, at other times and paces."""
    batches: int = Field(default=6, ge=1)
    """Batches of services kept at hand and lived through in turn."""
    lives: int = Field(default=8, ge=1)
    """Times that a batch is lived through, each time with prices of its own, before another is drawn in its place."""
    change_price: float = Field(default=0.005, ge=0)
    """Price of changing replicas in every tick, in units of the mean demand: without one, a policy flaps."""
    price_low: float = Field(default=0.5, gt=0)
    """Lowest price of a missed request, in units of the pod time that a request takes."""
    price_high: float = Field(default=40.0, gt=0)
    """Highest price."""
    own_share: float = Field(default=0.75, ge=0, le=1)
    """Weight of what a service pays over all of its moments, at its price, in the unit of its rewards; the rest is what
    others pay at the price. Of one moment alone, trouble would be divided by itself, and spikes would hardly matter."""
    hints: bool = True
    """Let the critic, never the actor, see what is coming: the load, and what the reference will pay for it."""
    compiled: bool = False
    """Fuse the cluster model by `torch.compile`: minutes at the start, many times faster afterwards."""


@dataclass
class Batch:
    """Services and what the reference rows cost on them.

    Attributes:
        number: that all its draws follow from.
        episode: on the device; its prices are drawn anew in every life.
        rehearsed: every field is `[K, N, D]`, of `REFERENCE_ROWS`.
        over_moments: the same, the mean over the decisions of all moments of a service: `[K, N]`.
        elsewhere: of `AIM_ROWS`, summed over the other moments of a service: `[len(AIMS), N]`; None where nobody is
            told.
        lives: begun so far.
    """

    number: int
    episode: Episode
    rehearsed: Terms
    over_moments: Terms
    elsewhere: Terms | None
    lives: int = 0


@dataclass(frozen=True)
class Played:
    """What a life was worth.

    Attributes:
        own, reference: to the actor and to the calibrated row; every field is `[N, D]`.
        price: `[N]` of a missed request.
    """

    own: Terms
    reference: Terms
    price: Tensor


class AutoscalingEnvironment:
    """Services on the cluster model as an `understudy_trainer.environment.Environment`.

    All rows begin and end their episodes together. Every batch and every life is a function of the seed and its
    number, so a run can be resumed exactly from a few numbers and the running state.
    """

    num_actions = len(actions.TABLE)

    def __init__(
        self,
        config: AutoscalingConfig,
        seed: int,
        device: str = "cpu",
        source: Source | None = None,
        program: audition.Program | None = None,
    ) -> None:
        """Make the world.

        Args:
            config: of the world.
            seed: of all draws.
            device: where everything lives.
            source: of the services, whose prices are not used; by default all that `scenario.Ranges` allows.
            program: compiled already, for as many workloads and ticks.
        """
        self.config = config
        self.source = source or made_up()
        self.hints = HINTS if config.hints else 0
        self.observation_size = features.F + self.hints
        self.seed = seed
        self.num_envs = config.workloads
        self.device = torch.device(device)
        if program is None:
            program = audition.compiled(_fused) if config.compiled else audition.PLAIN
        self.program = program
        self._batches: list[Batch | None] = [None] * config.batches
        self._state: State
        self._life = -1
        self._drawn = 0

    @torch.no_grad()
    def reset(self) -> View:
        """See `Environment`: the next life of the next batch."""
        self._life += 1
        slot = self._life % len(self._batches)
        batch = self._batches[slot]
        if batch is None or batch.lives >= self.config.lives:
            batch = self.draw(self._drawn)
            self._drawn += 1
        self._batches[slot] = batch
        batch.lives += 1
        return View(self._hinted(self._begin(batch)))

    @torch.no_grad()
    def play(self, batch: Batch, choose: Callable[[Tensor], Tensor]) -> Played:
        """Live through a batch apart from the running episode, which is lost.

        Args:
            batch: what `draw` gave.
            choose: rows `[N]` for observations `[N, F]`.
        """
        seen, passed = self._begin(batch), []
        for _ in range(self._episode.decisions):
            self._state, seen, terms = audition.step(self._episode, self._state, choose(seen), self.program)
            passed.append(terms)
        services = torch.arange(self.num_envs, device=self.device)
        return Played(
            own=Terms(
                **{f.name: torch.stack([getattr(t, f.name) for t in passed], 1) for f in fields(Terms)}
            ),
            reference=map_rows(lambda rehearsed: rehearsed[self._best, services], batch.rehearsed),
            price=self._price,
        )

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """See `Environment`: a decision."""
        self._state, seen, terms = audition.step(self._episode, self._state, action, self.program)
        own = terms.reward(self._price, self.config.change_price)
        reward = (own - self._reference[:, self._decision]) / self._unit
        self._decision += 1
        ended = torch.full_like(reward, self._decision == self._episode.decisions, dtype=torch.bool)
        final = None
        seen = self._hinted(seen)
        if self._decision == self._episode.decisions:
            final, seen = seen, self.reset().observation
        return Step(View(seen), reward, torch.zeros_like(ended), ended, final)

    def draw(self, number: int) -> Batch:
        """A batch of services and its rehearsals: a function of the seed and the number."""
        config = self.config
        rng = np.random.default_rng([self.seed, 0, number])
        episode = as_torch_or_numpy(self.source(rng, config), self._tensor)
        told = config.moments > 1 and config.uncalibrated_share < 1.0
        every = dict.fromkeys((*REFERENCE_ROWS, *AIM_ROWS) if told else REFERENCE_ROWS)
        terms = {
            row: audition.rehearse(
                episode, torch.full((config.workloads,), row, device=self.device), self.program
            )
            for row in every
        }

        def stacked(rows: tuple[int, ...]) -> Terms:
            return Terms(
                **{f.name: torch.stack([getattr(terms[row], f.name) for row in rows]) for f in fields(Terms)}
            )

        service = episode.service
        moments = torch.bincount(service)[service]
        rehearsed = stacked(REFERENCE_ROWS)
        aimed = map_rows(lambda v: v.mean(dim=2), stacked(AIM_ROWS)) if told else None
        return Batch(
            number,
            episode,
            rehearsed,
            over_moments=map_rows(lambda v: _by_service(v.mean(dim=2), service) / moments, rehearsed),
            elsewhere=map_rows(lambda v: _by_service(v, service) - v, aimed) if aimed else None,
        )

    def _begin(self, batch: Batch) -> Tensor:
        """Put prices on the misses, calibrate the reference for them, and look for the first time."""
        self._price_life(batch)
        self._state, seen = audition.reset(self._episode, self.program)
        self._decision = 0
        return seen

    def _price_life(self, batch: Batch) -> None:
        config = self.config
        rng = np.random.default_rng([self.seed, 1, batch.number, batch.lives])
        log_price = rng.uniform(math.log(config.price_low), math.log(config.price_high), config.workloads)
        self._price = self._tensor(np.exp(log_price).astype(np.float32))
        settings = replace(
            batch.episode.settings,
            missed_request_price=self._price,
            calibrated_price=self._price[:, None],
            calibrated_utilization=self._calibrated(batch, rng)[:, None],
        )
        self._episode = replace(batch.episode, settings=settings)
        earned = batch.rehearsed.reward(self._price[None, :, None], config.change_price)
        self._best = earned.sum(dim=2).argmax(dim=0)
        self.reference_row = torch.tensor(REFERENCE_ROWS, device=self.device)[self._best]
        services = torch.arange(config.workloads, device=self.device)
        self._reference = earned[self._best, services]
        usual = _alike(-self._reference.mean(dim=1), self._price)
        own = (batch.over_moments.cost + self._price * batch.over_moments.missed).amin(dim=0)
        self._unit = config.own_share * own + (1.0 - config.own_share) * usual
        if self.hints:
            pods = batch.rehearsed.cost[self._best, services]
            self._hints = what_comes(self._episode, -self._reference / self._unit[:, None], pods, self._unit)

    def _calibrated(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Utilisation `[N]` at which a service did best in its other moments; NaN for those that nobody looked at."""
        if batch.elsewhere is None:
            return torch.full_like(self._price, torch.nan)
        service = batch.episode.service
        alone = torch.bincount(service)[service] == 1
        unseen = self._tensor(rng.random(self.num_envs) < self.config.uncalibrated_share)
        best: Tensor = audition.best_aim(self._price, batch.elsewhere.cost, batch.elsewhere.missed)
        return torch.where(alone | unseen, torch.nan, best)

    def _hinted(self, seen: Tensor) -> Tensor:
        return torch.cat([seen, self._hints[self._decision]], dim=1) if self.hints else seen

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.asarray(array)).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """See `Environment`."""
        return {
            "life": self._life,
            "drawn": self._drawn,
            "decision": self._decision,
            "batches": [[batch.number, batch.lives] if batch else [-1, 0] for batch in self._batches],
            "state": _leaves(self._state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Environment`: batches are drawn again from their numbers."""
        self._life, self._drawn = state["life"], state["drawn"]
        for slot, (number, lives) in enumerate(state["batches"]):
            held = self._batches[slot]
            if number < 0:
                self._batches[slot] = None
                continue
            if held is None or held.number != number:
                held = self.draw(number)
            held.lives = lives
            self._batches[slot] = held
        current = self._batches[self._life % len(self._batches)]
        assert current is not None
        self._begin(current)
        self._state = _with_leaves(self._state, state["state"])
        self._decision = state["decision"]


def made_up(ranges: scenario.Ranges | None = None) -> Source:
    """Services that nobody has.

    Args:
        ranges: what they may be; by default everything.
    """
    allowed = ranges or scenario.Ranges()

    def draw(rng: np.random.Generator, config: AutoscalingConfig) -> Episode:
        own = scenario.stock(config.curves, rng, config.episode_ticks, allowed.families, config.moments)
        return scenario.draw(config.workloads, config.episode_ticks, own, rng, allowed, config.moments)

    return draw


def _by_service(values: Tensor, service: Tensor) -> Tensor:
    """Sums of values `[K, N]` over the moments of a service, for each of them."""
    total = values.new_zeros((len(values), int(service.max()) + 1))
    return total.index_add(1, service, values)[:, service]


def _alike(cost: Tensor, price: Tensor) -> Tensor:
    """Mean cost `[N]` of the services whose prices are nearest."""
    order = price.argsort()
    total = torch.cat([cost.new_zeros(1), cost[order].cumsum(dim=0)])
    place = torch.arange(len(cost), device=cost.device)
    low, high = (place - ALIKE).clamp(min=0), (place + ALIKE + 1).clamp(max=len(cost))
    return torch.empty_like(cost).scatter_(0, order, (total[high] - total[low]) / (high - low))


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    # What the array API's helpers cache is which library an array is of; that may be traced.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    # In one piece: a function must never fall apart into parts that are run one by one.
    fused: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return fused


def _leaves(structure: Any) -> list[Any]:
    """Tensors and numbers of a nested dataclass, in order."""
    found: list[Any] = []
    for field in fields(structure):
        value = getattr(structure, field.name)
        found += _leaves(value) if is_dataclass(value) else [value]
    return found


def _with_leaves(structure: State, leaves: list[Any]) -> State:
    """The same structure with other tensors and numbers."""
    rest = iter(leaves)

    def fill(part: Any) -> Any:
        return replace(
            part,
            **{
                field.name: fill(value) if is_dataclass(value) else next(rest)
                for field in fields(part)
                for value in [getattr(part, field.name)]
            },
        )

    filled: State = fill(structure)
    return filled
