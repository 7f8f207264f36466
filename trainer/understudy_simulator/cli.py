"""`understudy bench`, `calibrate` and `replay`: the judge for people, with a progress bar and a report.

Everything heavy is imported when a command runs, so that `understudy status` stays quick, and works where
the plotting library is not installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy_simulator.own import (
    Capacity,
    CommandError,
    Days,
    History,
    Prometheus,
    Query,
    ReadRange,
    ServiceTime,
    Startup,
    Threshold,
    own_cells,
    read_own,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy_policy.calibration import Calibration
    from understudy_simulator.judge.bench import Tuned
    from understudy_simulator.judge.contest import CellResult
    from understudy_simulator.judge.entrants import Learned
    from understudy_simulator.judge.summary import Contest
    from understudy_simulator.protocol import Cell, Protocol

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
Finetune = Annotated[
    bool, typer.Option("--finetune", help="Judge every policy after training on the past of every cell, too.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report to this file.")]


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
        finetune: Finetune = False,
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
            conditions |= {"left_out": left_out}
            _judge(made, policy, finetune, out, workers, conditions, json, html, markdown)

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

            own = read_own(
                read_range, capacity_rps, history, prometheus, query, days, service_s, threshold_s, startup_s
            )
            cells = own_cells(own, seeds or 5)
            results = _run(cells, (), out, workers)
            winner, held_out = _calibrated(results)
            typer.echo(
                f"saves {winner.saving_ratio:.1%} of a stock HPA's adjusted cost on this past "
                f"(95 % interval over the draws {winner.low_ratio:.1%} to {winner.high_ratio:.1%}); "
                f"what is chosen on the first 60 % of each part alone would have saved {held_out:.1%} on the rest",
                err=True,
            )
            typer.echo(f"for an RLPolicy's objective, with capacityPerPod {capacity_rps:g}:", err=True)
            typer.echo("calibratedUtilizations:", err=True)
            for price, aim in _aims(results).items():
                typer.echo(f"- {{missedRequestPrice: {price:g}, utilization: {aim:g}}}", err=True)
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
        finetune: Finetune = False,
        json: Json = None,
        out: Out = None,
        html: Html = None,
        seeds: Seeds = None,
        workers: Workers = None,
    ) -> None:
        """Judge rules and policies on a workload's own history: what would they have saved?"""
        with _told():
            from understudy_simulator.judge.entrants import FORECAST

            own = read_own(
                read_range, capacity_rps, history, prometheus, query, days, service_s, threshold_s, startup_s
            )
            cells = own_cells(own, seeds or 5)
            conditions = {"history": own.trace.name, "seeds": cells[0].seeds, "policies": _names(policy)}
            contest = _judge(cells, policy, finetune, out, workers, conditions, json, html)
            for contestant in ("rule-past", *contest.policies, FORECAST):
                ratio = contest.ratio(contestant, "hpa-stock")
                nobody = ", which nobody has," if contestant == FORECAST else ""
                typer.echo(
                    f"{contestant}{nobody} would have saved {1 - ratio['geomean']:.1%} of hpa-stock's adjusted cost "
                    f"(95 % interval {1 - ratio['high']:.1%} to {1 - ratio['low']:.1%})"
                )


@contextmanager
def _told() -> Iterator[None]:
    """Turns what a person can mend into one line, and exit code 2 where the command made no sense, else 1."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is not installed; pip install 'understudy[bench]'", err=True)
        raise typer.Exit(1) from error
    except (CommandError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, CommandError) else 1) from error


def _names(policies: Sequence[Path] | None) -> list[str]:
    return [path.name for path in policies or ()]


def _conditions(protocol: Protocol, policies: Sequence[Path] | None, quick: bool) -> dict[str, Any]:
    return {"quick": quick, "policies": _names(policies), **vars(protocol)}


def _judge(
    cells: Sequence[Cell],
    policies: Sequence[Path] | None,
    finetune: bool,
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

    from understudy_simulator.judge import bench, report, show
    from understudy_simulator.judge.summary import Contest, document

    for file in (json_file, html, markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise CommandError(f"{file}: its folder does not exist; make it first")
    if markdown is not None:
        report.check_marks(markdown)
    conditions = conditions | {
        "policies_sha256": bench.digests(policies or ()),
        "program_sha256": bench.program(),
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out_or_scratch = out or Path(scratch)
        tuned = None
        if finetune:
            tuned, left = _tune(cells, policies or (), out_or_scratch / "fine-tuned", workers)
            conditions = conditions | {"not_fine_tuned": left}
        results = _run(cells, policies or (), out_or_scratch, workers, tuned)
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


def _tune(
    cells: Sequence[Cell], policies: Sequence[Path], out: Path, workers: int | None
) -> tuple[list[list[Learned]], dict[str, str]]:
    """Train every policy further on the past of every cell, with a progress bar."""
    from understudy_simulator.judge import bench, tuning

    if not policies:
        raise CommandError("--finetune needs --policy: name the ONNX file of the policy to train further")
    bench.entrants(policies)
    try:
        tune = tuning.plugged()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--finetune needs the trainer, which lacks {error.name}: pip install 'understudy[trainer]'"
        ) from error
    with _progress(f"training {len(policies)} × {len(cells)} × 3 policies") as show:
        files, left = tuning.run(cells, policies, tune, out, workers, show)
    for key, reason in left.items():
        typer.echo(f"not trained further on {key}: {reason}", err=True)
    return files, left


def _run(
    cells: Sequence[Cell],
    policies: Sequence[Path],
    out: Path | None,
    workers: int | None,
    tuned: Sequence[Tuned] | None = None,
) -> list[CellResult]:
    """Judge cells, with a progress bar."""
    from understudy_simulator.judge import bench

    with tempfile.TemporaryDirectory() as scratch, _progress(f"judging {len(cells)} cells") as show:
        return bench.run(cells, policies, out or Path(scratch), workers, show, tuned)


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[float], None]]:
    """A bar; it is told the share that is done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(doing, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _aims(results: Sequence[CellResult]) -> dict[float, float]:
    """At which utilisation a rule over five minutes was cheapest on all of it, by the price of a missed request."""
    import numpy as np

    from understudy_policy.api.parts import Objective
    from understudy_simulator.audition import AIM_ROWS, best_aim
    from understudy_simulator.judge.entrants import PREFERENCES, ROW

    rows = np.flatnonzero(np.array(results[0].entrants) == ROW)[list(AIM_ROWS)]
    cost, violation = (
        _in_all(*_played(results, name, rows)).mean(axis=1, keepdims=True) for name in ("cost", "violation")
    )
    usual = Objective.model_fields["missed_request_price"].default
    prices = sorted({*PREFERENCES, float(usual)})
    return dict(zip(prices, best_aim(np.array(prices), cost, violation).tolist(), strict=True))


def _played(
    results: Sequence[CellResult], figure: str, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A figure of some configurations in the pasts and in the futures of all parts, `[len(rows), parts × seeds]`."""
    import numpy as np

    from understudy_simulator.judge.world import FIGURES

    k = FIGURES.index(figure)
    past = np.concatenate([result.past[k, rows] for result in results], axis=1)
    return past, np.concatenate([result.future[k, rows] for result in results], axis=1)


def _in_all(past: NDArray[np.float64], future: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over both, by how long they last."""
    from understudy_simulator.protocol import PAST_SHARE

    return PAST_SHARE * past + (1.0 - PAST_SHARE) * future


def _calibrated(results: Sequence[CellResult]) -> tuple[Calibration, float]:
    """The winner on all of it, and what a choice on the first 60 % of each part would have saved on the rest."""
    import numpy as np

    from understudy_policy import calibration
    from understudy_simulator.judge.entrants import CHOICES, KNATIVE

    # Knative's autoscaler has no manifest of its own kind that would fit another workload.
    names = [name for name in CHOICES if name != KNATIVE]
    rows = np.flatnonzero(np.isin(results[0].entrants, names))
    past, future = _played(results, "adjusted", rows)
    # Stock comes first among the entrants, as `calibrate` asks for it.
    _, *choices = (choice for name in names for choice in CHOICES[name])
    winner = calibration.calibrate(lambda _: _in_all(past, future), choices)
    chosen = int(np.argmin(past.mean(axis=1)))
    return winner, float(1.0 - future[chosen].mean() / future[0].mean())
