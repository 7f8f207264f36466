"""What calibration prints is taken by a real API server and a real Prometheus, and means there what was judged."""

import pytest
import requests
import yaml

from understudy_policy.calibrated_manifests import RateQuery, ScaleTarget, render
from understudy_policy.calibration import (
    HPA_CHOICES,
    KEDA_CHOICES,
    ROW_CHOICES,
    SEASONAL_CHOICES,
    STOCK,
    Workload,
    build,
)
from understudy_policy.references.behavior import POLICY_PERCENT, POLICY_PODS

pytestmark = pytest.mark.cluster

HPAS = "autoscaling/v2/horizontalpodautoscalers"
TARGET = ScaleTarget("web", 2, 50)
RATE = RateQuery("http://prometheus.monitoring:9090", 'sum(rate(http_requests_total{app="web"}[1m]))', 25.0)


def dry_run(kube, choice):
    body = yaml.safe_load(render(choice, TARGET, RATE))
    return kube.create(HPAS, body, "default", dryRun="All", fieldValidation="Strict")["spec"]


def test_every_calibrated_hpa_is_accepted(kube):
    for choice in (STOCK, *HPA_CHOICES):
        (metric,) = dry_run(kube, choice)["metrics"]
        assert metric["resource"]["target"]["averageUtilization"] == choice.target_percent


def test_what_the_api_server_fills_in_is_the_behavior_that_was_judged(kube):
    """The manifest says no more than its stabilisation: the rates are the server's defaults."""
    choice = HPA_CHOICES[1]
    stored = dry_run(kube, choice)["behavior"]
    behavior = build([choice], Workload(25.0, 1.0, 2, 50)).behavior
    kinds = {POLICY_PODS: "Pods", POLICY_PERCENT: "Percent"}
    for name, direction in (("scaleUp", behavior.scale_up), ("scaleDown", behavior.scale_down)):
        judged = {
            (kinds[kind], value, period_s)
            for kind, value, period_s in zip(
                direction.policy_type[0].tolist(),
                direction.policy_value[0].tolist(),
                direction.policy_period_s[0].tolist(),
                strict=True,
            )
            if kind in kinds
        }
        found = {(p["type"], p["value"], p["periodSeconds"]) for p in stored[name]["policies"]}
        assert found == judged
        assert stored[name]["selectPolicy"] == "Max"
        assert stored[name]["stabilizationWindowSeconds"] == direction.stabilization_window_s[0]


def test_stock_stays_an_hpa_without_behavior(kube):
    assert "behavior" not in dry_run(kube, STOCK)


def test_a_real_prometheus_understands_every_query(prometheus):
    url = prometheus([]).url
    queries = {
        trigger["metadata"]["query"]
        for choice in (KEDA_CHOICES[0], *ROW_CHOICES, *SEASONAL_CHOICES)
        for trigger in yaml.safe_load(render(choice, TARGET, RATE))["spec"]["triggers"]
    }
    for query in queries:
        answer = requests.get(f"{url}/api/v1/query", {"query": query}, timeout=10).json()
        assert answer["status"] == "success", f"{query}: {answer}"
