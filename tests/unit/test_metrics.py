"""The figures are right, readable for Prometheus, few, and cheap for ten thousand policies."""

import asyncio
import io
import json
import logging
import time
from datetime import datetime

import aiohttp
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from one_tick import tick
from understudy_operator import health, logs
from understudy_operator.metrics import Metrics, PolicyGauges
from understudy_policy.guards.reasons import KillScope
from understudy_policy.signals import Signal


def samples(metrics):
    """All samples as (name, labels) → value."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics).get((f"understudy_{name}", frozenset(labels.items())))


def keys(n):
    return [("prod", f"shop-{i}") for i in range(n)]


def test_decisions_guards_and_telemetry_are_counted_by_reason():
    metrics = Metrics()
    _, _, decision = tick(3, row=20, value=(Signal.LATENCY, float("nan")))
    metrics.observe(decision)
    metrics.observe(decision)
    assert value(metrics, "guard_interventions_total", guard="quality", reason="TelemetryUnknown") == 6
    assert value(metrics, "telemetry_problems_total", signal="latency", cause="NotANumber") == 6
    assert value(metrics, "decisions_total", reason="TelemetryUnknown") == 6


def test_the_gauges_of_policies_show_the_last_tick():
    metrics = Metrics()
    _, _, decision = tick(2, row=20, authority=0.5)
    metrics.show(15.0, PolicyGauges(keys(2), decision, np.array([True, False])))
    about = {"namespace": "prod", "policy": "shop-1"}
    shown = {
        name: value(metrics, f"policy_{name}", **about)
        for name in ("authority", "replicas_current", "acting")
    }
    assert shown == {"authority": 0.5, "replicas_current": 8, "acting": 0}
    assert value(metrics, "policy_replicas_desired", **about) == decision.replicas[1]
    assert value(metrics, "policy_replicas_proposed", **about) == 19
    assert value(metrics, "policy_replicas_reference", **about) == 8


def test_what_is_unknown_is_not_shown_as_minus_one():
    metrics = Metrics()
    _, _, decision = tick(1, current=-1)
    metrics.show(15.0, PolicyGauges(keys(1), decision, np.array([False])))
    assert value(metrics, "policy_replicas_current", namespace="prod", policy="shop-0") is None
    assert value(metrics, "policy_authority", namespace="prod", policy="shop-0") is not None


def test_policies_of_all_intervals_are_shown_until_they_are_gone():
    metrics = Metrics()
    _, _, decision = tick(1, killed=KillScope.CLUSTER)
    for interval_s, name in ((1.0, "fast"), (15.0, "slow")):
        metrics.show(interval_s, PolicyGauges([("prod", name)], decision, np.array([False])))
    assert value(metrics, "killed_policies", scope="Cluster") == 2
    metrics.hide(1.0)
    metrics.show(15.0, PolicyGauges([("prod", "slow")], decision, np.array([False])))
    assert value(metrics, "policy_acting", namespace="prod", policy="fast") is None
    assert value(metrics, "policy_acting", namespace="prod", policy="slow") == 0
    assert value(metrics, "killed_policies", scope="Cluster") == 1


def test_modes_and_models_that_are_gone_are_shown_no_more():
    metrics = Metrics()
    metrics.set_policies({"Shadow": 2, "Active": 1})
    metrics.set_policies({"Shadow": 3})
    metrics.set_models({"builtin://generalist": "aa"})
    metrics.set_models({"builtin://generalist": "bb"})
    assert (value(metrics, "policies", mode="Shadow"), value(metrics, "policies", mode="Active")) == (3, None)
    assert value(metrics, "model_info", uri="builtin://generalist", sha256="aa") is None
    assert value(metrics, "model_info", uri="builtin://generalist", sha256="bb") == 1


def test_a_policy_costs_eight_series_and_no_more():
    metrics = Metrics()
    counts = []
    for n in (10, 60):
        _, _, decision = tick(n)
        metrics.observe(decision)
        metrics.show(15.0, PolicyGauges(keys(n), decision, np.zeros(n, bool)))
        counts.append(len(samples(metrics)))
    assert counts[1] - counts[0] == 50 * 8


def test_all_names_say_whose_they_are_and_have_a_help_text():
    text = Metrics().render().decode()
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert all(name.startswith(("understudy_", "process_")) for name in names)
    assert all(family.documentation for family in text_string_to_metric_families(text))


class FakeLoop:
    longest_interval_s = 15.0

    def __init__(self, last_tick_s):
        self.last_tick_s = last_tick_s


def ask(path, *, silence_s=0.0, not_ready=None, lag_s=0.0):
    """Status and body of an answer of the operator's own server."""
    vitals = health.Vitals(FakeLoop(time.monotonic() - silence_s), lambda _: None)
    vitals.lag_s = lag_s
    record = {"policy": "shop"}
    endpoints = health.Endpoints(
        vitals, lambda: not_ready, Metrics().render, lambda key: record if key == ("prod", "shop") else None
    )

    async def call():
        async with (
            health.serving(endpoints, "127.0.0.1", 0) as port,
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as response,
        ):
            return response.status, await response.text()

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("path", "situation", "status", "phrase"),
    [
        ("/healthz", {}, 200, "ok"),
        ("/healthz", {"not_ready": "the policies have not been listed yet"}, 200, "ok"),
        ("/healthz", {"silence_s": 61}, 503, "no tick has ended for 61 s"),
        ("/healthz", {"lag_s": 7.0}, 503, "the event loop was 7.0 s late"),
        ("/readyz", {}, 200, "ok"),
        ("/readyz", {"not_ready": "the policies have not been listed yet"}, 503, "not been listed"),
        ("/metrics", {}, 200, "understudy_build_info"),
        ("/decisions/prod/shop", {}, 200, '"policy":"shop"'),
        ("/decisions/prod/other", {}, 404, "nothing has been decided yet for rlpolicy prod/other"),
    ],
)
def test_the_operator_answers_for_itself(path, situation, status, phrase):
    answered, text = ask(path, **situation)
    assert answered == status
    assert phrase in text


def test_lines_are_json_with_the_same_keys_whoever_speaks():
    out = io.StringIO()
    before = logging.getLogger().handlers[:], logging.getLogger().level
    token = logs.tick_id.set(7)
    try:
        logs.configure("INFO", as_json=True, stream=out)
        logging.getLogger("understudy_operator.tick").info(
            "wrote %d", 11, extra={"policy": "shop", "reason": "Authority"}
        )
        ref = {"namespace": "prod", "name": "shop", "uid": "1"}
        logging.getLogger("kopf.activities.startup").warning(
            "watch failed", extra={"k8s_ref": ref, "settings": object()}
        )
        logging.getLogger("kopf.activities.startup").info("chatter")
        logging.getLogger("understudy_operator.tick").debug("detail")
    finally:
        logs.tick_id.reset(token)
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    ours, kopfs = map(json.loads, out.getvalue().splitlines())
    assert list(ours) == [
        "ts",
        "level",
        "logger",
        "message",
        "tick_id",
        "namespace",
        "policy",
        "reason",
        "decision_id",
    ]
    assert list(kopfs) == list(ours)
    assert datetime.fromisoformat(ours["ts"]).tzinfo is not None
    assert (ours["message"], ours["tick_id"], ours["policy"], ours["reason"]) == (
        "wrote 11",
        7,
        "shop",
        "Authority",
    )
    assert (kopfs["logger"], kopfs["namespace"], kopfs["policy"]) == (
        "kopf.activities.startup",
        "prod",
        "shop",
    )


def test_an_unknown_log_level_is_refused():
    with pytest.raises(ValueError, match="'LOUD': use one of DEBUG"):
        logs.configure("LOUD")
