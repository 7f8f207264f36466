"""What a lock installs suffices for what is run where it was installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

LOCKS = Path(__file__).parents[2] / "requirements"

STARTS = """
import re, sys
from importlib.metadata import packages_distributions

pinned = set(re.findall(r"^([a-z0-9-]+)==", open(sys.argv[1]).read(), re.MULTILINE)) | {"understudy"}
owners = {
    module: {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    for module, names in packages_distributions().items()
}

class Missing:
    def find_spec(self, name, *_):
        if not owners.get(name, pinned) & pinned:
            raise ModuleNotFoundError(f"{name} is in no package of the lock", name=name)

sys.meta_path.insert(0, Missing())
import understudy_operator.cli.main
import understudy_operator.telemetry.ranges
"""
"""With every package hidden that the lock does not name."""


@pytest.mark.parametrize("lock", ["operator", "trainer", "demo"])
def test_the_command_line_starts_wherever_it_is_installed(lock):
    started = subprocess.run(
        [sys.executable, "-c", STARTS, str(LOCKS / f"{lock}.txt")],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr


def test_locks_agree_with_each_other():
    pins: dict[tuple[str, str], set[str]] = {}
    for lock in LOCKS.glob("*.txt"):
        for name, version, where in re.findall(r"^(\S+)==(\S+)( ; [^\\]*)?", lock.read_text(), re.MULTILINE):
            pins.setdefault((name, where.strip()), set()).add(version)
    assert not {name: versions for name, versions in pins.items() if len(versions) > 1}
