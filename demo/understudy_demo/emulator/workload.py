"""What is emulated: which Deployment, what kind of service, and how much load at which moment.

Only the load is replayed faster than it was recorded. Requests, queues, pods and metrics run in real time, so
that the operator under test needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy_simulator.cluster import PROFILES, Profile
from understudy_simulator.generators import generate
from understudy_simulator.traces import Trace, load_trace

Rate = Callable[[float], float]
"""Requests per second, given the seconds since the emulator started."""

GENERATED = "generated://"


@dataclass(frozen=True)
class Workload:
    """A service whose pods carry the label `app=<name>`.

    Attributes:
        namespace: where its pods are.
        name: of the Deployment, the service and the label.
        rate: its load.
        profile: capacity of a pod, service time and latency threshold.
        dispersion: variance over mean of the arrivals in a step; 1 is Poisson.
        cpu_request_cores: CPU request of one pod; a fully busy pod uses exactly that.
    """

    namespace: str
    name: str
    rate: Rate
    profile: Profile = PROFILES["web"]
    dispersion: float = 2.0
    cpu_request_cores: float = 1.0


def open_load(source: str, duration_s: float, seed: int = 0, column: str | None = None) -> Trace:
    """A trace from a file, or a generated load that says so in its name.

    Args:
        source: path of a trace, or `generated://FAMILY` (say `generated://flash`) of mean 1 request per
        second.
        duration_s: length of a generated load.
        seed: of a generated load.
        column: of a trace file with several columns of rates.
    """
    if not source.startswith(GENERATED):
        return load_trace(Path(source), column)
    step_s = max(1.0, duration_s / 20_000)
    rates = generate(source.removeprefix(GENERATED), duration_s, step_s, np.random.default_rng(seed), count=1)
    return Trace(source, step_s * np.arange(rates.shape[1], dtype=np.float64), rates[0])


def replay(trace: Trace, compression: float = 1.0, offset_s: float = 0.0) -> Rate:
    """The load of a trace, `compression` times as fast as it was recorded; at its end the last rate stays.

    Args:
        trace: scaled as wanted (see `scale_to_pods`).
        compression: seconds of the trace per second of real time.
        offset_s: where in the trace to begin.
    """
    return lambda time_s: trace.rate_at(offset_s + compression * time_s)
