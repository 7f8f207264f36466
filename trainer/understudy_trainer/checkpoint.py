"""Checkpoints: everything that the next update depends on, in one file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and what is wrong with it."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, numbers, strings, and lists and dicts of them).

    A reader, and a run that is killed meanwhile, sees the old file or the new one.
    """
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"format_version": FORMAT_VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto a device. No code in it is run.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; start without resuming")
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler say
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"checkpoint {path} has format {version}, this version reads {FORMAT_VERSION}")
    return content


@contextmanager
def of_the_same_run(path: Path) -> Iterator[None]:
    """While inside, what a checkpoint holds is taken over.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is of another network or algorithm; resume with the options that it began with"
        ) from error


class Checkpoints:
    """A folder with `last.pt`, `best.pt` and the newest few by update."""

    def __init__(self, folder: Path, keep: int = 10) -> None:
        self.folder = folder
        self.keep = keep
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"

    @classmethod
    def of_run(cls, folder: Path) -> Checkpoints:
        """Those of a run; nothing is made before something is written."""
        return cls(folder / "checkpoints")

    def write(self, content: dict[str, Any], update: int, is_best: bool) -> None:
        """Write a checkpoint, point `last.pt` (and `best.pt`) at it and drop what is too old."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"update-{update:09d}.pt"
        save(path, content)
        self._point(self.last, path)
        if is_best:
            self._point(self.best, path)
        for old in sorted(self.folder.glob("update-*.pt"))[: -self.keep]:
            old.unlink()

    def _point(self, name: Path, path: Path) -> None:
        # A hard link: the content stays when the numbered file goes.
        link = name.with_name(name.name + ".partial")
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, name)
