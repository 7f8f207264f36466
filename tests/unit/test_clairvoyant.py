"""The bound is one: nothing that any sequence of replicas can do on small cases is cheaper, and it is not idle."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy_simulator import clairvoyant, cluster
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.clairvoyant import bound, cheapest, convex_gains, missed_requests, startup_paid_s
from understudy_simulator.cluster import PROFILES, Draws
from understudy_simulator.score import score

TICK_S, SUB_STEPS = 15.0, 3
SURE = 0.01  # as sigma: all pods start in the same time, so nobody is lucky


def falling(draw_from, ticks, pods):
    """Missed requests `[ticks, pods + 1]` that fall with every pod, convex or not."""
    steps = draw_from.random((ticks, pods)) ** 3
    return (
        np.concatenate([np.zeros((ticks, 1)), -np.cumsum(steps, axis=1)], axis=1) + steps.sum(axis=1)[:, None]
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ticks=st.integers(1, 5),
    levels=st.integers(1, 3),
    start=st.integers(1, 4),
    switch_on=st.floats(0.0, 3.0),
    cost=st.floats(0.0, 1.0),
    price=st.floats(0.0, 5.0),
)
def test_pod_by_pod_programming_finds_the_best_of_all_paths(
    seed, ticks, levels, start, switch_on, cost, price
):
    gains = -np.sort(-np.random.default_rng(seed).random((ticks, levels)), axis=1)
    saved = np.concatenate([np.zeros((ticks, 1)), np.cumsum(gains, axis=1)], axis=1)

    def total(path):
        rises = np.maximum(np.diff([min(start, levels + 1), *path]), 0).sum()
        pods = sum(n - 1 for n in path)
        return cost * pods + switch_on * rises - price * sum(saved[t, n - 1] for t, n in enumerate(path))

    best = min(total(path) for path in product(range(1, levels + 2), repeat=ticks))
    found = cheapest(gains, np.array([cost]), switch_on, start, np.array([price]))
    assert found[0] == pytest.approx(best, abs=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), ticks=st.integers(1, 6), pods=st.integers(1, 12))
def test_the_convex_function_is_nowhere_above_what_is_missed(seed, ticks, pods):
    missed = falling(np.random.default_rng(seed), ticks, pods)
    gains = convex_gains(missed)
    below = missed[:, :1] - np.cumsum(gains, axis=1)
    assert np.all(below <= missed[:, 1:] + 1e-9)
    assert np.all(np.diff(gains, axis=1) <= 1e-12)
    assert np.all(gains >= 0)


def test_a_curve_that_is_convex_already_stays_as_it_is():
    missed = np.array([[8.0, 4.0, 2.0, 1.0, 1.0]])
    np.testing.assert_allclose(convex_gains(missed), [[4.0, 2.0, 1.0, 0.0]])


@settings(max_examples=30, deadline=None)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    load=st.floats(0.2, 6.0),
    luck=st.floats(-2.5, 2.5),
)
def test_more_pods_never_miss_more(profile, load, luck):
    service = PROFILES[profile]
    arrivals = np.full((1, SUB_STEPS), load * service.capacity_rps * TICK_S / SUB_STEPS, np.float32)
    pods = np.arange(1, 14)
    missed = missed_requests(
        service, arrivals, np.full((1, SUB_STEPS), luck, np.float32), pods, TICK_S / SUB_STEPS
    )
    assert np.all(np.diff(missed[0]) <= 1e-3 * arrivals.sum())
    assert np.all(missed <= arrivals.sum() * (1 + 1e-5))


def every_path(profile, loads_pods, dispersion, startup_s, start, most, seed):
    """Adjusted cost of every sequence of 1 to `most` replicas on the cluster model, and the bound."""
    service, ticks = PROFILES[profile], len(loads_pods)
    rng = np.random.default_rng(seed)
    expected = np.array(loads_pods)[:, None].repeat(SUB_STEPS, 1) * service.capacity_rps * TICK_S / SUB_STEPS
    arrivals = draw_arrivals(rng, expected, dispersion).astype(np.float32)
    normals = rng.standard_normal((ticks, SUB_STEPS)).astype(np.float32)
    uniform = rng.random(ticks).astype(np.float32)
    paths = np.array(list(product(range(1, most + 1), repeat=ticks)), np.float32)
    n = len(paths)
    config = cluster.configure([service] * n, startup_s, SURE, tick_s=TICK_S, sub_steps=SUB_STEPS)
    state = cluster.initial(
        config, np.full(n, float(start)), np.full(n, loads_pods[0] * service.capacity_rps)
    )
    came, missed, pod_seconds = np.zeros((3, n))
    for t in range(ticks):
        chance = Draws(startup=np.full(n, uniform[t]), service=normals[t][None].repeat(n, 0))
        state, outcome = cluster.step(config, state, paths[:, t], arrivals[t][None].repeat(n, 0), chance)
        came += outcome.arrivals
        missed += outcome.violations
        pod_seconds += outcome.pod_seconds
    adjusted = score(came, missed, pod_seconds, np.full(n, service.capacity_rps)).adjusted
    found = bound(service, arrivals, normals, startup_s, SURE, start, 4 * most, TICK_S)
    return adjusted, found


@settings(max_examples=25, deadline=None)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    loads=st.lists(st.floats(0.3, 3.0), min_size=5, max_size=5),
    dispersion=st.sampled_from([1.0, 2.0, 8.0]),
    startup_s=st.sampled_from([14.0, 29.0, 44.0]),
    start=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_no_sequence_of_replicas_is_below_the_bound(profile, loads, dispersion, startup_s, start, seed):
    adjusted, found = every_path(profile, loads, dispersion, startup_s, start, 4, seed)
    assert len(adjusted) == 4**5
    assert found.adjusted <= adjusted.min() + 1e-4


def test_the_bound_pays_for_waiting_as_everybody_does():
    service, ticks = PROFILES["web"], 960
    load = np.where(np.arange(ticks) // 120 % 2 == 0, 2.0, 12.0)
    arrivals = np.repeat(load[:, None], SUB_STEPS, 1) * service.capacity_rps * TICK_S / SUB_STEPS
    nothing = np.zeros((ticks, SUB_STEPS))
    by_startup = [bound(service, arrivals, nothing, s, 0.4, 3, 64, TICK_S).adjusted for s in (15, 180, 600)]
    assert by_startup[0] < by_startup[1] < by_startup[2]


def test_on_a_steady_load_the_bound_is_close_to_the_best_number_of_pods():
    service, ticks, pods = PROFILES["web"], 480, 10.0
    arrivals = np.full((ticks, SUB_STEPS), pods * service.capacity_rps * TICK_S / SUB_STEPS, np.float32)
    nothing = np.zeros((ticks, SUB_STEPS), np.float32)
    found = bound(service, arrivals, nothing, 30.0, 0.4, 13, 64, TICK_S)
    levels = np.arange(10, 16)
    missed = (
        missed_requests(service, arrivals, nothing, levels, TICK_S / SUB_STEPS).sum(axis=0) / arrivals.sum()
    )
    best = np.min(levels / pods + 10 * np.maximum(missed - 0.01, 0))
    assert 0.93 * best <= found.adjusted <= best


def test_needed_pods_rise_with_the_load_and_keep_the_objective():
    service, ticks = PROFILES["web"], 80
    load = np.where(np.arange(ticks) < 40, 2.0, 8.0)
    arrivals = np.repeat(load[:, None], SUB_STEPS, 1) * service.capacity_rps * TICK_S / SUB_STEPS
    nothing = np.zeros((ticks, SUB_STEPS))
    needed = bound(service, arrivals, nothing, 30.0, 0.4, 3, 64, TICK_S).needed
    assert 2 <= needed[20] <= 4 < 8 <= needed[70] <= 11
    missed = missed_requests(service, arrivals[70:71], nothing[70:71], needed[70:71] - np.array([0, 1]), 5.0)[
        0
    ]
    share = missed / arrivals[70].sum()
    assert share[0] <= 0.01 < share[1]


def test_a_pod_is_charged_no_more_than_the_median_and_no_more_than_its_mean_in_whole_ticks():
    assert startup_paid_s(180.0, 0.4, TICK_S) == pytest.approx(180.0)
    draws = np.exp(np.log(30.0) + 0.4 * np.random.default_rng(0).standard_normal(200_000))
    whole_ticks = np.floor(draws / TICK_S) * TICK_S
    assert startup_paid_s(30.0, 0.4, TICK_S) <= min(30.0, 1.01 * whole_ticks.mean())


def test_only_prices_that_weak_duality_allows_are_tried():
    for price, work in clairvoyant.PRICES:
        assert 0 <= work <= 1
        assert work <= price <= 10
