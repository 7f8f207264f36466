"""What really happened, once a second, beside what the operator wrote down: the report trusts both and mixes neither.

The emulator counts requests, the API server knows replicas and who set them, the ledger holds decisions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from understudy_operator.kube import manager_of

Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The state of the workload at one moment.

    Attributes:
        time_s: Unix time.
        load_rps: rate at which requests arrive.
        requests, violations, dropped: counted since the emulator's start; violations were slower than the threshold
            or dropped.
        pod_seconds: existence of pods since the emulator's start.
        desired: replicas in the Deployment's spec.
        ready: pods that serve.
        owner: field manager that wrote `desired` last.
    """

    time_s: float
    load_rps: float
    requests: float
    violations: float
    dropped: float
    pod_seconds: float
    desired: int
    ready: int
    owner: str


class SampleFile:
    """Writes samples to a CSV file, each at once, so that a run that breaks off leaves what it had."""

    def __init__(self, path: Path) -> None:
        """Begin the file."""
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(field.name for field in fields(Sample))

    def append(self, sample: Sample) -> None:
        """Write one row."""
        self._writer.writerow(astuple(sample))
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()


def sample_of(time_s: float, truth: dict[str, float], deployment: Record) -> Sample:
    """One sample.

    Args:
        time_s: Unix time.
        truth: of the workload, as the emulator tells it.
        deployment: as the API server tells it.
    """
    return Sample(
        time_s=time_s,
        load_rps=truth["load_rps"],
        requests=truth["requests"],
        violations=truth["violations"],
        dropped=truth["dropped"],
        pod_seconds=truth["pod_seconds"],
        desired=deployment["spec"]["replicas"],
        ready=deployment["status"].get("readyReplicas", 0),
        owner=manager_of(deployment["metadata"], "f:spec", "f:replicas")[0],
    )


class LedgerTail:
    """Follows one policy's records in a ledger that another process writes."""

    def __init__(self, path: Path, namespace: str, policy: str) -> None:
        """Begin at the start of the file, which may not exist yet."""
        self._path, self._key = path, (namespace, policy)
        self._read_bytes = 0

    def fresh(self) -> list[Record]:
        """The records that were written since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        records = map(orjson.loads, complete.splitlines())
        return [record for record in records if (record["namespace"], record["policy"]) == self._key]


def changes(samples: Iterable[Sample], manager: str) -> list[int]:
    """Every change of the desired replicas that this field manager made, signed, in order."""
    found = []
    last: Sample | None = None
    for sample in samples:
        if last is not None and sample.desired != last.desired and sample.owner == manager:
            found.append(sample.desired - last.desired)
        last = sample
    return found
