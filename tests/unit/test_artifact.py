"""A model is code that somebody else wrote: every way in which an artefact can be wrong is refused, and says why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from understudy_policy import actions, artifact, features
from understudy_policy.artifact import ActorStore, ArtifactError, Manifest, load, verify

A, F = len(actions.TABLE), features.F
FLOAT = TensorProto.FLOAT


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(F, A)).astype(np.float32)


def answer(observation: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    logits = observation @ weights(seed)[: observation.shape[1], : mask.shape[1]] - (1 - mask) * 1e8
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def manifest(seed: int = 0, columns: int = F, rows: int = A, **changes: object) -> Manifest:
    rng = np.random.default_rng(1)
    observation = rng.normal(size=(8, columns)).astype(np.float32)
    mask = (rng.random((8, rows)) < 0.5).astype(np.float32)
    mask[:, 0] = 1
    content = {
        "name": "linear",
        "schema_hash": features.schema_hash(columns),
        "table_hash": actions.table_hash(rows),
        "lineage": {"algorithm": "none"},
        "feature_histograms": {},
        "golden_features": observation.tolist(),
        "golden_mask": mask.astype(int).tolist(),
        "golden_probabilities": answer(observation, mask, seed).tolist(),
    }
    return Manifest(**{**content, **changes})


def linear(
    seed: int = 0,
    *,
    batch: str | int = "batch",
    width: int = F,
    rows: int = A,
    output: str = "probabilities",
    respect_mask: bool = True,
    says: Manifest | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """The smallest actor there can be: softmax(observation · weights − (1 − mask) · 1e8)."""
    constants = {
        "weights": weights(seed)[:width, :rows],
        "one": np.float32([1.0]),
        "much": np.float32([1e8 if respect_mask else 0]),
    }
    nodes = [
        helper.make_node("MatMul", ["observation", "weights"], ["logits"]),
        helper.make_node("Sub", ["one", "mask"], ["forbidden"]),
        helper.make_node("Mul", ["forbidden", "much"], ["penalty"]),
        helper.make_node("Sub", ["logits", "penalty"], ["masked"]),
        helper.make_node("Softmax", ["masked"], [output], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "actor",
        [
            helper.make_tensor_value_info("observation", FLOAT, [batch, width]),
            helper.make_tensor_value_info("mask", FLOAT, [batch, rows]),
        ],
        [helper.make_tensor_value_info(output, FLOAT, [batch, rows])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.metadata_props.add(
        key=artifact.MANIFEST_KEY, value=(manifest(seed) if says is None else says).to_json()
    )
    return model


def refusal(model: onnx.ModelProto | bytes, sha256: str | None = None) -> str:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ArtifactError) as refused:
        verify(content, "file:///actor.onnx", sha256)
    return str(refused.value)


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    path = tmp_path / "the shop's 100 % füße" / "actor.onnx"
    path.parent.mkdir()
    path.write_bytes(linear().SerializeToString())
    assert load(path.as_uri()).manifest.name == "linear"


def test_a_good_actor_loads_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "actor.onnx"
    path.write_bytes(linear().SerializeToString())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    actor = load(f"file://{path}", digest)
    assert actor.sha256 == digest
    assert actor.manifest.name == "linear"
    observation = np.random.default_rng(2).normal(size=(5, F)).astype(np.float32)
    allowed = actions.allowed(np.full(5, 0.7))
    got = actor.probabilities(observation, allowed)
    np.testing.assert_allclose(got, answer(observation, allowed.astype(np.float32), 0), atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    assert (got[~allowed] == 0).all()


def test_another_digest_than_the_pinned_one_is_refused() -> None:
    said = refusal(linear(), "0" * 64)
    assert "model.sha256" in said
    assert hashlib.sha256(linear().SerializeToString()).hexdigest() in said


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, linear().SerializeToString()[:500]])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    refusal(content)


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def foreign_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def forbidden_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormalLike", ["logits"], ["noise"]))


def control_flow(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    model.graph.node.append(
        helper.make_node("If", ["mask"], ["either"], then_branch=branch, else_branch=branch)
    )


def own_function(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("", "Softplus", [], [], [], opsets))


def external_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def no_manifest(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def broken_manifest(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "{"


def half_a_manifest(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = '{"name": "x"}'


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (foreign_domain, "com.example"),
        (foreign_node, "com.example:MatMul"),
        (forbidden_operator, "RandomNormalLike"),
        (control_flow, "If"),
        (own_function, "functions"),
        (external_data, "weights"),
        (no_manifest, "understudy.manifest"),
        (broken_manifest, "manifest"),
        (half_a_manifest, "manifest"),
    ],
)
def test_a_model_that_holds_what_it_must_not_is_refused(
    spoil: Callable[[onnx.ModelProto], None], named: str
) -> None:
    model = linear()
    spoil(model)
    assert named in refusal(model)


def test_an_opset_that_was_never_tested_is_refused() -> None:
    assert "opset 13" in refusal(linear(opset=13))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (linear(output="logits_out"), "logits_out"),
        (
            linear(width=F - 1),
            f"of {F - 1} columns, but this version has {features.schema_hash(F - 1)} ({F} in all)",
        ),
        (linear(batch=16), "fixed batch of 16"),
    ],
)
def test_wrong_ports_are_refused(model: onnx.ModelProto, named: str) -> None:
    assert named in refusal(model)


def test_an_actor_of_another_schema_table_or_format_is_refused() -> None:
    assert "schema_hash is abc" in refusal(linear(says=manifest(schema_hash="abc")))
    assert "table_hash is abc" in refusal(linear(says=manifest(table_hash="abc")))
    assert "format_version is 99" in refusal(linear(says=manifest(format_version=99)))


def test_an_actor_from_before_the_newest_columns_and_rows_is_asked_for_what_it_knows() -> None:
    older = linear(width=28, rows=40, says=manifest(columns=28, rows=40))
    actor = verify(older.SerializeToString(), "file:///older.onnx")
    assert (actor.columns, actor.rows) == (28, 40)
    rng = np.random.default_rng(0)
    seen, allowed = rng.normal(size=(6, F)).astype(np.float32), np.ones((6, A), bool)
    allowed[3:, :20] = False
    answer = actor.probabilities(seen, allowed)
    assert answer.shape == (6, A)
    np.testing.assert_allclose(answer.sum(axis=1), 1.0, atol=1e-5)
    assert not answer[:, actor.rows :].any()
    assert not answer[3:, :20].any()
    later = seen.copy()
    later[:, actor.columns :] += 5.0
    np.testing.assert_array_equal(answer, actor.probabilities(later, allowed))


def test_an_actor_that_knows_more_than_this_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = linear().SerializeToString()
    verify(content, "file:///actor.onnx")
    monkeypatch.setattr(actions, "TABLE", actions.TABLE[:-1])
    with pytest.raises(ArtifactError, match=f"table_hash is .* \\({A - 1} in all\\); train it again"):
        verify(content, "file:///actor.onnx")


def test_an_actor_that_misses_its_golden_vectors_is_refused() -> None:
    assert "golden vectors" in refusal(linear(seed=1, says=manifest(seed=0)))
    assert "no golden vectors" in refusal(
        linear(says=manifest(golden_features=[], golden_mask=[], golden_probabilities=[]))
    )


def test_an_actor_that_answers_nan_is_refused() -> None:
    model = linear()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((F, A), np.nan, np.float32), "weights")
    )
    assert "golden vectors by inf" in refusal(model)


def test_an_actor_that_ignores_the_mask_is_refused() -> None:
    good = manifest()
    observation = np.asarray(good.golden_features, np.float32)
    ignoring = answer(observation, np.ones((len(observation), A), np.float32), 0)
    says = manifest(golden_probabilities=ignoring.tolist())
    assert "mask" in refusal(linear(respect_mask=False, says=says))


@pytest.mark.parametrize(
    "says",
    [
        {"golden_features": [[0.0] * F, [0.0]]},
        {"golden_features": [[0.0] * (F - 1)] * 8},
        {"golden_probabilities": "none"},
        {"golden_mask": [[1] * A]},
    ],
    ids=["ragged", "too narrow", "no numbers", "another count"],
)
def test_golden_vectors_that_make_no_sense_are_a_refusal_like_any_other(says: dict[str, object]) -> None:
    assert "golden" in refusal(linear(says=manifest(**says)))


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "actor.onnx"
    with path.open("wb") as file:
        file.truncate(artifact.SIZE_LIMIT + 1)
    with pytest.raises(ArtifactError, match=str(artifact.SIZE_LIMIT)):
        load(f"file://{path}")


@pytest.mark.parametrize(
    "uri",
    [
        "builtin://nobody",
        "builtin://../decision",
        "file:///no/such.onnx",
        "file://relative",
        "http://x/y",
        "",
    ],
)
def test_a_uri_that_leads_nowhere_is_refused(uri: str) -> None:
    with pytest.raises(ArtifactError, match=r"model\.uri"):
        load(uri)


def replace(path: Path, model: onnx.ModelProto | bytes) -> None:
    """Put a new file in place as a config-map volume or an export does, with a time of its own."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    fresh = path.with_suffix(".new")
    fresh.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    os.utime(fresh, ns=(before + 10**9, before + 10**9))
    fresh.replace(path)


def test_the_store_swaps_a_changed_file_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    path, store = tmp_path / "actor.onnx", ActorStore()
    uri = f"file://{path}"
    assert store.get(uri) is None
    assert "no such file" in store.rejected[uri, None]

    replace(path, linear(seed=0))
    first = store.get(uri)
    assert first is not None
    assert not store.rejected
    assert store.get(uri) is first

    replace(path, b"half a file")
    assert store.get(uri) is first
    assert "not an ONNX file" in store.rejected[uri, None]

    replace(path, linear(seed=1))
    second = store.get(uri)
    assert second is not None
    assert second.sha256 != first.sha256
    assert not store.rejected

    aside = path.rename(tmp_path / "aside.onnx")
    assert store.get(uri) is second
    assert "no such file" in store.rejected[uri, None]
    aside.rename(path)
    back = store.get(uri)
    assert back is not None
    assert back.sha256 == second.sha256
    assert not store.rejected, "the same file came back, and nothing is wrong any more"


def test_a_pinned_actor_is_not_swapped_for_another(tmp_path: Path) -> None:
    path, store = tmp_path / "actor.onnx", ActorStore()
    uri = f"file://{path}"
    replace(path, linear(seed=0))
    pin = hashlib.sha256(path.read_bytes()).hexdigest()
    audited = store.get(uri, pin)
    replace(path, linear(seed=1))
    assert store.get(uri, pin) is audited
    assert "model.sha256" in store.rejected[uri, pin]


def test_the_builtin_actor_is_what_it_says() -> None:
    actor = load("builtin://generalist")
    assert actor.manifest.name == "generalist"
    assert actor.manifest.lineage["options"]["algorithm"] == "ppo"
    assert actor.manifest.lineage["parity"]["max_abs_error"] < 1e-5
    assert set(actor.manifest.feature_histograms) == {name for name, _ in features.SCHEMA[: actor.columns]}
    # It chose differently where it was shown different things: no constant graph.
    golden = np.asarray(actor.manifest.golden_probabilities)
    assert len(set(golden.argmax(axis=1))) > 2
