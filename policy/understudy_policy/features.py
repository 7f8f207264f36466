"""What the actor sees: scale-free ratios, so that one actor serves a service of three pods and one of three hundred.

The schema is data with a hash. An artefact that was trained on another schema is refused, because a reordered
column would look like a policy gone mad. New columns are appended, so an actor that knows fewer goes on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from understudy_policy import history as past
from understudy_policy.actions import CARRY_TICKS, RULE_WINDOWS, carried_forward
from understudy_policy.estimates import Estimates
from understudy_policy.rows import Array, is_unknown, maximum, mean_of_known, namespace
from understudy_policy.settings import Settings, calibrated_at
from understudy_policy.signals import Signal

SCHEMA_VERSION = 1

SCHEMA: tuple[tuple[str, str], ...] = (
    ("log_demand", "log of pods that the request rate fills completely, plus 0.1"),
    ("load_over_ready", "demand in pods over ready replicas"),
    ("load_over_desired", "demand in pods over desired replicas"),
    ("pending_fraction", "share of the desired replicas that is not ready"),
    ("cpu_utilization", "cores used over cores requested; 0 where unknown"),
    ("log_latency_over_slo", "log2 of latency over its threshold, within ±4; 0 where unknown"),
    ("error_ratio", "share of failed requests; 0 where unknown"),
    ("slope_1min", "log of the mean rate of the last 4 ticks over that of the last 20"),
    ("slope_5min", "log of the mean rate of the last 20 ticks over that of the last 60"),
    ("slope_15min", "log of the mean rate of the last 60 ticks over that of the last 240"),
    ("now_over_5min", "log of the rate now over the mean of the last 20 ticks"),
    ("dispersion_5min", "standard deviation over mean, last 20 ticks"),
    ("dispersion_15min", "standard deviation over mean, last 60 ticks"),
    ("dispersion_60min", "standard deviation over mean, last 240 ticks"),
    ("peak_5min", "log of the largest rate over the mean, last 20 ticks"),
    ("peak_15min", "log of the largest rate over the mean, last 60 ticks"),
    ("peak_60min", "log of the largest rate over the mean, last 240 ticks"),
    ("yesterday_next", "log of the quarter of an hour after this time yesterday over the block at it"),
    ("yesterday_known", "1 where yesterday is known"),
    ("last_week_next", "the same a week ago"),
    ("last_week_known", "1 where last week is known"),
    ("log_ticks_since_change", "log of ticks since the desired replicas changed, plus 1"),
    ("reference_over_current", "log of the reference's replicas over the desired ones"),
    ("log_startup", "log of ticks that new pods take to be ready"),
    ("capacity_uncertainty", "standard deviation of the log of the estimated capacity; 0 where it is given"),
    ("log_price", "log of the price of a missed request"),
    ("slo_nines", "−log10 of the share of requests that may miss the objective"),
    ("history", "share of the last 240 ticks that is known"),
    ("slope_1tick", "log of the rate now over that of the tick before"),
    ("slope_2ticks", "log of the rate now over that of two ticks before"),
    ("slope_4ticks", "log of the rate now over that of four ticks before"),
    ("roughness_15min", "mean change from tick to tick over the mean rate, last 60 ticks"),
    ("half_hour_skill", "correlation of the rate of the last 120 ticks with that of the 120 before"),
    (
        "half_hour_next",
        "log of the mean of the 12 ticks after this time half an hour ago over that of the hour",
    ),
    (
        "half_hour_peak",
        "log of the largest of the 20 ticks after this time half an hour ago over the hour's mean",
    ),
    ("hour_next", "log of the mean of the 12 ticks after this time an hour ago over that of the hour since"),
    ("hour_peak", "log of the largest of the 20 ticks after this time an hour ago over that mean"),
    (
        "calibrated_log_utilization",
        "log of the utilisation at which a rule over 20 ticks did best in this workload's past; 0 where unknown",
    ),
    ("calibrated_known", "1 where it is known"),
)

F = len(SCHEMA)

HALF_HOUR_TICKS = past.TICKS // 2

SOON_TICKS, NEXT_TICKS = 12, 20
"""Ticks after a time that say what came soon, and what came at most; they cover what a new pod takes to start."""


def schema_hash(columns: int = F) -> str:
    """Identifies names, order and meaning of the first so many columns."""
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, SCHEMA[:columns]]).encode()).hexdigest()


@dataclass(frozen=True)
class Load:
    """The request rate of this tick in its windows, shared by features and rules.

    Attributes:
        rate_rps: `[N]` now.
        rule_rate_rps: `[N, RULES]` what every rule goes by: the largest rate of its window, the oldest windows only
            as long as what is known, and the rate carried forward.
        stats: statistics of the windows of 4, 20, 60 and 240 ticks.
        known_ticks: `[N]` ticks of the last hour that are known.
    """

    rate_rps: Array
    rule_rate_rps: Array
    stats: dict[int, past.WindowStats]
    known_ticks: Array


def load(history: past.Past) -> Load:
    """Read the windows off the rings, once per tick."""
    window = history.window(past.TICKS)
    xp = namespace(window)
    stats = {ticks: past.window_stats(history, ticks) for ticks in (4, 20, 60, past.TICKS)}
    now, before = history.window(1)[:, 0], history.window(CARRY_TICKS + 1)[:, 0]
    largest = [now if ticks == 1 else stats[ticks].largest for ticks in RULE_WINDOWS]
    return Load(
        rate_rps=now,
        rule_rate_rps=xp.stack([*largest, carried_forward(now, before)], axis=1),
        stats=stats,
        known_ticks=xp.sum(xp.astype(~is_unknown(window), xp.int64), axis=1),
    )


def compute(
    settings: Settings,
    load_now: Load,
    history: past.Past,
    estimates: Estimates,
    values: Array,
    capacity: Array,
    replicas: Array,
    ready: Array,
    ticks_since_change: Array,
    reference: Array,
) -> Array:
    """The observation of every workload, `[N, F]` float32, always finite.

    Args:
        settings, load_now, history, estimates: see there.
        values: `[N, S]` believed signal values, NaN where unknown.
        capacity: `[N]` requests per second of one pod, NaN where unknown.
        replicas, ready: `[N]` desired and ready replicas.
        ticks_since_change: `[N]`.
        reference: `[N]` replicas that the reference wants.
    """
    xp = namespace(values)
    desired = xp.astype(maximum(xp, replicas, 1), xp.float64)
    serving = xp.astype(maximum(xp, ready, 1), xp.float64)
    demand = _known(xp, xp.astype(load_now.rate_rps, xp.float64) / capacity, 0.0)
    utilization = _ratio(xp, values[:, Signal.CPU_USAGE], values[:, Signal.CPU_REQUEST] * serving)
    slow = values[:, Signal.LATENCY] / settings.latency_threshold_s
    s4, s20, s60, s240 = (load_now.stats[ticks] for ticks in (4, 20, 60, past.TICKS))
    yesterday, yesterday_known = _what_came_next(xp, history, past.BLOCKS_PER_DAY)
    last_week, last_week_known = _what_came_next(xp, history, 7 * past.BLOCKS_PER_DAY)
    given = ~is_unknown(settings.given_capacity_rps)
    utilization_then = calibrated_at(settings)
    calibrated = ~is_unknown(utilization_then)
    spread = xp.sqrt(estimates.log_capacity_variance)
    half_hour, hour = history.window(HALF_HOUR_TICKS), history.window(past.TICKS)
    columns = (
        xp.log(demand + 0.1),
        demand / serving,
        demand / desired,
        1.0 - xp.astype(ready, xp.float64) / desired,
        utilization,
        xp.log2(xp.clip(_known(xp, slow, 1.0), 1 / 16, 16.0)),
        _known(xp, values[:, Signal.ERROR_RATE], 0.0),
        _log_ratio(xp, s4.mean, s20.mean),
        _log_ratio(xp, s20.mean, s60.mean),
        _log_ratio(xp, s60.mean, s240.mean),
        _log_ratio(xp, load_now.rate_rps, s20.mean),
        _ratio(xp, s20.std, s20.mean),
        _ratio(xp, s60.std, s60.mean),
        _ratio(xp, s240.std, s240.mean),
        _log_ratio(xp, s20.largest, s20.mean),
        _log_ratio(xp, s60.largest, s60.mean),
        _log_ratio(xp, s240.largest, s240.mean),
        yesterday,
        yesterday_known,
        last_week,
        last_week_known,
        xp.log(xp.astype(ticks_since_change, xp.float64) + 1.0),
        xp.log(xp.astype(maximum(xp, reference, 1), xp.float64) / desired),
        xp.log(maximum(xp, estimates.startup_ticks, 0.25)),
        xp.where(given, xp.zeros_like(spread), spread),
        xp.log(settings.missed_request_price),
        -xp.log10(1.0 - settings.slo_target),
        xp.astype(load_now.known_ticks, xp.float64) / past.TICKS,
        *(_log_ratio(xp, load_now.rate_rps, history.window(ago + 1)[:, 0]) for ago in (1, 2, 4)),
        _ratio(xp, _mean_change(xp, history.window(60)), s60.mean),
        _correlation(xp, half_hour, hour[:, :HALF_HOUR_TICKS]),
        *_recurring(xp, half_hour[:, :NEXT_TICKS], s240.mean),
        *_recurring(xp, hour[:, :NEXT_TICKS], s240.mean),
        xp.where(calibrated, xp.log(utilization_then), xp.zeros_like(spread)),
        xp.astype(calibrated, xp.float64),
    )
    observation = xp.stack([xp.astype(column, xp.float32) for column in columns], axis=1)
    return xp.clip(observation, -20.0, 20.0)


def _known(xp: Any, value: Array, otherwise: float) -> Array:
    return xp.where(xp.isfinite(value), value, xp.full_like(value, otherwise))


def _ratio(xp: Any, a: Array, b: Array) -> Array:
    safe = xp.where(b > 0, b, xp.ones_like(b))
    return _known(xp, xp.where(b > 0, a / safe, xp.zeros_like(a)), 0.0)


def _log_ratio(xp: Any, a: Array, b: Array) -> Array:
    """log(a/b), within ±3; 0 where either is unknown or both are nothing."""
    floor = 1e-3 * _known(xp, maximum(xp, a, b), 0.0) + 1e-9
    return xp.clip(_known(xp, xp.log((a + floor) / (b + floor)), 0.0), -3.0, 3.0)


def _recurring(xp: Any, after: Array, mean: Array) -> tuple[Array, Array]:
    """How the ticks after this time went earlier, `[N, NEXT_TICKS]`, over the mean of the hour: soon, and at most."""
    known = ~is_unknown(after)
    soon = mean_of_known(after[:, :SOON_TICKS])
    most = xp.max(xp.where(known, after, xp.full_like(after, -xp.inf)), axis=1)
    most = xp.where(xp.isfinite(most), most, xp.full_like(most, xp.nan))
    return _log_ratio(xp, soon, mean), _log_ratio(xp, most, mean)


def _mean_change(xp: Any, window: Array) -> Array:
    """Mean absolute change from tick to tick, `[N]`; NaN where none is known."""
    return mean_of_known(xp.abs(window[:, 1:] - window[:, :-1]))


def _correlation(xp: Any, a: Array, b: Array) -> Array:
    """Correlation of what is known in both, `[N]`; 0 where nothing moves."""
    known = ~(is_unknown(a) | is_unknown(b))
    a, b = (xp.where(known, side, xp.full_like(side, xp.nan)) for side in (a, b))
    a, b = (side - mean_of_known(side)[:, None] for side in (a, b))
    a, b = (xp.where(known, side, xp.zeros_like(side)) for side in (a, b))
    return _ratio(xp, xp.sum(a * b, axis=1), xp.sqrt(xp.sum(a * a, axis=1) * xp.sum(b * b, axis=1)))


def _what_came_next(xp: Any, history: past.Past, blocks_ago: int) -> tuple[Array, Array]:
    """How the quarter of an hour after this time went, so many blocks ago, relative to the block at it."""
    then = history.block_ago(blocks_ago)
    after = (
        history.block_ago(blocks_ago - 1)
        + history.block_ago(blocks_ago - 2)
        + history.block_ago(blocks_ago - 3)
    ) / 3.0
    known = xp.isfinite(then) & xp.isfinite(after)
    return xp.where(known, _log_ratio(xp, after, then), xp.zeros_like(then)), xp.astype(known, then.dtype)
