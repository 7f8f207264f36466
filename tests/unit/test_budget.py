"""A price follows the error budget: down while misses are few, up when it is spent, and nowhere on what is unknown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from one_tick import settings_of, tick
from understudy_policy import budget, features
from understudy_policy.signals import Signal

HOUR_TICKS = 240
WINDOW_S = 12 * 3600.0


def one(value):
    return np.full(1, float(value))


def after(ticks, miss_rate, start=None, rate_rps=60.0, **asked):
    settings = settings_of(1, **asked)
    spent = start or budget.unknown(1)
    for _ in range(ticks):
        spent = budget.update(spent, settings, one(rate_rps), one(miss_rate), 15.0)
    return spent, settings


def price(spent, settings):
    return float(budget.price(budget.burn(spent, settings), settings)[0])


def test_where_nothing_is_known_the_given_price_is_in_force():
    for spent, settings in (after(0, 0.0), after(HOUR_TICKS, np.nan), after(HOUR_TICKS, 0.5, rate_rps=0.0)):
        assert price(spent, settings) == 10.0
        assert budget.burn(spent, settings) == pytest.approx([1.0])


def test_a_budget_that_is_spent_just_in_time_leaves_the_price_alone():
    spent, settings = after(24 * HOUR_TICKS, 0.01)
    assert budget.burn(spent, settings) == pytest.approx([1.0])
    assert price(spent, settings) == pytest.approx(10.0)


def test_unspent_the_price_sinks_to_a_third_and_overspent_it_rises_no_further_than_it_may():
    assert price(*after(96 * HOUR_TICKS, 0.0)) == pytest.approx(10.0 / np.e, rel=1e-3)
    assert price(*after(96 * HOUR_TICKS, 0.025)) == pytest.approx(40.0)
    cheap = one(4)
    assert price(*after(96 * HOUR_TICKS, 0.9, missed_request_price=cheap)) == pytest.approx(
        4.0 * np.exp(budget.MOST_EXCESS)
    )


def test_a_price_beyond_what_actors_learned_with_is_not_pulled_back_to_it():
    given = one(100)
    assert price(*after(96 * HOUR_TICKS, 0.2, missed_request_price=given)) == 100.0
    assert price(*after(96 * HOUR_TICKS, 0.0, missed_request_price=one(0.2))) == 0.2


def test_a_bad_hour_is_held_against_the_service_and_fades():
    worst, settings = after(HOUR_TICKS, 0.2, start=after(12 * HOUR_TICKS, 0.005)[0])
    assert price(worst, settings) > 20.0
    later, _ = after(48 * HOUR_TICKS, 0.005, start=worst)
    assert price(later, settings) < 10.0


def test_a_night_without_load_weighs_as_much_as_its_requests():
    night, settings = after(8 * HOUR_TICKS, 0.5, start=after(12 * HOUR_TICKS, 0.01)[0], rate_rps=0.06)
    assert budget.burn(night, settings) == pytest.approx([1.0], abs=0.1)


def test_while_telemetry_is_gone_nothing_is_made_up_and_the_price_returns_to_the_given_one():
    for missed in (0.0, 0.03):
        spent, settings = after(48 * HOUR_TICKS, missed)
        away = [abs(price(spent, settings) - 10.0)]
        for _ in range(4):
            spent, _ = after(12 * HOUR_TICKS, np.nan, start=spent)
            away.append(abs(price(spent, settings) - 10.0))
        assert away == sorted(away, reverse=True)
        assert away[0] > 5.0
        assert away[-1] < 0.4
        assert after(720 * HOUR_TICKS, np.nan, start=spent)[0].known[0] < 1e-6


def test_one_bad_request_after_idle_days_is_no_reason_to_panic():
    idle, _ = after(48 * HOUR_TICKS, np.nan, rate_rps=0.0)
    woken, settings = after(4, 1.0, start=idle, rate_rps=0.1)
    assert price(woken, settings) < 12.0


def test_a_window_that_was_switched_on_again_begins_anew():
    bad, settings = after(12 * HOUR_TICKS, 0.5)
    assert price(bad, settings) == 40.0
    off, _ = after(1, 0.5, start=bad, error_budget_window_s=one(0))
    assert off.known == 0.0
    assert price(*after(4, 0.5, start=off)) < 12.0


def test_what_prometheus_remembers_is_what_was_lived_through():
    settings, lived = settings_of(1), budget.unknown(1)
    rng = np.random.default_rng(0)
    rate, missed = rng.gamma(3.0, 20.0, (1, 24 * 12)), rng.random((1, 24 * 12)) ** 8
    rate[:, 60:100], missed[:, 60:100] = 0.0, np.nan  # idle
    missed[:, 150:160] = np.nan
    for k in range(24 * HOUR_TICKS):
        lived = budget.update(lived, settings, rate[:, k // 20], missed[:, k // 20], 15.0)
    read_back = budget.remembered(settings, rate, missed, 300.0)
    assert budget.burn(read_back, settings) == pytest.approx(budget.burn(lived, settings), rel=0.01)
    assert read_back.known == pytest.approx(lived.known, rel=0.01)


def test_without_a_window_the_price_is_the_given_one():
    off = one(0)
    assert price(*after(24 * HOUR_TICKS, 0.5, error_budget_window_s=off)) == 10.0


@given(
    miss_rates=st.lists(st.floats(0.0, 1.0) | st.just(np.nan), max_size=60),
    rate_rps=st.floats(0.0, 1e5),
    given_price=st.floats(0.1, 100.0),
    slo_target=st.floats(0.5, 0.9999),
    window_s=st.sampled_from([0.0, 15.0, 3600.0, WINDOW_S]),
)
def test_a_price_is_always_finite_and_within_what_was_promised(
    miss_rates, rate_rps, given_price, slo_target, window_s
):
    settings = settings_of(
        1,
        missed_request_price=one(given_price),
        slo_target=one(slo_target),
        error_budget_window_s=one(window_s),
    )
    spent = budget.unknown(1)
    for miss_rate in miss_rates:
        spent = budget.update(spent, settings, one(rate_rps), one(miss_rate), 15.0)
        assert 0.0 <= spent.known[0] <= 1.0
        now = price(spent, settings)
        assert given_price * 0.999 / np.e <= now <= given_price * np.exp(budget.MOST_EXCESS) * 1.001
        if window_s == 0.0:
            assert now == given_price


def test_misses_beyond_the_budget_cost_more_than_those_within():
    prices = [price(*after(24 * HOUR_TICKS, share)) for share in (0.0, 0.004, 0.01, 0.015, 0.02)]
    assert prices == sorted(set(prices))


def test_the_actor_is_shown_the_price_in_force():
    settings, _, decided = tick()
    assert decided.observation.missed_request_price == pytest.approx(settings.missed_request_price)
    _, _, missed = tick(value=(Signal.MISS_RATE, 1.0))
    column = [name for name, _ in features.SCHEMA].index("log_price")
    assert missed.observation.missed_request_price > settings.missed_request_price
    assert missed.observation.features[0, column] == pytest.approx(
        np.log(missed.observation.missed_request_price[0]), rel=1e-5
    )
