"""The Prometheus that fails on demand: each fault looks to a client as the real thing does."""

import math
import threading
import time

import pytest
import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException

from understudy_demo.faults import STALE_BY_S, FaultyPrometheus, PrometheusFault

ANSWERS = {"up": [({"pod": "a"}, 1.5), ({"pod": "b"}, 2.0)], "load": [({}, 7.0)]}


@pytest.fixture
def prometheus():
    with FaultyPrometheus(answers=ANSWERS) as server:
        yield server


def ask(server, query="up", **more):
    return requests.get(f"{server.url}/api/v1/query", params={"query": query, **more}, timeout=10)


def values(server, query="up"):
    return [
        (s["metric"].get("pod"), float(s["value"][1])) for s in ask(server, query).json()["data"]["result"]
    ]


def test_healthy_answers_are_what_a_client_library_expects(prometheus):
    client = PrometheusConnect(url=prometheus.url)
    assert client.check_prometheus_connection()
    answer = client.custom_query("up", params={"time": 1000.0})
    assert answer[0] == {"metric": {"pod": "a"}, "value": [1000.0, "1.5"]}
    assert client.custom_query("unknown") == []
    assert prometheus.queries == ["up", "unknown"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (PrometheusFault.EMPTY, []),
        (PrometheusFault.INF, [("a", math.inf), ("b", math.inf)]),
        (PrometheusFault.NEGATIVE, [("a", -1.0), ("b", -1.0)]),
        (PrometheusFault.BOGUS, [("a", 1e12), ("b", 1e12)]),
        (PrometheusFault.DUPLICATE, [("a", 1.5), ("b", 2.0), ("a", 4.0), ("b", 5.0)]),
        (PrometheusFault.PARTIAL, [("a", 1.5)]),
        (PrometheusFault.WARNING, [("a", 1.5), ("b", 2.0)]),
    ],
)
def test_faults_of_the_values(prometheus, fault, expected):
    prometheus.fault = fault
    assert values(prometheus) == expected
    warned = fault in (PrometheusFault.PARTIAL, PrometheusFault.WARNING)
    assert bool(ask(prometheus).json().get("warnings")) == warned
    prometheus.fault = None
    assert values(prometheus) == [("a", 1.5), ("b", 2.0)]


def test_not_a_number_is_written_as_prometheus_writes_it(prometheus):
    prometheus.fault = "nan"
    assert [s["value"][1] for s in ask(prometheus).json()["data"]["result"]] == ["NaN", "NaN"]


@pytest.mark.parametrize(("fault", "shift_s"), [("stale", -STALE_BY_S), ("future", STALE_BY_S)])
def test_faults_of_the_clock(prometheus, fault, shift_s):
    prometheus.fault = fault
    assert ask(prometheus, time="5000").json()["data"]["result"][0]["value"] == [5000 + shift_s, "1.5"]


def test_frozen_values_come_with_fresh_timestamps_and_thaw():
    level = [1.0]
    with FaultyPrometheus(answers=lambda query: [({"query": query}, level[0])]) as server:
        server.fault = "frozen"
        first = ask(server, time="1").json()["data"]["result"][0]
        level[0] = 2.0
        second = ask(server, time="2").json()["data"]["result"][0]
        assert (first["value"], second["value"]) == ([1.0, "1"], [2.0, "1"])
        server.fault = None
        assert ask(server, time="3").json()["data"]["result"][0]["value"] == [3.0, "2"]


def test_faults_of_http(prometheus):
    prometheus.fault = "http_500"
    assert ask(prometheus).status_code == 500
    prometheus.fault = "http_422"
    with pytest.raises(PrometheusApiClientException, match="too many samples"):
        PrometheusConnect(url=prometheus.url).custom_query("up")
    prometheus.fault = "garbage"
    answer = ask(prometheus)
    assert answer.status_code == 200
    with pytest.raises(requests.exceptions.JSONDecodeError):
        answer.json()


def test_a_hanging_server_answers_once_the_fault_is_gone(prometheus):
    prometheus.fault = "hang"
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get(f"{prometheus.url}/api/v1/query", params={"query": "up"}, timeout=0.3)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(ask(prometheus).status_code))
    waiting.start()
    deadline = time.monotonic() + 10
    while len(prometheus.queries) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not answers
    prometheus.fault = None
    waiting.join(10)
    assert answers == [200]


def test_only_some_queries_may_be_affected():
    with FaultyPrometheus(answers=ANSWERS, affects=lambda query: query == "load") as server:
        server.fault = "empty"
        assert values(server, "load") == []
        assert values(server, "up") == [("a", 1.5), ("b", 2.0)]


def test_it_stands_before_another_prometheus(prometheus):
    with FaultyPrometheus(upstream=prometheus.url) as proxy:
        assert values(proxy) == values(prometheus)
        proxy.fault = "duplicate"
        assert len(values(proxy)) == 4
        prometheus.fault = "http_500"
        assert ask(proxy).status_code == 500


def test_a_wrong_fault_or_source_is_refused(prometheus):
    with pytest.raises(ValueError, match="tired"):
        prometheus.fault = "tired"
    with pytest.raises(ValueError, match="either upstream or answers"):
        FaultyPrometheus()
