"""The audition as Gymnasium environments, so that anybody's learner can be tried on it.

Importing this module registers `understudy/Autoscale-v0`; `gymnasium.make` and `make_vec` import it by themselves when
asked for `understudy_simulator.gymnasium:understudy/Autoscale-v0`. An action is a row of the action table and lasts a
minute; an observation is the decision program's features; an episode never ends by itself, it is cut off.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from understudy_policy.actions import DECISION_TICKS, TABLE
from understudy_policy.features import F
from understudy_simulator import audition, scenario
from understudy_simulator.audition import Episode, State, Terms
from understudy_simulator.scenario import TICK_S, Ranges, Stock

ID = "understudy/Autoscale-v0"

Floats = NDArray[np.float32]
Info = dict[str, Any]


class AutoscaleVectorEnv(VectorEnv[Floats, NDArray[np.int64], NDArray[Any]]):
    """Many workloads at once, drawn anew from everything a service may be in every episode.

    The reward of a decision is minus its cost (pod-seconds over what the mean demand keeps busy), minus the
    workload's price times its misses (over the mean arrivals), minus `change_price` times the share of ticks at which
    replicas were changed; the three terms are in `info`. With a `reference_row`, what that constant row would have
    earned on the same arrivals and start-ups is taken off it, and most of the noise with it.

    All episodes are equally long, so all are truncated together; the next ones begin in the same step, and
    `info["final_obs"]` holds the last observations of the old ones.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012, as in Gymnasium

    _episode: Episode
    _state: State
    _rehearsed: Terms | None
    _done: int

    def __init__(
        self,
        num_envs: int = 1,
        episode_s: float = 7200.0,
        ranges: Ranges | None = None,
        reference_row: int | None = None,
        change_price: float = 0.02,
        curves: int = 256,
        render_mode: str | None = None,
    ) -> None:
        """Make the environment.

        Args:
            num_envs: workloads at once.
            episode_s: length of an episode, a multiple of a minute.
            ranges: what workloads may be; everything by default.
            reference_row: row of the action table that rewards are compared with; None: with nothing.
            change_price: price of changing the replicas.
            curves: load curves of either length that episodes are cut from; always the same ones.
            render_mode: nothing is rendered.
        """
        self.ticks = round(episode_s / TICK_S)
        if self.ticks < 4 or self.ticks % DECISION_TICKS or self.ticks * TICK_S != episode_s:
            raise ValueError(f"episode_s is {episode_s:g}; give a multiple of 60 s.")
        if reference_row is not None and not 0 <= reference_row < len(TABLE):
            raise ValueError(f"reference_row is {reference_row}; the table has rows 0 to {len(TABLE) - 1}.")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.ranges, self.reference_row, self.change_price = ranges or Ranges(), reference_row, change_price
        self.stock = _stock(curves, self.ticks, self.ranges.families)
        self.single_observation_space = spaces.Box(-20.0, 20.0, (F,), np.float32)
        self.single_action_space = spaces.Discrete(len(TABLE))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats, Info]:  # type: ignore[override]
        """Begin new episodes in all rows."""
        super().reset(seed=seed)  # type: ignore[arg-type]
        return self._begin(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """Let each row of the table rule its workload for a minute."""
        self._state, seen, terms = audition.step(self._episode, self._state, np.asarray(actions, np.int64))
        reward = self._reward(terms)
        if self._rehearsed is not None:
            past = self._rehearsed
            reward = reward - self._reward(
                Terms(past.cost[:, self._done], past.missed[:, self._done], past.changes[:, self._done])
            )
        self._done += 1
        over = self._done == self._episode.decisions
        info: Info = dict(vars(terms))
        if over:
            info["final_obs"] = seen
            seen = self._begin()
        flags = np.full(self.num_envs, over)
        return seen, reward.astype(np.float64), np.zeros(self.num_envs, bool), flags, info

    def _begin(self) -> Floats:
        self._episode = scenario.draw(self.num_envs, self.ticks, self.stock, self.np_random, self.ranges)
        row = self.reference_row
        self._rehearsed = (
            None if row is None else audition.rehearse(self._episode, np.full(self.num_envs, row))
        )
        self._done = 0
        self._state, seen = audition.reset(self._episode)
        observation: Floats = seen
        return observation

    def _reward(self, terms: Terms) -> Floats:
        reward: Floats = terms.reward(self._episode.settings.missed_request_price, self.change_price)
        return reward


class AutoscaleEnv(gymnasium.Env[Floats, np.int64]):
    """One workload; see `AutoscaleVectorEnv`, whose arguments it takes but for `num_envs`."""

    metadata = {"render_modes": []}  # noqa: RUF012, as in Gymnasium

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        """Make the environment."""
        self.render_mode = render_mode
        self._many = AutoscaleVectorEnv(num_envs=1, **options)
        self.observation_space = self._many.single_observation_space
        self.action_space = self._many.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats, Info]:
        """Begin a new episode."""
        super().reset(seed=seed)
        self._many.np_random = self.np_random
        seen, _ = self._many.reset()
        return seen[0].copy(), {}

    def step(self, action: np.int64) -> tuple[Floats, float, bool, bool, Info]:
        """Let a row of the table rule for a minute."""
        seen, reward, _, truncated, info = self._many.step(np.array([action]))
        last = info.pop("final_obs", seen)[0].copy()
        terms = {name: float(value[0]) for name, value in info.items()}
        return last, float(reward[0]), False, bool(truncated[0]), terms


@lru_cache(maxsize=4)
def _stock(curves: int, ticks: int, families: tuple[str, ...]) -> Stock:
    """Curves that every environment of these settings shares: a seed shall say all else."""
    return scenario.stock(curves, np.random.default_rng(0), ticks, families)


gymnasium.register(
    ID, entry_point=f"{__name__}:AutoscaleEnv", vector_entry_point=f"{__name__}:AutoscaleVectorEnv"
)
