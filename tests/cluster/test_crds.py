"""The resources and the operator's rights on a real API server, which has the last word on both."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from understudy_demo.controlplane.client import KubeError, read_manifests
from understudy_policy.api import RLPolicy, refusal

pytestmark = pytest.mark.cluster

MANIFESTS = Path(__file__).parents[2] / "manifests"
GOOD = sorted((MANIFESTS / "samples" / "good").glob("*.yaml"))
BAD = sorted((MANIFESTS / "samples" / "bad").glob("*.yaml"))
RESOURCES = {
    "RLPolicy": "understudy.dev/v1alpha1/rlpolicies",
    "RLTraining": "understudy.dev/v1alpha1/rltrainings",
}
POLICIES = RESOURCES["RLPolicy"]
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
OPERATOR = "system:serviceaccount:understudy-system:understudy-operator"


@pytest.fixture(scope="module")
def rights(kube):
    """The manifests of RBAC are applied."""
    kube.apply(read_manifests(MANIFESTS / "rbac"))


def read(path):
    return yaml.safe_load(path.read_text())


def dry_run(kube, body):
    resource = RESOURCES[body["kind"]]
    return kube.create(resource, body, "default", dryRun="All", fieldValidation="Strict")


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_sample_is_accepted_and_nothing_in_it_is_lost(kube, path):
    stored = dry_run(kube, read(path))

    def kept(given, found):
        if isinstance(given, dict):
            return all(name in found and kept(value, found[name]) for name, value in given.items())
        return given == found

    assert kept(read(path)["spec"], stored["spec"]), stored["spec"]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_sample_is_refused_with_a_message_that_names_the_field(kube, path):
    expected = path.read_text().splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(KubeError) as refused:
        dry_run(kube, read(path))
    assert expected in refused.value.message


def test_the_api_server_fills_in_the_defaults_that_the_models_state(kube):
    sample = read(MANIFESTS / "samples" / "good" / "minimal.yaml")
    stored = dry_run(kube, sample)["spec"]

    expected = RLPolicy.model_validate(sample).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert stored == expected


def mostly(*good, odd):
    """One of the good values, and now and then an odd one: a sample with two faults tells less."""
    return st.one_of(*[st.sampled_from(good)] * 4, odd)


replicas = mostly(1, 2, 3, odd=st.integers(-1, 6))
durations = mostly(
    "1s",
    "2500ms",
    "5s",
    "15s",
    "1m",
    "1m30s",
    "5m",
    odd=st.sampled_from(["0s", "1ms", "301s", "9h", "2d", "15", "1.5s"]),
)
capacities = mostly(
    "Auto", 25, "12.5", "0.01", odd=st.one_of(st.integers(-1, 10**6), st.text("Auto019. ", max_size=8))
)
seconds = mostly(15, 60, 240, odd=st.sampled_from([0, 1, 241, 600, 601, 1800, 1801, 3600, 3601]))
policies = st.lists(
    st.builds(lambda period: {"type": "Pods", "value": 1, "periodSeconds": period}, seconds),
    min_size=1,
    max_size=2,
)
rules = st.fixed_dictionaries({}, optional={"stabilizationWindowSeconds": seconds, "policies": policies})
specs = st.fixed_dictionaries(
    {},
    optional={
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "objective": st.fixed_dictionaries(
            {"latencyThreshold": durations},
            optional={"capacityPerPod": capacities, "sloTarget": st.floats(0.45, 1)},
        ),
        "telemetry": st.fixed_dictionaries(
            {"interval": durations, "window": durations}, optional={"staleAfter": durations}
        ),
        "reference": st.fixed_dictionaries(
            {"behavior": st.fixed_dictionaries({"scaleUp": rules, "scaleDown": rules})}
        ),
        "rollout": st.fixed_dictionaries(
            {}, optional={"steps": st.lists(st.floats(-0.1, 1.1), max_size=3), "stepDuration": durations}
        ),
        "override": st.fixed_dictionaries({"replicas": replicas, "reason": st.just("test")}),
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(spec=specs)
def test_the_api_server_and_the_models_agree_on_what_is_good(kube, spec):
    body = read(MANIFESTS / "samples" / "good" / "minimal.yaml")
    body["spec"] |= spec
    try:
        RLPolicy.model_validate(body)
        ours = ""
    except ValidationError as error:
        ours = refusal(error)
    try:
        dry_run(kube, body)
        theirs = ""
    except KubeError as error:
        theirs = error.message
    assert bool(ours) == bool(theirs), (ours, theirs)


def test_crds_are_established_without_complaint(kube):
    for plural in ("rlpolicies", "rltrainings"):
        crd = kube.get("apiextensions.k8s.io/v1/customresourcedefinitions", f"{plural}.understudy.dev")
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions


@pytest.fixture
def policy(kube, namespace):
    body = read(MANIFESTS / "samples" / "good" / "minimal.yaml")
    return kube.create(POLICIES, body, namespace)["metadata"]


def a_status():
    when = "2026-01-01T00:00:00Z"
    return {
        "observedGeneration": 1,
        "stage": "Shadow",
        "authority": 0,
        "currentReplicas": 4,
        "desiredReplicas": 6,
        "referenceReplicas": 5,
        "proposedReplicas": 7,
        "lastDecision": {"decisionId": "01", "time": when, "replicas": 6, "reason": "AuthorityZero"},
        "model": {"uri": "builtin://generalist", "sha256": "0" * 64, "loadedAt": when},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Deciding",
                "message": "Decisions are being made.",
                "lastTransitionTime": when,
                "observedGeneration": 1,
            }
        ],
    }


def test_a_status_is_kept_whole_and_a_client_may_own_single_conditions(kube, namespace, policy):
    name = policy["name"]
    stored = kube.patch(POLICIES, name, {"status": a_status()}, namespace, "status")
    assert stored["status"] == a_status()

    another = a_status()["conditions"][0] | {"type": "Acting", "status": "False", "reason": "ShadowMode"}
    applied = {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "RLPolicy",
        "metadata": {"name": name},
        "status": {"conditions": [another]},
    }
    stored = kube.patch(
        POLICIES,
        name,
        applied,
        namespace,
        "status",
        content_type="application/apply-patch+yaml",
        fieldManager="someone",
    )
    assert {condition["type"] for condition in stored["status"]["conditions"]} == {"Ready", "Acting"}


def test_a_status_that_lies_outside_its_bounds_is_refused(kube, namespace, policy):
    with pytest.raises(KubeError, match=r"status\.authority"):
        kube.patch(POLICIES, policy["name"], {"status": {"authority": 1.5}}, namespace, "status")


def test_kubectl_get_shows_what_people_look_for(kube, namespace, policy):
    kube.patch(POLICIES, policy["name"], {"status": a_status()}, namespace, "status")
    path = f"/apis/understudy.dev/v1alpha1/namespaces/{namespace}/rlpolicies"
    table = kube.request("GET", path, accept=TABLE)

    shown = dict(
        zip((column["name"] for column in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True)
    )
    age = shown.pop("Age")
    assert age.endswith("s")
    assert shown == {
        "Name": "checkout",
        "Target": "checkout",
        "Mode": "Shadow",
        "Authority": 0,
        "Current": 4,
        "Desired": 6,
        "Reason": "AuthorityZero",
        "Ready": "True",
        "Reference": 5,
        "Proposed": 7,
        "Stage": "Shadow",
        "Model": "builtin://generalist",
        "Owner": "team-checkout",
    }
    wide = {column["name"] for column in table["columnDefinitions"] if column["priority"]}
    assert wide == {"Reference", "Proposed", "Stage", "Model", "Owner"}


def test_policies_can_be_selected_by_mode(kube, namespace, policy):
    assert [
        p["metadata"]["name"] for p in kube.list(POLICIES, namespace, fieldSelector="spec.mode=Shadow")
    ] == [policy["name"]]
    assert kube.list(POLICIES, namespace, fieldSelector="spec.mode=Active") == []


def test_short_names_and_category_are_served(kube):
    served = {r["name"]: r for r in kube.request("GET", "/apis/understudy.dev/v1alpha1")["resources"]}
    assert served["rlpolicies"]["shortNames"] == ["rlp"]
    assert served["rltrainings"]["shortNames"] == ["rlt"]
    assert served["rlpolicies"]["categories"] == served["rltrainings"]["categories"] == ["understudy"]


def may(kube, user, verb, resource, *, group="", subresource="", namespace="shop", name=""):
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "resourceAttributes": {
                "verb": verb,
                "group": group,
                "resource": resource,
                "subresource": subresource,
                "namespace": namespace,
                "name": name,
            },
        },
    }
    return kube.create("authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]


@pytest.mark.usefixtures("rights")
@pytest.mark.parametrize("kind", ["deployments", "statefulsets"])
def test_the_operator_changes_replicas_and_nothing_else_of_a_workload(kube, kind):
    def ask(verb, subresource=""):
        return may(kube, OPERATOR, verb, kind, group="apps", subresource=subresource)

    assert all(ask(verb) for verb in ("get", "list", "watch"))
    assert all(ask(verb, "scale") for verb in ("get", "patch"))
    assert not any(ask(verb) for verb in ("create", "patch", "update", "delete", "deletecollection"))
    assert not ask("update", "scale")


@pytest.mark.usefixtures("rights")
def test_the_operator_reports_on_policies_but_cannot_rewrite_them(kube):
    def ask(verb, subresource=""):
        return may(kube, OPERATOR, verb, "rlpolicies", group="understudy.dev", subresource=subresource)

    assert all(ask(verb) for verb in ("get", "list", "watch"))
    assert ask("patch", "status")
    assert not any(ask(verb) for verb in ("create", "patch", "update", "delete"))


@pytest.mark.usefixtures("rights")
def test_the_operator_reads_the_kill_switches_and_cannot_release_them(kube):
    def switch(verb, name="understudy-kill-switch", namespace="understudy-system"):
        return may(kube, OPERATOR, verb, "configmaps", namespace=namespace, name=name)

    assert switch("get")
    assert not any(switch(verb) for verb in ("patch", "update", "delete", "create"))
    assert not switch("get", name="another")
    assert not switch("get", namespace="shop")
    assert may(kube, OPERATOR, "get", "namespaces", namespace="", name="shop")
    assert not may(kube, OPERATOR, "patch", "namespaces", namespace="", name="shop")
    assert not may(kube, OPERATOR, "get", "secrets", namespace="understudy-system", name="any")


@pytest.mark.usefixtures("rights")
def test_the_operator_holds_its_own_lease_only(kube):
    def lease(verb, name):
        return may(
            kube,
            OPERATOR,
            verb,
            "leases",
            group="coordination.k8s.io",
            namespace="understudy-system",
            name=name,
        )

    assert all(lease(verb, "understudy-operator") for verb in ("create", "get", "update", "patch"))
    assert not lease("update", "another")


@pytest.mark.usefixtures("rights")
def test_on_call_can_kill_and_resume_in_every_scope_and_touch_no_workload(kube):
    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "someone-on-call"}

    def binding(kind, role, **metadata):
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": "someone-on-call", **metadata},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "understudy-oncall"},
            "subjects": [subject],
        }

    kube.apply(
        [
            binding("ClusterRoleBinding", "ClusterRole"),
            binding("RoleBinding", "Role", namespace="understudy-system"),
        ]
    )
    who = subject["name"]

    assert may(kube, who, "patch", "rlpolicies", group="understudy.dev")
    assert may(kube, who, "patch", "namespaces", namespace="", name="shop")
    system = {"namespace": "understudy-system", "name": "understudy-kill-switch"}
    assert all(may(kube, who, verb, "configmaps", **system) for verb in ("get", "create", "patch"))
    assert not may(kube, who, "patch", "configmaps", namespace="understudy-system", name="another")
    assert not may(kube, who, "patch", "deployments", group="apps", subresource="scale")
    assert not may(kube, who, "delete", "rlpolicies", group="understudy.dev")
