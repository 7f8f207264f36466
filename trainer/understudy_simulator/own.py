"""A workload of one's own, as a command line is told of it: its load from a file or Prometheus, and how it serves.

What nobody can measure for the caller is assumed, and what is assumed is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from understudy_simulator.cluster import Profile
    from understudy_simulator.past import Past
    from understudy_simulator.protocol import Cell
    from understudy_simulator.traces import Trace

ReadRange = Callable[[str, str, float, float], tuple[Any, Any]]
"""`(url, promql, duration_s, step_s) → (timestamp_s [T], value [T])` of one series, up to now."""

STEP_S = 15.0
LEAST_OWN_REQUESTS = 100.0
"""Requests that either side of a part must hold: of fewer, an objective of 99 % is less than one."""

History = Annotated[
    Path | None,
    typer.Option(help="CSV of the workload's request rate: timestamp_s, requests_per_second."),
]
Prometheus = Annotated[str | None, typer.Option(help="Read the history from this Prometheus instead.")]
Query = Annotated[
    str | None, typer.Option(help="PromQL of the workload's request rate: one series (wrap it in sum).")
]
Days = Annotated[float, typer.Option(min=0.1, help="How far back to read from Prometheus.")]
Capacity = Annotated[
    float, typer.Option("--capacity-rps", min=0.001, help="Requests per second of a fully busy pod.")
]
ServiceTime = Annotated[
    float | None,
    typer.Option("--service-s", min=1e-6, help="Mean service time (default: one request at a time)."),
]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold-s", min=1e-6, help="Latency objective (default: six service times)."),
]
Startup = Annotated[float, typer.Option("--startup-s", min=1.0, help="Median time until a pod is ready.")]


class CommandError(Exception):
    """Something that the caller can mend; the message says how."""


@dataclass(frozen=True)
class Own:
    """A workload of one's own.

    Attributes:
        trace: its request rate.
        profile: how its pods serve.
        startup_s: median start-up.
    """

    trace: Trace
    profile: Profile
    startup_s: float


def read_own(
    read_range: ReadRange,
    capacity_rps: float,
    history: Path | None,
    prometheus: str | None,
    query: str | None,
    days: float,
    service_s: float | None,
    threshold_s: float | None,
    startup_s: float,
) -> Own:
    """The workload that a command is about.

    Raises:
        CommandError: the source makes no sense.
        TraceError: what it holds must not be replayed.
    """
    import numpy as np

    from understudy_simulator.traces import from_samples, load_trace

    if (history is None) == (prometheus is None):
        raise CommandError("name exactly one source: --history FILE, or --prometheus URL with --query")
    if history is not None:
        trace = load_trace(history)
    elif prometheus is None or query is None:
        raise CommandError("--prometheus needs --query: the PromQL of the workload's request rate")
    else:
        times, values = read_range(prometheus, query, 86400.0 * days, STEP_S)
        trace, filled = from_samples(query, np.asarray(times), np.asarray(values), STEP_S)
        if filled:
            typer.echo(f"{filled} missing samples of {len(trace.timestamp_s)} were filled in", err=True)
    return described(trace, capacity_rps, service_s, threshold_s, startup_s)


def described(
    trace: Trace, capacity_rps: float, service_s: float | None, threshold_s: float | None, startup_s: float
) -> Own:
    """A workload with what is assumed about it where the caller said nothing; it is told."""
    from understudy_simulator.cluster import Profile

    service_s = service_s or 1.0 / capacity_rps
    threshold_s = threshold_s or 6.0 * service_s
    typer.echo(
        f"a pod serves {capacity_rps:g} requests/s of {service_s:g} s each, starts within {startup_s:g} s (median), "
        f"and the objective is 99 % within {threshold_s:g} s",
        err=True,
    )
    timeout_s = max(10.0 * threshold_s, 5.0)
    return Own(trace, Profile(capacity_rps, service_s, 0.7, threshold_s, timeout_s), startup_s)


def made_up(capacity_rps: float) -> Trace:
    """Three days of a load that nobody measured, around twenty pods, for a look at what a command does."""
    import numpy as np

    from understudy_simulator.generators import generate
    from understudy_simulator.traces import Trace

    step_s, duration_s = 60.0, 3 * 86400.0
    (rate,) = generate("diurnal", duration_s, step_s, np.random.default_rng(1))
    (spikes,) = generate("spikes", duration_s, step_s, np.random.default_rng(2))
    times = step_s * np.arange(len(rate), dtype=np.float64)
    return Trace("generated, not measured", times, 20.0 * capacity_rps * rate * spikes)


def own_past(own: Own) -> Past:
    """All of the workload's history, to learn from.

    Raises:
        PastError: it is too short.
    """
    from understudy_simulator.past import Past

    curve, dispersion = _load(own)
    return Past(curve, dispersion, own.profile, own.startup_s)


def own_cells(own: Own, seeds: int) -> list[Cell]:
    """The workload's history at its own size, in up to five parts as the protocol cuts them.

    Raises:
        TraceError: it is too short, or too little was asked for.
    """
    import numpy as np

    from understudy_simulator.protocol import Protocol, cell_of, spread
    from understudy_simulator.traces import TraceError

    curve, dispersion = _load(own)
    parts = spread(curve, Protocol.segments, Protocol.segment_s, LEAST_OWN_REQUESTS)
    if not parts:
        raise TraceError(
            f"{own.trace.name}: {curve.duration_s / 3600:.1f} h of history; give two hours or more, with "
            f"{LEAST_OWN_REQUESTS:g} requests in the first 60 % of a part and in the rest"
        )
    capacity_rps = own.profile.capacity_rps
    return [
        cell_of(
            "own",
            f"own/{k}",
            "own",
            own.profile,
            part,
            float(np.mean(part.requests_per_second)) / capacity_rps,
            own.startup_s,
            dispersion,
            seeds,
        )
        for k, part in parts
    ]


def _load(own: Own) -> tuple[Trace, float]:
    """Rate curve and dispersion."""
    from understudy_simulator.protocol import USUAL_DISPERSION, prepare

    curve, dispersion = prepare(own.trace)
    # What a monitoring system records is mostly a mean over windows that overlap: its scatter hides that of requests.
    return curve, max(dispersion, USUAL_DISPERSION)
