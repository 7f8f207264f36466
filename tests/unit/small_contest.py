"""Small loads, cells and policies for tests of the judge: hours and pods instead of days and fleets."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from understudy_policy import actions, artifact, features
from understudy_policy.artifact import Manifest
from understudy_simulator.protocol import Protocol, cells_of
from understudy_simulator.traces import Trace

A, F = len(actions.TABLE), features.F
HOURS = 3.0
SMALL = Protocol(
    segments=1, segment_s=3600 * HOURS, profiles=("web",), pods=(5.0,), startup_s=(30.0,), seeds=2
)


def wave(hours=HOURS, step_s=60.0, period_h=1.0, depth=0.6):
    """A rate that swings, with a step in the middle."""
    time_s = step_s * np.arange(round(3600 * hours / step_s))
    rate = 1.0 + depth * np.sin(2 * np.pi * time_s / (3600 * period_h)) + 0.5 * (time_s > 1800 * hours)
    return Trace("wave", time_s, 100.0 * rate)


def cells(protocol=SMALL, trace=None, family="wave"):
    return list(cells_of(family, f"{family}/0", trace or wave(), 2.0, protocol))


def write_trace(path, trace):
    rows = [f"{t:g},{r:.4f}" for t, r in zip(trace.timestamp_s, trace.requests_per_second, strict=True)]
    path.write_text("\n".join(["timestamp_s,requests_per_second", *rows]) + "\n")
    return path


def constant_actor(path, row):
    """An actor that names the same row of the action table whatever it sees."""
    favour = np.zeros(A, np.float32)
    favour[row] = 50.0

    def answer(mask):
        odds = np.exp(favour - 50.0 - (1 - mask) * 1e8)
        return odds / odds.sum(axis=1, keepdims=True)

    mask = np.ones((2, A), np.float32)
    mask[1, ::2] = 0
    mask[1, row] = 1
    says = Manifest(
        name=path.stem,
        schema_hash=features.schema_hash(),
        table_hash=actions.table_hash(),
        lineage={"algorithm": "none"},
        feature_histograms={},
        golden_features=np.zeros((2, F)).tolist(),
        golden_mask=mask.astype(int).tolist(),
        golden_probabilities=answer(mask).tolist(),
    )
    constants = {
        "weights": np.zeros((F, A), np.float32),
        "favour": favour,
        "one": np.float32([1.0]),
        "much": np.float32([1e8]),
    }
    nodes = [
        helper.make_node("MatMul", ["observation", "weights"], ["nothing"]),
        helper.make_node("Add", ["nothing", "favour"], ["logits"]),
        helper.make_node("Sub", ["one", "mask"], ["forbidden"]),
        helper.make_node("Mul", ["forbidden", "much"], ["penalty"]),
        helper.make_node("Sub", ["logits", "penalty"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["probabilities"], axis=1),
    ]
    ports = {"observation": F, "mask": A, "probabilities": A}
    shown = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in ports.items()
    ]
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "actor", shown[:2], shown[2:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key=artifact.MANIFEST_KEY, value=says.to_json())
    path.write_bytes(model.SerializeToString())
    return path


@dataclass(frozen=True)
class NamesARow:
    """In place of a trainer: what it makes of any actor names one row for a service and another for the next."""

    rows: tuple[tuple[float, int], ...]

    def mark(self):
        return repr(self)

    def __call__(self, actor, past, target):
        assert actor.is_file()
        constant_actor(target, dict(self.rows)[past.service.capacity_rps])
