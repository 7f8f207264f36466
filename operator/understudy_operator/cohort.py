"""Policies that tick together: one row each in one set of arrays, so that a tick decides them all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from understudy_operator.scaling import Target
from understudy_operator.store import PolicyRecord
from understudy_operator.telemetry.collect import TelemetryTarget, plan
from understudy_policy import budget, decision, settings
from understudy_policy.api import RLPolicySpec
from understudy_policy.rows import SHARED, concatenate, take
from understudy_policy.signals import SIGNAL_NAMES


class Cohort:
    """The valid policies of one tick length, row by row.

    Attributes:
        tick_s: seconds between two ticks.
        records: the policies.
        specs: what they ask for.
        targets, telemetry: how scaler and telemetry know them.
        plan: the queries that serve all of them.
        settings: what they ask for, as arrays.
        state: what they carry from tick to tick.
    """

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self.records: list[PolicyRecord] = []
        self._synced_with: Sequence[PolicyRecord] | None = None
        self.state = decision.initial_state(0)
        self._describe()

    def sync(self, records: Sequence[PolicyRecord]) -> np.ndarray:
        """Bring the rows in line with the policies that exist now.

        A row stays as long as its object does (same uid), so an edited spec keeps its past and a re-created object
        starts anew.

        Args:
            records: all policies; the very object of the last call means that nothing has changed.

        Returns:
            Indices of the rows that are new.
        """
        if records is self._synced_with:
            return np.empty(0, np.int64)
        self._synced_with = records
        wanted = {record.uid: record for record in records if interval_of(record) == self.tick_s}
        before = {record.uid: row for row, record in enumerate(self.records)}
        kept = [uid for uid in before if uid in wanted]
        added = [uid for uid in wanted if uid not in before]
        # The store keeps the parsed policy as long as its generation stays.
        edited = any(wanted[uid].policy is not self.records[before[uid]].policy for uid in kept)
        self.records = [wanted[uid] for uid in kept + added]
        if len(kept) < len(before):
            self.state = take(self.state, np.array([before[uid] for uid in kept], np.int64))
        if added:
            fresh = decision.initial_state(len(added))
            # The past of ten thousand policies takes 120 MiB: at the start it need not be there twice.
            self.state = concatenate(self.state, fresh) if kept else fresh
        if edited or added or len(kept) < len(before):
            self._describe()
        return np.arange(len(kept), len(self.records))

    def forget_rows(self, rows: np.ndarray) -> None:
        """Start rows anew: their target was created again, so their past is another workload's."""
        if len(rows):
            self.state = _replaced(self.state, rows, decision.initial_state(len(rows)))

    def remember_budget(self, rows: np.ndarray, known: budget.Budget) -> None:
        """Give rows the error budget that Prometheus remembers."""
        self.state = dataclasses.replace(self.state, budget=_replaced(self.state.budget, rows, known))

    def _describe(self) -> None:
        self.specs = [_spec(record) for record in self.records]
        self.settings = settings.from_specs(self.specs, self.tick_s)
        pairs = list(zip(self.records, self.specs, strict=True))
        self.targets = [_target(record, spec) for record, spec in pairs]
        self.telemetry = [_telemetry(record, spec) for record, spec in pairs]
        self.plan = plan(self.telemetry)


def interval_of(record: PolicyRecord) -> float | None:
    """The tick of a policy in seconds, None where the policy is invalid and has none."""
    return None if record.policy is None else record.policy.spec.telemetry.interval_s


def _spec(record: PolicyRecord) -> RLPolicySpec:
    if record.policy is None:
        raise ValueError(f"policy {record.key} is invalid and cannot have a row: {record.invalid}")
    return record.policy.spec


def _target(record: PolicyRecord, spec: RLPolicySpec) -> Target:
    ref = spec.scale_target_ref
    return Target(record.key[0], ref.api_version, ref.kind, ref.name)


def _telemetry(record: PolicyRecord, spec: RLPolicySpec) -> TelemetryTarget:
    queries = spec.telemetry.signals.model_dump(by_alias=True, exclude_none=True)
    return TelemetryTarget(
        namespace=record.key[0],
        workload=spec.scale_target_ref.name,
        preset=spec.telemetry.preset,
        window_s=spec.telemetry.window_s,
        threshold_s=spec.objective.latency_threshold_s,
        overrides={name: queries[name] for name in SIGNAL_NAMES if name in queries},
    )


def _replaced(rows: Any, index: np.ndarray, fresh: Any) -> Any:
    """The structure with some rows exchanged; arrays are copied, because the ledger may still read the old ones."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(rows):
        if field.metadata.get(SHARED):
            continue
        mine, new = getattr(rows, field.name), getattr(fresh, field.name)
        if dataclasses.is_dataclass(mine):
            changes[field.name] = _replaced(mine, index, new)
        else:
            changes[field.name] = mine.copy()
            changes[field.name][index] = new
    return dataclasses.replace(rows, **changes)
