"""The few things that deserve a Kubernetes Event: what a person on call would want to have been told.

Every reason stands in one list here. The same sentence about the same policy is told once in ten minutes, whoever
keeps finding it out.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from understudy_operator.kube import KubeError
from understudy_operator.store import PolicyRecord
from understudy_policy.api import GROUP, VERSION

log = logging.getLogger(__name__)

OWNER_ANNOTATION = f"{GROUP}/owner"
REPEAT_AFTER_S = 600.0
MOST_WAITING = 1000
LONGEST_NOTE = 1024

Conditions = Mapping[str, Mapping[str, Any]]
"""Conditions by type."""


class EventReason(StrEnum):
    """All reasons; the bad ones are warnings."""

    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    KILL_SWITCH_ENGAGED = "KillSwitchEngaged"
    KILL_SWITCH_RELEASED = "KillSwitchReleased"
    MODEL_LOADED = "ModelLoaded"
    MODEL_REJECTED = "ModelRejected"
    TELEMETRY_LOST = "TelemetryLost"
    TELEMETRY_RECOVERED = "TelemetryRecovered"
    CONFLICT = "Conflict"
    TARGET_NOT_FOUND = "TargetNotFound"
    POLICY_INVALID = "PolicyInvalid"


WARNINGS = frozenset(
    {
        EventReason.KILL_SWITCH_ENGAGED,
        EventReason.MODEL_REJECTED,
        EventReason.TELEMETRY_LOST,
        EventReason.CONFLICT,
        EventReason.TARGET_NOT_FOUND,
        EventReason.POLICY_INVALID,
    }
)


class CanCreate(Protocol):
    """The part of `Kube` that is needed here."""

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...  # noqa: D102


def transitions(before: Conditions, after: Conditions) -> list[tuple[EventReason, str]]:
    """What is worth an event in the step from one set of conditions to the next.

    They are told from the conditions because those outlive the operator: a restart repeats nothing.

    Args:
        before: conditions by type, as last written or seen; empty for a policy that is new.
        after: conditions by type.

    Returns:
        Reasons with their messages.
    """
    events = []

    def told(kind: str, is_so: Callable[[Mapping[str, Any]], bool], reason: EventReason) -> None:
        if is_so(after.get(kind, {})) and not is_so(before.get(kind, {})):
            events.append((reason, after[kind]["message"]))

    def has(*reasons: str) -> Callable[[Mapping[str, Any]], bool]:
        return lambda condition: condition.get("reason") in reasons

    def false(condition: Mapping[str, Any]) -> bool:
        return condition.get("status") == "False"

    def true(condition: Mapping[str, Any]) -> bool:
        return condition.get("status") == "True"

    killed = has("KillSwitch", "Off")
    if before or not has("Off")(after.get("Acting", {})):
        told("Acting", killed, EventReason.KILL_SWITCH_ENGAGED)
    if before and killed(before.get("Acting", {})) and not killed(after.get("Acting", {})):
        events.append((EventReason.KILL_SWITCH_RELEASED, after["Acting"]["message"]))
    told("TelemetryFresh", false, EventReason.TELEMETRY_LOST)
    if false(before.get("TelemetryFresh", {})):
        told("TelemetryFresh", true, EventReason.TELEMETRY_RECOVERED)
    told("ModelLoaded", has("ModelRejected", "LastGoodKept"), EventReason.MODEL_REJECTED)
    told("ModelLoaded", has("Verified"), EventReason.MODEL_LOADED)
    told("Conflict", true, EventReason.CONFLICT)
    told("TargetResolved", false, EventReason.TARGET_NOT_FOUND)
    told("Ready", has("PolicyInvalid"), EventReason.POLICY_INVALID)
    return events


class EventRecorder:
    """Posts events, each sentence once in a while, without holding anybody up."""

    def __init__(
        self,
        kube: CanCreate,
        on_event: Callable[[str], None],
        *,
        instance: str = "understudy",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Post through `kube`.

        Args:
            kube: the API server.
            on_event: told the reason of every event that was posted.
            instance: who posts, such as the pod's name.
            clock: seconds, monotonic.
        """
        self._kube = kube
        self._on_event = on_event
        self._instance = instance
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MOST_WAITING)

    def post(self, record: PolicyRecord, reason: EventReason, message: str) -> None:
        """Say something about a policy, unless it was said in the last ten minutes; it leaves with `flush`."""
        now_s = self._clock()
        while self._told and next(iter(self._told.values())) <= now_s - REPEAT_AFTER_S:
            self._told.popitem(last=False)
        said = (record.uid, reason.value, message)
        if said in self._told:
            return
        self._told[said] = now_s
        self._waiting.append((reason.value, self._body(record, reason, message)))

    async def flush(self) -> None:
        """Send what waits; what cannot be sent is logged and let go, because an event is news or nothing."""
        while self._waiting:
            reason, body = self._waiting.popleft()
            namespace = body["metadata"]["namespace"]
            try:
                await self._kube.create(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
            except KubeError as error:
                about = {"namespace": namespace, "policy": body["regarding"]["name"], "reason": reason}
                log.warning("an event could not be posted: %s", error.message, extra=about)
                if not error.status:
                    return  # the API server does not answer: the rest must not wait for that one by one
                continue
            self._on_event(reason)

    def _body(self, record: PolicyRecord, reason: EventReason, message: str) -> dict[str, Any]:
        namespace, name = record.key
        owner = f" (owner: {record.owner})"
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name[:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": namespace,
                "annotations": {OWNER_ANNOTATION: record.owner},
            },
            "regarding": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "RLPolicy",
                "namespace": namespace,
                "name": name,
                "uid": record.uid,
            },
            "reason": reason.value,
            "action": "Autoscale",
            "type": "Warning" if reason in WARNINGS else "Normal",
            "note": _cut(message, LONGEST_NOTE - len(owner.encode())) + owner,
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance[:128],
        }


def _cut(text: str, longest_bytes: int) -> str:
    encoded = text.encode()
    return (
        text if len(encoded) <= longest_bytes else encoded[: longest_bytes - 3].decode(errors="ignore") + "…"
    )
