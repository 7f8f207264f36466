"""The operator in this process, one tick at a time: faults can be placed between any two of its steps."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack

from understudy_demo.controlplane.client import KubeError, wait_for
from understudy_operator.cohort import Cohort
from understudy_operator.main import OperatorConfig, operator
from understudy_operator.telemetry.port import PrometheusConfig

POLICIES = "understudy.dev/v1alpha1/rlpolicies"
OPERATOR_NAMESPACE = "understudy-system"
CAPACITY_RPS = 25.0


class Load:
    """What Prometheus answers for the workload under test; change `rate_rps` at any time."""

    def __init__(self, namespace, workload="web"):
        self.namespace, self.workload = namespace, workload
        self.rate_rps = 100.0
        self._asked = 0

    def __call__(self, query):
        # A real rate never repeats to the last bit, and one that does is rightly taken for frozen.
        self._asked += 1
        rate = self.rate_rps * (1 + 1e-6 * (self._asked % 7))
        service = {"namespace": self.namespace, "service": self.workload}
        workload = {"namespace": self.namespace, "workload": self.workload}
        if "histogram_quantile" in query:
            return [(service, 0.1)]
        if "cpu_usage" in query:
            return [(workload, rate / CAPACITY_RPS)]
        if "resource_requests" in query:
            return [(workload, 1.0)]
        if "5.." in query:
            return [(service, 0.0)]
        return [(service, rate)]


class Stepper:
    """Runs an operator's ticks by hand, against the real API server, with the rights of the chart."""

    def __init__(self, plane, kube, prometheus_url, ledger=None, tick_s=15.0):
        self.kube, self.tick_s = kube, tick_s
        self.now_s = time.time()
        self._config = OperatorConfig(
            PrometheusConfig(prometheus_url),
            namespace=OPERATOR_NAMESPACE,
            kubeconfig=plane.kubeconfig_for_service_account(OPERATOR_NAMESPACE, "understudy-operator"),
            ledger=ledger,
        )
        self.cohort = Cohort(tick_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stack = AsyncExitStack()

    def __enter__(self):
        self._thread.start()
        self.operator = self.run(self._stack.enter_async_context(operator(self._config)))
        return self

    def __exit__(self, *_):
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def run(self, awaitable, timeout_s=60):
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(timeout_s)

    def restart(self):
        """What a SIGKILL leaves: nothing but what the cluster remembers."""
        self.run(self._stack.aclose())
        self._stack = AsyncExitStack()
        self.operator = self.run(self._stack.enter_async_context(operator(self._config)))
        self.cohort = Cohort(self.tick_s)

    def tick(self, count=1):
        """So many ticks, each with fresh caches; returns what the last one was."""
        for _ in range(count):
            self.run(self.operator.refresh())
            self.now_s += self.tick_s
            finished = self.run(self.operator.tick.run(self.cohort, self.now_s))
            self.run(self.operator.recorder.record(finished))
            self.run(self.operator.recorder.settle())
        return finished

    def between_decide_and_act(self, change):
        """Let `change()` happen once, after the next decision and before its first write."""
        tick = self.operator.tick
        act = tick._act

        async def changed(*arguments):
            tick._act = act
            await asyncio.to_thread(change)
            return await act(*arguments)

        tick._act = changed


def policy(name="web", **changes):
    """A policy that acts, with a given capacity and no stabilisation, so that tests need few ticks."""
    spec = {
        "owner": "team-test",
        "scaleTargetRef": {"name": "web"},
        "minReplicas": 2,
        "maxReplicas": 30,
        "mode": "Active",
        "objective": {"latencyThreshold": "250ms", "capacityPerPod": int(CAPACITY_RPS)},
        "reference": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}},
    }
    spec.update(changes)
    kind = {"apiVersion": "understudy.dev/v1alpha1", "kind": "RLPolicy"}
    return {**kind, "metadata": {"name": name}, "spec": spec}


def replicas(kube, namespace, name="web"):
    return kube.get("apps/v1/deployments", name, namespace)["spec"]["replicas"]


def scale_owner(kube, namespace, name="web"):
    """Field managers that own spec.replicas through /scale."""
    fields = kube.get("apps/v1/deployments", name, namespace)["metadata"]["managedFields"]
    return {f["manager"] for f in fields if f.get("subresource") == "scale"}


def condition(kube, namespace, kind, name="web"):
    status = kube.get(POLICIES, name, namespace).get("status") or {}
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def ready(kube, namespace, count, name="web"):
    wait_for(
        lambda: kube.get("apps/v1/deployments", name, namespace)["status"].get("readyReplicas", 0) == count,
        f"{count} ready replicas",
    )


def absent(kube, resource, name, namespace):
    try:
        kube.delete(resource, name, namespace)
    except KubeError as error:
        if error.status != 404:
            raise
