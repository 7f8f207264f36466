"""From a file of options to an artefact: trains a policy on made-up services and says how good it became.

    python -m understudy_trainer.train --folder runs/first
    python -m understudy_trainer.train options.yaml --folder runs/second --set ppo.epochs=1 --resume

Options are the dataclasses below; the file and `--set` name the ones that differ from their defaults.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import onnx
import torch
import typer
import yaml
from onnx import numpy_helper
from pydantic import Field, TypeAdapter, ValidationError
from pydantic import dataclasses as checked
from rich.console import Console
from torch import Tensor

from understudy_policy import actions, artifact
from understudy_simulator import scenario
from understudy_trainer import config as command_line
from understudy_trainer import export
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig
from understudy_trainer.algorithms.a2c import A2CConfig
from understudy_trainer.algorithms.acktr import ACKTRConfig
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.autoscaling import AutoscalingConfig, AutoscalingEnvironment
from understudy_trainer.checkpoint import CheckpointError, load
from understudy_trainer.collector import RewardConfig
from understudy_trainer.loop import Outcome, RunConfig
from understudy_trainer.progress import ProgressLine, make_progress
from understudy_trainer.training import TrainingConfig, make_trainer

Algorithm = Literal["ppo", "a2c", "acktr"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

VALIDATION_SEED = 1_000_003
"""Of the services that a policy is judged on while it learns; no training run draws from it."""

PRICE_CLASSES = 8
"""Classes of prices, with equally many held-out services in each."""

BEGIN_ROWS = 1e6
"""Observations that the normaliser of an actor to begin with stands for."""

EXPORT_DECISIONS = 64
"""Decisions whose observations prove the artefact and make its reference histogram."""


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class Options:
    """All options of a run."""

    algorithm: Algorithm = "ppo"
    """Which algorithm learns."""
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            learning_rate=1e-3,
            final_learning_rate_share=0.05,
            gamma=0.97,
            gae_lambda=0.92,
            epochs=2,
            minibatch_rows=5120,
            target_kl=0.03,
            normalize_value=True,
            entropy_coefficient=0.01,
            final_entropy_coefficient=0.001,
        )
    )
    """Options of PPO, where it is chosen."""
    a2c: A2CConfig = field(
        default_factory=lambda: A2CConfig(
            learning_rate=3e-3,
            final_learning_rate_share=0.1,
            gamma=0.97,
            gae_lambda=0.92,
            normalize_advantage=True,
            normalize_value=True,
            entropy_coefficient=0.01,
            final_entropy_coefficient=0.001,
        )
    )
    """Options of A2C, where it is chosen."""
    acktr: ACKTRConfig = field(default_factory=ACKTRConfig)
    """Options of ACKTR, where it is chosen."""
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(hidden=(128, 128), shared_trunk=False, critic_hidden=(64, 64))
    )
    """Shape of the network."""
    world: AutoscalingConfig = field(default_factory=lambda: AutoscalingConfig(compiled=True))
    """The world to learn in."""
    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            total_steps=40_000_000, checkpoint_updates=32, log_updates=16, evaluate_updates=64
        )
    )
    """How long to learn; a step is a decision of one service, four ticks."""
    rollout_steps: int = Field(default=15, ge=1)
    """Decisions between updates."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn."""
    begin_with: str = ""
    """Actor to begin with (`builtin://imitation`, `file:///…`), of the same shape; empty: with drawn weights."""

    def training(self) -> TrainingConfig:
        """The same as the learner takes it."""
        return TrainingConfig(
            algorithm=getattr(self, self.algorithm),
            network=self.network,
            reward=RewardConfig(adapt=True),
            run=self.run,
            rollout_steps=self.rollout_steps,
            seed=self.seed,
            compiled=self.world.compiled,
        )


class OptionsError(ValueError):
    """An option makes no sense; the message names it, its value and the mend."""


def read_options(file: Path | None, settings: list[str]) -> Options:
    """Options from a YAML file and `a.b=value` settings, which win.

    Raises:
        OptionsError: the file cannot be read, or an option is unknown or refused.
    """
    given: Any = {}
    try:
        if file is not None:
            given = yaml.safe_load(file.read_text()) or {}
        pairs = [(name, yaml.safe_load(value)) for name, _, value in (one.partition("=") for one in settings)]
    except (OSError, yaml.YAMLError) as error:
        raise OptionsError(f"options cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise OptionsError(f"{file} holds {type(given).__name__}; it must map options to values")
    adapter = TypeAdapter(Options)
    # What is not named keeps the default of this command, not that of the dataclass that it lies in.
    merged = _merge(adapter.dump_python(Options()), given, "")
    for name, value in pairs:
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        merged = _merge(merged, nested, "")
    try:
        return adapter.validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OptionsError(f"{where} is {first['input']!r}: {first['msg'].lower()}") from error


def _merge(base: dict[str, Any], over: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = [name for name in over if name not in base]
    if unknown:
        raise OptionsError(f"{where}{unknown[0]} is no option; choose one of: {', '.join(base)}")
    merged = dict(base)
    for name, value in over.items():
        is_group = isinstance(base[name], dict) and isinstance(value, dict)
        merged[name] = _merge(base[name], value, f"{where}{name}.") if is_group else value
    return merged


class Validation:
    """Services that no run learns from, and what the reference rows cost on them: calibrated in hindsight, no less."""

    def __init__(self, world: AutoscalingEnvironment) -> None:
        """Draw them.

        Args:
            world: with the shape and the program to use; it is left alone.
        """
        self.world = AutoscalingEnvironment(
            world.config, VALIDATION_SEED, str(world.device), world.source, world.program
        )
        self.batch = self.world.draw(0)
        self.seen: list[Tensor] = []

    def __call__(self, model: ActorCritic) -> dict[str, float]:
        """The network's most probable rows beside the reference's.

        A cost is pods and misses at their price. `cost_ratio` sums it up over the services of a class of prices, as the
        judge does over quiet and troubled hours of one, and is the geometric mean over the classes; `score` is minus
        that. `cost_ratio_alone` is the geometric mean over services, each a class of its own.
        """
        self.seen = []
        actor = model.actor().to(self.world.device)
        every = torch.ones(len(actions.TABLE), device=self.world.device)

        def choose(observation: Tensor) -> Tensor:
            self.seen.append(observation)
            return actor.logits(observation, every).argmax(dim=1)

        played = self.world.play(self.batch, choose)
        own, reference, price = played.own, played.reference, played.price[:, None]
        mine, theirs = own.reward(price).mean(dim=1), reference.reward(price).mean(dim=1)
        ratio = (mine / theirs).log()
        classes = [part for part in played.price.argsort().tensor_split(PRICE_CLASSES) if len(part)]
        summed = torch.stack([mine[part].sum() / theirs[part].sum() for part in classes]).log()
        return {
            "score": -float(summed.mean().exp()),
            "cost_ratio": float(summed.mean().exp()),
            "cost_ratio_dear": float(summed[-1].exp()),
            "cost_ratio_alone": float(ratio.mean().exp()),
            "cost_ratio_p90": float(ratio.quantile(0.9).exp()),
            "better_share": float((ratio < 0).float().mean()),
            "pods_ratio": float(own.cost.mean() / reference.cost.mean()),
            "missed_ratio": float(own.missed.mean() / reference.missed.mean()),
            "changes_ratio": float(own.changes.mean() / reference.changes.mean()),
        }


def train(options: Options, folder: Path, name: str, resume: bool, console: Console) -> Path:
    """Learn, and write the artefact of the best network.

    Args:
        options: of the run.
        folder: for everything that is written.
        name: of the actor.
        resume: go on from the last checkpoint in the folder.
        console: where progress is shown.

    Returns:
        The artefact.
    """
    world = AutoscalingEnvironment(options.world, options.seed)
    validation = Validation(world)

    with make_progress(console) as progress:
        line = ProgressLine(progress, name, options.run.total_steps)

        def show(steps: int, scalars: dict[str, float]) -> None:
            judged = {
                key.removeprefix("evaluation/"): f"{value:.3f}"
                for key, value in scalars.items()
                if key.startswith("evaluation/") and key != "evaluation/score"
            }
            if judged:
                progress.console.print(
                    f"{steps:,} decisions:", *(f"{key} {told}" for key, told in judged.items())
                )

        trainer = make_trainer(world, options.training(), folder, listeners=(line, show), evaluate=validation)
        checkpoints = folder / "checkpoints"
        if resume:
            trainer.resume(checkpoints / "last.pt")
        elif options.begin_with:
            begin(trainer.learner.model, options.begin_with)
        outcome = trainer.run()
    if outcome.interrupted:
        console.print(f"interrupted after {outcome.steps} decisions; go on with --resume")
    best = checkpoints / "best.pt"
    if best.exists():
        trainer.learner.load_state_dict(load(best, world.device)["learner"])
    path = folder / f"{name}.onnx"
    exported = write(trainer.learner.model, validation, options, outcome, path, name)
    console.print(f"{path}: {exported.summary()}")
    return path


@torch.no_grad()
def begin(model: ActorCritic, uri: str) -> None:
    """Take over what an actor knows; the critic keeps its own head.

    In a wider network the actor sits in a corner: nothing of what was drawn reaches its units or the answer yet, so the
    answers are the same (arXiv:1511.05641), and what was drawn can be put to use.

    Args:
        model: at least as wide, and as deep.
        uri: see `artifact.resolve`.

    Raises:
        ArtifactError: it cannot be used.
        OptionsError: it does not fit in.
    """
    artifact.load(uri)
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
    # The file has the moments' scale alone; the running update needs the variance, and how much it stands for.
    normalizer = model.normalizer
    normalizer.variance.copy_(normalizer.scale.clamp(min=normalizer.least_deviation) ** -2)
    normalizer.count.fill_(BEGIN_ROWS)


def write(
    model: ActorCritic, validation: Validation, options: Options, outcome: Outcome, path: Path, name: str
) -> export.Exported:
    """Judge a network on the held-out services and export it with its lineage."""
    figures = validation(model)
    everything = TypeAdapter(Options).dump_python(options, mode="json")
    for algorithm in ALGORITHMS:
        if algorithm != options.algorithm:
            del everything[algorithm]
    begun = artifact.load(options.begin_with) if options.begin_with else None
    if begun:
        everything["begin_with"] = begun.manifest.name
    lineage = {
        "method": f"{options.algorithm} on the cluster model, reward paired with a calibrated row",
        "loads": f"generated only: {', '.join(dict.fromkeys(scenario.Ranges().families))}",
        "options": everything,
        "begun_with": {"sha256": begun.sha256, "lineage": begun.manifest.lineage} if begun else None,
        "decisions": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "held_out": {key: round(value, 4) for key, value in figures.items()},
        "torch": torch.__version__,
        "commit": export.commit(),
    }
    seen = torch.stack(validation.seen[:: max(1, len(validation.seen) // EXPORT_DECISIONS)])
    observations = seen.flatten(0, 1).cpu().numpy()
    return export.export(model.actor(), path, name, lineage, observations)


def main(
    file: Annotated[Path | None, typer.Argument(help="YAML file of options.", show_default=False)] = None,
    folder: Annotated[
        Path, typer.Option(help="For checkpoints, TensorBoard's scalars and the artefact.")
    ] = Path("runs/policy"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option, as in ppo.learning_rate=3e-4.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the actor and of its file.")] = "policy",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; more than one rarely pays.")] = 1,
) -> None:
    """Train a policy on made-up services and export it as an artefact."""
    console = Console()
    torch.set_num_threads(threads)
    try:
        train(read_options(file, settings or []), folder, name, resume, console)
    except (OptionsError, CheckpointError, artifact.ArtifactError) as error:
        Console(stderr=True).print(str(error))
        raise typer.Exit(2) from error


def command() -> None:
    """The command line."""
    typer.run(main)


if __name__ == "__main__":
    command()
