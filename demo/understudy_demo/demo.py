"""The whole loop on a real control plane, from a replayed load to an HTML report, with a kill in the middle.

The run is a script: warm up, let the actor act, kill it, let the reference carry on, resume, report. It has shown
something only if the loop really closed, so it ends with a list of what was missing, empty in a good run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import requests
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from understudy_demo import figures, report
from understudy_demo.cluster import (
    NAMESPACE,
    OPERATOR_NAMESPACE,
    WORKLOAD,
    Cluster,
    DemoError,
    cluster_at_hand,
    local_cluster,
    the_policy,
)
from understudy_demo.controlplane.client import wait_for
from understudy_demo.controlplane.processes import Process, free_port
from understudy_demo.controlplane.prometheus import Prometheus, ScrapeTarget
from understudy_demo.emulator import Emulator, Workload, replay
from understudy_demo.load import Load, make_load
from understudy_demo.samples import LedgerTail, Record, Sample, SampleFile, sample_of
from understudy_demo.table import Line, Show

SHORTEST_S = 120
"""Nothing is scaled in before 60 ticks of history are there, and a rule may look back as far again."""

KILL_AT, RESUME_AT = 0.55, 0.70
WARMUP_S = 12.0
SCRAPE_S = 0.5


@dataclass(frozen=True)
class DemoConfig:
    """What to run.

    Attributes:
        trace: a recording to replay; None for a generated load.
        column: of the recording, where it has several.
        context: of a cluster at hand; None for a control plane of its own.
        seconds: length of the replay.
        out: folder of the report and everything it is made of.
        keep: leave everything running after the report, until Ctrl-C.
        seed: of all random draws.
    """

    trace: Path | None = None
    column: str | None = None
    context: str | None = None
    seconds: int = 240
    out: Path = Path("demo-out")
    keep: bool = False
    seed: int = 0


def run(config: DemoConfig, console: Console) -> list[str]:
    """Run the demo and write its report.

    Args:
        config: what to run.
        console: for progress and table.

    Returns:
        What the run failed to show, one sentence each; empty in a good run.

    Raises:
        DemoError: the demo cannot run.
        TraceError: the recording must not be replayed as it is.
    """
    if config.seconds < SHORTEST_S:
        raise DemoError(
            f"--seconds is {config.seconds}: give at least {SHORTEST_S}, because nothing is scaled in before a minute "
            "of history is there"
        )
    spec = the_policy().spec
    capacity_rps = spec.objective.capacity_per_pod_rps
    assert capacity_rps is not None  # policy.yaml gives it
    load = make_load(
        config.trace,
        config.column,
        seconds=config.seconds,
        capacity_rps=capacity_rps,
        max_replicas=spec.max_replicas,
        seed=config.seed,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    for name in ("ledger.jsonl", "operator.log"):
        (config.out / name).unlink(missing_ok=True)
    began_s = time.monotonic()
    with ExitStack() as stack:
        place = cluster_at_hand(config.context) if config.context else local_cluster(config.seed)
        cluster = stack.enter_context(place)
        stage = stack.enter_context(_stage(config, cluster, load))
        console.print(
            f"up after {time.monotonic() - began_s:.0f} s: {cluster.words}; Kubernetes {cluster.version}",
            soft_wrap=True,
        )
        played = _Play(config, cluster, stage, load).play(console)
        page = report.write(config.out, played)
        missing = figures.shortcomings(played.figures, played.samples[0].ready)
        console.print(report.summary(played), soft_wrap=True, markup=False, highlight=False)
        console.print(f"report: {page}", soft_wrap=True, markup=False)
        if config.keep:
            _wait_for_interrupt(console, cluster, stage)
        stage.operator.stop()
        if stage.operator.exit_code != 0:
            missing.append(
                f"the operator ended with code {stage.operator.exit_code} instead of 0 when asked to"
            )
    return missing


@dataclass(frozen=True)
class _Stage:
    """Everything that runs beside the cluster."""

    emulator: Emulator
    prometheus: Prometheus
    operator: Process
    operator_url: str
    emulator_began_s: float


@contextmanager
def _stage(config: DemoConfig, cluster: Cluster, load: Load) -> Iterator[_Stage]:
    """Start emulator, Prometheus and operator, in this order, and end them in the other."""
    cluster.wait_for_pods()
    first_rps = load.trace.rate_at(0.0)
    workload = Workload(NAMESPACE, WORKLOAD, rate=lambda _: first_rps)
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator([workload], cluster.emulator_kubeconfig, seed=config.seed))
        emulator_began_s = time.monotonic()
        prometheus = stack.enter_context(
            Prometheus([ScrapeTarget("emulator", emulator.address)], scrape_interval_s=SCRAPE_S)
        )
        port = free_port()
        operator = Process(
            "understudy-operator",
            [
                sys.executable,
                "-m",
                "understudy_operator",
                f"--kubeconfig={cluster.operator_kubeconfig}",
                f"--prometheus-url={prometheus.url}",
                f"--ledger={config.out / 'ledger.jsonl'}",
                f"--namespace={OPERATOR_NAMESPACE}",
                "--host=127.0.0.1",
                f"--port={port}",
            ],
            config.out / "operator.log",
        )
        stack.callback(operator.stop)
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            operator.check()
            try:
                return _get(f"{url}/readyz").ok
            except requests.ConnectionError:
                return False

        wait_for(ready, f"the operator to be ready (log: {operator.log})", timeout_s=60.0)
        yield _Stage(emulator, prometheus, operator, url, emulator_began_s)


class _Play:
    """The script of one run."""

    def __init__(self, config: DemoConfig, cluster: Cluster, stage: _Stage, load: Load) -> None:
        self._config, self._cluster, self._stage, self._load = config, cluster, stage, load
        self._tail = LedgerTail(config.out / "ledger.jsonl", NAMESPACE, WORKLOAD)
        self._ledger: list[Record] = []
        self._samples: list[Sample] = []
        self._phase = "warming up"

    def play(self, console: Console) -> report.Played:
        """Play the script and return all that the report needs."""
        config, policy = self._config, the_policy()
        threshold_s = policy.spec.objective.latency_threshold_s
        commands: list[report.Command] = []
        with ExitStack() as stack:
            file = SampleFile(config.out / "samples.csv")
            stack.callback(file.close)
            thread = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="person"))
            show = stack.enter_context(Show(console, self._load.label, threshold_s))
            self._warm_up(show)
            began = time.monotonic()
            began_s = time.time()
            offset_s = -self._load.compression * (began - self._stage.emulator_began_s)
            rate = replay(self._load.trace, self._load.compression, offset_s)
            self._stage.emulator.set_rate(NAMESPACE, WORKLOAD, rate)
            self._phase = "the actor acts"
            drill: dict[str, Future[report.Command]] = {}
            for second in range(config.seconds + 1):
                time.sleep(max(0.0, began + second - time.monotonic()))
                file.append(self._look(show, second))
                if "kill" not in drill and second >= KILL_AT * config.seconds:
                    drill["kill"] = thread.submit(self._command, "kill", WORKLOAD, "--reason", "drill")
                if "resume" not in drill and second >= RESUME_AT * config.seconds:
                    drill["resume"] = thread.submit(self._command, "resume", WORKLOAD)
                for name, phase in _PHASES.items():
                    if name in drill and drill[name].done() and drill[name].result() not in commands:
                        commands.append(drill[name].result())
                        show.note(f"$ {commands[-1].line}\n{commands[-1].output}")
                        self._phase = phase
            for words in (("status",), ("explain", WORKLOAD, f"--operator-url={self._stage.operator_url}")):
                commands.append(self._command(*words))
        self._ledger += self._tail.fresh()
        when = figures.Drill(drill["kill"].result().accepted_s, drill["resume"].result().accepted_s)
        overrun = int(self._metric("understudy_tick_overruns_total"))
        return report.Played(
            load=self._load,
            where=self._cluster.words,
            policy=policy,
            began_s=began_s,
            samples=self._samples,
            ledger=self._ledger,
            drill=when,
            figures=figures.compute(self._samples, self._ledger, when, overrun),
            commands=commands,
            versions=self._versions(),
        )

    def _warm_up(self, show: Show) -> None:
        """Let Prometheus gather a first window, hand over the workload, and wait for the first decision."""
        began = time.monotonic()
        self._cluster.apply_policy()
        while not self._ledger or time.monotonic() - began < WARMUP_S:
            if time.monotonic() - began > 5 * WARMUP_S:
                raise DemoError(f"the operator decided nothing: see {self._stage.operator.log}")
            self._look(show, time.monotonic() - began - WARMUP_S)
            time.sleep(1.0)
        self._samples.clear()

    def _look(self, show: Show, second: float) -> Sample:
        """Take a sample and show it."""
        self._stage.operator.check()
        truth = self._stage.emulator.truth()[f"{NAMESPACE}/{WORKLOAD}"]
        sample = sample_of(time.time(), truth, self._cluster.deployment())
        self._samples.append(sample)
        self._ledger += self._tail.fresh()
        show.add(Line(second, self._phase, sample, self._ledger[-1] if self._ledger else None))
        return sample

    def _command(self, *words: str) -> report.Command:
        """Run `understudy` as the person on call would.

        Raises:
            DemoError: the command failed.
        """
        kubeconfig = str(self._cluster.oncall_kubeconfig)
        program = Path(sys.executable).with_name("understudy")
        line = ("understudy", *words, "-n", NAMESPACE)
        process = subprocess.Popen(
            [program, *line[1:], f"--kubeconfig={kubeconfig}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120", "TERM": "dumb"},
        )
        assert process.stdout is not None  # PIPE
        first = process.stdout.readline()
        accepted_s = time.time()
        output = (first + process.stdout.read()).rstrip()
        if process.wait() != 0:
            raise DemoError(f"`{' '.join(line)}` ended with code {process.returncode}: {output}")
        return report.Command(" ".join(line), output, accepted_s)

    def _metric(self, name: str) -> float:
        """The sum of one of the operator's own metrics."""
        families = text_string_to_metric_families(_get(f"{self._stage.operator_url}/metrics").text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def _versions(self) -> dict[str, str]:
        """What took part, with its version."""
        models = {record["model_sha256"] for record in self._ledger if record["model_sha256"]}
        built = _get(f"{self._stage.prometheus.url}/api/v1/status/buildinfo").json()["data"]
        return {
            "Understudy": version("understudy"),
            "Kubernetes": self._cluster.version,
            "Prometheus": built["version"] or "unknown",
            "Python": python_version(),
            "actor": f"{the_policy().spec.model.uri} {' '.join(sorted(models)) or '(none was loaded)'}",
        }


_PHASES = {
    "kill": "killed: the reference carries on",
    "resume": "resumed: the actor acts",
}


def _get(url: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy is to be asked for a server on this machine
        return session.get(url, timeout=10)


def _wait_for_interrupt(console: Console, cluster: Cluster, stage: _Stage) -> None:
    """Leave everything running for a person who wants to look around."""
    where = f"KUBECONFIG={cluster.kubeconfig}" if cluster.kubeconfig else "the context that you gave"
    console.print(
        f"still running: {where}, Prometheus {stage.prometheus.url}; Ctrl-C ends it", soft_wrap=True
    )
    try:
        while True:
            stage.operator.check()
            time.sleep(1.0)
    except KeyboardInterrupt:
        console.print("stopping")
