"""Understudy beside the HPA of the real kube-controller-manager, on one real API server.

    python benchmarks/fleet.py --json fleet.json

As many Deployments for each, scaled by the same request rate: an RLPolicy each, whose reference follows the rate, or an
HPA each with one external metric. Measured is one pass over all of them when nothing has to change and when every
target has to, then what two thousand idle policies cost. The autoscalers run one after the other, so that neither
takes the other's processor. No pods exist and no controller but the HPA's runs in the kube-controller-manager: its
CPU time is the HPA's alone. Calls are counted by the API server's audit log. Takes about ten minutes; `--policies 0`
or `--idle 0` leaves half of it out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _audit import HPA, UNDERSTUDY, Audit, Call, counted
from _machine import machine
from _objects import NAMESPACES, create, workloads
from _stand_ins import StandIns, Workload
from prometheus_client.parser import text_string_to_metric_families

from understudy_demo.controlplane.client import Kube as PlainKube
from understudy_demo.controlplane.client import read_manifests, wait_for
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.processes import Process, free_port

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"
CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "horizontal-pod-autoscaler-controller",
)
TICK_S = 15.0
RATES_RPS = (35.0, 87.5, 175.0)
"""Two, five and ten pods at 70 % of 25 requests per second each: every step changes every target."""
IDLE_RPS = 5.0
RAISED = ("--kube-api-qps=5000", "--kube-api-burst=5000", "--concurrent-horizontal-pod-autoscaler-syncs=10")
SETTLING_TICKS = 8
SATURATED_AFTER_S = 20.0
PASS_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Plane:
    """All that a measurement needs.

    Attributes:
        control: etcd and API server; its controller manager has been stopped.
        manager_command: what that controller manager ran as.
        kube: as an administrator.
        audit, stand_ins: see there.
    """

    control: ControlPlane
    manager_command: Sequence[str]
    kube: PlainKube
    audit: Audit
    stand_ins: StandIns


class Cpu:
    """CPU seconds of a process, and its memory."""

    def __init__(self, process: Process) -> None:
        self._process = psutil.Process(process.pid)

    def seconds(self) -> float:
        """User and system time since its start."""
        times = self._process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        """Resident memory now."""
        return self._process.memory_info().rss / 2**20


# --- Understudy -------------------------------------------------------------------------------------------------------


class Operator:
    """The operator as it is deployed: a process of its own, with the rights of the chart."""

    def __init__(self, plane: Plane, folder: Path) -> None:
        kubeconfig = plane.control.kubeconfig_for_service_account("understudy-system", "understudy-operator")
        self._stand_ins = plane.stand_ins
        self._port = free_port()
        self.process = Process(
            "operator",
            [
                sys.executable,
                "-m",
                "understudy_operator",
                f"--prometheus-url={plane.stand_ins.prometheus_url}",
                f"--kubeconfig={kubeconfig}",
                f"--ledger={folder / 'ledger.jsonl'}",
                "--host=127.0.0.1",
                f"--port={self._port}",
            ],
            folder / "operator.log",
        )
        self.cpu = Cpu(self.process)

    def wait_for_ticks(self, count: int) -> None:
        """Return when so many further ticks have begun."""
        until = len(self._stand_ins.asked_at) + count

        def begun() -> bool:
            self.process.check()
            return len(self._stand_ins.asked_at) >= until

        wait_for(begun, f"{count} ticks", (count + 4) * TICK_S, 0.02)

    def settle(self, audit: Audit) -> None:
        """Return after the end of a tick that wrote nothing: conditions and statuses of a start have been written."""
        for _ in range(SETTLING_TICKS):
            began_s = time.time()
            self.wait_for_ticks(1)
            self.wait_for_the_end()
            if not any(call.verb == "patch" for call in audit.calls(UNDERSTUDY, began_s)):
                return

    def wait_for_the_end(self) -> None:
        """Return well after the tick that has just begun, and well before the next."""
        time.sleep(max(0.0, self._stand_ins.asked_at[-1] + 0.75 * TICK_S - time.time()))

    def metrics(self) -> dict[str, float]:
        """Sums over all labels of every metric of the operator, by sample name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            totals: dict[str, float] = {}
            for family in families:
                for sample in family.samples:
                    totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals


@contextmanager
def operating(plane: Plane, folder: Path) -> Iterator[Operator]:
    """Run the operator; a fresh one finds in Prometheus what has happened before."""
    running = Operator(plane, folder)
    try:
        yield running
    finally:
        running.process.stop()


def measured_ticks(
    plane: Plane, operator: Operator, count: int, and_until: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """What the next so many ticks cost on average, all that goes on between them included."""
    before, began_s = operator.metrics(), time.time()
    cpu_s, clock_s = operator.cpu.seconds(), time.monotonic()
    operator.wait_for_ticks(count)
    and_until()
    operator.wait_for_the_end()
    cpu_s, clock_s = operator.cpu.seconds() - cpu_s, time.monotonic() - clock_s
    after = operator.metrics()
    delta = {name: value - before.get(name, 0.0) for name, value in after.items()}
    time.sleep(1.0)  # the audit log is written in batches
    calls = plane.audit.calls(UNDERSTUDY, began_s)
    ticks = delta["understudy_tick_duration_seconds_count"]
    return {
        "ticks": int(ticks),
        "seconds": delta["understudy_tick_duration_seconds_sum"] / ticks,
        "cpu_seconds": cpu_s / ticks,
        "cpu_share_of_a_core": cpu_s / clock_s,
        "api_calls": len(calls),
        "patches": sum(call.verb == "patch" for call in calls),
        "api_calls_by_kind": counted(calls),
        "overruns": delta["understudy_tick_overruns_total"],
        "rss_mib": operator.cpu.rss_mib(),
        "load_average_1min": round(os.getloadavg()[0], 1),
    }


def measure_understudy(plane: Plane, mine: Sequence[Workload], folder: Path) -> dict[str, Any]:
    """One pass with nothing to change and one with everything."""
    plane.stand_ins.rate_rps.update(dict.fromkeys(mine, RATES_RPS[0]))
    with operating(plane, folder) as operator:
        operator.settle(plane.audit)
        none = measured_ticks(plane, operator, 3)
        plane.stand_ins.rate_rps.update(dict.fromkeys(mine, RATES_RPS[1]))
        ticks, ended_s = len(plane.stand_ins.asked_at), 0.0

        def all_written() -> None:
            nonlocal ended_s
            names, began_s = [name for _, name in mine], plane.stand_ins.asked_at[ticks]
            ended_s = plane.audit.wait_for_each(UNDERSTUDY, names, _is_scale_write, began_s, PASS_TIMEOUT_S)

        change = measured_ticks(plane, operator, 1, all_written)
        change["tick_seconds"] = change["seconds"]
        # What the deadline of the tick has cut off is written by the next ones: they belong to the pass.
        change["seconds"] = ended_s - plane.stand_ins.asked_at[ticks]
        change["cpu_seconds"] *= change["ticks"]
    return {"none": none, "change": change}


def measure_idle(plane: Plane, count: int, folder: Path) -> dict[str, Any]:
    """What many policies cost whose targets stay as they are."""
    with operating(plane, folder) as operator:
        began_s = time.monotonic()
        operator.wait_for_ticks(1)
        first_tick_s = time.monotonic() - began_s
        operator.settle(plane.audit)
        return {
            "policies": count,
            "seconds_to_first_tick": first_tick_s,
            **measured_ticks(plane, operator, 5),
        }


def _is_scale_write(call: Call) -> bool:
    return call.what == "deployments/scale" and call.verb in ("patch", "update") and call.code == 200


# --- the HPA ----------------------------------------------------------------------------------------------------------


def measure_hpa(
    plane: Plane, theirs: Sequence[Workload], flags: Sequence[str], before_rps: float, after_rps: float
) -> dict[str, Any]:
    """One pass with nothing to change and one with everything, in a controller manager with more flags."""
    plane.stand_ins.rate_rps.update(dict.fromkeys(theirs, before_rps))
    names, audit = [name for _, name in theirs], plane.audit
    with controller_manager(plane, flags) as process:
        cpu = Cpu(process)
        # Until the conditions of a start have been written.
        for _ in range(SETTLING_TICKS):
            began_s = time.time()
            audit.wait_for_each(HPA, names, _is_metric, began_s, PASS_TIMEOUT_S)
            if not any(call.verb == "update" for call in audit.calls(HPA, began_s)):
                break
        figures = {}
        for what, rate_rps, matches in (
            ("none", before_rps, _is_metric),
            ("change", after_rps, _is_scale_write),
        ):
            silent = audit.wait_for_silence(HPA, 2.0, SATURATED_AFTER_S)
            began_s, cpu_s = time.time(), cpu.seconds()
            plane.stand_ins.rate_rps.update(dict.fromkeys(theirs, rate_rps))
            ended_s = audit.wait_for_each(HPA, names, matches, began_s, PASS_TIMEOUT_S)
            if silent:
                audit.wait_for_silence(HPA, 1.0, SATURATED_AFTER_S)  # the last statuses belong to the pass
            cpu_s, calls = cpu.seconds() - cpu_s, audit.calls(HPA, began_s)
            figures[what] = {
                "seconds": ended_s - min(call.began_s for call in calls),
                "cpu_seconds": cpu_s,
                "api_calls": len(calls),
                "patches": sum(call.verb in ("patch", "update") for call in calls),
                "api_calls_by_kind": counted(calls),
                "never_silent": not silent,
                "rss_mib": cpu.rss_mib(),
                "load_average_1min": round(os.getloadavg()[0], 1),
            }
    return {"flags": list(flags), **figures}


@contextmanager
def controller_manager(plane: Plane, flags: Sequence[str]) -> Iterator[Process]:
    """The plane's controller manager once more, with more flags; the last of a flag counts."""
    name = "kube-controller-manager"
    process = Process(name, [*plane.manager_command, *flags], plane.control.logs / f"{name}.log")
    try:
        yield process
    finally:
        process.stop()


def _is_metric(call: Call) -> bool:
    return call.what == "external" and call.code == 200


# --- the report -------------------------------------------------------------------------------------------------------


@contextmanager
def furnished(folder: Path) -> Iterator[Plane]:
    """A control plane with CRDs, rights, namespaces and the source of the metrics, and nobody who scales."""
    audit = Audit(folder)
    with (
        StandIns(folder) as stand_ins,
        ControlPlane(controllers=CONTROLLERS, apiserver_flags=audit.flags) as control,
    ):
        kube = PlainKube(control.admin_kubeconfig)
        kube.apply(read_manifests(MANIFESTS / "crds", MANIFESTS / "rbac"))
        kube.apply(stand_ins.manifests)
        for i in range(NAMESPACES):
            kube.create("v1/namespaces", {"metadata": {"name": f"team-{i}"}})
        wait_for(lambda: _is_available(kube), "external.metrics.k8s.io to be available")
        manager = control.processes["kube-controller-manager"]
        command = psutil.Process(manager.pid).cmdline()
        manager.stop()
        yield Plane(control, command, kube, audit, stand_ins)


def _is_available(kube: PlainKube) -> bool:
    service = kube.get("apiregistration.k8s.io/v1/apiservices", "v1beta1.external.metrics.k8s.io")
    conditions = (service.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)


def measure(policies: int, idle: int, folder: Path) -> dict[str, Any]:
    """Everything, one after the other."""
    mine, theirs, quiet = (
        workloads(prefix, count) for prefix, count in (("rl", policies), ("hpa", policies), ("idle", idle))
    )
    figures: dict[str, Any] = {"policies": policies, "machine": machine()}
    with furnished(folder) as plane:
        kubeconfig = plane.control.admin_kubeconfig
        if policies:
            _say(f"creating {policies} Deployments and RLPolicies, {policies} Deployments and HPAs")
            objects = [*(("rlpolicies", w) for w in mine), *(("horizontalpodautoscalers", w) for w in theirs)]
            asyncio.run(create(kubeconfig, [*mine, *theirs], objects))
            _say("Understudy: one pass with nothing to change, one with everything")
            figures["understudy"] = measure_understudy(plane, mine, folder)
            _say("HPA with raised limits")
            figures["hpa_raised"] = measure_hpa(plane, theirs, RAISED, *RATES_RPS[:2])
            _say("HPA with default flags")
            figures["hpa_default"] = measure_hpa(plane, theirs, (), *RATES_RPS[1:])
            for namespace in {namespace for namespace, _ in mine}:
                path = f"/apis/understudy.dev/v1alpha1/namespaces/{namespace}/rlpolicies"
                plane.kube.request("DELETE", path)
            plane.stand_ins.rate_rps.clear()
        if idle:
            _say(f"Understudy: {idle} policies with nothing to change")
            plane.stand_ins.rate_rps.update(dict.fromkeys(quiet, IDLE_RPS))
            asyncio.run(create(kubeconfig, quiet, [("rlpolicies", workload) for workload in quiet]))
            figures["idle"] = measure_idle(plane, idle, folder)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the tables and the ratios."""
    if "understudy" in figures:
        report_passes(figures)
    if "idle" in figures:
        idle = figures["idle"]
        print(
            f"{idle['policies']} idle policies: {idle['cpu_seconds'] * 1e3:.0f} ms of CPU a tick, "
            f"{idle['cpu_share_of_a_core']:.2%} of a core (aim: 1 %), {idle['patches']} patches (aim: 0), "
            f"{idle['rss_mib']:.0f} MiB, load {idle['load_average_1min']}"
        )


def report_passes(figures: dict[str, Any]) -> None:
    """Print what the passes took, and the ratios."""
    names = {
        "understudy": "Understudy",
        "hpa_raised": "HPA, raised limits",
        "hpa_default": "HPA, default flags",
    }
    print(f"{figures['policies']} targets")
    print(f"{'':22}{'pass':>10} {'CPU':>10} {'API calls':>10} {'writes':>8} {'RSS':>9} {'load':>6}")
    for what, words in (("none", "nothing to change"), ("change", "every target to be changed")):
        print(words)
        for key, name in names.items():
            row = figures[key][what]
            print(
                f"  {name:20}{row['seconds']:>8.2f} s {row['cpu_seconds']:>8.2f} s {row['api_calls']:>10.0f} "
                f"{row['patches']:>8} {row['rss_mib']:>5.0f} MiB {row['load_average_1min']:>6}"
            )
        ours = figures["understudy"][what]
        for key in ("hpa_raised", "hpa_default"):
            row = figures[key][what]
            print(
                f"  Understudy takes {ours['seconds'] / row['seconds']:.2f} × the time and "
                f"{ours['cpu_seconds'] / row['cpu_seconds']:.2f} × the CPU of {names[key]}"
            )


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--policies", type=int, default=500, help="targets of each autoscaler, 0: none")
    parser.add_argument("--idle", type=int, default=2000, help="idle policies, 0: none")
    parser.add_argument(
        "--folder", type=Path, help="where logs and ledger stay; by default they are thrown away"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="understudy-fleet-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(arguments.policies, arguments.idle, folder)
    report(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
