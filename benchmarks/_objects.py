"""What is scaled, and what tells the autoscalers to: the same rate, the same target, the same bounds for both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _stand_ins import CAPACITY_RPS, METRIC, Workload

from understudy_operator.kube import Kube

NAMESPACES = 10
TARGET = 0.7


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
