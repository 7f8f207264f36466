"""Long tasks spread over the cores: Ctrl-C ends them at once, and after a failure none that waits is begun.

Nobody works on for a command that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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
    with ProcessPoolExecutor(workers or cores(), spawn, initializer=_begin) as pool:
        waiting = {pool.submit(function, *given): key for key, (function, given) in tasks.items()}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        finally:
            # Hours of work may wait behind a failure.
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    # At Ctrl-C at once; as an exception it would only end the task at hand.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end when the one that spawned it has, however that ended: killed, it can tell nobody."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("nobody spawned this process: there is no parent to end with")
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
