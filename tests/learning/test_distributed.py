"""Two processes learn as one learner with the rows of both, stop together, and go on as if they had not stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import two_processes  # noqa: E402
from groups import ends, scripted, started  # noqa: E402
from understudy_policy import artifact  # noqa: E402
from understudy_trainer import distributed, launch, train  # noqa: E402
from understudy_trainer.checkpoint import CheckpointError  # noqa: E402
from understudy_trainer.classic_control import CartPole  # noqa: E402
from understudy_trainer.options import OptionsError  # noqa: E402
from understudy_trainer.training import make_trainer  # noqa: E402

NAMES = list(two_processes.CONFIGS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, two_processes.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ended(out: Path) -> list[dict[str, Any]]:
    """What each process ended with."""
    return [torch.load(out / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, whatever is nested how."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_halves_of_the_rows_teach_two_processes_what_all_rows_teach_one(name: str, ended) -> None:
    alone = two_processes.learnt(name, slice(0, 2 * two_processes.ROWS), two_processes.rollouts())
    for process in ended:
        for key, tensor in process[f"learnt-{name}"].items():
            torch.testing.assert_close(
                tensor, alone[key], atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
            )
    untaught = two_processes.learner_of(two_processes.CONFIGS[name]).model.state_dict()
    assert not torch.allclose(alone["head.weight"], untaught["head.weight"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_learners_are_equal_to_the_bit_and_live_in_worlds_of_their_own(name: str, ended) -> None:
    first, second = (process[f"run-{name}"] for process in ended)
    assert_equal(first["learner"], second["learner"])
    assert first["counts"] == second["counts"]
    assert not torch.equal(first["seen"], second["seen"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_both_processes_count(name: str, ended) -> None:
    steps, updates = ended[0][f"run-{name}"]["counts"]
    assert updates == two_processes.UPDATES
    assert steps == 2 * two_processes.ROWS * two_processes.STEPS * (updates + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sigterm_to_one_stops_both_after_the_same_update(name: str, ended) -> None:
    assert [process[f"stopped-{name}"] for process in ended] == [[6, True], [6, True]]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_was_stopped_goes_on_to_the_same_end(name: str, ended) -> None:
    for process in ended:
        assert_equal(process[f"resumed-{name}"], process[f"run-{name}"]["learner"])


@pytest.mark.slow
def test_only_the_first_process_writes_and_its_judgement_chooses_the_best(out: Path) -> None:
    best = torch.load(out / "a2c" / "checkpoints" / "best.pt", weights_only=True)
    assert best["updates"] == 12
    assert len(best["peers"]) == 1
    assert len(list((out / "a2c" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_checkpoint_of_two_is_refused_by_one_in_a_sentence(out: Path) -> None:
    config = two_processes.CONFIGS["a2c"]
    with pytest.raises(CheckpointError, match="episodes of 2 processes and 1 would go on"):
        make_trainer(CartPole(two_processes.ROWS, 0), config).resume(out / "a2c" / "checkpoints" / "last.pt")


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.tensor([1.0, 3.0])
    assert distributed.averaged(tensor) is tensor
    assert distributed.total(tensor) is tensor
    mean, variance = distributed.moments(tensor)
    assert (float(mean), float(variance)) == (2.0, 1.0)
    assert (distributed.size(), distributed.rank()) == (1, 0)


TOGETHER = [
    "--processes=2",
    "--finetune",
    "--generated-history",
    "--capacity-rps=20",
    "--set=world={workloads: 1040, episode_ticks: 8, curves: 9, batches: 1, compiled: false}",
    "--set=run={total_steps: 12480, log_updates: 1}",
    "--set=rollout_steps=4",
    "--set=critic_updates=1",
]
"""A command that starts a second process beside itself."""


def app() -> typer.Typer:
    """The command line of `understudy train`."""
    made = typer.Typer()
    made.command()(train.main)
    return made


@pytest.mark.slow
def test_a_command_that_starts_another_process_shares_the_services_out(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    told = CliRunner().invoke(app(), [*TOGETHER, "--folder", str(tmp_path)])
    assert told.exit_code == 0, told.output
    lineage = artifact.load((tmp_path / "policy.onnx").as_uri()).manifest.lineage
    assert lineage["processes"] == 2
    assert lineage["options"]["world"]["workloads"] == 1040
    assert lineage["decisions"] == 3 * 4 * 1040, "as many as one process makes in three rollouts"
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert told.output.count("held back: cost over") == 1
    assert distributed.size() == 1, "nothing is left joined"


@pytest.mark.slow
def test_sigterm_ends_a_command_and_the_process_beside_it(tmp_path: Path) -> None:
    endless = [*TOGETHER, "--set=run.total_steps=1000000000", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "understudy_trainer.train", *endless]
    with started(command, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 200
        while not any(file.stat().st_size > 1000 for file in tmp_path.glob("tensorboard/*")):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline, "nothing was learnt"
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=100)
        assert ends(run.pid), "a process of the group is left"
    assert run.returncode == 1, said
    assert "stopped after" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_services_that_cannot_be_shared_out_are_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "understudy_trainer.train", *TOGETHER, "--set=world.workloads=1041"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "world.workloads is 1041, which 2 processes cannot share" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def die(console: Console) -> None:
    """What a process does that is lost."""
    if distributed.rank() == 1:
        os._exit(3)
    distributed.any_process(False)


def wait_for_ever(console: Console) -> None:
    """What a process does that has to be ended; the first one says when all are there."""
    distributed.any_process(False)
    if distributed.rank() == 0:
        console.print("met")
    time.sleep(1000.0)


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_others_in_a_sentence() -> None:
    with pytest.raises(launch.LostProcessError, match=r"process 2 of 2 ended with exit code 3"):
        launch.together(2, "cpu", die, Console(quiet=True))
    assert distributed.size() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number", "status"),
    [(1, signal.SIGTERM, 143), (2, signal.SIGTERM, 143), (2, signal.SIGKILL, -9)],
)
def test_whatever_ends_the_first_process_ends_the_others(
    processes: int, number: signal.Signals, status: int
) -> None:
    script = f"from test_distributed import *; launch.together({processes}, 'cpu', wait_for_ever, Console())"
    with scripted(script) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "met\n"
        run.send_signal(number)
        assert run.wait(timeout=60) == status
        assert ends(run.pid), "a process of the group is left"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionsError, match="--processes is 2, but torch finds 1 GPUs"):
        launch.together(2, "cuda", wait_for_ever, Console(quiet=True))


def test_processes_are_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = CliRunner().invoke(app(), [*TOGETHER, "--folder", str(tmp_path)])
    assert told.exit_code == 2
    assert "--processes is 2, but this is already one of 2" in " ".join(told.stderr.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app(), ["--device", "cuda", "--folder", str(tmp_path)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 2
    assert "device is cuda, but torch finds no GPU; leave --device out" in result.stderr
    assert not list(tmp_path.iterdir())
