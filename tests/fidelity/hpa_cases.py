"""What the real HPA is asked: autoscalers of every kind, and a seeded past for each of them.

A workload's situations are drawn in advance, but what its pods report depends on how many replicas the controller
has asked for: the loop is closed, as in a cluster. A decision falls every 6 s, and windows and periods are odd
multiples of 3 s, so that no age of a recommendation or an event comes nearer than 3 s to a window's end: on which
side of it an event lies does not depend on how busy the machine was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STEP_S = 6.0
DEFAULT_STABILIZATION_S = 27
WINDOWS_S = (3, 9, 15, 27, 45)

EXTERNAL_AVERAGE, EXTERNAL_VALUE, CPU_UTILIZATION, CPU_AVERAGE = (
    "average",
    "value",
    "utilization",
    "cpu-average",
)
KINDS = (
    ((EXTERNAL_AVERAGE,), 26),
    ((EXTERNAL_VALUE,), 8),
    ((CPU_UTILIZATION,), 12),
    ((CPU_AVERAGE,), 6),
    ((EXTERNAL_AVERAGE, CPU_UTILIZATION), 8),
)
"""The metrics of an autoscaler, and how many autoscalers have them."""

POOL = {"ready": 10, "pending": 8, "unready": 5, "broken": 2, "failed": 1}
"""The pods that exist of every workload; its selector picks those that are its own at the moment.

`unready` pods have never been ready; `broken` ones were, long ago, and still count for the CPU, but not for
`Value`; `failed` ones count nowhere.
"""


@dataclass
class Situation:
    """All that the controller may learn at one decision."""

    replicas: int
    status_replicas: int
    external_milli: list[int]
    pods: dict[str, int | None]
    """Every selected pod, such as `ready-3`, with its CPU usage, or None where it has no metric."""


@dataclass
class Case:
    """One autoscaler and what happens to its workload."""

    name: str
    metrics: tuple[str, ...]
    spec: dict[str, Any]
    request_milli: int
    seed: int
    replicas: int = field(init=False)
    _born: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._tick = 0
        self._demand = _demand(self._random, self.spec["maxReplicas"])
        self.replicas = int(self._random.integers(self.spec["minReplicas"], self.spec["maxReplicas"] + 1))
        self._born = [-100] * self.replicas

    @property
    def needs_pods(self) -> bool:
        return self.metrics != (EXTERNAL_AVERAGE,)

    def next(self) -> Situation:
        """The situation at the next decision."""
        random, self._tick = self._random, self._tick + 1
        demand = self._demand[self._tick % len(self._demand)]
        if random.random() < 0.01:  # someone else sets the replicas, at times out of bounds
            self.replicas = int(random.integers(0, self.spec["maxReplicas"] + 4))
        elif self.replicas == 0 and random.random() < 0.5:
            self.replicas = 1
        self._born = self._born[: self.replicas]
        self._born += [self._tick] * (self.replicas - len(self._born))
        lagging = (
            self.replicas if random.random() < 0.7 else max(0, self.replicas + int(random.integers(-2, 3)))
        )
        silent = random.random() < 0.04
        pods = self._pods(demand) if self.needs_pods else {}
        return Situation(
            replicas=self.replicas,
            status_replicas=lagging,
            external_milli=[] if silent else self._series(demand),
            pods=dict.fromkeys(pods) if random.random() < 0.03 else pods,
        )

    def _series(self, demand: float) -> list[int]:
        total = round(1000 * demand * (10 if EXTERNAL_AVERAGE in self.metrics else 1))
        if EXTERNAL_VALUE in self.metrics:  # such a metric is an average already: a wait, a share
            total = round(1000 * 10 * demand / max(1, self.replicas))
        first = int(self._random.integers(0, total + 1))
        return [total] if self._random.random() < 0.5 else [first, total - first]

    def _pods(self, demand: float) -> dict[str, int | None]:
        """New pods are pending, then not ready, then without a metric, then ready."""
        random, pods, free = self._random, {}, dict(POOL)
        usage = self.request_milli * min(1.2, demand / max(1, self.replicas))
        for born in self._born:
            age = self._tick - born
            group = "pending" if age < 2 else "unready" if age < 4 else "ready"
            if group == "ready" and random.random() < 0.02:
                group = str(random.choice(["unready", "broken", "failed"]))
            if not free[group]:
                group = "ready" if free["ready"] else "pending"
            if not free[group]:
                continue
            free[group] -= 1
            measured = age >= 5 and random.random() > 0.03
            pods[f"{group}-{free[group]}"] = round(usage * random.uniform(0.7, 1.3)) if measured else None
        return pods


def cases(seed: int = 0) -> list[Case]:
    """The autoscalers, always the same for a seed."""
    random = np.random.default_rng(seed)
    kinds = [metrics for metrics, count in KINDS for _ in range(count)]
    return [_case(random, f"h{i:02d}", metrics) for i, metrics in enumerate(kinds)]


def _case(random: np.random.Generator, name: str, metrics: tuple[str, ...]) -> Case:
    request_milli = int(random.choice([250, 500, 1000]))
    many = metrics == (EXTERNAL_AVERAGE,)
    spec: dict[str, Any] = {
        "minReplicas": int(random.integers(1, 4)),
        "maxReplicas": int(random.integers(8, 40 if many else 11)),
        "metrics": [_metric(random, kind, name, request_milli) for kind in metrics],
    }
    if random.random() < 0.75:
        spec["behavior"] = _behavior(random)
    return Case(name, metrics, spec, request_milli, int(random.integers(2**32)))


def _metric(random: np.random.Generator, kind: str, name: str, request_milli: int) -> dict[str, Any]:
    if kind in (EXTERNAL_AVERAGE, EXTERNAL_VALUE):
        target = {"type": "AverageValue", "averageValue": f"{int(random.integers(7000, 13000))}m"}
        if kind == EXTERNAL_VALUE:
            target = {"type": "Value", "value": f"{int(random.integers(6000, 11000))}m"}
        metric = {"name": "load", "selector": {"matchLabels": {"app": name}}}
        return {"type": "External", "external": {"metric": metric, "target": target}}
    target = {"type": "AverageValue", "averageValue": f"{round(request_milli * random.uniform(0.4, 0.9))}m"}
    if kind == CPU_UTILIZATION:
        target = {"type": "Utilization", "averageUtilization": int(random.integers(40, 95))}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def _behavior(random: np.random.Generator) -> dict[str, Any]:
    longest_s = dict.fromkeys(("scaleUp", "scaleDown"), int(random.choice(WINDOWS_S)))
    windows_s: tuple[int, ...] = (0, *WINDOWS_S)
    # The controller forgets an event when its own direction no longer needs it, see `behavior.overwrite`. To show that,
    # half of the behaviours look back far in one direction alone, and let the metrics through to the rates.
    if random.random() < 0.5:
        near, far = random.permutation(["scaleUp", "scaleDown"])
        longest_s = {near: int(random.choice(WINDOWS_S[:2])), far: int(random.choice(WINDOWS_S[-2:]))}
        windows_s = (0, 3)
    behavior: dict[str, Any] = {}
    for direction, period_s in longest_s.items():
        rules: dict[str, Any] = {"stabilizationWindowSeconds": int(random.choice(windows_s))}
        policies = [_policy(random, period_s)]
        if random.random() < 0.5:
            policies.append(_policy(random, int(random.choice([s for s in WINDOWS_S if s <= period_s]))))
        rules["policies"] = policies
        rules["selectPolicy"] = str(random.choice(["Max", "Min", "Disabled"], p=[0.6, 0.37, 0.03]))
        if random.random() < 0.3:
            rules["tolerance"] = f"{int(random.integers(0, 300))}m"
        if random.random() < 0.9:
            behavior[direction] = rules
    return behavior or {"scaleUp": {"stabilizationWindowSeconds": 9}}


def _policy(random: np.random.Generator, period_s: int) -> dict[str, Any]:
    if random.random() < 0.5:
        return {"type": "Pods", "value": int(random.integers(1, 6)), "periodSeconds": period_s}
    return {"type": "Percent", "value": int(random.choice([10, 20, 50, 100, 200])), "periodSeconds": period_s}


def _demand(random: np.random.Generator, highest: int, ticks: int = 200) -> np.ndarray:
    """Replicas' worth of load: a wave, level shifts, flash crowds, stretches of rest, and noise."""
    t = np.arange(ticks)
    wave = 0.45 + 0.3 * np.sin(2 * math.pi * (t / random.uniform(25, 70) + random.random()))
    level = np.repeat(random.uniform(0.6, 1.4, ticks // 20), 20)
    for start in random.integers(0, ticks - 8, 5):
        level[start : start + random.integers(2, 8)] *= random.uniform(1.5, 3.0)
    for start in random.integers(0, ticks - 15, 2):
        level[start : start + 15] *= random.uniform(0.0, 0.15)
    noise = random.lognormal(0.0, random.choice([0.02, 0.1, 0.3]), ticks)
    return np.clip(0.7 * highest * wave * level * noise, 0.0, None)
