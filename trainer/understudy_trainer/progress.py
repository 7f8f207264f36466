"""A run as people watch it: one line that says how far it is, how good, and how fast."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SHOWN = (
    ("episode_return", "return {:.4g}"),
    ("cost_mean", "cost {:.3g}"),
    ("entropy", "entropy {:.2f}"),
    ("kl", "KL {:.4f}"),
    ("explained_variance", "critic {:.0%}"),
    ("steps_per_second", "{:,.0f} steps/s"),
)
"""Scalars that are shown where a run tells them, and how."""


def make_progress(console: Console | None = None) -> Progress:
    """A display with room for the figures of a run."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


class ProgressLine:
    """A listener of `Trainer` that keeps one line of a display up to date."""

    def __init__(self, progress: Progress, name: str, total_steps: int) -> None:
        """Add a line to a display made by `make_progress`."""
        self.progress = progress
        self.task = progress.add_task(name, total=total_steps, figures="")

    def __call__(self, steps: int, scalars: dict[str, float]) -> None:
        """See `Listener`."""
        figures = "  ".join(
            shown.format(scalars[name])
            for name, shown in SHOWN
            if name in scalars and math.isfinite(scalars[name])
        )
        self.progress.update(self.task, completed=steps, figures=figures)
