"""ACKTR: actor-critic with a Kronecker-factored trust region (Wu et al. 2017, arXiv:1708.05144).

A2C's gradients, turned by the inverse Fisher matrix and shortened so that policy and values change by no more than a
given divergence. See docs/algorithms/acktr.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a2c import losses
from understudy_trainer.algorithms.kfac import KFAC
from understudy_trainer.algorithms.learner import Batch, Learner, LearnerConfig, Metrics
from understudy_trainer.algorithms.optimizers import clip_norm
from understudy_trainer.constraint import ConstraintConfig


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class ACKTRConfig(LearnerConfig):
    """Options of ACKTR. `max_gradient_norm` holds while cold only: the trust region bounds the steps after."""

    learning_rate: float = Field(default=0.25, gt=0)
    """Size of a step where the trust region allows it."""
    final_learning_rate_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that is left at the end of the run; it falls in a straight line."""
    entropy_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the policy's entropy at the begin: against making up one's mind too early."""
    kl_limit: float = Field(default=0.001, gt=0)
    """How far a step may move the policy (KL divergence in nats by the Fisher matrix), and the critic likewise."""
    damping: float = Field(default=0.01, gt=0)
    """Added to the Fisher matrix: more makes steps shorter and more like plain gradients."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Share of the old curvature that is kept at an update."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the last direction that is kept."""
    cold_updates: int = Field(default=10, ge=1)
    """Updates along plain gradients at the begin, until there is a picture of the curvature."""
    inverse_updates: int = Field(default=10, ge=1)
    """Updates from one inversion of the factors to the next."""
    fisher_rows: int = Field(default=4096, ge=1)
    """Steps of a rollout that curvature is estimated on, at most."""
    chunk_rows: int = Field(default=8192, ge=1)
    """Steps whose gradient is computed at once; see A2C."""


class ACKTR(Learner):
    """One natural step per rollout."""

    name = "acktr"

    def __init__(
        self,
        model: ActorCritic,
        generator: torch.Generator,
        config: ACKTRConfig | None = None,
        constraint: ConstraintConfig | None = None,
    ) -> None:
        """Take over a network.

        Args:
            model: to train; without memory.
            generator: source of the draws for the Fisher matrix, on the model's device.
            config: options.
            constraint: bound on the mean cost.

        Raises:
            ValueError: the network has a memory, whose curvature K-FAC does not describe.
        """
        if model.core is not None:
            raise ValueError(
                f"memory is {model.config.memory}; ACKTR learns networks without, use A2C or PPO"
            )
        self.config = config or ACKTRConfig()
        super().__init__(model, self.config, constraint)
        self.generator = generator
        self.kfac = KFAC(model, self.parameters, self.config.damping, self.config.decay)
        self.velocity = torch.zeros_like(self.parameters.flat)

    def learn(self, batch: Batch, learning_rate: float, entropy_coefficient: float) -> Metrics:
        """See `Learner`."""
        config = self.config
        self._picture(batch)
        actor, critic, metrics = self.gradients(batch, entropy_coefficient)
        if self.updates < config.cold_updates:
            direction = actor + critic
            metrics["gradient_norm"] = clip_norm(direction, config.max_gradient_norm)
        else:
            # Each within its own region: else an upset critic would shorten the policy's steps to nothing.
            turned = [self._within_region(part, learning_rate) for part in (actor, critic)]
            direction = turned[0][0] + turned[1][0]
            metrics["actor_shortened"], metrics["critic_shortened"] = turned[0][1], turned[1][1]
        # Scaled so that a direction that persists is followed at the learning rate.
        self.velocity.mul_(config.momentum).add_(direction, alpha=1.0 - config.momentum)
        self.parameters.flat.add_(self.velocity, alpha=-learning_rate)
        return metrics

    def gradients(self, batch: Batch, entropy_coefficient: float) -> tuple[Tensor, Tensor, Metrics]:
        """Gradients `[P]` of the actor's and of the critic's mean loss."""
        steps = batch.action.numel()
        size = math.ceil(batch.rows / math.ceil(steps / self.config.chunk_rows))
        coefficient = self.parameters.flat.new_tensor(entropy_coefficient)
        actor, critic = torch.zeros_like(self.parameters.flat), torch.zeros_like(self.parameters.flat)
        sums = coefficient.new_zeros(3)
        for start in range(0, batch.rows, size):
            part = batch.select(slice(start, start + size))
            policy, judge, told = losses(self.model, part, self.config.value_coefficient, coefficient)
            actor += self.parameters.gradient(policy, keep_graph=True)
            critic += self.parameters.gradient(judge)
            sums += told
        names = ("policy_loss", "value_loss", "entropy")
        return actor / steps, critic / steps, dict(zip(names, sums / steps, strict=True))

    def _picture(self, batch: Batch) -> None:
        stride = math.ceil(batch.rows / self.config.fisher_rows)
        seen, mask = batch.observation[0, ::stride], None if batch.mask is None else batch.mask[0, ::stride]
        self.kfac.update(seen, mask, self.generator)
        after = self.updates - self.config.cold_updates
        if after >= 0 and after % self.config.inverse_updates == 0:
            self.kfac.invert()

    def _within_region(self, gradient: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        """The natural gradient, shortened to the trust region, and the factor that it was shortened by."""
        natural = self.kfac.precondition(gradient)
        # Half the step's length in the Fisher metric is its divergence; F times the natural gradient is the gradient.
        divergence = 0.5 * learning_rate**2 * (natural @ gradient)
        factor = (self.config.kl_limit / divergence.clamp(min=1e-20)).sqrt().clamp(max=1.0)
        return natural * factor, factor

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {
            **super().state_dict(),
            "kfac": self.kfac.state_dict(),
            "velocity": self.velocity,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Learner`."""
        super().load_state_dict(state)
        self.kfac.load_state_dict(state["kfac"])
        self.velocity.copy_(state["velocity"])
        self.generator.set_state(state["generator"].cpu())
