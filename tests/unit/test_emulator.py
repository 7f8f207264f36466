"""The emulator: its metrics parse, its counters only rise, and pods and load do to latency what they do in life."""

import asyncio
import json
import time

import numpy as np
import pytest
import requests
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from understudy_demo.emulator import Emulator, Workload, open_load, replay
from understudy_demo.emulator.__main__ import read_workload
from understudy_demo.emulator.exposition import Exposition
from understudy_demo.emulator.fleet import Fault, Fleet
from understudy_demo.emulator.pod_watch import follow_pods
from understudy_simulator.cluster import PROFILES
from understudy_simulator.service import histogram_quantile
from understudy_simulator.traces import Trace

STEP_S = 0.25


def fleet_of(rates, pods=2):
    fleet = Fleet([Workload("shop", f"app{k}", lambda _, r=r: r) for k, r in enumerate(rates)], seed=1)
    for k in range(len(rates)):
        for p in range(pods):
            fleet.set_pod("shop", f"app{k}-{p}", f"app{k}", serving=True)
    return fleet


def advance(fleet, duration_s, start_s=0.0):
    for k in range(round(duration_s / STEP_S)):
        fleet.advance(start_s + k * STEP_S, STEP_S)


def scrape(source):
    """All samples by name and labels, as a Prometheus would read them."""
    text = (source.render() if isinstance(source, Exposition) else source).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def total(samples, name, **labels):
    matching = [
        value
        for (sample, its), value in samples.items()
        if sample == name and labels.items() <= dict(its).items()
    ]
    assert matching, f"no series {name} {labels}"
    return sum(matching)


def p99_s(samples, before, **labels):
    edges = sorted(
        {float(dict(its)["le"]) for (name, its) in samples if name == "http_request_duration_seconds_bucket"}
    )
    counts = [
        total(samples, "http_request_duration_seconds_bucket", le=le, **labels)
        - total(before, "http_request_duration_seconds_bucket", le=le, **labels)
        for le in (*(f"{e:g}" for e in edges[:-1]), "+Inf")
    ]
    return histogram_quantile(0.99, edges[:-1], np.array([counts]))[0]


@pytest.mark.parametrize("per_pod", [True, False])
def test_metrics_parse_and_add_up(per_pod):
    fleet = fleet_of([30.0, 10.0])
    exposition = Exposition(fleet, latency_per_pod=per_pod)
    advance(fleet, 30)
    seen = scrape(exposition)
    arrived = total(seen, "emulator_requests_total", workload="app0")
    assert total(seen, "http_requests_total", service="app0") == pytest.approx(arrived, rel=0.05)
    assert total(seen, "http_request_duration_seconds_count", service="app0") == pytest.approx(
        arrived, rel=0.05
    )
    assert total(seen, "container_cpu_usage_seconds_total", pod="app0-1") == pytest.approx(
        30 * 30 / 25 / 2, rel=0.1
    )
    assert total(seen, "kube_pod_container_resource_requests", resource="cpu") == 4
    assert total(seen, "namespace_workload_pod:kube_pod_owner:relabel", workload="app1") == 2
    assert total(seen, "emulator_pod_seconds_total", workload="app0") == pytest.approx(60)
    assert total(seen, "emulator_load_rps", workload="app1") == 10
    buckets = [
        value
        for (name, its), value in seen.items()
        if name.endswith("_bucket") and dict(its)["service"] == "app0"
    ]
    assert buckets[:12] == sorted(buckets[:12])


def test_counters_rise_and_end_with_their_pod():
    fleet = fleet_of([40.0])
    exposition = Exposition(fleet)
    before = {}
    for second in range(20):
        if second == 5:
            fleet.set_pod("shop", "late", "app0", serving=True)
        if second == 10:
            fleet.set_pod("shop", "app0-0", "app0", serving=False)  # terminating: idle, but still there
        if second == 15:
            fleet.remove_pod("shop", "app0-0")
        advance(fleet, 1, start_s=second)
        now = scrape(exposition)
        assert all(now[key] >= value for key, value in before.items() if key in now)
        gone = {dict(its).get("pod") for (_, its) in before.keys() - now.keys()}
        assert gone == ({"app0-0"} if second == 15 else set())
        if second in (11, 12):
            idle = [total(samples, "http_requests_total", pod="app0-0") for samples in (before, now)]
            assert idle[0] == idle[1] > 0
        before = now
    assert "late" in {dict(its).get("pod") for (_, its) in before}


def test_a_pod_that_is_not_ready_serves_nothing_and_has_no_series_yet():
    fleet = fleet_of([10.0], pods=1)
    fleet.set_pod("shop", "starting", "app0", serving=False)
    fleet.set_pod("shop", "stranger", "other", serving=True)
    advance(fleet, 5)
    seen = scrape(Exposition(fleet))
    assert {dict(its).get("pod") for (_, its) in seen} == {"app0-0", None}
    assert fleet.ready().tolist() == [1]
    assert total(seen, "emulator_pod_seconds_total") == pytest.approx(10)


def test_latency_rises_under_overload_and_falls_with_more_pods():
    fleet = fleet_of([30.0])
    exposition = Exposition(fleet)
    start = scrape(exposition)
    advance(fleet, 30)
    calm = scrape(exposition)
    fleet.rates[0] = lambda _: 80.0
    advance(fleet, 60, start_s=30)
    overloaded = scrape(exposition)
    for k in range(4):
        fleet.set_pod("shop", f"more{k}", "app0", serving=True)
    advance(fleet, 30, start_s=90)
    cleared = scrape(exposition)
    advance(fleet, 30, start_s=120)
    relieved = scrape(exposition)
    assert 0.1 < p99_s(calm, start) < 0.5
    assert p99_s(overloaded, calm) > 2.5
    assert p99_s(relieved, cleared) < 0.5
    # Served requests saturate at the capacity; what is given up shows as errors.
    served = total(overloaded, "http_requests_total", code="200") - total(
        calm, "http_requests_total", code="200"
    )
    assert served == pytest.approx(50 * 60, rel=0.05)
    assert total(overloaded, "http_requests_total", code="504") > 500
    assert total(overloaded, "emulator_violations_total") > 0.8 * 80 * 60
    cpu = total(overloaded, "container_cpu_usage_seconds_total") - total(
        calm, "container_cpu_usage_seconds_total"
    )
    assert cpu == pytest.approx(2 * 60, rel=0.05)


def test_errors_have_no_series_until_there_is_one():
    fleet = fleet_of([10.0])
    advance(fleet, 5)
    assert "504" not in Exposition(fleet).render().decode()


def test_without_pods_everything_is_dropped_and_known_to_the_truth_alone():
    fleet = fleet_of([20.0], pods=0)
    advance(fleet, 10)
    seen = scrape(Exposition(fleet))
    assert total(seen, "emulator_dropped_total") == total(seen, "emulator_requests_total") > 100
    assert not any(name == "http_requests_total" for name, _ in seen)


@pytest.mark.parametrize(("fault", "value"), [(Fault.NAN, np.nan), (Fault.INF, np.inf), (Fault.BOGUS, 1e12)])
def test_broken_values_touch_one_workload_and_not_the_truth(fault, value):
    fleet = fleet_of([10.0, 10.0])
    exposition = Exposition(fleet)
    fleet.set_fault("shop", "app0", fault)
    advance(fleet, 10)
    seen = scrape(exposition)
    for name in ("http_requests_total", "http_request_duration_seconds_bucket"):
        assert all(
            np.array_equal(v, value, equal_nan=True)
            for (n, its), v in seen.items()
            if n == name and dict(its)["service"] == "app0"
        )
        assert np.isfinite(total(seen, name, service="app1"))
        assert total(seen, name, service="app1") < 1e6
    assert np.isnan(total(seen, "container_cpu_usage_seconds_total", pod="app0-0")) == (fault is Fault.NAN)
    assert 50 < total(seen, "emulator_requests_total", workload="app0") < 200
    fleet.set_fault("shop", "app0", None)
    assert total(scrape(exposition), "http_requests_total", service="app0") < 200


def test_dropped_series_and_frozen_counters():
    fleet = fleet_of([10.0, 10.0])
    exposition = Exposition(fleet)
    advance(fleet, 10)
    before = scrape(exposition)
    fleet.set_fault("shop", "app0", Fault.DROP)
    fleet.set_fault("shop", "app1", Fault.FREEZE)
    advance(fleet, 10, start_s=10)
    seen = scrape(exposition)
    assert not any(dict(its).get("service") == "app0" for _, its in seen)
    assert total(seen, "http_requests_total", service="app1") == total(
        before, "http_requests_total", service="app1"
    )
    assert total(seen, "emulator_requests_total", workload="app1") > 150


def test_two_workloads_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same namespace and name"):
        Fleet([Workload("a", "b", lambda _: 1.0), Workload("a", "b", lambda _: 1.0)])


def test_replay_runs_the_trace_faster_and_keeps_its_last_rate():
    trace = Trace("ramp", 60.0 * np.arange(11), 100.0 * np.arange(11))
    rate = replay(trace, compression=60.0, offset_s=30.0)
    assert rate(0.0) == 0
    assert rate(5.0) == pytest.approx(500)
    assert rate(1000.0) == 1000


def test_generated_loads_say_so_in_their_name_and_files_are_read(tmp_path):
    trace = open_load("generated://flash", duration_s=3600, seed=3)
    assert trace.name == "generated://flash"
    assert trace.duration_s == 3600
    assert trace.requests_per_second.mean() == pytest.approx(1)
    with pytest.raises(ValueError, match="choose one of"):
        open_load("generated://nonsense", duration_s=3600)
    path = tmp_path / "t.csv"
    path.write_text("timestamp_s,requests_per_second\n0,10\n60,30\n")
    workload = read_workload(
        {"namespace": "a", "name": "b", "load": str(path), "pods": 4, "profile": "api", "dispersion": 8.0}
    )
    assert (workload.rate(0.0), workload.rate(100.0)) == (10, 30)
    assert workload.profile == PROFILES["api"]
    assert workload.dispersion == 8


def test_the_server_serves_and_takes_orders_over_http():
    workload = Workload("shop", "cart", lambda _: 50.0)
    with Emulator([workload], kubeconfig=None, step_s=0.05) as emulator:
        emulator.set_pods("shop", "cart", ["a", "b", "c"])

        def seen():
            return scrape(requests.get(f"{emulator.url}/metrics", timeout=5).content)

        def eventually(condition, what):
            deadline = time.monotonic() + 20
            while not condition():
                assert time.monotonic() < deadline, what
                time.sleep(0.02)

        eventually(lambda: emulator.truth()["shop/cart"]["requests"] > 20, "requests arrive")
        assert total(seen(), "kube_pod_container_resource_requests") == 3
        assert requests.put(f"{emulator.url}/faults/shop/cart", json={"fault": "nan"}, timeout=5).ok
        assert np.isnan(total(seen(), "http_requests_total"))
        assert requests.delete(f"{emulator.url}/faults/shop/cart", timeout=5).ok
        assert np.isfinite(total(seen(), "http_requests_total"))
        order = {"requests_per_second": 7}
        assert requests.put(f"{emulator.url}/load/shop/cart", json=order, timeout=5).ok
        eventually(lambda: total(seen(), "emulator_load_rps") == 7, "the load changes")
        emulator.set_rate("shop", "cart", 3.0)
        eventually(lambda: total(seen(), "emulator_load_rps") == 3, "the load changes again")
        emulator.set_pods("shop", "cart", ["b"])
        assert emulator.truth()["shop/cart"]["ready"] == 1
        assert requests.get(f"{emulator.url}/truth", timeout=5).json()["shop/cart"]["ready"] == 1
        unknown = requests.put(f"{emulator.url}/faults/shop/nobody", json={"fault": "nan"}, timeout=5)
        assert (unknown.status_code, unknown.text) == (404, "shop/nobody is not emulated.")
        wrong = requests.put(f"{emulator.url}/faults/shop/cart", json={"fault": "tired"}, timeout=5)
        assert wrong.status_code == 400
        assert "freeze, drop, nan" in wrong.text


class ApiServer:
    """Serves one list and scripted watches: events are sent, then `gone` ends the stream as an old version does."""

    def __init__(self):
        self.items, self.lists, self.version = [], 0, 100
        self.watchers = []

    def application(self):
        app = web.Application()
        app.router.add_get("/api/v1/pods", self.serve)
        return app

    async def serve(self, request):
        assert request.query["labelSelector"] == "app"
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response(
                {"metadata": {"resourceVersion": str(self.version)}, "items": self.items}
            )
        answer = web.StreamResponse()
        await answer.prepare(request)
        events = asyncio.Queue()
        self.watchers.append(events)
        while (event := await events.get()) is not None:
            await answer.write(json.dumps(event).encode() + b"\n")
        return answer

    async def send(self, kind, pod):
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.watchers[-1].put_nowait({"type": kind, "object": pod})


def pod(name, app="web", ready=True, terminating=False):
    metadata = {"namespace": "shop", "name": name, "labels": {"app": app}}
    if terminating:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}


def test_pods_are_followed_through_a_watch_that_breaks(tmp_path):
    async def scenario():
        api = ApiServer()
        api.items = [pod("a"), pod("b", ready=False), pod("c", app="other")]
        runner = web.AppRunner(api.application(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "clusters": [
                        {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
                    ],
                    "users": [{"name": "c", "user": {}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                }
            )
        )
        fleet, listed = Fleet([Workload("shop", "web", lambda _: 1.0)]), asyncio.Event()
        following = asyncio.create_task(follow_pods(kubeconfig, fleet, listed))

        async def eventually(condition):
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110 - the fleet tells nobody that it changed
                    await asyncio.sleep(0.01)

        try:
            await asyncio.wait_for(listed.wait(), 20)
            assert fleet.ready().tolist() == [1]
            await eventually(lambda: len(api.watchers) == 1)
            await api.send("MODIFIED", pod("b"))
            await eventually(lambda: fleet.ready()[0] == 2)
            await api.send("MODIFIED", pod("a", terminating=True))
            await eventually(lambda: fleet.ready()[0] == 1)
            assert len(fleet.pods) == 2
            await api.send("DELETED", pod("a", terminating=True))
            await eventually(lambda: len(fleet.pods) == 1)
            # The server closes the watch: it is taken up again where it was, without a list.
            api.watchers[-1].put_nowait(None)
            await eventually(lambda: len(api.watchers) == 2)
            await api.send("ADDED", pod("d"))
            await eventually(lambda: fleet.ready()[0] == 2)
            assert api.lists == 1
            # The version is too old: pods are listed anew, and those that went meanwhile are forgotten.
            api.items = [pod("d")]
            api.watchers[-1].put_nowait({"type": "ERROR", "object": {"code": 410}})
            await eventually(lambda: api.lists == 2 and fleet.ready()[0] == 1)
            assert list(fleet.pods) == [("shop", "d")]
        finally:
            following.cancel()
            for events in api.watchers:
                events.put_nowait(None)
            await runner.cleanup()

    asyncio.run(scenario())


def test_a_missing_kubeconfig_is_told_at_the_start(tmp_path):
    with pytest.raises(BaseException) as told, Emulator([], kubeconfig=tmp_path / "absent"):
        pass
    assert "Invalid kube-config" in str(told.value.exceptions[0])
