"""Whether somebody has stopped the actor: for one policy, for a namespace or for the whole cluster.

A kill has to work on a bad day. It needs neither Prometheus nor a model, what cannot be read counts as engaged, and
it is read twice: at the start of a tick for the decision, and again, freshly, right before each write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy_operator.kube import Kube, KubeError, manager_of
from understudy_operator.store import PolicyRecord
from understudy_policy.guards.reasons import KillScope

KILL_ANNOTATION = "understudy.dev/kill"
KILL_CONFIG_MAP = "understudy-kill-switch"
POLICIES_PATH = "/apis/understudy.dev/v1alpha1/namespaces/{namespace}/rlpolicies/{name}"

_OFF_WORDS = frozenset({"", "false", "0", "no"})


@dataclass(frozen=True, slots=True)
class KillState:
    """Whether and by whom the actor of a policy is stopped.

    Attributes:
        scope: the widest one engaged, `NONE` if none is.
        reason: what the person wrote, or why it could not be read.
        actor: field manager that engaged it, empty if unknown.
        deleted: the policy that the decision was made for is gone (deleted, re-created, or edited to something
            other than Off): nothing at all may be written on it.
    """

    scope: KillScope = KillScope.NONE
    reason: str = ""
    actor: str = ""
    deleted: bool = False


_CLEAR = KillState()
_OFF = KillState(KillScope.POLICY, "spec.mode is Off")
_GONE = KillState(KillScope.POLICY, "deleted", deleted=True)
_EDITED = KillState(KillScope.POLICY, "edited", deleted=True)


class KillSwitch:
    """All three scopes of the kill switch; the widest engaged one is reported."""

    def __init__(self, kube: Kube, operator_namespace: str, *, timeout_s: float = 2.0) -> None:
        """Know of no namespace yet.

        Args:
            kube: the API server.
            operator_namespace: where the cluster-wide ConfigMap is looked for.
            timeout_s: after which a read has failed, and counts as engaged.
        """
        self._kube = kube
        self._timeout_s = timeout_s
        self._watched: dict[str, KillState] = {}
        self._namespace_reads: dict[str, _FreshRead] = {}
        path = f"/api/v1/namespaces/{operator_namespace}/configmaps/{KILL_CONFIG_MAP}"
        self._cluster = _FreshRead(lambda: self._read_cluster(path))

    def known_namespaces(self) -> set[str]:
        """Namespaces that a watch or a list has told of."""
        return set(self._watched)

    def drop_namespace(self, name: str) -> None:
        """A namespace is no more."""
        self._watched.pop(name, None)
        self._namespace_reads.pop(name, None)

    def on_namespace_event(self, body: Mapping[str, Any], deleted: bool) -> None:
        """Take note of a namespace that was listed, changed or deleted."""
        name = body["metadata"]["name"]
        if deleted:
            self.drop_namespace(name)
        else:
            self._watched[name] = _of_namespace(body)

    async def read(self, policies: Sequence[PolicyRecord]) -> dict[tuple[str, str], KillState]:
        """The state for a tick, by policy key: one read of the ConfigMap, the rest from what was watched."""
        unseen = sorted({policy.key[0] for policy in policies} - self._watched.keys())
        cluster, *asked = await asyncio.gather(
            self._cluster.get(), *(self._namespace(name).get() for name in unseen)
        )
        namespaces = self._watched | dict(zip(unseen, asked, strict=True))
        above = {name: _widest(state, cluster) for name, state in namespaces.items()}
        return {policy.key: _widest(_of_mode(policy), above[policy.key[0]]) for policy in policies}

    async def confirm(self, policy: PolicyRecord) -> KillState:
        """The state right before a write, from reads that all begin after this call.

        Returns:
            The state; `deleted` where the policy is no longer the one that was decided on.
        """
        own, namespace, cluster = await asyncio.gather(
            self._read_policy(policy), self._namespace(policy.key[0]).get(), self._cluster.get()
        )
        return own if own.deleted else _widest(own, _widest(namespace, cluster))

    def _namespace(self, name: str) -> _FreshRead:
        if name not in self._namespace_reads:
            self._namespace_reads[name] = _FreshRead(lambda: self._read_namespace(name))
        return self._namespace_reads[name]

    async def _read_cluster(self, path: str) -> KillState:
        try:
            data = (await self._kube.get(path, timeout_s=self._timeout_s)).get("data") or {}
        except KubeError as error:
            return _CLEAR if error.is_not_found else _unreadable(error)
        if not _is_engaged(data.get("engaged", "")):
            return _CLEAR
        return KillState(KillScope.CLUSTER, data.get("reason", ""), data.get("actor", ""))

    async def _read_namespace(self, name: str) -> KillState:
        try:
            return _of_namespace(
                await self._kube.get(f"/api/v1/namespaces/{name}", timeout_s=self._timeout_s)
            )
        except KubeError as error:
            return _unreadable(error)

    async def _read_policy(self, policy: PolicyRecord) -> KillState:
        namespace, name = policy.key
        path = POLICIES_PATH.format(namespace=namespace, name=name)
        try:
            body = await self._kube.get(path, timeout_s=self._timeout_s)
        except KubeError as error:
            return _GONE if error.is_not_found else _unreadable(error)
        metadata = body["metadata"]
        if metadata["uid"] != policy.uid or "deletionTimestamp" in metadata:
            return _GONE
        unchanged = metadata["generation"] == policy.generation
        if body["spec"].get("mode") == "Off" and (unchanged or _of_mode(policy) is _CLEAR):
            actor, _ = manager_of(metadata, "f:spec", "f:mode")
            return replace(_OFF, actor=actor)
        # Another target, other bounds, back to Shadow: whatever was edited, the decision was made for something else.
        return _CLEAR if unchanged else _EDITED


class _FreshRead:
    """One read for all who ask before it begins; whoever asks after that waits for the next one.

    So writes under way together share their reads, and yet none of them acts on what was read before it asked.
    """

    def __init__(self, read: Callable[[], Awaitable[KillState]]) -> None:
        self._read = read
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[KillState] | None = None

    async def get(self) -> KillState:
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        # Shielded: one caller that gives up must not take the answer from the others.
        return await asyncio.shield(self._next)

    async def _run(self) -> KillState:
        async with self._turn:
            self._next = None
            return await self._read()


def _of_mode(policy: PolicyRecord) -> KillState:
    return _OFF if policy.policy is not None and policy.policy.spec.mode == "Off" else _CLEAR


def _of_namespace(body: Mapping[str, Any]) -> KillState:
    metadata = body["metadata"]
    reason = (metadata.get("annotations") or {}).get(KILL_ANNOTATION, "")
    if not _is_engaged(reason):
        return _CLEAR
    actor, _ = manager_of(metadata, "f:metadata", "f:annotations", f"f:{KILL_ANNOTATION}")
    return KillState(KillScope.NAMESPACE, reason, actor)


def _is_engaged(value: str) -> bool:
    return value.strip().lower() not in _OFF_WORDS


def _unreadable(error: KubeError) -> KillState:
    return KillState(KillScope.UNREADABLE, error.message)


def _widest(own: KillState, above: KillState) -> KillState:
    return above if above.scope > own.scope else own
