"""Time and memory of one tick, compute only, as the number of policies grows.

    python benchmarks/tick.py --json tick.json

Every size runs in a process of its own, on one thread, with the rings of an hour and of a week full. Timed is
what the operator computes for all its policies: first the decision program alone (observe, the built-in actor,
decide), then what is left of a tick afterwards (ledger, metrics, status). Telemetry and the API server are not in it:
see fleet.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import SINGLE_THREAD, machine

from understudy_operator.actors import Actors
from understudy_operator.cohort import Cohort
from understudy_operator.events import EventRecorder
from understudy_operator.killswitch import KillState
from understudy_operator.ledger import DecidedTick, Ledger, LedgerConfig
from understudy_operator.metrics import Metrics
from understudy_operator.recorder import Decisions, Recorder
from understudy_operator.scaling import ScaleView
from understudy_operator.status import StatusWriter
from understudy_operator.store import PolicyStore
from understudy_operator.tick import Finished, View
from understudy_policy import decision as program
from understudy_policy.history import BLOCKS, TICKS
from understudy_policy.signals import Samples, Signal

TICK_S = 15.0
WARM_UP_TICKS = 8
CAPACITY_RPS = 25.0
SIZES = (1, 100, 1_000, 10_000)
AIM_POLICIES, AIM_SECONDS, AIM_MIB = 10_000, 0.25, 400.0


class Fleet:
    """N policies whose load wanders; the cluster does at once what is decided."""

    def __init__(self, n: int) -> None:
        self.store = PolicyStore()
        for i in range(n):
            self.store.on_event("ADDED", _policy(i))
        self.store.synced = True
        self.cohort = Cohort(TICK_S)
        self.cohort.sync(self.store.snapshot())
        self._random = np.random.default_rng(0)
        self._rate_rps = self._random.lognormal(5.0, 1.0, n)
        self._replicas = np.maximum(np.ceil(self._rate_rps / CAPACITY_RPS / 0.7), 2).astype(np.int64)
        self._actors = Actors()
        self._now_s = 1.8e9
        self._ticks = 0
        self._fill_rings()

    def tick(self) -> tuple[Finished, float, float]:
        """One tick: what came of it, and the CPU and wall-clock seconds of the decision program."""
        cohort, seen = self.cohort, self._see()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        state, observation = program.observe(cohort.settings, cohort.state, seen)
        answers = self._actors.ask(cohort.specs, observation)
        cohort.state, made = program.decide(cohort.settings, state, observation, answers.probabilities)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        self._replicas = made.replicas
        n = len(cohort.records)
        decided = DecidedTick(
            tick_id=self._ticks,
            time_s=self._now_s,
            policies=cohort.records,
            model_sha256=[None if actor is None else actor.sha256 for actor in answers.actors],
            settings=cohort.settings,
            state=cohort.state,
            decision=made,
            writes=[None] * n,
        )
        clear = KillState()
        view = View(
            scales=[ScaleView(r, r, r, "1", "uid") for r in seen.replicas.tolist()],
            target_problems={},
            conflicts={},
            kills={record.key: clear for record in cohort.records},
            telemetry_problems=(),
        )
        return Finished(decided, cohort.specs, view, answers, [None] * n, 0.0), cpu_s, wall_s

    def _see(self) -> program.Seen:
        self._ticks += 1
        self._now_s += TICK_S
        n = len(self._rate_rps)
        self._rate_rps *= self._random.lognormal(0.0, 0.03, n)
        values = np.empty((n, len(Signal)))
        values[:, Signal.REQUEST_RATE] = self._rate_rps
        values[:, Signal.LATENCY] = 0.1
        values[:, Signal.ERROR_RATE] = 0.0
        values[:, Signal.CPU_USAGE] = self._rate_rps / CAPACITY_RPS
        values[:, Signal.CPU_REQUEST] = 1.0
        values[:, Signal.MISS_RATE] = 0.001
        return program.Seen(
            samples=Samples(values, np.full(values.shape, 1.0), np.zeros(values.shape, np.int64)),
            replicas=self._replicas,
            ready=self._replicas,
            authority=np.ones(n),
            override=np.full(n, -1, np.int64),
            killed=np.zeros(n, np.int64),
            now_s=self._now_s,
        )

    def _fill_rings(self) -> None:
        history, state = self.cohort.state.history, self.cohort.state
        for _ in range(TICKS):
            self._now_s += TICK_S
            history.advance(
                self._now_s, self._rate_rps * self._random.lognormal(0.0, 0.1, len(self._rate_rps))
            )
            for ring in (history.recommendation, history.reference_recommendation):
                ring[:, history.head] = self._replicas
        history.blocks[:] = self._rate_rps[:, None]
        history.block_head = BLOCKS - 1
        state.ticks_seen[:] = TICKS
        state.replicas[:] = self._replicas


class Nowhere:
    """An API server that takes everything at once: writing is not what is measured here."""

    async def patch(self, path: str, body: Any) -> dict[str, Any]:
        """Take a patch of a status, and answer with as much of the policy as anybody looks at."""
        return {"metadata": {"uid": path.split("/")[-2]}}

    async def create(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        """Take an object."""
        return {}


def measure(n: int, ticks: int) -> dict[str, float]:
    """Medians over so many ticks of n policies, in this process."""
    fleet = Fleet(n)
    for _ in range(WARM_UP_TICKS):
        fleet.tick()
    gc.collect()
    gc.freeze()  # as a long-running process: what is there by now stays
    decided = [fleet.tick()[1:] for _ in range(ticks)]
    peak_mib = _peak_mib()
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as folder:
        recorded = asyncio.run(_record(fleet, ticks, Path(folder)))
    decide_s, wall_s = (statistics.median(column) for column in zip(*decided, strict=True))
    return {
        "seconds": decide_s,
        "wall_seconds": wall_s,
        "decide_seconds": decide_s,
        "record_seconds": statistics.median(recorded),
        "rss_mib": peak_mib,
        "rss_with_records_mib": _peak_mib(),
    }


async def _record(fleet: Fleet, ticks: int, folder: Path) -> list[float]:
    """CPU seconds per tick of everything that the operator does after a decision, the ledger's thread included."""
    metrics, decisions, nowhere = Metrics(), Decisions(), Nowhere()
    events = EventRecorder(nowhere, lambda _: None)
    status = StatusWriter(nowhere, events, decisions.last, lambda _: None)
    seconds = []
    for _ in range(WARM_UP_TICKS + ticks):
        finished, _, _ = fleet.tick()
        ledger = Ledger(LedgerConfig(folder / "ledger.jsonl"), lambda _: None)
        recorder = Recorder(fleet.store, decisions, ledger, metrics, status, events)
        began_s = time.process_time()
        await recorder.record(finished)
        await asyncio.to_thread(ledger.close, 60.0)
        seconds.append(time.process_time() - began_s)
    return seconds[WARM_UP_TICKS:]


def _peak_mib() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


def _policy(i: int) -> dict[str, Any]:
    name = f"service-{i:05d}"
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "RLPolicy",
        "metadata": {
            "name": name,
            "namespace": f"team-{i % 50}",
            "uid": name,
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "owner": "team-benchmark",
            "scaleTargetRef": {"name": name},
            "minReplicas": 2,
            "maxReplicas": 200,
            "mode": "Active",
            "objective": {"latencyThreshold": "250ms", "capacityPerPod": int(CAPACITY_RPS)},
            "reference": {"signal": "requestRate"},
        },
    }


def _in_a_process_of_its_own(n: int, ticks: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(n), "--ticks", str(ticks)]
    done = subprocess.run(
        command, env=os.environ | SINGLE_THREAD, stdout=subprocess.PIPE, check=True, text=True, timeout=540
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of policies")
    parser.add_argument("--ticks", type=int, default=15, help="ticks that a median is taken of")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.ticks)))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    facts = machine()
    print(
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load_average_1min']}; CPU time of one thread"
    )
    print(
        f"{'policies':>9} {'decide':>11} {'per policy':>11} {'and record':>11} {'RSS':>9} {'with records':>13}"
    )
    policies = {}
    for size in sizes:
        figures = policies[str(size)] = _in_a_process_of_its_own(size, arguments.ticks)
        print(
            f"{size:>9,} {figures['seconds'] * 1e3:>8.2f} ms {figures['seconds'] / size * 1e6:>8.1f} µs "
            f"{figures['record_seconds'] * 1e3:>8.2f} ms {figures['rss_mib']:>5.0f} MiB "
            f"{figures['rss_with_records_mib']:>9.0f} MiB",
            flush=True,
        )
    summary: dict[str, Any] = {"policies": policies, "machine": facts}
    if len(sizes) > 1:
        small, large = sorted(sizes)[-2:]
        growth = (policies[str(large)]["seconds"] / large) / (policies[str(small)]["seconds"] / small)
        summary["growth_ratio"] = growth
        print(f"time per policy at {large:,} over that at {small:,}: {growth:.2f} (1 is linear growth)")
    if (aimed := policies.get(str(AIM_POLICIES))) is not None:
        print(
            f"aim at {AIM_POLICIES:,}: {aimed['seconds'] / AIM_SECONDS:.2f} × {AIM_SECONDS * 1e3:.0f} ms, "
            f"{aimed['rss_mib'] / AIM_MIB:.2f} × {AIM_MIB:.0f} MiB"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
