"""All weights as one vector, and the rules that move it.

A network of ten thousand weights spends its time in the launching of small operations. On one flat vector a step is
five operations instead of five per layer; clipping, sharing between processes, snapshot and the search for NaN are one
each. Gradients are values that are handed over, never a `.grad` that somebody may have forgotten to clear.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

OptimizerName = Literal["rmsprop", "rmsprop_tf", "adam"]


class FlatParameters:
    """The parameters of a module, moved into one vector `[P]` that they are views of from then on."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = list(module.parameters())
        self.flat = torch.cat([tensor.detach().flatten() for tensor in self.tensors])
        self.sizes = [tensor.numel() for tensor in self.tensors]
        for tensor, part in zip(self.tensors, self.flat.split(self.sizes), strict=True):
            tensor.data = part.view_as(tensor)

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> Tensor:
        """`[P]`, of a scalar loss; zero where it does not depend on a parameter."""
        parts: Iterable[Tensor] = torch.autograd.grad(
            loss, self.tensors, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])


def clip_norm(gradient: Tensor, limit: float) -> Tensor:
    """Shorten a gradient `[P]` to at most `limit`, in place; its norm before that is returned."""
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


class Optimizer(Protocol):
    """Moves a parameter vector against a gradient."""

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Move `parameters` `[P]` in place."""

    def share(self, state: dict[str, Tensor]) -> None:
        """Use these tensors, which others may change too, in the place of one's own."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves (not copies) that the next step depends on."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy those values in."""


class _Stateful:
    """Keeps named tensors of the parameters' size."""

    def __init__(self, **state: Tensor) -> None:
        self.state = state

    def share(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state.items():
            tensor.copy_(state[name])


class RMSProp(_Stateful):
    """RMSProp as torch has it: epsilon outside of the root, the mean square starts at zero."""

    def __init__(self, parameters: Tensor, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        self.decay = decay
        self.epsilon = epsilon
        super().__init__(square=torch.zeros_like(parameters))

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Move `parameters` `[P]` in place."""
        square = self.state["square"]
        square.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        parameters.addcdiv_(gradient, square.sqrt().add_(self.epsilon), value=-learning_rate)


class RMSPropTF(_Stateful):
    """RMSProp as TensorFlow has it: epsilon inside of the root, the mean square starts at one.

    The published A2C and A3C results were made with it. It begins gently, and where gradients are far below one (large
    batches, scaled rewards) it never gets going: for hundreds of updates it divides by the one that it started at.
    """

    def __init__(self, parameters: Tensor, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        self.decay = decay
        self.epsilon = epsilon
        super().__init__(square=torch.ones_like(parameters))

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Move `parameters` `[P]` in place."""
        square = self.state["square"]
        square.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        parameters.addcmul_(gradient, (square + self.epsilon).rsqrt_(), value=-learning_rate)


class Adam(_Stateful):
    """Adam (arXiv:1412.6980) with the epsilon of 1e-5 that reinforcement learning uses."""

    def __init__(
        self, parameters: Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-5
    ) -> None:
        self.betas = betas
        self.epsilon = epsilon
        super().__init__(
            mean=torch.zeros_like(parameters),
            square=torch.zeros_like(parameters),
            steps=torch.zeros((), dtype=torch.float64),
        )

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Move `parameters` `[P]` in place."""
        mean, square = self.state["mean"], self.state["square"]
        self.state["steps"] += 1
        steps = float(self.state["steps"])  # kept on the host: no wait for the device
        mean.lerp_(gradient, 1.0 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1.0 - self.betas[1])
        root = square.sqrt().div_((1.0 - self.betas[1] ** steps) ** 0.5).add_(self.epsilon)
        parameters.addcdiv_(mean, root, value=-learning_rate / (1.0 - self.betas[0] ** steps))


def make_optimizer(name: OptimizerName, parameters: Tensor) -> Optimizer:
    """The optimiser of that name for a parameter vector `[P]`."""
    kinds: dict[OptimizerName, type[RMSProp] | type[RMSPropTF] | type[Adam]]
    kinds = {"rmsprop": RMSProp, "rmsprop_tf": RMSPropTF, "adam": Adam}
    return kinds[name](parameters)
