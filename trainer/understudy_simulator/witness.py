"""What can be known of a workload from its telemetry, as the decision program knows it, but in little memory.

The operator keeps an hour of everything and judges every sample ten ways. A learner steps millions of ticks a second,
on metrics that can only be late or missing; so this keeps what the actor's features need and no more. A test holds the
two against each other, feature by feature.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy import estimates as learned
from understudy_policy import features as schema
from understudy_policy import history
from understudy_policy.estimates import Estimates
from understudy_policy.rows import Array, is_unknown, maximum, minimum, namespace
from understudy_policy.settings import Settings
from understudy_policy.signals import Signal
from understudy_simulator.columns import by_column, by_row, stack

STABILIZATION_TICKS = 20
"""The reference's: 300 s of 15 s ticks, HPA's default."""

_DAY, _WEEK = history.BLOCKS_PER_DAY, 7 * history.BLOCKS_PER_DAY


@dataclass(frozen=True)
class Known:
    """What is known at the end of a tick.

    Attributes:
        replicas, ready: `[N]` as they are.
        values: `[N, S]` signals that are believed, NaN where not.
        estimates: see there.
        recommended: `[N, STABILIZATION_TICKS]` what the reference wanted, unstabilised, newest last.
        since_change: `[N]` ticks since the replicas were changed, as they are observed.
    """

    replicas: Array
    ready: Array
    values: Array
    estimates: Estimates
    recommended: Array
    since_change: Array


def initial(replicas: Array) -> Known:
    """Nothing is known but the replicas, `[N]`."""
    xp, nothing = namespace(replicas), namespace(replicas).zeros_like(replicas)
    return Known(
        replicas=replicas,
        ready=replicas,
        values=stack(*[nothing + xp.nan] * len(Signal)),
        estimates=Estimates(
            log_capacity=nothing + xp.nan,
            log_capacity_variance=nothing,
            startup_ticks=nothing + learned.DEFAULT_STARTUP_TICKS,
            pending_ticks=nothing,
        ),
        recommended=stack(*[replicas] * STABILIZATION_TICKS),
        since_change=nothing,
    )


def look(
    settings: Settings, known: Known, signals: Array, age_s: Array, replicas: Array, ready: Array
) -> Known:
    """What is known after another tick.

    Args:
        settings: what people asked for.
        known: before.
        signals: `[N, S]` as the queries returned them.
        age_s: `[N]` their age.
        replicas, ready: `[N]` as they are now.
    """
    xp, values = namespace(replicas), by_column(signals)
    # Without requests a latency quantile and an error share are 0/0: that is not missing, it is nothing.
    idle = values[Signal.REQUEST_RATE] == 0
    values = xp.where(idle & is_unknown(values), xp.zeros_like(values), values)
    values = xp.where(age_s > settings.stale_after_s, xp.full_like(values, xp.nan), values)
    values = by_row(values)
    wanted = _recommended(values, replicas, ready, settings.reference_target)
    unchanged = replicas == known.replicas
    return Known(
        replicas=replicas,
        ready=ready,
        values=values,
        estimates=learned.update(known.estimates, values, replicas, ready),
        recommended=by_row(xp.concat([by_column(known.recommended)[1:], wanted[None]], axis=0)),
        since_change=xp.where(unchanged, known.since_change + 1.0, xp.zeros_like(known.since_change)),
    )


def features(
    settings: Settings, known: Known, rate: Array, yesterday_rps: Array, last_week_rps: Array
) -> Array:
    """The decision program's features, `[N, F]` float32.

    Args:
        settings: what people asked for.
        known: what is known now.
        rate: `[N, history.TICKS]` request rates as observed, newest last, NaN where unknown.
        yesterday_rps: `[N, 4]` the five-minute mean of this time a day ago and the three that came next.
        last_week_rps: the same a week ago.
    """
    past = _Past(rate, yesterday_rps, last_week_rps)
    return schema.compute(
        settings,
        schema.load(past),
        past,
        known.estimates,
        known.values,
        learned.capacity_rps(settings.given_capacity_rps, known.estimates),
        known.replicas,
        known.ready,
        known.since_change,
        _reference(settings, known),
    )


def bounded(settings: Settings, replicas: Array) -> Array:
    """Replicas within the bounds, `[N]`."""
    xp = namespace(replicas)
    low, high = (xp.astype(bound, replicas.dtype) for bound in (settings.min_replicas, settings.max_replicas))
    return minimum(xp, maximum(xp, replicas, low), high)


def _recommended(values: Array, current: Array, ready: Array, target: Array) -> Array:
    """`hpa.resource_utilization` in floats: whole percents, but no milli-units; `[N]`."""
    xp = namespace(values)
    used, request = values[:, Signal.CPU_USAGE], values[:, Signal.CPU_REQUEST]
    percent, target_percent = 100.0 * used / request, xp.round(100.0 * target)
    serving, all_pods = maximum(xp, ready, 1.0), maximum(xp, current, 1.0)
    ratio = xp.floor(percent / serving) / target_percent
    up = ratio > 1.0
    # Pods that are not ready yet idle on the way up, and do not turn it into a way down.
    with_pending = maximum(xp, xp.floor(percent / all_pods) / target_percent, 1.0)
    counted, ratio = xp.where(up, all_pods, serving), xp.where(up, with_pending, ratio)
    hold = ((ratio >= 0.9) & (ratio <= 1.1)) | (ready <= 0) | ~xp.isfinite(percent)
    return xp.where(hold, current, xp.ceil(ratio * counted - 1e-4))


def _reference(settings: Settings, known: Known) -> Array:
    """What an HPA with its default behaviour would write, `[N]`."""
    xp, current, desired = namespace(known.replicas), known.replicas, known.recommended[:, -1]
    highest = minimum(xp, xp.max(by_column(known.recommended), axis=0), current)
    grown = minimum(xp, desired, maximum(xp, current + 4.0, 2.0 * current))
    return bounded(settings, xp.where(desired > current, grown, maximum(xp, desired, highest)))


@dataclass(frozen=True)
class _Past:
    """As much of a `history.Past` as the features ask for: no blocks but those around this time."""

    rate: Array
    yesterday_rps: Array
    last_week_rps: Array

    def window(self, ticks: int) -> Array:
        return self.rate[:, -ticks:]

    def block_ago(self, blocks: int) -> Array:
        if blocks <= _DAY:
            return self.yesterday_rps[:, _DAY - blocks]
        return self.last_week_rps[:, _WEEK - blocks]
