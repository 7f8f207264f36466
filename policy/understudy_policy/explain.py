"""A decision as a record that a person, the ledger and the command line can read without knowing the arrays.

Every number that led to the replicas is in the record; the sentence on top of it is made of the record alone, so
that a record from last week reads the same as one of this second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
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

_SENTENCE_OF = {reason.label: SENTENCES[reason] for reason in Reason}
_LABEL_JSON = {int(reason): f'"{reason.label}"' for reason in Reason}
_QUALITY_JSON = [f'"{quality_of(cause).name.capitalize()}"' for cause in Cause]
_CAUSE_JSON = ['"' + "".join(word.capitalize() for word in cause.name.split("_")) + '"' for cause in Cause]
_KILL_JSON = {int(scope): f'"{scope.name.capitalize()}"' for scope in KillScope}

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
    """The complete record of one workload, as a dictionary; see `lines`."""
    told: dict[str, Any] = json.loads(lines(decision, settings, state, [row], np.ones(1, np.bool_))[0])
    return told


def lines(
    decision: Decision,
    settings: Settings,
    state: State,
    index: Sequence[int] | None = None,
    details: Array | None = None,
) -> list[str]:
    """The records of many workloads, a JSON object each.

    Args:
        decision, settings, state: of one tick, NumPy, as `decide` took and returned them.
        index: rows to tell about, in this order; all of them by default.
        details: `[len(index)]` bool, which records carry `features` and `top_rows`; none by default.

    Returns:
        Objects with the keys of docs/ledger.md; a number that is unknown is null.
    """
    rows = np.arange(decision.replicas.shape[0]) if index is None else np.asarray(index, np.int64)
    columns = _columns(decision, settings, state, rows)
    told = [_TEMPLATE % row for row in zip(*(columns[slot] for slot in _SLOTS), strict=True)]
    if details is not None:
        which = np.flatnonzero(details)
        for i, more in zip(which.tolist(), _details(decision, settings, rows[which]), strict=True):
            told[i] = f"{told[i][:-1]},{json.dumps(more, separators=_COMPACT)[1:]}"
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


_LAYOUT = {
    "current_replicas": "%current",
    "ready_replicas": "%ready",
    "desired_replicas": "%desired",
    "proposed_replicas": "%proposed",
    "reference_replicas": "%reference",
    "reference_raw_replicas": "%reference_raw",
    "reference_known": "%reference_known",
    "replicas_if_killed": "%if_killed",
    "override_replicas": "%override",
    "reason": "%reason",
    "signals": {
        name: {"value": f"%value{i}", "quality": f"%quality{i}", "cause": f"%cause{i}", "age_s": f"%age_s{i}"}
        for i, name in enumerate(SIGNAL_NAMES)
    },
    "demand_pods": "%demand_pods",
    "capacity_rps": "%capacity_rps",
    "capacity_given": "%capacity_given",
    "error_budget": {"burn": "%burn", "known": "%burn_known", "missed_request_price": "%price"},
    "actor": {"row": "%row", "rule": "%rule", "probability": "%probability", "age_ticks": "%age_ticks"},
    "authority": {"granted": "%granted", "in_force": "%in_force"},
    "killed": "%killed",
    "actor_doubt": "%actor_doubt",
    "doubt": "%doubt",
    "guards": [
        {"guard": name, "before": f"%chain{i}", "after": f"%chain{i + 1}", "reason": f"%reason{i}"}
        for i, name in enumerate(GUARD_NAMES)
    ],
}
"""A record, with the name of a column where its value goes."""

_COMPACT = (",", ":")
_SLOT = re.compile(r'"%(\w+)"')
_SLOTS = _SLOT.findall(json.dumps(_LAYOUT, separators=_COMPACT))
# Filling a text in costs a fifth of building the dictionaries and encoding them, and that is most of an idle tick.
_TEMPLATE = _SLOT.sub("%s", json.dumps(_LAYOUT, separators=_COMPACT))


def _columns(decision: Decision, settings: Settings, state: State, rows: Array) -> dict[str, list[str]]:
    """Every slot of the layout as JSON, row by row."""
    seen, observation = decision.observation.seen, decision.observation
    rule = _rules(settings)
    raw, believed = seen.samples.values[rows], observation.values[rows]
    # What came is worth telling even where it was not believed.
    values, ages_s = np.where(np.isnan(believed), raw, believed), seen.samples.age_s[rows]
    causes, chosen = observation.cause[rows], decision.row[rows].tolist()
    chain, reasons = decision.chain.replicas[:, rows], decision.chain.reasons[:, rows]
    actor_doubt, killed = decision.actor_doubt[rows].tolist(), seen.killed[rows].tolist()
    current, known = seen.replicas[rows].tolist(), observation.reference_known[rows].tolist()
    columns = {
        "current": _count(seen.replicas[rows]),
        "ready": _whole(seen.ready[rows]),
        "desired": _count(decision.replicas[rows]),
        "proposed": _whole(decision.proposal[rows]),
        "reference": _whole(decision.reference[rows]),
        "reference_raw": _whole(decision.reference_raw[rows]),
        "reference_known": _flag(observation.reference_known[rows]),
        "if_killed": _count(decision.if_killed[rows]),
        "override": _count(seen.override[rows]),
        "reason": [_LABEL_JSON[code] for code in decision.reason[rows].tolist()],
        "demand_pods": _number(observation.demand_pods[rows], 4),
        "capacity_rps": _number(observation.capacity_rps[rows], 4),
        "capacity_given": _flag(~np.isnan(settings.given_capacity_rps[rows])),
        "burn": _number(observation.error_budget_burn[rows], 4),
        "burn_known": _number(state.budget.known[rows], 4),
        "price": _number(observation.missed_request_price[rows], 4),
        "row": _count(decision.row[rows]),
        "rule": [f'"{rule[row]}"' if row >= 0 else "null" for row in chosen],
        "probability": _number(np.where(decision.row[rows] >= 0, decision.probability[rows], np.nan), 4),
        "age_ticks": _whole(state.row_age[rows]),
        "granted": _number(seen.authority[rows], 4),
        "in_force": _number(decision.authority[rows], 4),
        "killed": [_KILL_JSON[scope] for scope in killed],
        "actor_doubt": [_LABEL_JSON[code] if code else "null" for code in actor_doubt],
        "doubt": [
            _doubts(*why) if doubt else "[]"
            for doubt, *why in zip(
                decision.doubt[rows].tolist(), actor_doubt, known, current, killed, strict=True
            )
        ],
    }
    for i in range(len(SIGNAL_NAMES)):
        codes = causes[:, i].tolist()
        columns[f"value{i}"] = _number(values[:, i], 6)
        columns[f"age_s{i}"] = _number(ages_s[:, i], 3)
        columns[f"quality{i}"] = [_QUALITY_JSON[code] for code in codes]
        columns[f"cause{i}"] = [_CAUSE_JSON[code] for code in codes]
    for i in range(len(GUARD_NAMES) + 1):
        columns[f"chain{i}"] = _whole(chain[i])
    for i in range(len(GUARD_NAMES)):
        columns[f"reason{i}"] = [_LABEL_JSON[code] for code in reasons[i].tolist()]
    return columns


@lru_cache(maxsize=1024)
def _doubts(actor_doubt: int, reference_known: bool, current: int, killed: int) -> str:
    """Why scale-in was forbidden, as JSON; where nothing else is amiss it is too soon after a start."""
    why = []
    if current < 0:
        why.append("TargetUnknown")
    if killed == KillScope.UNREADABLE:
        why.append("KillSwitchUnreadable")
    if not reference_known:
        why.append("ReferenceUnknown")
    if actor_doubt and actor_doubt != Reason.NO_MODEL:
        why.append(Reason(actor_doubt).label)
    return json.dumps(why or ["Settling"], separators=_COMPACT)


def _details(decision: Decision, settings: Settings, rows: Array) -> list[dict[str, Any]]:
    """What the actor saw, and the rows of the action table that it found likeliest."""
    rule = _rules(settings)
    features = np.asarray(decision.observation.features[rows], np.float64).round(5).tolist()
    probabilities = np.nan_to_num(decision.probabilities[rows], nan=-1.0)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_ROWS]
    likelihood = np.take_along_axis(probabilities, best, axis=1).astype(np.float64).round(4).tolist()
    return [
        {
            "features": dict(zip(FEATURE_NAMES, values, strict=True)),
            "top_rows": [
                {"row": row, "rule": rule[row], "probability": p}
                for row, p in zip(top, share, strict=True)
                if p >= 0
            ],
        }
        for values, top, share in zip(features, best.tolist(), likelihood, strict=True)
    ]


def _rules(settings: Settings) -> list[str]:
    return [row.sentence(settings.tick_s) for row in TABLE]


def _whole(values: Array) -> list[str]:
    return [str(value) for value in values.tolist()]


def _count(replicas: Array) -> list[str]:
    """Replicas, null for the −1 that means unknown or not set."""
    return [str(value) if value >= 0 else "null" for value in replicas.tolist()]


def _flag(values: Array) -> list[str]:
    return ["true" if value else "false" for value in values.tolist()]


def _number(values: Array, decimals: int) -> list[str]:
    """Numbers, null where not finite: JSON has neither NaN nor infinity."""
    wide = np.asarray(values, np.float64).round(decimals)
    return [
        repr(value) if finite else "null"
        for value, finite in zip(wide.tolist(), np.isfinite(wide).tolist(), strict=True)
    ]
