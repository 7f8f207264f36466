"""What is left of a run: a page that stands on its own, its two pictures, and a few lines for the terminal.

Every figure is computed from two files beside the page, the ledger and the samples, so it can be checked.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from understudy_demo import plots
from understudy_demo.figures import HANDOVER_LIMIT_TICKS, Drill, Figures, shortcomings, time_of
from understudy_demo.load import Load
from understudy_demo.samples import Record, Sample
from understudy_policy.api import RLPolicy
from understudy_policy.guards.reasons import SENTENCES, Reason

_SENTENCES = {reason.label: sentence for reason, sentence in SENTENCES.items()}


@dataclass(frozen=True)
class Command:
    """A command that a person gave during the run.

    Attributes:
        line: as typed.
        output: what it printed.
        accepted_s: Unix time of its first line of output, which it prints when the API server has accepted.
    """

    line: str
    output: str
    accepted_s: float


@dataclass(frozen=True)
class Played:
    """All that a report tells about.

    Attributes:
        load, policy, samples, ledger, drill, figures, commands: see there.
        where: on which cluster, in words.
        began_s: Unix time at which the replay began.
        versions: of what took part, by name.
    """

    load: Load
    where: str
    policy: RLPolicy
    began_s: float
    samples: Sequence[Sample]
    ledger: Sequence[Record]
    drill: Drill
    figures: Figures
    commands: Sequence[Command]
    versions: Mapping[str, str]

    @property
    def missing(self) -> list[str]:
        """What the run failed to show."""
        return shortcomings(self.figures, self.samples[0].ready)


def write(folder: Path, played: Played) -> Path:
    """Write pictures, figures and page.

    Args:
        folder: an existing folder; `report.html`, `replicas.png`, `latency.png` and `figures.json` are written.
        played: the run.

    Returns:
        The page.
    """
    spec = played.policy.spec
    capacity_rps = spec.objective.capacity_per_pod_rps
    if capacity_rps is None:
        raise ValueError("objective.capacityPerPod is Auto: the report shows load in pods, so give a number")
    until_s = played.samples[-1].time_s
    ledger = [record for record in played.ledger if played.began_s <= time_of(record) <= until_s]
    plots.replicas(
        folder / "replicas.png",
        played.samples,
        ledger,
        played.drill,
        began_s=played.began_s,
        capacity_rps=capacity_rps,
        compression=played.load.compression,
    )
    plots.latency(
        folder / "latency.png",
        ledger,
        played.drill,
        began_s=played.began_s,
        until_s=until_s,
        threshold_s=spec.objective.latency_threshold_s,
    )
    (folder / "figures.json").write_text(json.dumps(facts(played), indent=2) + "\n")
    environment = Environment(
        loader=PackageLoader("understudy_demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = folder / "report.html"
    page.write_text(
        environment.get_template("report.html.j2").render(
            played=played,
            spec=spec,
            figures=played.figures,
            rows=rows(played),
            missing=played.missing,
            guards=_guards(ledger),
            began=datetime.fromtimestamp(played.began_s, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            pictures={name: _embedded(folder / f"{name}.png") for name in ("replicas", "latency")},
        )
    )
    return page


def facts(played: Played) -> dict[str, object]:
    """The figures for programs, with units in the names."""
    figures = played.figures
    return {
        "load": played.load.label,
        "load_is_recorded": played.load.recorded,
        **asdict(figures),
        "served": figures.served,
        "missed_ratio": figures.missed_share,
        "actions_per_hour": figures.actions_per_hour,
        "versions": dict(played.versions),
        "missing": played.missing,
    }


def rows(played: Played) -> list[tuple[str, str, str]]:
    """Name, figure and meaning of everything that the report states."""
    figures, spec = played.figures, played.policy.spec
    actions = figures.scale_ups + figures.scale_downs
    trace_hours = figures.seconds * played.load.compression / 3600
    pods = 3600 * figures.pod_hours / figures.seconds
    reference = "never came" if figures.handover_s is None else f"came {figures.handover_s:.2f} s after it"
    return [
        _row(
            "requests served",
            f"{figures.served:,.0f}",
            f"of {figures.requests:,.0f} that arrived in {figures.seconds:.0f} s",
        ),
        _row(
            "SLO misses",
            f"{figures.missed:,.0f} ({figures.missed_share:.2%})",
            f"slower than {spec.objective.latency_threshold}, or dropped;",
            f"the objective allows {1 - spec.objective.slo_target:.2%}",
        ),
        _row("dropped", f"{figures.dropped:,.0f}", "of these: timed out, or found no pod"),
        _row("pod-hours", f"{figures.pod_hours:.3f}", f"of real time: {pods:.1f} pods on average"),
        _row(
            "scaling actions",
            f"{actions}",
            f"{figures.scale_ups} up, {figures.scale_downs} down, all by field manager understudy;",
            f"{figures.actions_per_hour:.0f} an hour of real time, {actions / trace_hours:.0f} an hour of the trace",
        ),
        _row(
            "ticks overrun",
            f"{figures.overrun_ticks}",
            f"beside {figures.decisions} decisions; the actor had authority in {figures.acted} of them",
        ),
        _row(
            "kill to hand-over",
            f"{figures.handover_ticks} ticks",
            "decisions in which the actor still had authority after `understudy kill` had said that the API server",
            f"accepted it ({HANDOVER_LIMIT_TICKS} is the most); the reference's first decision {reference}",
        ),
    ]


def _row(name: str, figure: str, *meaning: str) -> tuple[str, str, str]:
    return name, figure, " ".join(meaning)


def summary(played: Played) -> str:
    """The figures for a terminal."""
    told = [f"{name}: {figure} ({meaning})" for name, figure, meaning in rows(played)]
    return "\n".join([played.load.label, *told])


def _guards(ledger: Sequence[Record]) -> list[tuple[str, int, str]]:
    """Reason, ticks and meaning of every guard that spoke last, the most frequent first."""
    counts = Counter(record["reason"] for record in ledger if record["reason"] != Reason.NONE.label)
    return [(reason, count, _SENTENCES[reason]) for reason, count in counts.most_common()]


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
