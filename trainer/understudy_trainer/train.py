"""From a file of options to an artefact: trains a policy on made-up services and says how good it became.

    python -m understudy_trainer.train --folder runs/first
    python -m understudy_trainer.train options.yaml --folder runs/second --set ppo.epochs=1 --resume

Options are the dataclasses of `options.py`; the file and `--set` name the ones that differ from their defaults.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import typer
from rich.console import Console

from understudy_policy import artifact
from understudy_simulator.own import (
    CommandError,
    Days,
    History,
    Prometheus,
    Query,
    ServiceTime,
    Startup,
    Threshold,
    described,
    made_up,
    own_past,
    read_own,
)
from understudy_simulator.past import PastError
from understudy_simulator.traces import TraceError
from understudy_trainer import distributed, launch, tracking
from understudy_trainer.actors import begin, write
from understudy_trainer.autoscaling import AutoscalingEnvironment
from understudy_trainer.checkpoint import CheckpointError, Checkpoints, load
from understudy_trainer.loop import BaseTrainer, DivergedError, InterruptedRunError, Listener
from understudy_trainer.options import Options, OptionsError, chosen, read_options
from understudy_trainer.progress import ProgressLine, make_progress
from understudy_trainer.training import make_trainer, world_seed
from understudy_trainer.validation import Validation
from understudy_trainer.workers import AsynchronousTrainer

Device = Literal["auto", "cpu", "cuda"]


MENDABLE = (
    OptionsError,
    InterruptedRunError,
    CheckpointError,
    DivergedError,
    launch.LostProcessError,
    artifact.ArtifactError,
    CommandError,
    PastError,
    TraceError,
    OSError,
)
"""What a person can mend or has asked for: told in one line."""

IN_ALL = tuple(error for error in MENDABLE if error is not OSError)
"""Those that come up in all processes that learn together, or in the first alone."""


def train(
    options: Options,
    folder: Path,
    name: str,
    resume: bool,
    console: Console,
    mlflow: str | None = None,
    listeners: tuple[Listener, ...] = (),
    device: str = "cpu",
) -> Path:
    """Learn, and write the artefact of the best network.

    Where this is one of several processes (see `distributed`), the first one alone writes and talks.

    Args:
        options: of the run.
        folder: for everything that is written.
        name: of the actor.
        resume: go on from the last checkpoint in the folder.
        console: where progress is shown.
        mlflow: server to tell of the run.
        listeners: get the scalars, too.
        device: where everything happens, `cpu` or `cuda`.

    Returns:
        The artefact.

    Raises:
        OptionsError: the folder holds a run, and nobody asked to go on with it, or with other options; or the algorithm
            does not learn there.
        InterruptedRunError: in the first process: SIGTERM or a listener ended the run early; checkpoint and artefact
            are written. (Where others failed, too, torchrun would end this one while it writes.)
    """
    if options.algorithm == "a3c":
        _refuse_elsewhere(device)
    is_first, asked = distributed.rank() == 0, chosen(options)
    if is_first and resume:
        tracking.refuse_other(folder, asked)
    elif is_first:
        refuse_to_overwrite(folder)
    console.quiet = not is_first
    training = options.training()
    world = AutoscalingEnvironment(options.world, world_seed(training), device)
    validation = Validation(world)
    uri = mlflow if is_first else None

    with (
        tracking.tracked(uri, name, folder, asked, resume, console.print) as tracker,
        make_progress(console) as progress,
    ):
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

        parts: dict[str, Any] = {
            "folder": folder if is_first else None,
            "listeners": (line, show, tracker, *listeners) if is_first else (),
            "evaluate": validation,
        }
        trainer: BaseTrainer
        if options.algorithm == "a3c":
            factory = functools.partial(AutoscalingEnvironment, options.world)
            trainer = AsynchronousTrainer(factory, training, **parts)
        else:
            trainer = make_trainer(world, training, **parts)
        checkpoints = Checkpoints.of_run(folder)
        if resume:
            trainer.resume(checkpoints.last)
        elif options.begin_with:
            begin(trainer.learner.model, options.begin_with)
        if is_first:
            tracking.record(folder, name, asked)
        outcome = trainer.run()
        path = folder / f"{name}.onnx"
        if is_first:
            if checkpoints.best.exists():
                trainer.learner.load_state_dict(load(checkpoints.best, world.device)["learner"])
            exported = write(trainer.learner.model, validation, options, outcome, path, name)
            tracker.publish(path, outcome.interrupted)
            console.print(f"{path}: {exported.summary()}")
    if outcome.interrupted and is_first:
        raise InterruptedRunError(
            f"stopped after {outcome.steps:,} of {options.run.total_steps:,} decisions; go on with --resume"
        )
    return path


def _refuse_elsewhere(device: str) -> None:
    if device != "cpu":
        raise OptionsError(
            f"device is {device}, but A3C's workers share the processor's memory; say --device cpu"
        )
    if distributed.size() > 1:
        raise OptionsError(
            f"--processes is {distributed.size()}, but A3C starts workers of its own; leave it out, and set a3c.workers"
        )


def refuse_to_overwrite(folder: Path) -> None:
    """A run begins where there is none.

    Raises:
        OptionsError: the folder holds a run that can be resumed, or an artefact.
    """
    if Checkpoints.of_run(folder).last.exists():
        raise OptionsError(
            f"--folder {folder} holds a run already; --resume goes on with it, another folder begins a new one"
        )
    if artefacts := sorted(path.name for path in folder.glob("*.onnx")):
        raise OptionsError(
            f"--folder {folder} holds {artefacts[0]}, which a run has learned already; name another folder"
        )


def main(
    context: typer.Context,
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
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that learn together on this machine, one core or GPU each.")
    ] = 1,
    device: Annotated[Device, typer.Option(help="Where to learn; auto: on a GPU, if there is one.")] = "cpu",
    mlflow: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="MLflow server to tell of the run.", show_default=False
        ),
    ] = None,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train an actor further on one workload's own history.")
    ] = False,
    history: History = None,
    generated_history: Annotated[
        bool,
        typer.Option("--generated-history", help="Instead of a history: one that is made up, for a look."),
    ] = False,
    prometheus: Prometheus = None,
    query: Query = None,
    days: Days = 7.0,
    capacity_rps: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --finetune: requests per second of a fully busy pod."),
    ] = None,
    service_s: ServiceTime = None,
    threshold_s: Threshold = None,
    startup_s: Startup = 30.0,
) -> None:
    """Train a policy on made-up services, or one further on a workload's own history, and export it as an artefact."""
    console = Console()
    torch.set_num_threads(threads)
    try:
        if name != Path(name).name:
            raise OptionsError(
                f"--name is {name!r}, but it names a file in --folder; leave out what is no file's name"
            )
        if not finetune:
            if history or prometheus or generated_history:
                raise OptionsError("a history is named without --finetune; add it")
            where = _device(device)
            options: Options = read_options(file, settings or [])
            learn = functools.partial(train, options, folder, name, resume, mlflow=mlflow, device=where)
            launch.together(processes, where, learn, console, IN_ALL)
            return
        from understudy_trainer import finetune as tuning  # which stands on this module

        if device != "cpu":
            raise OptionsError(f"--device is {device}, but --finetune learns on the processor; leave it out")
        if resume:
            raise OptionsError(
                "--resume cannot go on with a run of --finetune, which takes minutes; begin anew"
            )
        if capacity_rps is None:
            raise OptionsError("--finetune needs --capacity-rps: how many requests a pod serves per second")
        further = read_options(file, settings or [], tuning.FinetuneOptions)
        said = (service_s, threshold_s, startup_s)
        if generated_history and (history or prometheus):
            raise OptionsError(
                "--generated-history makes a history up, and another one is named; leave one of them out"
            )
        if generated_history:
            workload = described(made_up(capacity_rps), capacity_rps, *said)
        else:
            read_range = context.obj or _no_prometheus
            workload = read_own(read_range, capacity_rps, history, prometheus, query, days, *said)
        learn = functools.partial(tuning.run, further, own_past(workload), folder, name, mlflow=mlflow)
        launch.together(processes, device, learn, console, IN_ALL)
    except MENDABLE as error:
        refused(error)


def refused(error: Exception) -> NoReturn:
    """Tell in a line what a person can mend, and end: with 2 where the command made no sense, else with 1."""
    Console(stderr=True).print(str(error))
    raise typer.Exit(2 if isinstance(error, OptionsError | CommandError) else 1) from error


def _device(asked: Device) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise OptionsError(
            "device is cuda, but torch finds no GPU; leave --device out, or install its driver"
        )
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _no_prometheus(*_: Any) -> Any:
    raise OptionsError("--prometheus is read by `understudy train`; or name --history FILE")


def command() -> None:
    """The command line."""
    typer.run(main)


if __name__ == "__main__":
    command()
