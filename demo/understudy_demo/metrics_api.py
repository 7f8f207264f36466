"""Why this exists: the real HPA reads its metrics from aggregated APIs, and a test wants to say what stands there.

One `AggregatedApi` is an HTTPS server on 127.0.0.1 that an API server passes whole API groups on to: the
metrics of pods (`metrics.k8s.io`), external metrics, or resources of one's own. The handlers are the caller's.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from understudy_demo.controlplane.client import Kube, wait_for
from understudy_demo.controlplane.pki import Authority

EXTERNAL = "external.metrics.k8s.io/v1beta1"
RESOURCE = "metrics.k8s.io/v1beta1"
_SERVICE, _SERVICE_NAMESPACE = "aggregated-api", "kube-system"
_START_TIMEOUT_S = 30.0

Resources = Mapping[str, Sequence[Mapping[str, Any]]]
"""What discovery says of every group and version, such as `{"metrics.k8s.io/v1beta1": [{"name": "pods", …}]}`."""


class AggregatedApi:
    """The server, in a thread and an event loop of its own; for use in a `with`."""

    def __init__(self, folder: Path, resources: Resources, routes: Iterable[web.RouteDef]) -> None:
        """Describe the server.

        Args:
            folder: Where its certificates are written.
            resources: The API groups, as discovery shows them.
            routes: What answers; paths as the API server's, such as `/apis/metrics.k8s.io/v1beta1/…`.
        """
        self._resources = resources
        self._routes = list(routes)
        self._authority = Authority(folder, "aggregated-api-ca")
        self._certificate = self._authority.issue(
            _SERVICE, server_names=[f"{_SERVICE}.{_SERVICE_NAMESPACE}.svc"]
        )

    def __enter__(self) -> Self:
        """Start; returns when it serves."""
        up: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), daemon=True)
        self._thread.start()
        up.result(_START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what is being answered is given up."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def register(self, kube: Kube) -> None:
        """Have this API server pass the groups on, and wait until it does."""
        kube.apply(self.manifests)
        for version in self._resources:
            group, _, number = version.partition("/")
            wait_for(
                functools.partial(_is_available, kube, f"{number}.{group}"),
                f"the API {version} to be available",
            )

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Service and APIServices; a Service that is an external name is the only way to 127.0.0.1."""
        bundle = base64.b64encode(self._authority.certificate.read_bytes()).decode()
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": _SERVICE, "namespace": _SERVICE_NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
        }
        return [service, *(self._api_service(version, bundle) for version in self._resources)]

    def _api_service(self, version: str, bundle: str) -> dict[str, Any]:
        group, _, number = version.partition("/")
        return {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{number}.{group}"},
            "spec": {
                "group": group,
                "version": number,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": bundle,
                "service": {"name": _SERVICE, "namespace": _SERVICE_NAMESPACE, "port": self._port},
            },
        }

    async def _run(self, up: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/apis/{group}/{version}", self._discovery)
        app.router.add_routes(self._routes)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self._certificate.certificate, self._certificate.key)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            self._port = runner.addresses[0][1]
            up.set_result(None)
            await self._stop.wait()
        except OSError as error:
            up.set_exception(error)
        finally:
            await runner.cleanup()

    async def _discovery(self, request: web.Request) -> web.Response:
        version = f"{request.match_info['group']}/{request.match_info['version']}"
        if version not in self._resources:
            raise web.HTTPNotFound(text=f"no API {version} here")
        kind = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
        return web.json_response({**kind, "resources": list(self._resources[version])})


def external_metrics(name: str, values_milli: Sequence[int]) -> web.Response:
    """The answer of `external.metrics.k8s.io`: one item per series, which the HPA adds up."""
    items = [
        {"metricName": name, "metricLabels": {}, "timestamp": _now(), "value": f"{v}m"} for v in values_milli
    ]
    return _list("ExternalMetricValueList", EXTERNAL, items)


def pod_metrics(cpu_usage_milli: Mapping[str, int], namespace: str) -> web.Response:
    """The answer of `metrics.k8s.io`: the CPU usage of pods by their names, measured over half a minute."""
    items = [
        {
            "metadata": {"name": name, "namespace": namespace},
            "timestamp": _now(),
            "window": "30s",
            "containers": [{"name": "app", "usage": {"cpu": f"{usage}m", "memory": "64Mi"}}],
        }
        for name, usage in cpu_usage_milli.items()
    ]
    return _list("PodMetricsList", RESOURCE, items)


def _list(kind: str, version: str, items: Sequence[Mapping[str, Any]]) -> web.Response:
    return web.json_response({"kind": kind, "apiVersion": version, "metadata": {}, "items": list(items)})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_available(kube: Kube, name: str) -> bool:
    status = kube.get("apiregistration.k8s.io/v1/apiservices", name).get("status", {})
    return any(c["type"] == "Available" and c["status"] == "True" for c in status.get("conditions", ()))
