"""Stable-Baselines3 on Gymnasium's vector environments, which it does not take by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv


def as_vec_env(envs: VectorEnv[Any, Any, Any]) -> Any:
    """A Gymnasium vector environment that begins anew in the same step, as Stable-Baselines3 wants one."""
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor

    class Wrapped(VecEnv):
        def __init__(self) -> None:
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self) -> Any:
            seen, _ = envs.reset(seed=self._seeds[0])
            self._reset_seeds()
            return seen

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            seen, reward, terminated, truncated, found = envs.step(self.actions)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            for i in np.flatnonzero(terminated | truncated):
                infos[i] = {
                    "terminal_observation": found["final_obs"][i],
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                }
            return seen, np.asarray(reward, np.float32), terminated | truncated, infos

        def close(self) -> None:
            envs.close()

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(envs, attr_name, None)] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

    return VecMonitor(Wrapped())
