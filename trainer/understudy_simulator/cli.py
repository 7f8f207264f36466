"""`understudy bench`, `calibrate` and `replay`: the judge for people, with a progress bar and a report.

Everything heavy is imported when a command runs, so that `understudy status` stays quick, and works where
the plotting library is not installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from understudy_policy.calibration import Calibration
    from understudy_simulator.cluster import Profile
    from understudy_simulator.judge.contest import CellResult
    from understudy_simulator.judge.summary import Contest
    from understudy_simulator.protocol import Cell, Protocol
    from understudy_simulator.traces import Trace

ReadRange = Callable[[str, str, float, float], tuple[Any, Any]]
"""`(url, promql, duration_s, step_s) → (timestamp_s [T], value [T])` of one series, up to now."""

STEP_S = 15.0
LEAST_OWN_REQUESTS = 100.0
"""Requests that either side of a part must hold: of fewer, an objective of 99 % is less than one."""

Policies = Annotated[
    list[Path] | None, typer.Option("--policy", help="ONNX file of a policy; may be given many times.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")]
Out = Annotated[
    Path | None, typer.Option(help="Keep results here: an interrupted run goes on where it stopped.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one per core).")]
Bursty = Annotated[bool, typer.Option(help="Draw arrivals with an index of dispersion of 8.")]
Seeds = Annotated[int | None, typer.Option(min=2, help="Draws of arrivals, start-ups and work.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report to this file.")]
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
    float | None, typer.Option("--service-s", help="Mean service time (default: one request at a time).")
]
Threshold = Annotated[
    float | None, typer.Option("--threshold-s", help="Latency objective (default: six service times).")
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


def register(app: typer.Typer, read_range: ReadRange) -> None:
    """Add the judge's commands to a command line.

    Args:
        app: where.
        read_range: how to ask Prometheus.
    """

    @app.command()
    def bench(
        traces: Annotated[Path, typer.Option(help="Folder of traces (.csv or .csv.gz).")],
        quick: Annotated[
            bool, typer.Option("--quick", help="One part of 2 days per trace, web and llm, 20 pods, 2 seeds.")
        ] = False,
        policy: Policies = None,
        json: Json = None,
        out: Out = None,
        html: Html = None,
        markdown: Annotated[
            Path | None, typer.Option(help="Put the tables between the marks of this page of documentation.")
        ] = None,
        bursty: Bursty = False,
        seeds: Seeds = None,
        workers: Workers = None,
    ) -> None:
        """Judge rules and policies on recorded load: who would have been cheapest within the objective?"""
        with _told():
            from understudy_simulator.protocol import QUICK, Protocol, cells

            protocol = QUICK if quick else Protocol()
            protocol = replace(protocol, bursty=bursty, seeds=seeds or protocol.seeds)
            made, left_out = cells(traces, protocol)
            for name, reason in left_out.items():
                typer.echo(f"left out {name}: {reason}", err=True)
            conditions = _conditions(protocol, policy, quick)
            _judge(made, policy, out, workers, conditions | {"left_out": left_out}, json, html, markdown)

    @app.command()
    def calibrate(
        capacity_rps: Capacity,
        history: History = None,
        prometheus: Prometheus = None,
        query: Query = None,
        days: Days = 7.0,
        service_s: ServiceTime = None,
        threshold_s: Threshold = None,
        startup_s: Startup = 30.0,
        name: Annotated[str, typer.Option(help="Name of the Deployment, for the manifest.")] = "my-service",
        namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
        min_replicas: Annotated[int, typer.Option(min=1, help="For the manifest.")] = 1,
        max_replicas: Annotated[int | None, typer.Option(min=1, help="For the manifest.")] = None,
        out: Out = None,
        seeds: Seeds = None,
        workers: Workers = None,
    ) -> None:
        """Find the cheapest HPA or ScaledObject for a workload's own past, and print it to apply by hand."""
        with _told():
            from understudy_policy.calibrated_manifests import RateQuery, ScaleTarget, render

            own = _own(
                read_range, capacity_rps, history, prometheus, query, days, service_s, threshold_s, startup_s
            )
            cells = _own_cells(own, seeds or 5)
            winner, held_out = _calibrated(_run(cells, (), out, workers))
            typer.echo(
                f"saves {winner.saving_ratio:.1%} of a stock HPA's adjusted cost on this past "
                f"(95 % interval over the draws {winner.low_ratio:.1%} to {winner.high_ratio:.1%}); "
                f"what is chosen on the first 60 % of each part alone would have saved {held_out:.1%} on the rest",
                err=True,
            )
            most = max(cell.max_replicas for cell in cells)
            target = ScaleTarget(name, min_replicas, max_replicas or most, namespace)
            rate = RateQuery(
                prometheus or "http://prometheus.monitoring:9090",
                query or f'sum(rate(http_requests_total{{deployment="{name}"}}[1m]))',
                capacity_rps,
            )
            typer.echo(render(winner.choice, target, rate), nl=False)

    @app.command()
    def replay(
        capacity_rps: Capacity,
        history: History = None,
        prometheus: Prometheus = None,
        query: Query = None,
        days: Days = 7.0,
        service_s: ServiceTime = None,
        threshold_s: Threshold = None,
        startup_s: Startup = 30.0,
        policy: Policies = None,
        json: Json = None,
        out: Out = None,
        html: Html = None,
        seeds: Seeds = None,
        workers: Workers = None,
    ) -> None:
        """Judge rules and policies on a workload's own history: what would they have saved?"""
        with _told():
            own = _own(
                read_range, capacity_rps, history, prometheus, query, days, service_s, threshold_s, startup_s
            )
            cells = _own_cells(own, seeds or 5)
            conditions = {"history": own.trace.name, "seeds": cells[0].seeds, "policies": _names(policy)}
            contest = _judge(cells, policy, out, workers, conditions, json, html)
            for contestant in ("rule-past", *contest.policies):
                ratio = contest.ratio(contestant, "hpa-stock")
                typer.echo(
                    f"{contestant} would have saved {1 - ratio['geomean']:.1%} of hpa-stock's adjusted cost "
                    f"(95 % interval {1 - ratio['high']:.1%} to {1 - ratio['low']:.1%})"
                )


@contextmanager
def _told() -> Iterator[None]:
    """Turns what a person can mend into one line and exit code 1."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is not installed; pip install 'understudy[bench]'", err=True)
        raise typer.Exit(1) from error
    except (CommandError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _names(policies: Sequence[Path] | None) -> list[str]:
    return [path.name for path in policies or ()]


def _conditions(protocol: Protocol, policies: Sequence[Path] | None, quick: bool) -> dict[str, Any]:
    return {"quick": quick, "policies": _names(policies), **vars(protocol)}


def _judge(
    cells: Sequence[Cell],
    policies: Sequence[Path] | None,
    out: Path | None,
    workers: int | None,
    conditions: dict[str, Any],
    json_file: Path | None,
    html: Path | None,
    markdown: Path | None = None,
) -> Contest:
    """Run, tell, and write what was asked for."""
    import json
    import time

    from understudy_simulator.judge import report, show
    from understudy_simulator.judge.summary import Contest, document

    for file in (json_file, html, markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise CommandError(f"{file}: its folder does not exist; make it first")
    started = time.monotonic()
    results = _run(cells, policies or (), out, workers)
    contest = Contest.of(cells, results)
    conditions = conditions | {"duration_s": round(time.monotonic() - started, 1)}
    figures = document(contest, conditions)
    show.table(figures)
    for name in contest.policies:
        typer.echo(show.verdict(figures, name))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    html = html or (out / "report.html" if out else None)
    if html is not None:
        html.write_text(report.render(contest, figures))
        typer.echo(f"report: {html}", err=True)
    if markdown is not None:
        report.insert(markdown, report.markdown(figures))
    return contest


def _run(
    cells: Sequence[Cell], policies: Sequence[Path], out: Path | None, workers: int | None
) -> list[CellResult]:
    """Judge cells, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from understudy_simulator.judge import bench

    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"judging {len(cells)} cells", total=1.0)
        return bench.run(
            cells, policies, out or Path(scratch), workers, lambda share: bar.update(task, completed=share)
        )


def _own(
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
    """The workload that a command is about."""
    import numpy as np

    from understudy_simulator.cluster import Profile
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
    service_s = service_s or 1.0 / capacity_rps
    threshold_s = threshold_s or 6.0 * service_s
    typer.echo(
        f"a pod serves {capacity_rps:g} requests/s of {service_s:g} s each, starts within {startup_s:g} s (median), "
        f"and the objective is 99 % within {threshold_s:g} s",
        err=True,
    )
    timeout_s = max(10.0 * threshold_s, 5.0)
    return Own(trace, Profile(capacity_rps, service_s, 0.7, threshold_s, timeout_s), startup_s)


def _own_cells(own: Own, seeds: int) -> list[Cell]:
    """The workload's history at its own size, in up to five parts as the protocol cuts them."""
    import numpy as np

    from understudy_simulator.protocol import USUAL_DISPERSION, Protocol, cell_of, prepare, spread

    curve, dispersion = prepare(own.trace)
    # What a monitoring system records is mostly a mean over windows that overlap: its scatter hides that of requests.
    dispersion = max(dispersion, USUAL_DISPERSION)
    parts = spread(curve, Protocol.segments, Protocol.segment_s, LEAST_OWN_REQUESTS)
    if not parts:
        raise CommandError(
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


def _calibrated(results: Sequence[CellResult]) -> tuple[Calibration, float]:
    """The winner on all of it, and what a choice on the first 60 % of each part would have saved on the rest."""
    import numpy as np

    from understudy_policy import calibration
    from understudy_simulator.judge.entrants import CHOICES, KNATIVE
    from understudy_simulator.judge.world import FIGURES
    from understudy_simulator.protocol import PAST_SHARE

    # Knative's autoscaler has no manifest of its own kind that would fit another workload.
    names = [name for name in CHOICES if name != KNATIVE]
    rows = np.isin(results[0].entrants, names)
    adjusted = FIGURES.index("adjusted")
    past = np.concatenate([result.past[adjusted, rows] for result in results], axis=1)
    future = np.concatenate([result.future[adjusted, rows] for result in results], axis=1)
    # Stock comes first among the entrants, as `calibrate` asks for it.
    _, *choices = (choice for name in names for choice in CHOICES[name])
    winner = calibration.calibrate(lambda _: PAST_SHARE * past + (1.0 - PAST_SHARE) * future, choices)
    chosen = int(np.argmin(past.mean(axis=1)))
    return winner, float(1.0 - future[chosen].mean() / future[0].mean())
