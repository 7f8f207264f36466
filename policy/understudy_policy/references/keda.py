"""KEDA's Prometheus trigger as a rule: what most people run who scale on request rate.

KEDA is two programs that share a counter. A poll loop asks Prometheus every `pollingInterval` and only decides
between zero and one; an HPA that KEDA made asks again at each of its own ticks and decides between one and many.
Every failing call of either raises the counter that switches the fallback on, so the fallback comes after a number
of calls and not after a time. Caching (`useCachedMetrics`), `idleReplicaCount` and `Value` targets are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from understudy_policy.references import hpa
from understudy_policy.references.behavior import as_float, as_int
from understudy_policy.references.hpa_rule import HpaLoop, HpaMemory, within
from understudy_policy.references.rule import RuleSignals
from understudy_policy.rows import Array, device, maximum, minimum, namespace, shared

NO_FALLBACK = -1


class FallbackBehavior(IntEnum):
    """`spec.fallback.behavior`: which replicas the fallback asks for."""

    STATIC = 0
    CURRENT_REPLICAS = 1
    CURRENT_REPLICAS_IF_HIGHER = 2
    CURRENT_REPLICAS_IF_LOWER = 3


@dataclass(frozen=True)
class KedaMemory:
    """What KEDA's operator and its HPA remember.

    Attributes:
        hpa: the HPA's memory.
        failures: `[N]` int64, failing calls since the last good one.
        last_active_s: `[N]` float64, when a poll last found the trigger active; minus infinity where never.
        next_poll_s: when the poll loop asks again.
    """

    hpa: HpaMemory
    failures: Array
    last_active_s: Array
    next_poll_s: float = shared()


@dataclass(frozen=True, kw_only=True)
class KedaRule(HpaLoop[KedaMemory]):
    """A ScaledObject with one Prometheus trigger (`AverageValue`) on the request rate.

    `min_replicas` is `minReplicaCount`; with 0 there, the workload is switched off when it has been idle for
    the cooldown. KEDA's HPA has no `spec.behavior` unless `advanced` says otherwise: `legacy`.

    Attributes:
        threshold_rps: `[N]` request rate per replica, above 0.
        activation_rps: `[N]` the trigger is active above it.
        cooldown_s: `[N]` idle time before replicas go to zero.
        ignore_null: `[N]` bool, `ignoreNullValues`: an empty answer, NaN and infinity count as 0, not as errors.
        fallback_replicas: `[N]` int64; `NO_FALLBACK` where none is configured.
        failure_threshold: `[N]` int64, failing calls that the fallback waits out.
        fallback_behavior: `[N]` int64 `FallbackBehavior`.
        polling_interval_s: of the poll loop.
    """

    threshold_rps: Array
    activation_rps: Array
    cooldown_s: Array
    ignore_null: Array
    fallback_replicas: Array
    failure_threshold: Array
    fallback_behavior: Array
    polling_interval_s: float = shared(default=30.0)

    def initial(self, seen: RuleSignals, now_s: float) -> KedaMemory:
        """See `Rule`. The first poll comes with the first tick, and the HPA meets what it leaves."""
        xp, current = namespace(seen.replicas), as_int(seen.replicas)
        met = KedaMemory(
            hpa=self.remember(current, now_s),
            failures=xp.zeros_like(current),
            last_active_s=xp.full(current.shape, -xp.inf, dtype=xp.float64, device=device(current)),
            next_poll_s=now_s,
        )
        _, polled = self._poll(met, current, *self._query(seen), now_s)
        return replace(met, hpa=self.remember(polled, now_s))

    def decide(self, state: KedaMemory, seen: RuleSignals, now_s: float) -> tuple[KedaMemory, Array]:
        """See `Rule`. Polls that are due come first, then the HPA asks."""
        xp = namespace(seen.rate_rps)
        rate, error = self._query(seen)
        current = as_int(seen.replicas)
        if now_s >= state.next_poll_s:
            state, current = self._poll(state, current, rate, error, now_s)

        low = maximum(xp, as_int(self.min_replicas), 1)
        asks = within(current, low, as_int(self.max_replicas))
        failures = xp.where(asks, xp.where(error, state.failures + 1, 0), state.failures)
        fallen = error & (self.fallback_replicas != NO_FALLBACK) & (failures > self.failure_threshold)
        target_milli = _milli(xp, self.threshold_rps)
        metric_milli = xp.where(fallen, target_milli * self._fallback(xp, current), _milli(xp, rate))
        up, down = self.behavior.scale_up.tolerance, self.behavior.scale_down.tolerance
        desired = hpa.external_average_value(metric_milli, target_milli, as_int(seen.replicas), up, down)
        memory, replicas = self.settle(state.hpa, desired, ~error | fallen, current, low, now_s)
        return replace(state, hpa=memory, failures=failures), replicas

    def _query(self, seen: RuleSignals) -> tuple[Array, Array]:
        """What the scaler makes of Prometheus' answer: a rate, and where it is an error."""
        xp = namespace(seen.rate_rps)
        null = ~xp.isfinite(seen.rate_rps)
        # A negative answer is of no use to an HPA: KEDA makes it 0, too.
        rate = xp.where(null | (seen.rate_rps < 0), xp.zeros_like(seen.rate_rps), seen.rate_rps)
        return rate, seen.failed | (null & ~self.ignore_null)

    def _poll(
        self, state: KedaMemory, current: Array, rate: Array, error: Array, now_s: float
    ) -> tuple[KedaMemory, Array]:
        """All polls that are due, and the replicas that they leave to the HPA."""
        xp = namespace(rate)
        polls = 1 + int((now_s - state.next_poll_s) // self.polling_interval_s)
        active = ~error & (rate > self.activation_rps)
        polled = replace(
            state,
            failures=xp.where(error, state.failures + polls, 0),
            last_active_s=xp.where(active, now_s, state.last_active_s),
            next_poll_s=state.next_poll_s + polls * self.polling_interval_s,
        )
        return polled, self._switch(xp, current, active, error, state.last_active_s, now_s)

    def _switch(
        self, xp: Any, current: Array, active: Array, error: Array, last_active_s: Array, now_s: float
    ) -> Array:
        """What the poll loop does to the scale, past the HPA."""
        low = as_int(self.min_replicas)
        woken = xp.where(current == 0, maximum(xp, low, 1), current)
        idle = (low == 0) & (current > 0)
        cooled = last_active_s + self.cooldown_s < now_s
        resting = xp.where(idle, xp.where(cooled, 0, current), maximum(xp, current, low))
        # A fallback to no replicas is none to this loop: an error then passes for idleness.
        doubt = error & (self.fallback_replicas != 0)
        return xp.where(active, woken, xp.where(doubt, current, resting))

    def _fallback(self, xp: Any, current: Array) -> Array:
        """The replicas that the fallback asks for."""
        fixed, kind = as_int(self.fallback_replicas), self.fallback_behavior
        higher = xp.where(
            kind == FallbackBehavior.CURRENT_REPLICAS_IF_HIGHER, maximum(xp, current, fixed), fixed
        )
        lower = xp.where(
            kind == FallbackBehavior.CURRENT_REPLICAS_IF_LOWER, minimum(xp, current, fixed), higher
        )
        return xp.where(kind == FallbackBehavior.CURRENT_REPLICAS, current, lower)


def _milli(xp: Any, value: Array) -> Array:
    """Thousandths as integers, cut off as KEDA does."""
    return as_int(xp.trunc(minimum(xp, as_float(value) * 1000.0, 2.0**52)))
