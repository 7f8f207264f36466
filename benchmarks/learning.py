"""How much experience and how much processor time the algorithms need on tasks that everybody knows.

Criterion, fixed before any run: the mean return of the last hundred training episodes (the noisy policy that learns,
not a lucky greedy evaluation). All systems run in turn, one thread each, and processor seconds are counted, which other
work on the machine disturbs least. Stable-Baselines3 runs in the same loop where it is installed.

    python benchmarks/learning.py --json learning.json --seeds 5
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from rich.console import Console
from rich.table import Table

from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a2c import A2CConfig
from understudy_trainer.algorithms.a3c import A3CConfig
from understudy_trainer.algorithms.acktr import ACKTRConfig
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.classic_control import Acrobot, CartPole, ClassicControl
from understudy_trainer.collector import RewardConfig
from understudy_trainer.loop import RunConfig, StopRun
from understudy_trainer.training import TrainingConfig, environment_seed, make_trainer
from understudy_trainer.workers import train_asynchronously


@dataclass(frozen=True)
class Task:
    """A task, when it counts as learnt, and how long one may try."""

    world: type[ClassicControl]
    criterion: float
    budget: int


TASKS = {
    "CartPole-v1": Task(CartPole, 475.0, 400_000),
    "Acrobot-v1": Task(Acrobot, -100.0, 400_000),
}

COMMON = TrainingConfig(reward=RewardConfig(scale=0.02), rollout_steps=20)
"""Rows are 32 (16 in each of A3C's two workers); the same options for both tasks, chosen on seeds below FIRST_SEED."""

FIRST_SEED = 1000

OURS = {
    "a2c": replace(COMMON, algorithm=A2CConfig(learning_rate=3e-3)),
    "a3c": replace(COMMON, algorithm=A3CConfig(learning_rate=3e-3, workers=2)),
    "acktr": replace(COMMON, algorithm=ACKTRConfig(entropy_coefficient=0.0), reward=RewardConfig(scale=0.1)),
    "ppo": replace(
        COMMON,
        algorithm=PPOConfig(learning_rate=1e-3, epochs=8, minibatch_rows=256),
        rollout_steps=32,
    ),
}


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        learnt: the criterion was met within the budget.
        steps: environment steps until then, or the budget.
        cpu_s: processor seconds until then, of all processes, compilation and imports of workers included.
        greedy_return: mean return of a hundred episodes of the final policy's likeliest actions.
    """

    system: str
    task: str
    seed: int
    learnt: bool
    steps: int
    cpu_s: float
    greedy_return: float


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def greedy_return(task: Task, choose: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Mean return of the first episode in each of a hundred rows with a seed of their own."""
    world = task.world(100, 987_654)
    view, total, alive = world.reset(), torch.zeros(100), torch.ones(100, dtype=torch.bool)
    while bool(alive.any()):
        step = world.step(choose(view.observation))
        total += step.reward * alive
        alive &= ~(step.terminated | step.truncated)
        view = step.view
    return float(total.mean())


def likeliest(model: ActorCritic) -> Callable[[torch.Tensor], torch.Tensor]:
    """The greedy policy of a network."""

    def choose(observation: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(observation, None, model.initial_memory(len(observation))).logits.argmax(1)

    return choose


def ours(name: str, task_name: str, seed: int) -> Result:
    """One run of ours."""
    task, learnt = TASKS[task_name], False

    def listen(_steps: int, scalars: dict[str, float]) -> None:
        nonlocal learnt
        if scalars["episodes_averaged"] >= 100 and scalars["episode_return"] >= task.criterion:
            learnt = True
            raise StopRun

    config = replace(OURS[name], seed=seed, run=RunConfig(total_steps=task.budget, log_updates=1))
    start = cpu_seconds()
    if isinstance(config.algorithm, A3CConfig):
        factory = functools.partial(task.world, 32 // config.algorithm.workers)
        outcome, model = train_asynchronously(factory, config, listeners=(listen,))
    else:
        trainer = make_trainer(task.world(32, environment_seed(config)), config, listeners=(listen,))
        outcome, model = trainer.run(), trainer.learner.model
    spent = cpu_seconds() - start
    if outcome.interrupted and not learnt:
        raise SystemExit("stopped by SIGTERM")
    return Result(name, task_name, seed, learnt, outcome.steps, spent, greedy_return(task, likeliest(model)))


def baselines3(name: str, task_name: str, seed: int) -> Result:
    """One run of Stable-Baselines3: `a2c` its defaults on 16 rows, `ppo` as its zoo has it for CartPole."""
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    task = TASKS[task_name]

    class Stop(BaseCallback):
        learnt = False

        def _on_step(self) -> bool:
            episodes = self.model.ep_info_buffer
            if len(episodes) >= 100 and np.mean([e["r"] for e in episodes]) >= task.criterion:
                self.learnt = True
            return not self.learnt

    start, stop = cpu_seconds(), Stop()
    model: Any
    if name == "sb3-a2c":
        model = A2C("MlpPolicy", make_vec_env(task_name, 16, seed=seed), seed=seed, device="cpu")
    elif name == "sb3-ppo-default":
        model = PPO("MlpPolicy", make_vec_env(task_name, 1, seed=seed), seed=seed, device="cpu")
    else:
        zoo = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}

        def falling(share: float) -> Callable[[float], float]:
            return lambda left: left * share

        model = PPO(
            "MlpPolicy",
            make_vec_env(task_name, 8, seed=seed),
            learning_rate=falling(1e-3),
            clip_range=falling(0.2),
            seed=seed,
            device="cpu",
            **zoo,
        )
    model.learn(task.budget, callback=stop)
    spent = cpu_seconds() - start

    def choose(observation: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.predict(observation.numpy(), deterministic=True)[0])

    return Result(name, task_name, seed, stop.learnt, model.num_timesteps, spent, greedy_return(task, choose))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis; the outermost of it count by share."""
    ordered, count = np.sort(values, axis=-1), values.shape[-1]
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    return ordered @ np.diff(edges) / 0.5


def interval(values: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Interquartile mean over seeds, and the 95 % bootstrap interval of it."""
    array, rng = np.asarray(values), np.random.default_rng(0)
    resampled = interquartile_mean(rng.choice(array, (draws, len(array))))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(interquartile_mean(array)), float(low), float(high)


def summarise(results: list[Result]) -> dict[str, Any]:
    """Figures of one system on one task."""
    return {
        "learnt": f"{sum(r.learnt for r in results)}/{len(results)}",
        "steps": interval([r.steps for r in results]),
        "cpu_s": interval([r.cpu_s for r in results]),
        "greedy_return": interval([r.greedy_return for r in results]),
        "steps_per_cpu_s": sum(r.steps for r in results) / sum(r.cpu_s for r in results),
    }


def table(task: str, summary: dict[str, dict[str, Any]]) -> Table:
    """The figures for people."""
    shown = Table(
        "system", "learnt", "steps to it", "CPU s to it", "greedy return", "steps per CPU s", title=task
    )
    for system, figures in summary.items():
        cells = [
            f"{mean:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"
            for (mean, low, high), digits in (
                (figures["steps"], 0),
                (figures["cpu_s"], 1),
                (figures["greedy_return"], 1),
            )
        ]
        shown.add_row(system, figures["learnt"], *cells, f"{figures['steps_per_cpu_s']:,.0f}")
    return shown


def main() -> None:
    """Run, print, write."""
    theirs = ["sb3-a2c", "sb3-ppo", "sb3-ppo-default"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--seeds", type=int, default=5, help="Seeds for each system. Default: %(default)s.")
    parser.add_argument("--systems", nargs="+", default=[*OURS, *theirs], choices=[*OURS, *theirs])
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    systems = list(options.systems)
    if importlib.util.find_spec("stable_baselines3") is None:
        console.print("stable-baselines3 is not installed: its rows are left out.")
        systems = [system for system in systems if system in OURS]
    told: dict[str, Any] = {"machine": machine(), "options": {n: asdict(OURS[n]) for n in OURS}, "tasks": {}}
    runs: list[Result] = []
    for task in options.tasks:
        # Seeds outside, systems inside: a busy hour of the machine meets all of them.
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            for system in systems:
                runs.append((ours if system in OURS else baselines3)(system, task, seed))
                last = runs[-1]
                console.print(
                    f"{task} {system} seed {seed}: {'learnt' if last.learnt else 'not learnt'} after {last.steps:,} "
                    f"steps, {last.cpu_s:.1f} CPU s, greedy return {last.greedy_return:.1f}"
                )
        summary = {
            system: summarise([r for r in runs if (r.system, r.task) == (system, task)]) for system in systems
        }
        told["tasks"][task] = summary
        console.print(table(task, summary))
    told["runs"] = [asdict(run) for run in runs]
    told["not_run"] = {"LunarLander": "needs box2d, which is not among the dependencies"}
    told["load_average_1min_after"] = machine()["load_average_1min"]
    if options.json:
        options.json.write_text(
            json.dumps(told, indent=1, default=lambda v: None if math.isnan(v) else v) + "\n"
        )


if __name__ == "__main__":
    main()
