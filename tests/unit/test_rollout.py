"""Authority grows with the canary's own time: never by a clock that was set back, never by an earlier canary."""

import pytest

from one_policy import body
from understudy_operator.rollout import Canaries, authority
from understudy_policy.api import RLPolicy

STARTED = {"canaryStartedAt": "2026-01-01T00:00:00Z"}
STARTED_S = 1_767_225_600.0


def spec(mode="Canary"):
    rollout = {"steps": [0.1, 0.5, 1.0], "stepDuration": "30m"}
    return RLPolicy.model_validate(body(mode=mode, rollout=rollout)).spec


@pytest.mark.parametrize(
    ("age_s", "granted"), [(0, 0.1), (1799, 0.1), (1800, 0.5), (3600, 1.0), (1e9, 1.0), (-0.5, 0.1)]
)
def test_a_canary_climbs_with_time_and_not_because_the_clock_was_set_back(age_s, granted):
    assert authority(spec(), age_s) == granted


def test_a_restart_goes_on_where_the_status_says():
    assert Canaries().began_s("u1", spec(), STARTED, STARTED_S + 4000) == STARTED_S
    assert Canaries().began_s("u1", spec(), {}, 5.0) == 5.0


def test_a_canary_after_a_kill_begins_at_its_first_step_even_if_the_status_still_tells_of_the_one_before():
    canaries, now_s = Canaries(), STARTED_S + 90_000
    assert canaries.began_s("u1", spec(), STARTED, now_s) == STARTED_S
    assert canaries.began_s("u1", spec("Off"), STARTED, now_s + 15) is None
    assert canaries.began_s("u1", spec(), STARTED, now_s + 30) == now_s + 30
    assert canaries.began_s("u1", spec(), STARTED, now_s + 45) == now_s + 30


def test_what_exists_no_more_is_forgotten():
    canaries = Canaries()
    canaries.began_s("u1", spec(), {}, 5.0)
    canaries.keep({"u2"})
    assert canaries.began_s("u1", spec(), {}, 9.0) == 9.0
