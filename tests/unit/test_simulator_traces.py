"""Traces: broken files are refused with the row to mend; curves keep what was measured."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy_simulator.generators import FAMILIES, generate
from understudy_simulator.traces import (
    Trace,
    TraceError,
    busiest_window,
    load_trace,
    rate_curve,
    scale_to_pods,
)

HEADER = "timestamp_s,requests_per_second\n"


def trace(rates, step_s=60.0, name="t"):
    rates = np.asarray(rates, float)
    return Trace(name, step_s * np.arange(len(rates)), rates)


def test_reads_plain_and_gzipped_files_from_time_zero(tmp_path):
    text = HEADER + "600,1.5\n660,2.5\n720,0\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.csv", "b.csv.gz"):
        read = load_trace(tmp_path / name)
        assert read.name == name[0]
        assert read.timestamp_s.tolist() == [0, 60, 120]
        assert read.requests_per_second.tolist() == [1.5, 2.5, 0]
        assert (read.step_s, read.duration_s) == (60, 180)


def test_wide_files_need_a_column_and_say_which(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("timestamp_s,checkout,search\n0,1,5\n60,2,6\n")
    with pytest.raises(TraceError, match=r"several columns.*choose one of checkout, search"):
        load_trace(path)
    with pytest.raises(TraceError, match=r"no column cart; choose one of checkout, search"):
        load_trace(path, "cart")
    read = load_trace(path, "search")
    assert read.name == "wide:search"
    assert read.requests_per_second.tolist() == [5, 6]


REFUSALS = {
    "gap": ("0,1\n60,1\n120,1\n300,1\n360,1\n", r"row 5, gap from 120 s to 300 s.*fill the rows"),
    "nan": ("0,1\n60,nan\n120,1\n", r"row 3, requests_per_second is nan; write the rate"),
    "infinite": ("0,1\n60,inf\n120,1\n", r"row 3, requests_per_second is inf"),
    "empty cell": ("0,1\n60,\n120,1\n", r"row 3, requests_per_second is '', not a number; fill"),
    "text": ("0,1\n60,1\n120,many\n", r"row 4, requests_per_second is 'many', not a number"),
    "short row": ("0,1\n60\n120,1\n", r"row 3, requests_per_second is '', not a number"),
    "negative": ("0,1\n60,-2\n120,1\n", r"row 3, requests_per_second is -2; a rate cannot be negative"),
    "unsorted": (
        "0,1\n60,1\n120,1\n90,1\n180,1\n240,1\n",
        r"row 5, timestamp_s 90 does not come after 120; sort",
    ),
    "repeated": ("0,1\n60,1\n60,1\n120,1\n180,1\n", r"row 4, timestamp_s 60 does not come after 60"),
    "irregular": ("0,1\n60,1\n125,1\n185,1\n245,1\n", r"row 4, irregular step from 60 s to 125 s.*resample"),
    "one row": ("0,1\n", r"1 rows of data; a trace needs at least 2"),
    "no rows": ("", r"0 rows of data; a trace needs at least 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_broken_files_with_file_row_and_mend(tmp_path, case):
    rows, message = REFUSALS[case]
    path = tmp_path / "broken.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(TraceError, match=message) as refused:
        load_trace(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such trace file"),
        ("no-header.csv", b"0,1\n60,2\n", "row 1 must name a column timestamp_s"),
        ("not-gzip.csv.gz", b"timestamp_s,requests_per_second\n0,1\n", "not a readable file"),
        ("binary.csv", b"\xff\xfe\x00\x01", "not a readable file"),
    ],
)
def test_refuses_what_is_no_trace_file(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=message):
        load_trace(tmp_path / name)


def test_rate_curve_smooths_counting_noise_and_leaves_measured_load_alone():
    rng = np.random.default_rng(0)
    sparse = trace(rng.poisson(8.0, 5000) / 10.0, step_s=10.0)
    curve = rate_curve(sparse).requests_per_second
    assert curve.std() < 0.3 * sparse.requests_per_second.std()
    assert curve.mean() == pytest.approx(0.8, rel=0.03)
    busy = trace(200 + 100 * rng.random(500))
    assert np.array_equal(rate_curve(busy).requests_per_second, busy.requests_per_second)


@pytest.mark.parametrize(("step_s", "samples"), [(10.0, 31), (60.0, 5), (120.0, 3), (300.0, 3), (600.0, 3)])
def test_rate_curve_smooths_over_five_minutes_or_three_samples(step_s, samples):
    one_request = np.zeros(99)
    one_request[49] = 1.0 / step_s
    curve = rate_curve(trace(one_request, step_s=step_s)).requests_per_second
    assert np.count_nonzero(curve) == samples


def test_scaling_makes_the_mean_demand_the_pods_asked_for():
    scaled = scale_to_pods(trace([1, 2, 3]), pods=20, capacity_rps=25)
    assert scaled.requests_per_second.mean() / 25 == pytest.approx(20)
    with pytest.raises(TraceError, match="holds no requests"):
        scale_to_pods(trace([0, 0]), pods=20, capacity_rps=25)


def test_busiest_window_finds_the_rush_and_starts_at_zero():
    rates = np.ones(500)
    rates[300:320] = 50
    found = busiest_window(trace(rates), duration_s=40 * 60)
    assert found.requests_per_second.sum() == 20 * 50 + 20
    assert found.timestamp_s[0] == 0
    assert found.duration_s == 40 * 60


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30), st.floats(-100, 4000))
def test_rate_at_stays_within_the_trace(rates, time_s):
    rate = trace(rates).rate_at(time_s)
    assert min(rates) - 1e-6 <= rate <= max(rates) + 1e-6


def test_resampled_trace_keeps_its_requests():
    rates = 100 + 50 * np.sin(np.arange(200) / 20)
    fine = trace(rates).resample(15.0)
    assert fine.step_s == 15
    assert fine.duration_s == 200 * 60
    assert fine.requests_per_second.sum() * 15 == pytest.approx(rates.sum() * 60, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_loads_are_positive_varied_reproducible_and_of_mean_one(family):
    loads = generate(family, 6 * 3600, 15, np.random.default_rng(7), count=16)
    assert loads.shape == (16, 1440)
    assert loads.min() > 0
    assert np.isfinite(loads).all()
    assert loads.mean(axis=1) == pytest.approx(np.ones(16))
    assert np.unique(loads.max(axis=1).round(6)).size == 16
    again = generate(family, 6 * 3600, 15, np.random.default_rng(7), count=16)
    assert np.array_equal(loads, again)


def test_the_mark_that_spreadsheets_put_before_a_file_is_no_part_of_it(tmp_path):
    file = tmp_path / "shop.csv"
    file.write_text(HEADER + "0,5\n60,7\n120,6\n", encoding="utf-8-sig")
    assert load_trace(file).requests_per_second.tolist() == [5, 7, 6]


def test_a_flash_crowd_rises_well_above_its_level():
    loads = generate("flash", 3600, 1, np.random.default_rng(1), count=50)
    assert np.median(loads.max(axis=1) / np.median(loads, axis=1)) > 2


def test_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'weekly'; choose one of diurnal, trend"):
        generate("weekly", 3600, 15, np.random.default_rng(0))
