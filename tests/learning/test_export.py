"""What is exported is what was learned: the same function, provable, and the same bytes for the same weights."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `trainer`")

from understudy_policy import actions, artifact, features  # noqa: E402
from understudy_trainer import export  # noqa: E402
from understudy_trainer.networks import Actor  # noqa: E402
from understudy_trainer.normalizer import Normalizer  # noqa: E402

A = len(actions.TABLE)


def seen(rows: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, features.F)).astype(np.float32)


def drawn(seed: int = 0) -> Actor:
    torch.manual_seed(seed)
    actor = Actor()
    actor.normalizer.update(torch.from_numpy(seen()))
    return actor


def test_what_it_exports_is_accepted_and_says_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "actor.onnx"
    exported = export.export(drawn(), path, "tiny", {"method": "none"}, seen())
    actor = artifact.load(path.as_uri(), exported.sha256)
    assert (actor.columns, actor.rows) == (features.F, A)
    assert actor.manifest.name == "tiny"
    lineage = actor.manifest.lineage
    assert lineage["method"] == "none"
    assert lineage["parity"]["observations"] >= 1000
    assert lineage["parity"]["max_abs_error"] <= export.PARITY_LIMIT
    assert len(actor.manifest.golden_features) >= 8
    for quantiles in actor.manifest.feature_histograms.values():
        assert quantiles == sorted(quantiles)
    assert path.stat().st_size < 300_000
    # Nothing of the machine that it was made on.
    assert str(Path(export.__file__).parents[2]).encode() not in path.read_bytes()


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.onnx", "two.onnx", "other.onnx")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        export.export(drawn(seed), file, "actor", {}, seen())
    first, second, other = (file.read_bytes() for file in files)
    assert first == second
    assert first != other


def test_an_actor_that_the_exporter_would_spoil_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations, actor = seen(), drawn()
    path = tmp_path / "actor.onnx"
    with pytest.raises(ValueError, match="at least 1000"):
        export.export(actor, path, "actor", {}, observations[:500])
    answer = export._run
    monkeypatch.setattr(export, "_run", lambda *asked: answer(*asked) + 1e-3)
    with pytest.raises(ValueError, match="differs from torch"):
        export.export(actor, path, "actor", {}, observations)
    assert not path.exists()


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


def test_no_commit_is_named_of_a_repository_that_does_not_hold_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    shutil.copy(export.__file__, tmp_path)
    monkeypatch.setattr(export, "__file__", str(tmp_path / "export.py"))
    assert export.commit() is None  # no repository at all
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert export.commit() is None
    git("add", "export.py")
    git("commit", "-m", "ours")
    assert re.fullmatch("[0-9a-f]{40}", export.commit() or "")
    (tmp_path / "export.py").write_text("")
    assert re.fullmatch("[0-9a-f]{40}-dirty", export.commit() or "")
