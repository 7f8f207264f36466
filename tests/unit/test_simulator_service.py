"""The queue: against closed forms, and laws that hold whatever the load."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy_simulator.arrivals import arrivals_from_normals, draw_arrivals
from understudy_simulator.service import (
    Flow,
    Service,
    histogram_quantile,
    mean_latency_s,
    serve,
    share_over,
)

SERVICE_S = 0.04


def erlang_wait_s(load, servers, cv):
    """Mean wait in an M/G/c queue: exact for M/M/c and M/D/1, else Lee and Longton's two-moment formula."""
    offered, inverse = load * servers, 1.0
    for k in range(1, servers + 1):
        inverse = 1 + inverse * k / offered
    blocked = 1 / inverse
    waits = blocked / (1 - load + load * blocked)
    return 0.5 * (1 + cv**2) * waits * SERVICE_S / (servers * (1 - load))


def column(value, n):
    return np.full(n, float(value))


def service(n, capacity_rps=1 / SERVICE_S, service_s=SERVICE_S, cv=1.0, timeout_s=60.0):
    return Service(column(capacity_rps, n), column(service_s, n), column(cv, n), column(timeout_s, n))


def run_steady(load, pods, cv, dt_s, lanes=150, steps=1200):
    """Poisson arrivals at a steady load; mean latency over arrivals and the share over a threshold."""
    rng = np.random.default_rng(1)
    workload = service(lanes, cv=cv)
    backlog, total, latency, over = np.zeros(lanes), 0.0, 0.0, 0.0
    for k in range(steps):
        arrivals = rng.poisson(load * pods / SERVICE_S * dt_s, lanes).astype(float)
        normals = rng.standard_normal(lanes)
        backlog, flow = serve(workload, backlog, arrivals, column(pods, lanes), normals, dt_s)
        if k > steps // 4:
            total += arrivals.sum()
            latency += (mean_latency_s(workload, flow) * arrivals).sum()
            over += (share_over(workload, flow, column(0.25, lanes)[:, None])[:, 0] * arrivals).sum()
    return latency / total, over / total


@pytest.mark.parametrize("dt_s", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("cv", [1.0, 0.0])
@pytest.mark.parametrize("pods", [1, 4, 20])
@pytest.mark.parametrize("load", [0.5, 0.8, 0.9, 0.95])
def test_mean_wait_agrees_with_the_closed_form(load, pods, cv, dt_s):
    mean_s, _ = run_steady(load, pods, cv, dt_s)
    exact_s = erlang_wait_s(load, pods, cv)
    assert mean_s - SERVICE_S == pytest.approx(exact_s, rel=0.15, abs=0.05 * SERVICE_S)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_share_over_the_threshold_agrees_with_mm1(load):
    """M/M/1: the time in the system is exponential with rate mu - lambda."""
    _, over = run_steady(load, 1, 1.0, 1.0)
    assert over == pytest.approx(math.exp(-0.25 * (1 - load) / SERVICE_S), abs=0.03)


def test_without_load_only_the_service_time_counts():
    workload = service(1)
    _, flow = serve(workload, np.zeros(1), np.array([1e-6]), np.array([10.0]), np.zeros(1), 1.0)
    edges_s = np.array([[0.02, 0.04, 0.25]])
    assert share_over(workload, flow, edges_s)[0] == pytest.approx(np.exp(-edges_s[0] / SERVICE_S), abs=1e-4)


def test_a_workload_without_pods_drops_everything_and_stays_finite():
    workload = service(1)
    after, flow = serve(workload, np.array([7.0]), np.array([3.0]), np.zeros(1), np.zeros(1), 1.0)
    assert after[0] == 0
    assert flow.dropped[0] == 10
    assert flow.admitted[0] == 0
    assert flow.served[0] == 0
    assert flow.utilization[0] == 0
    assert all(np.isfinite(getattr(flow, name)).all() for name in Flow.__dataclass_fields__)


def test_overload_saturates_utilization_and_bounds_the_wait_by_the_timeout():
    workload = service(1, timeout_s=5.0)
    backlog = np.zeros(1)
    for _ in range(60):
        backlog, flow = serve(workload, backlog, np.array([50.0]), np.ones(1), np.zeros(1), 1.0)
    assert flow.utilization[0] == 1
    assert flow.wait_last_s[0] == pytest.approx(5.0)
    assert flow.dropped[0] == pytest.approx(25.0)
    assert share_over(workload, flow, np.array([[0.25]]))[0, 0] == 1


loads = st.lists(st.floats(0, 400), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(
    loads,
    st.lists(st.integers(0, 9), min_size=25, max_size=25),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from([0.25, 1.0, 5.0]),
)
def test_every_request_is_served_dropped_or_waiting(arrivals, pods, seed, cv, dt_s):
    rng = np.random.default_rng(seed)
    workload, backlog, served, dropped = service(1, cv=cv, timeout_s=2.0), np.zeros(1), 0.0, 0.0
    for count, ready in zip(arrivals, pods, strict=False):
        backlog, flow = serve(
            workload, backlog, np.array([count]), np.array([float(ready)]), rng.standard_normal(1), dt_s
        )
        served, dropped = served + flow.served[0], dropped + flow.dropped[0]
        assert backlog[0] >= 0
        assert flow.served[0] >= 0
        assert flow.dropped[0] >= 0
        assert 0 <= flow.admitted[0] <= count + 1e-9
        assert 0 <= flow.utilization[0] <= 1
    assert served + dropped + backlog[0] == pytest.approx(sum(arrivals))


@settings(max_examples=200, deadline=None)
@given(
    loads,
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.floats(0.05, 3.0),
)
def test_one_more_pod_never_makes_it_worse(arrivals, pods, seed, cv, threshold_s):
    """Two lanes with the same arrivals and the same work in them; the second has one more pod."""
    rng = np.random.default_rng(seed)
    workload, ready = service(2, cv=cv, timeout_s=2.0), np.array([pods, pods + 1.0])
    backlog, missed, lost, came = np.zeros(2), np.zeros(2), np.zeros(2), 0.0
    for count in arrivals:
        came += count
        backlog, flow = serve(
            workload, backlog, np.full(2, count), ready, np.full(2, rng.standard_normal()), 1.0
        )
        over = share_over(workload, flow, np.full((2, 1), threshold_s))[:, 0]
        missed, lost = missed + flow.dropped + over * flow.admitted, lost + flow.dropped
        assert (lost + backlog)[1] <= (lost + backlog)[0] + 1e-9
        assert lost[1] <= lost[0] + 1e-9
        # Patience is in seconds, so more pods keep more of a burst waiting, and the wait of whoever comes next with it.
        assert missed[1] <= missed[0] + 1e-3 * came + 1e-9


@given(st.lists(st.floats(0.001, 30), min_size=2, max_size=8, unique=True), st.integers(0, 2**32 - 1))
def test_latency_shares_fall_with_the_threshold(edges, seed):
    rng = np.random.default_rng(seed)
    workload = service(50, cv=0.7)
    _, flow = serve(
        workload,
        rng.gamma(0.5, 50, 50),
        rng.gamma(0.5, 50, 50),
        rng.integers(0, 6, 50).astype(float),
        np.zeros(50),
        1.0,
    )
    over = share_over(workload, flow, np.broadcast_to(np.sort(edges), (50, len(edges))))
    assert ((over >= 0) & (over <= 1)).all()
    assert (np.diff(over, axis=1) <= 1e-12).all()


def test_histogram_quantile_is_the_one_of_prometheus():
    edges_s = (0.1, 0.2, 0.4)
    assert histogram_quantile(0.5, edges_s, np.array([[2.0, 6.0, 8.0, 8.0]]))[0] == pytest.approx(0.15)
    assert histogram_quantile(0.1, edges_s, np.array([[2.0, 6.0, 8.0, 8.0]]))[0] == pytest.approx(0.04)
    assert histogram_quantile(0.9, edges_s, np.array([[2.0, 2.0, 10.0, 10.0]]))[0] == pytest.approx(0.375)
    assert histogram_quantile(0.99, edges_s, np.array([[2.0, 6.0, 8.0, 10.0]]))[0] == 0.4
    assert np.isnan(histogram_quantile(0.99, edges_s, np.zeros((1, 4)))[0])


@pytest.mark.parametrize("dispersion", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("expected", [5.0, 60.0])
def test_arrivals_have_the_mean_and_dispersion_asked_for(expected, dispersion):
    rng = np.random.default_rng(3)
    whole = draw_arrivals(rng, np.full((200, 1000), expected), dispersion)
    assert np.array_equal(whole, whole.round())
    fluid = arrivals_from_normals(np.full(200_000, expected), dispersion, rng.standard_normal(200_000))
    for counts in (whole, fluid):
        assert counts.min() >= 0
        assert counts.mean() == pytest.approx(expected, rel=0.02)
        assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.05)


def test_no_load_brings_no_arrivals():
    assert draw_arrivals(np.random.default_rng(0), [0.0, 0.0], 4.0).tolist() == [0, 0]
    assert arrivals_from_normals(np.zeros(2), 4.0, np.array([-1.0, 2.0])).tolist() == [0, 0]
