"""Why this exists: the operator reads a real Prometheus, and the tests need to break one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import yaml

from understudy_demo.controlplane.binaries import ensure_binaries
from understudy_demo.controlplane.client import wait_for
from understudy_demo.controlplane.processes import Process, ProcessError, Workspace, free_port

_PORT_ATTEMPTS = 5
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ScrapeTarget:
    """One address to scrape."""

    job: str
    address: str  # such as 127.0.0.1:8080
    metrics_path: str = "/metrics"
    labels: Mapping[str, str] = field(default_factory=dict)  # put on every series


class Prometheus:
    """A Prometheus server for use in a `with`.

    Inside, it may be stopped and started again, on the same port and with the same data, or paused, which leaves its
    clients hanging. Port and data are given up at the end of the `with`.

    Attributes:
        url: Where it answers.
        folder: Its configuration, data and log.
    """

    def __init__(
        self,
        targets: Sequence[ScrapeTarget],
        *,
        scrape_interval_s: float = 1.0,
        rule_files: Sequence[Path] = (),
        binaries: Mapping[str, Path] | None = None,
    ) -> None:
        """Describe a server.

        Args:
            targets: What it scrapes.
            scrape_interval_s: Time between two scrapes, and between two evaluations of the rules, in seconds.
            rule_files: Recording and alerting rules.
            binaries: `prometheus` and `promtool`; by default those of `ensure_binaries`.
        """
        self._targets = targets
        self._interval = f"{round(scrape_interval_s * 1000)}ms"
        self._rule_files = rule_files
        self._binaries = binaries
        self._process: Process | None = None

    def __enter__(self) -> Prometheus:
        """Write and check the configuration, choose a port and start.

        Raises:
            ProcessError: promtool refuses the configuration, or the server does not start.
        """
        self._binaries = self._binaries or ensure_binaries()
        self._workspace = Workspace("prometheus")
        self.folder = self._workspace.folder
        try:
            self._write_configuration()
            self._start_on_a_free_port()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and remove the data."""
        self._give_up()

    def start(self) -> None:
        """Start again after `stop`, on the same port and with the same data."""
        assert self._binaries is not None  # set on entry
        process = Process(
            "prometheus",
            [
                self._binaries["prometheus"],
                f"--config.file={self._configuration}",
                f"--storage.tsdb.path={self._data}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--scrape.discovery-reload-interval=100ms",  # else the first scrape comes after 5 s
                "--log.level=warn",
            ],
            self.folder / "prometheus.log",
        )
        self._process = process

        def ready() -> bool:
            process.check()
            return self._ready()

        wait_for(ready, f"prometheus to be ready (log: {process.log})", _READY_TIMEOUT_S, interval_s=0.05)

    def stop(self) -> None:
        """Stop the server: connections are refused until `start`."""
        if self._process:
            self._process.stop()

    def pause(self) -> None:
        """Freeze the server: connections hang until `resume`."""
        self._running().pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running().resume()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The `result` of an instant query: one entry with `metric` and `value` per series."""
        answer = self._get("/api/v1/query", query=expression)
        answer.raise_for_status()
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def _running(self) -> Process:
        if not self._process or not self._process.running:
            raise ProcessError("prometheus is not running; start it first")
        return self._process

    def _write_configuration(self) -> None:
        assert self._binaries is not None  # set on entry
        self._data = self.folder / "data"
        self._configuration = self.folder / "prometheus.yaml"
        configuration = {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "rule_files": [str(path.resolve()) for path in self._rule_files],
            "scrape_configs": [
                {
                    "job_name": target.job,
                    "metrics_path": target.metrics_path,
                    # One process stands in for many targets here, so the labels that it sets win.
                    "honor_labels": True,
                    "static_configs": [{"targets": [target.address], "labels": dict(target.labels)}],
                }
                for target in self._targets
            ],
        }
        self._configuration.write_text(yaml.safe_dump(configuration, sort_keys=False))
        check = subprocess.run(
            [self._binaries["promtool"], "check", "config", self._configuration],
            capture_output=True,
            text=True,
            check=False,
        )
        if check.returncode:
            raise ProcessError(f"promtool refuses the configuration: {(check.stdout + check.stderr).strip()}")

    def _start_on_a_free_port(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            self._port = free_port()
            self.url = f"http://127.0.0.1:{self._port}"
            try:
                self.start()
            except ProcessError as error:
                if attempt == _PORT_ATTEMPTS - 1 or "address already in use" not in str(error):
                    raise
            else:
                return

    def _ready(self) -> bool:
        try:
            if not self._get("/-/ready").ok:
                return False
            flags = self._get("/api/v1/status/flags").json()["data"]
        except (requests.ConnectionError, requests.Timeout):
            return False
        # Another server may have taken the port first; ours will then end, and say so.
        return bool(flags["storage.tsdb.path"] == str(self._data))

    def _get(self, path: str, **params: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy is to be asked for a server on this machine
            return session.get(f"{self.url}{path}", params=params, timeout=10)

    def _give_up(self) -> None:
        self.stop()
        self._workspace.remove()
