"""Runs beside each other: options that differ, figures that are sure or not, from what real runs leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install understudy[trainer]")

from understudy_trainer import compare, tracking
from understudy_trainer.loop import scalars_to

RATIO = "evaluation/cost_ratio"


def run(folder: Path, seed: int, rate: float, *ratios: float) -> Path:
    """A folder as a run that was cut off leaves it, evaluated every hundred steps."""
    tracking.record(folder, "policy", {"ppo": {"learning_rate": rate}, "seed": seed, "rollout_steps": 4})
    with scalars_to(folder) as write:
        for i, ratio in enumerate(ratios):
            write(100 * i + 50, {"entropy": 3.0 - i, "episode_return": float("nan")})
            write(100 * i + 100, {RATIO: ratio, "evaluation/score": -ratio, "entropy": 2.5 - i})
    return folder


def told(*folders: Path) -> dict:
    result = CliRunner().invoke(compare.app, ["compare", *map(str, folders), "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_best_evaluation_counts_and_the_last_of_everything_else(tmp_path: Path) -> None:
    one = compare.read(run(tmp_path, 0, 1e-3, 1.2, 0.9, 1.1))
    assert one.figures[RATIO] == pytest.approx(0.9)
    assert one.figures["entropy"] == pytest.approx(0.5)
    assert one.steps == 300
    assert "episode_return" not in one.figures  # never a number
    assert one.sha256 is None


def test_runs_that_differ_in_the_seed_alone_are_one_row_and_the_cheapest_is_first(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"slow-{seed}", seed, 1e-4, 1.0 + 0.1 * seed) for seed in range(3)]
    folders += [run(tmp_path / f"fast-{seed}", seed, 1e-3, 0.9 + 0.1 * seed) for seed in range(3)]
    rows = told(*folders)["rows"]
    assert [row["options"] for row in rows] == [{"ppo.learning_rate": 1e-3}, {"ppo.learning_rate": 1e-4}]
    assert [run["options"]["seed"] for run in rows[0]["runs"]] == [0, 1, 2]
    figures = rows[0]["figures"][RATIO]
    assert figures["mean"] == pytest.approx(1.0)
    assert figures["low"] == pytest.approx(0.9)
    assert figures["high"] == pytest.approx(1.1)
    assert figures["runs"] == 3


def test_runs_of_more_processes_are_another_row(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"run-{seed}", seed, 1e-3, 0.9 - 0.1 * seed) for seed in range(2)]
    record = json.loads((folders[1] / tracking.RECORD).read_text())
    (folders[1] / tracking.RECORD).write_text(json.dumps(record | {"processes": 2}))
    rows = told(*folders)["rows"]
    assert [row["options"] for row in rows] == [{"processes": 2}, {"processes": 1}]


def test_the_table_names_what_differs_and_no_more(tmp_path: Path) -> None:
    folders = [str(run(tmp_path / str(rate), 0, rate, 1.0)) for rate in (1e-3, 1e-4)]
    shown = CliRunner().invoke(compare.app, ["compare", *folders], env={"COLUMNS": "160"}).stdout
    assert "ppo.learning_rate" in shown
    assert "0.0001" in shown
    assert "cost ratio" in shown
    assert "rollout_steps" not in shown
    assert "seed" not in shown


def test_one_run_alone_has_no_interval(tmp_path: Path) -> None:
    (row,) = told(run(tmp_path, 0, 1e-3, 1.0))["rows"]
    assert row["figures"][RATIO] == {"mean": 1.0, "low": None, "high": None, "runs": 1}


def test_a_folder_that_holds_no_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(compare.app, ["compare", str(tmp_path / "nothing")], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "nothing holds no run that can be read" in result.stderr
    assert "name the --folder of a training" in result.stderr
    (tmp_path / "early").mkdir()
    tracking.record(tmp_path / "early", "policy", {})
    with pytest.raises(compare.RunError, match="no figures yet"):
        compare.read(tmp_path / "early")


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_an_interval_holds_the_mean_of_the_middle_and_nothing_beyond_the_values(values: list[float]) -> None:
    found = compare.estimate(values)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert found.low is not None
    assert found.high is not None
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.low - slack <= found.mean <= found.high + slack


def test_one_wild_run_of_eight_moves_the_middle_little() -> None:
    calm = list(np.linspace(0.9, 1.1, 8))
    wild = [*calm[:-1], 100.0]
    assert compare.estimate(wild).mean == pytest.approx(compare.estimate(calm).mean)
