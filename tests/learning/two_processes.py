"""What two processes do that torchrun started: each writes down what it ended with, for the test to compare."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch

from understudy_trainer import distributed
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig
from understudy_trainer.algorithms.a2c import A2CConfig
from understudy_trainer.algorithms.acktr import ACKTRConfig
from understudy_trainer.algorithms.learner import Learner
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.classic_control import CartPole
from understudy_trainer.collector import RewardConfig, RewardScaler, Rollout
from understudy_trainer.loop import Listener, RunConfig, Trainer
from understudy_trainer.training import (
    TrainingConfig,
    environment_seed,
    make_learner,
    make_model,
    make_trainer,
)

ROWS, STEPS, UPDATES = 4, 8, 12
ALL_STATISTICS = {"normalize_advantage": True, "normalize_value": True}
NETWORK, REWARD = NetworkConfig(hidden=(8,)), RewardConfig(adapt=True)
CONFIGS = {
    "a2c": TrainingConfig(A2CConfig(optimizer="adam", **ALL_STATISTICS), NETWORK, REWARD),
    "ppo": TrainingConfig(PPOConfig(target_kl=1e-3, **ALL_STATISTICS), NETWORK, REWARD),
    "acktr": TrainingConfig(ACKTRConfig(cold_updates=2, inverse_updates=2), NETWORK, REWARD),
}


def rollouts(count: int = 3) -> list[Rollout]:
    """Rollouts of twice as many rows as one process has, the same wherever they are made."""
    config = replace(CONFIGS["a2c"], reward=RewardConfig(), rollout_steps=STEPS)
    trainer = make_trainer(CartPole(2 * ROWS, seed=3), config)
    trainer.warm_up()
    return [trainer.collector.collect() for _ in range(count)]


def learner_of(config: TrainingConfig) -> Learner:
    """A learner with drawn weights."""
    world = CartPole(ROWS, seed=0)
    return make_learner(make_model(world, config), config, torch.Generator().manual_seed(5))


def rows_of(rollout: Rollout, chosen: slice) -> Rollout:
    """Some rows of a rollout."""
    rows_first = {"memory", "last_value"}
    parts = {}
    for field in fields(rollout):
        tensor = getattr(rollout, field.name)
        if tensor is not None:
            tensor = tensor[chosen] if field.name in rows_first else tensor[:, chosen]
        parts[field.name] = tensor
    return Rollout(**parts)


def learnt(name: str, chosen: slice, seen: list[Rollout]) -> dict[str, torch.Tensor]:
    """The network, and the scale of rewards, after learning from some rows of some rollouts."""
    config = CONFIGS[name]
    learner = learner_of(config)
    scaler = RewardScaler(REWARD, 0.9, len(range(2 * ROWS)[chosen]), torch.device("cpu"))
    for rollout in seen:
        part = rows_of(rollout, chosen)
        part.reward = scaler(part.raw_reward, part.ended, None).unsqueeze(-1)
        learner.observe(part)
        learner.update(part, 0.0)
    return {**learner.model.state_dict(), "scale": scaler.variance, "rewards": scaler.count}


def trainer_of(name: str, folder: Path | None) -> Trainer:
    """A trainer with a world of its own."""
    config = replace(
        CONFIGS[name],
        rollout_steps=STEPS,
        run=RunConfig(
            total_steps=2 * ROWS * STEPS * (UPDATES + 1),
            log_updates=1,
            checkpoint_updates=5,
            evaluate_updates=4,
        ),
    )
    is_first = distributed.rank() == 0

    def judge(_model: ActorCritic) -> dict[str, float]:
        # Only the first one's word counts: what the others would say differs.
        return {"score": float(trainer.updates if is_first else -99)}

    world = CartPole(ROWS, environment_seed(config, distributed.rank()))
    trainer = make_trainer(world, config, folder if is_first else None, evaluate=judge)
    return trainer


def killing(trainer: Trainer) -> Listener:
    """Sends this process SIGTERM after the sixth update."""

    def kill(_steps: int, _scalars: dict[str, float]) -> None:
        if trainer.updates == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    return kill


def main(out: Path) -> None:
    """One process."""
    torch.set_num_threads(1)
    seen = rollouts()
    with distributed.joined():
        rank = distributed.rank()
        half = slice(rank * ROWS, (rank + 1) * ROWS)
        ended: dict[str, object] = {f"learnt-{name}": learnt(name, half, seen) for name in CONFIGS}
        for name in CONFIGS:
            whole = trainer_of(name, out / name)
            if rank == 1:
                whole.learner.parameters.flat.add_(1.0)  # not the first one's weights, until it tells them
            outcome = whole.run()
            ended[f"run-{name}"] = {
                "learner": whole.learner.state_dict(),
                "seen": whole.collector.view.observation,
                "counts": [outcome.steps, outcome.updates],
            }

            first = trainer_of(name, out / f"{name}-stopped")
            first.listeners = (killing(first),) if rank == 1 else ()
            stopped = first.run()
            second = trainer_of(name, None)
            distributed.any_process(False)  # the file is there once the first process came by
            second.resume(out / f"{name}-stopped" / "checkpoints" / "last.pt")
            second.run()
            ended[f"stopped-{name}"] = [stopped.updates, stopped.interrupted]
            ended[f"resumed-{name}"] = second.learner.state_dict()
        torch.save(ended, out / f"process-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
