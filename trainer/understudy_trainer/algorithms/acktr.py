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
from understudy_trainer import distributed
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a2c import losses
from understudy_trainer.algorithms.kfac import KFAC, compiled_with_gradients
from understudy_trainer.algorithms.learner import Batch, Learner, LearnerConfig, Metrics
from understudy_trainer.algorithms.optimizers import FlatParameters, clip_norm
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
    fisher_rows: int = Field(default=1024, ge=1)
    """Steps of a rollout that curvature is estimated on, at most; the factors remember many rollouts."""
    chunk_rows: int = Field(default=8192, ge=1)
    """Steps whose gradient is computed at once; see A2C."""


def split_gradients(
    model: ActorCritic,
    parameters: FlatParameters,
    batch: Batch,
    value_coefficient: float,
    entropy_coefficient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients `[2, P]` of the actor's and of the critic's summed loss, and the sums `[3]` of `a2c.losses`."""
    actor, critic, told = losses(model, batch, value_coefficient, entropy_coefficient)
    found = [parameters.gradient(actor, keep_graph=True), parameters.gradient(critic)]
    return torch.stack(found), told


class ACKTR(Learner):
    """One natural step per rollout."""

    name = "acktr"

    def __init__(
        self,
        model: ActorCritic,
        generator: torch.Generator,
        config: ACKTRConfig | None = None,
        constraint: ConstraintConfig | None = None,
        compiled: bool = False,
    ) -> None:
        """Take over a network.

        Args:
            model: to train; without memory.
            generator: source of the draws for the Fisher matrix, on the model's device.
            config: options.
            constraint: bound on the mean cost.
            compiled: fuse the two gradients, and the look at curvature, by `torch.compile`.

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
        self.kfac = KFAC(model, self.parameters, self.config.damping, self.config.decay, compiled)
        self._gradients = compiled_with_gradients(split_gradients) if compiled else split_gradients
        self.velocity = torch.zeros_like(self.parameters.flat)

    def learn(self, batch: Batch, learning_rate: float, entropy_coefficient: float) -> Metrics:
        """See `Learner`."""
        config = self.config
        self._picture(batch)
        gradients, metrics = self.gradients(batch, entropy_coefficient)
        gradients = distributed.averaged(gradients)
        if self.updates < config.cold_updates:
            direction = gradients.sum(dim=0)
            metrics["gradient_norm"] = clip_norm(direction, config.max_gradient_norm)
        else:
            direction, factors = self._within_region(gradients, learning_rate)
            metrics["actor_shortened"], metrics["critic_shortened"] = factors
        # Scaled so that a direction that persists is followed at the learning rate.
        self.velocity.mul_(config.momentum).add_(direction, alpha=1.0 - config.momentum)
        self.parameters.flat.add_(self.velocity, alpha=-learning_rate)
        return metrics

    def gradients(self, batch: Batch, entropy_coefficient: float) -> tuple[Tensor, Metrics]:
        """Gradients `[2, P]` of the actor's and of the critic's mean loss."""
        steps = batch.action.numel()
        size = math.ceil(batch.rows / math.ceil(steps / self.config.chunk_rows))
        coefficient = self.parameters.flat.new_tensor(entropy_coefficient)
        gradients = self.parameters.flat.new_zeros((2, len(self.parameters.flat)))
        sums = coefficient.new_zeros(3)
        for start in range(0, batch.rows, size):
            part = batch.select(slice(start, start + size))
            found, told = self._gradients(
                self.model, self.parameters, part, self.config.value_coefficient, coefficient
            )
            gradients += found
            sums += told
        names = ("policy_loss", "value_loss", "entropy")
        return gradients / steps, dict(zip(names, sums / steps, strict=True))

    def _picture(self, batch: Batch) -> None:
        stride = math.ceil(batch.rows / self.config.fisher_rows)
        seen, mask = batch.observation[0, ::stride], None if batch.mask is None else batch.mask[0, ::stride]
        self.kfac.update(seen, mask, self.generator)
        after = self.updates - self.config.cold_updates
        if after >= 0 and after % self.config.inverse_updates == 0:
            self.kfac.invert()

    def _within_region(self, gradients: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        """The sum `[P]` of the natural gradients, each shortened to the trust region, and the factors `[2]` of that.

        Each on its own: else an upset critic would shorten the policy's steps to nothing.
        """
        natural = self.kfac.precondition(gradients)
        # Half the step's length in the Fisher metric is its divergence; F times the natural gradient is the gradient.
        divergence = 0.5 * learning_rate**2 * (natural * gradients).sum(dim=1)
        factors = (self.config.kl_limit / divergence.clamp(min=1e-20)).sqrt().clamp(max=1.0)
        return factors @ natural, factors

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
