"""A run can be stopped, killed, poisoned and repeated, and what it learnt is none the worse for it."""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from rich.console import Console  # noqa: E402

import worlds  # noqa: E402
from understudy_trainer.actor_critic import NetworkConfig  # noqa: E402
from understudy_trainer.algorithms.a2c import A2CConfig  # noqa: E402
from understudy_trainer.algorithms.acktr import ACKTRConfig  # noqa: E402
from understudy_trainer.algorithms.ppo import PPOConfig  # noqa: E402
from understudy_trainer.checkpoint import CheckpointError, Checkpoints, save  # noqa: E402
from understudy_trainer.classic_control import CartPole  # noqa: E402
from understudy_trainer.collector import RewardConfig, RewardScaler  # noqa: E402
from understudy_trainer.constraint import ConstraintConfig  # noqa: E402
from understudy_trainer.loop import DivergedError, RunConfig, StopRun, Trainer  # noqa: E402
from understudy_trainer.progress import ProgressLine, make_progress  # noqa: E402
from understudy_trainer.training import TrainingConfig, make_trainer  # noqa: E402

NETWORK = NetworkConfig(hidden=(8,))
CONFIGS = {
    "a2c": TrainingConfig(A2CConfig(normalize_value=True), NETWORK, RewardConfig(adapt=True)),
    "a2c-gru": TrainingConfig(A2CConfig(optimizer="adam"), replace(NETWORK, memory=6)),
    "acktr": TrainingConfig(
        ACKTRConfig(cold_updates=2, inverse_updates=3), NETWORK, RewardConfig(scale=0.02)
    ),
    "ppo": TrainingConfig(PPOConfig(minibatch_rows=32), NETWORK),
}


def trainer(config: TrainingConfig, folder: Path | None = None, updates: int = 20, **parts) -> Trainer:
    rows = 8
    run = RunConfig(
        total_steps=rows * 16 * (updates + 1), checkpoint_updates=10, log_updates=1, snapshot_updates=2
    )
    return make_trainer(CartPole(rows, seed=1), replace(config, run=run), folder, **parts)


def weights(of: Trainer) -> torch.Tensor:
    return of.learner.parameters.flat.clone()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(config: TrainingConfig, tmp_path: Path) -> None:
    whole = trainer(config)
    whole.run()

    def stop_at_ten(_steps: int, _scalars: dict[str, float]) -> None:
        if first.updates == 10:
            raise StopRun

    first = trainer(config, tmp_path, listeners=(stop_at_ten,))
    assert first.run().interrupted
    second = trainer(config, tmp_path)
    second.resume(tmp_path / "checkpoints" / "last.pt")
    second.run()
    assert second.updates == whole.updates
    assert torch.equal(weights(second), weights(whole))
    for name, tensor in whole.learner.model.state_dict().items():
        assert torch.equal(second.learner.model.state_dict()[name], tensor), name
    assert list(second.returns) == list(whole.returns)


def test_a_run_that_was_stopped_before_its_first_update_does_not_warm_up_again(tmp_path: Path) -> None:
    whole = trainer(CONFIGS["a2c"], updates=3)
    whole.run()
    first = trainer(CONFIGS["a2c"], tmp_path, updates=3)
    first.warm_up()
    first.save()
    second = trainer(CONFIGS["a2c"], updates=3)
    second.resume(tmp_path / "checkpoints" / "last.pt")
    second.run()
    assert (second.steps, second.updates) == (whole.steps, whole.updates)
    assert torch.equal(weights(second), weights(whole))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_same_seed_gives_the_same_weights_and_another_does_not(config: TrainingConfig) -> None:
    runs = [trainer(replace(config, seed=seed), updates=5) for seed in (7, 7, 8)]
    for run in runs:
        run.run()
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_global_generators_have_no_say() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        run = trainer(CONFIGS["ppo"], updates=3)
        run.run()
        found.append(weights(run))
    assert torch.equal(*found)


def test_a_resumed_constraint_keeps_its_price(tmp_path: Path) -> None:
    config = TrainingConfig(
        A2CConfig(), NETWORK, constraint=ConstraintConfig(limit=0.1), run=RunConfig(total_steps=2000)
    )
    first = make_trainer(worlds.Costly(), config, tmp_path)
    first.run()
    second = make_trainer(worlds.Costly(), config)
    second.resume(tmp_path / "checkpoints" / "last.pt")
    assert float(second.learner.multiplier.price) == float(first.learner.multiplier.price) > 0


def test_sigterm_ends_the_run_after_the_update_with_a_checkpoint(tmp_path: Path) -> None:
    def kill_at_three(_steps: int, _scalars: dict[str, float]) -> None:
        if run.updates == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run = trainer(CONFIGS["a2c"], tmp_path, listeners=(kill_at_three,))
    outcome = run.run()
    assert outcome.interrupted
    assert outcome.updates == 3
    assert (tmp_path / "checkpoints" / "last.pt").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


class Poisoned(CartPole):
    """Rewards turn to NaN in some steps."""

    def __init__(self, poisoned: range) -> None:
        super().__init__(8, seed=1)
        self.steps, self.poisoned = 0, poisoned

    def step(self, action):
        step = super().step(action)
        self.steps += 1
        return step._replace(reward=step.reward * math.nan) if self.steps in self.poisoned else step


def test_nan_is_undone_put_aside_and_learning_goes_on(tmp_path: Path) -> None:
    # A rollout is 16 steps: the sixth update is poisoned (the first rollout only warms the normaliser up).
    config = replace(CONFIGS["a2c"], run=RunConfig(total_steps=8 * 16 * 12, snapshot_updates=1))
    run = make_trainer(Poisoned(range(100, 104)), config, tmp_path)
    outcome = run.run()
    assert outcome.restores == 1
    assert outcome.steps == 8 * 16 * 12
    assert bool(torch.isfinite(weights(run)).all())
    assert all(math.isfinite(value) for value in run.returns)
    assert bool(torch.isfinite(run.collector.scaler.variance).all())
    kept = torch.load(next((tmp_path / "quarantine").iterdir()), weights_only=True)
    assert bool(kept["rollout"]["raw_reward"].isnan().any())


def test_the_weights_that_come_back_are_the_last_good_ones() -> None:
    config = replace(CONFIGS["a2c"], run=RunConfig(total_steps=8 * 16 * 7, snapshot_updates=1))
    run = make_trainer(Poisoned(range(97, 10**6)), config)
    run.warm_up()
    for _ in range(5):
        assert run.iterate()
    good = weights(run)
    assert run.iterate() == {}
    assert torch.equal(weights(run), good)


def test_nan_that_does_not_go_away_ends_the_run_and_says_where_it_came_from(tmp_path: Path) -> None:
    config = replace(CONFIGS["a2c"], run=RunConfig(total_steps=10**6))
    with pytest.raises(DivergedError, match=r"6 updates in a row.*reward.*quarantine"):
        make_trainer(Poisoned(range(40, 10**9)), config, tmp_path).run()


def test_checkpoints_roll_and_the_best_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in range(1, 8):
        checkpoints.write({"update": update}, update, is_best=update == 2)
    assert sorted(p.name for p in tmp_path.glob("update-*")) == [
        f"update-{update:09d}.pt" for update in (5, 6, 7)
    ]
    assert torch.load(tmp_path / "best.pt")["update"] == 2
    assert torch.load(tmp_path / "last.pt")["update"] == 7


def test_the_best_is_what_the_evaluation_says(tmp_path: Path) -> None:
    scores = iter([1.0, 5.0, 3.0, 4.0])
    config = replace(CONFIGS["a2c"], run=RunConfig(total_steps=8 * 16 * 9, evaluate_updates=2))
    heard: list[dict[str, float]] = []
    run = make_trainer(
        CartPole(8, 1),
        config,
        tmp_path,
        evaluate=lambda _model: {"score": next(scores)},
        listeners=(lambda _steps, scalars: heard.append(scalars),),
    )
    run.run()
    assert torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["updates"] == 4
    assert [h["evaluation/score"] for h in heard] == [1.0, 5.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"nonsense", "cannot be read"),
        ([1.0, 2.0], "has format None"),
        ({"format_version": 99}, "has format 99"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_a_sentence(content, said: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, list):
        torch.save(content, path)
    elif content:
        save(path, content)
    with pytest.raises(CheckpointError, match=said):
        trainer(CONFIGS["a2c"]).resume(path)


@pytest.mark.parametrize(
    "other",
    [replace(CONFIGS["a2c"], network=replace(NETWORK, hidden=(16,))), CONFIGS["acktr"]],
    ids=["network", "algorithm"],
)
def test_a_checkpoint_of_another_run_is_refused_in_a_sentence(other: TrainingConfig, tmp_path: Path) -> None:
    trainer(CONFIGS["a2c"], tmp_path, updates=1).run()
    with pytest.raises(CheckpointError, match="of another network or algorithm"):
        trainer(other).resume(tmp_path / "checkpoints" / "last.pt")


def test_tensorboard_finds_the_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    trainer(CONFIGS["a2c"], tmp_path, updates=5).run()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"episode_return", "entropy", "value_loss", "steps_per_second", "reward_mean"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("entropy")) == 5


def test_adapted_rewards_have_discounted_returns_of_deviation_one_for_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    scaler = RewardScaler(RewardConfig(adapt=True, classes=2), 0.9, 400, torch.device("cpu"))
    classes = torch.arange(400).remainder(2).expand(50, 400)
    ended = torch.zeros(50, 400, dtype=torch.bool)
    for _ in range(6):
        reward = torch.randn((50, 400), generator=generator) * torch.where(classes == 0, 1.0, 100.0)
        scaled = scaler(reward, ended, classes)
    # Of independent rewards with discount 0.9 the return's deviation is 1 / sqrt(1 - 0.81) of theirs.
    for k in (0, 1):
        assert float(scaled[classes == k].std()) == pytest.approx(math.sqrt(1 - 0.81), rel=0.05)
    assert torch.equal(torch.sign(scaled), torch.sign(reward))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_compiled_code_learns_what_plain_code_learns(name: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and torch.compile needs it")
    runs = [trainer(replace(CONFIGS[name], compiled=compiled), updates=3) for compiled in (False, True)]
    for run in runs:
        run.run()
    torch.testing.assert_close(weights(runs[1]), weights(runs[0]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "algorithm",
    [
        A2CConfig(learning_rate=3e-3),
        ACKTRConfig(entropy_coefficient=0.0),
        PPOConfig(learning_rate=1e-3, minibatch_rows=256, epochs=8),
    ],
    ids=["a2c", "acktr", "ppo"],
)
def test_cartpole_is_learnt(algorithm) -> None:
    def enough(_steps: int, scalars: dict[str, float]) -> None:
        if scalars["episode_return"] >= 195 and scalars["episodes_averaged"] >= 100:
            raise StopRun

    config = TrainingConfig(
        algorithm,
        reward=RewardConfig(scale=0.02),
        rollout_steps=20,
        run=RunConfig(total_steps=200_000, log_updates=1),
    )
    outcome = make_trainer(CartPole(32, seed=0), config, listeners=(enough,)).run()
    assert outcome.interrupted, f"only {outcome.episode_return:.0f} after {outcome.steps} steps"


def test_the_line_of_progress_says_how_far_how_good_and_how_fast() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    progress = make_progress(console)
    line = ProgressLine(progress, "ppo", 2000)
    line(500, {"episode_return": 123.4, "kl": math.nan, "steps_per_second": 45_678.0})
    console.print(progress)
    shown = console.export_text()
    for part in ("ppo", "25%", "return 123.4", "45,678 steps/s"):
        assert part in shown
    assert "KL" not in shown
