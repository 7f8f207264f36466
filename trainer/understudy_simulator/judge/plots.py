"""The pictures of a report: who won and how surely, what a point of SLO costs, and what it looked like.

matplotlib's own objects are used without `pyplot`: a library has no business changing a caller's figures.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from understudy_simulator.judge.entrants import FORECAST, HPA, KEDA, KNATIVE, ROW, SEASONAL, TUNED
from understudy_simulator.judge.summary import CLAIRVOYANT, RULE_PAST, Contest, policy_entrants, sweep
from understudy_simulator.protocol import TICK_S
from understudy_simulator.score import VIOLATION_BUDGET
from understudy_simulator.style import STYLE

# Distinguishable without colour vision (Okabe-Ito), and by line style or marker in print.
_BLACK, _BLUE, _SKY, _ORANGE, _GREEN, _GREY = "#1c2430", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#aab2bd"
_LOAD = "#d9dde3"
_SWEEPS: dict[str, tuple[str, str, str]] = {
    HPA: ("HPA on CPU", "o", _BLUE),
    KEDA: ("KEDA on request rate", "s", _SKY),
    ROW: ("constant rows of the action table", "^", _GREEN),
    SEASONAL: ("same time yesterday", "D", "#cc79a7"),
    KNATIVE: ("Knative on concurrency", "v", "#e69f00"),
}
_RATIOS = (0.25, 0.33, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


def ratios(contest: Contest, document: dict[str, Any]) -> str:
    """Adjusted cost over `rule-past`: the mean with its interval, and every family as a small dot."""
    names = contest.contestants[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(1.0, color=_BLACK, linewidth=1)
        for y, name in enumerate(names):
            told = document["headlines"][name]["adjusted_over_rule_past"]
            families = [family[name]["geomean"] for family in document["families"].values()]
            axes.plot(families, np.full(len(families), y), "o", color=_GREY, markersize=4, zorder=2)
            color = _colour(contest, name)
            axes.plot([told["low"], told["high"]], [y, y], color=color, linewidth=3, zorder=3)
            axes.plot(told["geomean"], y, "o", color=color, markersize=8, zorder=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xscale("log")
        _ratio_axis(axes)
        axes.set_xlabel("adjusted cost over rule-past (left of 1 is cheaper); grey: single families")
        return _embedded(figure)


def pareto(contest: Contest) -> str:
    """Cost against missed requests: every configuration of every rule, and the policies' preferences."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.axvline(100 * VIOLATION_BUDGET, color=_BLACK, linewidth=1, linestyle=(0, (4, 2)))
        shown = dict(_SWEEPS)
        for name in policy_entrants(contest):
            look = ("P", _BLACK) if name.startswith(TUNED) else ("*", _ORANGE)
            shown[name] = (f"policy {name}, by preference", *look)
        costs = []
        for entrant, (label, marker, color) in shown.items():
            _, cost, missed = sweep(contest, entrant)
            missed = 100 * np.maximum(missed, _LEAST_MISSED)
            costs.append(cost)
            axes.plot(missed, cost, marker, color=color, alpha=0.35, markersize=5, linestyle="none")
            front = _front(missed, cost)
            axes.plot(missed[front], cost[front], marker=marker, color=color, markersize=6, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_ylim(1.0, 1.05 * float(np.quantile(np.concatenate(costs), 0.98)))
        axes.set_xlabel(
            "requests missed in the judged future (mean over cells); dashed: the objective's budget"
        )
        axes.set_ylabel("cost: pod-seconds over demand (geometric mean)")
        axes.legend(loc="upper right")
        return _embedded(figure)


_LEAST_MISSED = 1e-4


def timeline(contest: Contest, cell: int, names: Sequence[str]) -> str:
    """Demand and replicas in the judged future of a cell's first seed."""
    result, table = contest.results[cell], contest.tables[cell]
    hours = TICK_S / 3600.0 * np.arange(len(result.demand_pods))
    styles = ((_ORANGE, "-"), (_BLUE, "-"), (_GREEN, (0, (4, 2))))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(
            hours, result.demand_pods, color=_LOAD, linewidth=0, label="load, in fully busy pods"
        )
        for name, (color, line) in zip(names, styles, strict=False):
            standing = table[name]
            label = f"{name}: {standing.label}"
            replicas = result.replicas[:, standing.configuration]
            axes.step(hours, replicas, where="post", color=color, linestyle=line, linewidth=1.2, label=label)
        axes.set_xlim(0, hours[-1])
        axes.set_ylim(0, None)
        axes.set_xlabel("hours of the judged future")
        axes.set_ylabel("replicas")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8.5)
        return _embedded(figure)


def _front(missed: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of the configurations that no other one beats in both, by missed requests."""
    order = np.lexsort((cost, missed))
    best = np.minimum.accumulate(cost[order])
    first = np.concatenate([[True], best[1:] < best[:-1]])
    return order[first]


def _colour(contest: Contest, name: str) -> str:
    if name in contest.policies:
        return _ORANGE
    return {RULE_PAST: _BLACK, FORECAST: _GREEN, CLAIRVOYANT: _GREEN}.get(name, _BLUE)


def _ratio_axis(axes: Axes) -> None:
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([r for r in _RATIOS if low <= r <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _embedded(figure: Figure) -> str:
    """A picture as a `data:` address, so that the page needs no other file."""
    stream = BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
