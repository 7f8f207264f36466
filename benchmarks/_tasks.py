"""The tasks of benchmarks/learning.py, for our learners and for Stable-Baselines3, and the options of both.

Ours were chosen on seeds below FIRST_SEED. Those of Stable-Baselines3 are its defaults and those of its zoo
(rl-baselines3-zoo, hyperparams/), which were tuned for these tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from understudy_policy.actions import TABLE, Row
from understudy_simulator.gymnasium import AutoscaleVectorEnv
from understudy_trainer.algorithms.a2c import A2CConfig
from understudy_trainer.algorithms.a3c import A3CConfig
from understudy_trainer.algorithms.acktr import ACKTRConfig
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.classic_control import Acrobot, CartPole
from understudy_trainer.collector import RewardConfig
from understudy_trainer.environment import Environment, GymnasiumEnvironment
from understudy_trainer.training import TrainingConfig

FIRST_SEED = 1000


@dataclass(frozen=True)
class Theirs:
    """A learner of Stable-Baselines3.

    Attributes:
        algorithm: `A2C` or `PPO`.
        rows: environments at once.
        options: that differ from its defaults.
        falling: options that fall in a straight line to zero, with the value that they begin at.
        normalize: standardise observations and rewards (`VecNormalize`).
    """

    algorithm: str
    rows: int
    options: dict[str, Any] = field(default_factory=dict)
    falling: dict[str, float] = field(default_factory=dict)
    normalize: bool = False


@dataclass(frozen=True)
class Task:
    """A task, when it counts as learnt, how long one may try, and who tries.

    Attributes:
        world: ours, for a number of rows and a seed.
        vectors: Stable-Baselines3's, for a number of rows; None: what Gymnasium knows by the task's name.
        criterion: mean return of the last hundred training episodes.
        budget: environment steps.
        ours, theirs: learners by name.
        rows: of our worlds; divided among the workers of A3C.
    """

    world: Callable[[int, int], Environment]
    criterion: float
    budget: int
    ours: dict[str, TrainingConfig]
    theirs: dict[str, Theirs] = field(default_factory=dict)
    vectors: Callable[[int], VectorEnv[Any, Any, Any]] | None = None
    rows: int = 32


def gymnasium_world(name: str, rows: int, seed: int) -> Environment:
    """Gymnasium's own environment, one row after the other."""
    envs = gymnasium.make_vec(
        name, rows, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    return GymnasiumEnvironment(envs, seed)


def services(rows: int) -> AutoscaleVectorEnv:
    """Half an hour of made-up services, beside a constant row of the action table that is a good choice for most."""
    return AutoscaleVectorEnv(rows, episode_s=1800.0, reference_row=TABLE.index(Row(20, 0.75)), curves=64)


def services_world(rows: int, seed: int) -> Environment:
    """The same for our learners."""
    return GymnasiumEnvironment(services(rows), seed)


def _ours(
    base: TrainingConfig, a2c: dict[str, Any], acktr: dict[str, Any], ppo: dict[str, Any], ppo_steps: int
) -> dict[str, TrainingConfig]:
    """The four learners with common options and their own; A3C is A2C in two processes."""
    scale = acktr.pop("reward_scale", base.reward.scale)
    return {
        "a2c": replace(base, algorithm=A2CConfig(**a2c)),
        "a3c": replace(base, algorithm=A3CConfig(**a2c, workers=2)),
        "acktr": replace(base, algorithm=ACKTRConfig(**acktr), reward=RewardConfig(scale=scale)),
        "ppo": replace(base, algorithm=PPOConfig(**ppo), rollout_steps=ppo_steps),
    }


CLASSIC = TrainingConfig(reward=RewardConfig(scale=0.02), rollout_steps=20)

DEFAULTS = {"sb3-a2c": Theirs("A2C", 16), "sb3-ppo": Theirs("PPO", 1)}

TASKS = {
    "CartPole-v1": Task(
        CartPole,
        criterion=475.0,
        budget=400_000,
        ours=_ours(
            CLASSIC,
            a2c={"learning_rate": 3e-3},
            acktr={"entropy_coefficient": 0.0},
            ppo={"learning_rate": 1e-3, "epochs": 8, "minibatch_rows": 256},
            ppo_steps=32,
        ),
        theirs=DEFAULTS
        | {
            "sb3-ppo-zoo": Theirs(
                "PPO",
                8,
                {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20},
                {"learning_rate": 1e-3, "clip_range": 0.2},
            )
        },
    ),
    "Acrobot-v1": Task(
        Acrobot,
        criterion=-100.0,
        budget=400_000,
        ours=_ours(
            CLASSIC,
            a2c={"learning_rate": 3e-3},
            acktr={"entropy_coefficient": 0.0, "reward_scale": 0.1},
            ppo={"learning_rate": 1e-3, "epochs": 8, "minibatch_rows": 256},
            ppo_steps=32,
        ),
        theirs=DEFAULTS
        | {
            "sb3-a2c-zoo": Theirs("A2C", 16, normalize=True),
            "sb3-ppo-zoo": Theirs(
                "PPO", 16, {"n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4}, normalize=True
            ),
        },
    ),
    "Autoscale-v0": Task(
        services_world,
        # Chance earns about -25 here, the constant row by definition 0; a few dear services make the mean noisy.
        criterion=-10.0,
        budget=120_000,
        ours=_ours(
            TrainingConfig(reward=RewardConfig(scale=0.3), rollout_steps=15),
            a2c={"learning_rate": 3e-3, "gamma": 0.97, "gae_lambda": 0.92},
            acktr={"gamma": 0.97, "gae_lambda": 0.92, "entropy_coefficient": 0.0},
            ppo={"learning_rate": 1e-3, "gamma": 0.97, "gae_lambda": 0.92, "minibatch_rows": 240},
            ppo_steps=30,
        ),
        theirs={
            "sb3-a2c": Theirs("A2C", 64, {"gamma": 0.97}),
            "sb3-ppo": Theirs("PPO", 64, {"gamma": 0.97, "n_steps": 30}),
        },
        vectors=services,
        rows=64,
    ),
    "LunarLander-v3": Task(
        functools.partial(gymnasium_world, "LunarLander-v3"),
        criterion=200.0,
        budget=600_000,
        ours=_ours(
            TrainingConfig(reward=RewardConfig(scale=0.02), rollout_steps=32),
            a2c={"learning_rate": 2e-3, "gamma": 0.995, "gae_lambda": 0.95, "entropy_coefficient": 0.01},
            acktr={"gamma": 0.995, "gae_lambda": 0.95, "reward_scale": 0.1},
            ppo={
                "learning_rate": 1e-3,
                "gamma": 0.995,
                "epochs": 6,
                "minibatch_rows": 512,
                "entropy_coefficient": 0.01,
            },
            ppo_steps=128,
        ),
        theirs=DEFAULTS
        | {
            "sb3-a2c-zoo": Theirs(
                "A2C", 8, {"gamma": 0.995, "n_steps": 5, "ent_coef": 1e-5}, {"learning_rate": 8.3e-4}
            ),
            "sb3-ppo-zoo": Theirs(
                "PPO",
                16,
                {
                    "n_steps": 1024,
                    "batch_size": 64,
                    "gae_lambda": 0.98,
                    "gamma": 0.999,
                    "n_epochs": 4,
                    "ent_coef": 0.01,
                },
            ),
        },
    ),
    "CartPole-v1-16k": Task(
        CartPole,
        criterion=475.0,
        budget=3_000_000,
        ours={
            "a2c": TrainingConfig(
                algorithm=A2CConfig(learning_rate=1e-2), reward=RewardConfig(scale=0.02), rollout_steps=16
            ),
            "acktr": TrainingConfig(
                algorithm=ACKTRConfig(learning_rate=0.5, kl_limit=0.1, entropy_coefficient=0.0),
                reward=RewardConfig(scale=0.02),
                rollout_steps=16,
            ),
        },
        rows=1024,
    ),
}
