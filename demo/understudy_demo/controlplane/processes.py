"""Why this exists: servers that we start must never outlive us, whatever happens to us.

Three means, each for one way to die. An orderly stop waits for every process. A killed launcher takes its
children along, because each child asks the kernel (PR_SET_PDEATHSIG, Linux) to kill it when its parent dies.
What stays on disk then is found by the next start: a workspace is locked for as long as its owner lives, and
an unlocked one is swept away.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Runs in the child, between fork and the real program: a `preexec_fn` would run Python in the forked copy of a
# process with threads, which may deadlock; a small program of its own may not. The question for the parent
# closes the gap between the fork and the request.
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# The kernel sends the parent-death signal when the *thread* that forked ends, so one thread that lives as long
# as this process forks them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

# Below the range that Linux and macOS draw the local ports of outgoing connections from, so that a port that
# was free a moment ago is not taken by a passing client.
_FIRST_PORT, _LAST_PORT = 20_000, 31_999


class ProcessError(RuntimeError):
    """A server did not start, or ended on its own."""


class Process:
    """One server process with a log file, tied to the life of this process."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        """Start `command`, its output appended to `log`."""
        self.name = name
        self.log = log
        tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *map(str, command)]
        with log.open("ab") as output:
            self._popen = _SPAWNER.submit(
                subprocess.Popen,
                tether,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for us: the servers have to be stopped in order.
                start_new_session=True,
            ).result()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What the process ended with, negative for a signal; None while it runs."""
        return self._popen.poll()

    def check(self) -> None:
        """Raise `ProcessError` with the end of the log if the process has ended."""
        if not self.running:
            raise ProcessError(
                f"{self.name} ended with code {self._popen.returncode}; the end of {self.log}:\n{self.log_tail()}"
            )

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): connections hang, nothing is refused. Linux only."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is only on its way: come back when the last thread has stopped, and leave the exit to `_popen`.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask the process to end and wait; kill it when it has not ended after `timeout_s`."""
        if self.running:
            self.resume()  # a paused process would not hear the request
            self._popen.terminate()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once (SIGKILL) and wait for it."""
        self._popen.kill()
        self._popen.wait()


class Workspace:
    """A private temporary folder that lasts as long as its owner, and is swept away after a crash."""

    def __init__(self, prefix: str) -> None:
        """Create the folder, and remove those whose owner has died.

        The path is kept short: a unix socket's may have 107 bytes.
        """
        root = Path(tempfile.gettempdir()) / f"understudy-{os.getuid()}"
        if len(str(root)) > 60:
            root = Path("/tmp") / root.name  # private all the same: see below
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise PermissionError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
        # A folder is created and locked under one lock for all, so that no sweep can see it unlocked.
        with (root / "lock").open("w") as everyone:
            fcntl.flock(everyone, fcntl.LOCK_EX)
            for folder in root.iterdir():
                if folder.is_dir():
                    _remove_if_ownerless(folder)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=root))
            self._lock: int | None = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder, if that has not been done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_ownerless(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # its owner lives
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now.

    Between this answer and the server's own bind another process may take it: callers retry.
    """
    for port in random.SystemRandom().sample(range(_FIRST_PORT, _LAST_PORT + 1), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port between {_FIRST_PORT} and {_LAST_PORT}")
