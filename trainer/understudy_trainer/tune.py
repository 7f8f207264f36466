"""Options that are worth more than others, searched for: many short runs, the hopeless ones ended early.

Every choice of options learns with several seeds, since the best of many single runs is the luckiest. What counts is
the interquartile mean of what the artefacts cost on the held-out services, beside the calibrated reference.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import torch
import typer
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import dataclasses as checked
from rich.console import Console
from rich.table import Table

from understudy_policy import artifact
from understudy_trainer import config as command_line
from understudy_trainer.checkpoint import Checkpoints
from understudy_trainer.compare import estimate
from understudy_trainer.loop import DivergedError, InterruptedRunError
from understudy_trainer.options import Options, OptionsError, read_options
from understudy_trainer.tracking import flat
from understudy_trainer.train import MENDABLE, refused, train

NAME = "policy"
"""Of every run's artefact."""

STRICT = ConfigDict(**command_line.DOCUMENTED, extra="forbid")

UNPRUNED_TRIALS = 4
"""Choices that are carried through before any is judged by the others."""

SHOWN = 10
"""Choices in the table at the end."""


class StoppedSweepError(InterruptedRunError):
    """The sweep was asked to stop; the same command goes on with it."""


class HopelessChoiceError(InterruptedRunError):
    """The study has seen enough of a choice."""


@checked.dataclass(frozen=True, config=STRICT)
class Range:
    """What an option may be: from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    """Least value."""
    high: int | float | None = None
    """Greatest value; whole numbers are tried where both are whole."""
    log: bool = False
    """Try as many between 0.001 and 0.01 as between 0.01 and 0.1."""
    choices: list[Any] = field(default_factory=list)
    """Values to choose from."""

    def __post_init__(self) -> None:
        """Refuse what is neither."""
        if bool(self.choices) == (self.low is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give low and high, or choices")
        if self.low is None or self.high is None:
            return
        if self.low > self.high:
            raise ValueError(f"low {self.low} lies above high {self.high}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(
                f"low is {self.low}, but with log it must lie above 0; raise it, or leave log out"
            )

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value for a trial."""
        if self.low is None or self.high is None:
            # As text: the journal holds no lists.
            return json.loads(trial.suggest_categorical(name, [json.dumps(one) for one in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@checked.dataclass(frozen=True, config=STRICT)
class Sweep:
    """What is searched, and how hard."""

    search: dict[str, Range]
    """Options by dotted names, as in `ppo.learning_rate`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options that all runs share, as in the file of `understudy train`."""
    trials: int = Field(default=30, ge=1)
    """Choices to try, those that were ended early included."""
    seeds: int = Field(default=3, ge=1)
    """Runs of every choice."""
    evaluations: int = Field(default=8, ge=1)
    """Evaluations in every run, at which it may be ended."""
    pruner: Literal["median", "halving", "none"] = "median"
    """End what is worse than the median of the others so far, all but the best part in rounds, or nothing."""


def read_sweep(file: Path) -> Sweep:
    """A sweep from a YAML file.

    Raises:
        OptionsError: it cannot be read, or asks for what does not exist.
    """
    try:
        sweep = TypeAdapter(Sweep).validate_python(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionsError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or str(file)
        raise OptionsError(f"{where} is {first['input']!r}: {first['msg'].lower()}") from error
    for name, allowed in sweep.search.items():
        for value in allowed.choices or [allowed.low, allowed.high]:
            options_of(sweep, {name: value}, 0)
    return sweep


def options_of(sweep: Sweep, chosen: dict[str, Any], seed: int) -> Options:
    """Options of one run.

    Raises:
        OptionsError: an option is unknown or refused.
    """
    given = flat(sweep.options) | chosen | {"seed": seed}
    options = read_options(None, [f"{name}={json.dumps(value)}" for name, value in given.items()], Options)
    updates = options.run.total_steps // (options.world.workloads * options.rollout_steps)
    return replace(options, run=replace(options.run, evaluate_updates=max(1, updates // sweep.evaluations)))


def search(sweep: Sweep, folder: Path, console: Console, mlflow: str | None = None) -> optuna.Study:
    """Try choices until there are as many as asked for; what the folder holds already counts.

    Args:
        sweep: what to search.
        folder: for the journal and the runs. One sweep, and one process at a time.
        console: where progress is shown.
        mlflow: server to tell of every run.

    Raises:
        OptionsError: the folder holds another sweep.
        StoppedSweepError: SIGTERM came.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        load_if_exists=True,
        pruner=_pruner(sweep),
    )
    asked = json.loads(json.dumps(TypeAdapter(Sweep).dump_python(replace(sweep, trials=1))))
    if study.user_attrs.setdefault("sweep", asked) != asked:
        raise OptionsError(
            f"{folder} holds another sweep; name another --folder, or ask for the same with more trials"
        )
    study.set_user_attr("sweep", asked)
    # Another seed after every resumption, or the first choices would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), multivariate=True)
    for stopped in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stopped.number, state=TrialState.FAIL)
        said = {str(step): value for step, value in stopped.intermediate_values.items()}
        kept = {"place": _place(stopped), "said": said, "best": stopped.user_attrs.get("best", [])}
        study.enqueue_trial(stopped.params, kept)
    while (tried := sum(map(_is_done, study.trials))) < sweep.trials:
        trial = study.ask()
        console.print(f"choice {tried + 1} of {sweep.trials}")
        try:
            ratios = _learn(sweep, trial, folder / _place(trial), console, mlflow)
        except HopelessChoiceError:
            study.tell(trial, state=TrialState.PRUNED)
            console.print("ended early: worse than the others")
        except (DivergedError, OptionsError) as error:
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=TrialState.FAIL)
            console.print(f"failed: {error}")
        else:
            trial.set_user_attr("ratios", ratios)
            study.tell(trial, estimate(ratios).mean)
    return study


def _learn(
    sweep: Sweep, trial: optuna.Trial, folder: Path, console: Console, mlflow: str | None
) -> list[float]:
    """Cost ratios of a choice's runs; those that the folder holds are not run again, one that was stopped goes on."""
    chosen = {name: allowed.suggest(trial, name) for name, allowed in sweep.search.items()}
    console.print("  ".join(f"{name}={value}" for name, value in chosen.items()))
    # What the choice that it goes on with had told counts, or going on would judge it anew.
    for step, value in trial.user_attrs.get("said", {}).items():
        trial.report(value, int(step))
    ratios: list[float] = []
    for seed in range(sweep.seeds):
        options, place = options_of(sweep, chosen, seed), folder / f"seed-{seed}"
        if (ratio := _ended(place, options)) is None:
            watch = _Watch(sweep, trial, options, ratios, seed)
            # Each run compiles for its own shapes; torch would refuse to keep them all.
            torch.compiler.reset()
            is_begun = Checkpoints.of_run(place).last.exists()
            try:
                train(options, place, NAME, is_begun, console, mlflow, (watch,))
            except HopelessChoiceError:
                raise
            except InterruptedRunError as error:
                raise StoppedSweepError("stopped; the same command goes on") from error
            ratio = _ended(place, options)
            assert ratio is not None, "a run that comes back has learnt all it was to learn"
        ratios.append(ratio)
    return ratios


class _Watch:
    """A listener that tells the study how a run goes, and ends it where the study has seen enough."""

    def __init__(
        self, sweep: Sweep, trial: optuna.Trial, options: Options, ratios: list[float], seed: int
    ) -> None:
        self.trial = trial
        self.total_steps = options.run.total_steps
        self.ratios = ratios
        self.seed = seed
        self.evaluations = sweep.evaluations
        best_of, best = trial.user_attrs.get("best") or [seed, math.inf]
        self.best = best if best_of == seed else math.inf
        self.reported = max(map(int, trial.user_attrs.get("said", {})), default=-1)

    def __call__(self, steps: int, scalars: dict[str, float]) -> None:
        ratio = scalars.get("evaluation/cost_ratio")
        if ratio is None:
            return
        self.best = min(self.best, ratio)
        # Choices are compared after the same share of their runs, whatever an update is in them.
        share = min(self.evaluations - 1, (steps - 1) * self.evaluations // self.total_steps)
        step = self.seed * self.evaluations + share
        if step <= self.reported:
            return
        self.reported = step
        self.trial.report(estimate([*self.ratios, self.best]).mean, step)
        self.trial.set_user_attr("best", [self.seed, self.best])
        if self.trial.should_prune():
            raise HopelessChoiceError


class _WorseThanMost(optuna.pruners.BasePruner):
    """Ends what is worse now than the median of the others at the same step.

    Optuna's own median goes by the best of a trial until then, so after one lucky seed nothing is hopeless.
    """

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """See Optuna."""
        step = trial.last_step
        if step is None:
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [other.intermediate_values[step] for other in completed if step in other.intermediate_values]
        return len(others) >= UNPRUNED_TRIALS and trial.intermediate_values[step] > statistics.median(others)


def _ended(place: Path, options: Options) -> float | None:
    """The cost ratio of a run that learnt all it was to learn; None of one that did not."""
    path = place / f"{NAME}.onnx"
    if not path.exists():
        return None
    lineage = artifact.load(path.resolve().as_uri()).manifest.lineage
    done: bool = lineage["decisions"] >= options.run.total_steps
    return float(lineage["held_out"]["cost_ratio"]) if done else None


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.pruner == "median":
        return _WorseThanMost()
    if sweep.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    return optuna.pruners.NopPruner()


def _place(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    """The folder of a trial: that of the one that it goes on with, where there is one."""
    place: str = trial.user_attrs.get("place", f"choice-{trial.number:04d}")
    return place


def _is_done(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "failure" in trial.user_attrs


def ranked(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that were carried through, the cheapest first."""
    completed = study.get_trials(states=(TrialState.COMPLETE,))
    return sorted(completed, key=lambda trial: trial.value if trial.value is not None else math.inf)


def table(study: optuna.Study) -> Table:
    """The best choices for people."""
    trials = ranked(study)[:SHOWN]
    names = list(trials[0].params)
    drawn = Table("folder", *names, "cost ratio", "runs")
    for trial in trials:
        told = estimate(trial.user_attrs["ratios"])
        drawn.add_row(
            _place(trial), *(_short(trial.params[name]) for name in names), str(told), str(told.runs)
        )
    return drawn


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_options(sweep: Sweep, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Options of a trial, nested as a file of `understudy train` has them."""
    found: dict[str, Any] = {}
    values = {
        name: json.loads(value) if sweep.search[name].choices else value
        for name, value in trial.params.items()
    }
    for name, value in (flat(sweep.options) | values).items():
        *groups, last = name.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def main(
    file: Annotated[Path, typer.Argument(help="YAML file: what to search.")],
    folder: Annotated[
        Path, typer.Option(help="For the journal and all runs; name it again to go on.")
    ] = Path("runs/sweep"),
    trials: Annotated[int | None, typer.Option(min=1, help="Choices to try, instead of the file's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; more than one rarely pays.")] = 1,
    mlflow: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="MLflow server to tell of every run.", show_default=False
        ),
    ] = None,
) -> None:
    """Search for options that learn better policies, with several seeds for every choice."""
    console = Console()
    torch.set_num_threads(threads)
    try:
        sweep = read_sweep(file)
        sweep = replace(sweep, trials=trials or sweep.trials)
        study = search(sweep, folder, console, mlflow)
    except MENDABLE as error:
        refused(error)
    if not (best := ranked(study)):
        Console(stderr=True).print("no choice was carried through; ask for more trials, or narrow the search")
        raise typer.Exit(1)
    console.print(table(study))
    chosen = folder / "best.yaml"
    chosen.write_text(yaml.safe_dump(best_options(sweep, best[0]), sort_keys=False))
    told = estimate(best[0].user_attrs["ratios"])
    console.print(f"best: cost ratio {told}; understudy train {chosen} learns with these options")
