"""The figures of a run, computed from the ledger and from what really happened, and whether the loop closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from understudy_demo.samples import Record, Sample, changes
from understudy_operator.kube import FIELD_MANAGER

HANDOVER_LIMIT_TICKS = 1


@dataclass(frozen=True)
class Drill:
    """A kill in the middle of the run.

    Attributes:
        killed_s, resumed_s: Unix times at which the commands reported that the API server had accepted them.
    """

    killed_s: float
    resumed_s: float


@dataclass(frozen=True)
class Figures:
    """What the run came to.

    Attributes:
        seconds: from the first to the last sample.
        requests, missed, dropped: that arrived; that were slower than the threshold or dropped; that were dropped.
        pod_hours: existence of pods.
        scale_ups, scale_downs: changes of the Deployment's replicas that Understudy owns.
        most_ready: pods at the peak.
        deepest_fall: ready pods below the most that had been ready before.
        decisions: recorded in the ledger.
        acted: decisions in which the actor had authority.
        overrun_ticks: left out because the one before was not done.
        handover_ticks: decisions made after the kill in which the actor still had authority.
        handover_s: from the kill to the first decision without authority; None where there was none.
        resumed: the actor had authority again after the resume.
    """

    seconds: float
    requests: float
    missed: float
    dropped: float
    pod_hours: float
    scale_ups: int
    scale_downs: int
    most_ready: int
    deepest_fall: int
    decisions: int
    acted: int
    overrun_ticks: int
    handover_ticks: int
    handover_s: float | None
    resumed: bool

    @property
    def served(self) -> float:
        """Requests that were answered, however late."""
        return self.requests - self.dropped

    @property
    def missed_share(self) -> float:
        """Share of the requests that missed the objective."""
        return self.missed / self.requests if self.requests else 0.0

    @property
    def actions_per_hour(self) -> float:
        """Changes of the replicas per hour of real time."""
        return 3600 * (self.scale_ups + self.scale_downs) / self.seconds if self.seconds else 0.0


def time_of(record: Record) -> float:
    """When a decision was made, Unix seconds."""
    return datetime.fromisoformat(record["time"]).timestamp()


def compute(samples: Sequence[Sample], ledger: Sequence[Record], drill: Drill, overrun_ticks: int) -> Figures:
    """The figures of a run.

    Args:
        samples: what really happened, oldest first, at least one.
        ledger: the policy's records, oldest first.
        drill: when the kill was.
        overrun_ticks: as the operator counts them.
    """
    first, last = samples[0], samples[-1]
    made = changes(samples, FIELD_MANAGER)
    highest = list(accumulate((sample.ready for sample in samples), max))
    after_kill = [record for record in ledger if time_of(record) > drill.killed_s]
    until_resume = [record for record in after_kill if time_of(record) <= drill.resumed_s]
    silent = [time_of(record) for record in until_resume if not _acting(record)]
    return Figures(
        seconds=last.time_s - first.time_s,
        requests=last.requests - first.requests,
        missed=last.violations - first.violations,
        dropped=last.dropped - first.dropped,
        pod_hours=(last.pod_seconds - first.pod_seconds) / 3600,
        scale_ups=sum(change > 0 for change in made),
        scale_downs=sum(change < 0 for change in made),
        most_ready=highest[-1],
        deepest_fall=max(peak - sample.ready for peak, sample in zip(highest, samples, strict=True)),
        decisions=len(ledger),
        acted=sum(map(_acting, ledger)),
        overrun_ticks=overrun_ticks,
        handover_ticks=sum(map(_acting, until_resume)),
        handover_s=silent[0] - drill.killed_s if silent else None,
        resumed=any(_acting(record) for record in after_kill[len(until_resume) :]),
    )


def shortcomings(figures: Figures, first_ready: int) -> list[str]:
    """Why this run has not shown a closed loop, one sentence each; empty where it has.

    Args:
        figures: of the run.
        first_ready: ready pods when the replay began.
    """
    checks = (
        (figures.acted == 0, "the actor never had authority: see the doubts in the ledger"),
        (figures.scale_ups == 0, f"field manager {FIELD_MANAGER} never raised the replicas"),
        (figures.scale_downs == 0, f"field manager {FIELD_MANAGER} never lowered the replicas"),
        (figures.most_ready <= first_ready, "no pod became ready beyond those of the start"),
        (figures.deepest_fall == 0, "no pod went away after a peak"),
        (figures.handover_s is None, "no decision after the kill was the reference's"),
        (
            figures.handover_ticks > HANDOVER_LIMIT_TICKS,
            f"the actor kept its authority for {figures.handover_ticks} decisions after the kill",
        ),
        (not figures.resumed, "the actor had no authority again after the resume"),
    )
    return [why for failed, why in checks if failed]


def _acting(record: Record) -> bool:
    return bool(record["authority"]["in_force"] > 0)
