"""How much experience and how much processor time the algorithms need on tasks that everybody knows, and on ours.

Criterion, fixed before any run: the mean return of the last hundred training episodes (the noisy policy that learns,
not a lucky greedy evaluation). All systems run in turn, one thread each, and processor seconds are counted, which other
work on the machine disturbs least. Stable-Baselines3 runs in the same loop where it is installed.

Every finished run is appended to a file of lines beside FILE and is not run again, so a long comparison can be made in
slices:

    python benchmarks/learning.py --json learning.json --minutes 20
    python benchmarks/learning.py --json learning.json --only LunarLander-v3,a2c,sb3-a2c --seeds 3
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from _sb3 import as_vec_env
from _tasks import FIRST_SEED, TASKS, Task, Theirs
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a3c import A3CConfig
from understudy_trainer.compare import estimate
from understudy_trainer.loop import BaseTrainer, RunConfig, StopRun
from understudy_trainer.training import TrainingConfig, environment_seed, make_trainer
from understudy_trainer.workers import AsynchronousTrainer

Choose = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        options: fingerprint of the system's options; a run with others is another run.
        budget: steps that it had.
        learnt: the criterion was met within them.
        steps: environment steps until then, or the budget.
        cpu_s: processor seconds until then, of all processes, compilation and imports of workers included.
        greedy_return: mean return of a hundred episodes of the final policy's likeliest actions.
        load: average of the last minute when it ended.
    """

    task: str
    system: str
    seed: int
    options: str
    budget: int
    learnt: bool
    steps: int
    cpu_s: float
    greedy_return: float
    load: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other runs."""
        return self.task, self.system, self.seed, self.options, self.budget


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def greedy_return(task: Task, choose: Choose) -> float:
    """Mean return of the first episode in each of a hundred rows with a seed of their own."""
    world = task.world(100, 987_654)
    view, total, alive = world.reset(), torch.zeros(100), torch.ones(100, dtype=torch.bool)
    while bool(alive.any()):
        step = world.step(choose(view.observation))
        total += step.reward * alive
        alive &= ~(step.terminated | step.truncated)
        view = step.view
    return float(total.mean())


def likeliest(model: ActorCritic) -> Choose:
    """The greedy policy of a network."""

    def choose(observation: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(observation, None, model.initial_memory(len(observation))).logits.argmax(1)

    return choose


def ours(task: Task, options: TrainingConfig, seed: int, budget: int) -> tuple[bool, int, float, Choose]:
    """One run of ours: whether it learnt, its steps and processor seconds, and what it would do."""
    learnt = False

    def listen(_steps: int, scalars: dict[str, float]) -> None:
        nonlocal learnt
        if scalars["episodes_averaged"] >= 100 and scalars["episode_return"] >= task.criterion:
            learnt = True
            raise StopRun

    config = replace(options, seed=seed, run=RunConfig(total_steps=budget, log_updates=1))
    start = cpu_seconds()
    if isinstance(config.algorithm, A3CConfig):
        factory = functools.partial(task.world, task.rows // config.algorithm.workers)
        trainer: BaseTrainer = AsynchronousTrainer(factory, config, listeners=(listen,))
    else:
        trainer = make_trainer(task.world(task.rows, environment_seed(config)), config, listeners=(listen,))
    outcome, model = trainer.run(), trainer.learner.model
    if outcome.interrupted and not learnt:
        raise SystemExit("stopped by SIGTERM")
    return learnt, outcome.steps, cpu_seconds() - start, likeliest(model)


def baselines3(
    name: str, task: Task, options: Theirs, seed: int, budget: int
) -> tuple[bool, int, float, Choose]:
    """One run of Stable-Baselines3; see `ours`."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    class Stop(BaseCallback):
        learnt = False

        def _on_step(self) -> bool:
            episodes = self.model.ep_info_buffer
            if self.locals["dones"].any() and len(episodes) >= 100:
                self.learnt = float(np.mean([episode["r"] for episode in episodes])) >= task.criterion
            return not self.learnt

    def falling(begin: float) -> Callable[[float], float]:
        return lambda left: left * begin

    warm_up()
    start, stop = cpu_seconds(), Stop()
    envs = (
        as_vec_env(task.vectors(options.rows))
        if task.vectors
        else make_vec_env(name, options.rows, seed=seed)
    )
    normalized = VecNormalize(envs, gamma=options.options.get("gamma", 0.99)) if options.normalize else None
    model = getattr(stable_baselines3, options.algorithm)(
        "MlpPolicy",
        normalized or envs,
        seed=seed,
        device="cpu",
        **options.options,
        **{name: falling(begin) for name, begin in options.falling.items()},
    )
    model.learn(budget, callback=stop)
    spent = cpu_seconds() - start

    def choose(observation: torch.Tensor) -> torch.Tensor:
        seen: Any = observation.numpy()
        seen = normalized.normalize_obs(seen) if normalized else seen
        return torch.from_numpy(model.predict(seen, deterministic=True)[0])

    return stop.learnt, model.num_timesteps, spent, choose


@functools.cache
def warm_up() -> None:
    """Let torch and Stable-Baselines3 import what they import when they are first used, before a clock runs."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    for algorithm in (stable_baselines3.A2C, stable_baselines3.PPO):
        algorithm("MlpPolicy", make_vec_env("CartPole-v1"), n_steps=8, device="cpu").learn(16)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Interquartile mean over seeds (of five the middle three), and its 95 % bootstrap interval; NaN for one seed."""
    found = estimate(values, draws=9_999)
    if found.low is None or found.high is None:
        return found.mean, math.nan, math.nan
    return found.mean, found.low, found.high


def summarise(results: list[Result]) -> dict[str, Any]:
    """Figures of one system on one task."""
    return {
        "learnt": f"{sum(r.learnt for r in results)}/{len(results)}",
        "steps": interval([r.steps for r in results]),
        "cpu_s": interval([r.cpu_s for r in results]),
        "greedy_return": interval([r.greedy_return for r in results]),
        "steps_per_cpu_s": sum(r.steps for r in results) / sum(r.cpu_s for r in results),
        "load": [min(r.load for r in results), max(r.load for r in results)],
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


def fingerprint(options: TrainingConfig | Theirs) -> str:
    """Of what differs from the defaults: an option that is added later does not make an old run another one."""
    told = TypeAdapter(type(options)).dump_json(options, exclude_defaults=True)
    return hashlib.sha256(told).hexdigest()[:12]


def wanted(only: set[str], seeds: int, limit: int | None) -> Iterator[tuple[str, str, int, int, Any]]:
    """Task, system, seed, budget and options of every run. Seeds outside: a busy hour meets all systems."""
    have_theirs = importlib.util.find_spec("stable_baselines3") is not None
    tasks = only & set(TASKS) or set(TASKS)
    for name in [name for name in TASKS if name in tasks]:
        task = TASKS[name]
        systems: dict[str, Any] = {**task.ours, **(task.theirs if have_theirs else {})}
        chosen = only - set(TASKS) or set(systems)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for system in [system for system in systems if system in chosen]:
                yield name, system, seed, min(task.budget, limit or task.budget), systems[system]


def known(path: Path) -> dict[tuple[Any, ...], Result]:
    """The runs that a file of lines holds."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Result(**json.loads(line)) for line in lines]
    return {result.key: result for result in found}


def report(runs: list[Result], path: Path | None, console: Console) -> None:
    """Print the tables of these runs, and write them."""
    told: dict[str, Any] = {"machine": machine(), "tasks": {}, "runs": [asdict(run) for run in runs]}
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        summary = {
            system: summarise([run for run in of_task if run.system == system])
            for system in dict.fromkeys(run.system for run in of_task)
        }
        told["tasks"][task] = {"criterion": TASKS[task].criterion, "systems": summary}
        console.print(table(task, summary))
    if path:
        # NaN, the interval of a single seed, is no JSON.
        plain = json.loads(json.dumps(told), parse_constant=lambda _name: None)
        path.write_text(json.dumps(plain, indent=1) + "\n")


def main() -> None:
    """Run, print, write."""
    systems = {system for task in TASKS.values() for system in (*task.ours, *task.theirs)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="File for the figures; runs go to FILE.runs."
    )
    parser.add_argument("--seeds", type=int, default=5, help="Seeds for each system. Default: %(default)s.")
    parser.add_argument(
        "--only", default="", help=f"Tasks ({', '.join(TASKS)}) and systems, with commas between."
    )
    parser.add_argument(
        "--limit", type=int, metavar="STEPS", help="At most so many environment steps in a run."
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="Begin no run after so many minutes.")
    options = parser.parse_args()
    only = {name.strip() for name in options.only.split(",") if name.strip()}
    if only - systems - set(TASKS):
        parser.error(f"--only {', '.join(only - systems - set(TASKS))}: no such task or system; see --help")
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 130)
    if importlib.util.find_spec("stable_baselines3") is None:
        console.print("stable-baselines3 is not installed (extra `learning`): its rows are left out.")
    begun = time.monotonic()
    lines = options.json.with_name(options.json.name + ".runs") if options.json else Path(os.devnull)
    done, runs = known(lines), []
    for name, system, seed, budget, how in wanted(only, options.seeds, options.limit):
        key = (name, system, seed, fingerprint(how), budget)
        if key not in done and time.monotonic() - begun > 60.0 * options.minutes:
            continue
        if key not in done:
            task = TASKS[name]
            one = (
                baselines3(name, task, how, seed, budget)
                if isinstance(how, Theirs)
                else ours(task, how, seed, budget)
            )
            learnt, steps, cpu_s, choose = one
            value = greedy_return(task, choose)
            done[key] = Result(*key, learnt, steps, cpu_s, value, round(os.getloadavg()[0], 1))
            with lines.open("a") as file:
                file.write(json.dumps(asdict(done[key])) + "\n")
            console.print(
                f"{name} {system} seed {seed}: {'learnt' if learnt else 'not learnt'} after {steps:,} steps, "
                f"{cpu_s:.1f} CPU s, greedy return {value:.1f}"
            )
        runs.append(done[key])
    report(runs, options.json, console)


if __name__ == "__main__":
    main()
