"""Policies trained further on the past of every cell: each cell gets its own, kept between runs, judged like any."""

from dataclasses import replace

import numpy as np
import pytest

from small_contest import SMALL, NamesARow, cells, constant_actor, wave
from understudy_simulator.judge import bench, tuning
from understudy_simulator.judge.contest import hold
from understudy_simulator.judge.entrants import ROW, TUNED
from understudy_simulator.judge.world import FIGURES
from understudy_simulator.protocol import PROFILES

OF_WEB, OF_LLM = 12, 31
TUNE = NamesARow(((PROFILES["web"].capacity_rps, OF_WEB), (PROFILES["llm"].capacity_rps, OF_LLM)))
COST = FIGURES.index("cost")


@pytest.fixture(scope="module")
def judged():
    """Two services with a past that is long enough to learn from."""
    return cells(replace(SMALL, profiles=("web", "llm"), segment_s=7 * 3600), wave(hours=7.0))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return constant_actor(tmp_path_factory.mktemp("policies") / "mine.onnx", 3)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def tuned(judged, policy, out):
    files, left = tuning.run(judged, [policy], TUNE, out, workers=1)
    assert left == {}
    return files


def test_every_cell_gets_an_actor_of_its_own_and_keeps_it(judged, policy, out, tuned):
    before = {file: file.stat().st_mtime_ns for (learned,) in tuned for file in learned}
    assert len(before) == 3 * len(judged) == 6
    shares = []
    again, _ = tuning.run(judged, [policy], TUNE, out, workers=1, progress=shares.append)
    assert again == tuned
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert shares == [1.0]


def test_another_actor_past_or_trainer_is_trained_anew(judged, policy, tmp_path, tuned):
    other = constant_actor(tmp_path / "mine.onnx", 4)
    swapped = NamesARow(tuple((capacity, OF_LLM) for capacity, _ in TUNE.rows))
    names = {file.name for (learned,) in tuned for file in learned}
    for changed, of, tune in (
        (judged, other, TUNE),
        (judged, policy, swapped),
        ([replace(cell, startup_s=60.0) for cell in judged], policy, TUNE),
    ):
        files, _ = tuning.run(changed, [of], tune, tmp_path / "out", workers=1)
        assert names.isdisjoint(file.name for (learned,) in files for file in learned)


def test_each_cell_is_judged_with_its_own_actor(judged, policy, tmp_path, tuned):
    short = [replace(cell, ticks=cell.past_ticks + 100) for cell in judged]
    results = bench.run(short, [policy], tmp_path, workers=1, tuned=tuned)
    for result, row in zip(results, (OF_WEB, OF_LLM), strict=True):
        names = np.array(result.entrants)
        own, rows = (result.future[COST][names == name] for name in (TUNED + "mine", ROW))
        np.testing.assert_allclose(own, np.broadcast_to(rows[row], own.shape), rtol=2e-3)
    ((first, second, whole),) = tuned[0]
    for other in ((second, first, whole), (first, second, policy)):
        shares = []
        bench.run(short, [policy], tmp_path, workers=1, progress=shares.append, tuned=[[other], tuned[1]])
        assert shares[0] == pytest.approx(0.5), "a result of other actors is not taken for these"


def test_each_part_of_a_cell_is_played_by_who_did_not_learn_from_it(policy, tmp_path):
    load = wave(hours=7.0)
    # The second half of the past is busier than the first.
    rates = np.where(load.timestamp_s < 0.3 * load.duration_s, 1.0, 3.0)
    (cell,) = cells(replace(SMALL, segment_s=7 * 3600, seeds=1), replace(load, requests_per_second=rates))
    lavish, thrifty = (constant_actor(tmp_path / f"{row}.onnx", row) for row in (0, 6))

    def costs(*learned):
        only = [e for e in bench.entrants([policy], [[learned]]) if e.name == TUNED + "mine"]
        (result,) = hold([cell], only)
        return result.past[COST].mean(), result.future[COST].mean()

    cheap, dear = costs(thrifty, thrifty, thrifty), costs(lavish, lavish, lavish)
    first, second, last = (
        costs(lavish, thrifty, thrifty), costs(thrifty, lavish, thrifty), costs(thrifty, thrifty, lavish)
    )  # fmt: skip
    assert cheap[0] < first[0] < second[0] < dear[0]
    assert first[1] == pytest.approx(cheap[1], rel=2e-3)
    assert second[1] == pytest.approx(cheap[1], rel=2e-3)
    assert last[0] == cheap[0]
    assert last[1] == pytest.approx(dear[1], rel=2e-3)


def test_the_trainer_that_is_installed_is_plugged_in():
    tune = tuning.plugged()
    assert len(tune.mark()) > 64
