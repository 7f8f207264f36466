"""One query per signal for all policies, joined to their rows by label.

Thousands of policies must not mean thousands of queries, one failing query must not blind the other signals, and
whatever goes wrong has to keep its name on the way to the arrays: `assess` and the people on call depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from understudy_operator.telemetry.port import Prometheus, QueryFailed, RangeResult, Result
from understudy_operator.telemetry.presets import PRESETS
from understudy_policy.signals import OPTIONAL_SIGNALS, SIGNAL_NAMES, Cause, Samples, Signal

CUSTOM_QUERIES_PER_TICK = 50


@dataclass(frozen=True)
class TelemetryTarget:
    """Where one policy's signals come from.

    Attributes:
        namespace, workload: what the labels of a preset's result are compared with.
        preset: key of `PRESETS`.
        window_s: range of the preset's rates, seconds.
        threshold_s: latency from which a request has missed the objective.
        overrides: PromQL by signal name, each answering with exactly one series.
    """

    namespace: str
    workload: str
    preset: str = "http-server"
    window_s: float = 60.0
    threshold_s: float = 0.25
    overrides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something about a query that its samples' cause alone does not tell.

    Attributes:
        signal: the signal concerned.
        cause: as in the samples.
        detail: one sentence.
        rows: indices of the targets concerned.
    """

    signal: Signal
    cause: Cause
    detail: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Collected:
    """The samples of one tick, and what went wrong on the way."""

    samples: Samples
    problems: list[Problem]


_Labels = tuple[str, str] | None
"""Labels of namespace and workload in a result; None: its only series is meant for all rows that asked."""


@dataclass(frozen=True)
class _Query:
    """A query and the rows that it serves.

    Attributes:
        signal: the signal that it measures.
        promql: the text.
        labels: how series find their rows.
        rows: the targets.
        rows_of: the same by namespace and workload.
    """

    signal: Signal
    promql: str
    labels: _Labels
    rows: list[int] = field(default_factory=list)
    rows_of: dict[tuple[str | None, str | None], list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The fewest queries that serve some targets: worked out once, asked at every tick.

    Attributes:
        size: how many targets, one row each.
        queries: to be asked.
        left_out: rows for which the budget has no query.
    """

    size: int
    queries: Sequence[_Query]
    left_out: Sequence[Problem]


def plan(
    targets: Sequence[TelemetryTarget],
    signals: Sequence[Signal] = tuple(Signal),
    budget: int = CUSTOM_QUERIES_PER_TICK,
) -> Plan:
    """Work out which queries serve all targets.

    Args:
        targets: N of them, one row each.
        signals: that are wanted.
        budget: distinct custom queries that may run; those of later targets are left out.
    """
    # The labels are part of the key: a custom query that copies a preset's text still answers for one policy.
    queries: dict[tuple[Signal, str, _Labels], _Query] = {}
    left_out: dict[Signal, list[int]] = {}
    custom = 0
    # What decisions need comes first in the budget, whoever asks for it.
    for signal in sorted(signals, key=lambda signal: signal in OPTIONAL_SIGNALS):
        for row, target in enumerate(targets):
            override = target.overrides.get(SIGNAL_NAMES[signal])
            if override is None:
                promql, labels = _preset_query(target.preset, signal, target.window_s, target.threshold_s)
            else:
                promql, labels = override, None
            query = queries.get((signal, promql, labels))
            if query is None:
                if labels is None and custom >= budget:
                    left_out.setdefault(signal, []).append(row)
                    continue
                custom += labels is None
                query = queries[signal, promql, labels] = _Query(signal, promql, labels)
            query.rows.append(row)
            query.rows_of.setdefault((target.namespace, target.workload), []).append(row)
    detail = f"only {budget} custom queries run per tick, and earlier policies have used them up"
    problems = [
        Problem(signal, Cause.NOT_CONFIGURED, detail, tuple(rows)) for signal, rows in left_out.items()
    ]
    return Plan(len(targets), list(queries.values()), problems)


async def collect(port: Prometheus, asked: Plan, now_s: float, deadline_s: float) -> Collected:
    """Ask for all signals of all targets at one moment. Never raises on what Prometheus does.

    Args:
        port: the way to Prometheus.
        asked: for all signals.
        now_s: evaluation time of every query, Unix seconds.
        deadline_s: seconds after which an unanswered query counts as timed out.

    Returns:
        Samples `[N, S]` and the problems.
    """
    shape = (asked.size, len(Signal))
    samples = Samples(np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, int(Cause.EMPTY)))
    problems = list(asked.left_out)
    for problem in problems:
        samples.cause[list(problem.rows), problem.signal] = problem.cause

    async def ask(query: _Query) -> Result | QueryFailed:
        try:
            return await port.query(query.promql, now_s, deadline_s)
        except QueryFailed as failure:
            return failure

    answers = await asyncio.gather(*map(ask, asked.queries))
    for query, answer in zip(asked.queries, answers, strict=True):
        if isinstance(answer, QueryFailed):
            samples.cause[query.rows, query.signal] = answer.cause
            problems.append(Problem(query.signal, answer.cause, answer.detail, tuple(query.rows)))
            continue
        problems += _place(samples, query, answer, now_s)
        if answer.warnings:
            samples.cause[query.rows, query.signal] = Cause.PARTIAL
            detail = f"Prometheus warns: {'; '.join(answer.warnings)[:500]}"
            problems.append(Problem(query.signal, Cause.PARTIAL, detail, tuple(query.rows)))
    return Collected(samples, problems)


async def backfill(
    port: Prometheus, asked: Plan, now_s: float, tick_s: float, ticks: int, timeout_s: float = 30.0
) -> tuple[np.ndarray, list[Problem]]:
    """Read a signal at the ticks before this one, so that a restart does not start from nothing.

    Args:
        port: the way to Prometheus.
        asked: for one signal, the request rate or a share.
        now_s: time of the newest tick, which is not part of the answer.
        tick_s: seconds between two ticks.
        ticks: how many.
        timeout_s: limit for each query.

    Returns:
        Values `[N, ticks]`, oldest first, NaN where unknown, and what went wrong.
    """
    values = np.full((asked.size, ticks), np.nan)
    problems = list(asked.left_out)
    start_s = now_s - ticks * tick_s

    async def ask(query: _Query) -> RangeResult | QueryFailed:
        try:
            return await port.query_range(query.promql, start_s, now_s - tick_s, tick_s, timeout_s)
        except QueryFailed as failure:
            return failure

    # All at once: one after the other, a Prometheus that hangs would hold up the ticks by its limit for each of them.
    answers = await asyncio.gather(*map(ask, asked.queries))
    for query, answer in zip(asked.queries, answers, strict=True):
        if isinstance(answer, QueryFailed):
            problems.append(Problem(query.signal, answer.cause, answer.detail, tuple(query.rows)))
            continue
        matched, duplicates = _match(query, [series.labels for series in answer.series])
        problems += duplicates
        for row, one in matched.items():
            series = answer.series[one]
            column = np.rint((series.timestamp_s - start_s) / tick_s).astype(int)
            usable = (column >= 0) & (column < ticks) & np.isfinite(series.value) & (series.value >= 0)
            values[row, column[usable]] = series.value[usable]
        if answer.warnings:
            detail = f"Prometheus warns: {'; '.join(answer.warnings)[:500]}"
            problems.append(Problem(query.signal, Cause.PARTIAL, detail, tuple(query.rows)))
    return values, problems


@lru_cache(maxsize=4096)
def _preset_query(preset: str, signal: Signal, window_s: float, threshold_s: float) -> tuple[str, _Labels]:
    query = PRESETS[preset][signal]
    return query.of(window_s, threshold_s), (query.namespace_label, query.workload_label)


def _place(samples: Samples, query: _Query, answer: Result, now_s: float) -> list[Problem]:
    """Write an answer into its rows of the samples."""
    matched, problems = _match(query, answer.labels)
    rows, which = list(matched), list(matched.values())
    samples.values[rows, query.signal] = np.array(answer.values)[which]
    samples.age_s[rows, query.signal] = now_s - np.array(answer.timestamps_s)[which]
    samples.cause[rows, query.signal] = Cause.OK
    for problem in problems:
        samples.cause[list(problem.rows), problem.signal] = problem.cause
    return problems


def _match(query: _Query, labels: Sequence[Mapping[str, str]]) -> tuple[dict[int, int], list[Problem]]:
    """Which series each row has, by index; a row with several has none, since nobody can say which is meant."""
    matched: dict[int, int] = {}
    ambiguous: set[int] = set()
    if query.labels is None:
        if len(labels) == 1:
            matched = dict.fromkeys(query.rows, 0)
        elif labels:
            ambiguous.update(query.rows)
    else:
        (namespace, workload), rows_of = query.labels, query.rows_of.get
        for one, names in enumerate(labels):
            for row in rows_of((names.get(namespace), names.get(workload)), ()):
                if row in matched:
                    ambiguous.add(row)
                matched[row] = one
        for row in ambiguous:
            del matched[row]
    if not ambiguous:
        return matched, []
    detail = f"more than one series for one workload: aggregate them into one ({query.promql[:200]})"
    return matched, [Problem(query.signal, Cause.DUPLICATE, detail, tuple(sorted(ambiguous)))]
