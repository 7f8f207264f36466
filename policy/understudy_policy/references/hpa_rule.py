"""The exact HPA as a rule: kube-controller-manager's loop around the arithmetic of `hpa` and `behavior`.

Its memory is as long as the longest window that can matter (21 columns for 300 s of 15 s ticks), not the hour that
the operator keeps: the judge runs thousands of rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from understudy_policy.references import hpa, observed
from understudy_policy.references.behavior import (
    DEFAULT_DOWNSCALE_STABILIZATION_S,
    NO_RECOMMENDATION,
    Behavior,
    as_int,
    overwrite,
)
from understudy_policy.references.rule import Rule, RuleSignals, State, push, whole_ticks
from understudy_policy.rows import Array, device, namespace, shared


@dataclass(frozen=True)
class HpaMemory:
    """What kube-controller-manager remembers of an HPA.

    Attributes:
        recommendation: `[N, K]` int32, unstabilised replicas of earlier ticks; `NO_RECOMMENDATION` where none.
        change: `[N, C]` int32, what each of the newest ticks added or removed, unless it is overwritten since.
        place: `[N, C]` int16, where in the controller's lists of events each change is, see `behavior.overwrite`.
        places: `[N, 2]` int16, how long the lists are, up first.
        time_s: `[K]` when, oldest first; minus infinity where never.
    """

    recommendation: Array
    change: Array
    place: Array
    places: Array
    time_s: Array = shared()


@dataclass(frozen=True, kw_only=True)
class HpaLoop(Rule[State]):
    """What HPAs do with the replicas that their metrics ask for, whatever the metrics.

    Attributes:
        behavior: `spec.behavior`; its tolerances count for a legacy HPA, too.
        tick_s: time between two decisions, at least about; it decides how long the rings are.
        legacy: the HPAs have no `spec.behavior` at all, as `kubectl autoscale` makes them.
    """

    behavior: Behavior
    tick_s: float = shared(default=15.0)
    legacy: bool = shared(default=False)

    @cached_property
    def _forgets(self) -> bool:
        """Whether any row can forget an event that still counts: only the other direction may count it longer."""
        xp, up, down = namespace(self.max_replicas), self.behavior.scale_up, self.behavior.scale_down
        apart = xp.max(up.policy_period_s, axis=1) != xp.max(down.policy_period_s, axis=1)
        return not self.legacy and bool(xp.any(apart))

    def remember(self, replicas: Array, now_s: float) -> HpaMemory:
        """The memory of an HPA that has just been met: the replicas found count as recommended now."""
        xp, where, n = namespace(replicas), device(replicas), replicas.shape[0]
        up, down = self.behavior.scale_up, self.behavior.scale_down
        periods_s = _longest(up.policy_period_s, down.policy_period_s)
        windows_s = _longest(up.stabilization_window_s, down.stabilization_window_s, periods_s)
        columns = whole_ticks(max(windows_s, DEFAULT_DOWNSCALE_STABILIZATION_S * self.legacy), self.tick_s)
        # The workloads lie side by side in memory: what runs over a few columns of many rows is faster so.
        nothing = xp.permute_dims(xp.zeros((columns, n), dtype=xp.int32, device=where), (1, 0))
        never = xp.full((columns,), -xp.inf, dtype=xp.float64, device=where)
        change = nothing[:, : whole_ticks(periods_s, self.tick_s)]
        return HpaMemory(
            recommendation=push(nothing + NO_RECOMMENDATION, replicas),
            change=change,
            place=xp.astype(change, xp.int16),
            places=xp.zeros((n, 2), dtype=xp.int16, device=where),
            time_s=push(never, xp.asarray(now_s, dtype=xp.float64, device=where)),
        )

    def settle(
        self, memory: HpaMemory, desired: Array, known: Array, current: Array, low: Array, now_s: float
    ) -> tuple[HpaMemory, Array]:
        """From what the metrics ask for to what is written.

        Args:
            memory: of the ticks before.
            desired: `[N]` what the metrics ask for; not looked at where they are not known.
            known: `[N]` bool; where not, the HPA holds and recommends nothing.
            current: `[N]` int64 `spec.replicas`.
            low: `[N]` int64 `minReplicas` of the HPA.
            now_s: time of this tick.
        """
        xp = namespace(current)
        desired = xp.where(known, desired, current)
        high = as_int(self.max_replicas)
        if self.legacy:
            replicas, _ = hpa.normalize_legacy(
                desired, current, low, high, now_s, memory.time_s, memory.recommendation
            )
        else:
            replicas, _ = hpa.normalize(
                desired,
                current,
                low,
                high,
                self.behavior,
                now_s,
                memory.time_s,
                memory.recommendation,
                memory.change,
            )
        inside = within(current, low, high)
        replicas = xp.where(inside & ~known, current, replicas)
        recommended = xp.where(inside & known, desired, xp.full_like(desired, NO_RECOMMENDATION))
        now = xp.asarray(now_s, dtype=xp.float64, device=device(current))
        size = replicas - current
        time_s = memory.time_s[memory.time_s.shape[0] - memory.change.shape[1] :]
        kept, place, places = memory.change, xp.zeros_like(size), memory.places
        if self._forgets:
            kept, place, places = overwrite(size, now_s, self.behavior, time_s, kept, memory.place, places)
        return (
            HpaMemory(
                push(memory.recommendation, recommended),
                push(kept, size),
                push(memory.place, place),
                places,
                push(memory.time_s, now),
            ),
            replicas,
        )


@dataclass(frozen=True, kw_only=True)
class HpaRule(HpaLoop[HpaMemory]):
    """An HPA on CPU utilisation.

    Attributes:
        target_percent: `[N]` int64 `averageUtilization`, percent of the CPU request.
    """

    target_percent: Array

    def initial(self, seen: RuleSignals, now_s: float) -> HpaMemory:
        """See `Rule`."""
        return self.remember(as_int(seen.replicas), now_s)

    def decide(self, state: HpaMemory, seen: RuleSignals, now_s: float) -> tuple[HpaMemory, Array]:
        """See `Rule`."""
        current, ready = as_int(seen.replicas), as_int(seen.ready)
        percent = as_int(self.target_percent)
        desired, known = observed.by_cpu(
            seen.cpu_usage_cores,
            seen.cpu_request_cores,
            percent,
            current,
            created=current,
            ready=ready,
            behavior=self.behavior,
        )
        return self.settle(state, desired, known & ~seen.failed, current, as_int(self.min_replicas), now_s)


def _longest(up_s: Array, down_s: Array, least_s: float = 0.0) -> float:
    xp = namespace(up_s)
    return max(float(xp.max(up_s)), float(xp.max(down_s)), least_s)


def within(current: Array, low: Array, high: Array) -> Array:
    """Where an HPA looks at its metrics at all: the scale is neither switched off nor outside its bounds."""
    return (current <= high) & (current >= low) & ((current > 0) | (low == 0))
