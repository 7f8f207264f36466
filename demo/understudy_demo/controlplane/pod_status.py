"""Why this exists: the controllers believe whatever a pod's status says, so it must read as a kubelet writes it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any


def now() -> str:
    """The time as the API server writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unschedulable(node: str) -> dict[str, Any]:
    """The status of a pod that the only node, `node`, has no room for."""
    message = f"0/1 nodes are available: 1 Too many pods on {node}."
    return {"conditions": [_condition("PodScheduled", False, now(), reason="Unschedulable", message=message)]}


def started(manifest: Mapping[str, Any], bound_at: str, address: str, *, ready: bool) -> dict[str, Any]:
    """The status of a pod whose containers have just become ready, or crash.

    Args:
        manifest: The pod.
        bound_at: When it was bound, as `now` writes it.
        address: Its IP address.
        ready: False for containers in CrashLoopBackOff.
    """
    since = now()
    if ready:
        state: dict[str, Any] = {"state": {"running": {"startedAt": since}}, "restartCount": 0}
        why = {}
    else:
        crash = {"exitCode": 1, "reason": "Error", "startedAt": since, "finishedAt": since}
        waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
        state = {"state": {"waiting": waiting}, "lastState": {"terminated": crash}, "restartCount": 1}
        why = {"reason": "ContainersNotReady", "message": "containers with unready status"}
    return {
        "phase": "Running",
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": bound_at,
        "conditions": [
            _condition("Initialized", True, bound_at),
            _condition("ContainersReady", ready, since, **why),
            _condition("Ready", ready, since, **why),
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": ready,
                "started": ready,
                **state,
            }
            for container in manifest["spec"]["containers"]
        ],
    }


def _condition(kind: str, holds: bool, since: str, **why: str) -> dict[str, str]:
    return {"type": kind, "status": str(holds), "lastTransitionTime": since, **why}
