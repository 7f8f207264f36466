"""A2C: the synchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, without the asynchrony).

One pass over each rollout, one step along the policy gradient. See docs/algorithms/a2c.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import actor_critic, distributed
from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.learner import Batch, Learner, LearnerConfig, Metrics
from understudy_trainer.algorithms.optimizers import OptimizerName, clip_norm, make_optimizer
from understudy_trainer.constraint import ConstraintConfig


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class A2CConfig(LearnerConfig):
    """Options of A2C (and of every A3C worker)."""

    optimizer: OptimizerName = "rmsprop"
    """`rmsprop`, `rmsprop_tf` (TensorFlow's, as in the papers: for small batches and rewards of one) or `adam`."""
    chunk_rows: int = Field(default=8192, ge=1)
    """Steps whose gradient is computed at once; as many as the processor's cache holds are fastest. Not a minibatch:
    gradients of all chunks are added up before the one step."""


def losses(
    model: ActorCritic, batch: Batch, value_coefficient: float, entropy_coefficient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The actor's and the critic's loss summed over a batch, and sums `[3]` of policy loss, value loss and entropy."""
    logits, value = model.sequence(batch.observation, batch.mask, batch.memory, batch.started)
    policy = -(batch.advantage * actor_critic.log_prob(logits, batch.action)).sum()
    critic = (value - batch.target).square().sum()
    entropy = actor_critic.entropy(logits).sum()
    told = torch.stack([policy, critic, entropy]).detach()
    return policy - entropy_coefficient * entropy, value_coefficient * critic, told


class A2C(Learner):
    """One step per rollout."""

    name = "a2c"

    def __init__(
        self,
        model: ActorCritic,
        config: A2CConfig | None = None,
        constraint: ConstraintConfig | None = None,
        compiled: bool = False,
    ) -> None:
        """Take over a network.

        Args:
            model: to train.
            config: options.
            constraint: bound on the mean cost.
            compiled: fuse the loss by `torch.compile`.
        """
        self.config = config or A2CConfig()
        super().__init__(model, self.config, constraint)
        self.optimizer = make_optimizer(self.config.optimizer, self.parameters.flat)
        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def gradient(self, batch: Batch, entropy_coefficient: float) -> tuple[Tensor, Metrics]:
        """Gradient `[P]` of the mean loss, before clipping."""
        steps = batch.action.numel()
        chunks = math.ceil(steps / self.config.chunk_rows)
        size = math.ceil(batch.rows / chunks)
        coefficient = self.parameters.flat.new_tensor(entropy_coefficient)
        gradient, sums = torch.zeros_like(self.parameters.flat), coefficient.new_zeros(3)
        for start in range(0, batch.rows, size):
            part = batch.select(slice(start, start + size))
            actor, judge, told = self._losses(self.model, part, self.config.value_coefficient, coefficient)
            gradient += self.parameters.gradient(actor + judge)
            sums += told
        policy, critic, entropy = sums / steps
        return gradient / steps, {"policy_loss": policy, "value_loss": critic, "entropy": entropy}

    def learn(self, batch: Batch, learning_rate: float, entropy_coefficient: float) -> Metrics:
        """See `Learner`."""
        gradient, metrics = self.gradient(batch, entropy_coefficient)
        gradient = distributed.averaged(gradient)
        metrics["gradient_norm"] = clip_norm(gradient, self.config.max_gradient_norm)
        self.apply(gradient, learning_rate)
        return metrics

    def apply(self, gradient: Tensor, learning_rate: float) -> None:
        """Step against a gradient `[P]`."""
        self.optimizer.step(self.parameters.flat, gradient, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Learner`."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
