"""The pictures of the fidelity page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from closed_loop import PROFILE, Run

matplotlib.use("Agg")

# Distinguishable without colour vision (Okabe-Ito).
EXACT, OURS, OTHER, SHADE = "#d55e00", "#0b3d91", "#009e73", "#b9cfe6"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}


def queues(path: Path, loads: Sequence[float], sojourns_ms: Mapping[str, tuple[Any, Any, Any]]) -> None:
    """Mean latency over load: by queue the closed form and the model at two sub-steps."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.6))
        for axes, (name, (exact, short, long)) in zip(
            figure.subplots(2, 4).flat, sojourns_ms.items(), strict=True
        ):
            axes.plot(loads, exact, color=EXACT, label="closed form")
            axes.plot(loads, short, "o", color=OURS, markersize=5, fillstyle="none", label="model, 1 s")
            axes.plot(loads, long, "x", color=OTHER, markersize=5, label="model, 5 s")
            axes.set_title(name, fontsize=9)
            axes.set_ylim(bottom=0)
        figure.axes[0].legend(fontsize=8)
        figure.supxlabel("load per server", fontsize=9)
        figure.supylabel("mean latency, ms", fontsize=9)
        figure.tight_layout()
        _save(figure, path)


def scenarios(path: Path, names: Sequence[str], ours: Sequence[float], exact: Sequence[float]) -> None:
    """Shares of missed requests in percent, by scenario."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.4))
        axes, rows = figure.subplots(), np.arange(len(names))
        axes.barh(rows - 0.2, exact, 0.38, color=EXACT, label="event by event")
        axes.barh(rows + 0.2, ours, 0.38, color=OURS, label="model")
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("requests over the latency threshold or given up, %")
        axes.legend()
        _save(figure, path)


def autoscalers(path: Path, panels: Mapping[str, tuple[Any, Any, Any]]) -> None:
    """By title: seconds, replicas of the real controller and of the reference."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.4))
        for axes, (title, (at_s, controller, reference)) in zip(
            figure.subplots(2, 2).flat, panels.items(), strict=True
        ):
            axes.step(
                at_s,
                controller,
                where="post",
                color=EXACT,
                linewidth=2.5,
                alpha=0.7,
                label="kube-controller-manager",
            )
            axes.plot(at_s, reference, ".", color=OURS, markersize=4, label="reference")
            axes.set_title(title, fontsize=8)
            axes.set_ylim(bottom=0)
        figure.axes[0].legend(fontsize=8)
        figure.supxlabel("seconds", fontsize=9)
        figure.supylabel("replicas decided", fontsize=9)
        figure.tight_layout()
        _save(figure, path)


def closed_loop(path: Path, run: Run, simulated: Mapping[str, np.ndarray]) -> None:
    """Ready pods of a run of the demo within what the simulator draws, `[ticks, lanes]` by panel."""
    at = np.arange(len(run.ready)) - run.warmup
    load_pods, killed = np.array(run.requests) / PROFILE.capacity_rps, np.array(run.killed) > 0
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.6))
        for axes, (title, drawn) in zip(figure.subplots(2, 1, sharex=True), simulated.items(), strict=True):
            low, high = np.quantile(drawn, [0.05, 0.95], axis=1)
            axes.fill_between(
                at, low, high, step="post", color=SHADE, linewidth=0, label="simulator, 5 to 95 %"
            )
            axes.step(at, drawn.mean(1), where="post", color=OURS, label="simulator, mean")
            axes.step(at, run.ready, where="post", color=EXACT, label="demo")
            axes.plot(at, load_pods, color="#8a93a0", linewidth=0.8, label="requests, in pods that they fill")
            axes.fill_between(
                at,
                0,
                1,
                np.asarray(killed) > 0,
                transform=axes.get_xaxis_transform(),
                color="#f6d5d5",
                zorder=0,
            )
            axes.set_title(title, fontsize=9)
            axes.set_ylabel("ready pods")
        figure.axes[0].legend(ncols=2, fontsize=8, loc="upper right")
        figure.axes[-1].set_xlabel("seconds of the replay (shaded: the actor is killed, the reference acts)")
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the library's version in it, the same picture is the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})
