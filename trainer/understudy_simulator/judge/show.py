"""The figures on a terminal: one table, the best first in nobody's favour, and one sentence per policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from understudy_simulator.protocol import Protocol

HEADLINES = (
    "over hpa-past",
    "over rule-hindsight",
    "of the gap closed",
    "cells better than rule-hindsight",
    "cost at equal SLO",
    "misses, worst cell",
    "actions",
)
"""What is told of everybody beside the adjusted cost over `rule-past`; see `headlines`."""


def table(document: dict[str, Any]) -> None:
    """Print adjusted cost over `rule-past` per family, with the mean and its interval, and the other headlines.

    Args:
        document: from `summary.document`.
    """
    families = document["families"]
    several = len(families) > 1
    shown = Table(title="adjusted cost over rule-past (geometric mean; below 1 is cheaper)")
    shown.add_column("contestant", no_wrap=True)
    for name in short(families).values() if several else ():
        shown.add_column(name, justify="right")
    for column in ("all", "95 % interval", "worst cell", "actions/h"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, headline in document["headlines"].items():
        over = headline["adjusted_over_rule_past"]
        actions = [own[name]["actions_per_hour"] for own in families.values()]
        shown.add_row(
            name,
            *(f"{own[name]['geomean']:.3f}" for own in families.values() if several),
            f"{over['geomean']:.3f}",
            f"{over['low']:.3f} – {over['high']:.3f}",
            f"{over['worst']:.2f}",
            "" if None in actions else f"{sum(actions) / len(actions):.1f}",
        )
    others = Table("contestant", title="the other headlines (misses and actions over those of rule-past)")
    for column in HEADLINES:
        others.add_column(column, justify="right")
    for name, cells in headlines(document).items():
        others.add_row(name, *cells)
    Console(width=None if Console().is_terminal else 160).print(shown, others)


def headlines(document: dict[str, Any]) -> dict[str, list[str]]:
    """By contestant, in the order of `HEADLINES`.

    Ratios of adjusted cost are geometric means over all cells, with their interval. The gap is the way from `rule-past`
    to the clairvoyant bound. Cost at equal SLO is over the cheapest rule of the sweep that missed no more, found in
    hindsight, where there is one. Misses and actions are over those of `rule-past`: of misses the worst cell is told,
    of actions the geometric mean and the worst cell.
    """
    found = {}
    for name, told in document["headlines"].items():
        if "cost_at_equal_slo" not in told:  # the bound has no costs of its own
            continue
        gap, actions = told["gap_closed"], "actions_over_rule_past"
        found[name] = [
            ratio(told["adjusted_over_hpa_past"]),
            ratio(told["adjusted_over_rule_hindsight"]),
            f"{gap['share']:.0%} ({gap['low']:.0%} to {gap['high']:.0%})",
            f"{told['better_than_rule_hindsight_share']:.0%}",
            ratio(told["cost_at_equal_slo"]),
            f"{told['violation_over_rule_past_worst']:.1f} ×",
            f"{told[actions]:.2f} × (to {told[f'{actions}_worst']:.3g} ×)",
        ]
    return found


def sample(document: dict[str, Any]) -> str:
    """How much was judged, and how much of the protocol that is."""
    conditions = document["conditions"]
    count = len({(c["segment"], c["profile"], c["pods"], c["startup_s"]) for c in document["cells"]})
    told = f"{count} cells with {conditions['seeds']} seeds each"
    if conditions.get("quick"):
        return f"{told} (quick: a part of the protocol)"
    few = "quick" in conditions and conditions["seeds"] < Protocol().seeds
    return f"{told} (the protocol has {Protocol().seeds})" if few else told


def ratio(told: dict[str, Any]) -> str:
    """A mean and its interval."""
    if told["geomean"] is None:
        return "none missed so few"
    few = f", in {told['cells']} of {told['of']}" if told.get("cells", 0) != told.get("of", 0) else ""
    return f"{told['geomean']:.3f} ({told['low']:.3f}–{told['high']:.3f}){few}"


def verdict(document: dict[str, Any], name: str) -> str:
    """One sentence that a reader may take away about a contestant."""
    over = document["headlines"][name]["adjusted_over_rule_past"]
    change = over["geomean"] - 1.0
    interval = f"95 % interval {over['low'] - 1.0:+.1%} to {over['high'] - 1.0:+.1%}"
    if document["parts"] == 1:
        interval += ", of luck on this one load"
    if over["high"] < 1.0:
        return f"{name} is {-change:.1%} cheaper than the best rule of the past ({interval})."
    if over["low"] > 1.0:
        return f"{name} is {change:.1%} dearer than the best rule of the past ({interval}): keep the rules."
    return (
        f"{name} cannot be told from the best rule of the past ({change:+.1%}, {interval}): keep the rules."
    )


def rule_verdict(document: dict[str, Any]) -> str:
    """One sentence about what calibration alone is worth."""
    over = document["headlines"]["hpa-stock"]["adjusted_over_rule_past"]
    saving, low, high = (1.0 - 1.0 / over[key] for key in ("geomean", "low", "high"))
    told = f"{abs(saving):.1%} {'cheaper' if saving > 0 else 'dearer'} than a stock HPA"
    return f"The best rule of the past is {told} (95 % interval of the saving {low:+.1%} to {high:+.1%})."


def short(families: Iterable[str]) -> dict[str, str]:
    """Families by as many words of their names as tell them apart, two at least."""
    words = {family: family.split("_") for family in families}
    most = max(len(own) for own in words.values())
    for count in range(2, most + 1):
        names = {family: " ".join(own[:count]) for family, own in words.items()}
        if len(set(names.values())) == len(names):
            return names
    return {family: family for family in words}
