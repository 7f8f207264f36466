"""From a trained network to the artefact that the operator loads: one ONNX file that says and proves what it is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from understudy_policy import actions, artifact, features
from understudy_trainer.networks import Actor

Floats = NDArray[np.float32]


OPSET = 20
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Of every feature in the reference histogram, which drift is measured against."""

LEAST_OBSERVATIONS = 1000
"""That parity is measured on."""

PARITY_OBSERVATIONS = 4096
PARITY_LIMIT = 1e-5
GOLDEN = 16


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        sha256: digest of the file.
        size: in bytes.
        parity: largest absolute difference between ONNX Runtime and torch.
        compared: observations that it was measured on.
    """

    sha256: str
    size: int
    parity: float
    compared: int

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.size / 1000:.0f} kB, within {self.parity:.1e} of torch on {self.compared} observations, "
            f"sha256 {self.sha256}"
        )


def export(actor: Actor, path: Path, name: str, lineage: dict[str, Any], observations: Floats) -> Exported:
    """Write an actor as an artefact and load it back.

    Args:
        actor: with its normaliser as it stands.
        path: file to write.
        name: of the actor.
        lineage: how it was made; the parity is added.
        observations: `[M, F]` that it was trained on, `LEAST_OBSERVATIONS` at least, spread over what it may meet.

    Raises:
        ValueError: too few observations, or ONNX Runtime disagrees with torch.
        ArtifactError: the operator would refuse the file; nothing is written then.
    """
    if len(observations) < LEAST_OBSERVATIONS:
        raise ValueError(
            f"observations has {len(observations)} rows; parity needs at least {LEAST_OBSERVATIONS}, so record more"
        )
    actor.eval()
    compared = min(len(observations), PARITY_OBSERVATIONS)
    chosen = observations[np.linspace(0, len(observations) - 1, compared).astype(int)]
    # Every ceiling that a resource may ask for, so that the mask is compared and proven too.
    mask = actions.allowed(np.linspace(2.0, 0.3, len(chosen)))
    model = _graph(actor)
    answer = _run(model, chosen, mask)
    with torch.no_grad():
        wanted = actor(torch.from_numpy(chosen), torch.from_numpy(mask.astype(np.float32))).numpy()
    parity = float(np.max(np.abs(answer - wanted)))
    if not parity <= PARITY_LIMIT:
        raise ValueError(
            f"the exported graph differs from torch by {parity:.2g}; at most {PARITY_LIMIT} is allowed"
        )

    golden = np.linspace(0, len(chosen) - 1, GOLDEN).astype(int)
    quantiles = np.quantile(observations, QUANTILES, axis=0).T
    manifest = artifact.Manifest(
        name=name,
        schema_hash=features.schema_hash(),
        table_hash=actions.table_hash(),
        lineage={**lineage, "parity": {"max_abs_error": parity, "observations": len(chosen)}},
        feature_histograms={
            feature: [round(float(q), 6) for q in row]
            for (feature, _), row in zip(features.SCHEMA, quantiles, strict=True)
        },
        golden_features=chosen[golden].tolist(),
        golden_mask=mask[golden].astype(int).tolist(),
        golden_probabilities=wanted[golden].tolist(),
    )
    model.metadata_props.add(key=artifact.MANIFEST_KEY, value=manifest.to_json())
    content = model.SerializeToString(deterministic=True)
    verified = artifact.verify(content, path.resolve().as_uri())
    # A reader that looks while this is written sees the old file or the new one, never a half.
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return Exported(verified.sha256, len(content), parity, len(chosen))


def _graph(actor: Actor) -> onnx.ModelProto:
    example = (torch.zeros((2, features.F)), torch.ones((2, len(actions.TABLE))))
    program = torch.onnx.export(
        actor,
        example,
        input_names=["observation", "mask"],
        output_names=["probabilities"],
        opset_version=OPSET,
        dynamic_shapes={"observation": {0: "batch"}, "mask": {0: torch.export.Dim.DYNAMIC}},
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ValueError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    # What the exporter notes for its own debugging holds paths of this machine, and would make every build differ.
    for noted in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
        noted.doc_string = ""
    del graph.value_info[:]
    return model


def _run(model: onnx.ModelProto, observation: Floats, mask: Floats) -> Floats:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"observation": observation, "mask": mask.astype(np.float32)}
    answer: Floats = session.run(["probabilities"], feed)[0]
    return answer


def commit() -> str | None:
    """The git commit of this source, marked where files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        # Installed below somebody else's repository, git would tell of theirs.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=here,
            capture_output=True,
            check=True,
        )
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip() or None
