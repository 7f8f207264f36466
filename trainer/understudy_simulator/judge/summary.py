"""From raw figures to what may be claimed: who was chosen on the past, by how much it won, and how sure that is.

Every choice is made by the mean over seeds on the past (or, where the name says so, in hindsight on the future).
Ratios are taken per cell and averaged geometrically. Intervals resample parts of recordings, whose cells share a load,
the cells of each, and their seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy_simulator.judge import entrants as taking_part
from understudy_simulator.judge.contest import CellResult
from understudy_simulator.judge.entrants import (
    FORECAST,
    HPA,
    KEDA,
    KNATIVE,
    SEASONAL,
    STATIC,
    STOCK,
    SWEPT,
    TUNED,
)
from understudy_simulator.judge.world import FIGURES
from understudy_simulator.protocol import VERSION, Cell

Floats = NDArray[np.float64]

CLAIRVOYANT, AUDITIONED, RULE_PAST, RULE_HINDSIGHT = (
    "clairvoyant",
    "auditioned",
    "rule-past",
    "rule-hindsight",
)
HPA_STOCK, HPA_PAST = "hpa-stock", "hpa-past"
ZERO_SHOT, FINE_TUNED = "zero-shot", "fine-tuned"
RESAMPLES = 2000
INTERVAL = (0.025, 0.975)
LEAST_SHARE = 1e-3
"""Violations are compared from a tenth of the budget on: below, their ratio is about single requests."""
LEAST_ACTIONS = 0.1
"""Actions per hour are compared from one in ten hours on."""

_COST, _VIOLATION, _ADJUSTED, _ACTIONS = (
    FIGURES.index(name) for name in ("cost", "violation", "adjusted", "actions_per_hour")
)


@dataclass(frozen=True)
class Standing:
    """A contestant in one cell.

    Attributes:
        configuration: index of what it ran, −1 for the bound.
        label: what that is, for people.
        figures: `[len(FIGURES), seeds]` in the future; NaN where the bound has none.
    """

    configuration: int
    label: str
    figures: Floats


def standings(result: CellResult) -> dict[str, Standing]:
    """All contestants of a cell, by name, in the order of reports.

    Everything is chosen on all of the past, which nobody knew beforehand: whoever was trained further played each half
    of it after it had learned from the other one.
    """
    past, future = (part[_ADJUSTED].mean(axis=1) for part in (result.past, result.future))
    names = np.array(result.entrants)
    swept = np.flatnonzero(np.isin(names, SWEPT))
    policies = _policies(result)
    shipped, tuned = (
        [name for name in policies if name.startswith(TUNED) == is_tuned] for is_tuned in (False, True)
    )

    def rows(name: str) -> NDArray[np.int64]:
        return np.flatnonzero(names == name)

    def best(candidates: NDArray[np.int64], by: Floats) -> int:
        return int(candidates[np.argmin(by[candidates])])

    chosen = {
        HPA_STOCK: int(rows(STOCK)[0]),
        HPA_PAST: best(rows(HPA), past),
        "hpa-hindsight": best(rows(HPA), future),
        "keda-past": best(rows(KEDA), past),
        "keda-hindsight": best(rows(KEDA), future),
        "knative-past": best(rows(KNATIVE), past),
        "seasonal-past": best(rows(SEASONAL), past),
        RULE_PAST: best(swept, past),
        RULE_HINDSIGHT: best(swept, future),
        STATIC: int(rows(STATIC)[0]),
    }
    for kind, names_of_kind in ((ZERO_SHOT, shipped), (FINE_TUNED, tuned)):
        for name in names_of_kind:
            told = kind if len(names_of_kind) == 1 else f"{kind}:{name.removeprefix(TUNED)}"
            chosen[told] = best(rows(name), past)
    if policies:
        chosen[AUDITIONED] = best(np.concatenate([swept, *(rows(name) for name in policies)]), past)
    chosen[FORECAST] = best(rows(FORECAST), past)
    table = {name: Standing(k, result.labels[k], result.future[:, k]) for name, k in chosen.items()}
    bound = np.full((len(FIGURES), len(result.bound)), np.nan)
    bound[_ADJUSTED] = result.bound
    return table | {CLAIRVOYANT: Standing(-1, "lower bound", bound)}


@dataclass(frozen=True)
class Contest:
    """All cells together.

    Attributes:
        cells: what was judged.
        results: their raw figures.
        tables: their contestants.
    """

    cells: Sequence[Cell]
    results: Sequence[CellResult]
    tables: Sequence[dict[str, Standing]]

    @classmethod
    def of(cls, cells: Sequence[Cell], results: Sequence[CellResult]) -> Contest:
        """Choose the contestants."""
        return cls(cells, results, [standings(result) for result in results])

    @property
    def contestants(self) -> list[str]:
        """Their names, in order."""
        return list(self.tables[0])

    @property
    def policies(self) -> list[str]:
        """The contestants that learned, and the audition."""
        return [name for name in self.contestants if name.startswith((ZERO_SHOT, FINE_TUNED, AUDITIONED))]

    @property
    def families(self) -> dict[str, list[int]]:
        """Indices of the cells of each family."""
        found: dict[str, list[int]] = {}
        for k, cell in enumerate(self.cells):
            found.setdefault(cell.family, []).append(k)
        return found

    def figure(self, name: str, figure: int = _ADJUSTED) -> Floats:
        """`[cells, seeds]` of one contestant."""
        return np.stack([table[name].figures[figure] for table in self.tables])

    def drawn(self, name: str, cells: Sequence[int] | None = None) -> Floats:
        """Adjusted cost with seeds drawn anew, `[RESAMPLES, cells]`: the same draws for everybody."""
        return self._seeds_drawn[name][:, self._index(cells)]

    def weights(self, cells: Sequence[int] | None = None) -> Floats:
        """How often each cell is drawn, `[RESAMPLES, cells]`.

        Parts of recordings are drawn first, since the cells of one share its load, then cells of each.
        """
        key = tuple(self._index(cells))
        if key not in self._weights:
            self._weights[key] = self._draw_weights(key)
        return self._weights[key]

    @cached_property
    def _weights(self) -> dict[tuple[int, ...], Floats]:
        """Those that were drawn: everybody's ratios on some cells ask for the same ones."""
        return {}

    def _draw_weights(self, cells: Sequence[int]) -> Floats:
        rng = np.random.default_rng(0)
        parts, part_of = np.unique([self.cells[k].segment for k in cells], return_inverse=True)
        times = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), RESAMPLES)
        weights = np.zeros((RESAMPLES, len(part_of)))
        for part in range(len(parts)):
            own = np.flatnonzero(part_of == part)
            weights[:, own] = rng.multinomial(times[:, part] * len(own), np.full(len(own), 1 / len(own)))
        return weights

    def _index(self, cells: Sequence[int] | None) -> NDArray[np.int64]:
        return np.arange(len(self.cells)) if cells is None else np.array(cells, np.int64)

    @cached_property
    def _seeds_drawn(self) -> dict[str, Floats]:
        """Means over seeds drawn anew of every contestant, `[RESAMPLES, cells]`."""
        cells, seeds = self.figure(CLAIRVOYANT).shape
        seed = np.random.default_rng(1).integers(0, seeds, (RESAMPLES, cells, seeds))
        cell = np.arange(cells)[:, None]
        return {name: self.figure(name)[cell, seed].mean(axis=2) for name in self.contestants}

    def ratio(self, name: str, over: str, cells: Sequence[int] | None = None) -> dict[str, float]:
        """Adjusted cost of one contestant over another's: geometric mean, interval, worst cell."""
        index = self._index(cells)
        own, other = (self.figure(n)[index].mean(axis=1) for n in (name, over))
        drawn = np.log(self.drawn(name, cells) / self.drawn(over, cells))
        return _over_cells(np.log(own / other), drawn, self.weights(cells))


def _over_cells(logs: Floats, drawn: Floats, weights: Floats) -> dict[str, float]:
    """Geometric mean, interval and worst of a ratio.

    Args:
        logs: `[cells]`, its logarithms.
        drawn: `[RESAMPLES, cells]` or `[cells]`, the same with seeds drawn anew.
        weights: `[RESAMPLES, cells]`, how often a cell is drawn.
    """
    low, high = np.exp(np.quantile((weights * drawn).sum(axis=1) / weights.sum(axis=1), INTERVAL))
    return {
        "geomean": float(np.exp(logs.mean())),
        "low": float(low),
        "high": float(high),
        "worst": float(np.exp(logs.max())),
    }


def headline(contest: Contest, name: str) -> dict[str, Any]:
    """The six headlines of a contestant."""
    own = contest.figure(name)
    rule, hindsight, bound = (contest.figure(other) for other in (RULE_PAST, RULE_HINDSIGHT, CLAIRVOYANT))
    answer: dict[str, Any] = {
        f"adjusted_over_{other.replace('-', '_')}": contest.ratio(name, other)
        for other in (RULE_PAST, HPA_PAST, RULE_HINDSIGHT, CLAIRVOYANT)
    }
    drawn = {n: contest.drawn(n) for n in (name, RULE_PAST, CLAIRVOYANT)}
    gaps = _gap(drawn[name], drawn[RULE_PAST], drawn[CLAIRVOYANT], contest.weights())
    low, high = np.quantile(gaps, INTERVAL)
    share = _gap(own.mean(axis=1), rule.mean(axis=1), bound.mean(axis=1))
    answer["gap_closed"] = {"share": float(share), "low": float(low), "high": float(high)}
    answer["better_than_rule_hindsight_share"] = float(np.mean(own.mean(axis=1) < hindsight.mean(axis=1)))
    if name == CLAIRVOYANT:
        return answer
    missed, rule_missed = (
        np.maximum(contest.figure(n, _VIOLATION).mean(axis=1), LEAST_SHARE) for n in (name, RULE_PAST)
    )
    answer["cost_at_equal_slo"] = _cost_at_equal_slo(contest, name)
    answer["violation_over_rule_past_worst"] = float(np.max(missed / rule_missed))
    actions = _actions_over(contest, name, RULE_PAST)
    answer["actions_over_rule_past"] = actions.pop("geomean")
    return answer | {f"actions_over_rule_past_{key}": value for key, value in actions.items()}


def _actions_over(contest: Contest, name: str, over: str) -> dict[str, float]:
    """Actions per hour of one contestant over another's, and the share of cells in which they are more than twice."""
    own, other = (np.maximum(contest.figure(n, _ACTIONS).mean(axis=1), LEAST_ACTIONS) for n in (name, over))
    logs = np.log(own / other)
    twice = {"twice_share": float(np.mean(own > 2 * other))}
    return _over_cells(logs, logs, contest.weights()) | twice


def _gap(own: Floats, rule: Floats, bound: Floats, weights: Floats | float = 1.0) -> Floats:
    """Share of the way from `rule-past` to the bound, in logarithms over all cells (the last axis)."""
    way, gone = ((weights * np.log(rule / other)).sum(axis=-1) for other in (bound, own))
    return np.divide(gone, way, out=np.zeros_like(gone), where=way > 0)


def _cost_at_equal_slo(contest: Contest, name: str) -> dict[str, Any]:
    """Cost over that of the cheapest configuration of the sweep that missed no more, found in hindsight.

    The interval is of cells drawn anew, not of seeds: another seed has another cheapest configuration.
    """
    ratios = {}
    for k, (result, table) in enumerate(zip(contest.results, contest.tables, strict=True)):
        swept = np.flatnonzero(np.isin(result.entrants, SWEPT))
        cost, missed = (result.future[f][swept].mean(axis=1) for f in (_COST, _VIOLATION))
        own = table[name].figures.mean(axis=1)
        as_good = cost[missed <= own[_VIOLATION] + 1e-12]
        if len(as_good):
            ratios[k] = own[_COST] / as_good.min()
    counts = {"cells": len(ratios), "of": len(contest.cells)}
    if not ratios:
        return dict.fromkeys(("geomean", "low", "high", "worst")) | counts
    logs = np.log(list(ratios.values()))
    return _over_cells(logs, logs, contest.weights(list(ratios))) | counts


def document(contest: Contest, conditions: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON, in the protocol's shape."""
    return {
        "protocol": VERSION,
        "parts": len({cell.segment for cell in contest.cells}),
        "conditions": conditions,
        "cells": [row for k in range(len(contest.cells)) for row in _rows(contest, k)],
        "headlines": {name: headline(contest, name) for name in contest.contestants},
        "families": {
            family: {name: _in_family(contest, name, cells) for name in contest.contestants}
            for family, cells in contest.families.items()
        },
        "slices": _slices(contest),
    }


def _in_family(contest: Contest, name: str, cells: Sequence[int]) -> dict[str, Any]:
    """A contestant over `rule-past` in some cells, and its mean figures there."""
    shown = (_COST, _VIOLATION, _ADJUSTED, _ACTIONS)
    means = {FIGURES[k]: _mean(contest.figure(name, k)[list(cells)]) for k in shown}
    return {**contest.ratio(name, RULE_PAST, cells), **means}


def _slices(contest: Contest) -> list[dict[str, Any]]:
    """Ratios over `rule-past` for each value of each condition that was varied, and not otherwise in every cell."""
    conditions: tuple[tuple[str, Callable[[Cell], Any]], ...] = (
        ("profile {}", lambda cell: cell.profile),
        ("{:g} pods", lambda cell: cell.pods),
        ("start-up {:g} s", lambda cell: cell.startup_s),
    )
    found = []
    for form, value_of in conditions:
        values = [value_of(cell) for cell in contest.cells]
        different = sorted(set(values))
        for value in different if 1 < len(different) < len(values) else ():
            cells = [k for k, own in enumerate(values) if own == value]
            ratios = {name: contest.ratio(name, RULE_PAST, cells) for name in contest.contestants}
            found.append({"condition": form.format(value), "cells": len(cells), "contestants": ratios})
    return found


def _rows(contest: Contest, k: int) -> Iterable[dict[str, Any]]:
    cell = contest.cells[k]
    for name, standing in contest.tables[k].items():
        yield {
            "trace": cell.family,
            "segment": cell.segment,
            "profile": cell.profile,
            "pods": cell.pods,
            "startup_s": cell.startup_s,
            "dispersion": cell.dispersion,
            "contestant": name,
            "configuration": standing.label,
            **{figure: _mean(standing.figures[f]) for f, figure in enumerate(FIGURES)},
            "adjusted_by_seed": [float(value) for value in standing.figures[_ADJUSTED]],
            "regret": _mean(standing.figures[_ADJUSTED] - contest.results[k].bound),
        }


def _mean(values: Floats) -> float | None:
    """A number that JSON knows."""
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def sweep(contest: Contest, entrant: str) -> tuple[list[str], Floats, Floats]:
    """Labels of an entrant's configurations, and geometric mean of cost and mean of violation over all cells."""
    first = contest.results[0]
    rows = [k for k, name in enumerate(first.entrants) if name == entrant]
    cost = np.stack([result.future[_COST][rows].mean(axis=1) for result in contest.results])
    missed = np.stack([result.future[_VIOLATION][rows].mean(axis=1) for result in contest.results])
    return [first.labels[k] for k in rows], np.exp(np.log(cost).mean(axis=0)), missed.mean(axis=0)


def policy_entrants(contest: Contest) -> list[str]:
    """The entrants that learned."""
    return _policies(contest.results[0])


def _policies(result: CellResult) -> list[str]:
    return sorted(set(result.entrants) - {*taking_part.CHOICES, STATIC, FORECAST})
