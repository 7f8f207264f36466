"""`python -m understudy_demo`: what `make demo` runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from understudy_demo.cluster import DemoError
from understudy_demo.controlplane.binaries import BinariesError
from understudy_demo.controlplane.client import KubeError
from understudy_demo.controlplane.processes import ProcessError
from understudy_demo.demo import DemoConfig, run
from understudy_simulator.traces import TraceError

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    trace: Annotated[
        Path | None, typer.Option(help="Recorded load to replay (.csv or .csv.gz); default: a generated one.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the recording, where it has several.")] = None,
    context: Annotated[
        str | None, typer.Option(help="Use this cluster of your kubeconfig instead of a local control plane.")
    ] = None,
    seconds: Annotated[
        int, typer.Option(help="Length of the replay; a trace-minute passes in a second.")
    ] = 240,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-out"),
    keep: Annotated[
        bool, typer.Option(help="Leave everything running after the report, until Ctrl-C.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
) -> None:
    """Watch Understudy scale a workload, lose its authority to a kill, and get it back."""
    console = Console()
    config = DemoConfig(trace, column, context, seconds, out, keep, seed)
    try:
        missing = run(config, console)
    except (DemoError, TraceError, BinariesError, KubeError, ProcessError, TimeoutError) as error:
        console.print(f"the demo failed: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(1) from error
    for why in missing:
        console.print(f"the loop did not close: {why}", style="red", soft_wrap=True, markup=False)
    raise typer.Exit(1 if missing else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an orderly end, as for Ctrl-C
    app()
