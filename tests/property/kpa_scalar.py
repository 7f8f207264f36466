"""Knative's decider for one revision, in plain Python, in the order of its own source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spec:
    target: float
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    activation_scale: int = 1
    scale_down_delay_s: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 1000
    tick_s: float = 2.0


@dataclass
class Decider:
    spec: Spec
    panic_time: float | None = None
    max_panic_pods: int = 0
    samples: list[float | None] = field(default_factory=list)
    decided: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def start(cls, spec: Spec, ready: int, now: float) -> Decider:
        return cls(spec, now, ready) if ready > 1 else cls(spec)

    def window(self, length_s: float) -> list[float]:
        newest = self.samples[-max(1, math.ceil(length_s / self.spec.tick_s)) :]
        return [sample for sample in newest if sample is not None]

    def tick(self, concurrency: float | None, replicas: int, ready_pods: int, now: float) -> int:
        spec = self.spec
        self.samples.append(concurrency)
        stable, panic = self.window(spec.stable_window_s), self.window(spec.panic_window_s)
        if not stable:
            return min(max(replicas, spec.min_replicas), spec.max_replicas)
        stable_value = sum(stable) / len(stable)
        panic_value = sum(panic) / len(panic) if panic else 0.0

        ready = max(1, ready_pods)
        most, least = math.ceil(spec.max_scale_up_rate * ready), math.floor(ready / spec.max_scale_down_rate)
        dspc, dppc = math.ceil(stable_value / spec.target), math.ceil(panic_value / spec.target)
        stable_pods = min(max(dspc, least), most)
        panic_pods = min(max(dppc, least), most)
        if dspc > 0:
            stable_pods = max(stable_pods, spec.activation_scale)
        if dppc > 0:
            panic_pods = max(panic_pods, spec.activation_scale)

        if dppc / ready >= spec.panic_threshold:
            self.panic_time = now
        elif self.panic_time is not None and self.panic_time + spec.stable_window_s < now:
            self.panic_time, self.max_panic_pods = None, 0

        desired = stable_pods
        if self.panic_time is not None:
            self.max_panic_pods = max(self.max_panic_pods, stable_pods, panic_pods)
            desired = self.max_panic_pods
        self.decided.append((now, desired))
        recent = [pods for time, pods in self.decided if time > now - spec.scale_down_delay_s]
        return min(max([desired, *recent, spec.min_replicas]), spec.max_replicas)
