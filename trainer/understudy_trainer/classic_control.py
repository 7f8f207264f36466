"""CartPole and Acrobot on tensors: two tasks whose right answer the whole world knows, to check the algorithms on.

Gymnasium's own step one row at a time in Python (Acrobot) or in NumPy with masks (CartPole), which would measure the
environment and not the learner. These follow its equations; a test compares them step by step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from understudy_trainer.environment import Step, View


class ClassicControl(ABC):
    """Rows of one task, each with an episode of its own and a time limit that truncates it."""

    observation_size: int
    hints = 0
    num_actions: int
    reset_width: float
    time_limit = 500

    def __init__(self, num_envs: int, seed: int, device: str = "cpu") -> None:
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.state = torch.zeros((num_envs, 4), device=self.device)
        self.age = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self) -> View:
        """See `Environment`."""
        self.state = self._begin()
        self.age = torch.zeros_like(self.age)
        return View(self.observe(self.state))

    def step(self, action: Tensor) -> Step:
        """See `Environment`."""
        state, reward, terminated = self.move(self.state, action)
        age = self.age + 1
        truncated = (age >= self.time_limit) & ~terminated
        ended = terminated | truncated
        final = self.observe(state)
        self.state = torch.where(ended[:, None], self._begin(), state)
        self.age = torch.where(ended, 0, age)
        return Step(
            View(self.observe(self.state)), reward, terminated, truncated, self._if_any(truncated, final)
        )

    @abstractmethod
    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state `[N, 4]`, reward `[N]` and termination `[N]`."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """What is seen of a state: `[N, F]`."""

    def _begin(self) -> Tensor:
        drawn = torch.rand((self.num_envs, 4), generator=self.generator, device=self.device)
        return (drawn * 2.0 - 1.0) * self.reset_width

    def _if_any(self, truncated: Tensor, final: Tensor) -> Tensor | None:
        # On a processor a look costs nothing; elsewhere it would make the host wait at every step.
        return None if self.device.type == "cpu" and not truncated.any() else final

    def state_dict(self) -> dict[str, Any]:
        """See `Environment`."""
        return {"state": self.state, "age": self.age, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Environment`."""
        self.state, self.age = state["state"], state["age"]
        self.generator.set_state(state["generator"].cpu())


class CartPole(ClassicControl):
    """Gymnasium's CartPole-v1: keep a pole upright on a cart; 1 for every step, 500 at most."""

    observation_size, num_actions, reset_width = 4, 2, 0.05

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `ClassicControl`."""
        x, speed, angle, turn = state.unbind(dim=1)
        force = action.to(state.dtype) * 20.0 - 10.0
        sin, cos = torch.sin(angle), torch.cos(angle)
        pole_mass, mass, half_length, gravity, tau = 0.1, 1.1, 0.5, 9.8, 0.02
        common = (force + pole_mass * half_length * turn.square() * sin) / mass
        turning = (gravity * sin - cos * common) / (
            half_length * (4.0 / 3.0 - pole_mass * cos.square() / mass)
        )
        speeding = common - pole_mass * half_length * turning * cos / mass
        x, angle = x + tau * speed, angle + tau * turn
        state = torch.stack([x, speed + tau * speeding, angle, turn + tau * turning], dim=1)
        fallen = (x.abs() > 2.4) | (angle.abs() > 12 * 2 * math.pi / 360)
        return state, torch.ones_like(x), fallen

    def observe(self, state: Tensor) -> Tensor:
        """See `ClassicControl`."""
        return state


class Acrobot(ClassicControl):
    """Gymnasium's Acrobot-v1: swing the tip of two links over a line; -1 for every step until then."""

    observation_size, num_actions, reset_width = 6, 3, 0.1

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `ClassicControl`."""
        torque, dt = action.to(state.dtype) - 1.0, 0.2
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + dt / 2 * k1, torque)
        k3 = self._derivative(state + dt / 2 * k2, torque)
        k4 = self._derivative(state + dt * k3, torque)
        state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles = torch.remainder(state[:, :2] + math.pi, 2 * math.pi) - math.pi
        limit = state.new_tensor([4 * math.pi, 9 * math.pi])
        state = torch.cat([angles, state[:, 2:].clamp(-limit, limit)], dim=1)
        swung = -torch.cos(state[:, 0]) - torch.cos(state[:, 0] + state[:, 1]) > 1.0
        return state, swung.to(state.dtype) - 1.0, swung

    def observe(self, state: Tensor) -> Tensor:
        """See `ClassicControl`."""
        angles = state[:, :2]
        cos, sin = torch.cos(angles), torch.sin(angles)
        return torch.cat([torch.stack([cos, sin], dim=2).flatten(1), state[:, 2:]], dim=1)

    @staticmethod
    def _derivative(state: Tensor, torque: Tensor) -> Tensor:
        """Two links of mass, length and moment of inertia 1, each with its centre of mass at 0.5 (Sutton's book)."""
        a1, a2, w1, w2 = state.unbind(dim=1)
        gravity = 9.8
        cos, sin = torch.cos(a2), torch.sin(a2)
        d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
        phi2 = 0.5 * gravity * torch.sin(a1 + a2)
        phi1 = -0.5 * w2 * w2 * sin - w2 * w1 * sin + 1.5 * gravity * torch.sin(a1) + phi2
        second = (torque + d2 / d1 * phi1 - 0.5 * w1 * w1 * sin - phi2) / (1.25 - d2 * d2 / d1)
        return torch.stack([w1, w2, -(d2 * second + phi1) / d1, second], dim=1)
