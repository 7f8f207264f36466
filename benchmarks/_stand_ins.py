"""Where the numbers of the fleet come from: a Prometheus and an external metrics API that know one load.

Understudy asks the one and the HPA the other, and both are told the same at the same moment. They answer as fast as
Python can, so that what is measured is the autoscaler and not its source.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from understudy_demo.controlplane.pki import Authority

CAPACITY_RPS = 25.0
METRIC = "requests-per-second"
_GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
_SERVICE, _SERVICE_NAMESPACE = "external-metrics", "kube-system"

Workload = tuple[str, str]
"""Namespace and name."""


class StandIns:
    """Both servers, on 127.0.0.1 in a thread of their own; for use in a `with`.

    Attributes:
        rate_rps: requests per second of every workload; change it at any time.
        asked_at: Unix times at which Prometheus was asked for the request rates, which begins a tick.
        prometheus_url: where Prometheus answers.
        manifests: what makes an API server pass external metrics on to us.
    """

    def __init__(self, folder: Path, workloads: Sequence[Workload] = ()) -> None:
        """Serve certificates from `folder`, and a rate of 0 for every workload."""
        self.rate_rps: dict[Workload, float] = dict.fromkeys(workloads, 0.0)
        self.asked_at: list[float] = []
        self._authority = Authority(folder, "external-metrics-ca")
        self._certificate = self._authority.issue(
            _SERVICE, server_names=[f"{_SERVICE}.{_SERVICE_NAMESPACE}.svc"]
        )

    def __enter__(self) -> Self:
        """Start; returns when both serve."""
        up: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), daemon=True)
        self._thread.start()
        up.result(30)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Service and APIService; a Service that is an external name is the only way to 127.0.0.1."""
        bundle = base64.b64encode(self._authority.certificate.read_bytes()).decode()
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": _SERVICE, "namespace": _SERVICE_NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
                "spec": {
                    "group": "external.metrics.k8s.io",
                    "version": "v1beta1",
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "caBundle": bundle,
                    "service": {
                        "name": _SERVICE,
                        "namespace": _SERVICE_NAMESPACE,
                        "port": self._metrics_port,
                    },
                },
            },
        ]

    async def _run(self, up: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        prometheus = web.Application(client_max_size=2**24)
        for method in ("GET", "POST"):
            prometheus.router.add_route(method, "/api/v1/query", self._query)
            prometheus.router.add_route(method, "/api/v1/query_range", self._query_range)
        metrics = web.Application()
        metrics.router.add_get(f"/apis/{_GROUP_VERSION}", self._resources)
        metrics.router.add_get(f"/apis/{_GROUP_VERSION}/namespaces/{{namespace}}/{METRIC}", self._external)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self._certificate.certificate, self._certificate.key)
        runners = [web.AppRunner(app, access_log=None, shutdown_timeout=0.1) for app in (prometheus, metrics)]
        try:
            for runner, context in zip(runners, (None, tls), strict=True):
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            self.prometheus_url = f"http://127.0.0.1:{runners[0].addresses[0][1]}"
            self._metrics_port = runners[1].addresses[0][1]
            up.set_result(None)
            await self._stop.wait()
        except OSError as error:
            up.set_exception(error)
        finally:
            for runner in runners:
                await runner.cleanup()

    # --- Prometheus ---------------------------------------------------------------------------------------------

    async def _query(self, request: web.Request) -> web.Response:
        given = request.query if request.method == "GET" else await request.post()
        query, at_s = str(given["query"]), float(str(given["time"]))
        label, factor = _meaning(query)
        if factor is not None and label == "service":
            self.asked_at.append(time.time())
        # A real rate never repeats to the last bit, and one that does is rightly taken for frozen.
        wobble = 1 + 1e-9 * (len(self.asked_at) % 7)
        rows = ",".join(
            f'{{"metric":{{"namespace":"{namespace}","{label}":"{name}"}},'
            f'"value":[{at_s},"{_value(query, factor, rate * wobble)}"]}}'
            for (namespace, name), rate in self.rate_rps.items()
        )
        return _vector("vector", rows)

    async def _query_range(self, request: web.Request) -> web.Response:
        given = request.query if request.method == "GET" else await request.post()
        start_s, end_s, step_s = (float(str(given[name])) for name in ("start", "end", "step"))
        times = [start_s + step_s * i for i in range(int((end_s - start_s) / step_s) + 1)]

        def points(rate: float) -> str:
            return ",".join(f'[{t:.3f},"{rate * (1 + 1e-9 * (i % 7))}"]' for i, t in enumerate(times))

        past = {rate: points(rate) for rate in set(self.rate_rps.values())}
        rows = ",".join(
            f'{{"metric":{{"namespace":"{namespace}","service":"{name}"}},"values":[{past[rate]}]}}'
            for (namespace, name), rate in self.rate_rps.items()
        )
        return _vector("matrix", rows)

    # --- external.metrics.k8s.io --------------------------------------------------------------------------------

    async def _resources(self, _: web.Request) -> web.Response:
        resource = {
            "name": METRIC,
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": _GROUP_VERSION,
                "resources": [resource],
            }
        )

    async def _external(self, request: web.Request) -> web.Response:
        name = request.query["labelSelector"].removeprefix("service=")
        rate = self.rate_rps[request.match_info["namespace"], name]
        item = {
            "metricName": METRIC,
            "metricLabels": {"service": name},
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "value": f"{round(rate * 1000)}m",
        }
        return web.json_response(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": _GROUP_VERSION,
                "metadata": {},
                "items": [item],
            }
        )


def _meaning(query: str) -> tuple[str, float | None]:
    """Which label names the workload in the answer, and by what the rate is multiplied; None: it is a constant."""
    if "cpu_usage" in query:
        return "workload", 1 / CAPACITY_RPS
    if "resource_requests" in query:
        return "workload", None
    if "histogram_quantile" in query or "5.." in query:
        return "service", None
    return "service", 1.0


def _value(query: str, factor: float | None, rate_rps: float) -> float:
    if factor is not None:
        return rate_rps * factor
    if "histogram_quantile" in query:
        return 0.1
    return 1.0 if "resource_requests" in query else 0.0


def _vector(kind: str, rows: str) -> web.Response:
    text = f'{{"status":"success","data":{{"resultType":"{kind}","result":[{rows}]}}}}'
    return web.Response(text=text, content_type="application/json")
