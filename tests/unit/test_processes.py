"""Whoever works for a command ends when the command does, however it ended."""

import signal
import sys
import time

import pytest

from groups import ends, started
from understudy_simulator.processes import end_with_parent

SCRIPT = """
import os, sys, time
from understudy_simulator.processes import spread

folder = sys.argv[1]
tasks = {name: (os.mkdir, (os.path.join(folder, name),)) for name in ("one", "other")}
list(spread(2, tasks | {"rest": (time.sleep, (1000.0,)), "more": (time.sleep, (1000.0,))}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_killed_leaves_no_worker_behind(tmp_path, number):
    with started([sys.executable, "-c", SCRIPT, str(tmp_path)]) as run:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline, "no worker began"
            time.sleep(0.1)
        run.send_signal(number)
        assert run.wait(timeout=20) == -number
        assert ends(run.pid), "a worker is left"


def test_who_was_not_spawned_has_nobody_to_end_with():
    with pytest.raises(RuntimeError, match="nobody spawned this process"):
        end_with_parent()
