"""KEDA's operator and the HPA it makes, call by call, in plain Python: one workload, lists of events, no arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import hpa_scalar as scalar

Answer = float | None | Literal["error"]
"""What Prometheus says: a number, nothing (an empty vector), or no answer at all."""


class ScalerError(Exception):
    pass


@dataclass(frozen=True)
class ScaledObject:
    threshold: float
    activation: float
    min_replicas: int
    max_replicas: int
    cooldown_s: float
    ignore_null: bool
    fallback: int | None
    failure_threshold: int
    fallback_behavior: Literal[
        "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"
    ]
    polling_interval_s: float
    up: scalar.Rules
    down: scalar.Rules
    legacy: bool


@dataclass
class Keda:
    spec: ScaledObject
    history: scalar.History = field(default_factory=scalar.History)
    failures: int = 0
    last_active: float | None = None
    next_poll: float | None = None

    def query(self, answer: Answer) -> float:
        if answer == "error":
            raise ScalerError("503")
        if answer is None or math.isnan(answer) or math.isinf(answer):
            if self.spec.ignore_null:
                return 0.0
            raise ScalerError("empty")
        return max(answer, 0.0)

    def poll(self, answer: Answer, replicas: int, now: float) -> int:
        try:
            active, error = self.query(answer) > self.spec.activation, False
            self.failures = 0
        except ScalerError:
            active, error = False, True
            self.failures += 1
        low = self.spec.min_replicas
        if active:
            self.last_active = now
            return max(low, 1) if replicas == 0 else replicas
        if error and self.spec.fallback != 0:
            return replicas
        if low == 0 and replicas > 0:
            idle = self.last_active is None or self.last_active + self.spec.cooldown_s < now
            return 0 if idle else replicas
        return max(replicas, low)

    def metric_milli(self, answer: Answer, replicas: int) -> int:
        target = int(self.spec.threshold * 1000)
        try:
            value = int(self.query(answer) * 1000)
            self.failures = 0
            return value
        except ScalerError:
            self.failures += 1
            if self.spec.fallback is None or self.failures <= self.spec.failure_threshold:
                raise
        fallback = {
            "static": self.spec.fallback,
            "currentReplicas": replicas,
            "currentReplicasIfHigher": max(replicas, self.spec.fallback),
            "currentReplicasIfLower": min(replicas, self.spec.fallback),
        }[self.spec.fallback_behavior]
        return target * fallback

    def sync(self, answer: Answer, replicas: int, status_replicas: int, now: float) -> int:
        """One reconciliation of the HPA."""
        spec, low = self.spec, max(self.spec.min_replicas, 1)
        if not self.history.recommendations:
            self.history.recommendations.append((now, replicas))
        outside = scalar.bypass(replicas, low, spec.max_replicas)
        if outside:
            desired = outside[0]
        else:
            try:
                metric = self.metric_milli(answer, replicas)
            except ScalerError:
                return replicas
            wanted = scalar.external_average(
                metric, int(spec.threshold * 1000), status_replicas, scalar.Tolerance()
            )
            if spec.legacy:
                desired, _ = scalar.normalize_legacy(
                    wanted, replicas, low, spec.max_replicas, self.history, now, 300.0
                )
            else:
                desired, _ = scalar.normalize(
                    wanted, replicas, low, spec.max_replicas, spec.up, spec.down, self.history, now
                )
            self.history.recommendations.append((now, wanted))
        if desired != replicas:
            self.history.record(now, replicas, desired, spec.up, spec.down)
        return desired

    def tick(self, answer: Answer, replicas: int, now: float) -> int:
        if self.next_poll is None:
            self.next_poll = now
        status = replicas
        while self.next_poll <= now:
            replicas = self.poll(answer, replicas, now)
            self.next_poll += self.spec.polling_interval_s
        return self.sync(answer, replicas, status, now)
