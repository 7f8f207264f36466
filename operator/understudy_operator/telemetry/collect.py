"""One query per signal for all policies, joined to their rows by label.

Thousands of policies must not mean thousands of queries, one failing query must not blind the other signals, and
whatever goes wrong has to keep its name on the way to the arrays: `assess` and the people on call depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np

from understudy_operator.telemetry.port import (
    Prometheus,
    QueryFailed,
    RangeResult,
    RangeSeries,
    Result,
    Series,
)
from understudy_operator.telemetry.presets import PRESETS
from understudy_policy.signals import SIGNAL_NAMES, Cause, Samples, Signal

CUSTOM_QUERIES_PER_TICK = 50


@dataclass(frozen=True)
class TelemetryTarget:
    """Where one policy's signals come from.

    Attributes:
        namespace, workload: what the labels of a preset's result are compared with.
        preset: key of `PRESETS`.
        window_s: range of the preset's rates, seconds.
        overrides: PromQL by signal name, each answering with exactly one series.
    """

    namespace: str
    workload: str
    preset: str = "http-server"
    window_s: float = 60.0
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

_AnySeries = TypeVar("_AnySeries", Series, RangeSeries)


@dataclass(frozen=True)
class _Query:
    """A query and the rows that it serves.

    Attributes:
        signal: the signal that it measures.
        promql: the text.
        labels: how series find their rows.
        rows: the targets.
    """

    signal: Signal
    promql: str
    labels: _Labels
    rows: list[int]


async def collect(
    port: Prometheus,
    targets: Sequence[TelemetryTarget],
    now_s: float,
    deadline_s: float,
    budget: int = CUSTOM_QUERIES_PER_TICK,
) -> Collected:
    """Ask for all signals of all targets at one moment. Never raises on what Prometheus does.

    Args:
        port: the way to Prometheus.
        targets: N of them, one row each.
        now_s: evaluation time of every query, Unix seconds.
        deadline_s: seconds after which an unanswered query counts as timed out.
        budget: distinct custom queries that may run; those of later targets are left out.

    Returns:
        Samples `[N, S]` and the problems.
    """
    shape = (len(targets), len(Signal))
    samples = Samples(np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, int(Cause.EMPTY)))
    queries, problems = _plan(targets, tuple(Signal), budget)
    for problem in problems:
        samples.cause[list(problem.rows), problem.signal] = problem.cause

    async def ask(query: _Query) -> Result | QueryFailed:
        try:
            return await port.query(query.promql, now_s, deadline_s)
        except QueryFailed as failure:
            return failure

    answers = await asyncio.gather(*map(ask, queries))
    for query, answer in zip(queries, answers, strict=True):
        if isinstance(answer, QueryFailed):
            samples.cause[query.rows, query.signal] = answer.cause
            problems.append(Problem(query.signal, answer.cause, answer.detail, tuple(query.rows)))
            continue
        problems += _place(samples, targets, query, answer.series, now_s)
        if answer.warnings:
            samples.cause[query.rows, query.signal] = Cause.PARTIAL
            detail = f"Prometheus warns: {'; '.join(answer.warnings)[:500]}"
            problems.append(Problem(query.signal, Cause.PARTIAL, detail, tuple(query.rows)))
    return Collected(samples, problems)


async def backfill(
    port: Prometheus,
    targets: Sequence[TelemetryTarget],
    now_s: float,
    tick_s: float,
    ticks: int,
    timeout_s: float = 30.0,
    budget: int = CUSTOM_QUERIES_PER_TICK,
) -> tuple[np.ndarray, list[Problem]]:
    """Read the request rates of the ticks before this one, so that a restart does not start from nothing.

    Args:
        port: the way to Prometheus.
        targets: N of them, one row each; they share the tick.
        now_s: time of the newest tick, which is not part of the answer.
        tick_s: seconds between two ticks.
        ticks: how many.
        timeout_s: limit for each query.
        budget: distinct custom queries that may run.

    Returns:
        Requests per second `[N, ticks]`, oldest first, NaN where unknown, and what went wrong.
    """
    rates = np.full((len(targets), ticks), np.nan)
    queries, problems = _plan(targets, (Signal.REQUEST_RATE,), budget)
    start_s = now_s - ticks * tick_s

    async def ask(query: _Query) -> RangeResult | QueryFailed:
        try:
            return await port.query_range(query.promql, start_s, now_s - tick_s, tick_s, timeout_s)
        except QueryFailed as failure:
            return failure

    # All at once: one after the other, a Prometheus that hangs would hold up the ticks by its limit for each of them.
    answers = await asyncio.gather(*map(ask, queries))
    for query, answer in zip(queries, answers, strict=True):
        if isinstance(answer, QueryFailed):
            problems.append(Problem(query.signal, answer.cause, answer.detail, tuple(query.rows)))
            continue
        matched, duplicates = _match(targets, query, answer.series)
        problems += duplicates
        for row, series in matched.items():
            column = np.rint((series.timestamp_s - start_s) / tick_s).astype(int)
            usable = (column >= 0) & (column < ticks) & np.isfinite(series.value) & (series.value >= 0)
            rates[row, column[usable]] = series.value[usable]
        if answer.warnings:
            detail = f"Prometheus warns: {'; '.join(answer.warnings)[:500]}"
            problems.append(Problem(query.signal, Cause.PARTIAL, detail, tuple(query.rows)))
    return rates, problems


def _plan(
    targets: Sequence[TelemetryTarget], signals: Sequence[Signal], budget: int
) -> tuple[list[_Query], list[Problem]]:
    """The fewest queries that serve all rows, and the rows that the budget leaves out."""
    # The labels are part of the key: a custom query that copies a preset's text still answers for one policy.
    queries: dict[tuple[Signal, str, _Labels], _Query] = {}
    left_out: dict[Signal, list[int]] = {}
    custom = 0
    for row, target in enumerate(targets):
        for signal in signals:
            override = target.overrides.get(SIGNAL_NAMES[signal])
            if override is None:
                promql, labels = _preset_query(target.preset, signal, target.window_s)
            else:
                promql, labels = override, None
            query = queries.get((signal, promql, labels))
            if query is not None:
                query.rows.append(row)
            elif labels is None and custom >= budget:
                left_out.setdefault(signal, []).append(row)
            else:
                custom += labels is None
                queries[signal, promql, labels] = _Query(signal, promql, labels, [row])
    detail = f"only {budget} custom queries run per tick, and earlier policies have used them up"
    return list(queries.values()), [
        Problem(signal, Cause.NOT_CONFIGURED, detail, tuple(rows)) for signal, rows in left_out.items()
    ]


@lru_cache(maxsize=4096)
def _preset_query(preset: str, signal: Signal, window_s: float) -> tuple[str, _Labels]:
    query = PRESETS[preset][signal]
    return query.over(window_s), (query.namespace_label, query.workload_label)


def _place(
    samples: Samples,
    targets: Sequence[TelemetryTarget],
    query: _Query,
    series: Sequence[Series],
    now_s: float,
) -> list[Problem]:
    """Write an answer into its rows of the samples."""
    matched, problems = _match(targets, query, series)
    rows = list(matched)
    samples.values[rows, query.signal] = [one.value for one in matched.values()]
    samples.age_s[rows, query.signal] = [now_s - one.timestamp_s for one in matched.values()]
    samples.cause[rows, query.signal] = Cause.OK
    for problem in problems:
        samples.cause[list(problem.rows), problem.signal] = problem.cause
    return problems


def _match(
    targets: Sequence[TelemetryTarget], query: _Query, series: Sequence[_AnySeries]
) -> tuple[dict[int, _AnySeries], list[Problem]]:
    """The one series of each row; a row with several has none, since nobody can say which is meant."""
    matched: dict[int, _AnySeries] = {}
    ambiguous: set[int] = set()
    if query.labels is None:
        if len(series) == 1:
            matched = dict.fromkeys(query.rows, series[0])
        elif series:
            ambiguous.update(query.rows)
    else:
        namespace_label, workload_label = query.labels
        rows_of: dict[tuple[str | None, str | None], list[int]] = {}
        for row in query.rows:
            rows_of.setdefault((targets[row].namespace, targets[row].workload), []).append(row)
        for one in series:
            for row in rows_of.get((one.labels.get(namespace_label), one.labels.get(workload_label)), ()):
                if row in matched:
                    ambiguous.add(row)
                matched[row] = one
        for row in ambiguous:
            del matched[row]
    if not ambiguous:
        return matched, []
    detail = f"more than one series for one workload: aggregate them into one ({query.promql[:200]})"
    return matched, [Problem(query.signal, Cause.DUPLICATE, detail, tuple(sorted(ambiguous)))]
