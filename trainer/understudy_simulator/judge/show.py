"""The figures on a terminal: one table, the best first in nobody's favour, and one sentence per policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def table(document: dict[str, Any]) -> None:
    """Print adjusted cost over `rule-past` per family, with the mean and its interval; clairvoyant last.

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
        ratio = headline["adjusted_over_rule_past"]
        actions = [own[name]["actions_per_hour"] for own in families.values()]
        shown.add_row(
            name,
            *(f"{own[name]['geomean']:.3f}" for own in families.values() if several),
            f"{ratio['geomean']:.3f}",
            f"{ratio['low']:.3f} – {ratio['high']:.3f}",
            f"{ratio['worst']:.2f}",
            "" if None in actions else f"{sum(actions) / len(actions):.1f}",
        )
    Console(width=None if Console().is_terminal else 160).print(shown)


def verdict(document: dict[str, Any], name: str) -> str:
    """One sentence that a reader may take away about a contestant."""
    ratio = document["headlines"][name]["adjusted_over_rule_past"]
    change = ratio["geomean"] - 1.0
    interval = f"95 % interval {ratio['low'] - 1.0:+.1%} to {ratio['high'] - 1.0:+.1%}"
    if ratio["high"] < 1.0:
        return f"{name} is {-change:.1%} cheaper than the best rule of the past ({interval})."
    if ratio["low"] > 1.0:
        return f"{name} is {change:.1%} dearer than the best rule of the past ({interval}): keep the rules."
    return (
        f"{name} cannot be told from the best rule of the past ({change:+.1%}, {interval}): keep the rules."
    )


def rule_verdict(document: dict[str, Any]) -> str:
    """One sentence about what calibration alone is worth."""
    ratio = document["headlines"]["hpa-stock"]["adjusted_over_rule_past"]
    saving, low, high = (1.0 - 1.0 / ratio[key] for key in ("geomean", "low", "high"))
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
