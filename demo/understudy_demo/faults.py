"""A Prometheus that misbehaves on demand, in the ways that a healthy one will not.

It stands before a real Prometheus, or answers from a table, and breaks what it passes on: an autoscaler must be
shown what it does when its eyes fail, and each failure must be told from the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from enum import StrEnum
from types import TracebackType
from typing import Any

import aiohttp
import orjson
from aiohttp import web

Vector = Sequence[tuple[Mapping[str, str], float]]
"""Labels and value of every series of an answer."""

STALE_BY_S = 900.0
_UPSTREAM_TIMEOUT_S = 30.0


class PrometheusFault(StrEnum):
    """What is wrong with the answers."""

    EMPTY = "empty"
    """No series match."""
    NAN = "nan"
    INF = "inf"
    NEGATIVE = "negative"
    BOGUS = "bogus"
    """Every value is 10^12."""
    STALE = "stale"
    """Every sample is 15 minutes old."""
    FUTURE = "future"
    """Every sample is from 15 minutes ahead."""
    FROZEN = "frozen"
    """The values of the first answer to a query are given again and again, with fresh timestamps."""
    DUPLICATE = "duplicate"
    """Every series comes twice, the second time with another value."""
    PARTIAL = "partial"
    """Half of the series are missing, and a warning says so."""
    WARNING = "warning"
    """The answer is whole, but carries a warning."""
    HTTP_500 = "http_500"
    HTTP_422 = "http_422"
    GARBAGE = "garbage"
    """Status 200 and something that is not JSON."""
    HANG = "hang"
    """No answer until the fault is taken away."""


_VALUES = {
    PrometheusFault.NAN: "NaN",
    PrometheusFault.INF: "+Inf",
    PrometheusFault.NEGATIVE: "-1",
    PrometheusFault.BOGUS: "1e12",
}


class FaultyPrometheus:
    """Serves `/api/v1/query` and `/api/v1/query_range` on 127.0.0.1 in a thread of its own; for use in a `with`.

    Attributes:
        url: where it answers.
        queries: every query that came, in order.
    """

    def __init__(
        self,
        upstream: str | None = None,
        answers: Mapping[str, Vector] | Callable[[str], Vector] | None = None,
        affects: Callable[[str], bool] = lambda query: True,
    ) -> None:
        """Describe where the truth comes from.

        Args:
            upstream: URL of a real Prometheus to pass queries on to.
            answers: instead of a Prometheus: what each query returns, as a table or a function; a query that
                is not in the table returns no series.
            affects: which queries a fault breaks.
        """
        if (upstream is None) == (answers is None):
            raise ValueError("give either upstream or answers, so that it is clear where answers come from.")
        self._fault: PrometheusFault | None = None
        self.queries: list[str] = []
        self._upstream = upstream
        self._answers = answers
        self._affects = affects
        self._first: dict[tuple[str, bytes], str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def fault(self) -> PrometheusFault | None:
        """What is wrong now; None: nothing. May be set at any time, from any thread."""
        return self._fault

    @fault.setter
    def fault(self, fault: PrometheusFault | str | None) -> None:
        self._fault = None if fault is None else PrometheusFault(fault)
        self._first = {}
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._woken.set)

    def __enter__(self) -> FaultyPrometheus:
        """Start; returns when it serves."""
        up: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), name="faults", daemon=True)
        self._thread.start()
        up.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; queries that hang are cut off."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join()
        self._loop = None

    def _end(self) -> None:
        self._stop.set()
        self._woken.set()

    async def _run(self, up: Future[None]) -> None:
        self._loop, self._stop, self._woken = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        application = web.Application(client_max_size=2**24)
        for path in ("/api/v1/query", "/api/v1/query_range"):
            application.router.add_get(path, self._query)
            application.router.add_post(path, self._query)
        for path in ("/", "/-/ready", "/-/healthy"):
            application.router.add_get(path, self._healthy)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            timeout = aiohttp.ClientTimeout(total=_UPSTREAM_TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout) as self._session:
                up.set_result(None)
                await self._stop.wait()
        except OSError as error:
            up.set_exception(error)
        finally:
            await runner.cleanup()

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="Prometheus Server is Ready.\n")

    async def _query(self, request: web.Request) -> web.Response:
        parameters = {**request.query, **(await request.post())}
        query = str(parameters.get("query", ""))
        self.queries.append(query)
        while (fault := self._fault_of(query)) is PrometheusFault.HANG and not self._stop.is_set():
            self._woken.clear()
            await self._woken.wait()
        match fault:
            case PrometheusFault.HTTP_500:
                return _error(500, "internal", "emulated failure of the query engine")
            case PrometheusFault.HTTP_422:
                return _error(422, "execution", "emulated: query processing would load too many samples")
            case PrometheusFault.GARBAGE:
                return web.Response(text="<html>502 Bad Gateway</html>", content_type="text/html")
        status, body = await self._truth(request, parameters, query)
        if fault is not None and body.get("status") == "success":
            body = self._broken(fault, query, body)
        return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")

    def _fault_of(self, query: str) -> PrometheusFault | None:
        return self._fault if self._affects(query) else None

    async def _truth(
        self, request: web.Request, parameters: Mapping[str, Any], query: str
    ) -> tuple[int, dict[str, Any]]:
        if self._upstream is not None:
            form = {name: str(value) for name, value in parameters.items()}
            async with self._session.post(f"{self._upstream}{request.path}", data=form) as answer:
                return answer.status, orjson.loads(await answer.read())
        if request.path.endswith("query_range"):
            return 422, {
                "status": "error",
                "errorType": "bad_data",
                "error": "the table is for instant queries",
            }
        answers = self._answers
        vector = answers(query) if callable(answers) else (answers or {}).get(query, ())
        at_s = float(parameters.get("time", time.time()))
        result = [{"metric": dict(labels), "value": [at_s, f"{value:.15g}"]} for labels, value in vector]
        return 200, {"status": "success", "data": {"resultType": "vector", "result": result}}

    def _broken(self, fault: PrometheusFault, query: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer with what the fault does to it."""
        data = body["data"]
        series: list[dict[str, Any]] = data["result"] if data["resultType"] in ("vector", "matrix") else []
        match fault:
            case PrometheusFault.EMPTY:
                series = []
            case PrometheusFault.DUPLICATE:
                series = [
                    *series,
                    *(_changed(one, lambda t, v: (t, f"{2 * float(v) + 1:.15g}")) for one in series),
                ]
            case PrometheusFault.PARTIAL:
                series = series[: len(series) // 2]
            case PrometheusFault.STALE:
                series = [_changed(one, lambda t, v: (t - STALE_BY_S, v)) for one in series]
            case PrometheusFault.FUTURE:
                series = [_changed(one, lambda t, v: (t + STALE_BY_S, v)) for one in series]
            case PrometheusFault.FROZEN:
                series = [self._frozen(query, one) for one in series]
            case _ if fault in _VALUES:
                series = [_changed(one, lambda t, _: (t, _VALUES[fault])) for one in series]
        broken = {**body, "data": {**data, "result": series}}
        if fault in (PrometheusFault.PARTIAL, PrometheusFault.WARNING):
            broken["warnings"] = ["emulated: a store did not answer in time, the result may be partial"]
        return broken

    def _frozen(self, query: str, one: dict[str, Any]) -> dict[str, Any]:
        key = (query, orjson.dumps(one["metric"], option=orjson.OPT_SORT_KEYS))
        newest = one["value"] if "value" in one else one["values"][-1]
        value = self._first.setdefault(key, newest[1])
        return _changed(one, lambda t, _: (t, value))


def _changed(one: dict[str, Any], change: Callable[[float, str], tuple[float, str]]) -> dict[str, Any]:
    """A series of a vector or a matrix with every sample changed."""
    if "value" in one:
        return {**one, "value": list(change(*one["value"]))}
    return {**one, "values": [list(change(*sample)) for sample in one["values"]]}


def _error(status: int, kind: str, message: str) -> web.Response:
    body = {"status": "error", "errorType": kind, "error": message}
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
