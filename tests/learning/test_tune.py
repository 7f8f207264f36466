"""A sweep finds what is better, ends what is hopeless, and loses nothing when it is cut off."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install understudy[trainer]")

import typer  # noqa: E402

import small_runs  # noqa: E402
from understudy_trainer import tune  # noqa: E402
from understudy_trainer.loop import DivergedError, InterruptedRunError  # noqa: E402
from understudy_trainer.options import Options, OptionsError, read_options  # noqa: E402

SWEEP = {
    "options": {"run": {"total_steps": 4_000}, "world": {"workloads": 100}, "rollout_steps": 4},
    "search": {
        "ppo.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "network.hidden": {"choices": [[8], [16, 16]]},
    },
    "trials": 12,
    "seeds": 2,
    "evaluations": 5,
}
BEST_RATE = 1e-3


class Runs:
    """Stands in for training: a run costs the more the further its learning rate is from the best."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, bool]] = []
        self.stop_in: int | None = None
        self.diverges = False

    def train(
        self,
        options: Options,
        folder: Path,
        name: str,
        resume: bool,
        console: Console,
        mlflow: Any,
        listeners: Any,
    ) -> None:
        self.begun.append((folder.parent.name, options.seed, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.pt").touch()
        if self.diverges:
            raise DivergedError("NaN again and again")
        far = abs(math.log10(options.ppo.learning_rate / BEST_RATE))
        for steps in range(800, options.run.total_steps + 1, 800):
            ratio = 1.0 + far + 0.01 * options.seed + 400 / steps
            for listen in listeners:
                listen(steps, {"entropy": 1.0})
                listen(steps, {"evaluation/cost_ratio": ratio})
        if len(self.begun) == self.stop_in:
            raise InterruptedRunError
        (folder / "ended.json").write_text(json.dumps(ratio))

    def ended(self, place: Path, _options: Options) -> float | None:
        told = place / "ended.json"
        return json.loads(told.read_text()) if told.exists() else None


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(tune, "train", stand_in.train)
    monkeypatch.setattr(tune, "_ended", stand_in.ended)
    return stand_in


def sweep(tmp_path: Path, **other: Any) -> tune.Sweep:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP | other))
    return tune.read_sweep(file)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_the_best_is_near_the_best_and_every_choice_had_all_seeds(runs: Runs, tmp_path: Path) -> None:
    asked = sweep(tmp_path, pruner="none")
    study = tune.search(asked, tmp_path, console())
    best = tune.ranked(study)[0]
    assert abs(math.log10(best.params["ppo.learning_rate"] / BEST_RATE)) < 0.3
    assert len(best.user_attrs["ratios"]) == 2
    assert best.value == pytest.approx(sum(best.user_attrs["ratios"]) / 2)
    assert len(runs.begun) == 24
    assert {seed for _, seed, _ in runs.begun} == {0, 1}
    options = tune.best_options(asked, best)
    assert options["world"] == {"workloads": 100}
    assert options["ppo"]["learning_rate"] == best.params["ppo.learning_rate"]
    assert options["network"]["hidden"] in ([8], [16, 16])


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_hopeless_choices_are_ended_early(pruner: str, runs: Runs, tmp_path: Path) -> None:
    study = tune.search(sweep(tmp_path, pruner=pruner), tmp_path, console())
    states = [trial.state for trial in study.trials]
    assert states.count(optuna.trial.TrialState.PRUNED) > 0
    assert len(states) == 12
    assert len(runs.begun) < 24
    assert abs(math.log10(tune.ranked(study)[0].params["ppo.learning_rate"] / BEST_RATE)) < 0.5


def test_a_stopped_sweep_goes_on_where_it_was(runs: Runs, tmp_path: Path) -> None:
    asked = sweep(tmp_path, trials=3, pruner="none")
    runs.stop_in = 4  # the second choice's second seed
    with pytest.raises(tune.StoppedSweepError):
        tune.search(asked, tmp_path, console())
    runs.stop_in = None
    study = tune.search(asked, tmp_path, console())
    assert runs.begun == [
        ("choice-0000", 0, False),
        ("choice-0000", 1, False),
        ("choice-0001", 0, False),
        ("choice-0001", 1, False),
        ("choice-0001", 1, True),  # its first seed is not run again
        ("choice-0003", 0, False),
        ("choice-0003", 1, False),
    ]
    first, second = (trial for trial in study.trials if tune._place(trial) == "choice-0001")
    assert first.params == second.params
    assert len(tune.ranked(study)) == 3
    assert len({trial.params["ppo.learning_rate"] for trial in tune.ranked(study)}) == 3
    before = len(runs.begun)
    tune.search(sweep(tmp_path, trials=4, pruner="none"), tmp_path, console())  # more of the same
    assert len(runs.begun) == before + 2


class Unequal(Runs):
    """The first choices are all alike; the last one has a lucky first seed and two hopeless ones."""

    def train(self, options: Options, folder: Path, *rest: Any) -> None:
        number, listeners = len({*self.folders, folder.parent.name}), rest[-1]
        self.folders.add(folder.parent.name)
        self.begun.append((folder.parent.name, options.seed, rest[1]))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.pt").touch()
        ratio = 1.0 if number <= tune.UNPRUNED_TRIALS else (0.9, 2.0, 2.0)[options.seed]
        first = 800 if len(self.begun) != self.goes_on_at else 2400
        for steps in range(first, options.run.total_steps + 1, 800):
            for listen in listeners:
                listen(steps, {"evaluation/cost_ratio": ratio})
            if len(self.begun) == self.stop_in and steps == 1600:
                raise InterruptedRunError
        (folder / "ended.json").write_text(json.dumps(ratio))

    folders: set[str]
    goes_on_at = 0


@pytest.fixture
def unequal(monkeypatch: pytest.MonkeyPatch) -> Unequal:
    stand_in = Unequal()
    stand_in.folders = set()
    monkeypatch.setattr(tune, "train", stand_in.train)
    monkeypatch.setattr(tune, "_ended", stand_in.ended)
    return stand_in


def test_one_lucky_seed_does_not_save_a_choice(unequal: Unequal, tmp_path: Path) -> None:
    study = tune.search(sweep(tmp_path, trials=5, seeds=3), tmp_path, console())
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert [seed for _, seed, _ in unequal.begun][-2:] == [0, 1], "ended in the second seed"


def test_going_on_does_not_judge_a_choice_anew(unequal: Unequal, tmp_path: Path) -> None:
    asked = sweep(tmp_path, trials=5, seeds=3)
    unequal.stop_in = 13  # the last choice's first seed, after two of its five evaluations
    with pytest.raises(tune.StoppedSweepError):
        tune.search(asked, tmp_path, console())
    unequal.stop_in, unequal.goes_on_at = None, 14
    study = tune.search(asked, tmp_path, console())
    (stopped, resumed) = (trial for trial in study.trials if tune._place(trial) == "choice-0004")
    assert {step: resumed.intermediate_values[step] for step in stopped.intermediate_values} == (
        stopped.intermediate_values
    )
    assert set(range(5)) <= set(resumed.intermediate_values), (
        "every evaluation of the first seed is told once"
    )


def test_another_sweep_is_refused_in_the_same_folder(runs: Runs, tmp_path: Path) -> None:
    tune.search(sweep(tmp_path, trials=1), tmp_path, console())
    with pytest.raises(OptionsError, match="holds another sweep; name another --folder"):
        tune.search(sweep(tmp_path, seeds=3), tmp_path, console())


def test_a_choice_that_diverges_counts_and_the_sweep_goes_on(runs: Runs, tmp_path: Path) -> None:
    runs.diverges = True
    shown = console()
    study = tune.search(sweep(tmp_path, trials=2), tmp_path, shown)
    assert len(study.trials) == 2
    assert tune.ranked(study) == []
    assert "failed: NaN again and again" in shown.file.getvalue()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"search": {"ppo.rate": {"low": 1, "high": 2}}}, r"ppo\.rate is no option"),
        (
            {"search": {"ppo.epochs": {"low": 0, "high": 2}}},
            r"ppo\.epochs is 0: .*greater than or equal to 1",
        ),
        ({"search": {"ppo.epochs": {"low": 1}}}, "give low and high, or choices"),
        ({"search": {"ppo.epochs": {"low": 1, "high": 2, "choices": [3]}}}, "give low and high, or choices"),
        ({"search": {"ppo.epochs": {"low": 3, "high": 2}}}, "low 3 lies above high 2; exchange them"),
        (
            {"search": {"ppo.learning_rate": {"low": 0, "high": 0.01, "log": True}}},
            "low is 0, but with log it must lie above 0",
        ),
        ({"search": {"ppo.epochs": {"lowest": 1}}}, "lowest"),
        ({"seed": 3}, "seed"),
    ],
)
def test_what_cannot_be_searched_is_named_before_anything_runs(
    other: dict, said: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionsError, match=said):
        sweep(tmp_path, **other)


def test_whole_numbers_are_tried_between_whole_numbers(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = {tune.Range(low=1, high=4).suggest(study.ask(), "epochs") for _ in range(40)}
    assert values == {1, 2, 3, 4}


def test_every_run_is_evaluated_as_often_however_large_its_updates(tmp_path: Path) -> None:
    asked = sweep(tmp_path)
    for rollout_steps, updates in ((4, 10), (2, 20)):
        options = tune.options_of(asked, {"rollout_steps": rollout_steps}, 0)
        assert options.run.evaluate_updates == updates // 5


@pytest.mark.slow
def test_a_real_sweep_ends_in_options_to_learn_with(tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    for setting in small_runs.SETTINGS:
        name, _, value = setting.partition("=")
        options[name] = yaml.safe_load(value)
    file = tmp_path / "sweep.yaml"
    search = {"ppo.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    file.write_text(
        yaml.safe_dump({"options": options, "search": search, "trials": 2, "seeds": 2, "evaluations": 2})
    )
    app = typer.Typer()
    app.command()(tune.main)
    arguments = [str(file), "--folder", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "best: cost ratio" in result.stdout
    learnt = read_options(tmp_path / "out" / "best.yaml", [])
    assert learnt.world.workloads == 130
    assert 1e-4 <= learnt.ppo.learning_rate <= 1e-2
    again = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]
    assert "decisions" not in again.stdout  # nothing was left to learn
