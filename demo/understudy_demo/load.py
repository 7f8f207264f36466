"""What the workload has to bear: a recording, replayed fast, or a generated load that says that it is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy_simulator.traces import Trace, load_trace, rate_curve, scale_to_pods

FASTEST_READABLE = 60.0
"""Trace seconds per second: a minute a second, the pace at which a person can still follow a table."""

MEAN_PODS = 12.0
CROWD_RISE_S = 24.0
"""A generated crowd takes so long to arrive, real time: eight start-ups of a pod, however short the run."""

HIGHEST_SHARE = 0.6
"""The peak may fill so much of what maxReplicas pods can serve: the demo shows scaling, not a limit."""


@dataclass(frozen=True)
class Load:
    """Request rates for the demo's run.

    Attributes:
        label: what this load is, in words, for table and report.
        recorded: False where it was generated.
        compression: trace seconds that pass in one second.
        trace: requests per second, scaled, over trace time.
    """

    label: str
    recorded: bool
    compression: float
    trace: Trace


def make_load(
    trace: Path | None,
    column: str | None,
    *,
    seconds: int,
    capacity_rps: float,
    max_replicas: int,
    seed: int,
) -> Load:
    """Cut, compress and scale a load for one run.

    Args:
        trace: a recording; None for generated flash crowds.
        column: of the recording, where it has several.
        seconds: length of the run.
        capacity_rps: requests per second that one pod serves.
        max_replicas: bound of the policy.
        seed: of the generated load.

    Raises:
        TraceError: the recording must not be replayed as it is.
    """
    if trace is None:
        shape = _flash_crowds(seconds, seed)
        label = f"generated load (two flash crowds, seed {seed}), not a recording"
    else:
        shape = rate_curve(load_trace(trace, column))
        label = f"recorded load: {shape.name}"
    compression = max(FASTEST_READABLE, shape.step_s)
    window = around_the_peak(shape, seconds * compression)
    if trace is not None:
        hours = window.timestamp_s[-1] / 3600
        label += f", the {hours:.1f} h around its busiest time, one trace-minute in {60 / compression:.2g} s"
    peak_over_mean = float(window.requests_per_second.max() / window.requests_per_second.mean())
    pods = min(MEAN_PODS, HIGHEST_SHARE * max_replicas / peak_over_mean)
    return Load(label, trace is not None, compression, scale_to_pods(window, pods, capacity_rps))


def around_the_peak(trace: Trace, duration_s: float) -> Trace:
    """The busiest half of `duration_s` with a quarter before and a quarter after: load that rises and falls."""
    rates = trace.requests_per_second
    samples = min(len(rates), max(4, round(duration_s / trace.step_s)))
    half = samples // 2
    total = np.concatenate([[0.0], np.cumsum(rates)])
    busiest = int(np.argmax(total[half:] - total[:-half]))
    start = int(np.clip(busiest - (samples - half) // 2, 0, len(rates) - samples))
    part = slice(start, start + samples)
    return Trace(trace.name, trace.timestamp_s[:samples], rates[part])


def _flash_crowds(seconds: int, seed: int) -> Trace:
    """Two flash crowds, the smaller one while the drill has killed the actor, with jitter, sampled once a minute."""
    share = np.linspace(0.0, 1.0, seconds + 1)
    rates, rise = np.ones_like(share), CROWD_RISE_S / seconds
    for at, height, decay in ((0.08, 1.4, 0.07), (0.57, 0.9, 0.06)):
        since = share - at
        rates += height * np.clip(since / rise, 0.0, 1.0) * np.exp(-np.maximum(since - rise, 0.0) / decay)
    rates *= np.random.default_rng(seed).lognormal(0.0, 0.05, len(share))
    return Trace("flash crowds", FASTEST_READABLE * np.arange(len(share), dtype=np.float64), rates)
