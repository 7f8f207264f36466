"""How fast a policy learns: environment steps a second, model and learner together, beside Stable-Baselines3.

An environment step is one 15 s tick of one workload. Everything that learning needs is counted: drawing services,
rehearsing the reference rows, stepping the cluster model, choosing, learning. Not counted is the compiler's work at the
start. Stable-Baselines3's A2C learns with 16 environments on one thread, twice: in the Gymnasium environment of
`understudy_simulator.gymnasium`, as anybody would use it (`ratio_to_sb3`), and in our compiled world, which shows what
the learner alone is worth (`ratio_to_sb3_compiled`). Processor seconds are what the ratios are made of: other work on
the machine disturbs them least. Processes share their gradients, as under torchrun.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --processes 2
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from _machine import machine
from _sb3 import as_vec_env
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from understudy_policy.actions import DECISION_TICKS
from understudy_simulator.gymnasium import AutoscaleVectorEnv
from understudy_simulator.scenario import TICK_S
from understudy_trainer import distributed, launch
from understudy_trainer.autoscaling import REFERENCE_ROWS, AutoscalingConfig, AutoscalingEnvironment
from understudy_trainer.options import Options
from understudy_trainer.training import make_trainer

SB3_ENVIRONMENTS = 16
SB3, SB3_COMPILED = "stable-baselines3 a2c", "stable-baselines3 a2c, compiled world"


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        env_steps: ticks of workloads that were learnt from.
        cpu_s, wall_s: they took.
    """

    env_steps: int
    cpu_s: float
    wall_s: float

    def told(self) -> dict[str, float]:
        """For JSON."""
        return {
            "env_steps": self.env_steps,
            "env_steps_per_cpu_second": self.env_steps / self.cpu_s,
            "env_steps_per_second": self.env_steps / self.wall_s,
        }


def ours(algorithm: str, config: AutoscalingConfig) -> Speed:
    """Our loop, until a batch of services was drawn and lived through as often as in a run."""
    options = replace(Options(), algorithm=algorithm, world=config)
    world = AutoscalingEnvironment(config, seed=distributed.rank())
    trainer = make_trainer(world, options.training())
    trainer.warm_up()
    trainer.iterate()  # what is compiled is compiled now
    decisions = config.lives * config.episode_ticks // DECISION_TICKS
    updates = -(-decisions // options.rollout_steps)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    for _ in range(updates):
        trainer.iterate()
    steps = updates * options.rollout_steps * config.workloads * DECISION_TICKS
    return Speed(steps, time.process_time() - cpu_s, time.monotonic() - wall_s)


def in_processes(algorithm: str, config: AutoscalingConfig, processes: int) -> Speed:
    """The same in processes that learn together, each with services of its own; wall time is that of the slowest."""
    told = torch.multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (launch.seats(processes), algorithm, config, told)
    torch.multiprocessing.spawn(_learn_together, arguments, nprocs=processes)
    speeds: list[Speed] = [told.get() for _ in range(processes)]
    return Speed(
        sum(speed.env_steps for speed in speeds),
        sum(speed.cpu_s for speed in speeds),
        max(speed.wall_s for speed in speeds),
    )


def _learn_together(
    rank: int, seats: list[distributed.Seat], algorithm: str, config: AutoscalingConfig, told: Any
) -> None:
    torch.set_num_threads(1)
    with distributed.joined(seat=seats[rank]):
        told.put(ours(algorithm, config))


class CompiledWorld:
    """Our compiled world in the words of a Gymnasium vector environment."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self.world = AutoscalingEnvironment(replace(config, workloads=SB3_ENVIRONMENTS, hints=False), seed=0)
        self.num_envs = SB3_ENVIRONMENTS
        self.single_observation_space = spaces.Box(-20.0, 20.0, (self.world.observation_size,), np.float32)
        self.single_action_space = spaces.Discrete(self.world.num_actions)

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The seed is that of the world."""
        return self.world.reset().observation.numpy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A decision of every service."""
        step = self.world.step(torch.from_numpy(actions))
        final = step.final_observation
        info = {} if final is None else {"final_obs": final.numpy()}
        seen = step.view.observation.numpy()
        return seen, step.reward.numpy(), step.terminated.numpy(), step.truncated.numpy(), info


def theirs(envs: Any, decisions: int) -> Speed:
    """Stable-Baselines3's A2C in such environments."""
    from stable_baselines3 import A2C

    learner = A2C("MlpPolicy", as_vec_env(envs), gamma=0.97, device="cpu", seed=0)
    learner.learn(10 * SB3_ENVIRONMENTS)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    learner.learn(decisions * SB3_ENVIRONMENTS)
    steps = decisions * SB3_ENVIRONMENTS * DECISION_TICKS
    return Speed(steps, time.process_time() - cpu_s, time.monotonic() - wall_s)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="Write all figures to this file.")
    parser.add_argument("--workloads", type=int, default=2048, help="Services at once. Default: %(default)s.")
    parser.add_argument("--algorithms", nargs="+", default=["a2c", "ppo"], choices=["a2c", "ppo", "acktr"])
    parser.add_argument(
        "--sb3-decisions", type=int, default=480, help="Decisions of its learner in each environment."
    )
    parser.add_argument("--processes", type=int, default=1, help="Of ours. Default: %(default)s.")
    parser.add_argument("--plain", action="store_true", help="Compile nothing: much slower.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, begun = Console(), machine()
    config = replace(Options().world, workloads=options.workloads, batches=1, compiled=not options.plain)
    speeds = {
        f"understudy {name}": ours(name, config)
        if options.processes == 1
        else in_processes(name, config, options.processes)
        for name in options.algorithms
    }
    if importlib.util.find_spec("stable_baselines3") is None:
        console.print("stable-baselines3 is not installed (extra `learning`): no ratio to it")
    else:
        vectors = AutoscaleVectorEnv(
            SB3_ENVIRONMENTS,
            config.episode_ticks * TICK_S,
            reference_row=REFERENCE_ROWS[0],
            curves=config.curves,
        )
        speeds[SB3] = theirs(vectors, options.sb3_decisions)
        speeds[SB3_COMPILED] = theirs(CompiledWorld(config), options.sb3_decisions)
    told = {name: speed.told() for name, speed in speeds.items()}
    best = max((told[f"understudy {name}"] for name in options.algorithms), key=_rate)

    def ratio(row: dict[str, float], other: str) -> float | None:
        return _rate(row) / _rate(told[other]) if other in told else None

    figures = {
        "best_env_steps_per_second": best["env_steps_per_second"],
        "best_env_steps_per_cpu_second": _rate(best),
        "ratio_to_sb3": ratio(best, SB3),
        "ratio_to_sb3_compiled": ratio(best, SB3_COMPILED),
        "processes": options.processes,
        "workloads": options.workloads,
        "systems": told,
        "machine": begun | {"load_average_1min_at_end": machine()["load_average_1min"]},
    }
    table = Table("system", "env steps/s of processor time", "env steps/s of wall time", "over SB3")
    for name, row in told.items():
        over = ratio(row, SB3)
        shown = f"{over:.1f}" if over else "–"
        table.add_row(name, f"{_rate(row):,.0f}", f"{row['env_steps_per_second']:,.0f}", shown)
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _rate(told: dict[str, float]) -> float:
    return told["env_steps_per_cpu_second"]


if __name__ == "__main__":
    main()
