"""What every classical autoscaler has in common, so that the judge, the trainer and the twin run any of them alike.

A rule is a frozen dataclass whose array fields have one row per workload: its configuration. `initial` makes
its memory and `decide` is pure, so thousands of configurations are judged in one batch, and rows can be taken
out of a rule, or its memory, with `rows.take`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from understudy_policy.references.behavior import as_int
from understudy_policy.rows import Array, maximum, minimum, namespace

State = TypeVar("State")


@dataclass(frozen=True)
class RuleSignals:
    """What an autoscaler may see at a tick, one row per workload, as late and as smooth as its metrics are.

    Attributes:
        rate_rps: `[N]` request rate; NaN where the query came back empty.
        cpu_usage_cores: `[N]` cores in use, all ready pods together; NaN where unknown.
        cpu_request_cores: `[N]` CPU request of one pod; NaN where unknown.
        concurrency: `[N]` requests in flight, waiting or served, all pods together, mean of the last tick (by
            Little's law the answered rate times the mean latency); NaN where unknown.
        replicas: `[N]` int64, `spec.replicas` of the scale. Every created pod is in `status.replicas`, too.
        ready: `[N]` int64, ready pods.
        capacity_rps: `[N]` requests per second that one pod can serve.
        failed: `[N]` bool, the metrics server gave no answer at all; the metrics above are not looked at.
    """

    rate_rps: Array
    cpu_usage_cores: Array
    cpu_request_cores: Array
    concurrency: Array
    replicas: Array
    ready: Array
    capacity_rps: Array
    failed: Array


@dataclass(frozen=True, kw_only=True)
class Rule(ABC, Generic[State]):
    """A classical autoscaler for N workloads.

    Attributes:
        min_replicas, max_replicas: `[N]` int64 bounds of what it answers.
    """

    min_replicas: Array
    max_replicas: Array

    @abstractmethod
    def initial(self, seen: RuleSignals, now_s: float) -> State:
        """The memory before the first tick: nothing is known but the replicas that are there.

        Args:
            seen: the first tick's signals.
            now_s: the first tick's time, on any clock that does not run backwards.
        """

    @abstractmethod
    def decide(self, state: State, seen: RuleSignals, now_s: float) -> tuple[State, Array]:
        """One tick. The caller is taken to write what is answered.

        Args:
            state: as the tick before left it.
            seen: this tick's signals.
            now_s: this tick's time in seconds, a Python float shared by all rows.

        Returns:
            The new memory and the replicas to have from now on, int64 `[N]`.
        """

    def bounded(self, replicas: Array) -> Array:
        """Replicas within the bounds, int64 `[N]`; NaN, of which nothing follows, must be gone by now."""
        xp = namespace(replicas)
        return maximum(
            xp, minimum(xp, as_int(replicas), as_int(self.max_replicas)), as_int(self.min_replicas)
        )


def push(ring: Array, newest: Array) -> Array:
    """A ring `[N, K]` (or the clock of one, `[K]`) with its oldest column gone and a newest one at the end."""
    xp = namespace(ring)
    return xp.concat([ring[..., 1:], xp.astype(newest, ring.dtype, copy=False)[..., None]], axis=-1)


def whole_ticks(longest_s: float, tick_s: float) -> int:
    """Columns of a ring that must reach back so far, one to spare for ticks that come a little early."""
    return int(longest_s // tick_s) + 1
