"""Who takes part: every rule with the configurations that a careful engineer would try, and learned policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy_policy import actions, calibration, decision, signals
from understudy_policy.api.base import duration_s
from understudy_policy.api.parts import Objective
from understudy_policy.artifact import Actor, load
from understudy_policy.calibration import Choice, FixedChoice, RowChoice, Workload
from understudy_policy.references.rule import Rule, RuleSignals
from understudy_policy.settings import Settings
from understudy_policy.signals import Signal
from understudy_simulator.audition import AIM_ROWS, best_aim
from understudy_simulator.judge.contest import Entrant, Player, Where
from understudy_simulator.judge.world import Floats, Ints
from understudy_simulator.protocol import TICK_S

STOCK, HPA, KEDA, KNATIVE, SEASONAL, ROW, STATIC, FORECAST = (
    "stock",
    "hpa",
    "keda",
    "knative",
    "seasonal",
    "row",
    "static",
    "perfect-forecast",
)
SWEPT = (STOCK, HPA, KEDA, KNATIVE, SEASONAL, ROW)
"""Entrants whose configurations are what `rule-past` and `rule-hindsight` choose from."""

CHOICES: dict[str, Sequence[Choice]] = {
    STOCK: (calibration.STOCK,),
    HPA: calibration.HPA_CHOICES,
    KEDA: calibration.KEDA_CHOICES,
    KNATIVE: calibration.KNATIVE_CHOICES,
    SEASONAL: calibration.SEASONAL_CHOICES,
    ROW: calibration.ROW_CHOICES,
}

PREFERENCES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Prices of a missed request that a policy may be asked for; it chooses one on the past, and its budget steers it."""

FORECAST_STARTUPS = (1.0, 1.5)
"""How far ahead a perfect forecast looks, in median start-ups; and a tick further, since pods are late one by one."""

FORECAST_UTILIZATIONS = (*actions.UTILIZATION_LEVELS[:8], 0.89, 0.92, 0.95, 0.97, 1.0, 1.03)
"""Target utilisations that go with it: those of the rows, closer together where a forecast without error is used."""

SLO_TARGET = 0.99

ERROR_BUDGET_WINDOW_S = duration_s(Objective.model_fields["error_budget_window"].default)
"""Over which a policy's price follows the error budget: what a resource has where it says nothing."""

TUNED = "fine-tuned:"
"""Before the name of a policy that was trained further on the past of every cell."""

Learned = tuple[Path, Path, Path]
"""A policy after it was trained further on a cell's past: who plays its first half, its second half, and the future."""


class _RulePlayer:
    """A rule at the table."""

    def __init__(self, rule: Rule[Any]) -> None:
        self._rule = rule
        self._state: Any = None

    def decide(self, values: Floats, seen: RuleSignals, now_s: float) -> Ints:
        if self._state is None:
            self._state = self._rule.initial(seen, now_s)
        self._state, replicas = self._rule.decide(self._state, seen, now_s)
        decided: Ints = replicas
        return decided


def rules() -> list[Entrant]:
    """All rules of the protocol, and the two that are there as a scale."""
    return [*(_of_choices(name, choices) for name, choices in CHOICES.items()), _static(), _forecast()]


def aims() -> Entrant:
    """The rule over five minutes at every utilisation of which a policy is told the best."""
    return _of_choices("aim", tuple(RowChoice(row) for row in AIM_ROWS))


def _of_choices(name: str, choices: Sequence[Choice]) -> Entrant:
    def play(pick: Ints, where: Where) -> Player:
        return _RulePlayer(calibration.build([choices[k] for k in pick], _workload(where)))

    return Entrant(name, tuple(choice.sentence() for choice in choices), play)


def _static() -> Entrant:
    def play(pick: Ints, where: Where) -> Player:
        fixed = [FixedChoice(int(replicas)) for replicas in where.static_replicas]
        return _RulePlayer(calibration.build(fixed, _workload(where)))

    return Entrant(STATIC, ("p95 of the past's demand",), play)


class _ForecastPlayer:
    """Knows the rate to come, though not the arrivals that are drawn around it, and keeps one head-room."""

    def __init__(self, startups: Floats, utilization: Floats, where: Where) -> None:
        self._where, self._pods_rps = where, where.capacity_rps * utilization
        ahead = np.ceil(startups * where.startup_s / TICK_S).astype(np.int64) + 1
        self._groups = [(int(ticks), np.flatnonzero(ahead == ticks)) for ticks in np.unique(ahead)]
        # Whoever knew when the judging ends would stop buying pods for what comes after it.
        self._rate_rps = np.pad(where.future_rps, ((0, 0), (0, int(ahead.max()))), mode="edge")

    def decide(self, values: Floats, seen: RuleSignals, now_s: float) -> Ints:
        tick, most_rps = round(now_s / TICK_S), np.empty(len(self._pods_rps))
        for ticks, rows in self._groups:
            largest = self._rate_rps[:, tick : tick + ticks + 1].max(axis=1)
            most_rps[rows] = largest[self._where.cell[rows]]
        replicas = np.ceil(most_rps / self._pods_rps - 1e-6).astype(np.int64)
        return np.clip(replicas, self._where.min_replicas, self._where.max_replicas)


def _forecast() -> Entrant:
    choices = [(ahead, aim) for ahead in FORECAST_STARTUPS for aim in FORECAST_UTILIZATIONS]

    def play(pick: Ints, where: Where) -> Player:
        startups, utilization = np.array(choices)[pick].T
        return _ForecastPlayer(startups, utilization, where)

    labels = tuple(
        f"largest rate within {ahead:g} × start-up and a tick, at {aim:.0%}" for ahead, aim in choices
    )
    return Entrant(FORECAST, labels, play)


def _workload(where: Where) -> Workload:
    return Workload(
        capacity_rps=where.capacity_rps,
        pod_concurrency=where.capacity_rps * where.service_s,
        min_replicas=where.min_replicas,
        max_replicas=where.max_replicas,
        tick_s=TICK_S,
    )


def policy(path: Path) -> Entrant:
    """A learned policy with its preferences.

    Raises:
        ArtifactError: the file failed verification.
    """
    actor = _loaded(path)

    def play(pick: Ints, where: Where) -> Player:
        return _PolicyPlayer([_Duty(actor, slice(None))], np.array(PREFERENCES)[pick], where)

    return Entrant(path.stem, _PRICES, play, policy=True)


def fine_tuned(path: Path, files: Sequence[Learned]) -> Entrant:
    """A policy that was trained further for every cell.

    Args:
        path: what it was before.
        files: of every cell, in order.

    Raises:
        ArtifactError: a file failed verification.
    """
    actors = [tuple(_loaded(file) for file in own) for own in files]

    def play(pick: Ints, where: Where) -> Player:
        duties = []
        for cell, (first, second, whole) in enumerate(actors):
            rows = np.flatnonzero(where.cell == cell)
            half_s, end_s = (float(at[rows[0]]) for at in (where.half_past_s, where.past_s))
            duties += [
                _Duty(first, rows, until_s=half_s),
                _Duty(second, rows, half_s, end_s),
                _Duty(whole, rows, end_s),
            ]
        return _PolicyPlayer(duties, np.array(PREFERENCES)[pick], where)

    return Entrant(TUNED + path.stem, _PRICES, play, policy=True)


_PRICES = tuple(f"price {p:g}" for p in PREFERENCES)


def _loaded(path: Path) -> Actor:
    return load(path.resolve().as_uri())


@dataclass(frozen=True)
class _Duty:
    """Who decides, for which rows and when."""

    actor: Actor
    rows: slice | Ints
    from_s: float = 0.0
    until_s: float = math.inf


def _calibrated(where: Where) -> tuple[Floats, Floats] | None:
    """Prices, and the utilisations that were best on the past at them, `[N, K]`; None where nobody looked."""
    if where.aim_cost is None or where.aim_violation is None:
        return None
    prices = np.tile(PREFERENCES, (len(where.aim_cost), 1))
    return prices, best_aim(prices, where.aim_cost.T[..., None], where.aim_violation.T[..., None])


class _PolicyPlayer:
    """Actors inside the operator's own decision program, each on its duty, at full authority and without the guards.

    Without the guards, because they are the operator's and settings of people: what is judged is the policy.
    """

    def __init__(self, duties: Sequence[_Duty], price: Floats, where: Where) -> None:
        self._duties = duties
        count = len(price)
        self._settings = Settings.unguarded(
            min_replicas=where.min_replicas,
            max_replicas=where.max_replicas,
            latency_threshold_s=where.latency_threshold_s,
            slo_target=np.full(count, SLO_TARGET),
            missed_request_price=price,
            given_capacity_rps=where.capacity_rps,
            reference_target=np.full(count, 0.7),
            tick_s=TICK_S,
            error_budget_window_s=ERROR_BUDGET_WINDOW_S,
            calibrated=_calibrated(where),
        )
        self._state = decision.initial_state(count)
        self._fresh = np.zeros((count, len(Signal)))
        self._known = np.zeros((count, len(Signal)), np.int64)
        self._probabilities = np.full((count, len(actions.TABLE)), np.nan)
        self._ticks = 0

    def decide(self, values: Floats, seen: RuleSignals, now_s: float) -> Ints:
        count = len(values)
        looked = decision.Seen(
            samples=signals.Samples(values, self._fresh, self._known),
            replicas=seen.replicas,
            ready=seen.ready,
            authority=np.ones(count),
            override=np.full(count, -1),
            killed=np.zeros(count, np.int64),
            now_s=now_s,
        )
        self._state, observation = decision.observe(self._settings, self._state, looked)
        if self._ticks % actions.DECISION_TICKS == 0:
            for duty in self._duties:
                if duty.from_s <= now_s < duty.until_s:
                    self._probabilities[duty.rows] = duty.actor.probabilities(
                        observation.features[duty.rows], observation.allowed[duty.rows]
                    )
        self._ticks += 1
        self._state, decided = decision.decide(self._settings, self._state, observation, self._probabilities)
        proposal: Ints = decided.proposal
        return proposal
