"""Commands in process groups of their own, so that a test can see whether they leave anybody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any


@contextmanager
def started(command: list[str], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of its own; whoever of it does not stop must not keep the machine busy for ever."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **how) as run:
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def scripted(script: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """The same with a piece of Python that finds every module that this process finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return started([sys.executable, "-c", script], env=environment)


def ends(group: int) -> bool:
    """Whether no process of a group is left; what Python starts beside a process ends shortly after it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
