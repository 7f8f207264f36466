"""From one workload's history to a policy of its own: an actor that knows everybody is trained further on one past.

It learns where it will work, on the same load at other moments, with other luck and a little otherwise, and on some
made-up services beside it, so that it does not forget what its own past happens not to hold.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import Field, TypeAdapter
from pydantic import dataclasses as checked
from rich.console import Console

from understudy_policy import artifact
from understudy_policy.rows import concatenate
from understudy_simulator import past as pasts
from understudy_simulator import scenario
from understudy_simulator.audition import Episode, Program
from understudy_simulator.past import AS_IT_CAME, Past, PastError, TooShortError, Variation
from understudy_simulator.protocol import TICK_S
from understudy_trainer import config as command_line
from understudy_trainer import distributed, tracking, train
from understudy_trainer.actors import begin, write
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.autoscaling import AutoscalingConfig, AutoscalingEnvironment, Source
from understudy_trainer.export import Exported
from understudy_trainer.loop import DivergedError, InterruptedRunError, Listener, RunConfig, Trainer
from understudy_trainer.options import Options, OptionsError, chosen
from understudy_trainer.progress import ProgressLine, make_progress
from understudy_trainer.training import TrainingConfig, make_trainer, world_seed
from understudy_trainer.validation import Validation

FIXED_ROWS = 1e12
"""Observations that the actor's normaliser stands for: it stays as the actor knows it."""


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class FinetuneOptions(Options):
    """All options of a run on one workload's past."""

    ppo: PPOConfig = field(
        default_factory=lambda: replace(Options().ppo, learning_rate=5e-4, entropy_coefficient=0.003)
    )
    """Options of PPO, where it is chosen."""
    world: AutoscalingConfig = field(
        default_factory=lambda: AutoscalingConfig(
            workloads=1024, curves=64, batches=3, lives=16, compiled=True
        )
    )
    """The world to learn in."""
    run: RunConfig = field(default_factory=lambda: RunConfig(total_steps=4_000_000))
    """How long to learn; a step is a decision of one service, four ticks."""
    begin_with: str = "builtin://generalist"
    """Actor that is trained further (`builtin://generalist`, `file:///…`)."""
    generated_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the services that are made up: against forgetting."""
    held_back_share: float = Field(default=0.2, ge=0, le=0.5)
    """Last part of the history that is not learned from but measured on; 0: learn from all of it."""
    vary: Variation = Variation(load=1.25, swell=0.1)
    """How far what is learned from may lie from the history: what is learned as it came is learned by heart. The pace
    stays: when spikes come back is what a history tells best."""
    critic_updates: int = Field(default=8, ge=0)
    """Updates at the start in which the critic alone learns: an actor that knows follows no critic that guesses."""

    def training(self) -> TrainingConfig:
        """See `Options`."""
        if self.algorithm == "a3c":
            raise OptionsError(
                "algorithm is a3c, whose workers --finetune does not start; choose ppo, a2c or acktr"
            )
        return super().training()


@dataclass(frozen=True)
class FinetuneResult:
    """What came of training an actor further.

    Attributes:
        exported: what was written.
        held_back_s: length of the last part of the past, which was not learned from; 0 where nobody asked for it, or
            where a part would be too short.
        before, after: figures of the actor, on what was held back, or, where nothing was, on what was learned from,
            with other luck.
    """

    exported: Exported
    held_back_s: float
    before: dict[str, float]
    after: dict[str, float]


def finetune(
    options: FinetuneOptions,
    past: Past,
    path: Path,
    name: str,
    folder: Path | None = None,
    console: Console | None = None,
    listeners: tuple[Listener, ...] = (),
) -> FinetuneResult | None:
    """Train an actor further on a past.

    Several processes (see `distributed`) share the services out and are done sooner; the first one alone writes, talks
    and measures, on its share.

    Args:
        options: of the run; the network takes its shape from the actor.
        past: all that may be looked at; the last part is held back.
        path: where the artefact goes.
        name: of the new actor.
        folder: for TensorBoard's scalars and rollouts that ended in NaN; None: nothing but the artefact is written.
        console: where progress is shown; None: nowhere.
        listeners: get the scalars, too.

    Returns:
        What came of it; None in all processes but the first.

    Raises:
        OptionsError: nothing would be learned.
        PastError: the past is too short.
        ArtifactError: the actor that it begins with cannot be used.
        InterruptedRunError: SIGTERM ended the run.
    """
    options = _shaped(options)
    is_first = distributed.rank() == 0
    own = _shared_out(options)
    training = own.training()
    learned, since_s = _split(past, options.held_back_share, options.world.episode_ticks)
    held_back_s = past.curve.duration_s - since_s if since_s else 0.0
    program = shared_program(options.world.compiled)
    source = _source(learned, options.generated_share, vary=options.vary)
    world = AutoscalingEnvironment(own.world, world_seed(training), source=source, program=program)
    # What is measured on tells nobody how it would have been scaled best: that would be looking.
    measured = AutoscalingEnvironment(
        replace(own.world, uncalibrated_share=1.0),
        0,
        source=_source(past, 0.0, since_s),
        program=program,
    )
    validation = Validation(measured)
    with make_progress(console or Console(quiet=True)) as progress:
        line = ProgressLine(progress, name, options.run.total_steps)
        told = (line, *listeners) if is_first else ()
        trainer = make_trainer(world, training, folder if is_first else None, listeners=told)
        trainer.checkpoints = None  # nobody goes on with what takes minutes
        model = trainer.learner.model
        begin(model, options.begin_with)
        model.normalizer.count.fill_(FIXED_ROWS)
        before = validation(model) if is_first else {}
        _teach_critic(trainer, options.critic_updates)
        outcome = trainer.run()
    if outcome.interrupted:
        raise InterruptedRunError(
            f"stopped after {outcome.steps:,} decisions; no artefact was written, so begin anew"
        )
    if not is_first:
        return None
    about = {
        "loads": f"the workload's own past, and {options.generated_share:.0%} generated services",
        "history": {
            **past.lineage(),
            "learned_s": learned.curve.duration_s,
            "held_back_s": held_back_s,
            "held_out_before": before,
        },
    }
    exported = write(model, validation, options, outcome, path, name, about)
    return FinetuneResult(exported, held_back_s, before, validation.figures)


def run(
    options: FinetuneOptions,
    past: Past,
    folder: Path,
    name: str,
    console: Console,
    mlflow: str | None = None,
) -> Path:
    """Train an actor further on a past, and say what that was worth.

    Args:
        options: of the run.
        past: all of the workload's history.
        folder: for everything that is written.
        name: of the new actor.
        console: where it is told.
        mlflow: server to tell of the run.

    Returns:
        The artefact.

    Raises:
        OptionsError: the folder holds a run, or nothing would be learned; see `finetune` for more.
    """
    path = folder / f"{name}.onnx"
    if distributed.rank():
        finetune(options, past, path, name)
        return path
    train.refuse_to_overwrite(folder)
    options = _shaped(options)
    _shared_out(options).training()  # refuses before anything is written or begun
    told = chosen(options) | {"history": {"name": past.curve.name, "sha256": past.fingerprint()[:12]}}
    tracking.record(folder, name, told)
    hours = past.curve.duration_s / 3600
    wait = "; compiling the cluster model takes a minute or two" if options.world.compiled else ""
    console.print(f"{past.curve.name}: {hours:.1f} h of history{wait}")
    with tracking.tracked(mlflow, name, folder, told, False, console.print) as tracker:
        result = finetune(options, past, path, name, folder, console, (tracker,))
        assert result is not None  # this is the first process
        tracker.publish(path, interrupted=False)
    if result.held_back_s:
        where = f"on the last {result.held_back_s / 3600:.1f} h, which were held back"
    else:
        asked = options.held_back_share > 0
        why = "the history is too short to hold a part back" if asked else "held_back_share is 0"
        where = f"on what was learned from, with other luck ({why})"
    before, after = result.before, result.after
    console.print(
        f"{where}: cost over the best of six rules in hindsight {before['cost_ratio']:.3f} → "
        f"{after['cost_ratio']:.3f}, "
        f"misses {before['missed_ratio']:.2f} → {after['missed_ratio']:.2f}, "
        f"changes {before['changes_ratio']:.2f} → {after['changes_ratio']:.2f}"
    )
    console.print(f"{path}: {result.exported.summary()}")
    return path


def _shaped(options: FinetuneOptions) -> FinetuneOptions:
    """The options with the network of the actor that is trained further.

    Raises:
        OptionsError: the run would end before the actor learned anything, or has options that mean nothing here.
    """
    rollout = options.world.workloads * options.rollout_steps
    silent = (1 + options.critic_updates) * rollout
    if options.run.total_steps <= silent:
        raise OptionsError(
            f"run.total_steps is {options.run.total_steps:,}, but the actor begins to learn after {silent:,} "
            "decisions, when the critic knows it; give more, or lower critic_updates or world.workloads"
        )
    if options.run.evaluate_updates:
        raise OptionsError(
            f"run.evaluate_updates is {options.run.evaluate_updates}, but fine-tuning is measured before and after "
            "and chooses nothing by it; leave it out"
        )
    return replace(options, network=replace(options.network, hidden=_widths(options.begin_with)))


def _shared_out(options: FinetuneOptions) -> FinetuneOptions:
    """What one of several processes has of the services, so that an update learns from as many as one process has.

    Raises:
        OptionsError: the services cannot be shared out evenly.
    """
    processes = distributed.size()
    if options.world.workloads % processes:
        raise OptionsError(
            f"world.workloads is {options.world.workloads}, which {processes} processes cannot share; "
            f"give a multiple of {processes}"
        )
    return replace(
        options,
        world=replace(options.world, workloads=options.world.workloads // processes),
        ppo=replace(options.ppo, minibatch_rows=max(1, options.ppo.minibatch_rows // processes)),
    )


def _split(past: Past, share: float, ticks: int) -> tuple[Past, float]:
    """What is learned from, and when what is held back begins; all and 0 where a part would be shorter than it may."""
    duration_s, least_s = past.curve.duration_s, max(ticks * TICK_S, pasts.LEAST_S)
    # Episodes begin with whole ticks.
    since_s = math.floor((1.0 - share) * duration_s / TICK_S) * TICK_S
    if share == 0 or min(since_s, duration_s - since_s) < least_s:
        return past, 0.0
    try:
        learned = replace(past, curve=pasts.between(past.curve, end_s=since_s))
    except TooShortError:
        return past, 0.0
    return (learned, since_s) if learned.curve.duration_s >= least_s else (past, 0.0)


def _source(past: Past, generated_share: float, since_s: float = 0.0, vary: Variation = AS_IT_CAME) -> Source:
    """Draws services: the workload from some time on, and a share of others."""

    def draw(rng: np.random.Generator, config: AutoscalingConfig) -> Episode:
        others = round(generated_share * config.workloads)
        stock = scenario.stock(
            config.curves if others else 1,
            rng,
            config.episode_ticks,
            scenario.Ranges().families,
            config.moments,
        )
        own = pasts.draw(config.workloads - others, config.episode_ticks, past, stock, rng, since_s, vary)
        if not others:
            return own
        return concatenate(
            own, scenario.draw(others, config.episode_ticks, stock, rng, moments=config.moments)
        )

    return draw


def _teach_critic(trainer: Trainer, updates: int) -> None:
    """Let the critic learn what the actor is worth, and the actor stay as it is."""
    weights = trainer.learner.model.state_dict()
    kept = {name: own.clone() for name, own in weights.items() if name.startswith(("trunk.", "head."))}
    trainer.warm_up()
    for _ in range(updates):
        trainer.iterate()
        for name, own in kept.items():
            weights[name].copy_(own)


def _widths(uri: str) -> tuple[int, ...]:
    """Widths of an actor's layers."""
    artifact.load(uri)
    weights = onnx.load_model(artifact.resolve(uri)).graph.initializer
    return tuple(w.dims[0] for w in weights if w.name.startswith("trunk.") and w.name.endswith(".bias"))


@functools.cache
def shared_program(compiled: bool) -> Program:
    """The cluster model, compiled once in a process for all workloads that are learned one after the other."""
    return AutoscalingEnvironment(AutoscalingConfig(compiled=compiled), 0).program


@functools.cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Tuner:
    """What the judge plugs in (`understudy_simulator.judge.tuning.Tune`)."""

    def __init__(self, options: FinetuneOptions | None = None) -> None:
        """With these options; what may be learned from is the judge's business, and nothing is held back of it."""
        self.options = options or FinetuneOptions(held_back_share=0.0)

    def mark(self) -> str:
        """See `Tune`."""
        said: Any = TypeAdapter(FinetuneOptions).dump_python(self.options, mode="json")
        return json.dumps([said, _source_digest(), torch.__version__], sort_keys=True)

    def __call__(self, actor: Path, past: Past, target: Path) -> None:
        """See `Tune`."""
        torch.set_num_threads(1)
        options = replace(self.options, begin_with=actor.resolve().as_uri())
        try:
            finetune(options, past, target, target.stem)
        except DivergedError as error:
            raise PastError(f"{target.stem}: {error}") from error
