"""The fleet as Prometheus text, under the names that exporters and kube-prometheus really use.

A fleet of 500 workloads with 4 pods each is some 35,000 series, scraped every half second. The text is
therefore a template that is built when pods come or go, and filled in one formatting operation at every
scrape.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from understudy_demo.emulator.fleet import (
    BUCKETS,
    CPU,
    FAILED,
    LATENCY_EDGES_S,
    LATENCY_SUM,
    OK,
    Counters,
    Fault,
    Fleet,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BROKEN = {Fault.NAN: np.nan, Fault.INF: np.inf, Fault.BOGUS: 1e12}
_LES = (*(f"{edge:g}" for edge in LATENCY_EDGES_S), "+Inf")
_VALUE = "%.15g"


class Exposition:
    """Writes the metrics of one fleet.

    Attributes:
        fleet: whose metrics.
        latency_per_pod: latency histograms per pod, as exporters have them; else one per workload, as an
        ingress
            has it, which makes the text of a big fleet a third as long.
    """

    def __init__(self, fleet: Fleet, latency_per_pod: bool = True) -> None:
        self.fleet = fleet
        self.latency_per_pod = latency_per_pod
        self._template = ""

    def render(self) -> bytes:
        """The text of one scrape."""
        self.fleet.ready()  # pods that came or went have their rows from here on
        if self.fleet.changed:
            self._build()
            self.fleet.changed = False
        return (self._template % tuple(self._values())).encode()

    def _build(self) -> None:
        """Write the template, and remember which rows its values come from, in the same order."""
        fleet = self.fleet
        dropped = [k for k, fault in fleet.faults.items() if fault is Fault.DROP]
        names = {pod.row: name for (_, name), pod in fleet.pods.items() if pod.row is not None}
        self._rows = np.flatnonzero(~np.isin(fleet.owner, dropped))
        self._failing = self._rows[fleet.counters[self._rows, FAILED] >= 1.0]
        self._shown = np.setdiff1d(np.arange(len(fleet.workloads)), dropped)
        service = [f'namespace="{w.namespace}",service="{w.name}"' for w in fleet.workloads]
        pod = {int(row): f'{service[fleet.owner[row]]},pod="{names[int(row)]}"' for row in self._rows}
        container = {
            int(row): f'namespace="{fleet.workloads[fleet.owner[row]].namespace}",pod="{names[int(row)]}"'
            for row in self._rows
        }
        histograms = pod.values() if self.latency_per_pod else [service[k] for k in self._shown]
        owners = [
            f'{container[int(row)]},workload="{fleet.workloads[fleet.owner[row]].name}",workload_type="deployment"'
            for row in self._rows
        ]
        codes = [f'{labels},code="200"' for labels in pod.values()]
        codes += [f'{pod[int(row)]},code="504"' for row in self._failing]
        lines = [
            *_family("http_requests_total", "counter", codes),
            *_histogram("http_request_duration_seconds", histograms),
            *_family(
                "container_cpu_usage_seconds_total",
                "counter",
                (f'{labels},container="app"' for labels in container.values()),
            ),
            *_family(
                "kube_pod_container_resource_requests",
                "gauge",
                (f'{labels},container="app",resource="cpu",unit="core"' for labels in container.values()),
            ),
            *_family("namespace_workload_pod:kube_pod_owner:relabel", "gauge", owners, value="1"),
        ]
        truth = [f'namespace="{w.namespace}",workload="{w.name}"' for w in fleet.workloads]
        for name in ("requests", "violations", "dropped", "pod_seconds"):
            lines += _family(f"emulator_{name}_total", "counter", truth)
        lines += _family("emulator_load_rps", "gauge", truth)
        self._template = "\n".join(lines) + "\n"

    def _values(self) -> list[float]:
        """The numbers of the template, in its order."""
        fleet, rows = self.fleet, self._rows
        if self.latency_per_pod:
            counted, counted_by = fleet.counters[rows], fleet.owner[rows]
        else:
            counted, counted_by = fleet.totals[self._shown], self._shown
        everything = np.floor(counted[:, OK] + counted[:, FAILED])[:, None]
        histogram = [np.floor(counted[:, :BUCKETS]), everything, counted[:, [LATENCY_SUM]], everything]
        owner, truth = fleet.owner[rows], fleet.truth
        parts = [
            self._broken(np.floor(fleet.counters[rows, OK]), owner),
            self._broken(np.floor(fleet.counters[self._failing, FAILED]), fleet.owner[self._failing]),
            self._broken(np.concatenate(histogram, axis=1), counted_by).ravel(),
            self._broken(fleet.counters[rows, CPU], owner),
            self._broken(fleet.cpu_request_cores[owner], owner),
            truth.requests,
            truth.violations,
            truth.dropped,
            truth.pod_seconds,
            truth.load_rps,
        ]
        values: list[float] = np.concatenate(parts).tolist()
        return values

    def _broken(self, values: Counters, owner: NDArray[np.int64]) -> Counters:
        """The values with those of broken workloads replaced."""
        for workload, fault in self.fleet.faults.items():
            if fault in _BROKEN:
                values[owner == workload] = _BROKEN[fault]
        return values


def _family(name: str, kind: str, labels: Iterable[str], value: str = _VALUE) -> list[str]:
    return [f"# TYPE {name} {kind}", *(f"{name}{{{inside}}} {value}" for inside in labels)]


def _histogram(name: str, labels: Iterable[str]) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    for inside in labels:
        lines += [f'{name}_bucket{{{inside},le="{le}"}} {_VALUE}' for le in _LES]
        lines += [f"{name}_sum{{{inside}}} {_VALUE}", f"{name}_count{{{inside}}} {_VALUE}"]
    return lines
