"""MLflow gets to know what a run did, and a run does not mind whatever MLflow does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")
mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install understudy[trainer]")

import small_runs  # noqa: E402
from understudy_policy import artifact  # noqa: E402
from understudy_trainer import compare, tracking  # noqa: E402
from understudy_trainer.loop import InterruptedRunError, StopRun  # noqa: E402
from understudy_trainer.options import OptionsError  # noqa: E402
from understudy_trainer.tracking import MLflowTracker, tracked  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with a database and a folder of artefacts."""
    pytest.importorskip(
        "sklearn", reason="MLflow's server is not installed: pip install understudy[learning]"
    )
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    stores = [
        "--backend-store-uri",
        f"sqlite:///{folder}/runs.db",
        "--artifacts-destination",
        str(folder / "artefacts"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *stores, "--port", str(port), "--workers", "1"],
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=log,
            stderr=log,
        )
        try:
            until = time.monotonic() + 300
            while not is_up(uri):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.2)
            yield uri
        finally:
            process.terminate()
            process.wait(30)


def is_up(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def runs_of(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("understudy")
    return client.search_runs([experiment.experiment_id])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_server_has_options_figures_lineage_and_a_version_that_the_digest_finds(
    server: str, tmp_path: Path
) -> None:
    def stop(_steps: int, _scalars: dict[str, float]) -> None:
        raise StopRun

    with pytest.raises(InterruptedRunError):
        small_runs.learn(tmp_path / "run", mlflow=server, listeners=(stop,))
    client = mlflow.MlflowClient(server)
    (run,) = runs_of(client)
    assert run.info.status == "KILLED"
    assert not client.search_registered_models()

    path = small_runs.learn(tmp_path / "run", mlflow=server, resume=True)
    (run,) = runs_of(client)  # the same one went on
    assert run.info.status == "FINISHED"
    assert run.data.params["network.hidden"] == "[8]"
    assert "acktr.learning_rate" not in run.data.params
    told = compare.read(tmp_path / "run").figures
    for name in ("entropy", "reward_mean"):
        assert run.data.metrics[name] == pytest.approx(told[name], rel=1e-5)
    curve = client.get_metric_history(run.info.run_id, "evaluation/cost_ratio")
    assert len(curve) == 2
    assert curve[-1].step > curve[0].step

    actor = artifact.load(path.as_uri())
    assert run.data.tags["sha256"] == actor.sha256
    mlflow.set_tracking_uri(server)
    lineage = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/lineage.json")
    assert lineage == actor.manifest.lineage
    (version,) = client.search_model_versions("name='small'")
    assert version.tags == {"sha256": actor.sha256}
    got = mlflow.artifacts.download_artifacts(
        f"models:/small@sha256-{actor.sha256}", dst_path=str(tmp_path / "got")
    )
    assert (Path(got) / "small.onnx").read_bytes() == path.read_bytes()

    small_runs.learn(tmp_path / "run", mlflow=server, resume=True)  # has nothing left to learn
    assert len(client.search_model_versions("name='small'")) == 1


class Recorded:
    """An MLflow client that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: list[Any] = []
        self.status = ""

    def log_batch(self, _run: str, metrics: list[Any]) -> None:
        self.metrics += metrics

    def set_terminated(self, _run: str, status: str) -> None:
        self.status = status


def test_figures_of_an_outage_are_told_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, outages = Recorded(), iter([True, True, False])

    def begin(_tracker: MLflowTracker) -> tuple[Recorded, str]:
        if next(outages):
            raise ConnectionError("gone for a night")
        return client, "run"

    monkeypatch.setattr(MLflowTracker, "_begin", begin)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.05)
    said: list[str] = []
    with tracked("http://server", "name", tmp_path, {}, False, said.append) as tracker:
        for steps in range(100):
            tracker(steps, {"entropy": 0.5, "kl": float("nan")})
        until = time.monotonic() + 20
        while len(client.metrics) < 100 and time.monotonic() < until:
            time.sleep(0.01)
    assert [(metric.key, metric.step) for metric in client.metrics] == [
        ("entropy", steps) for steps in range(100)
    ]
    assert said == [
        "MLflow at http://server was not told (gone for a night); training goes on, telling is tried again"
    ]
    assert client.status == "FAILED"  # nothing was published


@pytest.mark.parametrize("stop", [InterruptedRunError, SystemExit, KeyboardInterrupt])
def test_a_run_that_was_stopped_without_an_artefact_is_killed_not_failed(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Recorded()
    monkeypatch.setattr(MLflowTracker, "_begin", lambda _tracker: (client, "run"))
    with pytest.raises(stop), tracked("http://m", "x", tmp_path, {}, False, print):
        raise stop
    assert client.status == "KILLED"


class Stingy:
    """An MLflow client of a server that makes runs but takes nothing about them."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.tried = 0

    def get_experiment_by_name(self, _name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, *_: Any, **__: Any) -> Any:
        self.created.append(f"run-{len(self.created)}")
        return SimpleNamespace(info=SimpleNamespace(run_id=self.created[-1]))

    def log_batch(self, _run: str, **_: Any) -> None:
        self.tried += 1
        raise ConnectionError("too large")


def test_a_server_that_takes_no_parameters_gets_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Stingy()
    monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: client)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.02)
    with tracked("http://server", "name", tmp_path, {"seed": 1}, False, lambda _line: None):
        until = time.monotonic() + 20
        while client.tried < 5 and time.monotonic() < until:
            time.sleep(0.01)
    assert client.created == ["run-0"]
    assert json.loads((tmp_path / tracking.REMEMBERED).read_text())["run_id"] == "run-0"


def test_a_run_goes_on_as_what_it_began_as(tmp_path: Path) -> None:
    options = {"seed": 7, "ppo": {"gamma": 0.9, "epochs": 2}, "run": {"total_steps": 10}}
    tracking.record(tmp_path, "policy", options)
    tracking.refuse_other(tmp_path, options | {"run": {"total_steps": 20}})
    tracking.refuse_other(tmp_path / "without a record", {"seed": 8})
    with pytest.raises(
        OptionsError, match=r"began with seed 7 \(now 8\), ppo\.gamma 0\.9 \(now 0\.97\); give"
    ):
        tracking.refuse_other(tmp_path, {"seed": 8, "ppo": {"gamma": 0.97, "epochs": 2}, "run": {}})


def test_the_oldest_figures_give_way_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Recorded()
    monkeypatch.setattr(tracking, "WAITING", 10)
    monkeypatch.setattr(MLflowTracker, "_begin", lambda _tracker: (client, "run"))
    monkeypatch.setattr(MLflowTracker, "_tell", lambda *_: None)  # too slow for any
    said: list[str] = []
    with tracked("http://server", "name", tmp_path, {}, False, said.append) as tracker:
        for steps in range(25):
            tracker(steps, {"entropy": 0.5})
    assert said == ["MLflow at http://server answered too late for 15 notes; its record has gaps"]


def test_a_server_that_never_answers_costs_training_nothing_and_its_end_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 0.5)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with tracked(uri, "name", tmp_path, {"a": 1}, False, said.append) as tracker:
            start = time.monotonic()
            for steps in range(5_000):
                tracker(steps, {"entropy": 0.5})
            noted_s = time.monotonic() - start
            start = time.monotonic()
        ended_s = time.monotonic() - start
    assert noted_s < 2.0
    assert ended_s < 5.0
    assert said == [f"MLflow at {uri} did not answer within 0 s; its record of the run has gaps"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of a run that told nobody."""
    return small_runs.learn(tmp_path_factory.mktemp("alone"), "seed=5")


def test_a_run_learns_the_same_beside_a_server_that_is_not_there(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    beside = small_runs.learn(tmp_path, "seed=5", mlflow="http://127.0.0.1:1")
    golden = [artifact.load(path.as_uri()).manifest.golden_probabilities for path in (beside, alone)]
    assert golden[0] == golden[1]


def test_without_a_server_nobody_is_told_and_the_folder_still_says_what_the_run_is(alone: Path) -> None:
    record = json.loads((alone.parent / tracking.RECORD).read_text())
    assert record["name"] == "small"
    assert record["options"]["seed"] == 5
    assert "a2c" not in record["options"]
    assert not (alone.parent / tracking.REMEMBERED).exists()
    figures = compare.read(alone.parent).figures
    held_out = artifact.load(alone.as_uri()).manifest.lineage["held_out"]
    assert figures["evaluation/cost_ratio"] == pytest.approx(held_out["cost_ratio"], abs=1e-4)
