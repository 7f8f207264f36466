"""The actor's network: small enough to answer ten thousand policies in milliseconds, with all that it needs inside.

Normaliser and mask are part of the module, so what is trained, what is exported and what the operator runs are the
same function of raw features. A critic gets its own `trunk` and normaliser beside it and is left out of the export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from understudy_policy import actions, features
from understudy_trainer.normalizer import Normalizer

FORBIDDEN_LOGIT = -1e8
"""Exactly zero probability in single precision, and, unlike minus infinity, no NaN where all rows are forbidden."""


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A linear layer with orthogonal weights and no bias to begin with."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class FusedTanh(nn.Module):
    """tanh as learners take it: within 2e-7 of `nn.Tanh`, in a third of its time where it is compiled.

    torch's compiler has a slow tanh for processors and a fast exponential.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        return 2.0 * torch.sigmoid(2.0 * x) - 1.0


def trunk(inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Hidden layers with tanh, in this form of it."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i in range(len(hidden)):
        layers += [linear(widths[i], widths[i + 1], math.sqrt(2.0)), activation()]
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """Raw observation and mask in, probabilities of the rows of the action table out."""

    def __init__(self, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.normalizer = Normalizer(features.F)
        self.trunk = trunk(features.F, hidden)
        # A small last layer starts every policy near the uniform one, whatever the observation.
        self.head = linear(hidden[-1], len(actions.TABLE), gain=0.01)

    def logits(self, observation: Tensor, mask: Tensor) -> Tensor:
        """Unnormalised log-probabilities `[N, A]`; arguments as in `forward`."""
        logits: Tensor = self.head(self.trunk(self.normalizer(observation)))
        return torch.where(mask.to(torch.bool), logits, FORBIDDEN_LOGIT)

    def forward(self, observation: Tensor, mask: Tensor) -> Tensor:
        """Probabilities `[N, A]`.

        Args:
            observation: `[N, F]` float32, as `understudy_policy.features` computes it.
            mask: `[N, A]` 1 where a row is allowed, else 0; at least one must be.
        """
        return torch.softmax(self.logits(observation, mask), dim=1)
