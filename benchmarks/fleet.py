"""Understudy beside the HPA of the real kube-controller-manager, on one real API server.

    python benchmarks/fleet.py --json fleet.json

As many Deployments for each, scaled by the same request rate: an RLPolicy each, whose reference follows the rate, or an
HPA each with one external metric. Measured is one pass over all of them when nothing has to change and when every
target has to, then what two thousand idle policies cost. The autoscalers run one after the other, so that neither
takes the other's processor. No pods exist and no controller but the HPA's runs in the kube-controller-manager: its
CPU time is the HPA's alone. Calls are counted by the API server's audit log. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _audit import HPA, UNDERSTUDY, Audit, Call, counted
from _machine import machine
from _stand_ins import CAPACITY_RPS, METRIC, StandIns, Workload
from prometheus_client.parser import text_string_to_metric_families

from understudy_demo.controlplane.client import Kube as PlainKube
from understudy_demo.controlplane.client import read_manifests, wait_for
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.processes import Process, free_port
from understudy_operator.kube import Kube

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"
CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "horizontal-pod-autoscaler-controller",
)
NAMESPACES = 10
TICK_S = 15.0
TARGET = 0.7
RATES_RPS = (35.0, 87.5, 175.0)
"""Two, five and ten pods at 70 % of 25 requests per second each: every step changes every target."""
IDLE_RPS = 5.0
RAISED = ("--kube-api-qps=5000", "--kube-api-burst=5000", "--concurrent-horizontal-pod-autoscaler-syncs=10")
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


# --- the objects ------------------------------------------------------------------------------------------------------


def workloads(prefix: str, count: int) -> list[Workload]:
    """So many names, spread over the namespaces."""
    return [(f"team-{i % NAMESPACES}", f"{prefix}-{i:04d}") for i in range(count)]


def deployment(name: str) -> dict[str, Any]:
    """A Deployment of two pods."""
    labels = {"app": name}
    containers = [{"name": "app", "image": "app", "resources": {"requests": {"cpu": "1"}}}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def rlpolicy(name: str) -> dict[str, Any]:
    """An RLPolicy that acts, with a reference that follows the request rate."""
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "RLPolicy",
        "metadata": {"name": name},
        "spec": {
            "owner": "team-benchmark",
            "scaleTargetRef": {"name": name},
            "minReplicas": 2,
            "maxReplicas": 30,
            "mode": "Active",
            "objective": {"latencyThreshold": "250ms", "capacityPerPod": int(CAPACITY_RPS)},
            "reference": {"signal": "requestRate", "target": TARGET},
        },
    }


def hpa(name: str) -> dict[str, Any]:
    """An HPA that follows the same rate to the same utilisation."""
    metric = {"name": METRIC, "selector": {"matchLabels": {"service": name}}}
    target = {"type": "AverageValue", "averageValue": f"{round(TARGET * CAPACITY_RPS * 1000)}m"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 30,
            "metrics": [{"type": "External", "external": {"metric": metric, "target": target}}],
        },
    }


async def create(
    kubeconfig: Path, deployments: Sequence[Workload], objects: Sequence[tuple[str, Workload]]
) -> None:
    """Create Deployments that say that their two pods are ready, and policies or HPAs: `(kind, workload)`."""
    slots = asyncio.Semaphore(20)
    ready = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), 2)
    kinds = {
        "rlpolicies": ("/apis/understudy.dev/v1alpha1", rlpolicy),
        "horizontalpodautoscalers": ("/apis/autoscaling/v2", hpa),
    }

    async with await Kube.connect(kubeconfig, timeout_s=60.0) as kube:

        async def one_deployment(namespace: str, name: str) -> None:
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
            async with slots:
                await kube.create(path, deployment(name))
                await kube.patch(f"{path}/{name}/status", {"status": ready})

        async def one_object(kind: str, namespace: str, name: str) -> None:
            root, make = kinds[kind]
            async with slots:
                await kube.create(f"{root}/namespaces/{namespace}/{kind}", make(name))

        await asyncio.gather(*(one_deployment(*workload) for workload in deployments))
        await asyncio.gather(*(one_object(kind, *workload) for kind, workload in objects))


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

    def wait_for_the_end(self) -> None:
        """Return well after the tick that has just begun, and well before the next."""
        time.sleep(max(0.0, self._stand_ins.asked_at[-1] + 0.75 * TICK_S - time.monotonic()))

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


def measured_ticks(plane: Plane, operator: Operator, count: int) -> dict[str, Any]:
    """What the next so many ticks cost, all that goes on between them included."""
    operator.wait_for_the_end()
    before, began_s = operator.metrics(), time.time()
    cpu_s, clock_s = operator.cpu.seconds(), time.monotonic()
    operator.wait_for_ticks(count)
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
    }


def measure_understudy(plane: Plane, mine: Sequence[Workload], folder: Path) -> dict[str, Any]:
    """One pass with nothing to change and one with everything."""
    plane.stand_ins.rate_rps.update(dict.fromkeys(mine, RATES_RPS[0]))
    with operating(plane, folder) as operator:
        operator.wait_for_ticks(8)  # the first statuses are written, and the actor has settled
        none = measured_ticks(plane, operator, 3)
        began_s = time.time()
        plane.stand_ins.rate_rps.update(dict.fromkeys(mine, RATES_RPS[1]))
        change = measured_ticks(plane, operator, 1)
        written = {call.name for call in plane.audit.calls(UNDERSTUDY, began_s) if _is_scale_write(call)}
    return {"none": none, "change": {**change, "targets_written": len(written)}}


def measure_idle(plane: Plane, count: int, folder: Path) -> dict[str, Any]:
    """What many policies cost whose targets stay as they are."""
    with operating(plane, folder) as operator:
        began_s = time.monotonic()
        operator.wait_for_ticks(1)
        first_tick_s = time.monotonic() - began_s
        operator.wait_for_ticks(9)
        return {
            "policies": count,
            "seconds_to_first_tick": first_tick_s,
            **measured_ticks(plane, operator, 6),
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
        # Twice, so that the conditions of a start have been written.
        for _ in range(2):
            audit.wait_for_each(HPA, names, _is_metric, time.time(), PASS_TIMEOUT_S)
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
        _say(f"creating {policies} Deployments and RLPolicies, {policies} Deployments and HPAs")
        objects = [*(("rlpolicies", w) for w in mine), *(("horizontalpodautoscalers", w) for w in theirs)]
        asyncio.run(create(kubeconfig, [*mine, *theirs], objects))
        _say("Understudy: one pass with nothing to change, one with everything")
        figures["understudy"] = measure_understudy(plane, mine, folder)
        _say("HPA with raised limits")
        figures["hpa_raised"] = measure_hpa(plane, theirs, RAISED, *RATES_RPS[:2])
        _say("HPA with default flags")
        figures["hpa_default"] = measure_hpa(plane, theirs, (), *RATES_RPS[1:])
        _say(f"Understudy: {idle} policies with nothing to change")
        for namespace in {namespace for namespace, _ in mine}:
            path = f"/apis/understudy.dev/v1alpha1/namespaces/{namespace}/rlpolicies"
            plane.kube.request("DELETE", path)
        plane.stand_ins.rate_rps.clear()
        plane.stand_ins.rate_rps.update(dict.fromkeys(quiet, IDLE_RPS))
        asyncio.run(create(kubeconfig, quiet, [("rlpolicies", workload) for workload in quiet]))
        figures["idle"] = measure_idle(plane, idle, folder)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the table and the ratios."""
    names = {
        "understudy": "Understudy",
        "hpa_raised": "HPA, raised limits",
        "hpa_default": "HPA, default flags",
    }
    print(f"\n{figures['policies']} targets; load before: {figures['machine']['load_average_1min']}")
    print(f"{'':22}{'pass':>10} {'CPU':>10} {'API calls':>10} {'writes':>8} {'RSS':>9}")
    for what, words in (("none", "nothing to change"), ("change", "every target to be changed")):
        print(words)
        for key, name in names.items():
            row = figures[key][what]
            print(
                f"  {name:20}{row['seconds']:>8.2f} s {row['cpu_seconds']:>8.2f} s {row['api_calls']:>10.0f} "
                f"{row['patches']:>8} {row['rss_mib']:>5.0f} MiB"
            )
        ours = figures["understudy"][what]
        for key in ("hpa_raised", "hpa_default"):
            row = figures[key][what]
            print(
                f"  Understudy takes {ours['seconds'] / row['seconds']:.2f} × the time and "
                f"{ours['cpu_seconds'] / row['cpu_seconds']:.2f} × the CPU of {names[key]}"
            )
    idle = figures["idle"]
    print(
        f"{idle['policies']} idle policies: {idle['cpu_seconds'] * 1e3:.0f} ms of CPU a tick, "
        f"{idle['cpu_share_of_a_core']:.2%} of a core (aim: 1 %), {idle['patches']} patches (aim: 0), "
        f"{idle['rss_mib']:.0f} MiB"
    )


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--policies", type=int, default=500, help="targets of each autoscaler")
    parser.add_argument("--idle", type=int, default=2000, help="idle policies")
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
