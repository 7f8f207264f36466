"""The emulator as one thing to start and stop: a thread with an event loop that serves, scrapes in, metrics out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import orjson
from aiohttp import web

from understudy_demo.emulator.exposition import CONTENT_TYPE, Exposition
from understudy_demo.emulator.fleet import Fault, Fleet
from understudy_demo.emulator.pod_watch import follow_pods
from understudy_demo.emulator.workload import Rate, Workload

_T = TypeVar("_T")
_LONGEST_STEP_S = 1.0
_LISTED_WITHIN_S = 60.0


class Emulator:
    """Emulates workloads in a thread of its own; for use in a `with`.

    Its methods may be called from any thread. Over HTTP it serves `/metrics`, `/healthz`, `/truth` (JSON),
    and takes `PUT` and `DELETE /faults/{namespace}/{name}` with `{"fault": "nan"}`, and `PUT
    /load/{namespace}/{name}` with `{"requests_per_second": 20}`.

    Attributes:
        address: host and port that Prometheus is to scrape.
        url: the same as a URL.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        kubeconfig: Path | None,
        *,
        port: int = 0,
        step_s: float = 0.25,
        seed: int = 0,
        latency_per_pod: bool = True,
    ) -> None:
        """Describe the emulation.

        Args:
            workloads: what is emulated.
            kubeconfig: credentials that may list and watch pods; None for pods set by `set_pods` alone.
            port: where to serve on 127.0.0.1; 0 for any free port.
            step_s: time between two computations of the queues.
            seed: of the arrivals.
            latency_per_pod: see `Exposition`.
        """
        self._fleet = Fleet(workloads, seed=seed)
        self._exposition = Exposition(self._fleet, latency_per_pod)
        self._kubeconfig = kubeconfig
        self._port = port
        self._step_s = step_s
        self._listed = asyncio.Event()
        if kubeconfig is None:
            self._listed.set()

    def __enter__(self) -> Emulator:
        """Start; returns when the pods are known and metrics are served."""
        up: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(up)), name="emulator", daemon=True
        )
        self._thread.start()
        up.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def set_rate(self, namespace: str, name: str, rate: Rate | float) -> None:
        """Replace a workload's load, by a function of the seconds since the start or by a constant rate."""
        index = self._fleet.index[(namespace, name)]
        value = rate if callable(rate) else (lambda _: float(rate))
        self._call(lambda: self._fleet.rates.__setitem__(index, value))

    def set_fault(self, namespace: str, name: str, fault: Fault | str | None) -> None:
        """Break a workload's metrics, or mend them with None."""
        self._call(lambda: self._fleet.set_fault(namespace, name, None if fault is None else Fault(fault)))

    def set_pods(self, namespace: str, name: str, ready: Sequence[str]) -> None:
        """Without a cluster: the names of a workload's pods, all ready."""

        def replace() -> None:
            index = self._fleet.index[(namespace, name)]
            for key, pod in list(self._fleet.pods.items()):
                if pod.workload == index and key[1] not in ready:
                    self._fleet.remove_pod(*key)
            for pod_name in ready:
                self._fleet.set_pod(namespace, pod_name, name, serving=True)

        self._call(replace)

    def truth(self) -> dict[str, dict[str, float]]:
        """What really happened, by `namespace/name`: the fields of `Truth`, and `ready` pods."""
        return self._call(self._truth)

    def _truth(self) -> dict[str, dict[str, float]]:
        columns = {**asdict(self._fleet.truth), "ready": self._fleet.ready()}
        return {
            f"{w.namespace}/{w.name}": {name: float(values[k]) for name, values in columns.items()}
            for k, w in enumerate(self._fleet.workloads)
        }

    def _call(self, function: Callable[[], _T]) -> _T:
        """Run a function in the emulator's thread and wait for its answer."""

        async def run() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _run(self, up: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self._application(), access_log=None)
        try:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", self._port)
            await site.start()
            self.address = f"127.0.0.1:{runner.addresses[0][1]}"
            self.url = f"http://{self.address}"
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._advance())]
                if self._kubeconfig is not None:
                    running.append(
                        tasks.create_task(follow_pods(self._kubeconfig, self._fleet, self._listed))
                    )
                await self._wait_for_pods()
                up.set_result(None)
                await self._stop.wait()
                for task in running:
                    task.cancel()
        except BaseException as error:
            if up.done():
                raise  # to the thread's excepthook
            up.set_exception(error)
        finally:
            await runner.cleanup()

    async def _wait_for_pods(self) -> None:
        try:
            async with asyncio.timeout(_LISTED_WITHIN_S):
                await self._listed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"pods could not be listed within {_LISTED_WITHIN_S:g} s with {self._kubeconfig}; "
                "check that it may list pods in all namespaces."
            ) from None

    async def _advance(self) -> None:
        start_s = now_s = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, now_s + self._step_s - time.monotonic()))
            # After a stall (a suspended machine, say) the time that passed is gone, not made up for.
            before_s, now_s = now_s, time.monotonic()
            self._fleet.advance(now_s - start_s, min(now_s - before_s, _LONGEST_STEP_S))

    def _application(self) -> web.Application:
        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=self._exposition.render(), headers={"Content-Type": CONTENT_TYPE})

        async def healthz(_: web.Request) -> web.Response:
            return web.Response(text="ok" if self._listed.is_set() else "pods not listed yet")

        async def truth(_: web.Request) -> web.Response:
            return web.Response(body=orjson.dumps(self._truth()), content_type="application/json")

        async def change(request: web.Request) -> web.Response:
            namespace, name = request.match_info["namespace"], request.match_info["name"]
            if (namespace, name) not in self._fleet.index:
                raise web.HTTPNotFound(text=f"{namespace}/{name} is not emulated.")
            try:
                body: dict[str, Any] = await request.json() if request.method == "PUT" else {"fault": None}
                if "requests_per_second" in body:
                    rate_rps = float(body["requests_per_second"])
                    self._fleet.rates[self._fleet.index[(namespace, name)]] = lambda _: rate_rps
                else:
                    fault = body["fault"]
                    self._fleet.set_fault(namespace, name, None if fault is None else Fault(fault))
            except (ValueError, KeyError, TypeError) as error:
                raise web.HTTPBadRequest(
                    text=f"{error}; send a fault ({', '.join(Fault)}) or requests_per_second."
                ) from error
            return web.Response(text="ok")

        application = web.Application()
        application.add_routes(
            [
                web.get("/metrics", metrics),
                web.get("/healthz", healthz),
                web.get("/truth", truth),
                web.put("/faults/{namespace}/{name}", change),
                web.delete("/faults/{namespace}/{name}", change),
                web.put("/load/{namespace}/{name}", change),
            ]
        )
        return application
