"""What the actor is shown of a load: what the last scrapes did, how rough it is, and what came at this time before."""

import numpy as np
import pytest

from one_tick import settings_of
from understudy_policy import decision, features, signals

NAMES = [name for name, _ in features.SCHEMA]
TICKS = np.arange(240)


def shown(rate_rps, **asked):
    """The features after an hour and more of a request rate; NaN: the query found nothing."""
    settings, state = settings_of(1, **asked), decision.initial_state(1)
    for k, rate in enumerate(rate_rps):
        moving = rate * (1.0 + 1e-5 * (k % 2))  # a rate that never changes by a bit is taken for a frozen one
        values = np.array([[moving, 0.1, 0.0, 2.0, 1.0, 0.01]])
        missing = np.where(np.isnan(values), int(signals.Cause.EMPTY), 0)
        seen = decision.Seen(
            samples=signals.Samples(values, np.full(values.shape, 1.0), missing),
            replicas=np.full(1, 8),
            ready=np.full(1, 8),
            authority=np.ones(1),
            override=np.full(1, -1),
            killed=np.zeros(1, np.int64),
            now_s=15.0 * k,
        )
        state, observation = decision.observe(settings, state, seen)
    return dict(zip(NAMES, observation.features[0].tolist(), strict=True))


def test_a_jump_shows_in_the_slopes_of_the_last_scrapes():
    rate = np.full(240, 50.0)
    rate[-3:] = [60.0, 75.0, 100.0]
    seen = shown(rate)
    for ago, before in ((1, 75.0), (2, 60.0), (4, 50.0)):
        name = f"slope_{ago}tick" + "s" * (ago > 1)
        assert seen[name] == pytest.approx(np.log(100.0 / before), abs=0.01)


def test_roughness_tells_noise_from_a_climb_of_the_same_spread():
    climb = np.linspace(50.0, 100.0, 240)
    rough = climb[np.random.default_rng(0).permutation(240)]
    assert shown(rough)["roughness_15min"] > 20 * shown(climb)["roughness_15min"]


def spikes(period):
    """A spike of three minutes to five times the load, due again in a tick: it last ended three minutes into now."""
    return np.where((TICKS + 1) % period < 12, 250.0, 50.0)


def test_what_came_half_an_hour_ago_announces_the_next_spike():
    seen, mean = shown(spikes(120)), spikes(120).mean()
    assert seen["half_hour_skill"] == pytest.approx(1.0, abs=1e-3)
    assert seen["half_hour_peak"] == pytest.approx(np.log(250.0 / mean), abs=0.01)
    assert seen["half_hour_next"] == pytest.approx(np.log(250.0 / mean), abs=0.1)


def test_what_came_an_hour_ago_announces_the_next_spike_where_half_an_hour_ago_came_none():
    seen, mean = shown(spikes(240)), spikes(240).mean()
    assert seen["hour_peak"] == pytest.approx(np.log(250.0 / mean), abs=0.01)
    assert seen["half_hour_peak"] == pytest.approx(np.log(50.0 / mean), abs=0.01)
    assert abs(seen["half_hour_skill"]) < 0.2


def test_noise_has_no_skill_and_no_load_no_ratios():
    noise = 50.0 + np.random.default_rng(1).normal(0.0, 5.0, 240)
    assert abs(shown(noise)["half_hour_skill"]) < 0.35
    still = shown(np.zeros(240))
    assert [still[name] for name in NAMES[28:]] == [0.0] * (features.F - 28)


def test_a_lost_scrape_is_left_out_and_makes_nothing_up():
    rate = spikes(120)
    whole = shown(rate)
    rate[[5, 130, 200]] = np.nan
    holes = shown(rate)
    assert holes["half_hour_skill"] == pytest.approx(whole["half_hour_skill"], abs=1e-3)
    assert holes["half_hour_peak"] == pytest.approx(whole["half_hour_peak"], abs=0.05)
    rate[-2] = np.nan
    assert shown(rate)["slope_1tick"] == 0.0


def test_what_calibration_found_is_told_and_what_nobody_looked_for_is_not_made_up():
    load = np.full(20, 50.0)
    prices, utilizations = np.array([[4.0, 16.0, np.nan]]), np.array([[0.84, 0.75, np.nan]])
    untold = shown(load)
    told = shown(load, calibrated_price=prices, calibrated_utilization=utilizations)
    assert told["calibrated_log_utilization"] == pytest.approx(np.log(0.75)), "a price of 10 is nearer to 16"
    assert (told["calibrated_known"], untold["calibrated_known"]) == (1.0, 0.0)
    assert untold["calibrated_log_utilization"] == 0.0
