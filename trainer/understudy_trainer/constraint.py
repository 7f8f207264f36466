"""A bound on a mean cost (requests missed, say) beside the reward that is maximised, by a Lagrange multiplier.

The multiplier is the price of the cost in units of the reward. It is steered like a thermostat by a PID controller on
the bound's violation (Stooke et al., arXiv:2007.03964), which overshoots less than plain gradient ascent.
"""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import config as command_line
from understudy_trainer import distributed


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class ConstraintConfig:
    """What the mean cost is to stay below, and how hard to steer."""

    limit: float = Field(ge=0)
    """Mean cost of a step that is allowed."""
    proportional: float = Field(default=0.1, ge=0)
    """Price per unit of violation now, a violation being measured in multiples of the limit."""
    integral: float = Field(default=0.01, ge=0)
    """Price per unit of violation and update so far."""
    derivative: float = Field(default=0.01, ge=0)
    """Price per unit that the cost rose by within `delay` updates."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old mean cost that is kept at an update."""
    delay: int = Field(default=10, ge=1)
    """Updates over which a rise is measured."""
    initial: float = Field(default=0.0, ge=0)
    """Price to begin with."""
    maximum: float = Field(default=100.0, gt=0)
    """Price at most, which also keeps the integral from winding up."""


class Multiplier:
    """The price of the cost, moved once per rollout; never waits for the device."""

    def __init__(self, config: ConstraintConfig, device: torch.device) -> None:
        self.config = config
        self.price = torch.full((), config.initial, device=device)
        self.integral = torch.full((), config.initial, device=device)
        self.smoothed = torch.full((config.delay + 1,), float("nan"), device=device)

    @torch.no_grad()
    def update(self, cost: Tensor) -> None:
        """Take note of a rollout's costs (any shape) before the policy learns from it."""
        config = self.config
        mean, before = distributed.averaged(cost.mean()), self.smoothed[-1]
        now = torch.where(before.isnan(), mean, config.smoothing * before + (1 - config.smoothing) * mean)
        self.smoothed = torch.cat([self.smoothed[1:], now[None]])
        unit = max(config.limit, 1e-12)
        violation = (now - config.limit) / unit
        self.integral = (self.integral + config.integral * violation).clamp(0.0, config.maximum)
        rise = ((now - self.smoothed[0]) / unit).clamp(min=0.0).nan_to_num(0.0)
        price = self.integral + config.proportional * violation + config.derivative * rise
        self.price = price.clamp(0.0, config.maximum)

    def combine(self, advantage: Tensor) -> Tensor:
        """Advantage `[…]` of reward less price times cost, from `[…, 2]`; divided so that its size stays bounded."""
        return (advantage[..., 0] - self.price * advantage[..., 1]) / (1.0 + self.price)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on."""
        return {"price": self.price, "integral": self.integral, "smoothed": self.smoothed}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        for name, tensor in state.items():
            setattr(self, name, tensor.to(self.price.device, copy=True))
