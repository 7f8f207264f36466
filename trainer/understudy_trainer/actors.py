"""From an artefact to a network that goes on learning, and from a network to an artefact with its lineage."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from understudy_policy import actions, artifact
from understudy_simulator import scenario
from understudy_trainer import distributed, export
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.loop import Outcome
from understudy_trainer.options import Options, OptionsError, chosen
from understudy_trainer.validation import Validation

BEGIN_ROWS = 1e6
"""Observations that the normaliser of an actor to begin with stands for."""

SELDOM_NATS = 2.0
"""A row that an actor does not know begins as likely as the known one that is nearest to it, less this."""


@torch.no_grad()
def begin(model: ActorCritic, uri: str) -> None:
    """Take over what an actor knows; the critic keeps its own head.

    In a wider network the actor sits in a corner: nothing of what was drawn reaches its units or the answer yet, so the
    answers are the same (arXiv:1511.05641), and what was drawn can be put to use. Likewise columns of the observation
    that it does not know are not looked at yet, and rows that it does not know are seldom chosen.

    Args:
        model: at least as wide, and as deep.
        uri: see `artifact.resolve`.

    Raises:
        ArtifactError: it cannot be used.
        OptionsError: it does not fit in.
    """
    actor = artifact.load(uri)
    graph = onnx.load_model(artifact.resolve(uri)).graph
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    own = model.state_dict()
    names = {name for name in (*own, *weights) if name.startswith(("trunk.", "head."))}
    if lacking := sorted(name for name in names if name not in own or name not in weights):
        raise OptionsError(
            f"begin_with is {uri}, which differs from the network in {', '.join(lacking)}; "
            "set network.hidden to as many layers"
        )
    for name in (name for name in weights if name in own):
        given, mine = torch.from_numpy(weights[name]), own[name]
        if given.dim() != mine.dim() or any(g > m for g, m in zip(given.shape, mine.shape, strict=True)):
            raise OptionsError(
                f"begin_with is {uri}, whose {name} is {list(given.shape)} where the network has {list(mine.shape)}; "
                "set network.hidden to layers at least as wide"
            )
        rows = len(given)
        if mine.dim() == 2:
            mine[:rows] = 0.0
            mine[:rows, : given.shape[1]] = given
        else:
            mine[:rows] = given
    for row in range(actor.rows, len(actions.TABLE)):
        kin = min(range(actor.rows), key=functools.partial(_distance, row))
        own["head.weight"][row] = own["head.weight"][kin]
        own["head.bias"][row] = own["head.bias"][kin] - SELDOM_NATS
    # The file has the moments' scale alone; the running update needs the variance, and how much it stands for.
    normalizer = model.normalizer
    normalizer.scale[actor.columns :] = 1.0
    normalizer.variance.copy_(normalizer.scale.clamp(min=normalizer.least_deviation) ** -2)
    normalizer.count.fill_(BEGIN_ROWS)


def _distance(row: int, other: int) -> tuple[int, float]:
    """How far apart two rows of the table are: other rules first, then other targets."""
    one, two = actions.TABLE[row], actions.TABLE[other]
    rules = (one.window_ticks != two.window_ticks) + (one.carried != two.carried)
    return rules, abs(one.utilization - two.utilization)


def write(
    model: ActorCritic,
    validation: Validation,
    options: Options,
    outcome: Outcome,
    path: Path,
    name: str,
    about: dict[str, Any] | None = None,
) -> export.Exported:
    """Judge a network on the held-out services and export it with its lineage; `about` says more, or otherwise."""
    figures = validation(model)
    everything = chosen(options)
    begun = artifact.load(options.begin_with) if options.begin_with else None
    if begun:
        everything["begin_with"] = begun.manifest.name
    lineage = {
        "method": f"{options.algorithm} on the cluster model, reward paired with a calibrated row",
        "loads": f"generated only: {', '.join(dict.fromkeys(scenario.Ranges().families))}",
        "options": everything,
        "begun_with": {"sha256": begun.sha256, "lineage": begun.manifest.lineage} if begun else None,
        "decisions": outcome.steps,
        "processes": options.a3c.workers if options.algorithm == "a3c" else distributed.size(),
        "seconds": round(outcome.seconds, 1),
        "held_out": {key: round(value, 4) for key, value in figures.items()},
        "torch": torch.__version__,
        "commit": export.commit(),
        **(about or {}),
    }
    return export.export(model.actor(), path, name, lineage, validation.recorded().cpu().numpy())
