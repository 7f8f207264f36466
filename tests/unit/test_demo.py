"""The parts of the demo that need no cluster: its load, what it follows, and what it shows."""

import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from one_tick import tick
from understudy_demo.__main__ import app
from understudy_demo.load import HIGHEST_SHARE, MEAN_PODS, make_load
from understudy_demo.samples import LedgerTail, Sample
from understudy_demo.table import Line, Show, sparkline, thinned
from understudy_policy import explain

CAPACITY_RPS, MAX_REPLICAS = 25.0, 60


def load_of(trace=None, seconds=240, seed=0):
    return make_load(
        trace, None, seconds=seconds, capacity_rps=CAPACITY_RPS, max_replicas=MAX_REPLICAS, seed=seed
    )


@pytest.fixture
def recording(tmp_path):
    """Two quiet days with a busy evening, a row a minute; the peak is 40 times the mean level."""

    def write(peak):
        minutes = np.arange(2 * 24 * 60)
        rates = 100.0 + peak * np.exp(-(((minutes - 2000) / 40.0) ** 2))
        path = tmp_path / "evening.csv.gz"
        with gzip.open(path, "wt") as file:
            file.write("timestamp_s,requests_per_second\n")
            file.writelines(f"{60 * m},{rate}\n" for m, rate in zip(minutes, rates, strict=True))
        return path

    return write


def test_a_recording_is_replayed_around_its_peak_and_named(recording):
    load = load_of(recording(peak=900.0))
    rates = load.trace.requests_per_second
    assert load.recorded
    assert "recorded load: evening" in load.label
    assert len(rates) == 240  # a trace-minute a second
    assert rates.mean() == pytest.approx(MEAN_PODS * CAPACITY_RPS)
    assert 0.3 < np.argmax(rates) / len(rates) < 0.7
    assert rates[0] < 0.5 * rates.max()
    assert rates[-1] < 0.5 * rates.max()


def test_a_peak_stays_where_the_workload_can_follow_it(recording):
    rates = load_of(recording(peak=40_000.0)).trace.requests_per_second
    assert rates.max() == pytest.approx(HIGHEST_SHARE * MAX_REPLICAS * CAPACITY_RPS)


def test_without_a_recording_the_load_says_that_it_is_generated_and_is_the_same_again():
    load, again, other = load_of(), load_of(), load_of(seed=1)
    assert not load.recorded
    assert "generated" in load.label
    assert "not a recording" in load.label
    np.testing.assert_array_equal(load.trace.requests_per_second, again.trace.requests_per_second)
    assert not np.array_equal(load.trace.requests_per_second, other.trace.requests_per_second)


def test_the_ledger_is_followed_without_half_lines_and_other_policies(tmp_path):
    path = tmp_path / "ledger.jsonl"
    tail = LedgerTail(path, "shop", "checkout")
    assert tail.fresh() == []  # not there yet
    ours, others = ({"namespace": "shop", "policy": name} for name in ("checkout", "cart"))
    path.write_text(json.dumps(ours) + "\n" + json.dumps(others) + "\n" + '{"namespace": "sh')
    assert tail.fresh() == [ours]
    with path.open("a") as file:
        file.write('op", "policy": "checkout"}\n')
    assert tail.fresh() == [ours]
    assert tail.fresh() == []


def line(second, **decision):
    settings, state, decided = tick(**decision)
    sample = Sample(second, 60.0, 0.0, 0.0, 0.0, 0.0, desired=8, ready=7, owner="understudy")
    return Line(second, "the actor acts", sample, explain.record(decided, settings, state, 0))


def shown(lines, *, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140, color_system=None)
    with Show(console, "generated load", 0.25) as show:
        for one in lines:
            show.add(one)
        show.note("killed")
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_every_few_seconds():
    text = shown([line(second) for second in range(12)], terminal=False)
    rows = [row for row in text.splitlines() if "load   60 rps" in row]
    assert [int(row.split()[0]) for row in rows] == [0, 5, 10]
    assert "ready  7 of  8" in rows[0]
    assert "p99  100 ms (SLO 250 ms)" in rows[0]
    assert "rate, max of 5 min, at 66%" in rows[0]
    assert "\x1b" not in text


def test_in_a_terminal_the_last_decision_stands_below_the_table_as_a_sentence():
    text = shown([line(3.0, authority=0.5, row=20)], terminal=True)
    assert "8 → 13: the actor asked for 19" in text
    assert "7 / 8" in text
    assert "authority" in text


def test_the_table_says_why_the_actor_is_silent():
    assert "authority 0  guard NoModel" in shown([line(0.0, model=False)], terminal=False)


def test_a_long_history_fits_without_losing_its_peaks():
    values = [1.0] * 1000
    values[777] = 9.0
    short = thinned(values, 80)
    assert len(short) <= 80
    assert max(short) == 9.0
    assert thinned([1.0, 2.0], 80) == [1.0, 2.0]
    assert thinned([], 80) == []


@pytest.mark.parametrize(
    ("values", "bars"), [([], ""), ([0.0, 0.0], "▁▁"), ([0.0, 4.0, 8.0], "▁▅█"), ([5.0], "█")]
)
def test_a_sparkline_starts_at_zero(values, bars):
    assert sparkline(values) == bars


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--seconds", "30"), "--seconds is 30: give at least 120"),
        (("--trace", "no-such-file.csv"), "no such trace file"),
        (("--context", "no-such-context"), "context no-such-context cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_before_anything_starts(
    arguments, why, tmp_path, monkeypatch
):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1
    assert why in done.output
    assert "Traceback" not in done.output
