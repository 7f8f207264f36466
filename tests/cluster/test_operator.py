"""What the operator does to a real cluster, tick by tick: scaling, refusing, handing over, holding."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stepping import (
    CAPACITY_RPS,
    OPERATOR_NAMESPACE,
    POLICIES,
    Load,
    Stepper,
    absent,
    condition,
    policy,
    ready,
    replicas,
    scale_owner,
)
from understudy_demo.controlplane.client import KubeError, read_manifests, wait_for
from understudy_demo.faults import FaultyPrometheus, PrometheusFault

pytestmark = pytest.mark.cluster
RBAC = Path(__file__).resolve().parents[2] / "manifests" / "rbac"
WARM = 62
"""Ticks after which nothing is in doubt because of a short history."""


@pytest.fixture(scope="session")
def rbac(kube):
    kube.apply(read_manifests(RBAC))


@pytest.fixture
def load(namespace):
    return Load(namespace)


@pytest.fixture
def faulty(load):
    with FaultyPrometheus(answers=load) as prometheus:
        yield prometheus


@pytest.fixture
def stepper(plane, kube, rbac, faulty, tmp_path):
    with Stepper(plane, kube, faulty.url, ledger=tmp_path / "ledger.jsonl") as stepper:
        yield stepper
    absent(kube, "v1/configmaps", "understudy-kill-switch", OPERATOR_NAMESPACE)


@pytest.fixture
def apply(kube, namespace):
    """Create a policy in the namespace; it goes before the namespace does, or the next test's operator would see it."""
    names = []

    def create(name="web", **changes):
        names.append(name)
        return kube.create(POLICIES, policy(name, **changes), namespace)

    yield create
    for name in names:
        kube.delete(POLICIES, name, namespace)


def test_scales_up_and_down_through_scale(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply()
    load.rate_rps = 16 * CAPACITY_RPS
    stepper.tick(6)
    grown = replicas(kube, namespace)
    assert grown > 4
    assert scale_owner(kube, namespace) == {"understudy"}
    ready(kube, namespace, grown)
    load.rate_rps = 1 * CAPACITY_RPS
    stepper.tick(WARM + 10)
    assert replicas(kube, namespace) < grown
    assert condition(kube, namespace, "Acting")["status"] == "True"
    status = kube.get(POLICIES, "web", namespace)["status"]
    assert status["lastDecision"]["message"]
    assert status["authority"] == 1


def test_shadow_never_writes(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply(mode="Shadow")
    load.rate_rps = 20 * CAPACITY_RPS
    finished = stepper.tick(30)
    assert finished.decided.decision.replicas[0] > 4, "a shadow policy must still decide"
    assert replicas(kube, namespace) == 4
    assert scale_owner(kube, namespace) == set()
    assert condition(kube, namespace, "Acting")["status"] == "False"


def kill_policy(kube, namespace):
    kube.patch(POLICIES, "web", {"spec": {"mode": "Off"}}, namespace)


def kill_namespace(kube, namespace):
    kube.patch("v1/namespaces", namespace, {"metadata": {"annotations": {"understudy.dev/kill": "drill"}}})


def kill_cluster(kube, namespace):
    body = {"metadata": {"name": "understudy-kill-switch"}, "data": {"engaged": "true", "reason": "drill"}}
    kube.create("v1/configmaps", body, OPERATOR_NAMESPACE)


@pytest.mark.parametrize("kill", [kill_policy, kill_namespace, kill_cluster])
def test_a_kill_between_decision_and_write_hands_over_to_the_reference(
    kube, namespace, deploy, stepper, load, apply, kill
):
    deploy(replicas=4)
    # No row of the actor's table asks for what a target of 40 % asks for, and nothing limits the rate: whose number
    # was written can be told.
    unlimited = {"policies": [{"type": "Percent", "value": 10_000, "periodSeconds": 15}]}
    apply(
        maxReplicas=60,
        reference={"signal": "requestRate", "target": 0.4, "behavior": {"scaleUp": unlimited}},
    )
    load.rate_rps = 4 * CAPACITY_RPS
    stepper.tick(WARM + 4)
    ready(kube, namespace, replicas(kube, namespace))
    load.rate_rps = 18 * CAPACITY_RPS
    stepper.between_decide_and_act(lambda: kill(kube, namespace))
    decided = stepper.tick().decided
    made = decided.decision
    assert made.authority[0] == 1
    assert made.replicas[0] != made.if_killed[0], "the actor has to want something else than the reference"
    assert replicas(kube, namespace) == made.if_killed[0], "the actor's number was written after the kill"
    for _ in range(5):
        made = stepper.tick().decided.decision
        assert made.authority[0] == 0
        assert replicas(kube, namespace) == made.reference[0], "after a kill the reference carries on"
    acting = condition(kube, namespace, "Acting")
    assert (acting["status"], acting["reason"]) != ("True", "Active")


def test_a_killed_policy_that_holds_does_not_move(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply(onKill="Hold")
    load.rate_rps = 4 * CAPACITY_RPS
    stepper.tick(WARM)
    before = replicas(kube, namespace)
    kill_namespace(kube, namespace)
    load.rate_rps = 20 * CAPACITY_RPS
    stepper.tick(5)
    assert replicas(kube, namespace) == before


def test_off_does_not_begin_to_write_where_it_never_wrote(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply(mode="Off")
    load.rate_rps = 20 * CAPACITY_RPS
    stepper.tick(5)
    assert replicas(kube, namespace) == 4


def test_bounds_hold_and_the_api_server_refuses_bad_ones(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply(minReplicas=3, maxReplicas=6)
    load.rate_rps = 100 * CAPACITY_RPS
    stepper.tick(10)
    assert replicas(kube, namespace) == 6
    load.rate_rps = 0.1
    stepper.tick(WARM + 20)
    assert replicas(kube, namespace) == 3
    with pytest.raises(KubeError, match="minReplicas"):
        kube.patch(POLICIES, "web", {"spec": {"minReplicas": 7}}, namespace)


def test_a_pin_beats_everything(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply(override={"replicas": 7, "reason": "launch"})
    load.rate_rps = 20 * CAPACITY_RPS
    stepper.tick(2)
    assert replicas(kube, namespace) == 7


def test_an_hpa_on_the_target_is_a_conflict(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    hpa = {
        "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "maxReplicas": 5,
        },
    }
    kube.create("autoscaling/v2/horizontalpodautoscalers", hpa, namespace)
    apply()
    load.rate_rps = 20 * CAPACITY_RPS
    stepper.tick(3)
    assert "understudy" not in scale_owner(kube, namespace)
    conflict = condition(kube, namespace, "Conflict")
    assert conflict["status"] == "True"
    assert "HorizontalPodAutoscaler web" in conflict["message"]
    kube.delete("autoscaling/v2/horizontalpodautoscalers", "web", namespace)
    stepper.tick(3)
    assert "understudy" in scale_owner(kube, namespace)


def test_another_writer_is_left_alone_for_a_while(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply()
    load.rate_rps = 10 * CAPACITY_RPS
    stepper.tick(3)
    kube.patch("apps/v1/deployments", "web", {"spec": {"replicas": 5}}, namespace, subresource="scale")
    stepper.tick(3)
    assert replicas(kube, namespace) == 5
    assert condition(kube, namespace, "Conflict")["status"] == "True"


def test_a_second_policy_on_the_same_target_is_refused(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    first = apply()["metadata"]["creationTimestamp"]
    # The API server tells ages by the second.
    wait_for(lambda: datetime.now(UTC).isoformat()[:19] > first[:19], "the next second")
    apply("second")
    stepper.tick(2)
    assert condition(kube, namespace, "Conflict")["status"] == "False"
    assert condition(kube, namespace, "Conflict", "second")["status"] == "True"


def test_a_restart_at_the_peak_does_not_scale_in(kube, namespace, deploy, stepper, load, apply, faulty):
    deploy(replicas=4)
    apply()
    load.rate_rps = 20 * CAPACITY_RPS
    stepper.tick(WARM)
    peak = replicas(kube, namespace)
    stepper.restart()
    faulty.fault = PrometheusFault.EMPTY
    stepper.tick(3)
    faulty.fault = None
    for _ in range(20):
        stepper.tick()
        assert replicas(kube, namespace) >= peak


def test_a_target_that_is_deleted_and_created_again(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply()
    load.rate_rps = 12 * CAPACITY_RPS
    stepper.tick(WARM)
    kube.delete("apps/v1/deployments", "web", namespace)
    stepper.tick(2)
    resolved = condition(kube, namespace, "TargetResolved")
    assert resolved["status"] == "False"
    deploy(replicas=3)
    stepper.tick(2)
    assert condition(kube, namespace, "TargetResolved")["status"] == "True"
    assert replicas(kube, namespace) >= 3
    assert "understudy" in scale_owner(kube, namespace)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (PrometheusFault.EMPTY, "Empty"),
        (PrometheusFault.NAN, "NotANumber"),
        (PrometheusFault.INF, "Infinite"),
        (PrometheusFault.NEGATIVE, "Negative"),
        (PrometheusFault.BOGUS, "TooLarge"),
        (PrometheusFault.STALE, "OldTimestamp"),
        (PrometheusFault.FUTURE, "FutureTimestamp"),
        (PrometheusFault.HTTP_500, "HttpError"),
        (PrometheusFault.GARBAGE, "BadResponse"),
        (PrometheusFault.WARNING, "Partial"),
        (PrometheusFault.DUPLICATE, "Duplicate"),
        (PrometheusFault.HANG, "Timeout"),
    ],
)
def test_broken_telemetry_holds_and_says_why(
    kube, namespace, deploy, plane, rbac, faulty, load, apply, tmp_path, fault, cause
):
    deploy(replicas=4)
    # A short tick, so that the tests of hanging queries do not take long.
    apply(
        telemetry={"interval": "2s", "window": "10s"},
        reference={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}},
    )
    ledger = tmp_path / "ledger.jsonl"
    with Stepper(plane, kube, faulty.url, ledger=ledger, tick_s=2.0) as stepper:
        load.rate_rps = 8 * CAPACITY_RPS
        stepper.tick(WARM)
        before = replicas(kube, namespace)
        faulty.fault = fault
        load.rate_rps = 0.5
        for _ in range(4):
            stepper.tick()
            assert replicas(kube, namespace) >= before
        fresh = condition(kube, namespace, "TelemetryFresh")
        assert fresh["status"] == "False"
        assert cause in fresh["reason"] + fresh["message"]
        faulty.fault = None
        stepper.tick(2)
        assert condition(kube, namespace, "TelemetryFresh")["status"] == "True"

    # Leaving the stepper has closed the ledger. Policies of namespaces that are still going may be in it, too.
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    records = [record for record in records if record["namespace"] == namespace]
    held = records[WARM : WARM + 4]
    assert {record["signals"]["requestRate"]["cause"] for record in held} == {cause}
    assert all(record["desired_replicas"] >= record["current_replicas"] for record in held)


WIDGET = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.example"},
    "spec": {
        "group": "test.example",
        "names": {"kind": "Widget", "plural": "widgets"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
                },
            }
        ],
    },
}
WIDGET_RIGHTS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "understudy-operator-widgets"},
        "rules": [
            {"apiGroups": ["test.example"], "resources": ["widgets"], "verbs": ["get"]},
            {"apiGroups": ["test.example"], "resources": ["widgets/scale"], "verbs": ["get", "patch"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "understudy-operator-widgets"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "understudy-operator-widgets",
        },
        "subjects": [
            {"kind": "ServiceAccount", "name": "understudy-operator", "namespace": OPERATOR_NAMESPACE}
        ],
    },
]


def test_any_kind_with_a_scale_subresource(kube, namespace, stepper, load, apply):
    kube.apply([WIDGET, *WIDGET_RIGHTS])
    widget = {
        "apiVersion": "test.example/v1",
        "kind": "Widget",
        "metadata": {"name": "web"},
        "spec": {"replicas": 4},
    }
    kube.create("test.example/v1/widgets", widget, namespace)
    status = {"status": {"replicas": 4, "readyReplicas": 4}}
    kube.patch("test.example/v1/widgets", "web", status, namespace, subresource="status")
    apply(
        scaleTargetRef={"apiVersion": "test.example/v1", "kind": "Widget", "name": "web"},
        reference={"signal": "requestRate"},
    )
    load.rate_rps = 10 * CAPACITY_RPS
    stepper.tick(3)
    assert kube.get("test.example/v1/widgets", "web", namespace)["spec"]["replicas"] > 4


def test_a_kind_without_scale_is_named(kube, namespace, stepper, apply):
    apply(scaleTargetRef={"apiVersion": "v1", "kind": "ConfigMap", "name": "web"})
    stepper.tick()
    resolved = condition(kube, namespace, "TargetResolved")
    assert resolved["status"] == "False"
    assert "has no /scale" in resolved["message"]


def test_one_bad_policy_costs_the_others_nothing(kube, namespace, deploy, stepper, load, apply):
    deploy(replicas=4)
    apply("broken", scaleTargetRef={"name": "nowhere"}, model={"uri": "file:///nowhere.onnx"})
    apply()
    load.rate_rps = 10 * CAPACITY_RPS
    stepper.tick(3)
    assert replicas(kube, namespace) > 4
    assert condition(kube, namespace, "TargetResolved", "broken")["status"] == "False"
    model = condition(kube, namespace, "ModelLoaded", "broken")
    assert model["status"] == "False"
    assert "/nowhere.onnx" in model["message"]
