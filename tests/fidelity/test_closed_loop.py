"""The simulator against the demo's closed loop: real control plane, Prometheus and operator, one actor, one kill.

The runs are recordings (`demo_live.py`): in a fresh one, whatever else the machine does would be judged as well.
"""

import numpy as np
import pytest

import closed_loop

POD_HOURS_RATIO, MISSED_POINTS = 0.05, 0.01


@pytest.fixture(scope="module")
def runs():
    return closed_loop.load()


def check(runs, follow):
    drawn = [closed_loop.simulate(run, lanes=32, follow=follow) for run in runs]
    pooled = closed_loop.pool(runs, drawn)
    assert pooled.simulated_pod_hours == pytest.approx(pooled.pod_hours, rel=POD_HOURS_RATIO)
    return drawn, pooled


def test_with_the_replicas_of_the_operator_users_see_what_they_saw_in_the_demo(runs):
    drawn, pooled = check(runs, follow=True)
    assert pooled.simulated_missed_share == pytest.approx(pooled.missed_share, abs=MISSED_POINTS)
    for run, lanes in zip(runs, drawn, strict=True):
        ready = lanes.ready.mean(axis=1)[run.warmup :]
        assert np.abs(ready - run.ready[run.warmup :]).mean() < 0.5, run.name


def test_with_the_decision_program_in_the_loop_it_comes_to_the_same(runs):
    if not all(map(closed_loop.has_todays_actor, runs)):
        pytest.skip("the runs were recorded with another actor: record anew with demo_live.py")
    _, pooled = check(runs, follow=False)
    # Where an actor runs close to saturation, chance alone makes more of a difference than a point.
    tolerance = max(MISSED_POINTS, 2 * pooled.chance)
    assert pooled.simulated_missed_share == pytest.approx(pooled.missed_share, abs=tolerance)
