"""The network that learns: a trunk, a head that chooses and a head that judges, with the normaliser inside.

The trunk is shared because it is the larger part of the work on a processor; the critic can have one of its own. What
acts later is the trunk and the first head alone (`ActorCritic.actor`), so the critic costs the operator nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor, nn

from understudy_trainer import config as command_line
from understudy_trainer import distributed
from understudy_trainer.networks import FORBIDDEN_LOGIT, Actor, FusedTanh, linear, trunk
from understudy_trainer.normalizer import Normalizer


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class NetworkConfig:
    """Shape of the network."""

    hidden: tuple[int, ...] = Field(default=(64, 64), min_length=1)
    """Widths of the tanh layers of the trunk."""
    memory: int = Field(default=0, ge=0)
    """Width of a GRU behind the trunk; 0: no memory."""
    shared_trunk: bool = True
    """One trunk for actor and critic, half the work. Large returns drown the actor in it: scale rewards or values."""
    critic_hidden: tuple[int, ...] = ()
    """Widths of the critic's own trunk where none is shared; empty: those of the actor."""
    normalize_observation: bool = True
    """Standardise what is seen by its running moments; False where the world gives well-scaled observations."""


class Output(NamedTuple):
    """What the network answers.

    Attributes:
        logits: `[…, A]`, forbidden actions at -1e8.
        value: `[…, V]` as the head gives it; see `ValueScale` for natural units.
        memory: `[B, H]` to hand over at the next step; `[B, 0]` without memory.
    """

    logits: Tensor
    value: Tensor
    memory: Tensor


class ValueScale(nn.Module):
    """Moments of the returns, by which the value heads answer in units of a standard deviation.

    While they move, the head is moved the other way (Pop-Art, arXiv:1602.07714), so that its answers stay.
    """

    mean: Tensor
    deviation: Tensor
    count: Tensor

    def __init__(self, heads: int, least_share: float = 0.01) -> None:
        super().__init__()
        self.least_share = least_share
        self.register_buffer("mean", torch.zeros(heads))
        self.register_buffer("deviation", torch.ones(heads))
        self.register_buffer("count", torch.zeros(()))

    def natural(self, value: Tensor) -> Tensor:
        """Values `[…, V]` of the head in units of the reward."""
        return value * self.deviation + self.mean

    def standard(self, value: Tensor) -> Tensor:
        """Values `[…, V]` in units of the reward as the head should give them."""
        return (value - self.mean) / self.deviation

    @torch.no_grad()
    def update(self, returns: Tensor, critic: nn.Linear) -> None:
        """Fold in returns `[…, V]` and correct the head for it. A batch weighs 1/n, at least `least_share`."""
        rows = returns.flatten(0, -2)
        self.count += 1
        share = torch.clamp(1.0 / self.count, min=self.least_share)
        mean = self.mean + share * (distributed.averaged(rows.mean(0)) - self.mean)
        # The batch's second moment about the new mean, the old one about the old mean plus how far that moved.
        old = self.deviation**2 + (self.mean - mean) ** 2
        spread = distributed.averaged(((rows - mean) ** 2).mean(0))
        variance = torch.where(self.count > 1, (1 - share) * old, 0.0) + share * spread
        deviation = variance.sqrt().clamp(min=1e-4)
        ratio = self.deviation / deviation
        critic.weight.mul_(ratio[:, None])
        critic.bias.copy_(critic.bias * ratio + (self.mean - mean) / deviation)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)


class ActorCritic(nn.Module):
    """Raw observation and mask in; logits of the actions and values of the state out."""

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        config: NetworkConfig | None = None,
        values: int = 1,
        hints: int = 0,
    ) -> None:
        """Draw the weights.

        Args:
            observation_size: F, hints included.
            num_actions: A.
            config: shape.
            values: V, quantities whose discounted sum the critic foretells: the reward, then a constraint's cost.
            hints: the last so many columns of the observation are for the critic alone.

        Raises:
            ValueError: the trunk is shared where it must not be.
        """
        super().__init__()
        self.config = config or NetworkConfig()
        self.seen = observation_size - hints
        self.normalizer = Normalizer(self.seen)
        self.hint_normalizer = Normalizer(hints) if hints else None
        self.trunk = trunk(self.seen, self.config.hidden, FusedTanh)
        width = self.config.memory or self.config.hidden[-1]
        if self.config.memory and not self.config.shared_trunk:
            raise ValueError(
                f"memory is {self.config.memory} but shared_trunk is False; share it, or set memory 0"
            )
        if hints and self.config.shared_trunk:
            raise ValueError(
                "shared_trunk is True, but the actor must not see the critic's hints; set it False, or hints False"
            )
        own = self.config.critic_hidden or self.config.hidden
        self.critic_trunk = None if self.config.shared_trunk else trunk(observation_size, own, FusedTanh)
        self.core = nn.GRUCell(self.config.hidden[-1], width) if self.config.memory else None
        if self.core is not None:
            nn.init.orthogonal_(self.core.weight_ih)
            nn.init.orthogonal_(self.core.weight_hh)
            nn.init.zeros_(self.core.bias_ih)
            nn.init.zeros_(self.core.bias_hh)
        self.head = linear(width, num_actions, gain=0.01)
        self.critic = linear(width if self.config.shared_trunk else own[-1], values, gain=1.0)
        self.value_scale = ValueScale(values)

    def initial_memory(self, rows: int) -> Tensor:
        """Memory `[rows, H]` at the begin of an episode."""
        return self.head.weight.new_zeros((rows, self.config.memory))

    def forward(self, observation: Tensor, mask: Tensor | None, memory: Tensor) -> Output:
        """One step.

        Args:
            observation: `[B, F]` float32.
            mask: `[B, A]` bool, or None.
            memory: `[B, H]`.
        """
        seen, hinted = self.standardised(observation)
        hidden = self.trunk(seen)
        if self.core is not None:
            memory = hidden = self.core(hidden, memory)
        judged = hidden if self.critic_trunk is None else self.critic_trunk(hinted)
        return Output(self.masked(self.head(hidden), mask), self.critic(judged), memory)

    def sequence(
        self, observation: Tensor, mask: Tensor | None, memory: Tensor, started: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits `[T, B, A]` and values `[T, B, V]` of whole sequences.

        Args:
            observation: `[T, B, F]`.
            mask: `[T, B, A]`, or None.
            memory: `[B, H]` before the first step.
            started: `[T, B]` True where an episode begins at that step, so that memory is emptied before it.
        """
        seen, hinted = self.standardised(observation)
        hidden = self.trunk(seen)
        if self.core is not None:
            remembered = []
            for now, begins in zip(hidden, started, strict=True):
                memory = self.core(now, torch.where(begins[:, None], 0.0, memory))
                remembered.append(memory)
            hidden = torch.stack(remembered)
        judged = hidden if self.critic_trunk is None else self.critic_trunk(hinted)
        return self.masked(self.head(hidden), mask), self.critic(judged)

    def actor(self) -> Actor:
        """The part that acts, for export: raw observation and mask in, probabilities out.

        Raises:
            ValueError: the network has a memory, which an artefact cannot carry yet.
        """
        if self.core is not None:
            raise ValueError(f"memory is {self.config.memory}; an artefact has none, so train with memory 0")
        actor = Actor(self.config.hidden)
        mine = self.state_dict()
        actor.load_state_dict({name: mine[name] for name in actor.state_dict()})
        return actor

    @torch.no_grad()
    def observe(self, observation: Tensor) -> None:
        """Move the normalisers by observations `[B, F]`."""
        if self.config.normalize_observation:
            self.normalizer.update(observation[:, : self.seen])
            if self.hint_normalizer is not None:
                self.hint_normalizer.update(observation[:, self.seen :])

    def standardised(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """What the actor's and what the critic's trunk see of an observation `[…, F]`."""
        seen, hints = observation[..., : self.seen], observation[..., self.seen :]
        if self.config.normalize_observation:
            seen = self.normalizer(seen)
        if self.hint_normalizer is None:
            return seen, seen
        if self.config.normalize_observation:
            hints = self.hint_normalizer(hints)
        return seen, torch.cat([seen, hints], dim=-1)

    @staticmethod
    def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
        """Logits `[…, A]` with those of forbidden actions so low that their probability is zero."""
        return logits if mask is None else torch.where(mask, logits, FORBIDDEN_LOGIT)


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw an action per row: `[B]` int64.

    The largest logit plus Gumbel noise. Noise is bounded, so a forbidden action can never be drawn, and nothing is
    summed up whose rounding could let one slip through.

    Args:
        logits: `[B, A]`.
        uniform: `[B, A]` random numbers, 0 included and 1 not.
    """
    noise = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))
    return (logits + noise).argmax(dim=-1)


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Log-probability `[…]` of actions `[…]` under logits `[…, A]`."""
    chosen = logits.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy `[…]` in nats of the choice under logits `[…, A]`."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def act(
    model: ActorCritic, observation: Tensor, mask: Tensor | None, memory: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything that a step of a rollout asks of the network, in one piece that compiles to a few loops.

    Args:
        model: the network.
        observation, mask, memory: as in `ActorCritic.forward`.
        uniform: as in `sample`.

    Returns:
        Action `[B]`, its log-probability `[B]`, value `[B, V]` in units of the reward, next memory `[B, H]`.
    """
    logits, value, memory = model(observation, mask, memory)
    action = sample(logits, uniform)
    return action, log_prob(logits, action), model.value_scale.natural(value), memory


def explained_variance(value: Tensor, returns: Tensor) -> Tensor:
    """Share of the variance of returns that the values foretold: 1 all, 0 none, below 0 worse than their mean."""
    residual = (returns - value).var(unbiased=False)
    return 1.0 - residual / returns.var(unbiased=False).clamp(min=math.ulp(1.0))
