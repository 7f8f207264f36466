"""PPO: proximal policy optimisation with a clipped ratio (Schulman et al. 2017, arXiv:1707.06347).

Several passes over each rollout in minibatches; the clip takes away the reason to go far from the policy that collected
it. See docs/algorithms/ppo.md.
"""

from __future__ import annotations

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
class PPOConfig(LearnerConfig):
    """Options of PPO."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Size of a step at the begin."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """How far advantages look before they trust the critic; 1: to the end of the rollout (n-step)."""
    normalize_advantage: bool = True
    """Bring the advantages of a rollout to mean 0 and deviation 1."""
    optimizer: OptimizerName = "adam"
    """`adam`, or `rmsprop` and `rmsprop_tf` as in A2C."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability of an action may move, as a share, before moving on earns nothing."""
    epochs: int = Field(default=4, ge=1)
    """Passes over each rollout."""
    minibatch_rows: int = Field(default=8192, ge=1)
    """Steps in one minibatch."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop the passes over a rollout once the policy moved by 1.5 times this (mean KL divergence in nats)."""


def loss(
    model: ActorCritic, batch: Batch, clip: float, value_coefficient: float, entropy_coefficient: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss of a minibatch, and means `[5]` of policy loss, value loss, entropy, KL and share clipped."""
    logits, value = model.sequence(batch.observation, batch.mask, batch.memory, batch.started)
    log_ratio = actor_critic.log_prob(logits, batch.action) - batch.log_prob
    ratio = log_ratio.exp()
    policy = -torch.minimum(
        batch.advantage * ratio, batch.advantage * ratio.clamp(1.0 - clip, 1.0 + clip)
    ).mean()
    # Summed over the value heads, as in A2C: a second head must not halve the first one's weight.
    critic = (value - batch.target).square().sum(dim=-1).mean()
    entropy = actor_critic.entropy(logits).mean()
    whole = policy + value_coefficient * critic - entropy_coefficient * entropy
    # Never negative, and of less variance than the mean of -log_ratio (Schulman, "Approximating KL divergence").
    divergence = (ratio - 1.0 - log_ratio).mean()
    clipped = ((ratio - 1.0).abs() > clip).to(policy.dtype).mean()
    return whole, torch.stack([policy, critic, entropy, divergence, clipped]).detach()


class PPO(Learner):
    """Several clipped passes per rollout."""

    name = "ppo"

    def __init__(
        self,
        model: ActorCritic,
        generator: torch.Generator,
        config: PPOConfig | None = None,
        constraint: ConstraintConfig | None = None,
        compiled: bool = False,
    ) -> None:
        """Take over a network.

        Args:
            model: to train.
            generator: source of the minibatches, on the model's device.
            config: options.
            constraint: bound on the mean cost.
            compiled: fuse the loss by `torch.compile`.
        """
        self.config = config or PPOConfig()
        super().__init__(model, self.config, constraint)
        self.generator = generator
        self.optimizer = make_optimizer(self.config.optimizer, self.parameters.flat)
        self._loss = torch.compile(loss, dynamic=False) if compiled else loss

    def learn(self, batch: Batch, learning_rate: float, entropy_coefficient: float) -> Metrics:
        """See `Learner`."""
        config = self.config
        coefficient = self.parameters.flat.new_tensor(entropy_coefficient)
        # With memory, whole sequences are drawn: as many as hold that many steps. Minibatches are of one size (what is
        # left over in one pass comes up in another), so that a compiled loss is compiled once.
        rows = min(batch.rows, max(1, config.minibatch_rows // len(batch.action)))
        told, norms = [], []
        for _ in range(config.epochs):
            order = torch.randperm(batch.rows, generator=self.generator, device=coefficient.device)
            epoch = []
            for start in range(0, batch.rows - rows + 1, rows):
                chosen = batch if rows == batch.rows else batch.select(order[start : start + rows])
                whole, means = self._loss(
                    self.model, chosen, config.clip, config.value_coefficient, coefficient
                )
                gradient = distributed.averaged(self.parameters.gradient(whole))
                norms.append(clip_norm(gradient, config.max_gradient_norm))
                self.optimizer.step(self.parameters.flat, gradient, learning_rate)
                epoch.append(means)
            # Of all processes, so that they stop at the same pass.
            told.append(distributed.averaged(torch.stack(epoch).mean(dim=0)))
            if config.target_kl is not None and float(told[-1][3]) > 1.5 * config.target_kl:
                break
        policy, critic, entropy, divergence, clipped = told[-1]
        return {
            "policy_loss": policy,
            "value_loss": critic,
            "entropy": entropy,
            "kl": divergence,
            "clipped": clipped,
            "epochs": coefficient.new_tensor(float(len(told))),
            "gradient_norm": torch.stack(norms).mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Learner`."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
