"""The comparison of learners can be made in slices: what is done is done."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install understudy[bench]")
pytest.importorskip("scipy", reason="scipy is not installed: pip install understudy[bench]")


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("learning")


def told(learning, monkeypatch, file, *options) -> dict:
    monkeypatch.setattr(sys, "argv", ["learning.py", "--json", str(file), *options])
    learning.main()
    return json.loads(file.read_text())


def test_a_finished_run_is_not_made_again_and_another_budget_is_another_run(
    learning, monkeypatch, tmp_path
) -> None:
    file, small = tmp_path / "figures.json", ("--only", "CartPole-v1,a2c", "--seeds", "2")
    first = told(learning, monkeypatch, file, *small, "--limit", "1280")
    assert [(run["seed"], run["steps"], run["learnt"]) for run in first["runs"]] == [
        (1000, 1280, False),
        (1001, 1280, False),
    ]
    again = told(learning, monkeypatch, file, *small, "--limit", "1280")
    assert again["runs"] == first["runs"]  # the processor seconds too
    assert again["tasks"]["CartPole-v1"]["systems"]["a2c"]["learnt"] == "0/2"
    none_begun = told(learning, monkeypatch, file, *small, "--limit", "640", "--minutes", "-1")
    assert none_begun["runs"] == []
    other = told(learning, monkeypatch, file, *small, "--limit", "640")
    assert [run["steps"] for run in other["runs"]] == [640, 640]
    assert len(file.with_name("figures.json.runs").read_text().splitlines()) == 4


def test_a_task_that_is_not_there_is_named(learning, monkeypatch, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        told(learning, monkeypatch, tmp_path / "figures.json", "--only", "Pong-v5")
    assert "--only Pong-v5: no such task or system" in capsys.readouterr().err
