"""The operator as it is deployed: a process of its own, kopf watching, the rights of the chart, a real Prometheus."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from stepping import OPERATOR_NAMESPACE, POLICIES, condition, policy, replicas, scale_owner
from understudy_demo.controlplane.client import read_manifests, wait_for
from understudy_demo.controlplane.processes import free_port
from understudy_demo.controlplane.prometheus import ScrapeTarget
from understudy_demo.emulator.server import Emulator
from understudy_demo.emulator.workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
RBAC = Path(__file__).resolve().parents[2] / "manifests" / "rbac"
FAST = {
    "telemetry": {"interval": "1s", "window": "4s"},
    "reference": {"signal": "requestRate", "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
}


class OperatorProcess:
    """`python -m understudy_operator`, to be killed and started again."""

    def __init__(self, plane, prometheus_url, folder):
        self._kubeconfig = plane.kubeconfig_for_service_account(OPERATOR_NAMESPACE, "understudy-operator")
        self._prometheus_url, self._folder = prometheus_url, folder
        self.ledger = folder / "ledger.jsonl"
        self.starts = 0

    def start(self):
        self.starts += 1
        self.port = free_port()
        command = [sys.executable, "-m", "understudy_operator", "--prometheus-url", self._prometheus_url]
        command += ["--kubeconfig", str(self._kubeconfig), "--ledger", str(self.ledger)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._log = (self._folder / f"operator-{self.starts}.log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        wait_for(lambda: self.get("/readyz") == "ok", "the operator to be ready")

    def get(self, path):
        if self._process.poll() is not None:
            raise AssertionError(f"the operator ended: {Path(self._log.name).read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def stop(self, how=signal.SIGTERM):
        self._process.send_signal(how)
        code = self._process.wait(20)
        self._log.close()
        return code

    def records(self, namespace):
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [r for line in lines if (r := json.loads(line))["namespace"] == namespace]


@pytest.fixture
def closed_loop(plane, kube, namespace, deploy, prometheus, tmp_path):
    """A workload with load, a Prometheus that scrapes it, and an operator that scales it."""
    kube.apply(read_manifests(RBAC))
    deploy(replicas=4)
    workload = Workload(namespace, "web", rate=lambda _: 60.0)
    with Emulator([workload], plane.admin_kubeconfig) as emulator:
        telemetry = prometheus([ScrapeTarget("emulator", emulator.address)], scrape_interval_s=0.5)
        operator = OperatorProcess(plane, telemetry.url, tmp_path)
        operator.start()
        kube.create(POLICIES, policy(**FAST), namespace)
        yield emulator, telemetry, operator
        if operator._process.poll() is None:
            assert operator.stop() == 0, "SIGTERM has to end the operator cleanly"


def test_kill_dash_nine_at_the_peak_does_not_scale_in(kube, namespace, closed_loop):
    emulator, _, operator = closed_loop
    emulator.set_rate(namespace, "web", 300.0)
    wait_for(lambda: replicas(kube, namespace) >= 12, "the operator to scale up", timeout_s=60)
    assert scale_owner(kube, namespace) == {"understudy"}
    peak = replicas(kube, namespace)
    operator.stop(signal.SIGKILL)
    operator.start()
    seen_before = len(operator.records(namespace))
    wait_for(lambda: len(operator.records(namespace)) > seen_before + 15, "15 more decisions", timeout_s=60)
    after = operator.records(namespace)[seen_before:]
    assert min(record["current_replicas"] for record in after) >= peak
    assert min(record["desired_replicas"] for record in after) >= peak


def test_prometheus_gone_for_five_minutes(kube, namespace, closed_loop):
    emulator, telemetry, operator = closed_loop
    emulator.set_rate(namespace, "web", 250.0)
    wait_for(lambda: replicas(kube, namespace) >= 10, "the operator to scale up", timeout_s=60)
    telemetry.stop()
    emulator.set_rate(namespace, "web", 25.0)
    wait_for(
        lambda: condition(kube, namespace, "TelemetryFresh").get("status") == "False",
        "TelemetryFresh to turn False",
    )
    held = replicas(kube, namespace)
    gone_at = time.monotonic()
    while time.monotonic() - gone_at < 300:
        assert replicas(kube, namespace) >= held
        assert operator.get("/healthz") == "ok", (
            "an unreachable Prometheus is no reason to restart the operator"
        )
        time.sleep(2)
    telemetry.start()
    wait_for(
        lambda: condition(kube, namespace, "TelemetryFresh").get("status") == "True",
        "TelemetryFresh to recover",
        timeout_s=60,
    )
    wait_for(lambda: replicas(kube, namespace) < held, "scale-in to resume", timeout_s=180)
    causes = {r["signals"]["requestRate"]["cause"] for r in operator.records(namespace)}
    assert "Unreachable" in causes


def test_what_it_serves_is_what_it_did(kube, namespace, closed_loop):
    emulator, _, operator = closed_loop
    emulator.set_rate(namespace, "web", 200.0)
    wait_for(lambda: replicas(kube, namespace) > 4, "the operator to scale up", timeout_s=60)
    decision = json.loads(operator.get(f"/decisions/{namespace}/web"))
    assert decision["guards"][-1]["after"] == decision["desired_replicas"]
    assert "features" in decision
    in_force = f'understudy_policy_authority{{namespace="{namespace}",policy="web"}} 1'
    wait_for(
        lambda: in_force in operator.get("/metrics"), "the actor to be heard once it is warm", timeout_s=60
    )
    assert 'understudy_scale_writes_total{outcome="Written"}' in operator.get("/metrics")
    assert operator.stop() == 0
    last = operator.records(namespace)[-1]
    assert last["write"] is None or last["write"]["outcome"]
