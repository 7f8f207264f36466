"""The model's queue under a steady load, and what the textbook says of the same queue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy_simulator.service import Service, mean_latency_s, serve, share_over

SERVICE_S = 0.04
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SUB_STEPS_S = (1.0, 5.0)


@dataclass(frozen=True)
class Queue:
    """A queue with Poisson arrivals.

    Attributes:
        name: in Kendall's notation.
        servers: pods, each serving one request at a time, or one processor shared among them.
        service_cv: variation of the service time: 1 is exponential, 0 constant.
        sharing: whether the processor is shared; else first come, first served.
    """

    name: str
    servers: int
    service_cv: float
    sharing: bool = False

    def sojourn_s(self, load: float) -> float:
        """Exact mean time from arrival to answer."""
        if self.sharing:
            assert self.servers == 1
            return SERVICE_S / (1 - load)  # whatever the distribution of the service time
        # Erlang's C; Pollaczek and Khinchine's factor is exact for one server
        assert self.servers == 1 or self.service_cv == 1.0
        return SERVICE_S + 0.5 * (1 + self.service_cv**2) * erlang_c(load, self.servers) * SERVICE_S / (
            self.servers * (1 - load)
        )


QUEUES = (
    Queue("M/M/1", 1, 1.0),
    Queue("M/M/4", 4, 1.0),
    Queue("M/M/20", 20, 1.0),
    Queue("M/D/1", 1, 0.0),
    Queue("M/G/1, cv 0.7", 1, 0.7),
    Queue("M/D/1-PS", 1, 0.0, sharing=True),
    Queue("M/G/1-PS, cv 0.7", 1, 0.7, sharing=True),
    Queue("M/M/1-PS", 1, 1.0, sharing=True),
)


def erlang_c(load: float, servers: int) -> float:
    """Probability that a request has to wait."""
    offered, inverse = load * servers, 1.0
    for k in range(1, servers + 1):
        inverse = 1 + inverse * k / offered
    blocked = 1 / inverse
    return blocked / (1 - load + load * blocked)


def mm1_over(load: float, threshold_s: float) -> float:
    """Share of requests that take longer, M/M/1."""
    return math.exp(-threshold_s * (1 - load) / SERVICE_S)


def simulate(
    queue: Queue, load: float, dt_s: float, threshold_s: float = 0.25, lanes: int = 150, steps: int = 1200
) -> tuple[float, float]:
    """Mean latency in seconds and the share over the threshold, by the model, in sub-steps of `dt_s`."""

    def column(value: float) -> np.ndarray:
        return np.full(lanes, float(value))

    rng = np.random.default_rng(1)
    service = Service(
        column(1 / SERVICE_S),
        column(SERVICE_S),
        column(queue.service_cv),
        column(60.0),
        column(queue.sharing),
    )
    pods, backlog = column(queue.servers), np.zeros(lanes)
    requests, latency_s, over = 0.0, 0.0, 0.0
    for k in range(steps):
        arrivals = rng.poisson(load * queue.servers / SERVICE_S * dt_s, lanes).astype(float)
        backlog, flow = serve(service, backlog, arrivals, pods, rng.standard_normal(lanes), dt_s)
        if k > steps // 4:
            requests += arrivals.sum()
            latency_s += (mean_latency_s(service, flow) * arrivals).sum()
            over += (share_over(service, flow, column(threshold_s)[:, None])[:, 0] * arrivals).sum()
    return latency_s / requests, over / requests
