"""Runs of the demo once more, in the simulator: same arrivals, same policy, same kill, other chance.

A run of the demo (real API server, controllers, Prometheus and operator; emulated pods) is one draw; the simulator
draws it many times. Twice it is asked: with the decision program in the loop, which tests everything at once, and
with the replicas that the operator really asked for, which tests the cluster model alone. Near saturation one run's
share of missed requests is mostly chance, so runs are pooled.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy_demo.emulator.fleet import LATENCY_EDGES_S
from understudy_demo.figures import time_of
from understudy_operator.actors import Actors
from understudy_policy import decision, settings
from understudy_policy.api import RLPolicySpec
from understudy_policy.artifact import ActorStore
from understudy_policy.guards.reasons import KillScope
from understudy_policy.signals import Samples
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.cluster import PROFILES, Draws, configure, initial, observe, step

RECORDING = Path(__file__).parent / "data" / "demo.json.gz"
PROFILE, DISPERSION = PROFILES["web"], 2.0
TICK_S, SUB_STEPS = 1.0, 4
"""The emulator computes its queue every quarter of a second."""

STARTUP_MEDIAN_S, STARTUP_SIGMA = 3.0, 0.4
TERMINATION_S = 0.1
CONTROL_S = 0.25
"""From the write of the replicas until the pods are bound: Deployment, ReplicaSet and kubelet one after the other."""
SCRAPE_AGE_S = 0.6
"""Age of what a query finds, as it fits best between the rates that the operator read and the requests that came."""
WINDOW_S = 4.0
UNKNOWN_TICKS = 2
"""A rate needs two samples."""
EDGES_RATIO = tuple(edge_s / PROFILE.latency_threshold_s for edge_s in (*LATENCY_EDGES_S, 20.0))
"""The emulator's latency buckets: how near they are to the threshold moves the p99 that the actor sees."""


@dataclass(frozen=True)
class Run:
    """What is kept of a run of the demo; lists are per tick, the warm-up included.

    Attributes:
        name: what the load was.
        spec: of the policy.
        model_sha256: of the actor.
        warmup: ticks before the replay began; the first of them before the operator came, at the replicas of the start.
        seconds: of the replay.
        requests: that arrived in the second that begins with the tick; before the replay, as many as expected.
        found, asked: replicas before and after the tick's decision.
        killed: scope of the kill.
        ready: pods that served at the tick.
        missed_share, mean_pods: of the replay, as the emulator counted.
    """

    name: str
    spec: dict[str, Any]
    model_sha256: str
    warmup: int
    seconds: float
    requests: list[float]
    found: list[int]
    asked: list[int]
    killed: list[int]
    ready: list[int]
    missed_share: float
    mean_pods: float

    @property
    def pod_hours(self) -> float:
        """Existence of pods within the replay."""
        return self.mean_pods * self.seconds / 3600


@dataclass(frozen=True)
class Simulated:
    """The same of every lane of the simulator, `[lanes]` and `[ticks, lanes]`."""

    pod_hours: np.ndarray
    missed_share: np.ndarray
    ready: np.ndarray


@dataclass(frozen=True)
class Pooled:
    """All runs together.

    Attributes:
        pod_hours, simulated_pod_hours: in all.
        missed_share, simulated_missed_share: of all requests, the latter on average.
        chance: standard deviation of the former, were the simulator right.
    """

    pod_hours: float
    simulated_pod_hours: float
    missed_share: float
    simulated_missed_share: float
    chance: float


def read(folder: Path, spec: RLPolicySpec, name: str) -> Run:
    """A run from what the demo has written."""
    with (folder / "samples.csv").open() as file:
        samples = [
            {k: v if k == "owner" else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]
    records = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    first, last = samples[0], samples[-1]
    records = [r for r in records if time_of(r) < last["time_s"] and r["current_replicas"] is not None]
    ticks_s = np.array([time_of(record) for record in records])
    sampled_s, counted = ([sample[name] for sample in samples] for name in ("time_s", "requests"))
    came = np.interp(ticks_s + TICK_S, sampled_s, counted) - np.interp(ticks_s, sampled_s, counted)
    came[ticks_s < first["time_s"]] = first["load_rps"] * TICK_S
    seconds = last["time_s"] - first["time_s"]
    warmup = int(np.sum(ticks_s < first["time_s"]))
    # The emulator had begun before, and what queued up in the meantime is part of the start.
    alone = max(0, round(first["requests"] / first["load_rps"] / TICK_S) - warmup)
    found = [r["current_replicas"] for r in records]
    return Run(
        name=name,
        spec=spec.model_dump(by_alias=True, exclude_none=True, mode="json"),
        model_sha256=next(r["model_sha256"] for r in records if r["model_sha256"]),
        warmup=alone + warmup,
        seconds=round(seconds, 3),
        requests=[first["load_rps"] * TICK_S] * alone + came.round(1).tolist(),
        found=found[:1] * alone + found,
        asked=found[:1] * alone + [r["desired_replicas"] for r in records],
        killed=[0] * alone + [int(KillScope[r["killed"].upper()]) for r in records],
        ready=found[:1] * alone + [r["ready_replicas"] for r in records],
        missed_share=(last["violations"] - first["violations"]) / (last["requests"] - first["requests"]),
        mean_pods=(last["pod_seconds"] - first["pod_seconds"]) / seconds,
    )


def save(runs: Sequence[Run], path: Path = RECORDING) -> None:
    """Write runs, the same bytes for the same content."""
    text = json.dumps([asdict(run) for run in runs], separators=(",", ":"), sort_keys=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path: Path = RECORDING) -> list[Run]:
    """Runs as `save` wrote them."""
    return [Run(**run) for run in json.loads(gzip.decompress(path.read_bytes()))]


def has_todays_actor(run: Run) -> bool:
    """Whether the actor that the run was recorded with is still the one that its policy names."""
    model = RLPolicySpec.model_validate(run.spec).model
    actor = ActorStore().get(model.uri, model.sha256)
    return actor is not None and actor.sha256 == run.model_sha256


def pool(runs: Sequence[Run], drawn: Sequence[Simulated]) -> Pooled:
    """Runs of the demo and what the simulator made of each."""
    weights = np.array([sum(run.requests[run.warmup :]) for run in runs])
    weights /= weights.sum()
    return Pooled(
        sum(run.pod_hours for run in runs),
        sum(float(lanes.pod_hours.mean()) for lanes in drawn),
        float(weights @ [run.missed_share for run in runs]),
        float(weights @ [lanes.missed_share.mean() for lanes in drawn]),
        float(np.sqrt(weights**2 @ [lanes.missed_share.var() for lanes in drawn])),
    )


def simulate(run: Run, lanes: int = 64, seed: int = 0, follow: bool = False) -> Simulated:
    """The run in the simulator.

    Args:
        run: of the demo.
        lanes: how often.
        seed: of arrivals, service and start-up.
        follow: take the replicas that the operator asked for, instead of deciding.
    """
    rng = np.random.default_rng(seed)
    config = configure(
        [PROFILE] * lanes,
        STARTUP_MEDIAN_S + CONTROL_S,
        STARTUP_SIGMA,
        tick_s=TICK_S,
        sub_steps=SUB_STEPS,
        termination_s=TERMINATION_S + CONTROL_S,
        metric_lag_s=SCRAPE_AGE_S,
        metric_window_s=WINDOW_S,
        latency_edges_ratio=EDGES_RATIO,
    )
    spec = RLPolicySpec.model_validate(run.spec)
    program = _Program(spec, lanes)
    replicas = np.full(lanes, float(run.found[0]))
    # The emulator has only just begun: Prometheus remembers nothing, and its rates rise as their window fills.
    state = initial(config, replicas, np.full(lanes, run.requests[0] / TICK_S))
    state = replace(state, scrapes=tuple(np.zeros_like(scrape) for scrape in state.scrapes))
    pod_seconds, missed, came = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
    ready = []
    for tick, requests in enumerate(run.requests):
        decided = replicas
        if tick >= UNKNOWN_TICKS:
            ready_now = state.schedule[:, 0]
            decided = program.decide(observe(config, state), replicas, ready_now, run.killed[tick], tick)
        # Before the replay begins the decision program only looks on: what counts is the same start.
        begun = tick >= run.warmup
        replicas = decided if begun and not follow else np.full(lanes, float(run.asked[tick]))
        arrivals = _arrivals(rng, requests, lanes, drawn=not begun)
        draws = Draws(rng.random(lanes), rng.standard_normal((lanes, SUB_STEPS)))
        ready.append(state.schedule[:, 0])
        state, outcome = step(config, state, replicas, arrivals, draws)
        if begun:
            pod_seconds += outcome.pod_seconds
            missed += outcome.violations
            came += outcome.arrivals
    counted_s = TICK_S * (len(run.requests) - run.warmup)
    return Simulated(pod_seconds / counted_s * run.seconds / 3600, missed / came, np.array(ready))


class _Program:
    """The operator's tick without the operator."""

    def __init__(self, spec: RLPolicySpec, lanes: int) -> None:
        self._specs = [spec] * lanes
        self._settings = settings.from_specs(self._specs, TICK_S)
        self._state = decision.initial_state(lanes)
        self._actors = Actors()

    def decide(
        self, signals: np.ndarray, replicas: np.ndarray, ready: np.ndarray, killed: int, tick: int
    ) -> np.ndarray:
        n = len(replicas)
        seen = decision.Seen(
            samples=Samples(signals, np.full(signals.shape, SCRAPE_AGE_S), np.zeros(signals.shape, np.int64)),
            replicas=replicas.astype(np.int64),
            ready=ready.astype(np.int64),
            authority=np.ones(n),
            override=np.full(n, -1, np.int64),
            killed=np.full(n, killed, np.int64),
            now_s=1e6 + tick * TICK_S,
        )
        state, observation = decision.observe(self._settings, self._state, seen)
        answers = self._actors.ask(self._specs, observation)
        self._state, made = decision.decide(self._settings, state, observation, answers.probabilities)
        return made.replicas.astype(np.float64)


def _arrivals(rng: np.random.Generator, requests: float, lanes: int, drawn: bool) -> np.ndarray:
    """By sub-step: as many in all as came to the demo, in clumps of our own."""
    expected = np.full((lanes, SUB_STEPS), requests / SUB_STEPS)
    found = draw_arrivals(rng, expected, DISPERSION)
    return found if drawn else found * requests / np.maximum(found.sum(axis=1, keepdims=True), 1.0)
