"""Runs beside each other: which options made the difference, and how sure one can be of it.

One seed says little, so runs that differ in nothing but the seed are one row of the table: the interquartile mean of
their figures, with a bootstrap interval (arXiv:2108.13264). Everything is read from what the runs wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from understudy_policy import artifact
from understudy_trainer.tracking import RECORD, flat

MIDDLE = 0.25
"""Share of the runs that an interquartile mean leaves out at either end; of three and fewer it leaves out none."""

DRAWS = 2_000
"""Resamples of a bootstrap interval."""

SHOWN = {
    "evaluation/cost_ratio": "cost ratio",
    "evaluation/missed_ratio": "missed ratio",
    "evaluation/changes_ratio": "changes ratio",
    "reward_mean": "reward",
    "entropy": "entropy",
    "steps_per_second": "steps/s",
}
"""Figures in the table, where runs have them; `-o json` has all."""

BEST_BY = "evaluation/score"
"""Evaluations count where this was highest, as for the artefact; other figures where the run ended."""

ORIGINS = ("seed",)
"""Options that make no other kind of run."""


class RunError(ValueError):
    """A folder holds no run, or one that cannot be read; the message names it."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it is.
        options: by dotted names.
        steps: environment steps done.
        figures: by TensorBoard's tags; finite ones.
        sha256: of its artefact; None where it wrote none yet.
    """

    folder: str
    options: dict[str, Any]
    steps: int
    figures: dict[str, float]
    sha256: str | None


@dataclass(frozen=True)
class Estimate:
    """What several runs say together.

    Attributes:
        mean: interquartile mean.
        low, high: bounds of its 95 % bootstrap interval; None for one run, which has none.
        runs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:,.4g}"
        return f"{self.mean:,.4g} [{self.low:,.4g}, {self.high:,.4g}]"


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        options: those that differ from row to row.
        runs: of this kind.
        figures: by tag.
    """

    options: dict[str, Any]
    runs: list[Run]
    figures: dict[str, Estimate]


def estimate(values: Sequence[float], draws: int = DRAWS) -> Estimate:
    """Interquartile mean and interval, from so many resamples, of one figure of several runs."""
    array = np.asarray(values, dtype=float)
    mean = float(stats.trim_mean(array, MIDDLE))
    if len(array) < 2:
        return Estimate(mean, None, None, len(array))
    interval = stats.bootstrap(
        (array,),
        lambda sample, axis: stats.trim_mean(sample, MIDDLE, axis=axis),
        n_resamples=draws,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(array))


def read(folder: Path) -> Run:
    """A run from its folder.

    Raises:
        RunError: there is none in it.
    """
    # TensorBoard takes a second to import.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    try:
        record = json.loads((folder / RECORD).read_text())
        path = folder / f"{record['name']}.onnx"
        actor = artifact.load(path.resolve().as_uri()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no run that can be read ({error}); name the --folder of a training"
        ) from error
    if not (folder / "tensorboard").is_dir():
        raise RunError(f"{folder} has no figures yet; they come with the first line of progress")
    # 0: all points, else it would thin out long runs.
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {
        tag: {point.step: point.value for point in events.Scalars(tag) if math.isfinite(point.value)}
        for tag in events.Tags()["scalars"]
    }
    curves = {tag: curve for tag, curve in curves.items() if curve}
    scores = curves.get(BEST_BY, {})
    best = max(scores, key=lambda step: scores[step]) if scores else None
    held_out = actor.manifest.lineage["held_out"] if actor else {}
    figures = {f"evaluation/{name}": value for name, value in held_out.items()} | {
        tag: curve[best] if tag.startswith("evaluation/") and best in curve else curve[max(curve)]
        for tag, curve in curves.items()
    }
    steps = max((max(curve) for curve in curves.values()), default=0)
    # As many processes learn from as many times the services.
    options = flat(record["options"]) | {"processes": record.get("processes", 1)}
    return Run(str(folder), options, steps, figures, actor.sha256 if actor else None)


def compare(runs: Sequence[Run]) -> list[Row]:
    """Rows of runs of one kind each, the cheapest first where all were evaluated."""
    names = dict.fromkeys(name for run in runs for name in run.options if name not in ORIGINS)
    differing = [name for name in names if len({_key(run.options.get(name)) for run in runs}) > 1]
    kinds: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        kinds.setdefault(tuple(_key(run.options.get(name)) for name in differing), []).append(run)
    rows = [
        Row({name: alike[0].options.get(name) for name in differing}, alike, _figures(alike))
        for alike in kinds.values()
    ]
    return sorted(rows, key=lambda row: _ratio(row.figures))


def _figures(runs: Sequence[Run]) -> dict[str, Estimate]:
    told: dict[str, list[float]] = {}
    for run in runs:
        for tag, value in run.figures.items():
            told.setdefault(tag, []).append(value)
    return {tag: estimate(values) for tag, values in told.items()}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _ratio(figures: Mapping[str, Estimate]) -> float:
    return figures["evaluation/cost_ratio"].mean if "evaluation/cost_ratio" in figures else math.inf


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    shown = {tag: title for tag, title in SHOWN.items() if any(tag in row.figures for row in rows)}
    options = list(rows[0].options)
    drawn = Table(*(options or ["options"]), "runs", "steps", *shown.values())
    for row in rows:
        steps = [run.steps for run in row.runs]
        drawn.add_row(
            *([str(row.options[name]) for name in options] or ["the same"]),
            str(len(row.runs)),
            f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,} … {max(steps):,}",
            *(str(row.figures.get(tag, "")) for tag in shown),
        )
    return drawn


class Output(StrEnum):
    """How to show a comparison."""

    TABLE = "table"
    JSON = "json"


app = typer.Typer(no_args_is_help=True, help="Look at training runs.")


@app.callback()
def _runs() -> None:
    """Look at training runs."""


@app.command("compare")
def compare_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output: Annotated[Output, typer.Option("--output", "-o", help="How to show it.")] = Output.TABLE,
) -> None:
    """Put runs beside each other: options that differ, and what came of them."""
    try:
        rows = compare([read(folder) for folder in folders])
    except RunError as error:
        Console(stderr=True).print(str(error))
        raise typer.Exit(1) from error
    if output is Output.JSON:
        print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
    else:
        Console().print(table(rows))
