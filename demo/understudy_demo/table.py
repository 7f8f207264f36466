"""What a person watches while the demo runs: one line a second, and the last decision as a sentence.

Without a terminal the same figures come as plain lines every few seconds, so that a log tells the story too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from understudy_demo.samples import Record, Sample
from understudy_policy import explain

LINES = 14
HISTORY_COLUMNS = 80
PLAIN_EVERY_S = 5.0

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Line:
    """One second of the run.

    Attributes:
        second: since the replay began; negative while warming up.
        phase: where in the script the run is, in words.
        sample: what really happened.
        decision: the newest record of the ledger, None before the first.
    """

    second: float
    phase: str
    sample: Sample
    decision: Record | None

    @property
    def latency_s(self) -> float | None:
        """The 99th percentile that the operator saw."""
        return None if self.decision is None else self.decision["signals"]["latency"]["value"]


class Show:
    """Shows the run, for use in a `with`."""

    def __init__(self, console: Console, title: str, latency_threshold_s: float) -> None:
        """Choose between table and plain lines by what the console can do.

        Args:
            console: where to.
            title: above the table: what load this is.
            latency_threshold_s: of the objective; slower is shown as missed.
        """
        self._console, self._title, self._threshold_s = console, title, latency_threshold_s
        self._lines: list[Line] = []
        self._notes: deque[str] = deque(maxlen=4)
        self._live = (
            Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        )
        self._last_plain_s = float("-inf")

    def __enter__(self) -> Show:
        """Begin."""
        if self._live:
            self._live.start()
        else:
            self._console.print(self._title, soft_wrap=True, markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say that something happened, such as a kill and what the command answered."""
        self._notes.append(text)
        if not self._live:
            self._console.print(text, soft_wrap=True, markup=False)

    def add(self, line: Line) -> None:
        """Show one more second."""
        self._lines.append(line)
        if self._live:
            self._live.update(self._picture(), refresh=True)
        elif line.second - self._last_plain_s >= PLAIN_EVERY_S:
            self._last_plain_s = line.second
            self._console.print(self._plain(line), soft_wrap=True, markup=False)

    def _picture(self) -> Panel:
        newest = self._lines[-1]
        table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
        slo = f"p99 (SLO {_duration(self._threshold_s)})"
        for name in ("s", "load rps", "ready / desired", slo, "actor", "reference", "authority"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("the guard that bound", no_wrap=True, overflow="ellipsis")
        for line in self._lines[-LINES:]:
            table.add_row(*self._cells(line))
        rows: list[Table | Text] = [table, Text(), self._history(), Text()]
        if newest.decision is not None:
            rows.append(Text(explain.sentence(newest.decision), style="italic"))
        rows += [Text(note, style="cyan") for note in self._notes]
        return Panel(Group(*rows), title=Text(self._title), subtitle=Text(newest.phase), padding=(1, 2))

    def _cells(self, line: Line) -> list[str | Text]:
        sample, told = line.sample, line.decision
        ready = Text(f"{sample.ready} / {sample.desired}")
        if sample.ready < sample.desired:
            ready.stylize("yellow")
        head: list[str | Text] = [f"{line.second:.0f}", f"{sample.load_rps:.0f}", ready]
        if told is None:
            return [*head, "–", "–", "–", "–", "waiting for the first decision"]
        authority = told["authority"]["in_force"]
        return [
            *head,
            self._latency(line.latency_s),
            str(told["proposed_replicas"]),
            str(told["reference_replicas"]),
            Text(f"{authority:g}", style="green" if authority > 0 else "red"),
            _bound(told),
        ]

    def _latency(self, latency_s: float | None) -> Text:
        if latency_s is None:
            return Text("unknown", style="yellow")
        return Text(_duration(latency_s), style="red" if latency_s > self._threshold_s else "green")

    def _history(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        samples = [line.sample for line in self._lines]
        series = (
            ("load", [sample.load_rps for sample in samples], "white"),
            ("ready", [float(sample.ready) for sample in samples], "blue"),
            ("p99", [line.latency_s or 0.0 for line in self._lines], "magenta"),
        )
        for name, values, colour in series:
            grid.add_row(
                Text(name, style="dim"), Text(sparkline(thinned(values, HISTORY_COLUMNS)), style=colour)
            )
        return grid

    def _plain(self, line: Line) -> str:
        sample, told = line.sample, line.decision
        text = f"{line.second:4.0f} s  load {sample.load_rps:4.0f} rps  ready {sample.ready:2d} of {sample.desired:2d}"
        if told is None:
            return f"{text}  no decision yet  [{line.phase}]"
        latency = "unknown" if line.latency_s is None else _duration(line.latency_s)
        rule = told["actor"]["rule"]
        return (
            f"{text}  p99 {latency:>7} (SLO {_duration(self._threshold_s)})  "
            f"actor {told['proposed_replicas']:2d}{f' ({rule})' if rule else ''}  "
            f"reference {told['reference_replicas']:2d}  authority {told['authority']['in_force']:g}  "
            f"guard {_bound(told)}  [{line.phase}]"
        )


def thinned(values: list[float], columns: int) -> list[float]:
    """At most so many values: the largest of each of as many stretches of equal length."""
    stretch = -(-len(values) // columns) or 1
    return [max(values[start : start + stretch]) for start in range(0, len(values), stretch)]


def sparkline(values: list[float]) -> str:
    """The values as a row of bars from 0 to the largest of them."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values)


def _bound(told: Record) -> str:
    """The guard that changed the number last, and why; or the actor's silence."""
    if told["reason"] != "None":
        guard = next(step["guard"] for step in reversed(told["guards"]) if step["reason"] != "None")
        return f"{guard}: {told['reason']}"
    return told["actor_doubt"] or "none"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
