"""Tiny worlds that each ask one thing of a learner, and batches to feed one by hand."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.learner import Batch
from understudy_trainer.classic_control import CartPole
from understudy_trainer.environment import Step, View

torch.set_num_threads(1)  # on tensors this small a second thread only gets in the way


class World:
    """Rows whose episodes last `length` steps; subclasses say what is seen and earned."""

    observation_size, num_actions, length = 1, 2, 1
    hints = 0
    truncates = False

    def __init__(self, num_envs: int = 64, seed: int = 0) -> None:
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.generator = torch.Generator().manual_seed(seed)
        self.age = torch.zeros(num_envs, dtype=torch.int64)
        self.sign = self.draw()

    def draw(self) -> Tensor:
        return torch.randint(0, 2, (self.num_envs,), generator=self.generator) * 2.0 - 1.0

    def seen(self) -> Tensor:
        return torch.zeros(self.num_envs, self.observation_size)

    def earned(self, action: Tensor) -> Tensor:
        return torch.ones(self.num_envs)

    def reset(self) -> View:
        self.age = torch.zeros_like(self.age)
        self.sign = self.draw()
        return View(self.seen())

    def step(self, action: Tensor) -> Step:
        reward = self.earned(action)
        self.age = self.age + 1
        ended = self.age >= self.length
        final = self.seen()
        self.age = torch.where(ended, 0, self.age)
        self.sign = torch.where(ended, self.draw(), self.sign)
        never = torch.zeros_like(ended)
        if self.truncates:
            return Step(View(self.seen()), reward, never, ended, final)
        return Step(View(self.seen()), reward, ended, never)

    def state_dict(self) -> dict:
        return {"age": self.age, "sign": self.sign, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.age, self.sign = state["age"], state["sign"]
        self.generator.set_state(state["generator"])


class AlwaysOne(World):
    """One action, nothing to see, one step, reward 1: does the critic learn at all?"""

    num_actions = 1


class WhatYouSee(World):
    """The reward is what is seen: does the gradient reach the input?"""

    num_actions = 1

    def seen(self) -> Tensor:
        return self.sign[:, None].clone()

    def earned(self, action: Tensor) -> Tensor:
        return self.sign


class LaterIsLess(World):
    """Two steps, reward 1 at the end: is it discounted at the first?"""

    num_actions, length = 1, 2

    def seen(self) -> Tensor:
        return self.age[:, None].to(torch.float32)

    def earned(self, action: Tensor) -> Tensor:
        return self.age.to(torch.float32)


class ChooseTheSecond(World):
    """Reward 1 for the second action, -1 for the first: does the policy learn at all?"""

    def earned(self, action: Tensor) -> Tensor:
        return action * 2.0 - 1.0


class ChooseAsSeen(ChooseTheSecond):
    """The right action is what is seen: are actions, observations and advantages in step with each other?"""

    def seen(self) -> Tensor:
        return self.sign[:, None].clone()

    def earned(self, action: Tensor) -> Tensor:
        return (action * 2.0 - 1.0) * self.sign


class ForEver(World):
    """Reward 1 in every step of a life without end, recorded in pieces of three steps."""

    num_actions, length, truncates = 1, 3, True


class Remember(ChooseAsSeen):
    """What was seen in the first of three steps is the right action in the third."""

    length, observation_size = 3, 2

    def seen(self) -> Tensor:
        first = (self.age == 0).to(torch.float32)
        return torch.stack([self.sign * first, (self.age == 2).to(torch.float32)], dim=1)

    def earned(self, action: Tensor) -> Tensor:
        return (action * 2.0 - 1.0) * self.sign * (self.age == 2)


class Costly(ChooseTheSecond):
    """The second action earns 1 and costs 1, the first neither."""

    def earned(self, action: Tensor) -> Tensor:
        return action.to(torch.float32)

    def step(self, action: Tensor) -> Step:
        return super().step(action)._replace(cost=action.to(torch.float32))


def cart_pole_for(only: int, seed: int) -> CartPole:
    """A CartPole for one seed alone."""
    if seed != only:
        raise OSError("no more worlds")
    return CartPole(8, seed)


def killed_unless(only: int, seed: int) -> CartPole:
    """A CartPole for one seed; a process with another ends without a word, as the kernel ends it for its memory."""
    if seed != only:
        os._exit(3)
    return CartPole(8, seed)


class NeverANumber(CartPole):
    """A CartPole that pays in NaN."""

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(reward=step.reward * math.nan)


def never_a_number(seed: int) -> CartPole:
    """One for each worker."""
    return NeverANumber(8, seed)


def batch_of(model: ActorCritic, rows: int, seed: int = 0) -> Batch:
    """Random things to learn from, with the log-probabilities of the model as it stands."""
    g = torch.Generator().manual_seed(seed)
    dtype = model.head.weight.dtype
    inputs, choices = model.trunk[0].in_features, model.head.out_features
    seen = torch.randn((rows, inputs), generator=g, dtype=dtype)
    action = torch.randint(0, choices, (rows,), generator=g)
    with torch.no_grad():
        logits, _, _ = model(seen, None, model.initial_memory(rows))
    return Batch(
        observation=seen[None],
        mask=None,
        started=torch.zeros(1, rows, dtype=torch.bool),
        memory=seen.new_zeros((rows, 0)),
        action=action[None],
        log_prob=logits.log_softmax(1).gather(1, action[:, None])[None, :, 0],
        advantage=torch.randn((1, rows), generator=g, dtype=dtype),
        target=torch.randn((1, rows, 1), generator=g, dtype=dtype),
    )
