"""Long tasks spread over the cores: Ctrl-C ends them at once, and after a failure none that waits is begun."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Key = TypeVar("Key")

Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module, and its arguments."""


def cores() -> int:
    """Processes that this one may use at once."""
    return len(os.sched_getaffinity(0))


def spread(workers: int | None, tasks: Mapping[Key, Task]) -> Iterator[Key]:
    """Do tasks, and tell of each when it is done.

    Args:
        workers: processes; by default one per core.
        tasks: by what they are told of as.

    Raises:
        Exception: what a task raised.
    """
    # Spawned, because a fork would take over threads of ONNX runtime and of the caller in the middle of their work.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or cores(), spawn, initializer=_stop_when_interrupted) as pool:
        waiting = {pool.submit(function, *given): key for key, (function, given) in tasks.items()}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        finally:
            # Hours of work may wait behind a failure.
            pool.shutdown(cancel_futures=True)


def _stop_when_interrupted() -> None:
    """A worker ends at once at Ctrl-C; as an exception it would only end the task at hand."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
