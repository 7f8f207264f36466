"""Golden vectors of KEDA, Knative, the seasonal rule and the table rows, worked out by hand from what they promise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from understudy_policy import actions
from understudy_policy.references.behavior import default_behavior
from understudy_policy.references.keda import NO_FALLBACK, FallbackBehavior, KedaRule
from understudy_policy.references.knative import KnativeRule
from understudy_policy.references.rule import Rule, RuleSignals
from understudy_policy.references.seasonal import SeasonalRule
from understudy_policy.references.table_row import TableRowRule


def one(value: Any) -> np.ndarray:
    return np.array([value])


def seen(replicas: int, ready: int | None = None, *, failed: bool = False, **known: float) -> RuleSignals:
    return RuleSignals(
        rate_rps=one(known.get("rate", math.nan)),
        cpu_usage_cores=one(math.nan),
        cpu_request_cores=one(math.nan),
        concurrency=one(known.get("concurrency", math.nan)),
        replicas=one(replicas),
        ready=one(replicas if ready is None else ready),
        capacity_rps=one(10.0),
        failed=one(failed),
    )


def live(rule: Rule[Any], ticks: Iterable[RuleSignals], tick_s: float, follow: bool = True) -> list[int]:
    """The rule's answers; each is what the next tick finds, unless the pods are told not to follow."""
    state, answers = None, []
    for k, tick in enumerate(ticks):
        now_s = k * tick_s
        if follow and answers:
            tick = seen(answers[-1], rate=tick.rate_rps[0], failed=bool(tick.failed[0]))
        state = rule.initial(tick, now_s) if state is None else state
        state, replicas = rule.decide(state, tick, now_s)
        answers.append(int(replicas[0]))
    return answers


# KEDA: 10 rps per replica, no stabilisation, poll every 30 s, HPA every 15 s.


def keda(low: int = 1, high: int = 100, **changed: Any) -> KedaRule:
    behavior = default_behavior(1, one(0.0))
    behavior.scale_down.stabilization_window_s[:] = changed.pop("stabilization_s", 0)
    fields = {
        "threshold_rps": 10.0,
        "activation_rps": 0.0,
        "cooldown_s": 300.0,
        "ignore_null": True,
        "fallback_replicas": NO_FALLBACK,
        "failure_threshold": 3,
        "fallback_behavior": FallbackBehavior.STATIC,
    } | changed
    columns = {name: one(value) for name, value in fields.items()}
    return KedaRule(min_replicas=one(low), max_replicas=one(high), behavior=behavior, **columns)


def keda_life(rule: KedaRule, replicas: int, rates: Sequence[float | str]) -> list[int]:
    ticks = [seen(replicas, failed=True) if r == "error" else seen(replicas, rate=float(r)) for r in rates]
    return live(rule, ticks, 15.0)


@pytest.mark.parametrize(
    ("rate", "expected"), [(95, 10), (54, 5), (45.1, 5), (56, 6), (44, 5), (40, 4), (1000, 10), (-3, 1)]
)
def test_keda_asks_for_the_rate_over_its_threshold(rate, expected):
    """From 5 replicas: 54 and 45.1 are within the tolerance, 44 needs five anyway, and 10 is the HPA's speed limit."""
    assert keda_life(keda(), 5, [rate]) == [expected]


def test_keda_takes_an_empty_answer_for_no_load_by_default():
    """The most repeated complaint about it."""
    assert keda_life(keda(), 5, [50, math.nan]) == [5, 1]
    assert keda_life(keda(), 5, [50, math.inf]) == [5, 1]


def test_keda_holds_on_an_empty_answer_that_is_an_error():
    assert keda_life(keda(ignore_null=False), 5, [50, math.nan, math.inf, math.nan]) == [5, 5, 5, 5]


def test_keda_falls_back_after_a_number_of_calls_and_not_after_a_time():
    """Poll and HPA fail at 0 s, the HPA at 15 s: that is three. Poll and HPA fail at 30 s: five are more than three."""
    assert keda_life(keda(fallback_replicas=8), 5, ["error"] * 3) == [5, 5, 8]


def test_a_good_answer_resets_the_counter_of_the_fallback():
    errors = ["error", "error", 50, "error", "error", "error"]
    # After the good answer at 30 s: 45 s one, 60 s three (poll and HPA), 75 s four.
    assert keda_life(keda(fallback_replicas=8), 5, errors) == [5, 5, 5, 5, 5, 8]


def test_without_a_fallback_keda_holds_for_ever():
    assert keda_life(keda(), 5, ["error"] * 50) == [5] * 50


@pytest.mark.parametrize(
    ("behavior", "fallback", "expected"),
    [
        (FallbackBehavior.STATIC, 8, 8),
        (FallbackBehavior.CURRENT_REPLICAS, 8, 5),
        (FallbackBehavior.CURRENT_REPLICAS_IF_HIGHER, 8, 8),
        (FallbackBehavior.CURRENT_REPLICAS_IF_LOWER, 8, 5),
        (FallbackBehavior.STATIC, 2, 2),
        (FallbackBehavior.CURRENT_REPLICAS, 2, 5),
        (FallbackBehavior.CURRENT_REPLICAS_IF_HIGHER, 2, 5),
        (FallbackBehavior.CURRENT_REPLICAS_IF_LOWER, 2, 2),
    ],
)
def test_what_the_fallback_asks_for(behavior, fallback, expected):
    rule = keda(fallback_replicas=fallback, fallback_behavior=behavior, failure_threshold=0)
    assert keda_life(rule, 5, ["error"]) == [expected]


def test_keda_goes_to_zero_at_the_first_poll_after_the_cooldown():
    """Active at 0 s; at 300 s the cooldown has not *passed* yet, and 315 s is no poll."""
    life = keda_life(keda(low=0), 2, [20.0] + [0.0] * 23)
    assert life == [2] + [1] * 21 + [0, 0], "330 s is tick 22"


def test_keda_wakes_at_a_poll_and_the_hpa_takes_over_from_one():
    """Nobody asks at 15 s; at 30 s the poll makes it 1 and the HPA, which may add four, 5."""
    assert keda_life(keda(low=0), 0, [0, 95, 95]) == [0, 0, 5]


def test_keda_switches_off_what_stays_below_its_activation():
    """Even though the load would keep one pod busy."""
    assert keda_life(keda(low=0, activation_rps=20.0, cooldown_s=0.0), 3, [15]) == [0]


def test_the_poll_restores_a_minimum_that_somebody_undercut():
    assert keda_life(keda(low=3), 1, [0]) == [3]


def test_an_error_passes_for_idleness_where_the_fallback_is_zero():
    assert keda_life(keda(low=0, fallback_replicas=0, cooldown_s=0.0), 5, ["error"]) == [0]


def test_the_hpa_of_keda_first_meets_what_the_first_poll_has_left():
    """Switched off by the first poll at 0 s: 21 replicas were never recommended, so nothing holds 8 up later."""
    rule = keda(low=0, high=40, cooldown_s=0.0, stabilization_s=300)
    state = rule.initial(seen(21, rate=0.0), 0.0)
    state, replicas = rule.decide(state, seen(21, rate=0.0), 0.0)
    assert replicas.tolist() == [0]
    _, replicas = rule.decide(state, seen(20, rate=80.0), 15.0)
    assert replicas.tolist() == [8]


# Knative: 10 requests in flight per pod.


def knative(
    tick_s: float = 2.0, low: int = 0, stable_window_s: float = 60.0, **changed: float
) -> KnativeRule:
    fields = {
        "target": 10.0,
        "scale_down_delay_s": 0.0,
        "activation_scale": 1,
        "panic_threshold": 2.0,
        "max_scale_up_rate": 1000.0,
        "max_scale_down_rate": 2.0,
    } | changed
    return KnativeRule(
        min_replicas=one(low),
        max_replicas=one(1000),
        tick_s=tick_s,
        stable_window_s=stable_window_s,
        **{name: one(value) for name, value in fields.items()},
    )


def knative_life(rule: KnativeRule, *stretches: tuple[int, float, int]) -> list[int]:
    """Answers over stretches of (ticks, concurrency, ready pods)."""
    ticks = [seen(r, concurrency=c) for count, c, r in stretches for _ in range(count)]
    return live(rule, ticks, rule.tick_s, follow=False)


def test_knative_in_peace_asks_for_the_concurrency_over_its_target():
    # Long after the panic of the start.
    assert knative_life(knative(), (40, 45, 5))[-1] == 5
    assert knative_life(knative(), (40, 45, 5), (30, 61, 5))[-1] == 7


def test_knative_panics_when_six_seconds_want_twice_the_pods():
    """The last three ticks mean 200/3 over 45: 96.7 after one tick of 200, so ten pods, which is twice five."""
    spike = knative_life(knative(), (40, 45, 5), (3, 200, 5))[-3:]
    assert spike == [10, 15, 20]


def test_knative_never_shrinks_in_panic_and_leaves_it_a_stable_window_after_the_last_alarm():
    """The last alarm is at 84 s (tick 42): at 144 s the 60 s have not passed, at 146 s they have; then half goes."""
    life = knative_life(knative(), (40, 45, 5), (3, 200, 5), (40, 0, 20))
    assert life[42:73] == [20] * 31
    assert life[73] == 10


def test_knative_at_the_period_of_the_judge_panics_on_a_single_tick():
    """Panic cannot be shorter than the 15 s tick; the stable window is four of them."""
    assert knative_life(knative(tick_s=15.0), (9, 40, 4), (1, 90, 4))[-1] == 9
    assert knative_life(knative(tick_s=15.0), (9, 40, 4), (4, 60, 4))[-4:] == [5, 5, 6, 6]


def test_knative_restarts_in_panic_lest_it_throw_away_pods_that_it_found():
    life = knative_life(knative(), (32, 1, 7))
    assert life[:31] == [7] * 31
    assert life[31] == 3, "62 s: at most half of the pods go at once"


def test_knative_limits_how_far_one_decision_goes():
    assert knative_life(knative(max_scale_up_rate=2.0), (1, 1000, 3)) == [6]


def test_knative_delays_a_shrink_by_the_largest_decision_of_the_delay():
    """5 at 0 s is within 20 s at 15 s, but not at 30 s."""
    rule = knative(tick_s=15.0, stable_window_s=15.0, scale_down_delay_s=20.0, panic_threshold=10.0)
    assert knative_life(rule, (1, 50, 1), (2, 10, 1)) == [5, 5, 1]


def test_knative_starts_with_its_activation_scale_and_needs_none_when_idle():
    assert knative_life(knative(activation_scale=3), (1, 1, 0)) == [3]
    assert knative_life(knative(activation_scale=3), (1, 0, 0)) == [0]


def test_knative_holds_while_it_sees_nothing():
    assert knative_life(knative(), (40, math.nan, 9)) == [9] * 40


# Same time yesterday, in ticks of a minute: 10, 20, … 300 rps from noon to half past twelve.

NOON = 12 * 60


def seasonal(quantile: float, reactive: bool = False) -> SeasonalRule:
    return SeasonalRule(
        min_replicas=one(1),
        max_replicas=one(1000),
        quantile=one(quantile),
        utilization=one(0.5),
        reactive=one(reactive),
    )


def at_noon(rule: SeasonalRule, now_rps: float, silent: range = range(0), day: int = 1) -> int:
    """Replicas at noon of a day after the first, where some minutes of the first had no tick at all."""
    state = None
    for minute in range(day * 1440 + NOON + 1):
        if minute in silent:
            continue
        ramp = 10.0 * (minute - NOON + 1) if NOON <= minute < NOON + 30 else 5.0
        rate = now_rps if minute == day * 1440 + NOON else ramp
        tick = seen(7, rate=rate)
        state = rule.initial(tick, 0.0) if state is None else state
        state, replicas = rule.decide(state, tick, 60.0 * minute)
    return int(replicas[0])


@pytest.mark.parametrize(("quantile", "pods"), [(0.5, 30), (0.9, 54), (1.0, 60)])
def test_the_seasonal_rule_is_ready_for_the_half_hour_that_came_yesterday(quantile, pods):
    """The 15th, 27th and 30th of the thirty minutes (150, 270, 300 rps) at 5 rps per pod."""
    assert at_noon(seasonal(quantile), now_rps=5.0) == pods


def test_only_the_reactive_seasonal_rule_follows_a_load_above_yesterdays():
    assert at_noon(seasonal(0.5), now_rps=400.0) == 30
    assert at_noon(seasonal(0.5, reactive=True), now_rps=400.0) == 80


def test_the_seasonal_rule_follows_the_load_of_now_on_its_first_day():
    assert at_noon(seasonal(0.5), now_rps=42.0, day=0) == 9


def test_minutes_without_a_tick_are_unknown_and_not_those_of_the_day_before():
    """Only 12:20 to 12:29 are known: the fifth of ten is 250 rps."""
    assert at_noon(seasonal(0.5), 5.0, silent=range(NOON, NOON + 20)) == 50
    # All of yesterday's second half is missing, and the day before must not stand in for it.
    assert at_noon(seasonal(0.5), 42.0, silent=range(1440 + 600, 2880 + NOON), day=2) == 9


# Rows of the action table.


def test_a_table_row_takes_the_largest_rate_of_its_window_over_its_utilization():
    """Largest 200 of the last four ticks at 58 % of 10 rps: 34.5; 50 now: 8.6."""
    rows = [actions.TABLE.index(actions.Row(window, 0.58)) for window in (1, 4)]
    rates = [900.0, 100.0, 200.0, 50.0, 50.0]
    for row, pods in zip(rows, (9, 35), strict=True):
        rule = TableRowRule(min_replicas=one(1), max_replicas=one(1000), row=one(row))
        assert live(rule, [seen(7, rate=rate) for rate in rates], 15.0)[-1] == pods


def test_a_rise_is_carried_forward_and_a_fall_is_not():
    """From 50 to 150 within four ticks: in six more it would be 300; at 58 % of 10 rps that is 51.7 pods."""
    row = actions.TABLE.index(actions.Row(1, 0.58, carried=True))
    rule = TableRowRule(min_replicas=one(1), max_replicas=one(1000), row=one(row))
    for rates, pods in (
        ([50.0, 60.0, 80.0, 100.0, 150.0], 52),
        ([150.0, 100.0, 80.0, 60.0, 50.0], 9),
        ([150.0], 26),
    ):
        assert live(rule, [seen(7, rate=rate) for rate in rates], 15.0)[-1] == pods


def test_a_table_row_remembers_through_a_gap_and_holds_when_it_knows_nothing():
    rule = TableRowRule(min_replicas=one(1), max_replicas=one(1000), row=one(10))
    window = actions.TABLE[10].window_ticks
    answers = live(rule, [seen(7, rate=100.0)] + [seen(7, failed=True)] * window, 15.0, follow=False)
    assert answers == [31] * window + [7], "33 % of 10 rps per pod, then the replicas that are there"
