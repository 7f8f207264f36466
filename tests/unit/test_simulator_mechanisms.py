"""What reality adds to queue and pods: warm-up, retries, nodes, failing scrapes, a shared processor, and luck."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy_policy.rows import as_torch_or_numpy
from understudy_policy.signals import Signal
from understudy_simulator import chance, nodes, pods
from understudy_simulator.cluster import PROFILES, Draws, configure, draw, initial, observe, step
from understudy_simulator.nodes import AMPLE, Nodes
from understudy_simulator.serving import Retries, Warmup

WEB = PROFILES["web"]


def ones(*values):
    return np.array(values, float)


def machines(free_pods, pods_per_node=4.0, idle_s=60.0, startup_s=60.0):
    n = len(free_pods)
    startup = pods.startup_cdf(np.full(n, startup_s), np.full(n, 0.001), 15.0, startup_s)
    return Nodes(np.array(free_pods, float), np.full(n, pods_per_node), np.full(n, idle_s), startup)


def play(config, replicas, rate_rps, ticks, start=None):
    """Steady rates without chance; the outcomes of every tick as a dict of arrays `[T, N]`, and what was observed."""
    n = config.startup.shape[0]
    replicas, rate_rps = np.broadcast_to(replicas, n).astype(float), np.broadcast_to(rate_rps, n)
    state = initial(config, replicas if start is None else np.full(n, float(start)), rate_rps.astype(float))
    arrivals = np.repeat(rate_rps[:, None] * config.sub_step_s, config.sub_steps, axis=1)
    quiet = Draws(np.full(n, 0.5), np.zeros((n, config.sub_steps)), np.full(n, 0.5), np.full(n, 0.5))
    outcomes, seen = [], []
    for _ in range(ticks):
        state, outcome = step(config, state, replicas, arrivals, quiet)
        outcomes.append(dataclasses.asdict(outcome))
        seen.append(observe(config, state))
    return {name: np.array([o[name] for o in outcomes]) for name in outcomes[0]}, np.array(seen)


def test_cold_pods_are_slow_and_warm_up_within_minutes():
    warmup = Warmup(slowdown=ones(1.0, 4.0), decay_s=ones(60.0, 60.0))
    config = configure([WEB] * 2, startup_median_s=15.0, startup_sigma=0.01, warmup=warmup)
    ran, _ = play(config, replicas=8.0, rate_rps=100.0, ticks=40, start=2)
    slower = ran["latency_mean_s"][:, 1] / ran["latency_mean_s"][:, 0]
    just_ready = int(np.argmax(ran["ready"][:, 1] == 8)) + 1
    assert ran["utilization"][just_ready, 1] > 1.5 * ran["utilization"][just_ready, 0]
    assert slower[just_ready] > 1.5
    assert slower[just_ready + 20] == pytest.approx(1, abs=0.02)


def test_warm_pods_stay_warm_when_others_are_removed_and_come_back():
    warmup = Warmup(slowdown=ones(4.0), decay_s=ones(60.0))
    config = configure([WEB], startup_median_s=1.0, warmup=warmup)
    steady, _ = play(config, replicas=4.0, rate_rps=20.0, ticks=10)
    assert steady["latency_mean_s"][:, 0] == pytest.approx(np.full(10, steady["latency_mean_s"][0, 0]))


def test_retries_keep_an_overload_alive_after_its_cause_has_gone():
    retries = Retries(share=ones(0.0, 0.9), backoff_s=ones(20.0, 20.0))
    config = configure([dataclasses.replace(WEB, timeout_s=1.0)] * 2, retries=retries)
    state = initial(config, ones(4, 4), ones(95, 95))
    quiet = Draws(np.full(2, 0.5), np.zeros((2, 3)))
    lost = np.zeros((2, 30))
    for tick in range(30):
        rate = 160.0 if tick < 6 else 95.0
        state, outcome = step(config, state, ones(4, 4), np.full((2, 3), 5 * rate), quiet)
        lost[:, tick] = outcome.dropped / outcome.arrivals
        assert outcome.arrivals == pytest.approx(np.full(2, 15 * rate))
        assert (outcome.violations <= outcome.arrivals * (1 + 1e-9)).all()
        assert outcome.retried == pytest.approx(ones(0.0, 0.9) * outcome.dropped)
    assert lost[0, 8:].max() == 0
    assert lost[1, 8:20].min() > 0.2


def test_every_attempt_is_answered_given_up_or_still_waiting():
    retries = Retries(share=ones(0.6), backoff_s=ones(10.0))
    config = configure([dataclasses.replace(WEB, timeout_s=1.0)], retries=retries)
    rng = np.random.default_rng(1)
    state, sent, ended = initial(config, ones(4), ones(0)), 0.0, 0.0
    for _ in range(30):
        arrivals = rng.uniform(0, 900, (1, 3))
        state, outcome = step(config, state, ones(4), arrivals, Draws(ones(0.5), rng.standard_normal((1, 3))))
        sent += arrivals.sum() + outcome.retried[0]
        ended += outcome.served[0] + outcome.dropped[0]
        assert sent == pytest.approx(ended + state.backlog[0] + state.retrying[0])


def test_a_pod_without_room_waits_for_a_node_first():
    config = configure([WEB] * 2, startup_median_s=10.0, startup_sigma=0.01, nodes=machines([3, AMPLE]))
    ran, _ = play(config, replicas=10.0, rate_rps=10.0, ticks=12, start=3)
    ready = ran["ready"]
    with_room = int(np.argmax(ready[:, 1] == 10))
    with_nodes = int(np.argmax(ready[:, 0] == 10))
    assert with_nodes - with_room == 4  # the node's minute
    assert (ready[:with_nodes, 0] == 3).all()
    assert (ran["pending"] + ready == 10).all()
    assert ran["node_seconds"][:, 0] == pytest.approx(np.full(12, 2 * 15.0))  # seven pods, four to a node
    assert (ran["node_seconds"][:, 1] == 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 30), st.integers(1, 9))
def test_pods_never_run_where_there_is_no_room(wanted, free, per_node):
    own = machines([free], pods_per_node=float(per_node))
    state = nodes.initial(own, ones(wanted[0]))
    for replicas in wanted:
        before = pods.ready(state.schedule)[0]
        state, hosted, count = nodes.provide(own, state, ones(replicas), ones(0.5), 15.0)
        assert hosted[0] <= min(replicas, free + per_node * max(before, pods.ready(state.schedule)[0]))
        assert count[0] * per_node + free >= replicas
        assert hosted[0] == hosted[0].round()


def test_nodes_are_kept_for_their_idle_time_and_then_given_back():
    own = machines([0], idle_s=60.0)
    state, counts = nodes.initial(own, ones(8)), []
    for _ in range(8):
        state, _, count = nodes.provide(own, state, ones(4), ones(0.5), 15.0)
        counts.append(count[0])
    assert counts == [2, 2, 2, 2, 1, 1, 1, 1]


def test_signals_stand_still_and_age_while_scrapes_fail():
    config = configure([WEB] * 2, dropout=ones(0.3, 0.3))
    state = initial(config, ones(6, 6), ones(100, 100))
    luck = Draws(np.full(2, 0.5), np.zeros((2, 3)), scrape=ones(0.9, 0.1))
    ages, rates = [], []
    for _ in range(4):
        state, _ = step(config, state, ones(6, 6), np.full((2, 3), 5 * 140.0), luck)
        ages.append(state.signals_age_s)
        rates.append(observe(config, state)[:, Signal.REQUEST_RATE])
    assert np.array(ages).tolist() == [[0, 15], [0, 30], [0, 45], [0, 60]]
    assert np.array(rates)[:, 1] == pytest.approx(np.full(4, 100.0))
    assert rates[-1][0] == pytest.approx(130)


def test_lag_and_window_of_the_metrics_are_every_workloads_own():
    config = configure([WEB] * 2, metric_lag_s=ones(0, 30), metric_window_s=ones(15, 30))
    state = initial(config, ones(6, 6), ones(100, 100))
    luck, rates = Draws(np.full(2, 0.5), np.zeros((2, 3))), []
    for _ in range(4):
        state, _ = step(config, state, ones(6, 6), np.full((2, 3), 5 * 140.0), luck)
        rates.append(observe(config, state)[:, Signal.REQUEST_RATE])
    assert np.array(rates)[:, 0] == pytest.approx([140, 140, 140, 140])
    assert np.array(rates)[:, 1] == pytest.approx([100, 100, 120, 140])


def test_a_shared_processor_stretches_requests_instead_of_queueing_them():
    profile = dataclasses.replace(WEB, service_cv=0.3, latency_threshold_s=0.055)
    config = configure([profile] * 2, sharing=ones(0, 1))
    ran, _ = play(config, replicas=4.0, rate_rps=85.0, ticks=10)
    in_turn, shared = ran["violations"][-1] / ran["arrivals"][-1]
    assert shared > in_turn  # all requests are longer, and few of them are much longer
    assert ran["latency_mean_s"][-1, 1] > ran["latency_mean_s"][-1, 0]


def everything(n, rng):
    """Workloads with all mechanisms, every one of them switched off by its own numbers in some rows."""
    return configure(
        [list(PROFILES.values())[k % 3] for k in range(n)],
        startup_median_s=rng.uniform(10, 180, n),
        metric_lag_s=rng.uniform(0, 30, n),
        metric_window_s=rng.uniform(15, 90, n),
        sharing=(np.arange(n) % 2).astype(float),
        dropout=np.where(np.arange(n) % 3 == 0, 0.0, 0.1),
        warmup=Warmup(np.where(np.arange(n) % 4 == 0, 1.0, 3.0), rng.uniform(30, 120, n)),
        retries=Retries(np.where(np.arange(n) % 5 == 0, 0.0, 0.5), rng.uniform(5, 60, n)),
        nodes=machines(np.where(np.arange(n) % 2 == 0, AMPLE, 6.0)),
    )


def test_numpy_and_torch_give_the_same_cluster_with_everything_switched_on():
    torch = pytest.importorskip("torch")
    rng, n = np.random.default_rng(3), 24
    config = everything(n, rng)
    rate = config.service.capacity_rps * rng.uniform(1, 12, n)
    seeds, replicas = np.arange(n, dtype=np.int32), rng.integers(0, 15, (30, n)).astype(float)

    def play(convert):
        own, rates = as_torch_or_numpy(config, convert), convert(rate)
        state = initial(own, convert(np.full(n, 6.0)), rates)
        ran = []
        for tick in range(30):
            arrivals, draws = draw(own, rates, convert(np.full(n, 2.0)), convert(seeds), tick)
            state, outcome = step(own, state, convert(replicas[tick]), arrivals, draws)
            ran.append({**dataclasses.asdict(outcome), "observed": observe(own, state)})
        return ran

    for a, b in zip(play(np.asarray), play(torch.asarray), strict=True):
        for name, value in a.items():
            # The draws are float32: their logarithms and sines differ in the last digit between the libraries.
            np.testing.assert_allclose(value, b[name].numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_single_precision_is_enough():
    rng, n = np.random.default_rng(3), 60
    config = everything(n, rng)
    rate = config.service.capacity_rps * rng.uniform(1, 12, n)
    seeds, replicas = np.arange(n, dtype=np.int32), rng.integers(4, 15, (200, n)).astype(float)
    missed = []
    for dtype in (np.float64, np.float32):
        own = as_torch_or_numpy(config, lambda a, dtype=dtype: a.astype(dtype))
        state = initial(own, np.full(n, 6.0, dtype), rate.astype(dtype))
        total = np.zeros((2, n))
        for tick in range(200):
            arrivals, draws = draw(own, rate.astype(dtype), np.full(n, 2.0, dtype), seeds, tick)
            state, outcome = step(own, state, replicas[tick].astype(dtype), arrivals, draws)
            assert all(value.dtype == dtype for value in dataclasses.asdict(outcome).values())
            total += [outcome.violations, outcome.arrivals]
        missed.append(total[0] / total[1])
    assert missed[1] == pytest.approx(missed[0], abs=2e-3)


def test_equal_seeds_have_equal_luck_and_others_do_not():
    seeds = np.array([7, 7, 8], np.int32)
    first, second = chance.uniforms(seeds, 5, 2)
    assert first[0] == first[1] != first[2]
    assert first[0] != second[0]
    assert chance.uniforms(seeds, 6, 1)[0][0] != first[0]
    assert chance.uniforms(seeds[2:], np.array([5], np.int32), 1)[0][0] == first[2]


def test_draws_are_spread_as_they_should_be():
    from scipy import stats

    seeds = np.arange(20_000, dtype=np.int32)
    uniform = np.concatenate(chance.uniforms(seeds, 3, 4))
    normal = np.concatenate(chance.normals(seeds, 3, 4))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    # Neither along the ticks, nor between neighbours, nor between the draws of one tick is there a pattern.
    along = np.stack([chance.normals(seeds[:500], tick, 1)[0] for tick in range(200)])
    pairs = [(along[:-1], along[1:]), (along[:, :-1], along[:, 1:]), tuple(chance.normals(seeds, 9, 2))]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
