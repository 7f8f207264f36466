"""Killing and resuming, in three scopes. Doing either twice does no harm, and each says what happens next."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from understudy_operator.cli.cluster import Body, Cluster, ClusterError, policies_path
from understudy_operator.killswitch import KILL_ANNOTATION, KILL_CONFIG_MAP

RESUME_MODE = "understudy.dev/resume-mode"
KILL_REASON = "understudy.dev/kill-reason"

ATTEMPTS = 5
NOT_A_REASON = frozenset({"", "0", "false", "no"})
"""Values of the namespace's annotation that mean: not killed."""


@dataclass(frozen=True)
class Change:
    """What a command did.

    Attributes:
        scope: `policy`, `namespace` or `cluster`.
        target: what it was done to, such as `prod/shop`.
        changed: False where it was so already.
        message: what was done and what happens next.
    """

    scope: str
    target: str
    changed: bool
    message: str


def set_mode(cluster: Cluster, namespace: str, name: str, mode: str, reason: str = "") -> Change:
    """Set `spec.mode`; Off remembers the mode that it replaces.

    Raises:
        ClusterError: there is no such policy, or the API server refuses.
    """
    target = f"{namespace}/{name}"

    def change(policy: Body) -> tuple[Body | None, str]:
        before = policy["spec"].get("mode", "Shadow")
        if before == mode:
            return None, f"{target} is in mode {mode} already"
        resume = f"understudy resume {name} -n {namespace}"
        remembered = {RESUME_MODE: before, KILL_REASON: reason or None} if mode == "Off" else _FORGOTTEN
        then = f"{_handover(policy)}; back with: {resume}" if mode == "Off" else _NEXT[mode]
        patch = {"metadata": {"annotations": remembered}, "spec": {"mode": mode}}
        return patch, f"{target}: mode {before} → {mode}; {then}"

    return _change_policy(cluster, namespace, name, change)


def resume_policy(cluster: Cluster, namespace: str, name: str) -> Change:
    """Give a policy back the mode that it had when it was killed.

    Raises:
        ClusterError: it remembers none, or as `set_mode`.
    """
    target = f"{namespace}/{name}"

    def change(policy: Body) -> tuple[Body | None, str]:
        if (before := policy["spec"].get("mode", "Shadow")) != "Off":
            return None, f"{target} is not killed, it is in mode {before}"
        mode = (policy["metadata"].get("annotations") or {}).get(RESUME_MODE)
        if mode not in _NEXT:
            raise ClusterError(
                f"{target} is Off and does not remember another mode: name one, such as "
                f"understudy mode {name} Shadow -n {namespace}"
            )
        patch = {"metadata": {"annotations": _FORGOTTEN}, "spec": {"mode": mode}}
        return patch, f"{target}: mode Off → {mode}; {_NEXT[mode]}"

    return _change_policy(cluster, namespace, name, change)


def kill_namespace(cluster: Cluster, namespace: str, reason: str) -> Change:
    """Stop the actors of all policies of a namespace; raises `ClusterError`."""
    engaged = _annotation(cluster, namespace)
    if engaged.lower() not in NOT_A_REASON:
        return Change("namespace", namespace, False, f"namespace {namespace} is killed already: {engaged}")
    cluster.patch(_namespace_path(namespace), {"metadata": {"annotations": {KILL_ANNOTATION: reason}}})
    message = (
        f"namespace {namespace}: killed; every policy in it {_HANDS_OVER} at its next tick; "
        f"back with: understudy resume -n {namespace} --namespace-wide"
    )
    return Change("namespace", namespace, True, message)


def resume_namespace(cluster: Cluster, namespace: str) -> Change:
    """Let the actors of a namespace speak again; raises `ClusterError`."""
    if _annotation(cluster, namespace).lower() in NOT_A_REASON:
        return Change("namespace", namespace, False, f"namespace {namespace} is not killed")
    cluster.patch(_namespace_path(namespace), {"metadata": {"annotations": {KILL_ANNOTATION: None}}})
    return Change("namespace", namespace, True, f"namespace {namespace}: resumed; {_NEXT_TICK}")


def kill_cluster(cluster: Cluster, operator_namespace: str, reason: str) -> Change:
    """Stop the actors of all policies; raises `ClusterError`."""
    config_map = _config_map(cluster, operator_namespace)
    if config_map is not None and _data(config_map).get("engaged") == "true":
        told = _data(config_map).get("reason", "no reason given")
        return Change("cluster", "cluster", False, f"the cluster is killed already: {told}")
    data = {"engaged": "true", "reason": reason, "actor": cluster.user()}
    if config_map is None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": KILL_CONFIG_MAP}, "data": data}
        cluster.create(f"/api/v1/namespaces/{operator_namespace}/configmaps", body)
    else:
        cluster.patch(_config_map_path(operator_namespace), {"data": data})
    message = f"cluster: killed; every policy {_HANDS_OVER} at its next tick; back with: understudy resume --cluster"
    return Change("cluster", "cluster", True, message)


def resume_cluster(cluster: Cluster, operator_namespace: str) -> Change:
    """Let all actors speak again, as far as namespaces and policies do; raises `ClusterError`."""
    config_map = _config_map(cluster, operator_namespace)
    if config_map is None or _data(config_map).get("engaged") == "false":
        return Change("cluster", "cluster", False, "the cluster is not killed")
    data = {"engaged": "false", "reason": None, "actor": cluster.user()}
    cluster.patch(_config_map_path(operator_namespace), {"data": data})
    return Change("cluster", "cluster", True, f"cluster: resumed; {_NEXT_TICK}")


_FORGOTTEN = {RESUME_MODE: None, KILL_REASON: None}
_HANDS_OVER = "hands over to its reference (onKill: Hold stays as it is)"
_NEXT_TICK = "from the next tick on each policy is as its own mode says"
_NEXT = {
    "Shadow": "from the next tick on the actor proposes and nothing is written",
    "Approve": "from the next tick on the actor proposes and nothing is written",
    "Canary": "from the next tick on a growing share of the actor's proposals is applied",
    "Active": "from the next tick on the actor's proposals are applied, within the guards",
}


def _handover(policy: Body) -> str:
    if policy["spec"].get("onKill") == "Hold":
        return "from the next tick on replicas stay as they are"
    return "at the next tick the reference takes over where Understudy was scaling"


def _change_policy(cluster: Cluster, namespace: str, name: str, change: Any) -> Change:
    """Read, change and write conditionally, again where somebody else was faster."""
    path = policies_path(namespace, name)
    for _ in range(ATTEMPTS):
        policy = cluster.get(path)
        patch, message = change(policy)
        if patch is None:
            return Change("policy", f"{namespace}/{name}", False, message)
        patch["metadata"]["resourceVersion"] = policy["metadata"]["resourceVersion"]
        try:
            cluster.patch(path, patch)
        except ClusterError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        else:
            return Change("policy", f"{namespace}/{name}", True, message)
    raise ClusterError(f"{namespace}/{name} is changed by somebody else all the time: try again")


def _annotation(cluster: Cluster, namespace: str) -> str:
    metadata = cluster.get(_namespace_path(namespace))["metadata"]
    value: str = (metadata.get("annotations") or {}).get(KILL_ANNOTATION, "")
    return value


def _namespace_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}"


def _config_map_path(operator_namespace: str) -> str:
    return f"/api/v1/namespaces/{operator_namespace}/configmaps/{KILL_CONFIG_MAP}"


def _config_map(cluster: Cluster, operator_namespace: str) -> Body | None:
    try:
        return cluster.get(_config_map_path(operator_namespace))
    except ClusterError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise


def _data(config_map: Body) -> dict[str, str]:
    return config_map.get("data") or {}
