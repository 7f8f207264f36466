"""The page that is put before a sceptical colleague, and the same tables for the documentation.

It says what was compared with what, how sure that is, and where the winner loses, before it shows a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from understudy_simulator.judge import plots, show
from understudy_simulator.judge.summary import CLAIRVOYANT, HPA_PAST, HPA_STOCK, RULE_PAST, Contest
from understudy_simulator.judge.world import FIGURES

_DETAILS: tuple[tuple[str, str, str], ...] = (
    ("cost", "cost", ".3f"),
    ("violation", "missed", ".3%"),
    ("adjusted", "adjusted", ".3f"),
    ("actions_per_hour", "actions/h", ".1f"),
    ("reversals_per_hour", "reversals/h", ".1f"),
    ("latency_p50_s", "p50", ".0%"),
    ("latency_p95_s", "p95", ".0%"),
    ("latency_p99_s", "p99", ".0%"),
    ("theta_under", "θ under", ".1%"),
    ("theta_over", "θ over", ".1%"),
    ("tau_under", "τ under", ".1%"),
    ("tau_over", "τ over", ".1%"),
    ("instability", "instability", ".1%"),
)
"""Figure, its heading, and its format. Latencies are shown over the threshold: seconds of a web service and of a
language model have no mean."""


def render(contest: Contest, document: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else.

    Args:
        contest: what was judged.
        document: from `summary.document`.
    """
    environment = Environment(
        loader=PackageLoader("understudy_simulator.judge"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    subject = contest.policies[0] if contest.policies else RULE_PAST
    other = RULE_PAST if contest.policies else HPA_STOCK
    return environment.get_template("report.html.j2").render(
        document=document,
        conditions=document["conditions"],
        verdicts=[show.verdict(document, name) for name in contest.policies] or [show.rule_verdict(document)],
        families=show.short(document["families"]),
        headings_of_headlines=show.HEADLINES,
        headlines=show.headlines(document),
        names=contest.contestants,
        sample=show.sample(document),
        ratios=plots.ratios(contest, document),
        pareto=plots.pareto(contest),
        timelines=_timelines(contest, subject, other),
        opponents=[name for name in (HPA_STOCK, HPA_PAST, *contest.policies) if name in contest.contestants],
        headings=[heading for _, heading, _ in _DETAILS],
        details=_details(contest),
        worst=_worst(contest, subject, other),
        subject=subject,
        other=other,
    )


def _timelines(contest: Contest, subject: str, other: str) -> list[tuple[str, str]]:
    """Caption and picture of the cell in the middle and of the one where the subject does worst."""
    order = np.argsort(_log_ratios(contest, subject, other))
    chosen = {"a typical cell": int(order[len(order) // 2]), "its worst cell": int(order[-1])}
    return [
        (f"{title}: {_cell_name(contest, k)}", plots.timeline(contest, k, [subject, other]))
        for title, k in chosen.items()
    ]


def _log_ratios(contest: Contest, name: str, over: str) -> np.ndarray:
    own, other = (contest.figure(n).mean(axis=1) for n in (name, over))
    logs: np.ndarray = np.log(own / other)
    return logs


def _cell_name(contest: Contest, k: int) -> str:
    cell = contest.cells[k]
    return f"{cell.segment}, {cell.profile}, {cell.pods:.3g} pods, start-up {cell.startup_s:g} s"


def _worst(contest: Contest, subject: str, other: str) -> list[tuple[str, float, str, str]]:
    """The five cells where the subject does worst: name, ratio, what it ran, what the other one ran."""
    logs = _log_ratios(contest, subject, other)
    return [
        (
            _cell_name(contest, k),
            float(np.exp(logs[k])),
            contest.tables[k][subject].label,
            contest.tables[k][other].label,
        )
        for k in np.argsort(logs)[::-1][:5]
    ]


def _details(contest: Contest) -> list[tuple[str, list[str]]]:
    """Mean of every figure over cells and seeds, per contestant, as text."""
    threshold_s = np.array([cell.service.latency_threshold_s for cell in contest.cells])[:, None]
    rows = []
    for name in contest.contestants:
        texts = []
        for figure, _, form in _DETAILS:
            values = contest.figure(name, FIGURES.index(figure))
            mean = np.mean(values / threshold_s if figure.startswith("latency") else values)
            texts.append(format(mean, form) if np.isfinite(mean) else "")
        rows.append((name, texts))
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The tables of a contest for a page of documentation."""
    headlines, families = document["headlines"], document["families"]
    lines = [
        f"{show.sample(document)}, protocol `{document['protocol']}`.",
        "",
        "Adjusted cost over `rule-past` (geometric mean over the cells of a family, 95 % interval):",
        "",
        _line("contestant", *families, "all", "worst cell"),
        _line(*["---"] * (len(families) + 3)),
    ]
    for name, headline in headlines.items():
        whole = headline["adjusted_over_rule_past"]
        cells = [show.ratio(own[name]) for own in families.values()]
        lines.append(_line(f"`{name}`", *cells, show.ratio(whole), f"{whole['worst']:.2f}"))
    lines += ["", "The other headlines (misses and actions over those of `rule-past`):", ""]
    lines += [_line("contestant", *show.HEADLINES), _line(*["---"] * (len(show.HEADLINES) + 1))]
    lines += [_line(f"`{name}`", *cells) for name, cells in show.headlines(document).items()]
    if slices := document["slices"]:
        shown = [name for name in headlines if name != RULE_PAST]
        lines += ["", "Adjusted cost over `rule-past` by condition:", ""]
        lines += [
            _line("cells with", "cells", *(f"`{name}`" for name in shown)),
            _line(*["---"] * (len(shown) + 2)),
        ]
        for own in slices:
            ratios = (show.ratio(own["contestants"][name]) for name in shown)
            lines.append(_line(own["condition"], str(own["cells"]), *ratios))
    lines += ["", "Means over all cells of a family:", ""]
    lines.append(_line("family", "contestant", "cost", "missed", "adjusted", "actions per hour"))
    lines.append(_line(*["---"] * 6))
    for family, own in families.items():
        for name, told in own.items():
            if name != CLAIRVOYANT:
                lines.append(
                    _line(
                        family,
                        f"`{name}`",
                        f"{told['cost']:.3f}",
                        f"{told['violation']:.2%}",
                        f"{told['adjusted']:.3f}",
                        f"{told['actions_per_hour']:.1f}",
                    )
                )
    return "\n".join(lines) + "\n"


def insert(file: Path, text: str) -> None:
    """Put generated text between the marks of a page, which is made if it is missing.

    Raises:
        ValueError: it has no marks.
    """
    before, after = _around(file)
    file.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{after}")


def check_marks(file: Path) -> None:
    """Say before hours of work what `insert` would say behind them.

    Raises:
        ValueError: the page is there, but has no marks.
    """
    _around(file)


def _around(file: Path) -> tuple[str, str]:
    page = file.read_text() if file.is_file() else f"{_BEGIN}\n{_END}\n"
    before, found, rest = page.partition(_BEGIN)
    _, ends, after = rest.partition(_END)
    if not (found and ends):
        raise ValueError(f"{file}: it holds no lines {_BEGIN} and {_END}; add them where the tables belong.")
    return before, after


_BEGIN, _END = "<!-- judge: begin -->", "<!-- judge: end -->"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
