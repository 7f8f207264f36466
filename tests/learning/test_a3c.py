"""A3C: workers share what they should, and one worker alone is A2C."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from rich.console import Console  # noqa: E402

import small_runs  # noqa: E402
import worlds  # noqa: E402
from groups import ends, scripted  # noqa: E402
from understudy_policy import artifact  # noqa: E402
from understudy_trainer import train  # noqa: E402
from understudy_trainer.actor_critic import ActorCritic, NetworkConfig  # noqa: E402
from understudy_trainer.algorithms.a2c import A2CConfig  # noqa: E402
from understudy_trainer.algorithms.a3c import A3C, A3CConfig, Shared  # noqa: E402
from understudy_trainer.classic_control import CartPole  # noqa: E402
from understudy_trainer.collector import RewardConfig  # noqa: E402
from understudy_trainer.launch import LostProcessError  # noqa: E402
from understudy_trainer.loop import DivergedError, RunConfig, StopRun  # noqa: E402
from understudy_trainer.options import OptionsError, read_options  # noqa: E402
from understudy_trainer.training import TrainingConfig, environment_seed, make_trainer  # noqa: E402
from understudy_trainer.workers import AsynchronousTrainer  # noqa: E402

OPTIONS = {"learning_rate": 3e-3, "final_learning_rate_share": 0.1, "entropy_coefficient": 0.01}
CONFIG = TrainingConfig(
    A3CConfig(workers=1, **OPTIONS),
    NetworkConfig(hidden=(16,)),
    RewardConfig(scale=0.02),
    RunConfig(total_steps=6000, log_updates=1),
)
FACTORY = functools.partial(CartPole, 8)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop_tf", "adam"])
def test_one_worker_is_a2c_bit_for_bit(optimizer: str) -> None:
    alone = replace(CONFIG, algorithm=A2CConfig(optimizer=optimizer, **OPTIONS))
    trainer = make_trainer(FACTORY(environment_seed(alone)), alone)
    trainer.run()
    shared = replace(CONFIG, algorithm=A3CConfig(optimizer=optimizer, workers=1, **OPTIONS))
    asynchronous = AsynchronousTrainer(FACTORY, shared)
    outcome, model = asynchronous.run(), asynchronous.learner.model
    assert outcome.steps == trainer.steps
    for name, tensor in trainer.learner.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def two_workers() -> tuple[A3C, A3C, Shared]:
    config = A3CConfig(optimizer="rmsprop_tf")
    models = [ActorCritic(3, 4, NetworkConfig(hidden=(8,))) for _ in range(2)]
    shared = Shared.of(models[0], config, threading.Lock())
    return A3C(models[0], config, shared), A3C(models[1], config, shared), shared


def test_a_worker_uses_its_new_gradient_and_both_move_the_same_weights() -> None:
    first, second, shared = two_workers()
    expected, square = shared.parameters.clone(), torch.ones_like(shared.parameters)
    for learner, size in ((first, 1.0), (second, 2.0), (first, 3.0)):
        gradient = torch.full_like(expected, size)
        square = 0.99 * square + 0.01 * gradient**2
        expected = expected - 0.1 * gradient / (square + 1e-5).sqrt()
        learner.apply(gradient, 0.1)
    torch.testing.assert_close(shared.parameters, expected)
    assert torch.equal(first.parameters.flat, shared.parameters)
    # The second has not looked since its own step, and sees the other's as soon as it does.
    assert not torch.equal(second.parameters.flat, shared.parameters)
    second.pull()
    assert torch.equal(second.parameters.flat, shared.parameters)


def test_all_workers_observations_are_in_the_same_moments() -> None:
    first, second, shared = two_workers()
    seen = torch.randn(40, 3)
    for learner, rows in ((first, seen[:10]), (second, seen[10:])):
        rollout = type("Seen", (), {"observation": rows[None]})
        learner.observe(rollout)
    torch.testing.assert_close(shared.buffers["normalizer.mean"], seen.mean(0))


def test_nan_in_one_worker_does_not_reach_the_others() -> None:
    first, _, shared = two_workers()
    before = shared.parameters.clone()
    first.apply(torch.full_like(before, float("nan")), 0.1)
    assert torch.equal(shared.parameters, before)
    assert torch.equal(first.parameters.flat, before)


def test_values_in_standard_deviations_are_refused() -> None:
    config = A3CConfig(normalize_value=True)
    model = ActorCritic(3, 4)
    with pytest.raises(ValueError, match="normalize_value is True"):
        A3C(model, config, Shared.of(model, config, threading.Lock()))


@pytest.mark.slow
def test_two_workers_learn_and_their_run_can_be_resumed(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        algorithm=A3CConfig(learning_rate=3e-3, workers=2),
        run=RunConfig(total_steps=150_000, log_updates=5, checkpoint_updates=20),
        rollout_steps=20,
    )

    def enough(_steps: int, scalars: dict[str, float]) -> None:
        if scalars["episode_return"] >= 120:
            raise StopRun

    outcome = AsynchronousTrainer(FACTORY, config, tmp_path, listeners=(enough,)).run()
    assert outcome.interrupted, f"only {outcome.episode_return:.0f} after {outcome.steps} steps"
    last = tmp_path / "checkpoints" / "last.pt"
    # Nothing is left to do: what comes back is what was saved.
    done = replace(config, run=replace(config.run, total_steps=outcome.steps))
    trainer = AsynchronousTrainer(FACTORY, done)
    trainer.resume(last)
    resumed, model = trainer.run(), trainer.learner.model
    assert resumed.steps >= outcome.steps
    assert resumed.updates >= outcome.updates
    assert resumed.seconds > outcome.seconds > 0
    saved = torch.load(last, weights_only=True)["learner"]["model"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name]), name


@pytest.mark.slow
def test_workers_begin_with_what_the_network_was_given() -> None:
    config = replace(CONFIG, algorithm=A3CConfig(workers=2, learning_rate=1e-12, optimizer="rmsprop_tf"))
    trainer = AsynchronousTrainer(FACTORY, config)
    with torch.no_grad():
        for parameter in trainer.learner.model.parameters():
            parameter.fill_(0.25)
    outcome = trainer.run()
    assert outcome.steps >= config.run.total_steps
    assert all(torch.allclose(p, torch.tensor(0.25)) for p in trainer.learner.model.parameters())


@pytest.mark.slow
def test_nobody_learns_on_for_a_listener_that_failed() -> None:
    def fail(_steps: int, _scalars: dict[str, float]) -> None:
        raise ArithmeticError

    endless = replace(CONFIG, algorithm=A3CConfig(workers=2), run=RunConfig(total_steps=10**9, log_updates=1))
    with pytest.raises(ArithmeticError):
        AsynchronousTrainer(FACTORY, endless, listeners=(fail,)).run()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_best_network_is_the_one_that_was_judged_best(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0])
    judged = []

    def evaluate(model: ActorCritic) -> dict[str, float]:
        judged.append(model.critic.weight.detach().clone())
        return {"score": next(scores, 0.0)}

    told: list[dict[str, float]] = []
    run = RunConfig(total_steps=20_000, log_updates=10, evaluate_updates=10)
    config = replace(CONFIG, algorithm=A3CConfig(workers=2, **OPTIONS), run=run)
    AsynchronousTrainer(FACTORY, config, tmp_path, (lambda _, s: told.append(s),), evaluate).run()
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert best["best"] == 3.0
    assert torch.equal(best["learner"]["model"]["critic.weight"], judged[1])
    assert [scalars["evaluation/score"] for scalars in told[:3]] == [1.0, 3.0, 2.0]


@pytest.mark.slow
def test_the_command_learns_with_a3c(tmp_path: Path) -> None:
    asynchronous = (
        "algorithm=a3c",
        "a3c.workers=2",
        "begin_with=builtin://generalist",
        "network.hidden=[128, 128]",
    )
    path = small_runs.learn(tmp_path, *asynchronous)
    lineage = artifact.load(path.as_uri()).manifest.lineage
    assert lineage["options"]["algorithm"] == "a3c"
    assert lineage["processes"] == 2
    assert lineage["decisions"] >= 3120
    assert (tmp_path / "checkpoints" / "best.pt").exists()
    with pytest.raises(OptionsError, match="holds a run already"):
        small_runs.learn(tmp_path, *asynchronous)
    small_runs.learn(tmp_path, *asynchronous, "run.total_steps=6240", resume=True)
    assert artifact.load(path.as_uri()).manifest.lineage["decisions"] >= 6240


@pytest.mark.parametrize(
    ("settings", "device", "says"),
    [
        (["a3c.normalize_value=true"], "cpu", "a3c.normalize_value is True"),
        ([], "cuda", "say --device cpu"),
    ],
)
def test_what_a3c_cannot_do_is_refused_before_anything_is_learned(
    settings: list[str], device: str, says: str, tmp_path: Path
) -> None:
    options = read_options(None, ["algorithm=a3c", *settings])
    with pytest.raises(OptionsError, match=says):
        train.train(options, tmp_path, "x", False, Console(quiet=True), device=device)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_ends_the_run_long_before_its_end() -> None:
    config = replace(CONFIG, algorithm=A3CConfig(workers=2), run=RunConfig(total_steps=10**9, log_updates=1))
    only_the_first = functools.partial(worlds.killed_unless, environment_seed(CONFIG, 0))
    with pytest.raises(LostProcessError, match="a worker ended with exit code 3"):
        AsynchronousTrainer(only_the_first, config).run()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_workers_are_all_killed_is_not_taken_for_a_complete_one(workers: int) -> None:
    def kill(_steps: int, _scalars: dict[str, float]) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    endless = RunConfig(total_steps=10**9, log_updates=1)
    config = replace(CONFIG, algorithm=A3CConfig(workers=workers), run=endless)
    with pytest.raises(LostProcessError, match="a worker ended with exit code -9"):
        AsynchronousTrainer(FACTORY, config, listeners=(kill,)).run()


@pytest.mark.slow
def test_sigterm_stops_all_workers_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    def stop(_steps: int, _scalars: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    endless = RunConfig(total_steps=10**9, log_updates=1)
    config = replace(CONFIG, algorithm=A3CConfig(workers=2), run=endless)
    outcome = AsynchronousTrainer(FACTORY, config, tmp_path, (stop,)).run()
    assert outcome.interrupted
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["steps"] == outcome.steps


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_keeps_what_it_saw(tmp_path: Path) -> None:
    config = replace(CONFIG, algorithm=A3CConfig(workers=2), run=RunConfig(total_steps=10**9, log_updates=1))
    with pytest.raises(DivergedError, match=r"worker \d failed: NaN in 6 updates in a row"):
        AsynchronousTrainer(worlds.never_a_number, config, tmp_path).run()
    assert list(tmp_path.glob("quarantine/worker-*/update-*.pt"))


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed() -> None:
    script = (
        "from test_a3c import *; "
        "config = replace(CONFIG, algorithm=A3CConfig(workers=2), run=RunConfig(total_steps=10**9, log_updates=1)); "
        "AsynchronousTrainer(FACTORY, config, listeners=(lambda *_: print('learning', flush=True),)).run()"
    )
    with scripted(script) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "learning\n"
        run.send_signal(signal.SIGKILL)
        assert run.wait(timeout=20) == -signal.SIGKILL
        assert ends(run.pid), "a worker learns on for nobody"


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_with_its_reason() -> None:
    config = replace(CONFIG, algorithm=A3CConfig(workers=2), run=RunConfig(total_steps=10**7, log_updates=1))
    only_the_first = functools.partial(worlds.cart_pole_for, environment_seed(CONFIG, 0))
    with pytest.raises(LostProcessError, match="worker 1 failed: OSError: no more worlds"):
        AsynchronousTrainer(only_the_first, config).run()
