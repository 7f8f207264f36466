"""Imitation learns something that can be measured, and what it exports is what it learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install understudy[trainer]")

from understudy_policy import actions, artifact, features  # noqa: E402
from understudy_trainer import export, imitation, rollout, workloads  # noqa: E402
from understudy_trainer.networks import Actor  # noqa: E402
from understudy_trainer.normalizer import Normalizer  # noqa: E402

A = len(actions.TABLE)
TINY = ["--workloads", "64", "--held-out", "32", "--ticks", "80", "--updates", "240", "--batch", "1024"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("imitation")
    path, told = folder / "tiny.onnx", folder / "figures.json"
    imitation.main(["--out", str(path), "--json", str(told), *TINY])
    return path, json.loads(told.read_text())


@pytest.mark.slow
def test_a_tiny_run_learns_well_beyond_chance(trained: tuple[Path, dict]) -> None:
    figures = trained[1]["figures"]
    assert figures["entropy_nats"] < 0.9 * np.log(A)
    assert figures["top_5_agreement"] > 2 * 5 / A
    assert figures["actor_regret"] < figures["usual_row_regret"]


def test_the_loss_falls_well_below_that_of_a_network_that_prefers_nothing() -> None:
    rng = np.random.default_rng(7)
    config = imitation.ImitationConfig(batch=1024)
    world = workloads.draw(48, 40, rng)
    observations, owner = imitation.visit(world, np.zeros(48, np.int64), None, rng)
    lesson = imitation.Lesson(observations, owner, rollout.sweep(world))
    actor = Actor()
    actor.normalizer.update(torch.from_numpy(observations))
    uniform = imitation.learn(actor, lesson, config, 1, rng, lambda: None)
    learned = imitation.learn(actor, lesson, config, 200, rng, lambda: None)
    assert learned < 0.6 * uniform


@pytest.mark.slow
def test_what_it_exports_is_accepted_and_says_how_it_was_made(trained: tuple[Path, dict]) -> None:
    path, told = trained
    actor = artifact.load(path.as_uri(), told["sha256"])
    assert actor.manifest.name == "tiny"
    lineage = actor.manifest.lineage
    assert lineage["algorithm"] == "imitation"
    assert lineage["config"]["workloads"] == 64
    assert lineage["parity"]["observations"] >= 1000
    assert lineage["parity"]["max_abs_error"] <= export.PARITY_LIMIT
    assert len(actor.manifest.golden_features) >= 8
    for quantiles in actor.manifest.feature_histograms.values():
        assert quantiles == sorted(quantiles)
    assert path.stat().st_size < 300_000
    # Nothing of the machine that it was made on.
    assert str(Path(export.__file__).parents[2]).encode() not in path.read_bytes()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    few = ["--workloads", "32", "--held-out", "16", "--ticks", "80", "--updates", "9", "--rounds", "2"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        imitation.main(["--out", str(tmp_path / name / "actor.onnx"), *few])
    first, second = ((tmp_path / name / "actor.onnx").read_bytes() for name in ("one", "two"))
    assert first == second


def test_an_actor_that_the_exporter_would_spoil_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = np.random.default_rng(0).normal(size=(2000, features.F)).astype(np.float32)
    actor = Actor()
    actor.normalizer.update(torch.from_numpy(observations))
    path = tmp_path / "actor.onnx"
    with pytest.raises(ValueError, match="at least 1000"):
        export.export(actor, path, "actor", {}, observations[:500])
    answer = export._run
    monkeypatch.setattr(export, "_run", lambda *asked: answer(*asked) + 1e-3)
    with pytest.raises(ValueError, match="differs from torch"):
        export.export(actor, path, "actor", {}, observations)
    assert not path.exists()


def test_a_bad_option_is_refused_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imitation.main(["--out", "x.onnx", "--ticks", "3"])
    assert "--ticks is 3: input should be greater than or equal to 8" in capsys.readouterr().err
    # Minutes of training must not be lost to a mistyped folder.
    with pytest.raises(SystemExit):
        imitation.main(["--out", "/no/such/folder/x.onnx"])
    assert "--out is /no/such/folder/x.onnx: its folder does not exist" in capsys.readouterr().err


def test_the_help_says_what_every_option_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imitation.main(["--help"])
    told = capsys.readouterr().out
    for field in imitation.ImitationConfig.__pydantic_fields__:
        assert f"--{field.replace('_', '-')}" in told
    assert "Generated workloads to learn from" in told


def test_the_cheap_sweep_costs_what_the_whole_decision_program_costs() -> None:
    rng = np.random.default_rng(3)
    world = workloads.draw(48, 60, rng)
    swept = rollout.sweep(world)
    row = rng.integers(0, A, 48)
    played = rollout.play(world, lambda _tick, _features, _allowed: np.eye(A)[row])
    np.testing.assert_array_equal(played.cost, swept.cost[np.arange(48), row])
    np.testing.assert_array_equal(played.violation, swept.violation[np.arange(48), row])


def test_the_loss_is_least_for_cheap_rows_and_forgives_the_nearly_cheapest() -> None:
    regret = imitation.regret_of(np.array([[2.0, 1.0, 1.01, 4.0]]))
    np.testing.assert_allclose(regret, [[1.0, 0.0, 0.01, 3.0]])

    def loss(row: int, temperature: float = 0.05) -> float:
        logits = torch.zeros(1, 4)
        logits[0, row] = 5.0
        return float(imitation.loss_of(logits, torch.from_numpy(regret).float(), temperature, 10.0))

    assert loss(1) < loss(2) < loss(0) < loss(3)
    assert loss(2) - loss(1) < 0.1 * (loss(0) - loss(1))


def test_batches_merge_into_the_moments_of_all_rows_and_a_feature_that_never_varied_is_mute() -> None:
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.0])
    rows += torch.tensor([5.0, -300.0, 7.0])
    normalizer = Normalizer(3)
    for batch in (rows[:10], rows[10:700], rows[700:]):
        normalizer.update(batch)
    torch.testing.assert_close(normalizer.mean, rows.mean(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.variance, rows.var(dim=0, unbiased=False), rtol=1e-4, atol=1e-4)
    standard = normalizer(rows)
    torch.testing.assert_close(standard[:, :2].std(dim=0), torch.ones(2), rtol=1e-2, atol=0)
    assert (normalizer(rows + 1000.0)[:, 2] == 0).all()
    assert normalizer(rows * 1e6).abs().max() <= 10


def test_a_masked_row_gets_no_probability_and_a_fresh_actor_prefers_nothing() -> None:
    actor = Actor()
    actor.normalizer.update(torch.randn(100, features.F))
    mask = torch.ones(5, A)
    mask[:, 10:] = 0
    answer = actor(torch.randn(5, features.F), mask)
    assert (answer[:, 10:] == 0).all()
    torch.testing.assert_close(answer[:, :10], torch.full((5, 10), 0.1), rtol=0, atol=0.01)
