"""What the actor may choose: a rule and a head-room, never a replica count.

A constant choice is a calibrated autoscaler, so every choice is safe, exploring does not flap, and each one reads
as a sentence. The table is data; its hash travels with every artefact, so that a row can never change its meaning
under an actor that was trained on another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from understudy_policy.rows import Array, device, namespace

DECISION_TICKS = 4
"""The actor chooses once in so many ticks (a minute of 15 s ticks); the chosen rule runs at every tick."""

RULE_WINDOWS = (1, 4, 20, 60)
"""Ticks over which a rule takes the largest request rate: now, and the last 1, 5, 15 minutes of 15 s ticks."""

UTILIZATION_LEVELS = (0.33, 0.38, 0.44, 0.51, 0.58, 0.66, 0.75, 0.84, 0.95, 1.06)
"""Target utilisations: the request rate over the capacity of the replicas that the rule asks for."""

NO_ROW = -1


@dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        window_ticks: the rule takes the largest request rate of so many ticks.
        utilization: share of the replicas' capacity that this rate may use.
    """

    window_ticks: int
    utilization: float

    def sentence(self, tick_s: float) -> str:
        """The choice as a person would say it, given the length of a tick."""
        over = "now" if self.window_ticks == 1 else f"max of {_duration(self.window_ticks * tick_s)}"
        return f"rate, {over}, at {self.utilization:.0%}"


TABLE: tuple[Row, ...] = tuple(Row(w, u) for w in RULE_WINDOWS for u in UTILIZATION_LEVELS)

ROW_WINDOW = np.array([RULE_WINDOWS.index(row.window_ticks) for row in TABLE])
ROW_UTILIZATION = np.array([row.utilization for row in TABLE], np.float32)


def table_hash() -> str:
    """Identifies the table: sha256 of its rows and of the decision period."""
    rows = [[row.window_ticks, row.utilization] for row in TABLE]
    return hashlib.sha256(json.dumps([DECISION_TICKS, rows]).encode()).hexdigest()


def replicas_of(row: Array, rule_rate_rps: Array, capacity_rps: Array) -> Array:
    """The replicas that a row of the table asks for.

    Args:
        row: `[N]` int64 row of `TABLE`.
        rule_rate_rps: `[N, len(RULE_WINDOWS)]` largest request rate of every rule's window.
        capacity_rps: `[N]` requests per second that one pod can serve.

    Returns:
        `[N]` float64 replicas, rounded up; NaN where rate or capacity is unknown.
    """
    xp = namespace(rule_rate_rps)
    where = device(rule_rate_rps)
    window = xp.asarray(ROW_WINDOW, device=where)[row]
    columns = xp.arange(len(RULE_WINDOWS), device=where)[None, :]
    rate = xp.max(
        xp.where(columns == window[:, None], rule_rate_rps, xp.full_like(rule_rate_rps, -xp.inf)), axis=1
    )
    utilization = xp.asarray(ROW_UTILIZATION, device=where)[row]
    ratio = xp.astype(rate, xp.float64) / xp.astype(capacity_rps * utilization, xp.float64)
    # A rate that fills the pods to the last digit must not cost one more pod through rounding of the division.
    return xp.ceil(ratio - 1e-6)


def allowed(utilization_ceiling: Array) -> Array:
    """Mask `[N, A]` of the rows that the envelope would not refuse anyway.

    Args:
        utilization_ceiling: `[N]` highest utilisation that the guardrails allow.
    """
    xp = namespace(utilization_ceiling)
    levels = xp.asarray(ROW_UTILIZATION, device=device(utilization_ceiling))
    least = levels == min(UTILIZATION_LEVELS)
    return (levels[None, :] <= utilization_ceiling[:, None] + 1e-6) | least[None, :]


def _duration(seconds: float) -> str:
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g} min"
    return f"{seconds:g} s"
