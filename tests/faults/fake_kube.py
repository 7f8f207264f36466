"""An API server in memory for faults that a real one does not produce on demand: races, hangs, errors.

It knows resourceVersions, managedFields of `spec.replicas` and the `/scale` subresource, and nothing else: the
semantics themselves are tested on the real one.
"""

import asyncio
import copy
import itertools
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from understudy_operator.kube import Kube


class FakeKube:
    """Attributes: url while it is serving, objects by path, calls as (method, path) in order of arrival."""

    def __init__(self):
        self.url = ""
        self.objects = {}
        self.calls = []
        self._faults = []
        self._versions = itertools.count(100)

    def put(self, path, body, manager="kubectl", **metadata):
        """Store an object under a new resourceVersion, as written by `manager`."""
        body = copy.deepcopy(body)
        body["metadata"] = {
            **body.get("metadata", {}),
            **metadata,
            "resourceVersion": str(next(self._versions)),
            "managedFields": [_ownership(manager)],
        }
        self.objects[path] = body
        return body

    def fail(self, method, path, *, status=500, reason="InternalError", hang=False, then=None, times=1):
        """Let the next `times` calls fail, or only run `then` before them (with status 0)."""
        self._faults += [(method, path, status, reason, hang, then)] * times

    def count(self, method):
        return sum(called == method for called, _ in self.calls)

    async def handle(self, request):
        method, path = request.method, request.path
        self.calls.append((method, path))
        fault = next((fault for fault in self._faults if fault[:2] == (method, path)), None)
        if fault is not None:
            self._faults.remove(fault)
            _, _, status, reason, hang, then = fault
            if then is not None:
                then()
            if hang:
                await asyncio.sleep(60)
            if status:
                return _refusal(status, reason)
        stored = self.objects.get(path.removesuffix("/scale"))
        if stored is None:
            return _refusal(404, "NotFound")
        if method == "PATCH":
            patch = await request.json(loads=orjson.loads)
            version = patch.get("metadata", {}).get("resourceVersion", stored["metadata"]["resourceVersion"])
            if version != stored["metadata"]["resourceVersion"]:
                return _refusal(409, "Conflict")
            stored = {**stored, "spec": {**stored["spec"], **patch.get("spec", {})}}
            stored = self.put(path.removesuffix("/scale"), stored, request.query["fieldManager"])
        if not path.endswith("/scale"):
            return web.json_response(stored)
        metadata = {key: value for key, value in stored["metadata"].items() if key != "managedFields"}
        status = {"replicas": stored.get("status", {}).get("replicas", 0)}
        return web.json_response({"metadata": metadata, "spec": stored["spec"], "status": status})


def _ownership(manager):
    return {"manager": manager, "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}


def _refusal(status, reason):
    return web.json_response({"kind": "Status", "reason": reason, "message": f"fake {reason}"}, status=status)


@asynccontextmanager
async def serving(fake, **options):
    """The fake behind a real socket, and a `Kube` that talks to it."""

    async def handle(request):
        return await fake.handle(request)  # looked up late, so that a test may replace it

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("")).rstrip("/")
        async with Kube(Configuration(host=fake.url), **options) as kube:
            yield kube
