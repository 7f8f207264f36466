"""K-FAC: a cheap picture of the Fisher matrix, the curvature of how much a policy changes when its weights do.

For a linear layer the Fisher block of its weights is approximated by the Kronecker product of two small matrices: the
second moment of what goes in, `A`, and that of the gradients at what comes out, `G` (Martens & Grosse 2015,
arXiv:1503.05671). A natural gradient then is `G⁻¹ ∇W A⁻¹`, two products with matrices as wide as the layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from understudy_trainer import actor_critic, distributed
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.optimizers import FlatParameters

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Activity:
    """What a linear layer took in and gave out.

    Attributes:
        layer: the layer.
        taken: `[B, in]`.
        given: `[B, out]`, before the activation.
    """

    layer: nn.Linear
    taken: Tensor
    given: Tensor


def trace(
    model: ActorCritic, observation: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, list[Activity]]:
    """Logits `[B, A]`, values `[B, V]`, and what every linear layer did, for observations `[B, F]`."""
    activities: list[Activity] = []

    def through(module: nn.Module, taken: Tensor) -> Tensor:
        if isinstance(module, nn.Sequential):
            for part in module:
                taken = through(part, taken)
            return taken
        given: Tensor = module(taken)
        if isinstance(module, nn.Linear):
            activities.append(Activity(module, taken.detach(), given))
        return given

    seen, hinted = model.standardised(observation)
    hidden = through(model.trunk, seen)
    judged = hidden if model.critic_trunk is None else through(model.critic_trunk, hinted)
    logits = model.masked(through(model.head, hidden), mask)
    return logits, through(model.critic, judged), activities


def compiled_with_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Fuse a function that asks for gradients by itself, forward and backward passes in one piece, by `torch.compile`.

    Several gradients of one forward pass then cost hardly more than one.
    """
    # Process-wide and read when the function is first called; what asks for no gradient inside is compiled as ever.
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(function, fullgraph=True, dynamic=False)


def with_one(taken: Tensor) -> Tensor:
    """Inputs `[B, in]` with a one behind them, which makes the bias a column of the weights: `[B, in + 1]`."""
    return torch.cat([taken, taken.new_ones((len(taken), 1))], dim=1)


@torch.enable_grad()
def moments(
    model: ActorCritic, observation: Tensor, mask: Tensor | None, uniform: Tensor, noise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Second moments of what goes into every linear layer and of the gradients at what comes out.

    The Fisher matrix proper: gradients of the log-likelihood of what the model itself would do, so actions are drawn
    from it (those of the rollout would do as well), and the critic counts as the mean of a normal distribution with
    variance one (the Gauss-Newton matrix of its squared error).

    Args:
        model: without memory.
        observation, mask: `[B, F]`, and `[B, A]` or None.
        uniform: `[B, A]` random numbers that actions are drawn with.
        noise: `[B, V]` normal random numbers that values are drawn with.

    Returns:
        For every layer in the order of `model.modules()` `[in + 1, in + 1]`, and `[out, out]`.
    """
    logits, value, activities = trace(model, observation, mask)
    action = actor_critic.sample(logits.detach(), uniform)
    # The gradient of a normal log-likelihood at a draw is the noise of that draw.
    likelihood = actor_critic.log_prob(logits, action).sum() + (value * noise).sum()
    gradients = torch.autograd.grad(likelihood, [activity.given for activity in activities])
    rows = len(observation)
    taken = [with_one(activity.taken) for activity in activities]
    return [one.T @ one / rows for one in taken], [one.T @ one / rows for one in gradients]


class KFAC:
    """Running Kronecker factors of all linear layers of an actor-critic, and their damped inverses."""

    def __init__(
        self,
        model: ActorCritic,
        parameters: FlatParameters,
        damping: float,
        decay: float,
        compiled: bool = False,
    ) -> None:
        """Begin with no picture at all.

        Args:
            model: without memory.
            parameters: of the model, flat.
            damping: added to the Fisher matrix, split between the factors by their size (factored Tikhonov).
            decay: share of the old factors that is kept at an update, once there were 1 / (1 - decay) of them;
                until then they are the plain mean, which has no memory of the zeros that they began with.
            compiled: fuse `moments` by `torch.compile`; see `compiled_with_gradients`.
        """
        self.model = model
        self.damping = damping
        self.decay = decay
        start = {id(tensor): sum(parameters.sizes[:i]) for i, tensor in enumerate(parameters.tensors)}
        self.layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self._slices = [
            (
                slice(start[id(layer.weight)], start[id(layer.weight)] + layer.weight.numel()),
                slice(start[id(layer.bias)], start[id(layer.bias)] + layer.bias.numel()),
            )
            for layer in self.layers
        ]
        zeros = parameters.flat.new_zeros
        self.inputs = [zeros((layer.in_features + 1,) * 2) for layer in self.layers]
        self.outputs = [zeros((layer.out_features,) * 2) for layer in self.layers]
        self.input_inverses = [zeros(factor.shape) for factor in self.inputs]
        self.output_inverses = [zeros(factor.shape) for factor in self.outputs]
        self.count = torch.zeros((), dtype=torch.float64)  # on the host: no wait for the device
        self._moments = compiled_with_gradients(moments) if compiled else moments

    def update(self, observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Fold in the curvature at observations `[B, F]`, of gradients that are drawn anew; see `moments`."""
        draws = (
            (len(observation), self.model.head.out_features),
            (len(observation), self.model.critic.out_features),
        )
        uniform = torch.rand(draws[0], generator=generator, device=observation.device)
        noise = torch.randn(draws[1], generator=generator, device=observation.device)
        taken, given = self._moments(self.model, observation, mask, uniform, noise)
        self.count += 1
        share = max(1.0 / float(self.count), 1.0 - self.decay)
        seen = distributed.averaged_each(taken + given)
        for running, new in zip(self.inputs + self.outputs, seen, strict=True):
            running.lerp_(new, share)

    def invert(self) -> None:
        """Bring the damped inverses up to date. Factors of one size are inverted together."""
        groups: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for factors in zip(self.inputs, self.outputs, self.input_inverses, self.output_inverses, strict=True):
            taken, given, taken_inverse, given_inverse = factors
            # Damping of the product, split so that neither factor is drowned (Martens & Grosse, section 6.3).
            mean_taken, mean_given = taken.diagonal().mean(), given.diagonal().mean()
            ratio = ((mean_taken + 1e-12) / (mean_given + 1e-12)).sqrt()
            root = self.damping**0.5
            for factor, inverse, extra in (
                (taken, taken_inverse, root * ratio),
                (given, given_inverse, root / ratio),
            ):
                damped = factor + extra * torch.eye(len(factor), device=factor.device, dtype=factor.dtype)
                groups[len(factor)].append((damped, inverse))
        for group in groups.values():
            # Does not wait for the device; what cannot be inverted shows as NaN in the step and is quarantined there.
            lower = torch.linalg.cholesky_ex(torch.stack([damped for damped, _ in group])).L
            for found, (_, inverse) in zip(torch.cholesky_inverse(lower), group, strict=True):
                inverse.copy_(found)

    def precondition(self, gradients: Tensor) -> Tensor:
        """The natural gradients `[…, P]` of gradients `[…, P]`."""
        natural = gradients.clone()
        for layer, (weight, bias), taken, given in zip(
            self.layers, self._slices, self.input_inverses, self.output_inverses, strict=True
        ):
            rows = gradients[..., weight].unflatten(-1, layer.weight.shape)
            turned = given @ torch.cat([rows, gradients[..., bias, None]], dim=-1) @ taken
            natural[..., weight] = turned[..., :-1].flatten(-2)
            natural[..., bias] = turned[..., -1]
        return natural

    def state_dict(self) -> dict[str, list[Tensor] | Tensor]:
        """Everything that the next step depends on."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "input_inverses": self.input_inverses,
            "output_inverses": self.output_inverses,
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, list[Tensor] | Tensor]) -> None:
        """Copy those values in."""
        for name in ("inputs", "outputs", "input_inverses", "output_inverses"):
            for mine, theirs in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(theirs)
        self.count.copy_(torch.as_tensor(state["count"]))
