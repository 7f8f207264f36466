"""The model's queue against closed forms, and the whole model against a simulation of every single request."""

import math

import pytest

import closed_forms
import scenarios
from closed_forms import LOADS, QUEUES, SERVICE_S, SUB_STEPS_S
from scenarios import SCENARIOS

QUICK = {"burst of half a minute", "overload with timeouts", "short timeout"}


def names(items):
    return [item.name for item in items]


@pytest.mark.parametrize("dt_s", SUB_STEPS_S)
@pytest.mark.parametrize("queue", QUEUES, ids=names(QUEUES))
def test_mean_latency_is_that_of_the_closed_form(queue, dt_s):
    for load in LOADS:
        mean_s, _ = closed_forms.simulate(queue, load, dt_s, lanes=100, steps=800)
        exact_s = queue.sojourn_s(load)
        assert mean_s == pytest.approx(exact_s, rel=0.1), f"load {load}"
        wait_s = pytest.approx(exact_s - SERVICE_S, rel=0.15, abs=0.05 * SERVICE_S)
        assert mean_s - SERVICE_S == wait_s, f"load {load}"


@pytest.mark.parametrize("dt_s", SUB_STEPS_S)
def test_share_over_a_threshold_is_that_of_mm1(dt_s):
    for load in LOADS:
        _, over = closed_forms.simulate(QUEUES[0], load, dt_s, lanes=100, steps=800)
        assert over == pytest.approx(closed_forms.mm1_over(load, 0.25), abs=0.04), f"load {load}"


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(s, id=s.name, marks=() if s.name in QUICK else pytest.mark.slow) for s in SCENARIOS],
)
def test_users_see_what_they_see_event_by_event(scenario):
    ours, exact = scenarios.model(scenario), scenarios.events(scenario)
    assert ours.missed_share == pytest.approx(exact.missed_share, abs=0.01)
    if math.isinf(exact.p95_s):
        assert math.isinf(ours.p95_s)
    else:
        assert ours.p95_s == pytest.approx(exact.p95_s, rel=0.1)
