"""Knative's pod autoscaler (KPA) as a rule: concurrency over a minute, and panic when the last seconds double it.

Knative decides every 2 s on what it scraped every second; this rule decides at the caller's tick on means per tick.
With 2 s ticks it is Knative's (30 columns, panic over 3); with 15 s ticks the stable window is 4 columns and the panic
window, which cannot be shorter than a tick, is one. Bounds apply at the end, as Knative's reconciler does;
scaling to and from zero (the activator) is left out. A tick without a sample is left out of the means (Knative
counts a gap between two samples as 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from understudy_policy.references.behavior import as_capped_int, as_float, as_int
from understudy_policy.references.rule import Rule, RuleSignals, push, whole_ticks
from understudy_policy.rows import Array, device, maximum, mean_of_known, minimum, namespace, shared


@dataclass(frozen=True)
class KnativeMemory:
    """What the decider of every revision remembers.

    Attributes:
        concurrency: `[N, K]` float64 requests in flight per tick, oldest first; NaN where unknown.
        panic_s: `[N]` float64, when the panic threshold was last crossed; minus infinity: not in panic.
        most_pods: `[N]` int64, the most pods wanted in this panic.
        wanted: `[N, D]` int32, what was decided at earlier ticks, for the scale-down delay; 0 where nothing.
        wanted_time_s: `[D]` when.
    """

    concurrency: Array
    panic_s: Array
    most_pods: Array
    wanted: Array
    wanted_time_s: Array = shared()


@dataclass(frozen=True, kw_only=True)
class KnativeRule(Rule[KnativeMemory]):
    """A KPA on concurrency.

    Attributes:
        target: `[N]` requests in flight per pod to aim at: Knative's `target` times its target utilisation.
        scale_down_delay_s: `[N]` a decision to shrink must have been due for so long.
        activation_scale: `[N]` int64, the fewest pods while there is any request.
        panic_threshold: `[N]` panic wants so many times the ready pods (Knative's 200 % is 2).
        max_scale_up_rate, max_scale_down_rate: `[N]` per decision, over the ready pods.
        stable_window_s: of the concurrency that is followed in peace.
        panic_window_ratio: the panic window over the stable one.
        tick_s: time between two decisions.
    """

    target: Array
    scale_down_delay_s: Array
    activation_scale: Array
    panic_threshold: Array
    max_scale_up_rate: Array
    max_scale_down_rate: Array
    stable_window_s: float = shared(default=60.0)
    panic_window_ratio: float = shared(default=0.1)
    tick_s: float = shared(default=15.0)

    def initial(self, seen: RuleSignals, now_s: float) -> KnativeMemory:
        """See `Rule`. Pods that are there already mean a restart, and Knative restarts in panic."""
        xp, ready, where = namespace(seen.replicas), as_int(seen.ready), device(seen.replicas)
        n = ready.shape[0]
        columns = max(1, math.ceil(self.stable_window_s / self.tick_s))
        delay = whole_ticks(float(xp.max(as_float(self.scale_down_delay_s))), self.tick_s)
        return KnativeMemory(
            concurrency=xp.permute_dims(
                xp.full((columns, n), xp.nan, dtype=xp.float64, device=where), (1, 0)
            ),
            panic_s=xp.where(ready > 1, xp.full((n,), now_s, dtype=xp.float64, device=where), -xp.inf),
            most_pods=xp.where(ready > 1, ready, 0),
            # The workloads lie side by side in memory: what runs over a few columns of many rows is faster so.
            wanted=xp.permute_dims(xp.zeros((delay, n), dtype=xp.int32, device=where), (1, 0)),
            wanted_time_s=xp.full((delay,), -xp.inf, dtype=xp.float64, device=where),
        )

    def decide(self, state: KnativeMemory, seen: RuleSignals, now_s: float) -> tuple[KnativeMemory, Array]:
        """See `Rule`. It holds while no tick of the stable window is known."""
        xp = namespace(seen.concurrency)
        current = as_int(seen.replicas)
        unknown = seen.failed | ~xp.isfinite(seen.concurrency)
        concurrency = push(state.concurrency, xp.where(unknown, xp.nan, seen.concurrency))
        panic_ticks = max(1, math.ceil(self.panic_window_ratio * self.stable_window_s / self.tick_s))
        stable, panicking = mean_of_known(concurrency), mean_of_known(concurrency[:, -panic_ticks:])
        valid = xp.isfinite(stable)

        ready = as_float(maximum(xp, as_int(seen.ready), 1))
        most, least = xp.ceil(self.max_scale_up_rate * ready), xp.floor(ready / self.max_scale_down_rate)
        # NaN would not survive the conversion to integers. As in Knative, a silent panic window asks for nothing.
        in_peace = xp.ceil(xp.where(valid, stable, 0.0) / self.target)
        in_panic = xp.ceil(xp.where(xp.isfinite(panicking), panicking, 0.0) / self.target)

        def pods(wanted: Array) -> Array:
            limited = as_capped_int(minimum(xp, maximum(xp, wanted, least), most))
            return xp.where(wanted > 0, maximum(xp, limited, as_int(self.activation_scale)), limited)

        over = in_panic / ready >= self.panic_threshold
        calm = ~over & (state.panic_s + self.stable_window_s < now_s)
        panic_s = xp.where(over, now_s, xp.where(calm, -xp.inf, state.panic_s))
        panic = panic_s > -xp.inf
        most_pods = maximum(xp, maximum(xp, pods(in_peace), pods(in_panic)), state.most_pods)
        most_pods = xp.where(panic, most_pods, 0)
        desired = xp.where(panic, most_pods, pods(in_peace))

        wanted = push(state.wanted, xp.where(valid, desired, 0))
        time_s = push(state.wanted_time_s, xp.asarray(now_s, dtype=xp.float64, device=device(current)))
        counts = time_s[:, None] > (now_s - as_float(self.scale_down_delay_s))[None, :]
        of_late = xp.max(xp.where(counts, xp.permute_dims(wanted, (1, 0)), 0), axis=0)
        delayed = maximum(xp, as_int(of_late), desired)
        memory = replace(
            state,
            concurrency=concurrency,
            panic_s=xp.where(valid, panic_s, state.panic_s),
            most_pods=xp.where(valid, most_pods, state.most_pods),
            wanted=wanted,
            wanted_time_s=time_s,
        )
        return memory, self.bounded(xp.where(valid, delayed, current))
