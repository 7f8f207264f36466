"""The actor as an artefact: one ONNX file that says what it is, proves it, and can be swapped while running.

A model is code that somebody else wrote. Before it may propose anything its digest, size, operators, inputs,
outputs and schema are checked, and it must give back its own golden vectors. A failure keeps the last good one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import onnx
import onnxruntime

from understudy_policy import actions, features

MANIFEST_KEY = "understudy.manifest"
FORMAT_VERSION = 1
SIZE_LIMIT = 32 * 2**20
OPSET_RANGE = (17, 24)
GOLDEN_TOLERANCE = 1e-4

ALLOWED_OPERATORS = frozenset(
    {
        "Add", "Cast", "Clip", "Concat", "Constant", "Div", "Elu", "Erf", "Exp", "Expand", "Flatten", "GRU",
        "Gather", "Gelu", "Gemm", "Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MatMul",
        "Max", "Min", "Mul", "Neg", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice",
        "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What an actor may be made of: no control flow, no randomness, no files, no custom domains."""

BUILTIN = Path(__file__).parent / "builtin"


class ArtifactError(ValueError):
    """The artefact failed verification; the message names the check, what was found and what was expected."""


@dataclass(frozen=True)
class Manifest:
    """What an artefact says about itself; stored as JSON in the ONNX metadata.

    Attributes:
        name: name of the actor.
        schema_hash: of the columns of the observation that it knows, see `features.schema_hash`.
        table_hash: of the rows of the action table that it knows, see `actions.table_hash`.
        lineage: how it was made: algorithm, loads, seeds, steps, commit, figures.
        feature_histograms: per feature, quantiles of what the actor was trained on.
        golden_features: `[M, columns]` observations.
        golden_mask: `[M, rows]` allowed rows (1 or 0).
        golden_probabilities: `[M, rows]` what the actor answers to them.
        format_version: of this manifest.
    """

    name: str
    schema_hash: str
    table_hash: str
    lineage: dict[str, Any]
    feature_histograms: dict[str, list[float]]
    golden_features: list[list[float]]
    golden_mask: list[list[int]]
    golden_probabilities: list[list[float]]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The manifest as stable JSON."""
        return json.dumps(self.__dict__, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ArtifactError: it is not JSON or a field is missing or unknown.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"manifest: {error}; export the actor again with this version") from error


@dataclass(frozen=True)
class Actor:
    """A verified actor, ready to be asked.

    Columns of the observation and rows of the action table are only ever appended, so an actor that was trained before
    the newest of them is asked for what it knows, and goes on working.

    Attributes:
        uri: where it came from.
        sha256: digest of the file.
        manifest: what it says about itself.
        columns: of the observation, the first, that it looks at.
        rows: of the action table, the first, that it chooses from.
    """

    uri: str
    sha256: str
    manifest: Manifest
    columns: int
    rows: int
    _session: Any = field(repr=False)

    def probabilities(self, observation: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Probabilities of the rows of the action table.

        Args:
            observation: `[N, F]` float32; columns that it does not know may be missing.
            allowed: `[N, A]` bool; the same of rows.

        Returns:
            `[N, A]` float32; zero for rows that it does not know.
        """
        feed = {
            "observation": np.ascontiguousarray(observation[:, : self.columns], np.float32),
            "mask": allowed[:, : self.rows].astype(np.float32),
        }
        known: np.ndarray = self._session.run(["probabilities"], feed)[0]
        return np.pad(known, ((0, 0), (0, allowed.shape[1] - self.rows)))


def resolve(uri: str) -> Path:
    """The file behind a model URI.

    Args:
        uri: `builtin://NAME` or `file:///absolute/path.onnx`, in which %20 is a space as in every URI.

    Raises:
        ArtifactError: the scheme is unknown or nothing is there.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "builtin":
        path = BUILTIN / f"{rest}.onnx"
        known = ", ".join(f"builtin://{file.stem}" for file in sorted(BUILTIN.glob("*.onnx")))
        if "/" in rest or not path.is_file():
            raise ArtifactError(f"model.uri {uri!r} is not shipped; choose one of: {known}")
        return path
    if scheme == "file" and rest.startswith("/"):
        path = Path(unquote(rest))
        if not path.is_file():
            raise ArtifactError(f"model.uri {uri!r}: there is no such file; mount it into the operator")
        return path
    raise ArtifactError(f"model.uri {uri!r} cannot be read; use builtin://NAME or file:///absolute/path.onnx")


def load(uri: str, sha256: str | None = None) -> Actor:
    """Fetch, verify and load an actor.

    Args:
        uri: see `resolve`.
        sha256: digest that the file must have; None: any.

    Raises:
        ArtifactError: a check failed.
    """
    path = resolve(uri)
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise ArtifactError(f"{uri} has {size} bytes; an actor may have at most {SIZE_LIMIT}")
    content = path.read_bytes()
    return verify(content, uri, sha256)


def verify(content: bytes, uri: str, sha256: str | None = None) -> Actor:
    """Check an actor's bytes and load it; see `load`."""
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ArtifactError(
            f"model.sha256 is {sha256} but {uri} has {digest}; pin the digest that you audited"
        )
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise ArtifactError(f"{uri} is not an ONNX file: {error}") from error
    _check_graph(model, uri)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if MANIFEST_KEY not in metadata:
        raise ArtifactError(f"{uri} carries no {MANIFEST_KEY}; export it with understudy_trainer.export")
    manifest = Manifest.from_json(metadata[MANIFEST_KEY])
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{uri}: format_version is {manifest.format_version} but this version has {FORMAT_VERSION}; train it again"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{uri} cannot be loaded: {error}") from error
    columns, rows = _check_signature(session, manifest, uri)
    actor = Actor(uri, digest, manifest, columns, rows, session)
    try:
        _check_golden(actor)
    except ArtifactError:
        raise
    except Exception as error:  # whatever the file made the runtime, or a ragged manifest made NumPy, say
        raise ArtifactError(f"{uri} cannot be asked for its golden vectors: {error}") from error
    return actor


def _check_graph(model: onnx.ModelProto, uri: str) -> None:
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            raise ArtifactError(
                f"{uri} needs the operator domain {opset.domain!r}; only the standard one is allowed"
            )
        if not OPSET_RANGE[0] <= opset.version <= OPSET_RANGE[1]:
            raise ArtifactError(
                f"{uri} has opset {opset.version}; allowed are {OPSET_RANGE[0]} to {OPSET_RANGE[1]}"
            )
    if model.functions:
        raise ArtifactError(f"{uri} defines functions of its own; export it with them inlined")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED_OPERATORS:
            raise ArtifactError(f"{uri} uses the operator {node.domain}:{node.op_type}, which is not allowed")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ArtifactError(f"{uri} keeps the tensor {tensor.name!r} in another file; store it inside")


def _check_signature(session: Any, manifest: Manifest, uri: str) -> tuple[int, int]:
    """How many columns the actor looks at and how many rows it chooses from."""
    found = {port.name: port for port in (*session.get_inputs(), *session.get_outputs())}
    if set(found) != {"observation", "mask", "probabilities"}:
        raise ArtifactError(
            f"{uri} has the ports {sorted(found)}; expected are ['mask', 'observation', 'probabilities']"
        )
    for name, port in found.items():
        if port.type != "tensor(float)" or len(port.shape) != 2 or not isinstance(port.shape[1], int):
            raise ArtifactError(
                f"{uri}: {name} is {port.type} {port.shape}; expected is tensor(float) [N, width]"
            )
        if not isinstance(port.shape[0], str):
            raise ArtifactError(
                f"{uri}: {name} has a fixed batch of {port.shape[0]}; export it with a free one"
            )
    columns, rows, answers = (int(found[name].shape[1]) for name in ("observation", "mask", "probabilities"))
    if answers != rows:
        raise ArtifactError(f"{uri}: probabilities is {answers} wide and mask {rows}; both are one per row")
    for name, width, of, most, told, ours in (
        ("schema_hash", columns, "columns", features.F, manifest.schema_hash, features.schema_hash(columns)),
        ("table_hash", rows, "rows", len(actions.TABLE), manifest.table_hash, actions.table_hash(rows)),
    ):
        if told != ours or width > most:
            raise ArtifactError(
                f"{uri}: {name} is {told}, of {width} {of}, but this version has {ours} ({most} in all); "
                "train it again"
            )
    return columns, rows


def _check_golden(actor: Actor) -> None:
    manifest = actor.manifest
    wanted = np.asarray(manifest.golden_probabilities, np.float32)
    if wanted.ndim != 2 or len(wanted) < 2:
        raise ArtifactError(
            f"{actor.uri} carries no golden vectors; export it with understudy_trainer.export"
        )
    mask = np.asarray(manifest.golden_mask, bool)
    answer = actor.probabilities(np.asarray(manifest.golden_features, np.float32), mask)
    worst = float(np.max(np.abs(answer - wanted))) if np.isfinite(answer).all() else float("inf")
    if not worst <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"{actor.uri} misses its golden vectors by {worst:.2g}; at most {GOLDEN_TOLERANCE}"
        )
    if (answer[~mask] > 1e-6).any():
        raise ArtifactError(f"{actor.uri} gives probability to rows that the mask forbids")


class ActorStore:
    """The actors in use, by URI and pinned digest; a failed load keeps the last good one."""

    def __init__(self) -> None:
        self._good: dict[tuple[str, str | None], Actor] = {}
        self._stamps: dict[tuple[str, str | None], tuple[int, int, int]] = {}
        self.rejected: dict[tuple[str, str | None], str] = {}

    def get(self, uri: str, sha256: str | None = None) -> Actor | None:
        """The actor, loaded on first use and again when its file changes.

        Returns:
            The newest verified actor for this URI and digest, or None if none ever passed; `rejected` then says why.
        """
        key = (uri, sha256)
        try:
            stat = resolve(uri).stat()
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
        except (ArtifactError, OSError) as error:
            self._stamps.pop(key, None)  # what comes back in its place is looked at anew
            self.rejected[key] = str(error)
            return self._good.get(key)
        if stamp != self._stamps.get(key):
            self._stamps[key] = stamp
            try:
                self._good[key] = load(uri, sha256)
                self.rejected.pop(key, None)
            except (ArtifactError, OSError) as error:
                self.rejected[key] = str(error)
        return self._good.get(key)
