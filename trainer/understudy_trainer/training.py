"""From options to a trainer that is ready to run: everything of a run is wired here, whichever algorithm it uses."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as checked

from understudy_trainer import config as command_line
from understudy_trainer import distributed
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig
from understudy_trainer.algorithms.a2c import A2C, A2CConfig
from understudy_trainer.algorithms.a3c import A3CConfig
from understudy_trainer.algorithms.acktr import ACKTR, ACKTRConfig
from understudy_trainer.algorithms.learner import Learner
from understudy_trainer.algorithms.ppo import PPO, PPOConfig
from understudy_trainer.collector import Collector, RewardConfig, RewardScaler
from understudy_trainer.constraint import ConstraintConfig
from understudy_trainer.environment import Environment
from understudy_trainer.loop import RunConfig, Trainer


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class TrainingConfig:
    """All options of a run."""

    algorithm: A3CConfig | A2CConfig | ACKTRConfig | PPOConfig = field(default_factory=PPOConfig)
    """The algorithm is the one that these options belong to."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Shape of the network."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Size of the rewards that the learner sees."""
    run: RunConfig = field(default_factory=RunConfig)
    """How long to learn, and what to keep."""
    constraint: ConstraintConfig | None = None
    """Bound on a mean cost, by a Lagrange multiplier."""
    rollout_steps: int = Field(default=16, ge=1)
    """Steps in every row between updates."""
    seed: int = Field(default=0, ge=0)
    """Of weights, actions and minibatches; the environment has its own."""
    compiled: bool = False
    """Fuse the network's passes by `torch.compile`: a minute at the start, about twice as fast on large batches."""


def seeds(seed: int, rank: int, count: int) -> list[int]:
    """Independent seeds of a process's parts."""
    return [
        int(s) for s in np.random.SeedSequence([seed, rank]).generate_state(count, np.uint64) >> np.uint64(1)
    ]


def environment_seed(config: TrainingConfig, rank: int = 0) -> int:
    """Seed for the environment of a process."""
    return seeds(config.seed, rank, 3)[2]


def world_seed(config: TrainingConfig) -> int:
    """Seed for the world of this process: the first one's is that of a process alone, the others see something else."""
    rank = distributed.rank()
    return environment_seed(config, rank) if rank else config.seed


def make_model(environment: Environment, config: TrainingConfig) -> ActorCritic:
    """A network with drawn weights: the same on every machine and in every process for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ActorCritic(
            environment.observation_size,
            environment.num_actions,
            config.network,
            values=2 if config.constraint else 1,
            hints=environment.hints,
        )
    return model.to(environment.device)


def make_learner(model: ActorCritic, config: TrainingConfig, generator: torch.Generator) -> Learner:
    """The algorithm that the options belong to."""
    options = config.algorithm
    if isinstance(options, A3CConfig):
        raise TypeError("algorithm is A3CConfig: its learners are processes, see workers.AsynchronousTrainer")
    if isinstance(options, PPOConfig):
        return PPO(model, generator, options, config.constraint, config.compiled)
    if isinstance(options, ACKTRConfig):
        return ACKTR(model, generator, options, config.constraint, config.compiled)
    return A2C(model, options, config.constraint, config.compiled)


def make_collector(
    environment: Environment, model: ActorCritic, config: TrainingConfig, generator: torch.Generator
) -> Collector:
    """Who acts."""
    gamma = config.algorithm.gamma
    scaler = RewardScaler(config.reward, gamma, environment.num_envs, environment.device)
    return Collector(environment, model, config.rollout_steps, generator, scaler, config.compiled)


def make_trainer(
    environment: Environment, config: TrainingConfig, folder: Path | None = None, **parts: Any
) -> Trainer:
    """A trainer with everything that it needs; in one of several processes, one that acts by draws of its own.

    Args:
        environment: to learn in.
        config: options.
        folder: see `Trainer`.
        parts: `listeners` and `evaluate` of `Trainer`.
    """
    # What a learner draws is the same in all processes: so they stay equal, and one checkpoint is that of all.
    drawn = seeds(config.seed, distributed.rank(), 2)[0], seeds(config.seed, 0, 2)[1]
    acting, learning = (torch.Generator(environment.device).manual_seed(seed) for seed in drawn)
    model = make_model(environment, config)
    learner = make_learner(model, config, learning)
    collector = make_collector(environment, model, config, acting)
    return Trainer(collector, learner, config.run, folder, **parts)
