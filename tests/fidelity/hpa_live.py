"""Records what the real kube-controller-manager decides, each decision together with all that it was told.

The scale that the autoscalers act on and their metrics are served from here, through the API server's aggregation.
That settles the timing, the weak point of such comparisons. The controller begins every decision by reading the
scale: the answer is held back until the decision's turn on a grid of 6 s, and opens it. Everything read until the
scale is read again belongs to that decision, which is what the controller wrote in between, or else no change.
Nothing can fall between two metrics, and nothing waits for pods or caches: pods never change, only which of them the
scale's selector names.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from hpa_cases import DEFAULT_STABILIZATION_S, POOL, STEP_S, Case, Situation, cases
from understudy_demo import metrics_api
from understudy_demo.controlplane.binaries import ensure_binaries
from understudy_demo.controlplane.client import Kube, wait_for
from understudy_demo.controlplane.plane import ControlPlane

GROUP_VERSION = "fidelity.understudy.dev/v1"
NAMESPACE = "default"
SEED = 5
"""Of the recording that is kept: with few seeds does so much hang on what the controller has forgotten."""

FLAGS = (
    "--horizontal-pod-autoscaler-sync-period=100ms",
    f"--horizontal-pod-autoscaler-downscale-stabilization={DEFAULT_STABILIZATION_S}s",
    "--concurrent-horizontal-pod-autoscaler-syncs=80",
    "--kube-api-qps=5000",
    "--kube-api-burst=5000",
)
_RESOURCES = {
    GROUP_VERSION: [
        {"name": "targets", "singularName": "target", "namespaced": True, "kind": "Target", "verbs": ["get"]},
        {
            "name": "targets/scale",
            "singularName": "",
            "namespaced": True,
            "group": "autoscaling",
            "version": "v1",
            "kind": "Scale",
            "verbs": ["get", "update"],
        },
    ],
    metrics_api.EXTERNAL: [
        {
            "name": "load",
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
    ],
    metrics_api.RESOURCE: [
        {
            "name": "pods",
            "singularName": "",
            "namespaced": True,
            "kind": "PodMetrics",
            "verbs": ["get", "list"],
        }
    ],
}


@dataclass
class Decision:
    """One reconciliation. Times are seconds since the recording began."""

    opened_s: float
    situation: Situation
    reads: list[str] = field(default_factory=list)
    heard_s: float = 0.0
    """The last sign of the controller within this decision: a metric read or the write."""
    written: int | None = None


class Recorder:
    """The scales and the metrics, as handlers of an aggregated API."""

    def __init__(self, workloads: Sequence[Case], decisions_each: int) -> None:
        self.done = threading.Event()
        self.decisions: dict[str, list[Decision]] = {case.name: [] for case in workloads}
        self._cases = {case.name: case for case in workloads}
        self._each = decisions_each
        self._began_s = time.monotonic()
        self._turn_s = {case.name: i * STEP_S / len(workloads) for i, case in enumerate(workloads)}
        self._begun: set[str] = set()
        self._finished: set[str] = set()

    @property
    def routes(self) -> list[web.RouteDef]:
        scale = f"/apis/{GROUP_VERSION}/namespaces/{{namespace}}/targets/{{name}}/scale"
        return [
            web.get(scale, self._get_scale),
            web.put(scale, self._put_scale),
            web.get(f"/apis/{metrics_api.EXTERNAL}/namespaces/{{namespace}}/load", self._external),
            web.get(f"/apis/{metrics_api.RESOURCE}/namespaces/{{namespace}}/pods", self._pods),
        ]

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _get_scale(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        case, decisions = self._cases[name], self.decisions[name]
        if len(decisions) == self._each:
            # The last decision is known now that the next would begin; that one is kept waiting for good.
            self._finished.add(name)
            if len(self._finished) == len(self._cases):
                self.done.set()
            await asyncio.sleep(3600)
        if name not in self._begun:
            self._begun.add(name)
            self._turn_s[name] += STEP_S * (1 + self._now_s() // STEP_S)
        await asyncio.sleep(max(0.0, self._turn_s[name] - self._now_s()))
        now_s = self._now_s()
        # Those that follow a late turn keep to the grid, which is what separates their ages from the windows' ends.
        self._turn_s[name] += STEP_S * (1 + (now_s - self._turn_s[name]) // STEP_S)
        situation = case.next()
        decisions.append(Decision(now_s, situation, heard_s=now_s))
        slots = ",".join(situation.pods) or "none"
        selector = f"app={name},slot in ({slots})"
        return web.json_response(_scale(name, situation.replicas, situation.status_replicas, selector))

    async def _put_scale(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = json.loads(await request.read())
        case, decision = self._cases[name], self.decisions[name][-1]
        assert decision.written is None, f"{name} was written twice in one decision"
        decision.written, decision.heard_s = int(body["spec"].get("replicas", 0)), self._now_s()
        case.replicas = decision.written
        return web.json_response(_scale(name, case.replicas, case.replicas, ""))

    async def _external(self, request: web.Request) -> web.Response:
        decision = self._read(request, "external")
        return metrics_api.external_metrics("load", decision.situation.external_milli)

    async def _pods(self, request: web.Request) -> web.Response:
        decision = self._read(request, "pods")
        name = _app(request)
        measured = {f"{name}-{slot}": u for slot, u in decision.situation.pods.items() if u is not None}
        return metrics_api.pod_metrics(measured, NAMESPACE)

    def _read(self, request: web.Request, what: str) -> Decision:
        decision = self.decisions[_app(request)][-1]
        decision.reads.append(what)
        decision.heard_s = self._now_s()
        return decision


def record(decisions_each: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the controller and return the recording.

    Args:
        decisions_each: Decisions to record of each of the autoscalers of `hpa_cases.cases`.
        seed: Of the cases.
        folder: For the server's certificates.
    """
    workloads = cases(seed)
    recorder = Recorder(workloads, decisions_each)
    with (
        ControlPlane(binaries=ensure_binaries(), controller_manager_flags=FLAGS) as plane,
        metrics_api.AggregatedApi(folder, _RESOURCES, recorder.routes) as api,
    ):
        kube = Kube(plane.admin_kubeconfig)
        api.register(kube)
        for case in workloads:
            if case.needs_pods:
                _create_pods(kube, case)
        version = kube.request("GET", "/version")["gitVersion"]
        # A first autoscaler would find its pods' cache cold: the controller starts to fill it with the first pod.
        stored = {case.name: kube.create(*_hpa(case), NAMESPACE)["spec"] for case in workloads}
        wait_for(
            recorder.done.is_set,
            f"{decisions_each} decisions of each of {len(workloads)} autoscalers",
            timeout_s=60 + 2 * decisions_each * STEP_S,
        )
    return {
        "kubernetes": version,
        "flags": list(FLAGS),
        "step_s": STEP_S,
        "workloads": [
            {
                "name": case.name,
                "request_milli": case.request_milli,
                "hpa": stored[case.name],
                "decisions": [_row(decision) for decision in recorder.decisions[case.name]],
            }
            for case in workloads
        ],
    }


def save(recording: dict[str, Any], path: Path) -> None:
    """Write a recording, the same bytes for the same content."""
    text = json.dumps(recording, separators=(",", ":"), sort_keys=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _row(decision: Decision) -> dict[str, Any]:
    situation = decision.situation
    return {
        "at_s": round(decision.opened_s, 4),
        "took_s": round(decision.heard_s - decision.opened_s, 4),
        "replicas": situation.replicas,
        "status_replicas": situation.status_replicas,
        "external_milli": situation.external_milli,
        "pods": situation.pods,
        "reads": decision.reads,
        "desired": situation.replicas if decision.written is None else decision.written,
    }


def _app(request: web.Request) -> str:
    found = re.search(r"app=([^,]+)", request.query["labelSelector"])
    assert found, request.query["labelSelector"]
    return found[1]


def _scale(name: str, replicas: int, status_replicas: int, selector: str) -> dict[str, Any]:
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": "1", "uid": name},
        "spec": {"replicas": replicas},
        "status": {"replicas": status_replicas, "selector": selector},
    }


def _hpa(case: Case) -> tuple[str, dict[str, Any]]:
    target = {"apiVersion": GROUP_VERSION, "kind": "Target", "name": case.name}
    return "autoscaling/v2/horizontalpodautoscalers", {
        "metadata": {"name": case.name},
        "spec": {"scaleTargetRef": target, **case.spec},
    }


def _create_pods(kube: Kube, case: Case) -> None:
    """Pods that no node runs: their statuses say what a kubelet would have said for the last hour."""
    start = datetime.now(UTC) - timedelta(hours=1)
    ready_since = {"ready": 5, "broken": 1800, "unready": 1}
    requests = {"requests": {"cpu": f"{case.request_milli}m"}}
    for group, count in POOL.items():
        for i in range(count):
            name, slot = f"{case.name}-{group}-{i}", f"{group}-{i}"
            labels = {"app": case.name, "slot": slot}
            container = {"name": "app", "image": "app", "resources": requests}
            kube.create(
                "v1/pods",
                {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}},
                NAMESPACE,
            )
            if group == "pending":
                continue
            status: dict[str, Any] = {"phase": "Failed" if group == "failed" else "Running"}
            status["startTime"] = _time(start)
            if group in ready_since:
                since = _time(start + timedelta(seconds=ready_since[group]))
                ready = str(group == "ready")
                status["conditions"] = [{"type": "Ready", "status": ready, "lastTransitionTime": since}]
            kube.patch("v1/pods", name, {"status": status}, NAMESPACE, subresource="status")


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    import tempfile

    each, out = int(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        save(record(each, SEED, Path(scratch)), out)
