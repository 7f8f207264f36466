"""The operator's own figures for Prometheus, few labels and one series a policy at most for each of them.

What is counted per tick is counted from arrays, and the gauges of policies are rendered straight from the arrays of
the last tick: ten thousand policies would otherwise be sixty thousand objects to update at every tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from understudy_operator.store import Key
from understudy_policy.decision import Decision
from understudy_policy.guards.chain import GUARD_NAMES
from understudy_policy.guards.reasons import KillScope, Reason
from understudy_policy.rows import Array
from understudy_policy.signals import SIGNAL_NAMES, Cause

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_POLICY_GAUGES = (
    ("authority", "Share of the actor's proposal that reaches the workload, 0 to 1."),
    ("replicas_current", "Replicas that the workload asks for."),
    ("replicas_desired", "Replicas decided on."),
    ("replicas_reference", "Replicas that the reference wants."),
    ("replicas_proposed", "Replicas that the actor proposes."),
    ("error_budget_burn", "Misses of late over what may be missed: 1 spends just the budget."),
    ("missed_request_price", "Price of a missed request that the actor is asked with."),
    ("acting", "1 where the actor's proposals reach the workload."),
)


@dataclass(frozen=True)
class PolicyGauges:
    """What the gauges of all policies of one interval show: the last tick's arrays, kept as they are.

    Attributes:
        keys: of the rows.
        decision: of the tick.
        acting: `[N]` bool.
    """

    keys: Sequence[Key]
    decision: Decision
    acting: Array


class Metrics:
    """All metrics of the operator, in a registry of their own.

    Attributes:
        stage_seconds: duration of the stages of a tick, by `stage`.
        tick_seconds: duration of whole ticks.
        overruns: ticks left out because the one before was not done.
        tick_errors: ticks or policies that failed with an exception, by `stage`.
        decisions: by `reason`: the guard's that spoke last.
        guard_interventions: by `guard` and `reason`.
        telemetry_problems: samples that were not believed, by `signal` and `cause`.
        killed_policies: policies under an engaged kill switch, by `scope`.
        writes: of replicas, by `outcome`.
        api_calls: to the API server, by `verb` and `outcome`.
        prometheus_queries: by `cause` (`Ok` where answered).
        status_writes: by `outcome`.
        events: Kubernetes events posted, by `reason`.
        ledger_dropped: decisions that could not be recorded.
        policies: known policies, by `mode` (`Invalid` where it cannot be read).
        last_tick: Unix time at which the last tick was completed.
        loop_lag: how late the event loop was last.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauges: dict[float, PolicyGauges] = {}
        self.stage_seconds = self._histogram(
            "tick_stage_duration_seconds", "Duration of a tick's stages.", "stage"
        )
        self.tick_seconds = self._histogram("tick_duration_seconds", "Duration of whole ticks.")
        self.overruns = self._counter("tick_overruns", "Ticks left out because the one before was not done.")
        self.tick_errors = self._counter("tick_errors", "Failures within a tick, by stage.", "stage")
        self.decisions = self._counter(
            "decisions", "Decisions, by the reason that bound them last.", "reason"
        )
        self.guard_interventions = self._counter(
            "guard_interventions", "Numbers that a guard changed.", "guard", "reason"
        )
        self.telemetry_problems = self._counter(
            "telemetry_problems", "Samples that were not believed.", "signal", "cause"
        )
        self.killed_policies = self._gauge(
            "killed_policies", "Policies under an engaged kill switch.", "scope"
        )
        self.writes = self._counter("scale_writes", "Writes of replicas, by what became of them.", "outcome")
        self.api_calls = self._counter("api_calls", "Calls to the API server.", "verb", "outcome")
        self.prometheus_queries = self._counter("prometheus_queries", "Queries, Ok or why not.", "cause")
        self.status_writes = self._counter("status_writes", "Writes of a policy's status.", "outcome")
        self.events = self._counter("events", "Kubernetes events posted.", "reason")
        self.ledger_dropped = self._counter("ledger_dropped_records", "Decisions that could not be recorded.")
        self.policies = self._gauge("policies", "Policies known, by mode.", "mode")
        self.last_tick = self._gauge("last_tick_timestamp_seconds", "When the last tick was completed.")
        self.loop_lag = self._gauge("event_loop_lag_seconds", "How late the event loop was last.")
        self._models = self._gauge("model_info", "Actors that are loaded.", "uri", "sha256")
        self._gauge("build_info", "Version of the operator.", "version").labels(version("understudy")).set(1)
        for scope in KillScope:
            if scope:
                self.killed_policies.labels(_camel(scope.name))

    def count_query(self, cause: Cause) -> None:
        """Count one query to Prometheus by what became of it."""
        self.prometheus_queries.labels(_camel(cause.name)).inc()

    def observe(self, decision: Decision) -> None:
        """Count what one tick decided, and why.

        Args:
            decision: of the tick, NumPy.
        """
        reasons = decision.chain.reasons
        for code, count in _counted(decision.reason):
            self.decisions.labels(Reason(code).label).inc(count)
        for guard, row in zip(GUARD_NAMES, reasons, strict=True):
            for code, count in _counted(row):
                if code:
                    self.guard_interventions.labels(guard, Reason(code).label).inc(count)
        for signal, column in zip(SIGNAL_NAMES, decision.observation.cause.T, strict=True):
            for code, count in _counted(column):
                if code:
                    self.telemetry_problems.labels(signal, _camel(Cause(code).name)).inc(count)

    def show(self, interval_s: float, gauges: PolicyGauges) -> None:
        """Show the policies of one interval as this tick left them, in place of the last one's."""
        self._gauges[interval_s] = gauges
        killed = sum(
            (
                np.bincount(g.decision.observation.seen.killed, minlength=len(KillScope))
                for g in self._gauges.values()
            ),
            np.zeros(len(KillScope), np.int64),
        )
        for scope in KillScope:
            if scope:
                self.killed_policies.labels(_camel(scope.name)).set(int(killed[scope]))

    def hide(self, interval_s: float) -> None:
        """Show the policies of an interval no more: none is left that has it."""
        self._gauges.pop(interval_s, None)

    def set_policies(self, count_by_mode: Mapping[str, int]) -> None:
        """Say how many policies there are in each mode."""
        self.policies.clear()
        for mode, count in count_by_mode.items():
            self.policies.labels(mode).set(count)

    def set_models(self, sha256_by_uri: Mapping[str, str]) -> None:
        """Say which actors are loaded."""
        self._models.clear()
        for uri, sha256 in sha256_by_uri.items():
            self._models.labels(uri, sha256).set(1)

    def render(self) -> bytes:
        """The text exposition; may run in a thread beside the event loop."""
        return generate_latest(self.registry) + _policy_text(list(self._gauges.values()))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"understudy_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"understudy_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"understudy_{name}", text, labels, buckets=_SECONDS, registry=self.registry)


def _counted(codes: Array) -> list[tuple[int, int]]:
    counts = np.bincount(codes)
    return [(int(code), int(counts[code])) for code in np.flatnonzero(counts)]


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _policy_text(parts: list[PolicyGauges]) -> bytes:
    """The gauges of all policies as text, some ten times as fast as one object a sample."""
    labels = [
        f'{{namespace="{namespace}",policy="{name}"}}' for part in parts for namespace, name in part.keys
    ]
    lines: list[str] = []
    for column, (name, text) in enumerate(_POLICY_GAUGES):
        metric = f"understudy_policy_{name}"
        lines.append(f"# HELP {metric} {text}\n# TYPE {metric} gauge\n")
        values = [value for part in parts for value in _columns(part)[column].tolist()]
        lines += [
            f"{metric}{label} {value}\n" for label, value in zip(labels, values, strict=True) if value >= 0
        ]
    return "".join(lines).encode()


def _columns(part: PolicyGauges) -> tuple[Any, ...]:
    """Arrays in the order of `_POLICY_GAUGES`; a negative number is unknown and is not shown."""
    decision = part.decision
    return (
        decision.authority,
        decision.observation.seen.replicas,
        decision.replicas,
        decision.reference,
        decision.proposal,
        decision.observation.error_budget_burn,
        decision.observation.missed_request_price,
        part.acting.astype(np.int64),
    )
