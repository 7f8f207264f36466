"""Cells spread over the cores, one result file per cell, so that hours of judging survive an interruption."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

import understudy_policy
import understudy_simulator
from understudy_simulator.judge import entrants as taking_part
from understudy_simulator.judge.contest import CellResult, Entrant, hold
from understudy_simulator.judge.entrants import Learned
from understudy_simulator.processes import cores, spread
from understudy_simulator.protocol import Cell

ROWS_AT_ONCE = 8192
"""Rows of a batch: enough to hide Python's overhead, few enough to lose only minutes to an interruption."""

TELLING = frozenset({"cli.py", *(f"judge/{name}.py" for name in ("plots", "report", "show", "summary"))})
"""Modules that only tell of results: mending them spoils none."""

Report = Callable[[float], None]


Tuned = Sequence[Learned]
"""Of one cell: every policy, in order; empty where none was trained further."""


def entrants(policies: Sequence[Path], tuned: Sequence[Tuned] = ()) -> list[Entrant]:
    """All rules, then the policies, then what became of them.

    Args:
        policies: ONNX files.
        tuned: of every cell that is held together.

    Raises:
        ValueError: two policies have the same name.
        ArtifactError: a policy failed verification.
    """
    everybody = [*taking_part.rules(), *(taking_part.policy(path) for path in policies)]
    for path, *files in zip(policies, *tuned, strict=True) if any(tuned) else ():
        everybody.append(taking_part.fine_tuned(path, files))
    names = [entrant.name for entrant in everybody]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--policy: {twice[0]!r} is taken twice or a rule's name; rename one of the files.")
    return everybody


def run(
    cells: Sequence[Cell],
    policies: Sequence[Path],
    out: Path,
    workers: int | None = None,
    progress: Report = lambda share: None,
    tuned: Sequence[Tuned] | None = None,
) -> list[CellResult]:
    """Judge cells, or take what `out` holds of them from an earlier run with the same inputs.

    Args:
        cells: what is judged.
        policies: ONNX files.
        out: folder for one result file per cell; made if it is missing.
        workers: processes; by default one per core.
        progress: is told the share of the work that is done.
        tuned: of every cell; see `tuning`.

    Returns:
        One result per cell, in order: the same numbers whatever `workers` is.
    """
    out.mkdir(parents=True, exist_ok=True)
    tuned = tuned or [()] * len(cells)
    everybody = entrants(policies, tuned[:1])
    marks = [mark(cell, everybody, [*policies, *chain(*own)]) for cell, own in zip(cells, tuned, strict=True)]
    files = [out / f"{cell.key}.npz" for cell in cells]
    missing = [k for k, (file, own) in enumerate(zip(files, marks, strict=True)) if not _holds(file, own)]
    rows = sum(len(entrant.labels) for entrant in everybody)
    workers = workers or cores()
    batches = list(_batches(cells, missing, rows, workers))
    total = sum(cells[k].ticks for k in range(len(cells)))
    done = total - sum(cells[k].ticks for k in missing)
    progress(done / total)
    tasks = {
        tuple(batch): (
            _judge,
            (
                [cells[k] for k in batch],
                policies,
                [tuned[k] for k in batch],
                [(files[k], marks[k]) for k in batch],
            ),
        )
        for batch in batches
    }
    for judged in spread(workers, tasks):
        done += sum(cells[k].ticks for k in judged)
        progress(done / total)
    return [read(file) for file in files]


def mark(cell: Cell, everybody: Sequence[Entrant], policies: Sequence[Path]) -> str:
    """Names everything that a cell's result depends on, so that a stale file is never taken for a fresh one."""
    labels = [(entrant.name, entrant.labels) for entrant in everybody]
    return hashlib.sha256(
        repr([cell.fingerprint(), labels, digests(policies), program()]).encode()
    ).hexdigest()


def digests(files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file."""
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@functools.cache
def program() -> str:
    """Digest of all code that a result may depend on: an upgrade in the middle of a run is a new run."""
    digest = hashlib.sha256()
    for package in (understudy_policy, understudy_simulator):
        root = Path(package.__path__[0])
        for file in sorted(root.rglob("*.py")):
            if str(file.relative_to(root)) not in TELLING:
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _batches(cells: Sequence[Cell], missing: Sequence[int], rows: int, workers: int) -> Iterator[list[int]]:
    """Cells that run in one pass: of equal length, about `ROWS_AT_ONCE` rows, and enough batches for all workers."""

    def shape(k: int) -> tuple[int, int, int]:
        return cells[k].ticks, cells[k].past_ticks, cells[k].seeds

    for (_, _, seeds), alike in groupby(sorted(missing, key=shape, reverse=True), key=shape):
        own = list(alike)
        most = max(1, min(ROWS_AT_ONCE // (rows * seeds), -(-len(own) // workers)))
        count = -(-len(own) // most)
        for k in range(count):
            yield own[k::count]


def _judge(
    cells: Sequence[Cell],
    policies: Sequence[Path],
    tuned: Sequence[Tuned],
    targets: Sequence[tuple[Path, str]],
) -> None:
    """What a worker does."""
    told = taking_part.aims() if policies else None
    results = hold(cells, entrants(policies, tuned), told)
    for result, (file, own) in zip(results, targets, strict=True):
        write(result, file, own)


def write(result: CellResult, file: Path, own: str) -> None:
    """Store a result; the file appears whole or not at all."""
    arrays: dict[str, Any] = {field.name: getattr(result, field.name) for field in fields(CellResult)}
    texts = {"mark": own, "entrants": arrays.pop("entrants"), "labels": arrays.pop("labels")}
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    with scratch.open("wb") as stream:
        np.savez_compressed(stream, texts=np.array(json.dumps(texts)), **arrays)
    scratch.replace(file)


def read(file: Path) -> CellResult:
    """A stored result."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    texts = json.loads(str(arrays.pop("texts")))
    return CellResult(entrants=tuple(texts["entrants"]), labels=tuple(texts["labels"]), **arrays)


def _holds(file: Path, own: str) -> bool:
    try:
        with np.load(file) as stored:
            return bool(json.loads(str(stored["texts"]))["mark"] == own)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False  # not there, or of another program: it is judged anew and replaced
