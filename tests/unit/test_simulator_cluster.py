"""The cluster step: pods take their time, metrics lag, NumPy and torch agree, and the score is the protocol's."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy_policy.rows import as_torch_or_numpy
from understudy_policy.signals import Signal
from understudy_simulator import pods
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.cluster import (
    PROFILES,
    ClusterConfig,
    Draws,
    Profile,
    configure,
    initial,
    observe,
    step,
)
from understudy_simulator.score import score


def quiet(config: ClusterConfig) -> Draws:
    n = config.startup.shape[0]
    return Draws(startup=np.full(n, 0.5), service=np.zeros((n, config.sub_steps)))


def steady(config: ClusterConfig, rate_rps: float) -> np.ndarray:
    return np.full((config.startup.shape[0], config.sub_steps), rate_rps * config.sub_step_s)


def test_new_pods_become_ready_as_the_start_up_distribution_says():
    median_s, sigma, n = 30.0, 0.4, 20_000
    config = configure([PROFILES["web"]] * n, startup_median_s=median_s, startup_sigma=sigma)
    schedule = pods.all_ready(np.full(n, 2.0), config.startup)
    uniform = np.random.default_rng(0).random(n)
    for tick in range(1, 8):
        schedule = pods.advance(schedule, np.full(n, 5.0), config.startup, uniform)
        assert (pods.existing(schedule) == 5).all()
        share = (pods.ready(schedule) - 2).mean() / 3
        expected = 0.5 * math.erfc(-math.log(tick * 15 / median_s) / sigma / math.sqrt(2))
        assert share == pytest.approx(expected, abs=0.01)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=30),
    st.sampled_from([1.0, 30.0, 180.0]),
)
def test_pods_are_whole_and_never_ready_before_they_exist(changes, median_s):
    config = configure([PROFILES["web"]], startup_median_s=median_s)
    schedule = pods.all_ready(np.array([3.0]), config.startup)
    for replicas, uniform in changes:
        before = pods.ready(schedule)[0]
        schedule = pods.advance(schedule, np.array([float(replicas)]), config.startup, np.array([uniform]))
        assert pods.existing(schedule)[0] == replicas
        assert pods.ready(schedule)[0] >= min(before, replicas)
        assert (schedule == schedule.round()).all()
        assert (np.diff(schedule, axis=1) >= 0).all()


def test_no_draw_makes_more_pods_than_were_asked_for():
    created = np.arange(1, 20_000, dtype=np.float32)
    startup = np.repeat(np.array([[0.0, 0.5, 1.0, 1.0]], np.float32), len(created), axis=0)
    nearly_one = np.full(len(created), np.nextafter(np.float32(1), np.float32(0)))
    schedule = pods.advance(pods.all_ready(0 * created, startup), created, startup, nearly_one)
    assert schedule.dtype == np.float32
    np.testing.assert_array_equal(schedule[:, 1], created)
    np.testing.assert_array_equal(schedule[:, 0], np.ceil(created / 2))


def test_scale_in_takes_starting_pods_before_ready_ones():
    config = configure([PROFILES["web"]], startup_median_s=60.0)
    schedule = pods.all_ready(np.array([4.0]), config.startup)
    schedule = pods.advance(schedule, np.array([10.0]), config.startup, np.array([0.3]))
    assert (pods.ready(schedule)[0], pods.existing(schedule)[0]) == (4, 10)
    schedule = pods.advance(schedule, np.array([6.0]), config.startup, np.array([0.3]))
    assert (pods.ready(schedule)[0], pods.existing(schedule)[0]) == (4, 6)


def test_a_steady_cluster_shows_its_load_at_once_and_a_change_one_scrape_late():
    config = configure([PROFILES["web"]], cpu_request_cores=0.5)
    state = initial(config, np.array([6.0]), np.array([100.0]))
    seen = observe(config, state)[0]
    assert seen[Signal.REQUEST_RATE] == pytest.approx(100)
    assert seen[Signal.CPU_USAGE] == pytest.approx(2)
    assert seen[Signal.CPU_REQUEST] == 0.5  # of one pod
    assert seen[Signal.ERROR_RATE] == 0
    assert 0.1 < seen[Signal.LATENCY] < 0.25
    rates = []
    for _ in range(6):
        state, _ = step(config, state, np.array([6.0]), steady(config, 140.0), quiet(config))
        rates.append(observe(config, state)[0, Signal.REQUEST_RATE])
    assert rates == pytest.approx([100, 110, 120, 130, 140, 140])


def test_utilisation_saturates_so_cpu_hides_how_far_the_load_is_over():
    config = configure([PROFILES["web"]] * 2)
    state = initial(config, np.array([4.0, 4.0]), np.array([90.0, 90.0]))
    arrivals = steady(config, 1.0) * np.array([[150.0], [400.0]])
    for _ in range(8):
        state, outcome = step(config, state, np.array([4.0, 4.0]), arrivals, quiet(config))
    seen = observe(config, state)
    assert outcome.utilization == pytest.approx([1, 1])
    assert seen[:, Signal.CPU_USAGE] == pytest.approx([4, 4])
    assert outcome.violations == pytest.approx(outcome.arrivals)
    assert (seen[:, Signal.MISS_RATE] > 0.9).all()
    assert seen[1, Signal.ERROR_RATE] > seen[0, Signal.ERROR_RATE] > 0.2


def test_an_idle_workload_has_no_latency_rather_than_a_latency_of_zero():
    config = configure([PROFILES["web"]])
    state = initial(config, np.array([2.0]), np.array([0.0]))
    seen = observe(config, state)[0]
    assert seen[Signal.REQUEST_RATE] == 0
    assert np.isnan(seen[Signal.LATENCY])
    assert np.isnan(seen[Signal.ERROR_RATE])
    assert np.isnan(seen[Signal.MISS_RATE])


def test_pods_cost_from_creation_to_the_end_of_their_termination():
    config = configure([PROFILES["web"]], startup_median_s=180.0)
    state = initial(config, np.array([2.0]), np.array([10.0]))
    state, outcome = step(config, state, np.array([5.0]), steady(config, 10.0), quiet(config))
    assert outcome.pod_seconds[0] == 5 * 15
    assert (outcome.ready[0], outcome.pending[0]) == (2, 3)
    _, outcome = step(config, state, np.array([1.0]), steady(config, 10.0), quiet(config))
    assert outcome.pod_seconds[0] == 1 * 15 + 4 * config.termination_s


def run(config, replicas, arrivals, draws, start=6.0):
    """Step through `arrivals[T, N, sub_steps]` with `replicas[T, N]`; all states' and outcomes' arrays."""
    state = initial(config, replicas[0] * 0 + start, arrivals[0, :, 0] / config.sub_step_s)
    seen = []
    for k in range(replicas.shape[0]):
        state, outcome = step(config, state, replicas[k], arrivals[k], draws[k])
        seen.append({**dataclasses.asdict(outcome), "observed": observe(config, state)})
    return seen


def test_numpy_and_torch_give_the_same_cluster():
    torch = pytest.importorskip("torch")
    rng, profiles, ticks = np.random.default_rng(4), list(PROFILES.values()) * 7, 40
    n = len(profiles)
    config = configure(profiles, startup_median_s=rng.uniform(5, 180, n))
    capacity = np.array([p.capacity_rps for p in profiles])
    expected = capacity * rng.uniform(2, 14, (ticks, n)) * config.sub_step_s
    arrivals = draw_arrivals(rng, np.repeat(expected[..., None], config.sub_steps, axis=2), 2.0)
    replicas = rng.integers(0, 15, (ticks, n)).astype(float)
    draws = [Draws(rng.random(n), rng.standard_normal((n, config.sub_steps))) for _ in range(ticks)]
    in_numpy = run(config, replicas, arrivals, draws)
    in_torch = run(
        as_torch_or_numpy(config, torch.asarray),
        torch.asarray(replicas),
        torch.asarray(arrivals),
        [as_torch_or_numpy(d, torch.asarray) for d in draws],
    )
    for a, b in zip(in_numpy, in_torch, strict=True):
        for name, value in a.items():
            assert isinstance(b[name], torch.Tensor)
            np.testing.assert_allclose(value, b[name].numpy(), rtol=1e-9, atol=1e-9, err_msg=name)


def test_rows_do_not_touch_each_other():
    rng, profiles = np.random.default_rng(5), list(PROFILES.values())
    config = configure(profiles, startup_median_s=[20.0, 60.0, 100.0])
    arrivals, replicas = rng.gamma(5, 40, (20, 3, 3)), rng.integers(1, 20, (20, 3)).astype(float)
    draws = [Draws(rng.random(3), rng.standard_normal((3, 3))) for _ in range(20)]
    together = run(config, replicas, arrivals, draws)
    one = slice(1, 2)
    alone = run(
        as_torch_or_numpy(config, lambda a: a[one]),
        replicas[:, one],
        arrivals[:, one],
        [as_torch_or_numpy(d, lambda a: a[one]) for d in draws],
    )
    for a, b in zip(together, alone, strict=True):
        for name, value in a.items():
            np.testing.assert_array_equal(value[one], b[name], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(PROFILES)),
    st.integers(1, 10),
    st.sampled_from([3, 5, 15]),
)
def test_requests_are_conserved_and_more_pods_never_miss_more(seed, profile, replicas, sub_steps):
    rng = np.random.default_rng(seed)
    config = configure([PROFILES[profile]] * 2, startup_median_s=30.0, sub_steps=sub_steps)
    wanted = np.array([replicas, replicas + 1.0])
    state = initial(config, wanted, np.zeros(2))
    scale = PROFILES[profile].capacity_rps * config.sub_step_s
    totals = np.zeros((4, 2))
    for _ in range(20):
        arrivals = draw_arrivals(rng, rng.uniform(0, 12, (1, sub_steps)) * scale, 4.0).repeat(2, axis=0)
        draws = Draws(np.zeros(2), rng.standard_normal((1, sub_steps)).repeat(2, axis=0))
        state, outcome = step(config, state, wanted, arrivals, draws)
        totals += [outcome.arrivals, outcome.served, outcome.dropped, outcome.violations]
        assert totals[0] == pytest.approx(totals[1] + totals[2] + state.backlog)
        assert totals[3][1] <= totals[3][0] + 1e-9
        assert (totals[3] <= totals[0] + 1e-9).all()


def test_profiles_can_meet_their_slo_with_enough_pods_and_only_then():
    for name, profile in PROFILES.items():
        config = configure([profile] * 2)
        rate = np.full(2, 10 * profile.capacity_rps)
        state = initial(config, np.array([30.0, 9.0]), rate)
        for _ in range(10):
            state, outcome = step(
                config, state, np.array([30.0, 9.0]), steady(config, rate[0]), quiet(config)
            )
        enough, short = outcome.violations / outcome.arrivals
        assert enough < 0.005, name
        assert short > 0.5, name


def test_latency_is_seen_through_the_buckets_that_were_configured():
    seen, misses = [], []
    for edges in ((0.5, 1.0, 2.0), (0.8, 0.9)):
        config = configure([PROFILES["web"]], latency_edges_ratio=edges)
        state = initial(config, np.array([6.0]), np.array([100.0]))
        state, outcome = step(config, state, np.array([6.0]), steady(config, 100.0), quiet(config))
        assert outcome.within.shape == (1, len(edges))
        seen.append(observe(config, state)[0, Signal.LATENCY] / PROFILES["web"].latency_threshold_s)
        misses.append(observe(config, state)[0, Signal.MISS_RATE])
    # 99 % take less than 0.8 of the threshold, but fewer less than half of it: linear within the bucket reached.
    coarse, fine = seen
    assert 0.85 < coarse < 1.0
    assert 0.78 < fine < 0.8
    assert 0 <= misses[0] < 0.01
    assert np.isnan(misses[1]), "no bucket ends at the threshold"


@pytest.mark.parametrize("edges", [(), (1.0, 0.5), (0.0, 1.0), (1.0, 1.0), (float("nan"),)])
def test_latency_buckets_that_do_not_rise_are_refused(edges):
    with pytest.raises(ValueError, match=r"latency_edges_ratio is .*; give edges above 0 that rise"):
        configure([PROFILES["web"]], latency_edges_ratio=edges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity_rps": 0.0}, r"capacity_rps is 0.0; it must be above 0"),
        ({"service_cv": 1.5}, r"service_cv is 1.5; the service model knows 0 to 1"),
    ],
)
def test_a_profile_that_the_model_does_not_know_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Profile(**{**vars(PROFILES["web"]), **change})


def test_the_score_is_cost_plus_the_price_of_misses_beyond_the_budget():
    result = score(
        arrivals=np.array([25_000.0, 25_000.0]),
        violations=np.array([100.0, 1250.0]),
        pod_seconds=np.array([1500.0, 1200.0]),
        capacity_rps=np.array([25.0, 25.0]),
    )
    assert result.cost == pytest.approx([1.5, 1.2])
    assert result.violation == pytest.approx([0.004, 0.05])
    assert result.adjusted == pytest.approx([1.5, 1.2 + 10 * 0.04])
