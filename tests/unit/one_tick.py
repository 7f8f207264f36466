"""One tick of the decision program for tests that need a decision and do not care how it was reached."""

import dataclasses

import numpy as np

from understudy_policy import actions, decision, signals
from understudy_policy.references.behavior import default_behavior
from understudy_policy.settings import REFERENCE_RATE, Settings

CAPACITY_RPS = 10.0


def settings_of(n, **changes):
    """Settings of n equal policies whose reference follows the request rate."""
    whole, share = (lambda value: np.full(n, value, np.int64)), (lambda value: np.full(n, float(value)))
    settings = Settings(
        min_replicas=whole(2),
        max_replicas=whole(80),
        latency_threshold_s=share(0.25),
        slo_target=share(0.99),
        missed_request_price=share(10),
        given_capacity_rps=share(CAPACITY_RPS),
        error_budget_window_s=share(12 * 3600),
        calibrated_price=np.full((n, 1), np.nan),
        calibrated_utilization=np.full((n, 1), np.nan),
        reference_signal=whole(REFERENCE_RATE),
        reference_target=share(0.7),
        behavior=default_behavior(n, np.zeros(1)),
        below_reference=share(0.5),
        above_reference=share(10.0),
        utilization_ceiling=share(1.5),
        hold_on_kill=np.zeros(n, bool),
        stale_after_s=share(60),
    )
    return dataclasses.replace(settings, **changes)


def tick(
    n=1, *, current=8, rate_rps=60.0, authority=0.5, row=25, killed=0, value=None, settled=True, model=True
):
    """One tick of n equal workloads after an hour of the same load: settings, state and decision."""
    settings = settings_of(n)
    state = decision.initial_state(n)
    if settled:
        for k in range(240):
            state.history.advance(15.0 * k, np.full(n, rate_rps + k % 2))
        state.ticks_seen[:] = 240
    state.replicas[:] = current
    values = np.tile([rate_rps, 0.1, 0.0, 2.0, 1.0, 0.01], (n, 1))
    if value is not None:
        values[:, int(value[0])] = value[1]
    seen = decision.Seen(
        samples=signals.Samples(values, np.full(values.shape, 1.0), np.zeros(values.shape, np.int64)),
        replicas=np.full(n, current, np.int64),
        ready=np.full(n, max(current, 0), np.int64),
        authority=np.full(n, authority),
        override=np.full(n, -1, np.int64),
        killed=np.full(n, killed, np.int64),
        now_s=15.0 * 240,
    )
    state, observation = decision.observe(settings, state, seen)
    probabilities = np.full((n, len(actions.TABLE)), 0.29 / (len(actions.TABLE) - 1))
    probabilities[:, row] = 0.71
    if not model:
        probabilities[:] = np.nan
    state, decided = decision.decide(settings, state, observation, probabilities)
    return settings, state, decided
