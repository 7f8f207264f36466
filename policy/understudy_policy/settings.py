"""What people asked for, as arrays: the part of an `RLPolicy` that the decision program reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy_policy.api import RLPolicySpec, ScalingRules
from understudy_policy.api.parts import CALIBRATED_SLOTS, CalibratedUtilization
from understudy_policy.references.behavior import (
    POLICY_PERCENT,
    POLICY_PODS,
    SELECT_DISABLED,
    SELECT_MAX,
    SELECT_MIN,
    Behavior,
    Direction,
    default_behavior,
)
from understudy_policy.rows import Array, is_unknown, namespace, shared

REFERENCE_CPU = 0
REFERENCE_RATE = 1

POLICY_SLOTS = 8
"""Rate-limiting policies per direction that a resource may hold."""

_SELECT = {"Max": SELECT_MAX, "Min": SELECT_MIN, "Disabled": SELECT_DISABLED}
_POLICY_TYPE = {"Pods": POLICY_PODS, "Percent": POLICY_PERCENT}


@dataclass(frozen=True)
class Settings:
    """One row per policy; all rows of a cohort share the tick.

    Attributes:
        min_replicas, max_replicas: `[N]` int64.
        latency_threshold_s: `[N]` float64, the service level objective's threshold.
        slo_target: `[N]` share of requests that must stay below it.
        missed_request_price: `[N]` pods' worth of cost for the whole demand missed: the preference.
        given_capacity_rps: `[N]` requests per second of one pod; NaN: estimate it.
        error_budget_window_s: `[N]` how far back misses move the price; 0: they do not.
        calibrated_price, calibrated_utilization: `[N, K]` prices, and the utilisations of that capacity at which a rule
            that goes by the largest rate of five minutes did best in this workload's past at them; NaN where nobody
            looked.
        reference_signal: `[N]` int64, `REFERENCE_CPU` or `REFERENCE_RATE`.
        reference_target: `[N]` utilisation that the reference aims at.
        behavior: HPA v2 scaling behaviour.
        below_reference, above_reference: `[N]` how far the actor may leave the reference, as a share of it.
        utilization_ceiling: `[N]` highest utilisation by the load of this moment.
        hold_on_kill: `[N]` bool, a kill freezes instead of handing over.
        stale_after_s: `[N]`.
        tick_s: seconds between two ticks.
    """

    min_replicas: Array
    max_replicas: Array
    latency_threshold_s: Array
    slo_target: Array
    missed_request_price: Array
    given_capacity_rps: Array
    error_budget_window_s: Array
    calibrated_price: Array
    calibrated_utilization: Array
    reference_signal: Array
    reference_target: Array
    behavior: Behavior
    below_reference: Array
    above_reference: Array
    utilization_ceiling: Array
    hold_on_kill: Array
    stale_after_s: Array
    tick_s: float = shared(default=15.0)

    @classmethod
    def unguarded(
        cls,
        min_replicas: Array,
        max_replicas: Array,
        latency_threshold_s: Array,
        slo_target: Array,
        missed_request_price: Array,
        given_capacity_rps: Array,
        reference_target: Array,
        tick_s: float,
        error_budget_window_s: float = 0.0,
        calibrated: tuple[Array, Array] | None = None,
    ) -> Settings:
        """Workloads of a simulation (NumPy): a CPU reference with HPA's default behaviour, guards that hardly bind."""
        count = len(min_replicas)
        prices, utilizations = calibrated or np.full((2, count, 1), np.nan)
        return cls(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            latency_threshold_s=latency_threshold_s,
            slo_target=slo_target,
            missed_request_price=missed_request_price,
            given_capacity_rps=given_capacity_rps,
            error_budget_window_s=np.full(count, error_budget_window_s),
            calibrated_price=prices,
            calibrated_utilization=utilizations,
            reference_signal=np.full(count, REFERENCE_CPU),
            reference_target=reference_target,
            behavior=default_behavior(count, min_replicas, POLICY_SLOTS),
            below_reference=np.ones(count),
            above_reference=np.full(count, 10.0),
            utilization_ceiling=np.full(count, 2.0),
            hold_on_kill=np.zeros(count, bool),
            stale_after_s=np.full(count, 4 * tick_s),
            tick_s=tick_s,
        )


def from_specs(specs: Sequence[RLPolicySpec], tick_s: float) -> Settings:
    """The settings of policies that share a tick, one row each, as NumPy arrays."""

    def integers(values: Sequence[int]) -> np.ndarray:
        return np.array(values, np.int64)

    def numbers(values: Sequence[float]) -> np.ndarray:
        return np.array(values, np.float64)

    capacities = [spec.objective.capacity_per_pod_rps for spec in specs]
    prices, utilizations = _calibrated([spec.objective.calibrated_utilizations or () for spec in specs])
    signals = [spec.reference.signal for spec in specs]
    envelopes = [spec.guardrails.envelope for spec in specs]
    tolerances = [spec.reference.tolerance for spec in specs]
    return Settings(
        min_replicas=integers([spec.min_replicas for spec in specs]),
        max_replicas=integers([spec.max_replicas for spec in specs]),
        latency_threshold_s=numbers([spec.objective.latency_threshold_s for spec in specs]),
        slo_target=numbers([spec.objective.slo_target for spec in specs]),
        missed_request_price=numbers([spec.objective.missed_request_price for spec in specs]),
        given_capacity_rps=numbers([np.nan if c is None else c for c in capacities]),
        error_budget_window_s=numbers([spec.objective.error_budget_window_s for spec in specs]),
        calibrated_price=prices,
        calibrated_utilization=utilizations,
        reference_signal=integers(
            [REFERENCE_CPU if s == "cpuUtilization" else REFERENCE_RATE for s in signals]
        ),
        reference_target=numbers([spec.reference.target for spec in specs]),
        behavior=Behavior(
            scale_up=_direction([spec.reference.behavior.scale_up for spec in specs], tolerances),
            scale_down=_direction([spec.reference.behavior.scale_down for spec in specs], tolerances),
        ),
        below_reference=numbers([envelope.below_reference for envelope in envelopes]),
        above_reference=numbers([envelope.above_reference for envelope in envelopes]),
        utilization_ceiling=numbers([envelope.utilization_ceiling for envelope in envelopes]),
        hold_on_kill=np.array([spec.on_kill == "Hold" for spec in specs], bool),
        stale_after_s=numbers([spec.telemetry.stale_after_s for spec in specs]),
        tick_s=tick_s,
    )


def calibrated_at(settings: Settings) -> Array:
    """The utilisation that did best at the price nearest to the settings' own, `[N]`; NaN where nobody looked."""
    xp = namespace(settings.calibrated_price)
    away = xp.abs(xp.log(settings.calibrated_price) - xp.log(settings.missed_request_price)[:, None])
    away = xp.where(is_unknown(away), xp.full_like(away, xp.inf), away)
    nearest = away <= xp.min(away, axis=1)[:, None]
    # Of two that are as near the lower one: the safer.
    return xp.min(xp.where(nearest, settings.calibrated_utilization, xp.full_like(away, xp.inf)), axis=1)


def _calibrated(given: Sequence[Sequence[CalibratedUtilization]]) -> tuple[np.ndarray, np.ndarray]:
    prices, utilizations = np.full((2, len(given), CALIBRATED_SLOTS), np.nan)
    for row, found in enumerate(given):
        for slot, one in enumerate(found):
            prices[row, slot], utilizations[row, slot] = one.missed_request_price, one.utilization
    return prices, utilizations


def _direction(rules: Sequence[ScalingRules], tolerances: Sequence[float]) -> Direction:
    shape = (len(rules), POLICY_SLOTS)
    kinds, values, periods = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, rule in enumerate(rules):
        for slot, policy in enumerate(rule.policies):
            kinds[row, slot] = _POLICY_TYPE[policy.type]
            values[row, slot], periods[row, slot] = policy.value, policy.period_seconds
    own = [t if rule.tolerance is None else rule.tolerance for rule, t in zip(rules, tolerances, strict=True)]
    return Direction(
        stabilization_window_s=np.array([rule.stabilization_window_seconds for rule in rules], np.float64),
        select=np.array([_SELECT[rule.select_policy] for rule in rules], np.int64),
        policy_type=kinds,
        policy_value=values,
        policy_period_s=periods,
        tolerance=np.array(own, np.float64),
    )
