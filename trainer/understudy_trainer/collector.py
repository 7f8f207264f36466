"""Experience, collected on the device that learns: a rollout of T steps in N rows without one look from the host."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import actor_critic, distributed
from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.environment import Environment, Step, View


@dataclass
class Rollout:
    """What was seen, done and earned in T steps of N rows.

    Attributes:
        observation: `[T, N, F]` before the action.
        mask: `[T, N, A]` bool, or None.
        started: `[T, N]` bool, the observation is the first of its episode.
        memory: `[N, H]` before the first step.
        action: `[T, N]` int64.
        log_prob: `[T, N]` of the action as it was drawn.
        value: `[T, N, V]` in units of the scaled reward.
        reward: `[T, N, V]` scaled reward, then the constraint's cost where there is one.
        terminated, truncated: `[T, N]` bool.
        final_value: `[T, N, V]` of the last state of episodes that were truncated; zero elsewhere.
        last_value: `[N, V]` of the states after the last step.
        raw_reward: `[T, N]` as the environment gave it.
        episode_return: `[T, N]` raw sum of rewards up to and with this step of the episode.
        episode_steps: `[T, N]` float32, steps of the episode up to and with this one.
    """

    observation: Tensor
    mask: Tensor | None
    started: Tensor
    memory: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_value: Tensor
    last_value: Tensor
    raw_reward: Tensor
    episode_return: Tensor
    episode_steps: Tensor

    @property
    def ended(self) -> Tensor:
        """`[T, N]` terminated or truncated."""
        return self.terminated | self.truncated

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, for a file."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class RewardConfig:
    """Size of the rewards that the learner sees. It is decisive for ACKTR and harmless for the others."""

    scale: float = Field(default=1.0, gt=0)
    """Every reward is multiplied by this."""
    adapt: bool = False
    """Divide by the running standard deviation of the discounted return, one for each class of reward."""
    classes: int = Field(default=1, ge=1)
    """Classes of reward that the environment tells apart."""


class RewardScaler:
    """Brings rewards to the order of one without moving their zero, which would change what is best."""

    def __init__(self, config: RewardConfig, gamma: float, rows: int, device: torch.device) -> None:
        self.config = config
        self.gamma = gamma
        self.discounted = torch.zeros(rows, device=device)
        self.count = torch.zeros(config.classes, dtype=torch.float64, device=device)
        self.mean = torch.zeros_like(self.count)
        self.variance = torch.zeros_like(self.count)

    def __call__(self, reward: Tensor, ended: Tensor, reward_class: Tensor | None) -> Tensor:
        """Rewards `[T, N]` scaled; `ended` `[T, N]`, `reward_class` `[T, N]` or None."""
        if not self.config.adapt:
            return reward * self.config.scale
        returns = torch.empty_like(reward)
        for t in range(len(reward)):
            returns[t] = self.discounted = self.discounted * self.gamma + reward[t]
            self.discounted = torch.where(ended[t], 0.0, self.discounted)
        index = torch.zeros_like(ended, dtype=torch.int64) if reward_class is None else reward_class
        self._merge(returns.double().flatten(), index.flatten())
        deviation = self.variance.sqrt().clamp(min=1e-8)
        # A class that was never seen to vary yet is left alone.
        factor = torch.where(self.variance > 0, self.config.scale / deviation, self.config.scale)
        return reward * factor.to(reward.dtype)[index]

    def _merge(self, rows: Tensor, index: Tensor) -> None:
        empty = torch.zeros_like(self.count)
        count = distributed.total(empty.index_add(0, index, torch.ones_like(rows)))
        mean = distributed.total(empty.index_add(0, index, rows)) / count.clamp(min=1.0)
        spread = distributed.total(empty.index_add(0, index, (rows - mean[index]) ** 2))
        variance = spread / count.clamp(min=1.0)
        total = self.count + count
        share = count / total.clamp(min=1.0)
        delta = mean - self.mean
        self.variance = (1 - share) * self.variance + share * variance + share * (1 - share) * delta * delta
        self.mean = self.mean + share * delta
        self.count = total

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next scaling depends on."""
        return {
            "discounted": self.discounted,
            "count": self.count,
            "mean": self.mean,
            "variance": self.variance,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        for name, tensor in state.items():
            setattr(self, name, tensor.to(self.discounted.device, copy=True))


class Collector:
    """Acts in an environment and keeps what happens."""

    def __init__(
        self,
        environment: Environment,
        model: ActorCritic,
        steps: int,
        generator: torch.Generator,
        scaler: RewardScaler,
        compiled: bool = False,
    ) -> None:
        """Begin episodes in all rows.

        Args:
            environment: where to act.
            model: who acts; on the environment's device.
            steps: T of every rollout.
            generator: source of the actions, on the same device.
            scaler: of the rewards.
            compiled: fuse the network's forward pass by `torch.compile`.
        """
        self.environment = environment
        self.model = model
        self.steps = steps
        self.generator = generator
        self.scaler = scaler
        self._act = torch.compile(actor_critic.act, dynamic=False) if compiled else actor_critic.act
        self.restart()

    def restart(self) -> None:
        """Begin new episodes in all rows, and forget those that were going on."""
        rows, device = self.environment.num_envs, self.environment.device
        self.view: View = self.environment.reset()
        self.memory = self.model.initial_memory(rows)
        self.started = torch.ones(rows, dtype=torch.bool, device=device)
        self.episode_return = torch.zeros(rows, device=device)
        self.episode_steps = torch.zeros(rows, device=device)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Act for T steps."""
        heads = self.model.critic.out_features
        first_memory = self.memory
        steps: list[Step] = []
        views, started, actions, log_probs, values, finals = [], [], [], [], [], []
        episode_returns, episode_steps = [], []
        for _ in range(self.steps):
            view = self.view
            action, log_prob, value, memory = self._act(
                self.model, view.observation, view.mask, self.memory, self._uniform()
            )
            step = self.environment.step(action)
            ended = step.terminated | step.truncated
            final = torch.zeros_like(value)
            if step.final_observation is not None:
                final = self._value(step.final_observation, memory)
                final = torch.where(step.truncated.unsqueeze(-1), final, 0.0)
            self.episode_return = self.episode_return + step.reward
            self.episode_steps = self.episode_steps + 1.0

            steps.append(step)
            views.append(view)
            started.append(self.started)
            actions.append(action)
            log_probs.append(log_prob)
            values.append(value)
            finals.append(final)
            episode_returns.append(self.episode_return)
            episode_steps.append(self.episode_steps)

            self.view = step.view
            self.started = ended
            self.memory = torch.where(ended.unsqueeze(-1), 0.0, memory)
            self.episode_return = torch.where(ended, 0.0, self.episode_return)
            self.episode_steps = torch.where(ended, 0.0, self.episode_steps)
        last = self._value(self.view.observation, self.memory)

        terminated = torch.stack([step.terminated for step in steps])
        truncated = torch.stack([step.truncated for step in steps])
        raw = torch.stack([step.reward for step in steps])
        classes = [step.reward_class for step in steps if step.reward_class is not None]
        reward = [self.scaler(raw, terminated | truncated, torch.stack(classes) if classes else None)]
        if heads > 1:
            costs = [step.cost for step in steps if step.cost is not None]
            if len(costs) < len(steps):
                raise ValueError(
                    "a constraint is set but the environment tells no cost; give Step.cost or drop it"
                )
            reward.append(torch.stack(costs))
        masks = [view.mask for view in views if view.mask is not None]
        return Rollout(
            observation=torch.stack([view.observation for view in views]),
            mask=torch.stack(masks) if masks else None,
            started=torch.stack(started),
            memory=first_memory,
            action=torch.stack(actions),
            log_prob=torch.stack(log_probs),
            value=torch.stack(values),
            reward=torch.stack(reward, dim=-1),
            terminated=terminated,
            truncated=truncated,
            final_value=torch.stack(finals),
            last_value=last,
            raw_reward=raw,
            episode_return=torch.stack(episode_returns),
            episode_steps=torch.stack(episode_steps),
        )

    def _uniform(self) -> Tensor:
        shape = (self.environment.num_envs, self.environment.num_actions)
        return torch.rand(shape, generator=self.generator, device=self.environment.device)

    def _value(self, observation: Tensor, memory: Tensor) -> Tensor:
        return self.model.value_scale.natural(self.model(observation, None, memory).value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next rollout depends on, the model apart."""
        return {
            "environment": self.environment.state_dict(),
            "observation": self.view.observation,
            "mask": self.view.mask,
            "memory": self.memory,
            "started": self.started,
            "episode_return": self.episode_return,
            "episode_steps": self.episode_steps,
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; where the environment saved no state, with new episodes."""
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"].cpu())
        if not state["environment"]:
            self.restart()
            return
        self.environment.load_state_dict(state["environment"])
        self.view = View(state["observation"], state["mask"])
        self.memory, self.started = state["memory"], state["started"]
        self.episode_return, self.episode_steps = state["episode_return"], state["episode_steps"]
