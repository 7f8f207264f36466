"""What is left of a tick when it is over: ledger, metrics, status and events, all from the same numbers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from understudy_operator.conditions import Situation
from understudy_operator.events import EventReason, EventRecorder
from understudy_operator.ledger import DecidedTick, Ledger, Record
from understudy_operator.metrics import Metrics, PolicyGauges
from understudy_operator.scaling import Outcome, WriteResult
from understudy_operator.status import Figures, StatusWriter
from understudy_operator.store import Key, PolicyRecord, PolicyStore
from understudy_operator.telemetry.collect import Problem
from understudy_operator.tick import Finished
from understudy_policy.signals import SIGNAL_NAMES, Cause, Signal

log = logging.getLogger(__name__)

SETTLE_S = 10.0
"""A pod that is asked to end has thirty seconds, and the ledger needs some of them."""


class Decisions:
    """The newest decision of every policy, told in full to whoever asks."""

    def __init__(self) -> None:
        self._tick_of: dict[float, DecidedTick] = {}

    def keep(self, tick: DecidedTick) -> None:
        """Put this tick in the place of the last one of its interval."""
        self._tick_of[tick.settings.tick_s] = tick

    def last(self, key: Key) -> Record | None:
        """The record of a policy's newest decision, None before the first."""
        found = [record for tick in self._tick_of.values() if (record := tick.record(key)) is not None]
        return max(found, key=lambda record: str(record["time"]), default=None)


class Recorder:
    """Tells everybody who wants to know about a finished tick."""

    def __init__(
        self,
        store: PolicyStore,
        decisions: Decisions,
        ledger: Ledger | None,
        metrics: Metrics,
        status: StatusWriter,
        events: EventRecorder,
    ) -> None:
        self._store, self._decisions, self._ledger = store, decisions, ledger
        self._metrics, self._status, self._events = metrics, status, events
        self._loaded_at: dict[str, str] = {}
        self._known: Sequence[PolicyRecord] | None = None
        self._invalid: list[PolicyRecord] = []
        self._problems: dict[float, set[tuple[Signal, Cause]]] = {}
        self._flush: asyncio.Task[None] | None = None

    async def record(self, finished: Finished) -> None:
        """Record one tick. The status is written beside the next ones: a mass change must not hold up a tick."""
        tick = finished.decided
        self._decisions.keep(tick)
        if self._ledger is not None:
            self._ledger.append(tick)
        self._count(finished)
        self._log_problems(tick.settings.tick_s, finished.view.telemetry_problems)
        self._tell(finished)
        self.tend()

    def tend(self) -> None:
        """See to what belongs to no tick: policies that cannot be understood or are gone, and writing the status."""
        records = self._store.snapshot()
        if self._known is not records:
            self._known = records
            self._invalid = [record for record in records if record.policy is None]
            self._status.keep({record.key for record in records})
            self._metrics.set_policies(
                Counter("Invalid" if r.policy is None else r.policy.spec.mode for r in records)
            )
        for record in self._invalid:
            # It has no row in any tick; its status says what is wrong.
            self._status.offer(record, Situation(invalid=record.invalid or "", causes=None), Figures())
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._flush_status())

    async def settle(self) -> None:
        """Wait for the status writes under way, though not for an API server that does not answer."""
        if self._flush is not None:
            await asyncio.wait({self._flush}, timeout=SETTLE_S)

    async def _flush_status(self) -> None:
        try:
            await self._status.flush()
        except Exception:  # nobody awaits this task; what failed is tried again by the next flush
            log.exception("the status could not be written")
            self._metrics.tick_errors.labels("status").inc()

    def _count(self, finished: Finished) -> None:
        tick, metrics = finished.decided, self._metrics
        metrics.observe(tick.decision)
        for write in tick.writes:
            if write is not None:
                metrics.writes.labels(str(write.outcome)).inc()
        seen = tick.decision.observation.seen
        acting = (tick.decision.authority > 0) & (seen.replicas > 0) & (seen.override < 0)
        keys = [record.key for record in tick.policies]
        metrics.show(tick.settings.tick_s, PolicyGauges(keys, tick.decision, acting))
        metrics.set_models(
            {actor.uri: actor.sha256 for actor in finished.answers.actors if actor is not None}
        )
        metrics.last_tick.set(tick.time_s)

    def _log_problems(self, interval_s: float, problems: Sequence[Problem]) -> None:
        """Say what went wrong with queries, in Prometheus' own words, when it begins and not at every tick."""
        known = self._problems.get(interval_s, set())
        self._problems[interval_s] = {(problem.signal, problem.cause) for problem in problems}
        for problem in problems:
            if (problem.signal, problem.cause) not in known:
                log.warning(
                    "telemetry, %s of %d policies: %s",
                    SIGNAL_NAMES[problem.signal],
                    len(problem.rows),
                    problem.detail,
                    extra={"reason": problem.cause.name},
                )

    def _tell(self, finished: Finished) -> None:
        """Offer every policy's status; the writer decides what is worth a write."""
        tick, view, answers = finished.decided, finished.view, finished.answers
        made, seen = tick.decision, tick.decision.observation.seen
        ledger_problem = (self._ledger.problem or "") if self._ledger is not None else ""
        causes = made.observation.cause
        any_bad = (causes != Cause.OK).any(axis=1).tolist()
        columns = zip(
            tick.policies,
            finished.specs,
            finished.canary_began_s,
            answers.actors,
            tick.writes,
            seen.authority.tolist(),
            made.authority.tolist(),
            seen.replicas.tolist(),
            made.replicas.tolist(),
            made.reference.tolist(),
            made.proposal.tolist(),
            made.actor_doubt.tolist(),
            made.reason.tolist(),
            strict=True,
        )
        for row, (
            record,
            spec,
            began,
            actor,
            write,
            granted,
            in_force,
            current,
            desired,
            reference,
            proposed,
            actor_doubt,
            reason,
        ) in enumerate(columns):
            kill = view.kills[record.key]
            unread = view.target_problems.get(row)
            situation = Situation(
                mode=spec.mode,
                killed=int(kill.scope),
                kill_reason=kill.reason,
                target_problem=None if unread is None else (f"Target{unread.outcome}", unread.message),
                conflict=view.conflicts.get(row, ""),
                causes=tuple(causes[row].tolist()) if any_bad[row] else (),
                model_loaded=actor is not None,
                model_problem=answers.problems.get(row, ""),
                granted=granted > 0,
                actor_doubt=actor_doubt,
                limited_by=reason,
                write_problem=_problem_of(write),
                ledger_problem=ledger_problem,
            )
            figures = Figures(
                authority=in_force,
                current=current if current >= 0 else None,
                desired=desired if desired >= 0 else None,
                reference=reference if reference >= 0 else None,
                proposed=proposed if proposed >= 0 else None,
                model_uri=None if actor is None else actor.uri,
                model_sha256=None if actor is None else actor.sha256,
                model_loaded_at=None if actor is None else self._since(actor.sha256, tick.time_s),
                canary_started_at=None if began is None else _rfc3339(began),
            )
            self._status.offer(record, situation, figures)
            if write is not None and write.outcome == Outcome.WRITTEN:
                scaled = EventReason.SCALED_UP if desired > current else EventReason.SCALED_DOWN
                self._events.post(record, scaled, f"replicas {write.message}")

    def _since(self, sha256: str, now_s: float) -> str:
        if sha256 not in self._loaded_at:
            self._loaded_at[sha256] = _rfc3339(now_s)
        return self._loaded_at[sha256]


def _problem_of(write: WriteResult | None) -> str:
    # A lost race is no problem: the next tick decides anew on what is there then.
    failed = write is not None and write.outcome in (Outcome.FORBIDDEN, Outcome.FAILED, Outcome.NOT_FOUND)
    return write.message if failed and write is not None else ""


def _rfc3339(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
