"""A constant row of the action table as a rule: a rate, its largest value of late or where it is going, and a target.

A row needs no learning, so the judge lets it compete on its own; otherwise its gain would be booked as the actor's.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy import actions
from understudy_policy.references.behavior import as_int
from understudy_policy.references.rule import Rule, RuleSignals, push
from understudy_policy.rows import Array, device, namespace


@dataclass(frozen=True)
class RateMemory:
    """The request rate of late.

    Attributes:
        rate_rps: `[N, K]` float32, oldest first; minus infinity where unknown.
    """

    rate_rps: Array


@dataclass(frozen=True, kw_only=True)
class TableRowRule(Rule[RateMemory]):
    """What the actor would do if it always chose the same row. It holds while nothing is known.

    Attributes:
        row: `[N]` int64 index into `actions.TABLE`.
    """

    row: Array

    def initial(self, seen: RuleSignals, now_s: float) -> RateMemory:
        """See `Rule`."""
        xp = namespace(seen.rate_rps)
        used = {actions.TABLE[int(row)].window_ticks for row in self.row}
        shape = (max(*used, actions.CARRY_TICKS + 1), seen.rate_rps.shape[0])
        unknown = xp.full(shape, -xp.inf, dtype=xp.float32, device=device(seen.rate_rps))
        # The workloads lie side by side in memory: largest values of many rows are found faster so.
        return RateMemory(xp.permute_dims(unknown, (1, 0)))

    def decide(self, state: RateMemory, seen: RuleSignals, now_s: float) -> tuple[RateMemory, Array]:
        """See `Rule`."""
        xp = namespace(state.rate_rps)
        known = ~seen.failed & xp.isfinite(seen.rate_rps)
        rate = push(state.rate_rps, xp.where(known, seen.rate_rps, -xp.inf))
        spans = (min(window, rate.shape[1]) for window in actions.RULE_WINDOWS)
        largest = [xp.max(rate[:, -span:], axis=1) for span in spans]
        now, before = rate[:, -1], rate[:, -1 - actions.CARRY_TICKS]
        before = xp.where(xp.isfinite(before), before, now)
        rates = xp.stack([*largest, actions.carried_forward(now, before)], axis=1)
        asked = actions.replicas_of(self.row, rates, seen.capacity_rps)
        usable = xp.isfinite(asked)
        current = as_int(seen.replicas)
        wanted = xp.where(usable, as_int(xp.where(usable, asked, 0.0)), current)
        return RateMemory(rate), self.bounded(wanted)
