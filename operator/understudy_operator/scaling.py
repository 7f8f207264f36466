"""Reading and writing replicas of anything that has `/scale`, and noticing who else does.

Deployments and StatefulSets come from a watch, so that a tick over thousands of them reads nothing. Every write is
conditional on what the decision was based on, and a target that somebody else is steering is left to them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from understudy_operator.kube import FIELD_MANAGER, Kube, KubeError, manager_of

Key = tuple[str, str, str, str]
"""Group, kind, namespace and name: what stays the same when an API version is promoted."""

_WATCHED = {("apps", "Deployment"): "deployments", ("apps", "StatefulSet"): "statefulsets"}
_STATIC_PLURALS = {**_WATCHED, ("apps", "ReplicaSet"): "replicasets"}


@dataclass(frozen=True, slots=True)
class Target:
    """The workload of a `scaleTargetRef`."""

    namespace: str
    api_version: str
    kind: str
    name: str
    key: Key = field(init=False, compare=False)
    """Identity without the API version; looked up several times a tick, so it is worked out once."""

    def __post_init__(self) -> None:
        """Work out the key."""
        group, _, _ = self.api_version.rpartition("/")
        object.__setattr__(self, "key", (group, self.kind, self.namespace, self.name))


class Outcome(StrEnum):
    """What became of a read or a write."""

    WRITTEN = "Written"
    UNCHANGED = "Unchanged"
    CONFLICT = "Conflict"
    NOT_FOUND = "NotFound"
    FORBIDDEN = "Forbidden"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class ScaleView:
    """A target as it was last seen.

    Attributes:
        replicas: `spec.replicas`.
        created: `status.replicas`, the pods that exist.
        ready: ready pods.
        resource_version, uid: of the workload object.
        owner: field manager of `spec.replicas`, empty if unknown.
    """

    replicas: int
    created: int
    ready: int
    resource_version: str
    uid: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class ScaleProblem:
    """Why a target could not be read: `NOT_FOUND`, `FORBIDDEN` or `FAILED`, and one sentence."""

    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a write; `resource_version` is set where it was written."""

    outcome: Outcome
    message: str
    resource_version: str = ""


class Scaler:
    """The targets of all policies: read together, written one by one."""

    def __init__(
        self, kube: Kube, *, concurrency: int = 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing seen.

        Args:
            kube: the API server.
            concurrency: calls that may be under way at once.
            clock: seconds, never running backwards.
        """
        self._kube = kube
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrency)
        self._plurals = dict(_STATIC_PLURALS)
        self._views: dict[Key, ScaleView] = {}
        self._watched: set[Key] = set()
        self._ours: set[Key] = set()
        self._foreign: dict[Key, tuple[float, str]] = {}
        self._hpa_target: dict[tuple[str, str], Key] = {}
        self._hpas: dict[Key, dict[str, str]] = {}

    def on_workload_event(self, body: Mapping[str, Any], deleted: bool) -> None:
        """Take note of a Deployment or StatefulSet that was listed, changed or deleted."""
        key = key_of(body)
        if deleted:
            self.drop_workload(key)
        else:
            self._watched.add(key)
            self._observe(key, _view_of_workload(body))

    def on_hpa_event(self, body: Mapping[str, Any], deleted: bool) -> None:
        """Take note of a HorizontalPodAutoscaler, also one that KEDA keeps for a ScaledObject."""
        metadata = body["metadata"]
        hpa = (metadata["namespace"], metadata["name"])
        self.drop_hpa(hpa)
        if deleted:
            return
        ref = body["spec"]["scaleTargetRef"]
        key = Target(hpa[0], ref.get("apiVersion", ""), ref["kind"], ref["name"]).key
        parents = [
            f" of {parent['kind']} {parent['name']}" for parent in metadata.get("ownerReferences") or ()
        ]
        self._hpa_target[hpa] = key
        self._hpas.setdefault(key, {})[hpa[1]] = f"HorizontalPodAutoscaler {hpa[1]}{''.join(parents)}"

    def known_workloads(self) -> set[Key]:
        """Workloads that a watch or a list has told of."""
        return set(self._watched)

    def known_hpas(self) -> set[tuple[str, str]]:
        """Namespace and name of the HorizontalPodAutoscalers that a watch or a list has told of."""
        return set(self._hpa_target)

    def drop_workload(self, key: Key) -> None:
        """A workload is no more."""
        self._watched.discard(key)
        self._forget(key)

    def drop_hpa(self, hpa: tuple[str, str]) -> None:
        """A HorizontalPodAutoscaler is no more."""
        before = self._hpa_target.pop(hpa, None)
        if before is not None:
            self._hpas[before].pop(hpa[1])
            if not self._hpas[before]:
                del self._hpas[before]

    def conflict_of(self, target: Target, hold_s: float) -> str | None:
        """Who else steers this target, in one sentence without numbers; None if nobody does.

        Taking over from whoever set the replicas before us is no conflict. A change by somebody else after our own
        first write is one for `hold_s` seconds, and each further change renews it.
        """
        hpas = self._hpas.get(target.key)
        if hpas:
            return f"{min(hpas.values())} scales this target: delete it, or set spec.mode to Shadow or Off"
        changed_at, manager = self._foreign.get(target.key, (None, ""))
        if changed_at is None or self._clock() - changed_at >= hold_s:
            return None
        return f"{manager or 'somebody else'} changed spec.replicas after Understudy had written it"

    async def read_many(self, targets: Sequence[Target]) -> list[ScaleView | ScaleProblem]:
        """What all targets look like now: from the watch where there is one, else by asking."""
        views: list[ScaleView | ScaleProblem | None] = [
            self._views[target.key] if target.key in self._watched else None for target in targets
        ]
        missing = [index for index, view in enumerate(views) if view is None]
        asked = await asyncio.gather(*(self._read(targets[index]) for index in missing))
        for index, view in zip(missing, asked, strict=True):
            views[index] = view
        return [view for view in views if view is not None]

    async def write(self, target: Target, replicas: int, expected: ScaleView) -> WriteResult:
        """Set the replicas, if the target is still what the decision was based on.

        Args:
            target: the workload.
            replicas: to be written to `spec.replicas`.
            expected: the view that the decision was based on.

        Returns:
            The outcome; `FORBIDDEN` covers RBAC and every admission rule. Never raises on what the API server does.
        """
        if replicas == expected.replicas:
            return WriteResult(Outcome.UNCHANGED, "the target already has these replicas")
        try:
            async with self._slots:
                return await self._write(target, replicas, expected)
        except KubeError as error:
            if error.is_not_found:
                # A deletion that the watch missed: ask next time.
                self._watched.discard(target.key)
                self._forget(target.key)
            return WriteResult(_outcome_of(error), error.message)

    async def _write(self, target: Target, replicas: int, expected: ScaleView) -> WriteResult:
        path = await self._path(target) + "/scale"
        version = expected.resource_version
        try:
            body = await self._patch(path, replicas, version)
        except KubeError as error:
            if not error.is_conflict:
                raise
            # Every status update moves the version too: only another uid or other replicas void the decision.
            metadata, now = _parts(await self._kube.get(path), "spec")
            if metadata["uid"] != expected.uid:
                return WriteResult(
                    Outcome.CONFLICT, "the target was deleted and created again since the decision"
                )
            if now.get("replicas", 0) != expected.replicas:
                return WriteResult(
                    Outcome.CONFLICT, "spec.replicas was changed by somebody else since the decision"
                )
            body = await self._patch(path, replicas, metadata["resourceVersion"])
        version = body["metadata"]["resourceVersion"]
        view = replace(expected, replicas=replicas, resource_version=version, owner=FIELD_MANAGER)
        self._observe(target.key, view)
        return WriteResult(Outcome.WRITTEN, f"{expected.replicas} → {replicas}", version)

    async def _patch(self, path: str, replicas: int, resource_version: str) -> Mapping[str, Any]:
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": replicas}}
        return await self._kube.patch(path, body)

    async def _read(self, target: Target) -> ScaleView | ScaleProblem:
        try:
            async with self._slots:
                path = await self._path(target)
                if target.key[:2] in _WATCHED:
                    view = _view_of_workload(await self._kube.get(path))
                else:
                    view = await self._read_generic(path)
        except KubeError as error:
            return ScaleProblem(_outcome_of(error), error.message)
        self._observe(target.key, view)
        return view

    async def _read_generic(self, path: str) -> ScaleView:
        """The scale, and from the object itself what the scale does not tell: ready pods and the owner."""
        scale = await self._kube.get(path + "/scale")
        metadata, spec = _parts(scale, "spec")
        created = (scale.get("status") or {}).get("replicas", 0)
        ready, owner = created, ""
        try:
            whole = await self._kube.get(path)
        except KubeError as error:
            if not error.is_forbidden:
                raise
        else:
            ready = (whole.get("status") or {}).get("readyReplicas", ready)
            owner, _ = manager_of(whole["metadata"], "f:spec", "f:replicas")
        return ScaleView(
            spec.get("replicas", 0), created, ready, metadata["resourceVersion"], metadata["uid"], owner
        )

    async def _path(self, target: Target) -> str:
        group, kind, namespace, name = target.key
        root = f"/apis/{target.api_version}" if group else f"/api/{target.api_version}"
        plural = self._plurals.get((group, kind))
        if plural is None:
            plural = _scalable_plural((await self._kube.get(root)).get("resources") or (), target)
            self._plurals[group, kind] = plural
        return f"{root}/namespaces/{namespace}/{plural}/{name}"

    def _observe(self, key: Key, view: ScaleView) -> None:
        before = self._views.get(key)
        if before is not None and before.uid != view.uid:
            self._forget(key)
            before = None
        if before is not None and _is_older(view.resource_version, before.resource_version):
            return  # an event that was on its way while we wrote
        changed = before is not None and before.replicas != view.replicas
        if changed and key in self._ours and view.owner != FIELD_MANAGER:
            self._foreign[key] = (self._clock(), view.owner)
        if view.owner == FIELD_MANAGER:
            self._ours.add(key)
        self._views[key] = view

    def _forget(self, key: Key) -> None:
        self._views.pop(key, None)
        self._ours.discard(key)
        self._foreign.pop(key, None)


def _view_of_workload(body: Mapping[str, Any]) -> ScaleView:
    metadata, spec = _parts(body, "spec")
    status = body.get("status") or {}
    owner, _ = manager_of(metadata, "f:spec", "f:replicas")
    return ScaleView(
        replicas=spec.get("replicas", 1),
        created=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        resource_version=metadata["resourceVersion"],
        uid=metadata["uid"],
        owner=owner,
    )


def _parts(body: Mapping[str, Any], part: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return body["metadata"], body.get(part) or {}


def key_of(body: Mapping[str, Any]) -> Key:
    """Identity of a workload by its body."""
    metadata = body["metadata"]
    return Target(metadata["namespace"], body["apiVersion"], body["kind"], metadata["name"]).key


def _is_older(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) < int(than)


def _outcome_of(error: KubeError) -> Outcome:
    if error.is_conflict:
        return Outcome.CONFLICT
    if error.is_not_found:
        return Outcome.NOT_FOUND
    # Admission policies refuse with 422 unless they name another reason.
    return Outcome.FORBIDDEN if error.is_forbidden or error.status == 422 else Outcome.FAILED


def _scalable_plural(resources: Sequence[Mapping[str, Any]], target: Target) -> str:
    """The plural of a kind by discovery, provided that it can be scaled."""
    names = {resource["name"] for resource in resources}
    for resource in resources:
        if resource["kind"] == target.kind and f"{resource['name']}/scale" in names:
            return str(resource["name"])
    raise KubeError(
        404,
        "NotFound",
        f"scaleTargetRef.kind {target.kind} of {target.api_version} has no /scale: name a kind that can be scaled",
    )
