"""Runs of seconds in the real world, for what is done with runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from understudy_trainer import train
from understudy_trainer.loop import Listener
from understudy_trainer.options import read_options

SETTINGS = [
    "world={workloads: 130, episode_ticks: 32, curves: 9, batches: 1, lives: 100, compiled: false}",
    "run={total_steps: 3120, evaluate_updates: 2, log_updates: 1}",
    "rollout_steps=4",
    "network={hidden: [8], critic_hidden: [8]}",
]


def learn(
    folder: Path,
    *settings: str,
    resume: bool = False,
    mlflow: str | None = None,
    listeners: tuple[Listener, ...] = (),
) -> Path:
    """The artefact of a small run."""
    options = read_options(None, [*SETTINGS, *settings])
    return train.train(options, folder, "small", resume, Console(quiet=True), mlflow, listeners)
