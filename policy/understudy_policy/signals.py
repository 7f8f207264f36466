"""The telemetry contract: what a policy is told, in which unit, and how far it may be believed.

An autoscaler that cannot tell "no traffic" from "no answer" will one day scale a busy service to its minimum.
So every sample carries a cause, every cause has a quality, and only `Fresh` may ever lower replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from understudy_policy.rows import Array, is_unknown, maximum, namespace, shared


class Signal(IntEnum):
    """Column of every signal in the arrays `[N, S]`."""

    REQUEST_RATE = 0
    LATENCY = 1
    ERROR_RATE = 2
    CPU_USAGE = 3
    CPU_REQUEST = 4
    MISS_RATE = 5


SIGNAL_NAMES = ("requestRate", "latency", "errorRate", "cpuUsage", "cpuRequest", "missRate")
"""Names in the resource (`spec.telemetry.signals`), in the order of `Signal`."""

SIGNAL_UNITS = (
    "requests/second",
    "seconds, 99th percentile",
    "share of requests",
    "cores used by all pods",
    "cores requested by one pod",
    "share of requests that failed or took longer than the objective's threshold",
)

OPTIONAL_SIGNALS = frozenset({Signal.MISS_RATE})
"""Signals without which every decision is taken as if nobody had thought of them."""


LARGEST_CAPACITY_RPS = 1e6
"""No pod serves more requests per second than this, nor may a policy say so."""


class Quality(IntEnum):
    """How far a sample may be believed."""

    FRESH = 0
    STALE = 1
    ABSENT = 2
    IMPLAUSIBLE = 3
    FROZEN = 4


class Cause(IntEnum):
    """Why a sample has its quality: what an on-call engineer would want to read."""

    OK = 0
    EMPTY = 1
    HTTP_ERROR = 2
    TIMEOUT = 3
    UNREACHABLE = 4
    BAD_RESPONSE = 5
    PARTIAL = 6
    DUPLICATE = 7
    NOT_CONFIGURED = 8
    OLD_TIMESTAMP = 9
    FUTURE_TIMESTAMP = 10
    NOT_A_NUMBER = 11
    INFINITE = 12
    NEGATIVE = 13
    TOO_LARGE = 14
    UNCHANGED = 15


CAUSE_SENTENCES = {
    Cause.OK: "fresh",
    Cause.EMPTY: "the query returned no series",
    Cause.HTTP_ERROR: "Prometheus answered with an HTTP error",
    Cause.TIMEOUT: "Prometheus did not answer in time",
    Cause.UNREACHABLE: "Prometheus could not be reached",
    Cause.BAD_RESPONSE: "Prometheus answered with something that is not a query result",
    Cause.PARTIAL: "Prometheus warned that the result may be partial",
    Cause.DUPLICATE: "the query returned more than one series for this workload",
    Cause.NOT_CONFIGURED: "no query is configured for this signal",
    Cause.OLD_TIMESTAMP: "the newest sample is too old",
    Cause.FUTURE_TIMESTAMP: "the sample carries a time in the future",
    Cause.NOT_A_NUMBER: "the value is NaN",
    Cause.INFINITE: "the value is infinite",
    Cause.NEGATIVE: "the value is negative",
    Cause.TOO_LARGE: "the value is too large to be true",
    Cause.UNCHANGED: "the value has not changed by a single bit for a suspiciously long time",
}

_QUALITY = {
    Cause.OK: Quality.FRESH,
    Cause.OLD_TIMESTAMP: Quality.STALE,
    Cause.FUTURE_TIMESTAMP: Quality.IMPLAUSIBLE,
    Cause.NOT_A_NUMBER: Quality.IMPLAUSIBLE,
    Cause.INFINITE: Quality.IMPLAUSIBLE,
    Cause.NEGATIVE: Quality.IMPLAUSIBLE,
    Cause.TOO_LARGE: Quality.IMPLAUSIBLE,
    Cause.DUPLICATE: Quality.IMPLAUSIBLE,
    Cause.UNCHANGED: Quality.FROZEN,
}


def quality_of(cause: Cause) -> Quality:
    """The quality that a cause stands for; whatever kept a value from coming at all is `ABSENT`."""
    return _QUALITY.get(cause, Quality.ABSENT)


@dataclass(frozen=True)
class Samples:
    """What telemetry said in one tick.

    Attributes:
        values: `[N, S]` float64 in the units of `SIGNAL_UNITS`; NaN where nothing came.
        age_s: `[N, S]` seconds between the tick's evaluation time and the sample's own timestamp.
        cause: `[N, S]` int64 of `Cause`, as far as the transport could tell.
    """

    values: Array
    age_s: Array
    cause: Array


@dataclass(frozen=True)
class Freshness:
    """Limits beyond which a sample is not believed.

    Attributes:
        stale_after_s: `[N]` age at which a sample is stale.
        largest: `[N, S]` value above which a sample is implausible (infinity: no limit known).
        frozen_after_ticks: ticks without a single changed bit after which a request rate counts as frozen.
        clock_skew_s: how far in the future a timestamp may lie.
    """

    stale_after_s: Array
    largest: Array
    frozen_after_ticks: int = shared(default=40)
    clock_skew_s: float = shared(default=5.0)


def assess(
    samples: Samples, freshness: Freshness, previous: Array, unchanged_ticks: Array
) -> tuple[Array, Array, Array]:
    """Decide how far every sample may be believed.

    Args:
        samples: what came; a cause other than `OK` is kept.
        freshness: the limits.
        previous: `[N, S]` last believed values (NaN: none).
        unchanged_ticks: `[N]` ticks for which the request rate has been bit-identical and not zero.

    Returns:
        `values` `[N, S]` (NaN wherever the sample is not fresh), `cause` `[N, S]`, `unchanged_ticks` `[N]`.
    """
    xp = namespace(samples.values)
    values, cause = samples.values, samples.cause
    idle = (cause[:, Signal.REQUEST_RATE] == Cause.OK) & (values[:, Signal.REQUEST_RATE] == 0)
    values = _without_traffic(xp, values, idle)
    cause = _where_ok(xp, cause, samples.age_s > freshness.stale_after_s[:, None], Cause.OLD_TIMESTAMP)
    cause = _where_ok(xp, cause, samples.age_s < -freshness.clock_skew_s, Cause.FUTURE_TIMESTAMP)
    cause = _where_ok(xp, cause, is_unknown(values), Cause.NOT_A_NUMBER)
    cause = _where_ok(xp, cause, xp.isinf(values), Cause.INFINITE)
    cause = _where_ok(xp, cause, values < 0, Cause.NEGATIVE)
    cause = _where_ok(xp, cause, values > freshness.largest, Cause.TOO_LARGE)

    rate, rate_before = values[:, Signal.REQUEST_RATE], previous[:, Signal.REQUEST_RATE]
    same = (rate == rate_before) & (rate > 0)
    unchanged_ticks = xp.where(same, unchanged_ticks + 1, xp.zeros_like(unchanged_ticks))
    frozen = unchanged_ticks >= freshness.frozen_after_ticks
    column = xp.arange(values.shape[1], device=values.device)[None, :] == Signal.REQUEST_RATE
    cause = _where_ok(xp, cause, frozen[:, None] & column, Cause.UNCHANGED)
    return xp.where(cause == Cause.OK, values, xp.full_like(values, xp.nan)), cause, unchanged_ticks


def _where_ok(xp: Any, cause: Array, bad: Array, becomes: Cause) -> Array:
    """The first cause found is kept: later checks only look at what still counts as fresh."""
    return xp.where((cause == Cause.OK) & bad, xp.full_like(cause, int(becomes)), cause)


def _without_traffic(xp: Any, values: Array, idle: Array) -> Array:
    """Without requests a latency quantile and shares are 0/0: that is not missing, it is nothing."""
    column = xp.arange(values.shape[1], device=values.device)[None, :]
    ratio = (column == Signal.LATENCY) | (column == Signal.ERROR_RATE) | (column == Signal.MISS_RATE)
    undefined = ratio & idle[:, None] & is_unknown(values)
    return xp.where(undefined, xp.zeros_like(values), values)


def largest_plausible(max_replicas: Array, given_capacity_rps: Array, cpu_request_per_pod: Array) -> Array:
    """Values above which a sample cannot be true, `[N, S]`.

    Twenty times what `maxReplicas` pods could serve is beyond any overload that clients would sit through. An estimate
    of the capacity has no say in this: one that was made while the workload idled may be a hundred times too low, and
    refusing the samples that would mend it would keep it so for ever.

    Args:
        max_replicas: `[N]` replicas.
        given_capacity_rps: `[N]` requests per second of one pod, NaN where nobody gave it.
        cpu_request_per_pod: `[N]` cores, NaN if unknown.
    """
    xp = namespace(given_capacity_rps)
    pods = 20.0 * xp.astype(maximum(xp, max_replicas, 1), given_capacity_rps.dtype)
    infinity = xp.full_like(given_capacity_rps, xp.inf)
    largest = xp.full_like(given_capacity_rps, LARGEST_CAPACITY_RPS)
    rate = pods * xp.where(is_unknown(given_capacity_rps), largest, given_capacity_rps)
    cores = xp.where(is_unknown(cpu_request_per_pod), infinity, pods * cpu_request_per_pod)
    share = xp.ones_like(rate) * 1.001
    return xp.stack([rate, infinity, share, cores, infinity, share], axis=1)
