"""One port that says whether the operator lives, whether it is ready, what it counts and what it decided last.

Liveness is about this process alone: restarting it cannot mend Prometheus, so Prometheus is never asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from aiohttp import web

from understudy_operator.store import Key

LAG_PERIOD_S = 0.5
LONGEST_LAG_S = 5.0
LONGEST_SILENCE_S = 60.0
LONGEST_SILENCE_INTERVALS = 4.0


class Beating(Protocol):
    """The control loop, as far as its health is concerned.

    Attributes:
        last_tick_s: monotonic time at which the last tick ended.
        longest_interval_s: time between ticks of the slowest policies.
    """

    last_tick_s: float
    longest_interval_s: float


class Vitals:
    """How the event loop and the control loop are.

    Attributes:
        lag_s: how late the event loop was when it was last measured.
    """

    def __init__(
        self, loop: Beating, on_lag: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Watch a control loop.

        Args:
            loop: see there.
            on_lag: told every measurement of the event loop's lag, seconds.
            clock: the loop's, seconds, monotonic.
        """
        self.lag_s = 0.0
        self._loop = loop
        self._on_lag = on_lag
        self._clock = clock

    def problem(self) -> str | None:
        """Why this process should be restarted, None while it should not."""
        silence_s = self._clock() - self._loop.last_tick_s
        if silence_s > max(LONGEST_SILENCE_S, LONGEST_SILENCE_INTERVALS * self._loop.longest_interval_s):
            return f"no tick has ended for {silence_s:.0f} s"
        if self.lag_s > LONGEST_LAG_S:
            return f"the event loop was {self.lag_s:.1f} s late"
        return None

    async def measure_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            before_s = self._clock()
            await asyncio.sleep(LAG_PERIOD_S)
            self.lag_s = max(0.0, self._clock() - before_s - LAG_PERIOD_S)
            self._on_lag(self.lag_s)


@dataclass(frozen=True)
class Endpoints:
    """What is served.

    Attributes:
        vitals: behind `/healthz`.
        not_ready: why the operator is not ready yet, None once it is: `/readyz`.
        metrics: the exposition of `/metrics`; called in a thread.
        decision: the last decision of a policy: `/decisions/{namespace}/{name}`.
    """

    vitals: Vitals
    not_ready: Callable[[], str | None]
    metrics: Callable[[], bytes]
    decision: Callable[[Key], dict[str, Any] | None]


def application(endpoints: Endpoints) -> web.Application:
    """The web application, not yet listening."""

    async def healthz(_: web.Request) -> web.Response:
        return _probe(endpoints.vitals.problem())

    async def readyz(_: web.Request) -> web.Response:
        return _probe(endpoints.not_ready())

    async def metrics(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(endpoints.metrics)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def decision(request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        record = endpoints.decision(key)
        if record is None:
            return _json({"message": f"nothing has been decided yet for rlpolicy {key[0]}/{key[1]}"}, 404)
        return _json(record)

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/decisions/{namespace}/{name}", decision),
        ]
    )
    return app


@asynccontextmanager
async def serving(endpoints: Endpoints, host: str, port: int) -> AsyncIterator[int]:
    """Serve while the context lasts, and measure the event loop's lag.

    Args:
        endpoints: see there.
        host: address to listen on.
        port: 0 for any that is free.

    Yields:
        The port.

    Raises:
        OSError: the port cannot be had.
    """
    runner = web.AppRunner(application(endpoints), access_log=None)
    await runner.setup()
    lag = asyncio.create_task(endpoints.vitals.measure_lag())
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        lag.cancel()
        with suppress(asyncio.CancelledError):
            await lag
        await runner.cleanup()


def _probe(problem: str | None) -> web.Response:
    return web.Response(text=problem or "ok", status=503 if problem else 200)


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
