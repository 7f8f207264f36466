"""Two pictures of a run: who wanted how many replicas, and what it meant for those who waited for an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullFormatter

from understudy_demo.figures import Drill, time_of
from understudy_demo.samples import Record, Sample
from understudy_simulator.style import STYLE

matplotlib.use("Agg")

# Distinguishable without colour vision (Okabe-Ito), and by line style in print.
_LOAD, _READY, _DESIRED, _REFERENCE, _PROPOSAL, _KILL = (
    "#c9ced6",
    "#0b3d91",
    "#56a0d3",
    "#d55e00",
    "#009e73",
    "#f6d5d5",
)
_DASHED: Any = (0, (4, 2))
_DOTTED: Any = (0, (1, 1.2))
_STYLE: Any = STYLE | {"savefig.bbox": "tight", "savefig.facecolor": "white"}


def replicas(
    path: Path,
    samples: Sequence[Sample],
    ledger: Sequence[Record],
    drill: Drill,
    *,
    began_s: float,
    capacity_rps: float,
    compression: float,
) -> None:
    """Load, replicas and proposals over time; below, the authority and the guards that bound.

    Args:
        path: of the PNG file.
        samples, ledger: of the replay.
        drill: the kill is shaded.
        began_s: Unix time of second 0.
        capacity_rps: requests per second of one pod.
        compression: trace seconds per second, for the axis on top.
    """
    at = np.array([sample.time_s for sample in samples]) - began_s
    decided = np.array([time_of(record) for record in ledger]) - began_s
    bound = _bound(ledger)
    heights = (7, 1.1, 0.6 + 0.32 * len(bound))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 0.62 * sum(heights) + 0.6))
        main, authority, guards = figure.subplots(
            3, 1, sharex=True, gridspec_kw={"height_ratios": heights, "hspace": 0.12}
        )
        load = np.array([sample.load_rps for sample in samples]) / capacity_rps
        main.fill_between(at, load, color=_LOAD, label="load, in pods that it keeps fully busy", linewidth=0)
        reference = _column(ledger, lambda record: record["reference_replicas"])
        proposal = _column(ledger, lambda record: record["proposed_replicas"])
        main.step(
            decided,
            reference,
            where="post",
            label="reference's proposal",
            lw=1.5,
            color=_REFERENCE,
            ls=_DASHED,
        )
        main.step(
            decided, proposal, where="post", label="actor's proposal", lw=1.5, color=_PROPOSAL, ls=_DOTTED
        )
        desired, ready = [s.desired for s in samples], [s.ready for s in samples]
        main.step(at, desired, where="post", color=_DESIRED, lw=1.6, label="desired replicas")
        main.step(at, ready, where="post", color=_READY, lw=2.2, label="ready pods")
        main.set_ylabel("pods")
        main.set_ylim(bottom=0, top=1.3 * max(*desired, *ready, float(load.max())))
        _shade(main, drill, began_s, "killed: the reference carries on")
        handles, labels = main.get_legend_handles_labels()
        order = [handles.index(h) for h in (*handles[1:], handles[0])]
        main.legend(
            [handles[k] for k in order], [labels[k] for k in order], loc="upper left", ncols=3, fontsize=9
        )
        top = main.secondary_xaxis("top", functions=(lambda s: s * compression, lambda t: t / compression))
        top.set_xlabel("time in the trace, h:mm", color="#555555")
        top.xaxis.set_major_formatter(
            FuncFormatter(lambda t, _: f"{int(t // 3600)}:{int(t % 3600 // 60):02d}")
        )
        top.xaxis.set_major_locator(MultipleLocator(_trace_step_s(compression * max(at[-1], 1.0))))
        top.tick_params(colors="#555555")

        in_force = _column(ledger, lambda record: record["authority"]["in_force"])
        authority.fill_between(decided, in_force, step="post", color=_PROPOSAL, alpha=0.45, linewidth=0)
        authority.set_ylim(0, 1.15)
        authority.set_yticks([0, 1])
        authority.set_ylabel("authority", rotation=0, ha="right", va="center")
        _shade(authority, drill, began_s)

        for row, (_, ticks) in enumerate(bound):
            where = decided[ticks]
            guards.broken_barh(
                [(start, 1.0) for start in where], (row - 0.32, 0.64), color="#5b6472", linewidth=0
            )
        guards.set_yticks(range(len(bound)), [name for name, _ in bound], fontsize=8.5)
        guards.set_ylim(len(bound) - 0.4, -0.6)
        guards.set_xlabel("seconds since the replay began")
        _shade(guards, drill, began_s)
        guards.set_xlim(0, max(at[-1], 1.0))
        figure.align_ylabels([main])
        figure.savefig(path)


def latency(
    path: Path,
    ledger: Sequence[Record],
    drill: Drill,
    *,
    began_s: float,
    until_s: float,
    threshold_s: float,
) -> None:
    """The 99th percentile of the latency that the operator saw, against the objective.

    Args:
        path: of the PNG file.
        ledger: of the replay.
        drill: the kill is shaded.
        began_s, until_s: Unix times of the replay's first and last second.
        threshold_s: of the objective.
    """
    decided = np.array([time_of(record) for record in ledger]) - began_s
    p99 = 1000 * _column(ledger, lambda record: record["signals"]["latency"]["value"])
    limit = 1000 * threshold_s
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 3.4))
        axes = figure.subplots()
        axes.set_yscale("log")
        axes.plot(decided, p99, color=_READY, lw=1.6, label="p99 as the operator saw it")
        axes.fill_between(decided, p99, limit, where=p99 > limit, color=_REFERENCE, alpha=0.35, linewidth=0)
        axes.axhline(limit, color=_REFERENCE, lw=1.2, ls=_DASHED, label=f"objective, {limit:g} ms")
        known = p99[np.isfinite(p99)]
        axes.set_ylim(0.38 * min([*known, limit]), 2.5 * max([*known, limit]))
        axes.set_xlim(0, max(until_s - began_s, 1.0))
        axes.legend(loc="upper left", ncols=2, fontsize=9)
        axes.yaxis.set_major_locator(FixedLocator([50, 100, 250, 500, 1000, 2500, 5000, 10000]))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda ms, _: f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s")
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("latency, p99")
        axes.set_xlabel("seconds since the replay began")
        _shade(axes, drill, began_s, "killed")
        figure.savefig(path)


def _trace_step_s(duration_s: float) -> float:
    """A round step that divides an axis of so many trace seconds into four to twelve parts."""
    steps_s = (300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    return next((step_s for step_s in steps_s if duration_s / step_s <= 12), duration_s / 8)


def _column(ledger: Sequence[Record], value: Callable[[Record], float | None]) -> np.ndarray[Any, Any]:
    """One number of every record, NaN where it is unknown."""
    return np.array([np.nan if (known := value(record)) is None else known for record in ledger], float)


def _bound(ledger: Sequence[Record]) -> list[tuple[str, list[int]]]:
    """The guards that changed the number last, each with the positions of its records, in order of appearance."""
    found: dict[str, list[int]] = {}
    for position, record in enumerate(ledger):
        if record["reason"] != "None":
            found.setdefault(record["reason"], []).append(position)
    return list(found.items()) or [("no guard bound", [])]


def _shade(axes: Axes, drill: Drill, began_s: float, text: str = "") -> None:
    start, end = drill.killed_s - began_s, drill.resumed_s - began_s
    axes.axvspan(start, end, color=_KILL, linewidth=0, zorder=0)
    if text:
        axes.text(
            (start + end) / 2,
            0.03,
            text,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color="#8a2b2b",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
        )
