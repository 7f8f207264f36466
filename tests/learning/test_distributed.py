"""Two processes learn as one learner with the rows of both, stop together, and go on as if they had not stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import two_processes  # noqa: E402
from understudy_trainer import distributed, train  # noqa: E402
from understudy_trainer.checkpoint import CheckpointError  # noqa: E402
from understudy_trainer.classic_control import CartPole  # noqa: E402
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train.main)
    result = CliRunner().invoke(app, ["--device", "cuda", "--folder", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "device is cuda, but torch finds no GPU; leave --device out" in result.stderr
    assert not list(tmp_path.iterdir())
