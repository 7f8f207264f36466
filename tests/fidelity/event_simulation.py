"""The same cluster request by request, with SimPy: slow, literal, and without a line of the model it checks.

Every request is a process that takes a number of a pod or gives up; every pod is a process that starts, serves one
request at a time, and ends when it is idle after having been told to.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy


@dataclass(frozen=True)
class Workload:
    """What kind of service it is; times in seconds."""

    service_s: float
    service_cv: float
    timeout_s: float
    startup_median_s: float
    startup_sigma: float


class Cluster:
    """One workload's pods and queue."""

    def __init__(self, workload: Workload, pods: int, seed: int) -> None:
        self._workload = workload
        self._random = np.random.default_rng(seed)
        self._env = simpy.Environment()
        self._idle = simpy.Store(self._env)
        self._serving = 0
        self._to_remove = 0
        self._starting: list[simpy.Process] = []
        self.latencies_s: list[float] = []
        """Of every request in order of its end; infinite for those given up."""
        for _ in range(pods):
            self._serve_with_one_more()

    def run(
        self, arrivals: Sequence[int], step_s: float, replicas: Sequence[int], tick_s: float
    ) -> np.ndarray:
        """Latencies of all requests.

        Args:
            arrivals: requests in every interval of `step_s`, at random moments within it.
            step_s: length of such an interval.
            replicas: pods wanted from the start of every tick.
            tick_s: length of a tick.
        """
        self._env.process(self._scale(replicas, tick_s))
        self._env.process(self._arrive(arrivals, step_s))
        self._env.run()
        return np.array(self.latencies_s)

    def _arrive(self, arrivals: Sequence[int], step_s: float) -> Generator[simpy.Event, None, None]:
        for i, count in enumerate(arrivals):
            for moment_s in np.sort(self._random.random(int(count))) * step_s + i * step_s:
                yield self._env.timeout(max(0.0, moment_s - self._env.now))
                self._env.process(self._request())

    def _request(self) -> Generator[simpy.Event, None, None]:
        came_s, w = self._env.now, self._workload
        turn = self._idle.get()
        yield turn | self._env.timeout(w.timeout_s)
        if not turn.triggered:
            turn.cancel()
            self.latencies_s.append(np.inf)
            return
        work = 1 - w.service_cv + w.service_cv * self._random.standard_exponential()
        yield self._env.timeout(w.service_s * work)
        self.latencies_s.append(self._env.now - came_s)
        self._free()

    def _free(self) -> None:
        if self._to_remove:
            self._to_remove -= 1
        else:
            self._idle.put(None)

    def _scale(self, replicas: Sequence[int], tick_s: float) -> Generator[simpy.Event, None, None]:
        for wanted in replicas:
            self._starting = [pod for pod in self._starting if pod.is_alive]
            change = wanted - self._serving - len(self._starting)
            for _ in range(change):
                self._starting.append(self._env.process(self._start()))
            for _ in range(-change):
                if self._starting:  # as a ReplicaSet does: first those that are not ready
                    self._starting.pop().interrupt()
                else:
                    self._serving -= 1
                    if self._idle.items:
                        self._idle.items.pop()
                    else:
                        self._to_remove += 1
            yield self._env.timeout(tick_s)

    def _start(self) -> Generator[simpy.Event, None, None]:
        w = self._workload
        delay_s = w.startup_median_s * np.exp(w.startup_sigma * self._random.standard_normal())
        try:
            yield self._env.timeout(delay_s)
        except simpy.Interrupt:
            return
        self._serve_with_one_more()

    def _serve_with_one_more(self) -> None:
        self._serving += 1
        self._free()
