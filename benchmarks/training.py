"""How fast a policy learns: environment steps a second, model and learner together, beside Stable-Baselines3.

An environment step is one 15 s tick of one workload. Everything that learning needs is counted: drawing services,
rehearsing the reference rows, stepping the cluster model, choosing, learning. Not counted is the compiler's work at the
start. Stable-Baselines3's A2C learns with 16 environments in the same world, compiled the same way, on one thread as
well. Processor seconds are what the ratio is made of: other work on the machine disturbs them least.

    python benchmarks/training.py --json training.json
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
from _machine import machine
from rich.console import Console
from rich.table import Table

from understudy_policy.actions import DECISION_TICKS
from understudy_trainer.autoscaling import AutoscalingConfig, AutoscalingEnvironment
from understudy_trainer.train import Options
from understudy_trainer.training import make_trainer

SB3_ENVIRONMENTS = 16


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
    world = AutoscalingEnvironment(config, seed=0)
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


def theirs(config: AutoscalingConfig, decisions: int) -> Speed:
    """Stable-Baselines3's A2C in the same world."""
    import gymnasium
    from stable_baselines3 import A2C
    from stable_baselines3.common.vec_env import VecEnv

    class World(VecEnv):
        """Sixteen services as Stable-Baselines3 wants them."""

        def __init__(self) -> None:
            self.world = AutoscalingEnvironment(replace(config, workloads=SB3_ENVIRONMENTS), seed=0)
            space = gymnasium.spaces.Box(-20.0, 20.0, (self.world.observation_size,), np.float32)
            super().__init__(SB3_ENVIRONMENTS, space, gymnasium.spaces.Discrete(self.world.num_actions))

        def reset(self) -> Any:
            return self.world.reset().observation.numpy()

        def step_async(self, actions: Any) -> None:
            self.actions = torch.from_numpy(actions)

        def step_wait(self) -> Any:
            step = self.world.step(self.actions)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            if step.final_observation is not None:
                for info, seen in zip(infos, step.final_observation.numpy(), strict=True):
                    info.update({"terminal_observation": seen, "TimeLimit.truncated": True})
            return step.view.observation.numpy(), step.reward.numpy(), step.truncated.numpy(), infos

        def close(self) -> None:
            pass

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self, attr_name, None)] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

    world = World()
    learner = A2C("MlpPolicy", world, gamma=0.97, device="cpu", seed=0)
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
    parser.add_argument("--plain", action="store_true", help="Compile nothing: much slower, on both sides.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, begun = Console(), machine()
    config = AutoscalingConfig(workloads=options.workloads, batches=1, compiled=not options.plain)
    speeds = {f"understudy {name}": ours(name, config) for name in options.algorithms}
    if importlib.util.find_spec("stable_baselines3") is None:
        console.print("stable-baselines3 is not installed (extra `learning`): no ratio to it")
    else:
        speeds["stable-baselines3 a2c"] = theirs(config, options.sb3_decisions)
    told = {name: speed.told() for name, speed in speeds.items()}
    best = max((told[f"understudy {name}"] for name in options.algorithms), key=_rate)
    other = told.get("stable-baselines3 a2c")
    figures = {
        "best_env_steps_per_second": best["env_steps_per_second"],
        "best_env_steps_per_cpu_second": _rate(best),
        "ratio_to_sb3": _rate(best) / _rate(other) if other else None,
        "processes": 1,
        "workloads": options.workloads,
        "systems": told,
        "machine": begun | {"load_average_1min_at_end": machine()["load_average_1min"]},
    }
    table = Table("system", "env steps/s of processor time", "env steps/s of wall time", "over SB3")
    for name, row in told.items():
        ratio = f"{_rate(row) / _rate(other):.1f}" if other else "–"
        table.add_row(name, f"{_rate(row):,.0f}", f"{row['env_steps_per_second']:,.0f}", ratio)
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _rate(told: dict[str, float]) -> float:
    return told["env_steps_per_cpu_second"]


if __name__ == "__main__":
    main()
