"""The judge's protocol as data: which loads, services, start-ups and seeds a contest is held on.

A comparison is only worth something if nobody could choose its conditions afterwards. So cells are made from
the folder of traces by a fixed rule, every chance is drawn from the cell's own key, and the part that
calibration may look at (the past) is cut from the part that is judged (the future) in one place: here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.cluster import PROFILES, Profile
from understudy_simulator.traces import (
    RATE_COLUMN,
    TIME_COLUMN,
    Trace,
    TraceError,
    columns,
    load_trace,
    rate_curve,
    scale_to_pods,
)

VERSION = "understudy-judge/1"
TICK_S = 15.0
SUB_STEPS = 3
PAST_SHARE = 0.6
STARTUP_SIGMA = 0.4
HEADROOM = 1.3
"""Ready pods at the start over the demand of that moment."""

MOST_SEGMENT_S = 3 * 86400.0
LEAST_SEGMENT_S = 2 * 3600.0
USUAL_DISPERSION, BURSTY_DISPERSION = 2.0, 8.0
LEAST_REQUESTS = 1000.0
"""Requests that a column of a wide trace must hold: below, its curve is an artefact of the smoothing."""

CEILING = 4.0
"""Largest replicas over the pods that the load's peak fills."""


@dataclass(frozen=True)
class Protocol:
    """What is varied; the defaults are the full protocol.

    Attributes:
        segments: most parts taken of one trace, spread evenly.
        segment_s: longest part in seconds.
        profiles: names in `PROFILES`.
        pods: mean demand in pods.
        startup_s: median start-ups; `llm` knows only the longest.
        seeds: draws of arrivals, start-ups and work per cell.
        bursty: draw arrivals with a dispersion of 8.
    """

    segments: int = 5
    segment_s: float = MOST_SEGMENT_S
    profiles: tuple[str, ...] = ("web", "api", "llm")
    pods: tuple[float, ...] = (4.0, 20.0, 100.0)
    startup_s: tuple[float, ...] = (30.0, 180.0)
    seeds: int = 10
    bursty: bool = False


QUICK = Protocol(segments=1, segment_s=2 * 86400.0, profiles=("web", "llm"), pods=(20.0,), seeds=2)
"""Minutes instead of hours: one part of two days per trace, web and llm, 20 pods, two seeds; all rules."""


@dataclass(frozen=True)
class Cell:
    """One contest: a part of a trace, served by a kind of service of some size, whose pods start so slowly.

    Attributes:
        family: the trace's file.
        segment: which part (`worldcup98/2`).
        profile: name of the kind of service.
        pods: mean demand in pods.
        startup_s: median start-up.
        dispersion: variance over mean of the arrivals in a sub-step.
        service: the kind of service.
        curve: rate in requests per second, scaled; its samples may be longer than a tick.
        past_ticks, ticks: where the future begins, and where it ends.
        seeds: draws.
    """

    family: str
    segment: str
    profile: str
    pods: float
    startup_s: float
    dispersion: float
    service: Profile
    curve: Trace
    past_ticks: int
    ticks: int
    seeds: int

    @property
    def key(self) -> str:
        """Names the cell, also as a file."""
        return f"{self.segment.replace('/', '_')}-{self.profile}-{self.pods:g}pods-{self.startup_s:g}s"

    @property
    def max_replicas(self) -> int:
        """The bound that all contestants share: four times the pods that the curve's peak fills."""
        return int(np.ceil(CEILING * np.max(self.curve.requests_per_second) / self.service.capacity_rps)) + 4

    @property
    def half_past_tick(self) -> int:
        """Where the second half of the past begins."""
        return self.past_ticks // 2

    def start_replicas(self, tick: int) -> int:
        """Ready pods that everybody starts with at a tick."""
        demand = self.curve.rate_at(tick * TICK_S) / self.service.capacity_rps
        return max(1, int(np.ceil(HEADROOM * demand)))

    def fingerprint(self) -> str:
        """Changes with anything that the cell's draws depend on."""
        data = asdict(self) | {"curve": None}
        shape = self.curve.requests_per_second.tobytes()
        return hashlib.sha256(repr([VERSION, sorted(data.items())]).encode() + shape).hexdigest()


@dataclass(frozen=True)
class Chance:
    """Everything in a cell that is left to chance, the same for all contestants.

    Attributes:
        arrivals: `[seeds, T, sub_steps]` float32 requests.
        startup: `[seeds, T]` float32 uniform.
        service: `[seeds, T, sub_steps]` float32 standard normal.
    """

    arrivals: NDArray[np.float32]
    startup: NDArray[np.float32]
    service: NDArray[np.float32]


def draw(cell: Cell) -> Chance:
    """The chance of a cell: a function of the cell and nothing else."""
    seed = int.from_bytes(hashlib.sha256(f"{VERSION} {cell.key}".encode()).digest()[:8], "big")
    expected = TICK_S / SUB_STEPS * expected_rps(cell)
    arrivals, startup, service = [], [], []
    for rng in np.random.default_rng(seed).spawn(cell.seeds):
        arrivals.append(draw_arrivals(rng, expected, cell.dispersion).astype(np.float32))
        startup.append(rng.random(cell.ticks, np.float32))
        service.append(rng.standard_normal((cell.ticks, SUB_STEPS), np.float32))
    return Chance(np.stack(arrivals), np.stack(startup), np.stack(service))


def expected_rps(cell: Cell) -> NDArray[np.float64]:
    """The rate that arrivals are drawn around, `[T, sub_steps]`."""
    time_s = TICK_S / SUB_STEPS * (np.arange(cell.ticks * SUB_STEPS) + 0.5)
    return cell.curve.rates_at(time_s).reshape(cell.ticks, SUB_STEPS)


def cells(folder: Path, protocol: Protocol) -> tuple[list[Cell], dict[str, str]]:
    """All cells of a folder of traces.

    Args:
        folder: `*.csv` and `*.csv.gz` files.
        protocol: what is varied.

    Returns:
        The cells, and why files were left out, by file name.

    Raises:
        TraceError: the folder holds no trace at all, or one that must not be replayed.
    """
    if not folder.is_dir():
        raise TraceError(f"{folder}: no such folder; --traces names a folder of .csv or .csv.gz files.")
    made: list[Cell] = []
    left_out: dict[str, str] = {}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")]):
        try:
            found, reason = _segments(path, protocol)
        except TraceError as error:
            found, reason = [], str(error)
        if reason:
            left_out[path.name] = reason
        for name, part, dispersion in found:
            made += cells_of(family_of(path), name, part, dispersion, protocol)
    keys = [cell.key for cell in made]
    twice = sorted({cell.segment for cell in made if keys.count(cell.key) > 1})
    if twice:
        raise TraceError(
            f"{folder}: {' and '.join(map(repr, twice))} would share one result; keep one of x.csv and x.csv.gz, "
            "and columns apart by more than '/' and '_'."
        )
    if not made:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it holds no .csv file"
        raise TraceError(f"{folder}: no usable trace ({why}).")
    return made, left_out


def family_of(path: Path) -> str:
    """The family of a trace: its file's name."""
    return path.name.removesuffix(".gz").removesuffix(".csv")


def cells_of(family: str, segment: str, part: Trace, dispersion: float, protocol: Protocol) -> Iterator[Cell]:
    """The cells of one part of a trace (a rate curve of any mean)."""
    for profile in protocol.profiles:
        # A model of gigabytes is not loaded within half a minute.
        startups = protocol.startup_s[-1:] if profile == "llm" else protocol.startup_s
        for pods in protocol.pods:
            for startup_s in startups:
                service = PROFILES[profile]
                yield cell_of(
                    family, segment, profile, service, part, pods, startup_s, dispersion, protocol.seeds
                )


def cell_of(
    family: str,
    segment: str,
    profile: str,
    service: Profile,
    part: Trace,
    pods: float,
    startup_s: float,
    dispersion: float,
    seeds: int,
) -> Cell:
    """A cell; its trace is scaled to a mean demand of `pods` pods."""
    ticks = int(part.duration_s / TICK_S)
    return Cell(
        family=family,
        segment=segment,
        profile=profile,
        pods=pods,
        startup_s=startup_s,
        dispersion=dispersion,
        service=service,
        curve=scale_to_pods(part, pods, service.capacity_rps),
        past_ticks=round(PAST_SHARE * ticks),
        ticks=ticks,
        seeds=seeds,
    )


def _segments(path: Path, protocol: Protocol) -> tuple[list[tuple[str, Trace, float]], str]:
    """Name, rate curve and dispersion of every part of a file; or why there is none."""
    family = family_of(path)
    names = columns(path)
    if TIME_COLUMN not in names:
        return [], f"no column {TIME_COLUMN}"
    rates = [name for name in names if name != TIME_COLUMN]
    if RATE_COLUMN in rates:
        curve, dispersion = prepare(load_trace(path), protocol.bursty)
        parts = spread(curve, protocol.segments, protocol.segment_s)
        reason = "" if parts else f"shorter than {LEAST_SEGMENT_S:g} s"
        return [(f"{family}/{k}", part, dispersion) for k, part in parts], reason
    if "value" in rates:
        return [], f"its column is no request rate (name it {RATE_COLUMN} if it is)"
    wide = [load_trace(path, column) for column in rates]
    busy = [trace for trace in wide if np.sum(trace.requests_per_second) * trace.step_s >= LEAST_REQUESTS]
    found = []
    for trace in _evenly(busy, protocol.segments):
        curve, dispersion = prepare(trace, protocol.bursty)
        found += [
            (f"{trace.name.replace(':', '/')}", part, dispersion)
            for _, part in spread(curve, 1, protocol.segment_s)
        ]
    return found, "" if found else f"no column holds {LEAST_REQUESTS:g} requests in one part"


def prepare(trace: Trace, bursty: bool = False) -> tuple[Trace, float]:
    """The rate curve behind measured rates, and the index of dispersion to draw its arrivals with.

    Samples finer than a tick are first averaged to (at most) a tick, so that bursts keep their edges while
    counting noise goes; their own scatter is what the dispersion is measured on.
    """
    dispersion = BURSTY_DISPERSION if bursty else USUAL_DISPERSION
    if trace.step_s <= TICK_S and not bursty:
        dispersion = measured_dispersion(trace)
    factor = int(TICK_S // trace.step_s)
    if factor > 1:
        whole = len(trace.timestamp_s) // factor
        means = trace.requests_per_second[: whole * factor].reshape(whole, factor).mean(axis=1)
        trace = replace(trace, timestamp_s=_times(whole, trace.step_s * factor), requests_per_second=means)
    return rate_curve(trace), dispersion


def measured_dispersion(trace: Trace) -> float:
    """Variance over mean of the counts, from successive differences so that trends do not count; 1 to 8.

    The median over blocks of five minutes: a level shift within a block says nothing about scatter.
    """
    counts = trace.requests_per_second * trace.step_s
    length = max(8, int(300.0 / trace.step_s))
    blocks = counts[: len(counts) // length * length].reshape(-1, length)
    mean = blocks.mean(axis=1)
    busy = blocks[mean > 0]
    if len(busy) == 0:
        return USUAL_DISPERSION
    scatter = 0.5 * np.mean(np.diff(busy, axis=1) ** 2, axis=1) / mean[mean > 0]
    return float(np.clip(np.median(scatter), 1.0, BURSTY_DISPERSION))


def spread(
    trace: Trace, count: int, duration_s: float, least_requests: float = 0.0
) -> list[tuple[int, Trace]]:
    """Up to `count` parts of up to `duration_s`, evenly spread, without overlap; each starts at time 0.

    A part whose past or future holds no more than `least_requests` is left out: nothing could be judged on it.
    """
    samples = min(len(trace.timestamp_s), round(duration_s / trace.step_s))
    if samples * trace.step_s < LEAST_SEGMENT_S:
        return []
    count = min(count, len(trace.timestamp_s) // samples)
    room = len(trace.timestamp_s) - samples
    starts = [room // 2] if count == 1 else [round(k * room / (count - 1)) for k in range(count)]
    parts = []
    for k, start in enumerate(starts):
        rates = trace.requests_per_second[start : start + samples]
        split = round(PAST_SHARE * samples)
        if min(rates[:split].sum(), rates[split:].sum()) * trace.step_s > least_requests:
            times = _times(samples, trace.step_s)
            parts.append((k, replace(trace, timestamp_s=times, requests_per_second=rates)))
    return parts


def _times(count: int, step_s: float) -> NDArray[np.float64]:
    return np.arange(count, dtype=np.float64) * step_s


def _evenly(traces: Sequence[Trace], count: int) -> list[Trace]:
    if len(traces) <= count:
        return list(traces)
    chosen = np.unique(np.round(np.linspace(0, len(traces) - 1, count)).astype(int))
    return [traces[k] for k in chosen]
