"""What the four algorithms share: from a rollout to advantages, targets and the loss of an actor with a critic.

Nothing here waits for the device, so that the host can queue the whole update.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import actor_critic, distributed, returns
from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.optimizers import FlatParameters
from understudy_trainer.collector import Rollout
from understudy_trainer.constraint import ConstraintConfig, Multiplier

Metrics = dict[str, Tensor]
"""Scalars of an update, left on the device."""

NORMALIZER_ROWS = 8192
"""Observations of a rollout that move the normaliser: more would cost time and tell it nothing new."""

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class LearnerConfig:
    """Options that all algorithms know."""

    learning_rate: float = Field(default=7e-4, gt=0)
    """Size of a step at the begin."""
    final_learning_rate_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the learning rate that is left at the end of the run; it falls in a straight line."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount of one step."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """How far advantages look before they trust the critic; 1: to the end of the rollout (n-step)."""
    value_coefficient: float = Field(default=0.5, ge=0)
    """Weight of the critic's squared error in the loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the policy's entropy at the begin: against making up one's mind too early."""
    final_entropy_coefficient: float | None = Field(default=None, ge=0)
    """The same at the end of the run, reached in a straight line; None: as at the begin."""
    max_gradient_norm: float = Field(default=0.5, gt=0)
    """Longer gradients are shortened to this."""
    normalize_advantage: bool = False
    """Bring the advantages of a rollout to mean 0 and deviation 1. It hides the size of rewards, also from K-FAC."""
    normalize_value: bool = False
    """Let the critic answer in standard deviations of the returns (Pop-Art)."""


@dataclass(frozen=True)
class Batch:
    """Sequences to learn from: S steps in B rows. Without memory every step is a sequence of its own (S = 1).

    Attributes:
        observation: `[S, B, F]`.
        mask: `[S, B, A]`, or None.
        started: `[S, B]`.
        memory: `[B, H]`.
        action: `[S, B]`.
        log_prob: `[S, B]` when the action was drawn.
        advantage: `[S, B]`.
        target: `[S, B, V]` what the value head should answer.
    """

    observation: Tensor
    mask: Tensor | None
    started: Tensor
    memory: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return self.action.shape[1]

    def select(self, chosen: slice | Tensor) -> Batch:
        """The sequences in some rows: a slice (no copy) or indices `[b]`."""

        def part(tensor: Tensor) -> Tensor:
            return tensor[:, chosen] if isinstance(chosen, slice) else tensor.index_select(1, chosen)

        return Batch(
            part(self.observation),
            None if self.mask is None else part(self.mask),
            part(self.started),
            self.memory[chosen],
            part(self.action),
            part(self.log_prob),
            part(self.advantage),
            part(self.target),
        )


class Learner(ABC):
    """Moves a network's weights after every rollout."""

    name: str

    def __init__(
        self, model: ActorCritic, config: LearnerConfig, constraint: ConstraintConfig | None = None
    ) -> None:
        """Take over a network.

        Raises:
            ValueError: the network's value heads do not match the constraint.
        """
        heads = model.critic.out_features
        if heads != (2 if constraint else 1):
            raise ValueError(f"the network has {heads} value heads; one is needed, and two with a constraint")
        self.model = model
        self.base_config = config
        self.parameters = FlatParameters(model)
        self.updates = 0
        self.multiplier = Multiplier(constraint, self.parameters.flat.device) if constraint else None

    def update(self, rollout: Rollout, progress: float) -> Metrics:
        """Learn from a rollout.

        Args:
            rollout: collected with the weights as they stand.
            progress: share of the run that is done, 0 … 1, for the schedules.
        """
        batch, metrics = self.prepare(rollout)
        metrics.update(self.learn(batch, self.learning_rate(progress), self.entropy_coefficient(progress)))
        self.updates += 1
        return metrics

    @abstractmethod
    def learn(self, batch: Batch, learning_rate: float, entropy_coefficient: float) -> Metrics:
        """Move the weights."""

    @torch.no_grad()
    def observe(self, rollout: Rollout) -> None:
        """Move the observation normaliser.

        It comes after learning, because the rollout's probabilities were computed with the moments before.
        """
        seen = rollout.observation.flatten(0, 1)
        self.model.observe(seen[:: math.ceil(len(seen) / NORMALIZER_ROWS)])

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> tuple[Batch, Metrics]:
        """Advantages and targets of a rollout."""
        config = self.base_config
        following = returns.next_values(
            rollout.value, rollout.last_value, rollout.truncated, rollout.final_value
        )
        advantages = returns.generalized_advantages(
            rollout.reward,
            rollout.value,
            following,
            rollout.terminated,
            rollout.ended,
            config.gamma,
            config.gae_lambda,
        )
        target = advantages + rollout.value
        metrics = {
            "explained_variance": actor_critic.explained_variance(rollout.value[..., 0], target[..., 0]),
            "value_mean": rollout.value[..., 0].mean(),
            "return_mean": target[..., 0].mean(),
        }
        if config.normalize_value:
            self.model.value_scale.update(target, self.model.critic)
        if self.multiplier is None:
            advantage = advantages[..., 0]
        else:
            self.multiplier.update(rollout.reward[..., 1])
            advantage = self.multiplier.combine(advantages)
            metrics["cost_mean"], metrics["cost_price"] = rollout.reward[..., 1].mean(), self.multiplier.price
        if config.normalize_advantage:
            mean, variance = distributed.moments(advantage.flatten())
            advantage = (advantage - mean) / (variance.sqrt() + 1e-8)
        flat = self.model.core is None

        def sequences(tensor: MaybeTensor) -> MaybeTensor:
            return tensor.flatten(0, 1)[None] if flat and tensor is not None else tensor

        batch = Batch(
            sequences(rollout.observation),
            sequences(rollout.mask),
            sequences(rollout.started),
            rollout.memory.new_zeros((rollout.action.numel(), 0)) if flat else rollout.memory,
            sequences(rollout.action),
            sequences(rollout.log_prob),
            sequences(advantage),
            sequences(self.model.value_scale.standard(target)),
        )
        return batch, metrics

    def learning_rate(self, progress: float) -> float:
        """After that share of the run."""
        return self.base_config.learning_rate * (
            1.0 - progress * (1.0 - self.base_config.final_learning_rate_share)
        )

    def entropy_coefficient(self, progress: float) -> float:
        """After that share of the run."""
        first, last = self.base_config.entropy_coefficient, self.base_config.final_entropy_coefficient
        return first if last is None else first + progress * (last - first)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, the network included; the tensors themselves, not copies."""
        return {
            "model": self.model.state_dict(),
            "updates": self.updates,
            "multiplier": self.multiplier.state_dict() if self.multiplier else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy those values in."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
        if self.multiplier:
            self.multiplier.load_state_dict(state["multiplier"])

    def undo(self, state: dict[str, Any]) -> None:
        """After NaN: go back to the state that was good last."""
        self.load_state_dict(state)
