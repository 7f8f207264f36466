"""Every decision, one JSON line each, so that months later it can be told why a workload had the replicas it had.

Encoding and writing happen on a thread of their own: a slow or a full disk costs records, which are counted, and
never a tick. The format is documented in docs/ledger.md.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson

from understudy_operator.store import Key, PolicyRecord
from understudy_policy import explain
from understudy_policy.decision import Decision, State
from understudy_policy.settings import Settings

log = logging.getLogger(__name__)

Record = dict[str, Any]

_SALT = int.from_bytes(os.urandom(4)) & 0x0FFFFFFF


class WriteOutcome(Protocol):
    """What became of a write (`scaling.WriteResult`); `outcome` is a string enumeration."""

    @property
    def outcome(self) -> str: ...  # noqa: D102
    @property
    def message(self) -> str: ...  # noqa: D102
    @property
    def resource_version(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class DecidedTick:
    """All that is needed to tell about the decisions of one tick, as long as anybody may ask.

    Attributes:
        tick_id: counts ticks since the start; unique together with `time_s`.
        time_s: Unix time of the tick.
        policies: the policy of each row.
        model_sha256: digest of the actor of each row, None where none is loaded.
        settings, state, decision: as `decide` took and returned them.
        writes: what became of each row's write, None where none was tried.
    """

    tick_id: int
    time_s: float
    policies: Sequence[PolicyRecord]
    model_sha256: Sequence[str | None]
    settings: Settings
    state: State
    decision: Decision
    writes: Sequence[WriteOutcome | None]

    def lines(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """One record per row as JSON; features and likeliest rows where a row was chosen or replicas move."""
        rows = np.arange(len(self.policies))[start:stop]
        return self._lines(rows, explain.worth_details(self.decision, self.state)[rows])

    def record(self, key: Key) -> Record | None:
        """The complete record of one policy, None where it had no part in this tick."""
        row = self._rows.get(key)
        if row is None:
            return None
        told: Record = orjson.loads(self._lines(np.array([row]), np.ones(1, np.bool_))[0])
        return told

    @cached_property
    def _rows(self) -> dict[Key, int]:
        return {policy.key: row for row, policy in enumerate(self.policies)}

    def _lines(self, rows: Any, details: Any) -> list[bytes]:
        time = (
            datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
        prefix = _id_prefix(self.time_s, self.tick_id)
        told = explain.lines(self.decision, self.settings, self.state, rows, details)
        return [
            b"%b,%b" % (orjson.dumps(self._head(row, time, prefix))[:-1], line[1:].encode())
            for row, line in zip(rows.tolist(), told, strict=True)
        ]

    def _head(self, row: int, time: str, prefix: str) -> Record:
        record, write = self.policies[row], self.writes[row]
        return {
            "decision_id": f"{prefix}{row:08x}",
            "time": time,
            "tick_id": self.tick_id,
            "namespace": record.key[0],
            "policy": record.key[1],
            "uid": record.uid,
            "generation": record.generation,
            "mode": None if record.policy is None else record.policy.spec.mode,
            "model_sha256": self.model_sha256[row],
            "write": None
            if write is None
            else {
                "outcome": str(write.outcome),
                "resource_version": write.resource_version,
                "message": write.message,
            },
        }


def _id_prefix(time_s: float, tick_id: int) -> str:
    """All but the last eight digits of a UUIDv7: milliseconds, tick, and 28 bits that differ between processes.

    What is left is the row, so ids sort by time, then tick, then policy, and cost one format each.
    """
    milliseconds = f"{int(time_s * 1000) & 0xFFFFFFFFFFFF:012x}"
    salt = f"{_SALT:07x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7{tick_id & 0xFFF:03x}-8{salt[:3]}-{salt[3:]}"


@dataclass(frozen=True)
class LedgerConfig:
    """Where decisions are written, and how much of them is kept.

    Attributes:
        path: the newest file; older ones are beside it as `NAME.1`, `NAME.2` and so on.
        max_bytes: size at which a new file is begun.
        max_files: files that are kept, the newest included.
        max_pending: records that may wait for the disk; more are dropped.
    """

    path: Path
    max_bytes: int = 64 * 2**20
    max_files: int = 8
    max_pending: int = 20_000


class Ledger:
    """Writes decisions to files that rotate.

    Attributes:
        problem: why records are being lost, in one sentence; None while all is well.
    """

    BATCH = 256

    def __init__(self, config: LedgerConfig, on_drop: Callable[[int], None]) -> None:
        """Start writing.

        Args:
            config: see there.
            on_drop: told how many records were lost, from any thread.
        """
        self.problem: str | None = None
        self._config = config
        self._on_drop = on_drop
        self._waiting: queue.SimpleQueue[DecidedTick | None] = queue.SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        # A thread, not an executor: it must not keep a dying process alive.
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def append(self, tick: DecidedTick) -> None:
        """Hand over the decisions of a tick; returns at once."""
        count = len(tick.policies)
        if not self._thread.is_alive():
            self._lost(count, "the ledger's writer has ended, see the log: restart the operator")
            return
        with self._lock:
            fits = self._pending + count <= self._config.max_pending or self._pending == 0
            self._pending += count if fits else 0
        if fits:
            self._waiting.put(tick)
        else:
            self._lost(count, f"the disk under {self._config.path} is too slow for the decisions")

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and stop; what cannot be written within the time is lost."""
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (tick := self._waiting.get()) is not None:
            for start in range(0, len(tick.policies), self.BATCH):
                self._write(tick.lines(start, start + self.BATCH))
            with self._lock:
                self._pending -= len(tick.policies)
        self._close_file()

    def _write(self, lines: list[bytes]) -> None:
        try:
            file = self._file or self._open()
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            if file.tell() >= self._config.max_bytes:
                self._rotate()
        except OSError as error:
            self._close_file()
            self._lost(len(lines), f"decisions cannot be written to {self._config.path}: {error.strerror}")
        else:
            self.problem = None

    def _open(self) -> BinaryIO:
        path = self._config.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = file = path.open("ab+")
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                # A line that a crash or a full disk tore must not swallow the next one.
                file.write(b"\n")
        return file

    def _rotate(self) -> None:
        self._close_file()
        for number in range(self._config.max_files - 1, 0, -1):
            older = _numbered(self._config.path, number - 1)
            if older.exists():
                older.replace(_numbered(self._config.path, number))
        if self._config.max_files == 1:
            self._config.path.unlink()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                log.warning("the ledger's file could not be closed: %s", error.strerror)

    def _lost(self, count: int, why: str) -> None:
        if why != self.problem:
            log.error("%s; they are lost until it is mended, scaling goes on", why)
        self.problem = why
        self._on_drop(count)


def read_latest(path: Path, key: Key) -> Record | None:
    """The newest record of a policy in a ledger, None where there is none.

    Where the actor had chosen earlier, `features` and `top_rows` are taken from that record, whose id is added as
    `details_of`.

    Args:
        path: the newest file.
        key: namespace and name.

    Raises:
        OSError: the ledger cannot be read.
    """
    latest: Record | None = None
    for record in _backwards(path, key):
        if latest is None:
            latest = record
        if "features" in record:
            details = {name: record[name] for name in ("features", "top_rows")}
            return latest | details | {"details_of": record["decision_id"]}
    return latest


def _backwards(path: Path, key: Key) -> Iterator[Record]:
    hint = orjson.dumps({"namespace": key[0], "policy": key[1]})[1:-1]
    for file in _files(path):
        for line in reversed(file.read_bytes().splitlines()):
            if hint not in line:
                continue
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # torn by a crash


def _files(path: Path) -> Iterable[Path]:
    yield path
    number = 1
    while (older := _numbered(path, number)).exists():
        yield older
        number += 1


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.name}.{number}")
