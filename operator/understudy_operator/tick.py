"""One tick: observe, decide, act, record. Whoever wants to know what Understudy does reads this file.

A tick has a deadline per stage and never queues behind another. What cannot be known is unknown in the arrays, not
an exception; what fails for one policy stays with that policy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from understudy_operator import logs
from understudy_operator.actors import Actors, Answers
from understudy_operator.cohort import Cohort
from understudy_operator.killswitch import KillState, KillSwitch
from understudy_operator.kube import FIELD_MANAGER
from understudy_operator.ledger import DecidedTick
from understudy_operator.rollout import WRITING_MODES, Canaries, authority, override_replicas
from understudy_operator.scaling import Outcome, ScaleProblem, Scaler, ScaleView, WriteResult
from understudy_operator.store import Key, PolicyRecord, PolicyStore
from understudy_operator.telemetry.collect import Problem, TelemetryTarget, backfill, collect, plan
from understudy_operator.telemetry.port import Prometheus
from understudy_policy import budget
from understudy_policy import decision as program
from understudy_policy import history as past
from understudy_policy.api import RLPolicySpec
from understudy_policy.guards.reasons import KillScope
from understudy_policy.rows import take
from understudy_policy.signals import Signal

log = logging.getLogger(__name__)

FOREIGN_CHANGE_HOLD_TICKS = 20
WRITES_AT_ONCE = 20

BUDGET_STEPS = 72
"""Most steps of an error budget's window in which it is read back at a start."""


@dataclass(frozen=True)
class Deadlines:
    """Shares of the tick that its stages may take.

    Attributes:
        observe: telemetry; a query that takes longer counts as timed out.
        act: all writes of the tick; those not begun by then are left to the next tick.
    """

    observe: float = 0.4
    act: float = 0.45


@dataclass(frozen=True)
class View:
    """What was seen of the world in one tick, beside the arrays.

    Attributes:
        scales: as read, None where it could not be.
        target_problems: why it could not be, by row.
        conflicts: who else steers the target, by row.
        kills: the kill switch, by policy.
        telemetry_problems: what went wrong with queries.
    """

    scales: Sequence[ScaleView | None]
    target_problems: dict[int, ScaleProblem]
    conflicts: dict[int, str]
    kills: dict[Key, KillState]
    telemetry_problems: Sequence[Problem]


@dataclass(frozen=True)
class Finished:
    """A tick that is over: what the recorder, the status and the metrics are made of."""

    decided: DecidedTick
    specs: Sequence[RLPolicySpec]
    view: View
    answers: Answers
    canary_began_s: Sequence[float | None]
    act_s: float


class Tick:
    """Runs ticks; everything that it needs from outside comes in through the constructor."""

    def __init__(
        self,
        store: PolicyStore,
        prometheus: Prometheus,
        scaler: Scaler,
        killswitch: KillSwitch,
        actors: Actors,
        timed: Callable[[str], Callable[[], float]],
        deadlines: Deadlines | None = None,
    ) -> None:
        """Wire a tick.

        Args:
            store: the policies.
            prometheus: telemetry.
            scaler: the targets.
            killswitch: who has stopped the actor.
            actors: the models.
            timed: `timed(stage)` starts a clock and returns what stops it and tells the seconds.
            deadlines: shares of the tick for its stages.
        """
        self._store, self._prometheus, self._scaler = store, prometheus, scaler
        self._killswitch, self._actors, self._timed = killswitch, actors, timed
        self._deadlines = deadlines or Deadlines()
        self._canaries = Canaries()
        self._target_uids: dict[str, str] = {}
        self._duplicates: dict[Key, Key] = {}
        self._spec_version = -1
        self._count = 0

    async def run(self, cohort: Cohort, now_s: float) -> Finished:
        """One pass over all policies of a cohort.

        Args:
            cohort: policies that tick together; its rows are brought in line with the store first.
            now_s: evaluation time of everything in this tick, Unix seconds.
        """
        self._count += 1
        tick_id = self._count  # by the end of this tick another cohort's may have begun
        logs.tick_id.set(tick_id)
        if self._spec_version != self._store.spec_version:
            self._spec_version = self._store.spec_version
            self._learn_policies()
        new = cohort.sync(self._store.snapshot())
        began = self._canaries_began(cohort, now_s)

        stop = self._timed("observe")
        seen, view = await self._observe(cohort, began, now_s)
        stop()

        stop = self._timed("decide")
        state, observation = program.observe(cohort.settings, cohort.state, seen)
        answers = self._actors.ask(cohort.specs, observation)
        cohort.state, made = program.decide(cohort.settings, state, observation, answers.probabilities)
        stop()

        stop = self._timed("act")
        writes = await self._act(cohort, view, made)
        act_s = stop()

        if len(new):
            await self._read_past(cohort, new, now_s)
        decided = DecidedTick(
            tick_id=tick_id,
            time_s=now_s,
            policies=cohort.records,
            model_sha256=[None if actor is None else actor.sha256 for actor in answers.actors],
            settings=cohort.settings,
            state=cohort.state,
            decision=made,
            writes=writes,
        )
        return Finished(decided, cohort.specs, view, answers, began, act_s)

    async def _observe(
        self, cohort: Cohort, began: Sequence[float | None], now_s: float
    ) -> tuple[program.Seen, View]:
        """Telemetry, targets and kill switch, all at once."""
        deadline_s = self._deadlines.observe * cohort.tick_s
        collected, scales, kills = await asyncio.gather(
            collect(self._prometheus, cohort.plan, now_s, deadline_s),
            self._scaler.read_many(cohort.targets),
            self._killswitch.read(cohort.records),
        )
        found = [scale if isinstance(scale, ScaleView) else None for scale in scales]
        cohort.forget_rows(self._recreated(cohort.records, found))
        hold_s = FOREIGN_CHANGE_HOLD_TICKS * cohort.tick_s
        conflicts = {
            row: why
            for row, target in enumerate(cohort.targets)
            if (why := self._scaler.conflict_of(target, hold_s)) is not None
        }
        conflicts.update(
            (row, f"RLPolicy {duplicate[1]} scales this target already: delete one of the two")
            for row, record in enumerate(cohort.records)
            if (duplicate := self._duplicates.get(record.key)) is not None
        )
        seen = program.Seen(
            samples=collected.samples,
            replicas=np.array([-1 if scale is None else scale.replicas for scale in found], np.int64),
            created=np.array([0 if scale is None else scale.created for scale in found], np.int64),
            ready=np.array([0 if scale is None else scale.ready for scale in found], np.int64),
            authority=np.array(
                [
                    0.0 if row in conflicts else authority(spec, now_s - (at or now_s))
                    for row, (spec, at) in enumerate(zip(cohort.specs, began, strict=True))
                ],
                np.float64,
            ),
            override=np.array([override_replicas(spec, now_s) for spec in cohort.specs], np.int64),
            killed=np.array([int(kills[record.key].scope) for record in cohort.records], np.int64),
            now_s=now_s,
        )
        return seen, View(
            scales=found,
            target_problems={
                row: scale for row, scale in enumerate(scales) if isinstance(scale, ScaleProblem)
            },
            conflicts=conflicts,
            kills=kills,
            telemetry_problems=collected.problems,
        )

    async def _act(self, cohort: Cohort, view: View, made: program.Decision) -> Sequence[WriteResult | None]:
        """Write what was decided, where this policy may write and something changes."""
        wanted = made.replicas
        rows = [
            row
            for row, (spec, scale) in enumerate(zip(cohort.specs, view.scales, strict=True))
            if scale is not None
            and row not in view.conflicts
            and may_write(spec.mode, scale)
            and int(wanted[row]) != scale.replicas
        ]
        writes: list[WriteResult | None] = [None] * len(cohort.records)
        if not rows:
            return writes
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadlines.act * cohort.tick_s
        slots = asyncio.Semaphore(WRITES_AT_ONCE)

        async def act(row: int) -> None:
            # One slot from the kill switch's last reading to the end of the write keeps the two close together.
            async with slots:
                if loop.time() < deadline:
                    writes[row] = await self._write(cohort, view, made, row)
                else:
                    writes[row] = WriteResult(
                        Outcome.FAILED, "the tick was over before this write could begin"
                    )

        await asyncio.gather(*map(act, rows))
        return writes

    async def _write(self, cohort: Cohort, view: View, made: program.Decision, row: int) -> WriteResult:
        """One write, with the kill switch and the policy read once more right before it."""
        record, scale = cohort.records[row], view.scales[row]
        if scale is None:
            raise ValueError(f"the target of {record.key} was not read, so it cannot be written")
        kill = await self._killswitch.confirm(record)
        killed = kill.scope != KillScope.NONE
        if kill.deleted or (kill.scope == KillScope.POLICY and not may_write("Off", scale)):
            return WriteResult(Outcome.UNCHANGED, f"the policy was {kill.reason} since the decision")
        if killed and view.kills[record.key].scope == KillScope.NONE:
            log.warning(
                "killed between decision and write: the hand-over is written instead",
                extra={"namespace": record.key[0], "policy": record.key[1], "reason": kill.scope.name},
            )
        replicas = int(made.if_killed[row] if killed else made.replicas[row])
        return await self._scaler.write(cohort.targets[row], replicas, scale)

    async def _read_past(self, cohort: Cohort, rows: np.ndarray, now_s: float) -> None:
        """Give new rows the past that Prometheus remembers, so that a restart does not start from nothing."""
        targets = [cohort.telemetry[row] for row in rows]
        windows_s = cohort.settings.error_budget_window_s[rows].tolist()
        steps_s = np.array([_budget_step_s(*pair) for pair in zip(targets, windows_s, strict=True)])
        groups = [np.flatnonzero(steps_s == step_s) for step_s in np.unique(steps_s[steps_s > 0])]
        # All at once: one after the other, a Prometheus that hangs would hold up the ticks by each of their limits.
        (rates, problems), *budgets = await asyncio.gather(
            self._backfill(cohort, targets, Signal.REQUEST_RATE, now_s, cohort.tick_s, past.TICKS - 1),
            *(self._read_budget(cohort, rows[group], float(steps_s[group[0]]), now_s) for group in groups),
        )
        cohort.state.history.backfill(rows, rates)
        for group, (known, more) in zip(groups, budgets, strict=True):
            cohort.remember_budget(rows[group], known)
            problems += more
        for detail in dict.fromkeys(problem.detail for problem in problems):
            log.warning("the past could not be read back: %s", detail)

    async def _read_budget(
        self, cohort: Cohort, rows: np.ndarray, step_s: float, now_s: float
    ) -> tuple[budget.Budget, list[Problem]]:
        """Two windows of the error budget, in steps over which rates are taken: no miss falls between two of them."""
        targets = [replace(cohort.telemetry[row], window_s=step_s) for row in rows]
        settings = take(cohort.settings, rows)
        steps = math.ceil(2.0 * float(settings.error_budget_window_s.max()) / step_s)
        (rates, problems), (miss_rates, more) = await asyncio.gather(
            *(
                self._backfill(cohort, targets, signal, now_s, step_s, steps)
                for signal in (Signal.REQUEST_RATE, Signal.MISS_RATE)
            )
        )
        return budget.remembered(settings, rates, miss_rates, step_s), [*problems, *more]

    async def _backfill(
        self,
        cohort: Cohort,
        targets: Sequence[TelemetryTarget],
        signal: Signal,
        now_s: float,
        step_s: float,
        steps: int,
    ) -> tuple[np.ndarray, list[Problem]]:
        asked = plan(targets, (signal,))
        return await backfill(self._prometheus, asked, now_s, step_s, steps, timeout_s=0.5 * cohort.tick_s)

    def _recreated(self, records: Sequence[PolicyRecord], found: Sequence[ScaleView | None]) -> np.ndarray:
        """Rows whose target is another object than at the last tick."""
        rows = []
        for row, (record, scale) in enumerate(zip(records, found, strict=True)):
            if scale is None:
                continue
            if self._target_uids.setdefault(record.uid, scale.uid) != scale.uid:
                self._target_uids[record.uid] = scale.uid
                rows.append(row)
        return np.array(rows, np.int64)

    def _learn_policies(self) -> None:
        """What is worked out once per change of the specs, or of the set of policies."""
        uids = {record.uid for record in self._store}
        self._canaries.keep(uids)
        self._target_uids = {uid: target for uid, target in self._target_uids.items() if uid in uids}
        self._duplicates = self._store.duplicates()

    def _canaries_began(self, cohort: Cohort, now_s: float) -> list[float | None]:
        return [
            self._canaries.began_s(record.uid, spec, record.status, now_s)
            for record, spec in zip(cohort.records, cohort.specs, strict=True)
        ]


def may_write(mode: str, scale: ScaleView) -> bool:
    """Whether a policy in this mode writes its target at all.

    Canary and Active write. Off hands over to the reference, which goes on writing where Understudy was the one that
    scaled; where it never was, Off does not begin.
    """
    return mode in WRITING_MODES or (mode == "Off" and scale.owner == FIELD_MANAGER)


def _budget_step_s(target: TelemetryTarget, window_s: float) -> float:
    """Step in which an error budget is read back; 0 where none is followed.

    Powers of two of the policy's own window of rates: over less, rates may be unknown; and however many windows people
    think of, few steps mean few queries.
    """
    if window_s == 0:
        return 0.0
    return target.window_s * 2.0 ** max(0, math.ceil(math.log2(window_s / BUDGET_STEPS / target.window_s)))
