"""Traces of real load: reading them, refusing broken ones, and turning them into rates that can be scaled.

A trace file is measured data from somebody else's system. Replaying its gaps as outages, or its counting
noise multiplied by a hundred, would teach and judge policies on artefacts of the file, so a broken file is
refused with the row to mend, and counting noise is smoothed away before arrivals are drawn anew.
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, cast

import numpy as np
from numpy.typing import NDArray

RATE_COLUMN = "requests_per_second"
TIME_COLUMN = "timestamp_s"
SMALL_COUNT = 100.0
"""Requests per sample under which counting noise (over 10 %) would pass for load once it is scaled up."""
SMOOTHING_S = 300.0
"""Such samples are averaged over this, or over three of them if that is longer."""


class TraceError(ValueError):
    """A trace file that must not be replayed as it is; the message names the file, the row and the mend."""


@dataclass(frozen=True)
class Trace:
    """A request rate over time in constant steps.

    Attributes:
        name: where it comes from, for reports.
        timestamp_s: `[T]` start of every sample, seconds, from 0 upwards.
        requests_per_second: `[T]` mean rate over the sample.
    """

    name: str
    timestamp_s: NDArray[np.float64]
    requests_per_second: NDArray[np.float64]

    @property
    def step_s(self) -> float:
        """Length of one sample in seconds."""
        return float(self.timestamp_s[1] - self.timestamp_s[0])

    @property
    def duration_s(self) -> float:
        """Time that the trace covers, its last sample included."""
        return self.step_s * len(self.timestamp_s)

    def rate_at(self, time_s: float) -> float:
        """Request rate at a time, linear between the middles of samples; before and after, the end's value."""
        position = float(np.clip(time_s / self.step_s - 0.5, 0.0, len(self.timestamp_s) - 1.0))
        before = min(int(position), len(self.timestamp_s) - 2)
        rates = self.requests_per_second
        return float(rates[before] + (position - before) * (rates[before + 1] - rates[before]))

    def rates_at(self, time_s: NDArray[np.floating]) -> NDArray[np.float64]:
        """The same at many times."""
        return np.interp(time_s, self.timestamp_s + 0.5 * self.step_s, self.requests_per_second)

    def resample(self, step_s: float) -> Trace:
        """The same trace in samples of `step_s`, linear between the middles of the old ones."""
        timestamp_s = np.arange(0.0, self.duration_s - 0.5 * step_s, step_s)
        return Trace(self.name, timestamp_s, self.rates_at(timestamp_s + 0.5 * step_s))


def load_trace(path: str | Path, column: str | None = None) -> Trace:
    """Read a trace from CSV (`.csv` or `.csv.gz`).

    Args:
        path: a file with a `timestamp_s` column in constant steps and one or more columns of rates.
        column: which rates; by default `requests_per_second`, or the only other column there is.

    Raises:
        TraceError: the file has gaps, unsorted or irregular times, or rates that are missing, NaN or
        negative.
    """
    path = Path(path)
    header = _header(path)
    column = _choose_column(path, header, column)
    wanted = (header.index(TIME_COLUMN), header.index(column))
    with _open(path) as file, warnings.catch_warnings():
        try:
            warnings.simplefilter("ignore", UserWarning)  # an empty file is refused below, in better words
            table = np.loadtxt(file, delimiter=",", skiprows=1, usecols=wanted, ndmin=2)
        except (ValueError, IndexError) as error:
            raise _unreadable_row(path, wanted, (TIME_COLUMN, column), error) from None
    _check(path, column, table[:, 0], table[:, 1])
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return Trace(
        name if column == RATE_COLUMN else f"{name}:{column}", table[:, 0] - table[0, 0], table[:, 1]
    )


def rate_curve(trace: Trace, window_s: float | None = None) -> Trace:
    """The rate behind the counts: smoothed where a sample holds so few requests that it is mostly noise.

    Args:
        trace: measured rates.
        window_s: centred smoothing window; by default the larger of 5 minutes and 3 samples.
    """
    window_s = max(SMOOTHING_S, 3.0 * trace.step_s) if window_s is None else window_s
    # A window of three samples reaches one to either side.
    half = max(1, int(0.5 * window_s / trace.step_s + 1e-9))
    rates = trace.requests_per_second
    total = np.concatenate([[0.0], np.cumsum(rates)])
    index = np.arange(len(rates))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(rates))
    smooth = np.maximum(total[last] - total[first], 0.0) / (last - first)
    return replace(trace, requests_per_second=np.where(smooth * trace.step_s < SMALL_COUNT, smooth, rates))


def scale_to_pods(trace: Trace, pods: float, capacity_rps: float) -> Trace:
    """The trace scaled so that its mean keeps `pods` pods of `capacity_rps` each fully busy."""
    mean_rps = float(np.mean(trace.requests_per_second))
    if mean_rps <= 0:
        raise TraceError(f"{trace.name}: the trace holds no requests; choose a part that does.")
    return replace(trace, requests_per_second=trace.requests_per_second * (pods * capacity_rps / mean_rps))


def busiest_window(trace: Trace, duration_s: float) -> Trace:
    """The part of `duration_s` seconds with the most requests (a match day, a launch), starting at time 0."""
    samples = max(2, round(duration_s / trace.step_s))
    if samples >= len(trace.timestamp_s):
        return trace
    total = np.concatenate([[0.0], np.cumsum(trace.requests_per_second)])
    start = int(np.argmax(total[samples:] - total[:-samples]))
    return replace(
        trace,
        timestamp_s=trace.timestamp_s[:samples],
        requests_per_second=trace.requests_per_second[start : start + samples],
    )


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    if not path.is_file():
        raise TraceError(f"{path}: no such trace file; give the path of a .csv or .csv.gz file.")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        # With or without the mark that spreadsheets put before UTF-8.
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            yield cast(TextIO, file)
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise TraceError(
            f"{path}: not a readable file ({error}); give CSV text, gzipped if it ends in .gz."
        ) from None


def columns(path: str | Path) -> list[str]:
    """The names in a CSV file's first row."""
    with _open(Path(path)) as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def _header(path: Path) -> list[str]:
    header = columns(path)
    if TIME_COLUMN not in header:
        found = ", ".join(header[:6]) or "nothing"
        raise TraceError(
            f"{path}: row 1 must name a column {TIME_COLUMN}, but holds {found}; add the header."
        )
    return header


def _choose_column(path: Path, header: Sequence[str], column: str | None) -> str:
    others = [name for name in header if name != TIME_COLUMN]
    if column is None and (RATE_COLUMN in others or len(others) == 1):
        return RATE_COLUMN if RATE_COLUMN in others else others[0]
    if column not in others:
        missing = f"there is no column {column}" if column else "it has several columns of rates"
        raise TraceError(f"{path}: {missing}; choose one of {', '.join(others[:12])}.")
    return column


def _unreadable_row(path: Path, wanted: Sequence[int], names: Sequence[str], error: Exception) -> TraceError:
    """Find the row that the fast reader stumbled over, because its own message does not name it reliably."""
    with _open(path) as file:
        for row, cells in enumerate(csv.reader(file), start=1):
            for index, name in zip(wanted, names, strict=True):
                text = cells[index] if index < len(cells) else ""
                if row > 1 and not _is_number(text):
                    return TraceError(
                        f"{path}: row {row}, {name} is {text!r}, not a number; fill the cell or cut the row off."
                    )
    return TraceError(f"{path}: not readable as a trace ({error}).")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check(path: Path, column: str, time_s: NDArray[np.float64], rates: NDArray[np.float64]) -> None:
    def refuse(bad: NDArray[np.bool_], say: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            values = {
                "rate": rates[row],
                "time": time_s[row],
                "before": time_s[max(row - 1, 0)],
                "step": step_s,
            }
            raise TraceError(f"{path}: row {row + 2}, " + say.format(column=column, **values))

    if len(time_s) < 2:
        raise TraceError(f"{path}: {len(time_s)} rows of data; a trace needs at least 2.")
    step_s = float(np.median(np.diff(time_s)))
    steps = np.diff(time_s, prepend=time_s[0] - step_s)
    refuse(~np.isfinite(time_s), "timestamp_s is {time}; write a finite number of seconds.")
    refuse(
        steps <= 0, "timestamp_s {time:g} does not come after {before:g}; sort the rows and drop duplicates."
    )
    refuse(
        steps > 1.5 * step_s,
        "gap from {before:g} s to {time:g} s where the step is {step:g} s; fill the rows or cut the trace there.",
    )
    refuse(
        np.abs(steps - step_s) > 1e-3 * step_s,
        "irregular step from {before:g} s to {time:g} s where the others are {step:g} s; resample the trace.",
    )
    refuse(~np.isfinite(rates), "{column} is {rate}; write the rate, or cut the trace there.")
    refuse(rates < 0, "{column} is {rate:g}; a rate cannot be negative: mend the value.")


LONGEST_REPAIR_SHARE = 0.05
"""Share of a recorded history that may be missing: it is filled in a straight line, and said so."""


def from_samples(
    name: str, timestamp_s: NDArray[np.float64], rate_rps: NDArray[np.float64], step_s: float
) -> tuple[Trace, int]:
    """A trace from what a monitoring system recorded, where a scrape may be missing here and there.

    Args:
        name: where it comes from.
        timestamp_s: `[T]` rising times; those without a sample are simply not there.
        rate_rps: `[T]` request rates; NaN counts as not there.
        step_s: time between two samples.

    Returns:
        The trace and how many of its samples were filled in.

    Raises:
        TraceError: a rate is negative, or too much is missing.
    """
    known = np.isfinite(rate_rps)
    timestamp_s, rate_rps = timestamp_s[known], rate_rps[known]
    if len(timestamp_s) < 2:
        raise TraceError(
            f"{name}: {len(timestamp_s)} samples; a trace needs at least 2: check query and range."
        )
    if (rate_rps < 0).any():
        raise TraceError(f"{name}: {rate_rps.min():g} is no request rate; ask for rate(…) of a counter.")
    count = round((timestamp_s[-1] - timestamp_s[0]) / step_s) + 1
    missing = count - len(timestamp_s)
    if missing > LONGEST_REPAIR_SHARE * count:
        raise TraceError(
            f"{name}: {missing} of {count} samples are missing, more than {LONGEST_REPAIR_SHARE:.0%}; choose a range "
            "without the outage."
        )
    times = step_s * np.arange(count)
    return Trace(name, times, np.interp(times, timestamp_s - timestamp_s[0], rate_rps)), missing
