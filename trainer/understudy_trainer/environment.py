"""What a learner asks of a world: many rows stepped at once on one device, and the truth about how episodes end.

`terminated` and `truncated` are different things: behind a terminated state nothing follows and its value is zero,
behind a truncated one life goes on and only the recording stops. A world that replays traces truncates every episode,
so whoever mixes the two up learns that the future is worthless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class View(NamedTuple):
    """What is seen before a decision.

    Attributes:
        observation: `[N, F]` float32.
        mask: `[N, A]` True where an action is allowed, at least one per row; None: all of them always are.
    """

    observation: Tensor
    mask: Tensor | None = None


class Step(NamedTuple):
    """What a decision led to. Rows whose episode ended have begun a new one already (autoreset in the same step).

    Attributes:
        view: what is seen now, in ended rows of the new episode.
        reward: `[N]` float32.
        terminated: `[N]` bool, nothing follows.
        truncated: `[N]` bool, the episode was cut off but would have gone on.
        final_observation: `[N, F]`, what was seen last in rows that were truncated (other rows: anything). None where
            the world knows, without asking the device, that no row was.
        cost: `[N]` what a constraint bounds the mean of; None where there is no constraint.
        reward_class: `[N]` int64, class of reward magnitude that a row belonged to in this step; None: all the same.
    """

    view: View
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Tensor | None = None
    cost: Tensor | None = None
    reward_class: Tensor | None = None


class Environment(Protocol):
    """A batch of `num_envs` independent episodes on one device. Draws come from generators of its own, seeded by it."""

    num_envs: int
    observation_size: int
    num_actions: int
    device: torch.device
    hints: int
    """Columns at the end of an observation that only a critic may see, since no actor will have them later."""

    def reset(self) -> View:
        """Begin new episodes in all rows."""

    def step(self, action: Tensor) -> Step:
        """Act in all rows.

        Args:
            action: `[N]` int64. The environment must neither keep nor change it.

        Returns:
            Tensors that later steps do not overwrite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, generators included: tensors, numbers and strings only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class EnvironmentFactory(Protocol):
    """Makes environments; must be picklable where several processes are to learn (a function of a module is)."""

    def __call__(self, seed: int) -> Environment:
        """A fresh environment whose draws all follow from the seed."""


class GymnasiumEnvironment:
    """A Gymnasium vector environment with discrete actions as an `Environment`.

    A run on it resumes with fresh episodes, not with the interrupted ones: Gymnasium cannot save a state.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int) -> None:
        """Wrap `envs`.

        Raises:
            ValueError: its autoreset is not SAME_STEP, or its actions are not discrete.
        """
        import gymnasium
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode of {envs} is {mode}; make it with "
                'vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}'
            )
        if not isinstance(envs.single_action_space, gymnasium.spaces.Discrete):
            raise ValueError(
                f"action space of {envs} is {envs.single_action_space}; only Discrete can be learned"
            )
        self.envs = envs
        self.seed: int | None = seed
        self.num_envs = envs.num_envs
        self.num_actions = int(envs.single_action_space.n)
        self.observation_size = int(np.prod(envs.single_observation_space.shape or (1,)))
        self.device = torch.device("cpu")
        self.hints = 0

    def reset(self) -> View:
        """See `Environment`; the seed is used once."""
        observation, info = self.envs.reset(seed=self.seed)
        self.seed = None
        return self._view(observation, info)

    def step(self, action: Tensor) -> Step:
        """See `Environment`."""
        observation, reward, terminated, truncated, info = self.envs.step(action.numpy())
        final = None
        if truncated.any():
            final = np.array(observation, np.float32).reshape(self.num_envs, -1)
            for i in np.flatnonzero(truncated):
                final[i] = np.ravel(info["final_obs"][i])
        return Step(
            self._view(observation, info),
            torch.from_numpy(np.array(reward, np.float32)),
            torch.from_numpy(np.array(terminated, bool)),
            torch.from_numpy(np.array(truncated, bool)),
            None if final is None else torch.from_numpy(final),
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see the class."""

    def _view(self, observation: Any, info: dict[str, Any]) -> View:
        seen = torch.from_numpy(np.array(observation, np.float32).reshape(self.num_envs, -1))
        mask = info.get("action_mask")
        return View(seen, None if mask is None else torch.from_numpy(np.stack(mask).astype(bool)))
