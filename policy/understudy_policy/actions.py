"""What the actor may choose: a rule and a head-room, never a replica count.

A constant choice is a calibrated autoscaler, so every choice is safe, exploring does not flap, and each one reads
as a sentence. The table is data; its hash travels with every artefact, so that a row can never change its meaning
under an actor that was trained on another. New rows are appended, so an actor of a shorter table goes on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy_policy.rows import Array, device, namespace

DECISION_TICKS = 4
"""The actor chooses once in so many ticks (a minute of 15 s ticks); the chosen rule runs at every tick."""

RULE_WINDOWS = (1, 4, 20, 60)
"""Ticks over which a rule takes the largest request rate: now, and the last 1, 5, 15 minutes of 15 s ticks."""

CARRY_TICKS, CARRY_AHEAD_TICKS = 4, 6
"""A rate that is carried forward goes on rising for 90 s as it did over the last minute; a fall is not carried on.

Half of it makes up for the rate's own age (half of its window and a scrape), the rest is for pods that start."""

UTILIZATION_LEVELS = (0.33, 0.38, 0.44, 0.51, 0.58, 0.66, 0.75, 0.84, 0.95, 1.06)
"""Target utilisations: the request rate over the capacity of the replicas that the rule asks for."""

HALFWAY_LEVELS = (0.62, 0.70, 0.79, 0.89, 1.00)
"""Between them, where smooth loads are served: a step of an eighth is dear there."""

NO_ROW = -1


@dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        window_ticks: the rule takes the largest request rate of so many ticks.
        utilization: share of the replicas' capacity that this rate may use.
        carried: the rate is carried forward; see `CARRY_TICKS`.
    """

    window_ticks: int
    utilization: float
    carried: bool = False

    def sentence(self, tick_s: float) -> str:
        """The choice as a person would say it, given the length of a tick."""
        over = "now" if self.window_ticks == 1 else f"max of {_duration(self.window_ticks * tick_s)}"
        if self.carried:
            over = f"carried forward {_duration(CARRY_AHEAD_TICKS * tick_s)}"
        return f"rate, {over}, at {self.utilization:.0%}"


TABLE: tuple[Row, ...] = (
    *(Row(window, level) for window in RULE_WINDOWS for level in UTILIZATION_LEVELS),
    *(Row(1, level, carried=True) for level in UTILIZATION_LEVELS),
    *(Row(window, level) for window in RULE_WINDOWS[1:] for level in HALFWAY_LEVELS),
)

RULES = len(RULE_WINDOWS) + 1
"""Rates that rules go by: the largest of every window, and the rate carried forward."""

CARRIED = RULES - 1
"""Index of the rate carried forward among them."""

ROW_RULE = np.array([CARRIED if row.carried else RULE_WINDOWS.index(row.window_ticks) for row in TABLE])
ROW_UTILIZATION = np.array([row.utilization for row in TABLE], np.float32)


def table_hash(rows: int = len(TABLE)) -> str:
    """Identifies the first so many rows of the table: sha256 of them and of the decision period."""
    told: list[list[Any]] = [
        [row.window_ticks, row.utilization, *([CARRY_TICKS, CARRY_AHEAD_TICKS] if row.carried else [])]
        for row in TABLE[:rows]
    ]
    return hashlib.sha256(json.dumps([DECISION_TICKS, told]).encode()).hexdigest()


def carried_forward(now_rps: Array, before_rps: Array) -> Array:
    """The rate that a rise will have led to.

    Args:
        now_rps: `[N]` request rate now, NaN where unknown.
        before_rps: `[N]` `CARRY_TICKS` ago, NaN where unknown: then nothing is known to rise.

    Returns:
        `[N]`, never less than the rate now.
    """
    xp = namespace(now_rps)
    risen = xp.isfinite(now_rps) & (before_rps < now_rps)
    nothing = xp.zeros_like(now_rps)
    rise = xp.where(risen, now_rps, nothing) - xp.where(risen, before_rps, nothing)
    return now_rps + rise * (CARRY_AHEAD_TICKS / CARRY_TICKS)


def replicas_of(row: Array, rule_rate_rps: Array, capacity_rps: Array) -> Array:
    """The replicas that a row of the table asks for.

    Args:
        row: `[N]` int64 row of `TABLE`.
        rule_rate_rps: `[N, RULES]` request rate that every rule goes by.
        capacity_rps: `[N]` requests per second that one pod can serve.

    Returns:
        `[N]` float64 replicas, rounded up; NaN where rate or capacity is unknown.
    """
    xp = namespace(rule_rate_rps)
    where = device(rule_rate_rps)
    rule = xp.asarray(ROW_RULE, device=where)[row]
    columns = xp.arange(RULES, device=where)[None, :]
    rate = xp.max(
        xp.where(columns == rule[:, None], rule_rate_rps, xp.full_like(rule_rate_rps, -xp.inf)), axis=1
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
