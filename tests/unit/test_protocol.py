"""The conditions of a contest follow from the folder of traces alone, and the past never sees the future."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_contest import SMALL, wave, write_trace
from small_contest import cells as small_cells
from understudy_simulator import protocol
from understudy_simulator.protocol import PAST_SHARE, QUICK, TICK_S, Protocol, cells, draw, spread
from understudy_simulator.traces import Trace, TraceError


def steady(samples, step_s=60.0, rate_rps=100.0):
    return Trace("steady", step_s * np.arange(samples), np.full(samples, rate_rps))


def test_the_full_protocol_is_the_published_one(tmp_path):
    write_trace(tmp_path / "long.csv", wave(hours=24 * 20, step_s=300))
    found, left_out = cells(tmp_path, Protocol())
    assert left_out == {}
    assert len({cell.segment for cell in found}) == 5
    assert {(cell.profile, cell.startup_s) for cell in found} == {
        ("web", 30.0), ("web", 180.0), ("api", 30.0), ("api", 180.0), ("llm", 180.0)
    }  # fmt: skip
    assert {cell.pods for cell in found} == {4.0, 20.0, 100.0}
    assert {cell.seeds for cell in found} == {10}
    assert {cell.ticks * TICK_S for cell in found} == {3 * 86400.0}
    assert {cell.past_ticks / cell.ticks for cell in found} == {0.6}
    assert len({cell.key for cell in found}) == len(found) == 5 * 3 * 5


def test_a_quick_run_takes_less_of_the_same(tmp_path):
    write_trace(tmp_path / "long.csv", wave(hours=24 * 8, step_s=300))
    quick, full = (cells(tmp_path, p)[0] for p in (QUICK, Protocol()))
    assert len(quick) == 3
    assert {c.profile for c in quick} < {c.profile for c in full}


def test_every_cell_is_scaled_to_its_mean_demand():
    for cell in small_cells(replace(SMALL, profiles=("web", "api", "llm"), pods=(4.0, 100.0))):
        mean = np.mean(cell.curve.requests_per_second) / cell.service.capacity_rps
        assert mean == pytest.approx(cell.pods)
        assert cell.max_replicas > np.max(cell.curve.requests_per_second) / cell.service.capacity_rps
        assert cell.start_replicas(0) >= 1.3 * cell.curve.rate_at(0.0) / cell.service.capacity_rps


@settings(deadline=None)
@given(
    samples=st.integers(130, 3000),
    count=st.integers(1, 6),
    hours=st.floats(2.0, 20.0),
)
def test_parts_do_not_overlap_and_reach_from_end_to_end(samples, count, hours):
    whole = Trace("ramp", 60.0 * np.arange(samples), 1.0 + np.arange(samples))
    parts = [part for _, part in spread(whole, count, 3600 * hours)]
    assert 1 <= len(parts) <= count
    starts = [int(part.requests_per_second[0]) - 1 for part in parts]
    ends = [int(part.requests_per_second[-1]) for part in parts]
    assert all(part.timestamp_s[0] == 0 for part in parts)
    assert all(part.duration_s <= 3600 * hours + 60 for part in parts)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    if len(parts) > 1:
        assert (starts[0], ends[-1]) == (0, samples)


def test_a_part_without_load_in_its_past_or_future_is_not_judged():
    silent = steady(600)
    silent.requests_per_second[:360] = 0
    assert spread(silent, 1, 36000.0) == []
    silent.requests_per_second[:360], silent.requests_per_second[360:] = 5, 0
    assert spread(silent, 1, 36000.0) == []


def test_the_chance_of_a_cell_depends_on_the_cell_alone():
    first, again = draw(small_cells()[0]), draw(small_cells(replace(SMALL, pods=(9.0, 5.0)))[1])
    for name in ("arrivals", "startup", "service"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.arrivals[0], first.arrivals[1])
    other = draw(small_cells(replace(SMALL, pods=(9.0,)))[0])
    assert not np.array_equal(first.startup, other.startup)


def test_more_seeds_leave_the_first_ones_as_they_were():
    few, many = (draw(small_cells(replace(SMALL, seeds=n))[0]) for n in (2, 4))
    np.testing.assert_array_equal(few.arrivals, many.arrivals[:2])
    np.testing.assert_array_equal(few.service, many.service[:2])


@pytest.mark.parametrize("dispersion", [1.0, 2.0, 8.0])
def test_arrivals_follow_the_curve_with_the_dispersion_asked_for(dispersion):
    cell = replace(small_cells(trace=steady(180))[0], dispersion=dispersion, seeds=8)
    arrivals = draw(cell).arrivals
    expected = 5.0 * cell.service.capacity_rps * TICK_S / protocol.SUB_STEPS
    assert arrivals.mean() == pytest.approx(expected, rel=0.01)
    assert arrivals.var() / arrivals.mean() == pytest.approx(dispersion, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(dispersion=st.floats(1.0, 6.0), level=st.floats(50.0, 500.0), seed=st.integers(0, 1000))
def test_the_dispersion_of_a_fine_trace_is_measured_whatever_its_trend(dispersion, level, seed):
    rng = np.random.default_rng(seed)
    expected = np.linspace(level, 3 * level, 20_000)
    scale = max(dispersion - 1.0, 1e-6)
    counts = rng.poisson(rng.gamma(expected / scale) * scale)
    trace = Trace("counts", np.arange(20_000.0), counts.astype(float))
    assert protocol.measured_dispersion(trace) == pytest.approx(dispersion, rel=0.15)


def test_coarse_traces_are_drawn_with_two_and_bursty_ones_with_eight():
    assert protocol.prepare(steady(100))[1] == 2.0
    assert protocol.prepare(steady(100), bursty=True)[1] == 8.0
    assert protocol.prepare(steady(2000, step_s=1.0), bursty=True)[1] == 8.0


def test_a_fine_trace_keeps_its_edges_and_loses_its_counting_noise():
    rng = np.random.default_rng(1)
    level = np.where(np.arange(7200) < 3600, 200.0, 600.0)
    curve, _ = protocol.prepare(Trace("edge", np.arange(7200.0), rng.poisson(level).astype(float)))
    rates = curve.requests_per_second
    assert curve.step_s == TICK_S
    assert rates[3600 // 15 - 2] < 250 < 550 < rates[3600 // 15 + 1]
    assert np.std(rates[:200]) < 0.5 * np.sqrt(200)


def test_the_past_of_a_cell_is_the_first_three_fifths():
    cell = small_cells()[0]
    assert cell.past_ticks == round(PAST_SHARE * cell.ticks)
    later = replace(cell.curve, requests_per_second=cell.curve.requests_per_second.copy())
    later.requests_per_second[120:] *= 3
    past = slice(0, cell.past_ticks - 40)
    np.testing.assert_array_equal(
        draw(cell).arrivals[:, past], draw(replace(cell, curve=later)).arrivals[:, past]
    )


def test_a_changed_load_changes_the_fingerprint():
    cell = small_cells()[0]
    assert cell.fingerprint() == small_cells()[0].fingerprint()
    louder = replace(cell.curve, requests_per_second=cell.curve.requests_per_second * 1.001)
    changed = [replace(cell, curve=louder), replace(cell, seeds=3), replace(cell, dispersion=2.5)]
    assert len({c.fingerprint() for c in (cell, *changed)}) == 4


def test_a_wide_file_is_one_load_per_column_that_holds_enough(tmp_path):
    names = [f"fn{k}" for k in range(12)]
    rows = [",".join(["timestamp_s", *names, "idle"])]
    rows += [",".join([f"{60 * t}", *(f"{5 + k}" for k in range(12)), "0.001"]) for t in range(600)]
    (tmp_path / "wide.csv").write_text("\n".join(rows) + "\n")
    found, _ = cells(tmp_path, replace(SMALL, segments=5, segment_s=36000.0))
    segments = [cell.segment for cell in found]
    assert len(segments) == 5
    assert segments[0] == "wide/fn0"
    assert segments[-1] == "wide/fn11"
    assert {cell.family for cell in found} == {"wide"}


def test_what_cannot_be_judged_is_named_with_its_reason(tmp_path):
    write_trace(tmp_path / "good.csv", wave())
    write_trace(tmp_path / "short.csv", wave(hours=1))
    (tmp_path / "cpu.csv").write_text("timestamp_s,value\n0,1\n60,1\n")
    (tmp_path / "table.csv").write_text("quantile,seconds\n0.5,30\n")
    (tmp_path / "broken.csv").write_text("timestamp_s,requests_per_second\n0,1\n60,-1\n")
    found, left_out = cells(tmp_path, SMALL)
    assert {cell.family for cell in found} == {"good"}
    assert "row 3" in left_out["broken.csv"]
    assert "shorter" in left_out["short.csv"]
    assert "no request rate" in left_out["cpu.csv"]
    assert "timestamp_s" in left_out["table.csv"]


def test_loads_that_would_share_a_result_are_refused(tmp_path):
    plain = write_trace(tmp_path / "one.csv", wave())
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(TraceError, match="'one/0' would share one result"):
        cells(tmp_path, SMALL)
    (tmp_path / "one.csv.gz").unlink()
    rows = ["timestamp_s,GET /a,GET _a", *(f"{60 * t},5,{5 + t % 7}" for t in range(600))]
    plain.write_text("\n".join(rows) + "\n")
    with pytest.raises(TraceError, match="'one/GET /a' and 'one/GET _a'"):
        cells(tmp_path, replace(SMALL, segments=5))


@pytest.mark.parametrize("prepared", ["missing", "empty", "useless"])
def test_a_folder_without_load_is_refused_in_one_sentence(tmp_path, prepared):
    folder = tmp_path / prepared
    if prepared != "missing":
        folder.mkdir()
    if prepared == "useless":
        (folder / "cpu.csv").write_text("timestamp_s,value\n0,1\n60,1\n")
    with pytest.raises(TraceError) as refused:
        cells(folder, SMALL)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
