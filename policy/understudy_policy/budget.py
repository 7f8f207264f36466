"""The error budget: how much of what may be missed was missed lately, and what a miss is worth for that.

An objective of 99 % gives one request in a hundred away. While less than that is missed, a pod saved is worth more than
the next request in time; once it is spent, every further miss counts, and more than was thought. So the price that a
person gave is where it starts, and the budget's burn moves it, as the multiplier of a constrained problem follows the
constraint (integral control of the dual variable; here over a window that forgets).

What is unknown, or idle, counts as if it had burnt just the budget, so an operator that starts, or that cannot measure
misses, goes by the given price, and returns to it while it is blind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from understudy_policy.rows import Array, maximum, minimum, namespace
from understudy_policy.settings import Settings

MOST_EXCESS = 1.5
"""Burn beyond the budget from which on the price rises no further, at 4.5 times the given one."""

LOWEST_PRICE, HIGHEST_PRICE = 0.5, 40.0
"""Prices that actors learn with; a price is steered no further, unless the given one lies beyond."""


@dataclass
class Budget:
    """What was missed lately, one row per workload; recent ticks weigh more.

    Attributes:
        rate_rps: `[N]` mean request rate, times `known`.
        missed_rps: `[N]` mean rate of requests that missed the objective, times `known`.
        known: `[N]` share of the window that is known, 0 to 1.
    """

    rate_rps: Array
    missed_rps: Array
    known: Array


def unknown(count: int) -> Budget:
    """Nothing is known yet (NumPy)."""
    return Budget(*np.zeros((3, count)))


def update(budget: Budget, settings: Settings, rate_rps: Array, miss_rate: Array, step_s: float) -> Budget:
    """Fold some time in. Of time that is unknown or without requests nothing is known, and what was known fades.

    A window of 0 remembers nothing, so a budget that is switched on again begins anew.

    Args:
        budget: so far.
        settings: its windows.
        rate_rps: `[N]` mean request rate, NaN where unknown.
        miss_rate: `[N]` share that missed the objective, NaN where unknown; more than all is unknown, too.
        step_s: how long this was.
    """
    xp, nothing = namespace(rate_rps), namespace(rate_rps).zeros_like(rate_rps)
    window_s = settings.error_budget_window_s
    followed = window_s > 0
    new = xp.where(followed, -xp.expm1(-step_s / maximum(xp, window_s, step_s)), xp.ones_like(rate_rps))
    # A comparison with NaN is false.
    seen = followed & (rate_rps > 0) & (miss_rate <= 1.0 + 1e-3)

    def folded(old: Array, now: Array) -> Array:
        return old + new * (xp.where(seen, now, nothing) - old)

    return Budget(
        folded(budget.rate_rps, rate_rps),
        folded(budget.missed_rps, rate_rps * miss_rate),
        folded(budget.known, xp.ones_like(rate_rps)),
    )


def remembered(settings: Settings, rate_rps: Array, miss_rate: Array, step_s: float) -> Budget:
    """What a monitoring system remembers (NumPy).

    Args:
        settings: N rows.
        rate_rps, miss_rate: `[N, T]`, oldest first; see `update`.
        step_s: time between two columns.
    """
    budget = unknown(len(rate_rps))
    for rate, missed in zip(rate_rps.T, miss_rate.T, strict=True):
        budget = update(budget, settings, rate, missed, step_s)
    return budget


def burn(budget: Budget, settings: Settings) -> Array:
    """Misses over what may be missed, `[N]`: 1 spends just the budget. Unknown time counts as 1."""
    xp = namespace(budget.known)
    requests = xp.where(budget.rate_rps > 0, budget.rate_rps, xp.ones_like(budget.rate_rps))
    measured = budget.missed_rps / requests / (1.0 - settings.slo_target)
    return 1.0 + budget.known * (measured - 1.0)


def price(burn: Array, settings: Settings) -> Array:
    """What a missed request costs now, `[N]`: e times the given price for every budget burnt beyond the one."""
    xp, given = namespace(burn), settings.missed_request_price
    steered = given * xp.exp(minimum(xp, burn - 1.0, MOST_EXCESS))
    steered = maximum(xp, steered, minimum(xp, given, LOWEST_PRICE))
    return minimum(xp, steered, maximum(xp, given, HIGHEST_PRICE))
