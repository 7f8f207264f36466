import asyncio
import dataclasses
import os
import re
import time

import numpy as np
import pytest
from aiohttp import web

import fake_prometheus
from fake_prometheus import FakePrometheus, vector
from understudy_operator.telemetry import port as port_module
from understudy_operator.telemetry.collect import TelemetryTarget, backfill, collect, plan
from understudy_operator.telemetry.port import Prometheus, PrometheusConfig, QueryFailed
from understudy_operator.telemetry.presets import PRESETS
from understudy_policy.signals import Cause, Freshness, Signal, assess

NOW = 1_700_000_000.0
WEB, API = TelemetryTarget("shop", "web"), TelemetryTarget("shop", "api")
RATE = "sum by (namespace, service) (rate(http_requests_total[60000ms]))"


def service(name, value, at=NOW, namespace="shop"):
    return {"namespace": namespace, "service": name}, value, at


def workload(name, value, at=NOW):
    return {"namespace": "shop", "workload": name}, value, at


def healthy(**changes):
    """Answers by a part of the query, the most telling part first."""
    answers = {
        "clamp_min": vector(service("web", 0.02), service("api", 0)),
        "histogram_quantile": vector(service("web", 0.2), service("api", 0.1)),
        'code=~"5.."': vector(service("web", 0.01), service("api", 0)),
        "http_requests_total": vector(service("web", 120), service("api", 40), service("stranger", 1)),
        "container_cpu": vector(workload("web", 3.5), workload("api", 1)),
        "resource_requests": vector(workload("web", 0.5), workload("api", 0.25)),
    }
    return FakePrometheus(**{**answers, **changes})


def asked(fake, targets=(WEB, API), deadline_s=5.0, budget=50, **options):
    async def run():
        async with fake_prometheus.serving(fake, **options) as port:
            return await collect(port, plan(targets, budget=budget), NOW, deadline_s)

    return asyncio.run(run())


def causes(collected, signal):
    return [Cause(cause) for cause in collected.samples.cause[:, signal]]


def judged(collected):
    n = len(collected.samples.values)
    limits = Freshness(np.full(n, 60.0), np.full((n, len(Signal)), np.inf))
    _, cause, _ = assess(collected.samples, limits, np.full((n, len(Signal)), np.nan), np.zeros(n, np.int64))
    return cause


def test_one_query_per_signal_serves_all_policies_at_one_moment():
    fake = healthy()
    collected = asked(fake)
    assert collected.samples.values.tolist() == [[120, 0.2, 0.01, 3.5, 0.5, 0.02], [40, 0.1, 0, 1, 0.25, 0]]
    assert (collected.samples.cause == Cause.OK).all()
    assert (collected.samples.age_s == 0).all()
    assert collected.problems == []
    assert len(fake.asked) == len(Signal)
    assert {fields["time"] for _, fields, _ in fake.asked} == {"1700000000.000"}
    assert {fields["timeout"] for _, fields, _ in fake.asked} == {"5000ms"}


def test_policies_with_another_window_have_queries_of_their_own():
    fake = healthy()
    asked(fake, [WEB, dataclasses.replace(API, window_s=2.5)])
    assert len(fake.asked) == 2 * len(Signal) - 1  # the CPU request has no window
    assert any("[2500ms]" in fields["query"] for _, fields, _ in fake.asked)


def test_policies_with_another_objective_have_a_query_of_their_own_for_what_misses_it():
    fake = healthy()
    asked(fake, [WEB, dataclasses.replace(API, threshold_s=1.0), dataclasses.replace(API, threshold_s=0.5)])
    assert len(fake.asked) == len(Signal) + 2
    buckets = {
        bucket for _, fields, _ in fake.asked for bucket in re.findall(r'le=~"([^"]+)"', fields["query"])
    }
    assert buckets == {"0[.]25", "1([.]0)?", "0[.]5"}
    assert [bool(re.fullmatch("1([.]0)?", le)) for le in ("1", "1.0", "10", "1.05")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_workload_without_series_is_empty_and_the_others_are_not():
    collected = asked(
        healthy(http_requests_total=vector(service("web", 120), service("web", 9, namespace="x")))
    )
    assert causes(collected, Signal.REQUEST_RATE) == [Cause.OK, Cause.EMPTY]
    assert np.isnan(collected.samples.values[1, Signal.REQUEST_RATE])


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        (service("web", "NaN"), Cause.NOT_A_NUMBER),
        (service("web", "+Inf"), Cause.INFINITE),
        (service("web", -1), Cause.NEGATIVE),
        (service("web", 120, NOW - 61), Cause.OLD_TIMESTAMP),
        (service("web", 120, NOW + 60), Cause.FUTURE_TIMESTAMP),
    ],
)
def test_a_bad_value_is_passed_on_for_the_decision_program_to_name(sample, cause):
    collected = asked(healthy(http_requests_total=vector(sample, service("api", 1))))
    assert causes(collected, Signal.REQUEST_RATE) == [Cause.OK, Cause.OK]
    assert judged(collected)[:, Signal.REQUEST_RATE].tolist() == [cause, Cause.OK]


FAULTS = [
    ("empty", vector(), Cause.EMPTY, None),
    ("500", web.Response, Cause.HTTP_ERROR, "HTTP 500"),
    (
        "bad query",
        {"status": "error", "errorType": "bad_data", "error": "parse error"},
        Cause.HTTP_ERROR,
        "parse error",
    ),
    (
        "query timeout",
        {"status": "error", "errorType": "timeout", "error": "timed out"},
        Cause.TIMEOUT,
        "timed out",
    ),
    ("hang", "hang", Cause.TIMEOUT, "did not answer within 3 s"),
    ("html", lambda _: web.Response(text="<html>log in</html>"), Cause.BAD_RESPONSE, "<html>"),
    ("list", [], Cause.BAD_RESPONSE, "not JSON"),
    ("no data", {"status": "success"}, Cause.BAD_RESPONSE, "vector of numbers"),
    ("matrix", vector(kind="matrix"), Cause.BAD_RESPONSE, "instant vector"),
    ("string", vector(kind="string"), Cause.BAD_RESPONSE, "string"),
    ("words", vector(service("web", "many")), Cause.BAD_RESPONSE, "many"),
    ("warnings", vector(service("web", 1), warnings=["store down"]), Cause.PARTIAL, "store down"),
]


@pytest.mark.parametrize(("answer", "cause", "detail"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_failing_query_takes_one_signal_and_keeps_its_reason(answer, cause, detail):
    if answer is web.Response:
        answer = lambda _: web.Response(status=500, text="boom")  # noqa: E731
    collected = asked(healthy(http_requests_total=answer), deadline_s=3.0 if answer == "hang" else 30.0)
    assert causes(collected, Signal.REQUEST_RATE) == [cause, cause]
    others = [signal for signal in Signal if signal is not Signal.REQUEST_RATE]
    assert (collected.samples.cause[:, others] == Cause.OK).all()
    if detail is not None:
        (problem,) = collected.problems
        assert (problem.signal, problem.cause, problem.rows) == (Signal.REQUEST_RATE, cause, (0, 1))
        assert detail in problem.detail


def test_a_server_error_is_tried_once_more():
    failures = iter([500])

    def flaky(_):
        for status in failures:
            return web.Response(status=status)
        return vector(service("web", 7), service("api", 8))

    fake = healthy(http_requests_total=flaky)
    assert causes(asked(fake), Signal.REQUEST_RATE) == [Cause.OK, Cause.OK]
    assert len(fake.asked) == len(Signal) + 1


def test_every_query_is_counted_by_what_became_of_it():
    counted = []
    fake = healthy(container_cpu=lambda _: web.Response(status=422, text="{}"))
    asked(fake, on_query=counted.append)
    assert sorted(counted) == [Cause.OK] * 5 + [Cause.HTTP_ERROR]


def test_a_hang_is_not_tried_again():
    async def run():
        fake = FakePrometheus(up="hang")
        async with fake_prometheus.serving(fake) as port:
            with pytest.raises(QueryFailed, match="did not answer"):
                await port.query("up", NOW, 1.0)
            await asyncio.sleep(0.3)  # time enough for a second try to arrive, if there were one
        assert len(fake.asked) == 1

    asyncio.run(run())


def test_a_prometheus_that_is_gone_is_unreachable_and_quickly_so():
    async def run():
        async with fake_prometheus.serving(FakePrometheus()) as port:
            pass
        port = Prometheus(PrometheusConfig(port._client.url))
        began = time.monotonic()
        collected = await collect(port, plan([WEB]), NOW, 3.0)
        port.close()
        return collected, time.monotonic() - began

    collected, took_s = asyncio.run(run())
    assert (collected.samples.cause == Cause.UNREACHABLE).all()
    assert len(collected.problems) == len(Signal)
    assert took_s < 2


def only(promql, name="web", signal="requestRate"):
    return TelemetryTarget("shop", name, overrides={signal: promql})


def test_a_custom_query_replaces_one_signal_and_the_same_text_runs_once():
    fake = healthy(my_rate=vector(({"whatever": "label"}, 55, NOW)))
    collected = asked(fake, [only("my_rate"), only("my_rate", "api"), WEB])
    assert collected.samples.values[:, Signal.REQUEST_RATE].tolist() == [55, 55, 120]
    assert collected.samples.values[:, Signal.LATENCY].tolist() == [0.2, 0.1, 0.2]
    assert sum(fields["query"] == "my_rate" for _, fields, _ in fake.asked) == 1


def test_a_scalar_is_a_fine_answer_to_a_custom_query():
    body = {"status": "success", "data": {"resultType": "scalar", "result": [NOW, "12"]}}
    assert asked(healthy(my_rate=body), [only("my_rate")]).samples.values[0, Signal.REQUEST_RATE] == 12


@pytest.mark.parametrize(
    ("series", "cause"),
    [([], Cause.EMPTY), ([({"pod": "a"}, 1, NOW), ({"pod": "b"}, 2, NOW)], Cause.DUPLICATE)],
)
def test_a_custom_query_has_to_answer_with_exactly_one_series(series, cause):
    collected = asked(healthy(my_rate=vector(*series)), [only("my_rate")])
    assert causes(collected, Signal.REQUEST_RATE) == [cause]
    assert np.isnan(collected.samples.values[0, Signal.REQUEST_RATE])


def test_two_series_for_one_workload_are_nobodys_value():
    doubled = vector(service("web", 1), service("web", 2), service("api", 3))
    collected = asked(healthy(http_requests_total=doubled))
    assert causes(collected, Signal.REQUEST_RATE) == [Cause.DUPLICATE, Cause.OK]
    assert np.isnan(collected.samples.values[0, Signal.REQUEST_RATE])
    assert [problem.rows for problem in collected.problems] == [(0,)]


def test_custom_queries_beyond_the_budget_are_left_out_by_name():
    fake = healthy(q=vector(({}, 5, NOW)))
    collected = asked(fake, [only("q1"), only("q2"), only("q3"), only("q1"), WEB], budget=2)
    assert causes(collected, Signal.REQUEST_RATE) == [
        Cause.OK,
        Cause.OK,
        Cause.NOT_CONFIGURED,
        Cause.OK,
        Cause.OK,
    ]
    assert [problem.rows for problem in collected.problems] == [(2,)]
    assert "only 2 custom queries" in collected.problems[0].detail


def test_a_custom_query_that_copies_the_presets_text_blinds_nobody():
    fake = healthy()
    collected = asked(fake, [only(RATE), WEB, API])
    assert causes(collected, Signal.REQUEST_RATE) == [Cause.DUPLICATE, Cause.OK, Cause.OK]


def test_a_long_query_travels_as_a_form():
    text = f'my_rate{{pod=~"{"|".join(f"pod-{i}" for i in range(2000))}"}}'
    fake = healthy(my_rate=vector(({}, 5, NOW)))
    collected = asked(fake, [only(text)])
    assert collected.samples.values[0, Signal.REQUEST_RATE] == 5
    methods = {len(fields["query"]) > 1800: method for method, fields, _ in fake.asked}
    assert methods == {True: "POST", False: "GET"}


def test_the_authorization_file_is_read_again(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("first\n")
    fake = FakePrometheus(up=vector(({}, 1, NOW)))

    async def run():
        async with fake_prometheus.serving(
            fake, authorization_file=token, headers={"X-Scope-OrgID": "shop"}
        ) as port:
            await port.query("up", NOW, 5)
            token.write_text("Basic c2Vjb25k")
            await port.query("up", NOW, 5)
            monkeypatch.setattr(port_module, "AUTHORIZATION_MAX_AGE_S", 0.0)
            await port.query("up", NOW, 5)
            os.unlink(token)
            with pytest.raises(QueryFailed, match="token") as failure:
                await port.query("up", NOW, 5)
            assert failure.value.cause is Cause.UNREACHABLE

    asyncio.run(run())
    sent = [headers["Authorization"] for _, _, headers in fake.asked]
    assert sent == ["Bearer first", "Bearer first", "Basic c2Vjb25k"]
    assert {headers["X-Scope-OrgID"] for _, _, headers in fake.asked} == {"shop"}


def test_a_refused_token_is_read_again_at_once(tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    fake = FakePrometheus(up=lambda _: vector() if "new" in token.read_text() else web.Response(status=401))

    async def run():
        async with fake_prometheus.serving(fake, authorization_file=token) as port:
            with pytest.raises(QueryFailed, match="HTTP 401"):
                await port.query("up", NOW, 5)
            token.write_text("new")
            await port.query("up", NOW, 5)

    asyncio.run(run())
    assert [headers["Authorization"] for _, _, headers in fake.asked] == ["Bearer old", "Bearer new"]


def matrix(*series):
    rows = [
        {"metric": labels, "values": [[at, str(value)] for at, value in points]} for labels, points in series
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": rows}}


def read_back(fake, targets, ticks=4):
    async def run():
        async with fake_prometheus.serving(fake) as port:
            return await backfill(port, plan(targets, (Signal.REQUEST_RATE,)), NOW, 15.0, ticks, timeout_s=5)

    return asyncio.run(run())


def test_the_past_is_read_back_oldest_first_with_gaps_as_unknown():
    web_past = [(NOW - 60, 1), (NOW - 45, "NaN"), (NOW - 15, 3)]
    custom = [(NOW - 29.9, 8), (NOW, 9)]
    fake = FakePrometheus(
        my_rate=matrix(({}, custom)), http_requests_total=matrix((service("web", 0)[0], web_past))
    )
    rates, problems = read_back(fake, [WEB, API, only("my_rate")])
    nan = np.nan
    np.testing.assert_array_equal(rates, [[1, nan, nan, 3], [nan] * 4, [nan, nan, 8, nan]])
    assert problems == []
    _, fields, _ = fake.asked[0]
    assert (float(fields["start"]), float(fields["end"]), float(fields["step"])) == (NOW - 60, NOW - 15, 15)


def test_a_past_that_cannot_be_read_is_unknown_and_reported():
    fake = FakePrometheus(http_requests_total=lambda _: web.Response(status=500, text="boom"))
    rates, problems = read_back(fake, [WEB, API])
    assert np.isnan(rates).all()
    assert [(problem.cause, problem.rows) for problem in problems] == [(Cause.HTTP_ERROR, (0, 1))]


def test_a_prometheus_that_hangs_costs_the_tick_one_limit_however_many_queries_the_past_takes():
    targets = [only(f"my_rate_{i}") for i in range(5)]

    async def run():
        async with fake_prometheus.serving(FakePrometheus(my_rate="hang")) as port:
            began = time.monotonic()
            _, problems = await backfill(
                port, plan(targets, (Signal.REQUEST_RATE,)), NOW, 15.0, 4, timeout_s=3.0
            )
            return problems, time.monotonic() - began

    problems, seconds = asyncio.run(run())
    assert [problem.cause for problem in problems] == [Cause.TIMEOUT] * 5
    assert seconds < 2 * 3.0


def test_every_preset_measures_every_signal():
    for preset in PRESETS.values():
        assert set(preset) == set(Signal)
