"""Same time yesterday, with head-room: the forecast that is hardest to beat on a load with a daily rhythm.

It looks at the half hour that followed this time yesterday, so pods are ready before the load is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from understudy_policy.references.behavior import as_float, as_int
from understudy_policy.references.rule import Rule, RuleSignals
from understudy_policy.rows import Array, device, is_unknown, maximum, minimum, namespace, shared

SLOT_S = 60
HOUR_SLOTS = 60
DAY_HOURS = 24
DAY_SLOTS = DAY_HOURS * HOUR_SLOTS
WINDOW_SLOTS = 30
"""How far the rule looks ahead, in yesterday's slots; at most an hour."""


@dataclass(frozen=True)
class SeasonalMemory:
    """A day of request rates.

    A memory is copied rather than changed, and a day of minutes is long: finished minutes wait in the hour for it
    to end, and only then is the day copied.

    Attributes:
        day_rps: `[N, DAY_HOURS, HOUR_SLOTS]` float32 mean rate of each minute of the past hours, and of yesterday's
            hour now; NaN where unknown.
        hour_rps: `[N, HOUR_SLOTS]` float32, the same of the hour that runs; NaN where it is still to come.
        total_rps, count: `[N]` float32, the minute being filled.
        ahead_rps: `[N]` float64, what yesterday says of the time ahead; NaN where it is unknown.
        slot: the minute being filled, counted since the clock's zero.
    """

    day_rps: Array
    hour_rps: Array
    total_rps: Array
    count: Array
    ahead_rps: Array
    slot: int = shared()


@dataclass(frozen=True, kw_only=True)
class SeasonalRule(Rule[SeasonalMemory]):
    """A quantile of yesterday's rates over a utilisation; the rate now where yesterday is unknown.

    Attributes:
        quantile: `[N]` of the minutes of yesterday's half hour, by nearest rank.
        utilization: `[N]` share of the pods' capacity that this rate may use.
        reactive: `[N]` bool, never fewer pods than the rate now needs.
    """

    quantile: Array
    utilization: Array
    reactive: Array

    def initial(self, seen: RuleSignals, now_s: float) -> SeasonalMemory:
        """See `Rule`."""
        xp, n, where = namespace(seen.rate_rps), seen.rate_rps.shape[0], device(seen.rate_rps)
        nothing = xp.zeros((n,), dtype=xp.float32, device=where)
        return SeasonalMemory(
            day_rps=xp.full((n, DAY_HOURS, HOUR_SLOTS), xp.nan, dtype=xp.float32, device=where),
            hour_rps=xp.full((n, HOUR_SLOTS), xp.nan, dtype=xp.float32, device=where),
            total_rps=nothing,
            count=nothing,
            ahead_rps=xp.full((n,), xp.nan, dtype=xp.float64, device=where),
            slot=int(now_s // SLOT_S),
        )

    def decide(self, state: SeasonalMemory, seen: RuleSignals, now_s: float) -> tuple[SeasonalMemory, Array]:
        """See `Rule`."""
        xp = namespace(seen.rate_rps)
        known = ~seen.failed & xp.isfinite(seen.rate_rps)
        rate = xp.where(known, as_float(seen.rate_rps), xp.nan)
        slot = int(now_s // SLOT_S)
        if slot != state.slot:
            state = self._turn(state, slot)
        value = xp.where(known, rate, 0.0)
        state = replace(
            state,
            total_rps=state.total_rps + xp.astype(value, xp.float32),
            count=state.count + xp.astype(known, xp.float32),
        )
        ahead = state.ahead_rps
        use_now = is_unknown(ahead) | (self.reactive & (rate > ahead))
        expected = xp.where(use_now, rate, ahead)
        asked = xp.ceil(expected / as_float(seen.capacity_rps * self.utilization) - 1e-6)
        usable = xp.isfinite(asked)
        wanted = xp.where(usable, as_int(xp.where(usable, asked, 0.0)), as_int(seen.replicas))
        return state, self.bounded(wanted)

    def _turn(self, state: SeasonalMemory, slot: int) -> SeasonalMemory:
        """Book the minute that is over, and look at yesterday from the new one on."""
        xp = namespace(state.day_rps)
        nothing, where = xp.zeros_like(state.count), device(state.count)
        mean = state.total_rps / xp.where(state.count > 0, state.count, xp.nan)
        minutes = xp.arange(HOUR_SLOTS, device=where)[None, :]
        day, hour = state.day_rps, xp.where(minutes == state.slot % HOUR_SLOTS, mean[:, None], state.hour_rps)
        past, now = state.slot // HOUR_SLOTS, slot // HOUR_SLOTS
        if now != past:
            hours = xp.arange(DAY_HOURS, device=where)[None, :, None]
            day = xp.where(hours == past % DAY_HOURS, hour[:, None, :], day)
            if now - past > 1:
                # Hours that no tick fell into are unknown, and not those of the day before yesterday.
                day = xp.where((now - 1 - hours) % DAY_HOURS < now - 1 - past, xp.nan, day)
            hour = xp.full_like(hour, xp.nan)
        return SeasonalMemory(day, hour, nothing, nothing, self._ahead(day, slot), slot)

    def _ahead(self, day: Array, slot: int) -> Array:
        """The quantile of yesterday's minutes from this slot on, `[N]`; NaN where none is known."""
        xp = namespace(day)
        hour, minute = divmod(slot, HOUR_SLOTS)
        two_hours = xp.concat([day[:, (hour + k) % DAY_HOURS, :] for k in range(2)], axis=1)
        return _quantile(two_hours[:, minute : minute + WINDOW_SLOTS], self.quantile)


def _quantile(values: Array, quantile: Array) -> Array:
    """Nearest-rank quantile of what is known in each row, float64; NaN where nothing is."""
    xp = namespace(values)
    known = ~is_unknown(values)
    count = xp.sum(xp.astype(known, xp.int64), axis=1)
    ordered = xp.sort(xp.where(known, values, xp.inf), axis=1)
    rank = as_int(xp.ceil(quantile * as_float(count))) - 1
    rank = maximum(xp, minimum(xp, rank, count - 1), 0)
    found = xp.take_along_axis(ordered, rank[:, None], axis=1)[:, 0]
    return xp.where(count > 0, as_float(found), xp.nan)
