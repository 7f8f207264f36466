"""Every decision can be read back from the ledger, and no disk can stop the loop."""

import json
import threading
import time
import uuid
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from one_policy import body
from one_tick import tick
from understudy_operator.ledger import DecidedTick, Ledger, LedgerConfig, read_latest
from understudy_operator.scaling import Outcome, WriteResult
from understudy_operator.store import PolicyStore
from understudy_policy.guards.reasons import KillScope
from understudy_policy.signals import Signal

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/ledger.schema.json").read_text())


def decided(n=2, *, tick_id=1, time_s=1_790_000_000.5, write=None, **situation):
    store = PolicyStore()
    for i in range(n):
        store.on_event(None, body(f"shop-{i:04}", uid=f"uid-{i}", mode="Active"))
    settings, state, decision = tick(n, **situation)
    return DecidedTick(tick_id, time_s, list(store), ["a" * 64] * n, settings, state, decision, [write] * n)


def calm(ticks):
    """The same tick without a choice or a change: its records carry no details."""
    ticks.state.row_age[:] = 1
    ticks.decision.replicas[:] = ticks.decision.observation.seen.replicas
    return ticks


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger" / "decisions.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def records(ticks):
    return [json.loads(line) for line in ticks.lines()]


def written(path, dropped, *ticks, **config):
    ledger = Ledger(LedgerConfig(path, **config), dropped.append)
    for each in ticks:
        ledger.append(each)
    ledger.close()
    return ledger


@pytest.mark.parametrize(
    "situation",
    [
        {},
        {"current": -1},
        {"current": 0},
        {"model": False},
        {"settled": False},
        {"killed": KillScope.UNREADABLE},
        {"value": (Signal.REQUEST_RATE, float("nan"))},
        {"value": (Signal.LATENCY, float("inf"))},
        {"write": WriteResult(Outcome.WRITTEN, "", "17")},
        {"write": WriteResult(Outcome.CONFLICT, "somebody else writes")},
    ],
)
def test_whatever_happens_the_records_are_as_documented(path, dropped, situation):
    full = decided(**situation)
    written(path, dropped, full, calm(decided(**situation)))
    told = lines(path)
    assert len(told) == 4
    for record in told:
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert dropped == []


def test_details_are_recorded_where_they_are_news(path, dropped):
    written(path, dropped, decided(), calm(decided()))
    assert ["features" in record for record in lines(path)] == [True, True, False, False]


def test_the_outcome_of_the_write_is_part_of_the_record():
    (record,) = records(decided(1, write=WriteResult(Outcome.WRITTEN, "", "17")))
    assert record["write"] == {"outcome": "Written", "resource_version": "17", "message": ""}


def test_ids_are_unique_and_sort_by_time_tick_and_policy():
    ticks = [(1, 1_790_000_000.0), (2, 1_790_000_000.0), (3, 1_790_000_000.002), (4, 1_790_000_099.0)]
    ids = [record["decision_id"] for i, at in ticks for record in records(decided(3, tick_id=i, time_s=at))]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}


def test_the_newest_decision_is_found_with_its_details(path, dropped):
    chosen, later = decided(tick_id=1), calm(decided(tick_id=2))
    written(path, dropped, chosen, later)
    record = read_latest(path, ("prod", "shop-0001"))
    assert record["tick_id"] == 2
    assert record["features"] == records(chosen)[1]["features"]
    assert record["details_of"] == records(chosen)[1]["decision_id"]
    assert read_latest(path, ("prod", "other")) is None


def test_files_rotate_and_their_number_is_bounded(path, dropped):
    ticks = [calm(decided(2, tick_id=i)) for i in range(10)]
    written(path, dropped, *ticks, max_bytes=3000, max_files=3)
    assert sorted(file.name for file in path.parent.iterdir()) == ["decisions.jsonl.1", "decisions.jsonl.2"]
    written(path, dropped, calm(decided(1, tick_id=11)), max_bytes=3000, max_files=3)
    assert read_latest(path, ("prod", "shop-0001"))["tick_id"] == 9
    assert read_latest(path, ("prod", "shop-0000"))["tick_id"] == 11


def test_a_torn_line_costs_only_itself(path, dropped):
    written(path, dropped, decided(1, tick_id=1))
    with path.open("ab") as file:
        file.write(b'{"decision_id":"0","namespace":"prod","policy":"shop-0000","tick')
    written(path, dropped, decided(1, tick_id=2))
    assert len(path.read_bytes().splitlines()) == 3
    assert read_latest(path, ("prod", "shop-0000"))["tick_id"] == 2
    path.write_bytes(path.read_bytes()[:-20])
    assert read_latest(path, ("prod", "shop-0000"))["tick_id"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full")
def test_a_full_disk_is_counted_and_said_and_healing_is_noticed(path, dropped):
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    ledger = Ledger(LedgerConfig(path), dropped.append)
    ledger.append(decided(2))
    _until(lambda: dropped == [2])
    assert ledger.problem == f"decisions cannot be written to {path}: No space left on device"
    path.unlink()
    ledger.append(decided(2))
    _until(lambda: ledger.problem is None)
    ledger.close()
    assert len(lines(path)) == 2


def test_a_folder_that_cannot_be_made_does_not_stop_the_operator(tmp_path, dropped):
    (tmp_path / "file").write_text("")
    ledger = written(tmp_path / "file" / "decisions.jsonl", dropped, decided(2))
    assert dropped == [2]
    assert "cannot be written" in ledger.problem


def test_a_slow_disk_costs_records_and_neither_time_nor_memory(path, dropped):
    ledger = Ledger(LedgerConfig(path, max_pending=20), dropped.append)
    disk, write = threading.Event(), ledger._write
    ledger._write = lambda records: disk.wait(60) and write(records)
    waiting = decided(10)
    for _ in range(5):
        ledger.append(waiting)
    assert dropped == [10, 10, 10]
    assert "too slow" in ledger.problem
    disk.set()
    ledger.close()
    assert len(lines(path)) == 20
    assert ledger.problem is None


def test_a_writer_that_has_ended_is_noticed(path, dropped):
    ledger = written(path, dropped)
    ledger.append(decided(2))
    assert dropped == [2]
    assert "restart the operator" in ledger.problem


def test_a_record_on_demand_is_the_record_that_is_written():
    ticks = decided(3)
    assert ticks.record(("prod", "gone")) is None
    assert records(ticks)[2] == ticks.record(("prod", "shop-0002"))
    assert np.isfinite(ticks.record(("prod", "shop-0002"))["demand_pods"])


def _until(holds, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
