"""Calibration: the cheapest rule wins, its saving comes with doubt, and what is printed is what was judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from understudy_policy import actions, calibration
from understudy_policy.calibrated_manifests import RateQuery, ScaleTarget, render
from understudy_policy.calibration import (
    CHOICES,
    STOCK,
    FixedChoice,
    HpaChoice,
    KedaChoice,
    KnativeChoice,
    RowChoice,
    SeasonalChoice,
    Workload,
    calibrate,
)
from understudy_policy.references.rule import RuleSignals
from understudy_policy.rows import as_torch_or_numpy

RUNS = 10
TARGET = ScaleTarget("web", 2, 50, "shop")
RATE = RateQuery("http://prometheus.monitoring:9090", 'sum(rate(http_requests_total{app="web"}[1m]))', 25.0)


def priced(prices: dict[calibration.Choice, float]):
    """A score: stock costs 2 in every run, the rest 3 unless said otherwise."""

    def score(choices):
        each = [prices.get(choice, 2.0 if choice == STOCK else 3.0) for choice in choices]
        return np.tile(np.array(each)[:, None], (1, RUNS))

    return score


def test_the_cheapest_choice_wins_and_its_saving_is_told():
    best = KedaChoice(70, 60)
    winner = calibrate(priced({best: 1.5, HpaChoice(60): 1.8}))
    assert winner.choice == best
    assert (winner.adjusted, winner.stock_adjusted) == (1.5, 2.0)
    assert winner.saving_ratio == winner.low_ratio == winner.high_ratio == 0.25


def test_stock_wins_where_nothing_is_cheaper():
    winner = calibrate(priced({}))
    assert winner.choice == STOCK
    assert winner.saving_ratio == winner.low_ratio == winner.high_ratio == 0.0


def test_a_saving_in_every_run_is_beyond_doubt_and_one_by_a_single_run_is_not():
    def score(by_run: list[float]):
        return lambda choices: np.array([[2.0] * RUNS, by_run])

    steady = calibrate(score([1.7, 1.9] * 5), [HpaChoice(60)])
    assert 0 < steady.low_ratio < steady.saving_ratio < steady.high_ratio
    lucky = calibrate(score([2.1] * 9 + [0.5]), [HpaChoice(60)])
    assert lucky.saving_ratio > 0
    assert lucky.low_ratio < 0, "nine runs of ten were dearer than stock"


@given(st.permutations(range(12)), st.integers(0, 2**32 - 1))
def test_neither_the_order_of_the_candidates_nor_that_of_a_call_matters(order, seed):
    prices = np.random.default_rng(seed).uniform(1, 3, (12, RUNS))
    choices = list(CHOICES[:12])

    def score(candidates):
        return np.array(
            [prices[choices.index(c)] if c in choices else np.full(RUNS, 2.0) for c in candidates]
        )

    assert calibrate(score, [choices[k] for k in order]) == calibrate(score, choices)


def test_a_past_without_requests_and_one_without_runs_are_refused():
    with pytest.raises(ValueError, match=r"CPU at 30 %.* is not finite"):
        calibrate(priced({HpaChoice(30, 0): np.nan}))
    with pytest.raises(ValueError, match="two runs or more"):
        calibrate(lambda choices: np.ones((len(choices), 1)))


def test_the_sweep_is_the_protocols():
    assert {(c.target_percent, c.stabilization_s) for c in CHOICES if isinstance(c, HpaChoice)} == {
        (target, window) for target in range(30, 91, 5) for window in (0, 60, 300)
    }
    assert {(c.target_percent, c.stabilization_s) for c in CHOICES if isinstance(c, KedaChoice)} == {
        (target, window) for target in range(30, 101, 5) for window in (0, 60, 300)
    }
    assert {c.row for c in CHOICES if isinstance(c, RowChoice)} == set(range(len(actions.TABLE)))
    assert len(set(CHOICES)) == len(CHOICES)


def test_choices_that_share_no_rule_are_not_built_together():
    with pytest.raises(ValueError, match="2 groups"):
        calibration.build([HpaChoice(70), FixedChoice(3)], Workload(25.0, 1.0, 1, 10))


SWEEP = (STOCK, *CHOICES, FixedChoice(4))
GROUPS = [[SWEEP[i] for i in group] for group in calibration.groups(SWEEP)]


@pytest.mark.parametrize("choices", GROUPS, ids=lambda choices: type(choices[0]).__name__)
def test_torch_in_single_precision_decides_what_numpy_decides(choices):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
    rng, n = np.random.default_rng(3), len(choices)
    bounds = rng.integers(0, 4, n), rng.integers(5, 80, n)
    rule = calibration.build(choices, Workload(rng.uniform(5, 20, n), 1.0, *bounds))
    on_torch = as_torch_or_numpy(rule, torch.from_numpy)
    replicas, state, torch_state = rng.integers(1, 20, n), None, None
    for tick in range(100):
        rate = np.where(rng.random(n) < 0.05, np.nan, rng.uniform(0, 400, n)).astype(np.float32)
        half, ten = (np.full(n, value, np.float32) for value in (0.5, 10.0))
        ready, failed = np.maximum(replicas - 1, 0), rng.random(n) < 0.05
        seen = RuleSignals(rate, rate / 25, half, rate / 10, replicas, ready, ten, failed)
        torch_seen = as_torch_or_numpy(seen, torch.from_numpy)
        if state is None:
            state, torch_state = rule.initial(seen, 0.0), on_torch.initial(torch_seen, 0.0)
        state, replicas = rule.decide(state, seen, 15.0 * tick)
        torch_state, found = on_torch.decide(torch_state, torch_seen, 15.0 * tick)
        assert found.tolist() == replicas.tolist(), f"tick {tick}"


# What is printed to apply by hand.


def manifest(choice: calibration.Choice) -> dict:
    return yaml.safe_load(render(choice, TARGET, RATE))


def test_an_hpa_says_what_was_judged():
    body = manifest(HpaChoice(55, 60))
    assert (body["kind"], body["metadata"]) == (
        "HorizontalPodAutoscaler",
        {"name": "web", "namespace": "shop"},
    )
    spec = body["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 50)
    assert spec["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 55}
    assert spec["behavior"] == {"scaleDown": {"stabilizationWindowSeconds": 60}}
    assert "behavior" not in manifest(STOCK)["spec"], "stock is an HPA that nobody has tuned"


def test_a_scaled_object_aims_at_the_share_of_a_pods_capacity():
    spec = manifest(KedaChoice(70, 300))["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["threshold"] == "17.5"
    assert trigger["metadata"]["query"] == RATE.query
    assert trigger["metadata"]["ignoreNullValues"] == "false", "an empty answer must not pass for no load"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == {"scaleDown": {"stabilizationWindowSeconds": 300}}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 50)


def test_a_table_row_looks_back_over_its_window_and_says_where_the_hpa_differs():
    choice = RowChoice(actions.TABLE.index(actions.Row(20, 0.66)))
    (trigger,) = manifest(choice)["spec"]["triggers"]
    assert trigger["metadata"]["query"] == f"max_over_time(({RATE.query})[300s:15s])"
    assert trigger["metadata"]["threshold"] == "16.5"
    assert "10 % alone" in render(choice, TARGET, RATE)
    assert "10 % alone" not in render(KedaChoice(70), TARGET, RATE), "KEDA was judged with its HPA"


def test_a_seasonal_rule_asks_for_yesterday_and_only_if_reactive_for_now():
    quiet, reactive = (manifest(SeasonalChoice(0.9, 0.75, now))["spec"]["triggers"] for now in (False, True))
    assert [t["metadata"]["query"] for t in quiet] == [
        f"quantile_over_time(0.9, ({RATE.query})[30m:1m] offset 23h30m) or ({RATE.query})"
    ]
    assert [t["metadata"]["query"] for t in reactive[1:]] == [RATE.query]


@pytest.mark.parametrize("choice", [KnativeChoice(1.0), FixedChoice(3)], ids=["knative", "fixed"])
def test_what_no_manifest_can_say_is_refused_by_name(choice):
    with pytest.raises(ValueError, match="has no ScaledObject") as refused:
        render(choice, TARGET, RATE)
    assert choice.sentence() in str(refused.value)


def test_a_threshold_is_written_in_full_and_never_as_nothing():
    slow = replace(RATE, capacity_rps=0.01)
    (trigger,) = yaml.safe_load(render(KedaChoice(35), TARGET, slow))["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "0.0035"
    with pytest.raises(ValueError, match="less than KEDA can hold"):
        render(KedaChoice(35), TARGET, replace(RATE, capacity_rps=0.001))
