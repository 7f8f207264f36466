"""A decision as a record that a person, the ledger and the command line can read without knowing the arrays.

Every number that led to the replicas is in the record; the sentence on top of it is made of the record alone, so
that a record from last week reads the same as one of this second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from understudy_policy.actions import TABLE
from understudy_policy.decision import Decision, State
from understudy_policy.features import SCHEMA
from understudy_policy.guards.chain import GUARD_NAMES
from understudy_policy.guards.reasons import SENTENCES, KillScope, Reason
from understudy_policy.rows import Array
from understudy_policy.settings import Settings
from understudy_policy.signals import SIGNAL_NAMES, Cause, quality_of

TOP_ROWS = 3
"""So many of the actor's likeliest rows are named in a record with details."""

FEATURE_NAMES = tuple(name for name, _ in SCHEMA)

_LABELS = {int(reason): reason.label for reason in Reason}
_SENTENCE_OF = {reason.label: SENTENCES[reason] for reason in Reason}
_QUALITY = [quality_of(cause).name.capitalize() for cause in Cause]
_CAUSE = ["".join(word.capitalize() for word in cause.name.split("_")) for cause in Cause]
_KILL = {int(scope): scope.name.capitalize() for scope in KillScope}

_TOLD_ANYWAY = frozenset(
    reason.label for reason in Reason if reason <= Reason.MODEL_OUTPUT_INVALID or reason == Reason.AUTHORITY
)
"""Reasons of which the sentence speaks before it comes to the last guard."""


def worth_details(decision: Decision, state: State) -> Array:
    """Where a record should carry features and probabilities, `[N]` bool: a row was chosen, or replicas change.

    Args:
        decision, state: as `decide` returned them.
    """
    chosen = (decision.row >= 0) & (state.row_age == 0)
    moved: Array = decision.replicas != decision.observation.seen.replicas
    return chosen | moved


def record(decision: Decision, settings: Settings, state: State, row: int) -> dict[str, Any]:
    """The complete record of one workload; see `records`."""
    return records(decision, settings, state, [row], np.ones(1, np.bool_))[0]


def records(
    decision: Decision,
    settings: Settings,
    state: State,
    index: Sequence[int] | None = None,
    details: Array | None = None,
) -> list[dict[str, Any]]:
    """The records of many workloads, plain enough for any JSON encoder.

    Args:
        decision, settings, state: of one tick, NumPy, as `decide` took and returned them.
        index: rows to tell about, in this order; all of them by default.
        details: `[len(index)]` bool, which records carry `features` and `top_rows`; none by default.

    Returns:
        One dict a row with the keys of docs/ledger.md; a number that is unknown is None.
    """
    rows = np.arange(decision.replicas.shape[0]) if index is None else np.asarray(index, np.int64)
    seen, observation = decision.observation.seen, decision.observation
    rule = [row.sentence(settings.tick_s) for row in TABLE]
    raw, believed = seen.samples.values[rows], observation.values[rows]
    # What came is worth telling even where it was not believed.
    values = _known(np.where(np.isnan(believed), raw, believed), 6)
    given = ~np.isnan(settings.given_capacity_rps[rows])
    columns = zip(
        values,
        observation.cause[rows].tolist(),
        _known(seen.samples.age_s[rows], 3),
        _known(observation.demand_pods[rows], 4),
        _known(observation.capacity_rps[rows], 4),
        given.tolist(),
        _count(seen.replicas[rows]),
        seen.ready[rows].tolist(),
        decision.proposal[rows].tolist(),
        decision.reference_raw[rows].tolist(),
        decision.reference[rows].tolist(),
        _count(decision.replicas[rows]),
        _count(decision.if_killed[rows]),
        decision.row[rows].tolist(),
        state.row_age[rows].tolist(),
        _known(decision.probability[rows], 4),
        _known(seen.authority[rows], 4),
        _known(decision.authority[rows], 4),
        decision.doubt[rows].tolist(),
        decision.actor_doubt[rows].tolist(),
        observation.reference_known[rows].tolist(),
        seen.killed[rows].tolist(),
        _count(seen.override[rows]),
        decision.reason[rows].tolist(),
        decision.chain.replicas[:, rows].T.tolist(),
        decision.chain.reasons[:, rows].T.tolist(),
        strict=True,
    )
    told = [_one(rule, *column) for column in columns]
    if details is not None:
        _add_details(told, np.flatnonzero(details), rows, rule, decision)
    return told


def sentence(told: dict[str, Any]) -> str:
    """One line for a person: what happens to the replicas, who asked for what, and what bound the decision."""
    current, desired, reason = told["current_replicas"], told["desired_replicas"], told["reason"]
    if current is None or desired is None:
        return f"nothing decided: {SENTENCES[Reason.TARGET_UNKNOWN]}"
    change = f"stays at {current}" if desired == current else f"{current} → {desired}"
    reference = f"the reference{'' if told['reference_known'] else ', which lacks its signal,'}"
    wanted = told["reference_raw_replicas"]
    if told["actor_doubt"]:
        parts = [_SENTENCE_OF[told["actor_doubt"]], f"{reference} asked for {wanted}"]
    else:
        actor = told["actor"]
        asked = (
            f"the actor asked for {told['proposed_replicas']} ({actor['rule']}, p={actor['probability']:.2f})"
        )
        share = f"authority {told['authority']['granted']:g} → {_after(told, 'authority')}"
        parts = [f"{asked}, {reference} for {wanted}, {share}"]
    if reason not in _TOLD_ANYWAY:
        parts.append(_SENTENCE_OF[reason])
    other_doubt = [why for why in told["doubt"] if why != told["actor_doubt"]]
    if other_doubt and reason != Reason.DOUBT_FORBIDS_SCALE_IN.label:
        parts.append(f"no scale-in while in doubt ({', '.join(other_doubt)})")
    return f"{change}: {'; '.join(parts)}"


def _after(told: dict[str, Any], guard: str) -> int:
    after: int = told["guards"][GUARD_NAMES.index(guard)]["after"]
    return after


def _one(
    rule: list[str],
    values: list[float | None],
    causes: list[int],
    ages_s: list[float | None],
    demand_pods: float | None,
    capacity_rps: float | None,
    given: bool,
    current: int | None,
    ready: int,
    proposal: int,
    reference_raw: int,
    reference: int,
    desired: int | None,
    if_killed: int | None,
    row: int,
    row_age: int,
    probability: float | None,
    granted: float,
    in_force: float,
    doubt: bool,
    actor_doubt: int,
    reference_known: bool,
    killed: int,
    override: int | None,
    reason: int,
    chain: list[int],
    reasons: list[int],
) -> dict[str, Any]:
    return {
        "current_replicas": current,
        "ready_replicas": ready,
        "desired_replicas": desired,
        "proposed_replicas": proposal,
        "reference_replicas": reference,
        "reference_raw_replicas": reference_raw,
        "reference_known": reference_known,
        "replicas_if_killed": if_killed,
        "override_replicas": override,
        "reason": _LABELS[reason],
        "signals": {
            name: {"value": value, "quality": _QUALITY[cause], "cause": _CAUSE[cause], "age_s": age_s}
            for name, value, cause, age_s in zip(SIGNAL_NAMES, values, causes, ages_s, strict=True)
        },
        "demand_pods": demand_pods,
        "capacity_rps": capacity_rps,
        "capacity_given": given,
        "actor": {
            "row": row if row >= 0 else None,
            "rule": rule[row] if row >= 0 else None,
            "probability": probability if row >= 0 else None,
            "age_ticks": row_age,
        },
        "authority": {"granted": granted, "in_force": in_force},
        "killed": _KILL[killed],
        "actor_doubt": _LABELS[actor_doubt] if actor_doubt else None,
        "doubt": _doubts(actor_doubt, reference_known, current, killed) if doubt else [],
        "guards": [
            {"guard": name, "before": chain[i], "after": chain[i + 1], "reason": _LABELS[reasons[i]]}
            for i, name in enumerate(GUARD_NAMES)
        ],
    }


def _doubts(actor_doubt: int, reference_known: bool, current: int | None, killed: int) -> list[str]:
    """Why scale-in was forbidden; where nothing else is amiss it is too soon after a start."""
    why = []
    if current is None:
        why.append("TargetUnknown")
    if killed == KillScope.UNREADABLE:
        why.append("KillSwitchUnreadable")
    if not reference_known:
        why.append("ReferenceUnknown")
    if actor_doubt and actor_doubt != Reason.NO_MODEL:
        why.append(_LABELS[actor_doubt])
    return why or ["Settling"]


def _add_details(
    told: list[dict[str, Any]], which: Array, rows: Array, rule: list[str], decision: Decision
) -> None:
    features = _known(decision.observation.features[rows[which]], 5)
    probabilities = np.nan_to_num(decision.probabilities[rows[which]], nan=-1.0)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_ROWS]
    likelihood = np.take_along_axis(probabilities, best, axis=1).astype(np.float64).round(4).tolist()
    for i, values, top, share in zip(which.tolist(), features, best.tolist(), likelihood, strict=True):
        told[i]["features"] = dict(zip(FEATURE_NAMES, values, strict=True))
        told[i]["top_rows"] = [
            {"row": row, "rule": rule[row], "probability": p}
            for row, p in zip(top, share, strict=True)
            if p >= 0
        ]


def _known(values: Array, decimals: int) -> list[Any]:
    """Python numbers, None where not finite: JSON has neither NaN nor infinity."""
    wide = np.asarray(values, np.float64).round(decimals)
    finite = np.isfinite(wide)
    plain = wide if finite.all() else wide.astype(object)
    plain[~finite] = None
    listed: list[Any] = plain.tolist()
    return listed


def _count(replicas: Array) -> list[int | None]:
    """Replicas, None for the −1 that means unknown or not set."""
    return [value if value >= 0 else None for value in replicas.tolist()]
