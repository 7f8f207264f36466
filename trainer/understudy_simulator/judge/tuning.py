"""Policies trained further on a cell's past, before anybody is judged on its future.

Learning is not the judge's business, and the room that can learn stands above this one. So who trains is plugged in,
and gets nothing but the actor and the past: it could not look at the future if it wanted to.

What was trained on a past looks too good there. So there are three of each: one that knows the second half of the past
and plays the first, one that knows the first half and plays the second, and one that knows all of it and plays the
future. The first two only tell what training is worth, and at which price of a miss (two-fold cross-validation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from understudy_simulator.judge.bench import Report, program
from understudy_simulator.judge.entrants import Learned
from understudy_simulator.past import Past, PastError, of_cell
from understudy_simulator.processes import spread
from understudy_simulator.protocol import Cell

GROUP, NAME = "understudy.learning", "finetune"


class Tune(Protocol):
    """Who trains; it must be picklable, and the same inputs must give the same actor."""

    def mark(self) -> str:
        """Names everything of the trainer that a result depends on."""

    def __call__(self, actor: Path, past: Past, target: Path) -> None:
        """Train an actor further on a past, and write it where `target` says, whole or not at all."""


def plugged() -> Tune:
    """The trainer that is installed.

    Raises:
        ModuleNotFoundError: it lacks something.
    """
    (found,) = entry_points(group=GROUP, name=NAME)
    tune: Tune = found.load()()
    return tune


def run(
    cells: Sequence[Cell],
    policies: Sequence[Path],
    tune: Tune,
    out: Path,
    workers: int | None = None,
    progress: Report = lambda share: None,
) -> tuple[list[list[Learned]], dict[str, str]]:
    """Train every policy further for every cell, or take what `out` holds of that.

    Args:
        cells: whose pasts are learned from.
        policies: ONNX files.
        tune: who trains.
        out: folder for the actors; made if it is missing. Their names hold a digest of all that they depend on.
        workers: processes; by default one per core.
        progress: is told the share of the work that is done.

    Returns:
        What became of the policies for every cell; and by key of the cell, why they were left there as they were.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: list[list[Learned]] = []
    left: dict[str, str] = {}
    todo: dict[Path, tuple[Path, Past]] = {}
    for cell in cells:
        try:
            parts = of_cell(cell)
        except PastError as error:
            left[cell.key] = str(error)
            files.append([(path, path, path) for path in policies])
            continue
        own = [_targets(out, cell, path, parts, tune) for path in policies]
        todo |= {
            target: (path, past)
            for path, targets in zip(policies, own, strict=True)
            for target, past in zip(targets, parts, strict=True)
            if not target.is_file()
        }
        files.append(own)
    progress(0.0 if todo else 1.0)
    tasks = {target: (tune, (path, past, target)) for target, (path, past) in todo.items()}
    for done, _ in enumerate(spread(workers, tasks), start=1):
        progress(done / len(tasks))
    return files, left


def _targets(out: Path, cell: Cell, policy: Path, parts: tuple[Past, Past, Past], tune: Tune) -> Learned:
    first, second, whole = (
        out / f"{cell.key}-{policy.stem}-{plays}-{_digest(policy, past, tune)}.onnx"
        for plays, past in zip(("first", "second", "future"), parts, strict=True)
    )
    return first, second, whole


def _digest(policy: Path, past: Past, tune: Tune) -> str:
    content = hashlib.sha256(policy.read_bytes()).hexdigest()
    return hashlib.sha256(repr([content, past.fingerprint(), tune.mark(), program()]).encode()).hexdigest()[
        :16
    ]
