"""The resources: what is accepted, what is filled in, and what a refusal says."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from understudy_policy import crd
from understudy_policy.api import ApiModel, Condition, RLPolicy, RLTraining, Rule, duration_s, refusal

MANIFESTS = Path(__file__).parents[2] / "manifests"
GOOD = sorted((MANIFESTS / "samples" / "good").glob("*.yaml"))
BAD = sorted((MANIFESTS / "samples" / "bad").glob("*.yaml"))
MODELS = {"RLPolicy": RLPolicy, "RLTraining": RLTraining}
NEVER_SEEN = (
    "unknown field"  # only the API server refuses these: an older operator must survive a newer field
)


def read(path):
    return yaml.safe_load(path.read_text())


def expectation(path):
    return path.read_text().splitlines()[0].removeprefix("# expect: ")


def parse(body):
    return MODELS[body["kind"]].model_validate(body)


def policy(**spec):
    body = read(MANIFESTS / "samples" / "good" / "minimal.yaml")
    body["spec"] |= spec
    return RLPolicy.model_validate(body)


def why_not(**spec):
    with pytest.raises(ValidationError) as refused:
        policy(**spec)
    return refusal(refused.value)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_sample_with_its_defaults_filled_in_means_the_same(path):
    parsed = parse(read(path))
    filled = parsed.model_dump(mode="json", by_alias=True)

    assert filled["spec"].keys() >= read(path)["spec"].keys()
    assert parse(filled) == parsed


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_sample_is_refused_in_one_sentence_that_names_the_field(path):
    expected = expectation(path)
    if expected.startswith(NEVER_SEEN):
        parse(read(path))
        return
    with pytest.raises(ValidationError) as refused:
        parse(read(path))
    sentence = refusal(refused.value)

    assert "\n" not in sentence
    if expected.startswith("spec."):
        field, _, _ = expected.partition(":")
        assert field.replace("[", ".").replace("]", "") in sentence
    else:
        assert expected in sentence


def rules_of(model: type[BaseModel], seen: set[type]) -> list[Rule]:
    seen.add(model)
    found = list(model.rules) if issubclass(model, ApiModel) else []
    for field in model.model_fields.values():
        for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
                found += rules_of(part, seen)
    return found


@pytest.mark.parametrize("rule", rules_of(RLPolicy, set()), ids=lambda rule: rule.field)
def test_every_rule_has_a_bad_sample_that_the_api_server_is_asked_about(rule):
    beginning, _, _ = rule.message.partition("{")
    assert any(expectation(path).startswith(beginning) for path in BAD)


def test_what_is_not_said_is_safe():
    spec = policy().spec

    assert spec.mode == "Shadow"
    assert (spec.min_replicas, spec.max_replicas) == (1, 20)
    assert spec.on_kill == "Reference"
    assert spec.scale_target_ref.kind == "Deployment"
    assert spec.model.uri == "builtin://generalist"
    assert spec.objective.capacity_per_pod_rps is None
    assert spec.telemetry.stale_after_s == 4 * spec.telemetry.interval_s == 60
    assert spec.rollout.steps == (0.1, 0.25, 0.5, 1.0)
    assert spec.override is None


def test_behavior_has_the_defaults_of_an_hpa_and_a_given_list_of_policies_replaces_them():
    behavior = policy(reference={"behavior": {"scaleUp": {"policies": [
        {"type": "Pods", "value": 1, "periodSeconds": 60}
    ]}}}).spec.reference.behavior  # fmt: skip

    assert [p.type for p in behavior.scale_up.policies] == ["Pods"]
    assert behavior.scale_up.stabilization_window_seconds == 0
    assert behavior.scale_down.stabilization_window_seconds == 300
    assert [(p.type, p.value, p.period_seconds) for p in behavior.scale_down.policies] == [
        ("Percent", 100, 15)
    ]
    assert [(p.type, p.value) for p in policy().spec.reference.behavior.scale_up.policies] == [
        ("Pods", 4),
        ("Percent", 100),
    ]


def test_refusals_name_field_value_and_mend():
    assert why_not(mode=False).startswith("spec.mode is False: it should be 'Off', 'Shadow'")
    assert 'write "Off"' in why_not(mode=False)
    assert why_not(maxReplicas=0) == "spec.maxReplicas is 0: it should be greater than or equal to 1"
    assert why_not(minReplicas=30) == (
        "spec: minReplicas 30 is above maxReplicas 20: lower the one or raise the other"
    )
    assert why_not(owner="") == "spec.owner is '': it should have at least 1 character"
    assert why_not(objective={"latencyThreshold": "250"}) == (
        "spec.objective.latencyThreshold is '250': it should be whole numbers with units, such as 250ms or 1m30s"
    )
    assert why_not(scaleTargetRef={}) == "spec.scaleTargetRef.name is missing: add it"
    assert "write Auto" in why_not(objective={"latencyThreshold": "1s", "capacityPerPod": True})


def test_a_later_field_does_not_stop_an_older_operator():
    assert policy(fieldOfTheNextRelease={"a": 1}) == policy()


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_bounds_of_replicas_are_accepted_exactly_when_they_can_hold(low, high):
    if low <= high:
        assert policy(minReplicas=low, maxReplicas=high).spec.max_replicas == high
    else:
        assert f"minReplicas {low} is above maxReplicas {high}" in why_not(minReplicas=low, maxReplicas=high)


@given(interval_s=st.integers(1, 300), window_s=st.integers(0, 3600), period_s=st.integers(1, 1800))
def test_no_window_reaches_further_back_than_240_ticks(interval_s, window_s, period_s):
    rules = {
        "stabilizationWindowSeconds": window_s,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": period_s}],
    }
    asked = {
        "telemetry": {"interval": f"{interval_s}s", "window": "5m"},
        "reference": {"behavior": {"scaleUp": rules, "scaleDown": rules}},
    }
    if max(window_s, period_s) <= 240 * interval_s:
        assert policy(**asked).spec.reference.behavior.scale_down.stabilization_window_seconds == window_s
    else:
        assert "history of 240 ticks" in why_not(**asked)


@given(st.integers(1, 99_999), st.integers(1, 99_999), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_duration_is_the_sum_of_its_parts(first, second, unit):
    assert duration_s(f"{first}h{second}{unit}") == pytest.approx(
        3600 * first + second * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
    )


@pytest.mark.parametrize("text", ["", "15", "s", "-1s", "1.5s", "1 s", "1s ", "1y"])
def test_what_is_not_a_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 250ms"):
        duration_s(text)


@given(st.one_of(st.integers(1, 999_999), st.decimals("0.001", "999999", places=3).map(str)))
def test_any_positive_capacity_is_understood(capacity):
    objective = policy(objective={"latencyThreshold": "1s", "capacityPerPod": capacity}).spec.objective
    assert objective.capacity_per_pod_rps == float(capacity)


def test_a_long_error_is_cut_rather_than_costing_the_status_write():
    condition = Condition(
        type="Ready",
        status="False",
        last_transition_time="2026-01-01T00:00:00Z",
        reason="X",
        message="é" * 5000,
    )
    assert len(condition.message) == 1024
    assert condition.message.endswith("…")


# --- the CRDs ------------------------------------------------------------------------------------------------------


def test_the_crds_in_the_repository_are_the_generated_ones(capsys):
    assert crd.main(["--check", "--out", str(MANIFESTS / "crds")]) == 0, capsys.readouterr().out


def test_a_crd_that_is_not_current_fails_the_check_with_a_diff(tmp_path, capsys):
    assert crd.main(["--out", str(tmp_path)]) == 0
    path = tmp_path / "rlpolicies.yaml"
    path.write_text(path.read_text().replace("maximum: 10000", "maximum: 9", 1))

    assert crd.main(["--check", "--out", str(tmp_path)]) == 1
    assert "+                maximum: 10000" in capsys.readouterr().out


def test_every_field_is_described():
    def undescribed(schema, path):
        for name, child in schema.get("properties", {}).items():
            if "description" not in child:
                yield f"{path}.{name}"
            yield from undescribed(child, f"{path}.{name}")
        if isinstance(schema.get("items"), dict):
            yield from undescribed(schema["items"], f"{path}[]")

    for text in crd.manifests().values():
        root = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            assert list(undescribed(root["properties"][part], part)) == []


@pytest.mark.parametrize(
    ("node", "schema"),
    [
        (
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "T"},
            {"type": "string", "maxLength": 3},
        ),
        ({"const": "x", "type": "string"}, {"type": "string", "enum": ["x"]}),
        (
            {"type": "integer", "exclusiveMinimum": 0, "maximum": 5},
            {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 5},
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "additionalProperties": False},
            {"type": "object", "properties": {"a": {"type": "boolean"}}},
        ),
        (
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            {
                "type": "array",
                "items": {"type": "boolean"},
                "maxItems": 2,
                "x-kubernetes-list-type": "atomic",
            },
        ),
    ],
)
def test_json_schema_becomes_structural(node, schema):
    assert crd.structural(node, {"A": {"type": "boolean"}}, "spec") == schema


@pytest.mark.parametrize(
    "node",
    [
        {"type": "string"},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "integer", "minimum": 0},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": "string", "maxLength": 3, "contentEncoding": "base64"},
        {"description": "anything"},
    ],
)
def test_what_a_crd_cannot_hold_is_refused_with_its_path(node):
    with pytest.raises(ValueError, match=r"^spec\.field: "):
        crd.structural(node, {}, "spec.field")
