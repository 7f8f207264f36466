"""All workloads and their pods as arrays: one step of real time moves every queue and every counter.

The queue is the simulator's own, so what the operator is shown here is what its actor was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from understudy_demo.emulator.workload import Rate, Workload
from understudy_simulator.arrivals import draw_arrivals
from understudy_simulator.service import Service, mean_latency_s, serve, share_over

LATENCY_EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BUCKETS = len(LATENCY_EDGES_S)
OK, FAILED, LATENCY_SUM, CPU = BUCKETS, BUCKETS + 1, BUCKETS + 2, BUCKETS + 3
COUNTERS = BUCKETS + 4
"""Columns of a pod's counters: requests at or under each latency edge, then these."""

Counters = NDArray[np.float64]

_GOLDEN_RATIO = 0.618033988749895
"""Its multiples, modulo 1, spread evenly over 0 to 1, however many there are."""


class Fault(StrEnum):
    """What may be wrong with the metrics of a workload; its requests are served all the same."""

    FREEZE = "freeze"
    """The counters stand still."""
    DROP = "drop"
    """The series are gone."""
    NAN = "nan"
    INF = "inf"
    BOGUS = "bogus"
    """Every value is 10^12."""


@dataclass
class Pod:
    """One pod, from the moment it is known to its deletion.

    Attributes:
        workload: index of its workload.
        serving: ready, and not being deleted.
        row: its row among the counters; None until it has been ready once.
    """

    workload: int
    serving: bool
    row: int | None = None


@dataclass
class Truth:
    """What really happened to every workload since the start, each `[W]`; no fault touches it.

    Attributes:
        requests: that arrived.
        violations: over the latency threshold, or dropped.
        dropped: timed out, or found no pod.
        pod_seconds: existence of pods.
        load_rps: the rate that requests arrive at, now.
    """

    requests: Counters
    violations: Counters
    dropped: Counters
    pod_seconds: Counters
    load_rps: Counters


@dataclass
class Fleet:
    """The state of the emulation.

    Attributes:
        workloads: what is emulated; fixed.
        seed: of the arrivals.
        pods: by (namespace, name).
        counters: `[P, COUNTERS]`, a row for every pod that has been ready.
        totals: `[W, COUNTERS]`, what all pods of a workload counted, also those that are gone.
        owner: `[P]` index of each row's workload.
        faults: by index of the workload.
        changed: whether rows came or went, or faults changed, since the reader last reset it.
    """

    workloads: Sequence[Workload]
    seed: int = 0
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    counters: Counters = field(default_factory=lambda: np.zeros((0, COUNTERS)))
    owner: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    faults: dict[int, Fault] = field(default_factory=dict)
    changed: bool = True

    def __post_init__(self) -> None:
        def column(values: Iterable[float]) -> Counters:
            return np.array(list(values), dtype=np.float64)

        profiles = [w.profile for w in self.workloads]
        self.index = {(w.namespace, w.name): k for k, w in enumerate(self.workloads)}
        if len(self.index) < len(self.workloads):
            raise ValueError("two workloads have the same namespace and name; give each its own.")
        self.rates: list[Rate] = [w.rate for w in self.workloads]
        self.service = Service(
            capacity_rps=column(p.capacity_rps for p in profiles),
            service_s=column(p.service_s for p in profiles),
            service_cv=column(p.service_cv for p in profiles),
            timeout_s=column(p.timeout_s for p in profiles),
        )
        self.cpu_request_cores = column(w.cpu_request_cores for w in self.workloads)
        self._dispersion = column(w.dispersion for w in self.workloads)
        edges = np.broadcast_to(LATENCY_EDGES_S, (len(profiles), BUCKETS))
        threshold = column(p.latency_threshold_s for p in profiles)
        self._edges_s = np.concatenate([edges, threshold[:, None]], axis=1)
        self._timed_out_within = edges >= self.service.timeout_s[:, None]
        self._rng = np.random.default_rng(self.seed)
        self._backlog = np.zeros(len(profiles))
        self._serving = np.zeros(0, bool)
        self._existing = np.zeros(len(profiles))
        self._moved = False
        self._phase = 0.0
        self.totals = np.zeros((len(profiles), COUNTERS))
        self.truth = Truth(*(np.zeros(len(profiles)) for _ in range(5)))

    def set_pod(self, namespace: str, name: str, workload: str, serving: bool) -> None:
        """Take note of a pod as it is now; pods of workloads that are not emulated are ignored."""
        index = self.index.get((namespace, workload))
        if index is None:
            return
        pod = self.pods.setdefault((namespace, name), Pod(index, False))
        pod.serving = serving
        self._moved = True

    def remove_pod(self, namespace: str, name: str) -> None:
        """Forget a pod; its series end."""
        self._moved |= self.pods.pop((namespace, name), None) is not None

    def keep_pods(self, known: set[tuple[str, str]]) -> None:
        """Forget every pod that is not among (namespace, name)."""
        for key in self.pods.keys() - known:
            self.remove_pod(*key)

    def ready(self) -> NDArray[np.int64]:
        """Pods that serve, `[W]`."""
        self._settle()
        return np.bincount(self.owner[self._serving], minlength=len(self.workloads))

    def set_fault(self, namespace: str, workload: str, fault: Fault | None) -> None:
        """Break a workload's metrics, or mend them with None. Raises KeyError for an unknown workload."""
        index = self.index[(namespace, workload)]
        self.faults.pop(index, None)
        if fault is not None:
            self.faults[index] = fault
        self.changed = True

    def advance(self, time_s: float, dt_s: float) -> None:
        """Let `dt_s` seconds pass, at `time_s` seconds since the start."""
        ready = self.ready().astype(np.float64)
        count = len(self.workloads)
        load_rps = np.fromiter((rate(time_s) for rate in self.rates), np.float64, count)
        arrivals = draw_arrivals(self._rng, load_rps * dt_s, self._dispersion)
        normals = self._rng.standard_normal(count)
        self._backlog, flow = serve(self.service, self._backlog, arrivals, ready, normals, dt_s)
        over = share_over(self.service, flow, self._edges_s)

        self.truth.requests += arrivals
        self.truth.violations += flow.dropped + over[:, -1] * flow.admitted
        self.truth.dropped += flow.dropped
        self.truth.pod_seconds += self._existing * dt_s
        self.truth.load_rps = load_rps

        happened = np.empty((count, COUNTERS))
        happened[:, :BUCKETS] = (1.0 - over[:, :-1]) * flow.served[:, None]
        happened[:, :BUCKETS] += self._timed_out_within * flow.dropped[:, None]
        happened[:, OK], happened[:, FAILED] = flow.served, flow.dropped
        latency_s = mean_latency_s(self.service, flow)
        happened[:, LATENCY_SUM] = latency_s * flow.served + self.service.timeout_s * flow.dropped
        happened[:, CPU] = flow.utilization * ready * self.cpu_request_cores * dt_s
        frozen = [k for k, fault in self.faults.items() if fault is Fault.FREEZE]
        happened[frozen] = 0.0
        self.totals += happened
        per_pod = happened / np.maximum(ready, 1.0)[:, None]
        failed_before = self.counters[:, FAILED] >= 1.0
        self.counters += per_pod[self.owner] * self._serving[:, None]
        # A client library shows a status code from its first request on, not before.
        self.changed |= bool(np.any((self.counters[:, FAILED] >= 1.0) != failed_before))

    def _settle(self) -> None:
        """Give rows to the pods that became ready and take them from those that are gone."""
        if not self._moved:
            return
        self._moved = False
        # A pod has a row from the first time it serves; it keeps it while it is not ready or terminating.
        kept = [pod for pod in self.pods.values() if pod.row is not None or pod.serving]
        counters = np.zeros((len(kept), COUNTERS))
        for row, pod in enumerate(kept):
            if pod.row is not None:
                counters[row] = self.counters[pod.row]
            else:
                # Whole requests are shown, and pods share the load evenly: without a phase of its own each pod would
                # show its next slow request at the same moment as all the others, and p99 would jump.
                self._phase = (self._phase + _GOLDEN_RATIO) % 1.0
                counters[row] = self._phase
                counters[row, FAILED] = 0.0  # added to the others, so it must not shift them
            pod.row = row
        self.counters = counters
        self.owner = np.array([pod.workload for pod in kept], dtype=np.int64)
        self._serving = np.array([pod.serving for pod in kept], dtype=bool)
        existing = np.array([pod.workload for pod in self.pods.values()], dtype=np.int64)
        self._existing = np.bincount(existing, minlength=len(self.workloads)).astype(np.float64)
        self.changed = True
