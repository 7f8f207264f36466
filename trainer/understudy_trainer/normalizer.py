"""Running mean and variance of what the actor sees, so that no feature shouts the others down.

It is part of the network, hence part of the artefact: an actor can never meet another normaliser than its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from understudy_trainer import distributed


class Normalizer(nn.Module):
    """Standardises a batch with moments gathered so far, clipped to ±`clip` standard deviations.

    A feature that never varied is muted (0): nothing was learned about it, so its first movement after the export
    must not push the network anywhere.
    """

    mean: Tensor
    variance: Tensor
    scale: Tensor
    count: Tensor

    def __init__(self, width: int, clip: float = 10.0, least_deviation: float = 1e-4) -> None:
        super().__init__()
        self.clip = clip
        self.least_deviation = least_deviation
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.zeros(width))
        self.register_buffer("scale", torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Fold a batch `[B, F]` into the moments (Chan's merge of two samples, in double precision)."""
        rows = batch.double()
        mean, variance = distributed.moments(rows)
        count = len(rows) * distributed.size()
        total = self.count + count
        share = count / total
        delta = mean - self.mean
        merged = (1 - share) * self.variance + share * variance + share * (1 - share) * delta * delta
        self.mean.copy_(self.mean + share * delta)
        self.variance.copy_(merged)
        deviation = merged.sqrt()
        self.scale.copy_(torch.where(deviation > self.least_deviation, 1.0 / deviation, 0.0))
        self.count.copy_(total)

    def forward(self, observation: Tensor) -> Tensor:
        """Standardise `[B, F]`."""
        return torch.clamp((observation - self.mean) * self.scale, -self.clip, self.clip)
