"""The answer in `/status`, written when something has changed and not because a tick has passed.

Five thousand policies that write at every tick are three hundred patches a second that nobody reads. What moves at
every tick is in the metrics and in the ledger; here stands what a person should find with `kubectl get`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from understudy_operator.conditions import Situation, conditions_of, stage_of
from understudy_operator.events import EventRecorder, transitions
from understudy_operator.kube import KubeError
from understudy_operator.store import Key, PolicyRecord
from understudy_policy import explain
from understudy_policy.api import GROUP, VERSION
from understudy_policy.guards.reasons import Reason

log = logging.getLogger(__name__)

Status = dict[str, Any]

_PASSING = ("referenceReplicas", "proposedReplicas", "lastDecision")
"""Fields that are worth no write of their own; the heartbeat brings them up to date."""


class Figures(NamedTuple):
    """The numbers of a tick that the status shows; None where unknown.

    Attributes:
        authority: in force, 0 to 1.
        current, desired, reference, proposed: replicas.
        model_uri, model_sha256, model_loaded_at: the actor that is loaded; RFC 3339.
        canary_started_at: when the canary began; RFC 3339.
    """

    authority: float = 0.0
    current: int | None = None
    desired: int | None = None
    reference: int | None = None
    proposed: int | None = None
    model_uri: str | None = None
    model_sha256: str | None = None
    model_loaded_at: str | None = None
    canary_started_at: str | None = None


class CanPatch(Protocol):
    """The part of `Kube` that is needed here."""

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class StatusConfig:
    """How often the status is written.

    Attributes:
        min_interval_ticks: ticks between two writes of a policy that only concern replicas or guards.
        heartbeat_s: seconds after which numbers that drifted are written although nothing happened.
        concurrency: writes under way at the same time.
    """

    min_interval_ticks: float = 2.0
    heartbeat_s: float = 600.0
    concurrency: int = 10


@dataclass(slots=True)
class _Entry:
    """What is known of one policy's status."""

    record: PolicyRecord
    situation: Situation | None = None
    figures: Figures = field(default_factory=Figures)
    written: Status = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    decision: Status | None = None
    urgent: bool = False
    drifted: bool = False
    not_before_s: float = 0.0
    heartbeat_at_s: float = 0.0


class StatusWriter:
    """Compares what should stand in every status with what does, and writes the difference."""

    def __init__(
        self,
        kube: CanPatch,
        events: EventRecorder,
        last_decision: Callable[[Key], dict[str, Any] | None],
        on_write: Callable[[str], None],
        config: StatusConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write through `kube`.

        Args:
            kube: the API server.
            events: told what the step from one set of conditions to the next is worth.
            last_decision: record of a policy's newest decision, which must be known when it is offered.
            on_write: told what became of every write: `Written`, or the reason for which it was not.
            config: see there.
            clock: seconds, monotonic.
        """
        self._kube = kube
        self._events = events
        self._last_decision = last_decision
        self._on_write = on_write
        self._config = config or StatusConfig()
        self._clock = clock
        self._entries: dict[Key, _Entry] = {}
        self._pending: dict[Key, None] = {}
        self._flushing = False

    def offer(self, record: PolicyRecord, situation: Situation, figures: Figures) -> None:
        """Say how a policy is; costs next to nothing where nothing has changed.

        Args:
            record: the policy.
            situation: what conditions are made of.
            figures: the numbers of this tick.
        """
        entry = self._entries.get(record.key)
        if entry is None or entry.record.uid != record.uid:
            entry = self._entries[record.key] = self._new_entry(record)
        before, old = entry.situation, entry.figures
        respecified = before is None or entry.record.generation != record.generation
        entry.record, entry.situation, entry.figures = record, situation, figures
        same = figures == old and situation == before and not respecified
        if same and not (entry.drifted and self._clock() >= entry.heartbeat_at_s):
            return
        entry.drifted = True
        if figures.desired != old.desired:
            entry.decision = _decision(self._last_decision(record.key)) or entry.decision
        if respecified or figures.authority != old.authority or _gravely(situation) != _gravely(before):
            entry.urgent = True
        due = entry.urgent or situation != before or figures[1:3] != old[1:3] or figures[5:] != old[5:]
        if due or self._clock() >= entry.heartbeat_at_s:
            self._pending[record.key] = None

    def forget(self, key: Key) -> None:
        """Drop a policy that exists no more."""
        self._entries.pop(key, None)
        self._pending.pop(key, None)

    def keep(self, keys: Set[Key]) -> None:
        """Drop all policies but these."""
        for key in self._entries.keys() - keys:
            self.forget(key)

    async def flush(self) -> None:
        """Write what is due; returns at once where the last flush is still under way."""
        if self._flushing:
            return
        self._flushing = True
        try:
            due = iter([key for key in self._pending if self._is_due(key)])
            await asyncio.gather(*(self._work(due) for _ in range(self._config.concurrency)))
        finally:
            self._flushing = False
        await self._events.flush()

    async def _work(self, due: Iterator[Key]) -> None:
        for key in due:
            entry = self._entries.get(key)
            if entry is None:
                continue
            if not await self._write(entry):
                for _ in due:  # the API server asks for less: the rest waits for the next flush
                    pass

    def _is_due(self, key: Key) -> bool:
        entry = self._entries[key]
        return entry.urgent or self._clock() >= entry.not_before_s

    async def _write(self, entry: _Entry) -> bool:
        """Write one status; False where the API server wants to be left alone."""
        key, record = entry.record.key, entry.record
        self._pending.pop(key, None)
        entry.urgent = False
        status = self._wanted(entry)
        if not self._worth_writing(entry, status):
            return True
        namespace, name = key
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/rlpolicies/{name}/status"
        try:
            answer = await self._kube.patch(path, {"status": status})
        except KubeError as error:
            self._on_write(error.reason)
            return self._failed(entry, status, error)
        self._on_write("Written")
        if answer["metadata"]["uid"] == record.uid:
            self._remember(entry, status)
        else:
            # It was deleted and created again: what its successor is like is told by its own record.
            self.forget(key)
        return True

    def _failed(self, entry: _Entry, status: Status, error: KubeError) -> bool:
        key = entry.record.key
        if error.is_not_found:
            self.forget(key)
            return True
        log.warning(
            "status: %s", error.message, extra={"namespace": key[0], "policy": key[1], "reason": error.reason}
        )
        if error.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
            # It would be refused again: the next difference gets the next try.
            self._remember(entry, status)
        elif self._entries.get(key) is entry:
            self._pending[key] = None
        return error.status != HTTPStatus.TOO_MANY_REQUESTS

    def _remember(self, entry: _Entry, status: Status) -> None:
        entry.written = status
        entry.drifted = False
        policy = entry.record.policy
        tick_s = 15.0 if policy is None else policy.spec.telemetry.interval_s
        now_s = self._clock()
        entry.not_before_s = now_s + self._config.min_interval_ticks * tick_s
        entry.heartbeat_at_s = now_s + self._heartbeat_s()

    def _wanted(self, entry: _Entry) -> Status:
        """The whole status as it should be; None removes a field."""
        situation, figures = entry.situation or Situation(), entry.figures
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        conditions = conditions_of(situation, entry.record.generation, entry.conditions, now)
        for reason, message in transitions(_by_type(entry.conditions), _by_type(conditions)):
            self._events.post(entry.record, reason, message)
        entry.conditions = conditions
        model = None
        if figures.model_uri is not None:
            model = {
                "uri": figures.model_uri,
                "sha256": figures.model_sha256,
                "loadedAt": figures.model_loaded_at,
            }
        return {
            "observedGeneration": entry.record.generation,
            "stage": stage_of(situation),
            "authority": round(figures.authority, 4),
            "currentReplicas": figures.current,
            "desiredReplicas": figures.desired,
            "referenceReplicas": figures.reference,
            "proposedReplicas": figures.proposed,
            "lastDecision": entry.decision,
            "model": model,
            "canaryStartedAt": figures.canary_started_at,
            "conditions": conditions,
        }

    def _worth_writing(self, entry: _Entry, status: Status) -> bool:
        late = self._clock() >= entry.heartbeat_at_s
        left_out = () if late else _PASSING
        return any(
            _given(value) != _given(entry.written.get(name))
            for name, value in status.items()
            if name not in left_out
        )

    def _new_entry(self, record: PolicyRecord) -> _Entry:
        written = dict(record.status)
        return _Entry(
            record,
            written=written,
            conditions=list(written.get("conditions", ())),
            decision=written.get("lastDecision"),
            heartbeat_at_s=self._clock() + self._heartbeat_s(),
        )

    def _heartbeat_s(self) -> float:
        """Jittered, so that policies that were created together do not write together for ever."""
        return self._config.heartbeat_s * random.uniform(0.8, 1.2)


def _gravely(situation: Situation | None) -> Situation | None:
    """The part of a situation whose change cannot wait: all but which guard bounds the replicas."""
    if situation is None or situation.limited_by == Reason.OVERRIDE:
        return situation
    return situation._replace(limited_by=Reason.NONE)


def _given(value: Any) -> Any:
    """A value as the API server would give it back: it keeps no nulls."""
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if inner is not None}
    return value


def _by_type(conditions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in conditions}


def _decision(record: dict[str, Any] | None) -> Status | None:
    """`status.lastDecision` of a ledger record; None where nothing could be decided."""
    if record is None or record["desired_replicas"] is None:
        return None
    return {
        "decisionId": record["decision_id"],
        "time": record["time"],
        "replicas": record["desired_replicas"],
        "reason": record["reason"],
        "rule": record["actor"]["rule"],
        "message": explain.sentence(record),
        "modelSha256": record["model_sha256"],
    }
