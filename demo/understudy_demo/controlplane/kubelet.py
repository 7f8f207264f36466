"""Why this exists: pods must take time to start, run out of room and crash, on machines that run no containers.

One `FakeKubelet` plays the scheduler and every node of a control plane: it binds pods, reports them ready after a
delay drawn from a distribution, and takes them away when they are deleted. The controllers cannot tell.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from understudy_demo.controlplane import pod_status
from understudy_demo.controlplane.client import authorization, load_configuration, resource_path

STARTUP_MEDIAN_ANNOTATION = "demo.understudy.dev/startup-median-s"
STARTUP_SIGMA_ANNOTATION = "demo.understudy.dev/startup-sigma"

_NODE = "emulated"
_PARALLEL_REQUESTS = 50
_LONGEST_BACKOFF_S = 5.0
# The API server sends a bookmark about once a minute: a silence twice as long means that the watch is dead.
_WATCH_SILENCE_S = 120.0

_log = logging.getLogger(__name__)


class _WatchExpiredError(Exception):
    """The API server cannot go on from where the watch was."""


@dataclass
class _Pod:
    """What the kubelet remembers of a pod."""

    path: str
    uid: str
    deletion_requested: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class _Slots:
    """Room for pods: a first-come-first-served semaphore whose size can change."""

    def __init__(self) -> None:
        self._capacity: float = math.inf
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        return self._used >= self._capacity

    def resize(self, capacity: float) -> None:
        self._capacity = capacity
        self._admit()

    def take_now(self) -> None:
        """Take a slot even beyond the capacity: for pods that run already."""
        self._used += 1

    async def take(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self.release()  # admitted, and cancelled before it could know
            raise

    def release(self) -> None:
        self._used -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and not self.full:
            turn = self._waiting.popleft()
            if not turn.done():
                self._used += 1
                turn.set_result(None)


class FakeKubelet:
    """All nodes of one control plane, in a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        kubeconfig: Path,
        *,
        startup_median_s: float = 0.5,
        startup_sigma: float = 0.2,
        termination_lag_s: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Describe the nodes.

        Args:
            kubeconfig: Credentials that may do everything with pods.
            startup_median_s: Median of the log-normal delay from binding to ready, in seconds, of pods without the
                annotation `demo.understudy.dev/startup-median-s`.
            startup_sigma: Standard deviation of the delay's logarithm, of pods without the annotation
                `demo.understudy.dev/startup-sigma`.
            termination_lag_s: Time from a pod's deletion request to its end, in seconds.
            seed: Of the delays.
        """
        self._kubeconfig = kubeconfig
        self._startup_median_s = startup_median_s
        self._startup_sigma = startup_sigma
        self._termination_lag_s = termination_lag_s
        self._random = random.Random(seed)
        self._slots = _Slots()
        self._failures_due = 0
        self._pods: dict[str, _Pod] = {}
        self._addresses = itertools.count(1)

    # --- for the other threads ---------------------------------------------------------------------------------

    def __enter__(self) -> FakeKubelet:
        """Start the kubelet."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the kubelet."""
        self.stop()

    def start(self) -> None:
        """Start, and return when the pods that exist are known; raises what went wrong on the way."""
        listed: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listed)), name="fake-kubelet", daemon=True
        )
        self._thread.start()
        listed.result()

    def stop(self) -> None:
        """Stop; the pods stay as they are."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def capacity(self, max_pods: int | None) -> None:
        """Let at most `max_pods` pods be bound from now on; the others stay Pending as Unschedulable.

        Pods that are bound already stay. None takes the limit away.
        """
        limit = math.inf if max_pods is None else max_pods
        self._loop.call_soon_threadsafe(self._slots.resize, limit)

    def fail_next(self, count: int) -> None:
        """Let the next `count` pods that would become ready crash instead, and stay in CrashLoopBackOff."""

        def set_count() -> None:
            self._failures_due = count

        self._loop.call_soon_threadsafe(set_count)

    # --- watching ----------------------------------------------------------------------------------------------

    async def _run(self, listed: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.ensure_future(self._connect_and_watch(listed))
        try:
            await self._main
        except asyncio.CancelledError:
            _log.debug("stopped")
        except Exception as error:
            if listed.done():
                raise  # to the thread's excepthook
            listed.set_exception(error)

    async def _connect_and_watch(self, listed: Future[None]) -> None:
        configuration = load_configuration(self._kubeconfig)
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, configuration.key_file)
        async with aiohttp.ClientSession(
            configuration.host,
            connector=aiohttp.TCPConnector(ssl=tls, limit=_PARALLEL_REQUESTS + 1),
            headers=authorization(configuration),
            json_serialize=lambda body: orjson.dumps(body).decode(),
            # No total: it would count the wait for a free connection.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30),
        ) as self._session:
            version = await self._list()
            listed.set_result(None)
            attempts = _backoff()
            while True:
                try:
                    version = await (self._watch(version) if version else self._list())
                    attempts = _backoff()
                except (_WatchExpiredError, aiohttp.ClientError, TimeoutError) as error:
                    _log.info(
                        "pods cannot be followed (%s); listing them anew", error or type(error).__name__
                    )
                    version = ""
                    await asyncio.sleep(next(attempts))

    async def _list(self) -> str:
        """Take note of all pods as they are now; returns the version to watch from."""
        async with self._session.get(resource_path("v1/pods"), raise_for_status=True) as answer:
            pods = orjson.loads(await answer.read())
        for uid in self._pods.keys() - {pod["metadata"]["uid"] for pod in pods["items"]}:
            self._forget(uid)
        for pod in pods["items"]:
            self._notice(pod)
        return str(pods["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        """Follow the pods from `version` until the server closes the watch; returns the version reached."""
        async with self._session.get(
            resource_path("v1/pods"),
            params={"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE_S),
        ) as answer:
            if answer.status == 410:
                raise _WatchExpiredError("410 Gone")
            answer.raise_for_status()
            async for line in _lines(answer.content):
                event = orjson.loads(line)
                pod = event["object"]
                if event["type"] == "ERROR":
                    raise _WatchExpiredError(pod.get("message", "in-stream error"))
                version = pod["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._forget(pod["metadata"]["uid"])
                elif event["type"] != "BOOKMARK":
                    self._notice(pod)
        return version

    def _notice(self, manifest: Mapping[str, Any]) -> None:
        """Start to look after a pod, or pass on that it is to go."""
        metadata = manifest["metadata"]
        pod = self._pods.get(metadata["uid"])
        if pod is None:
            if manifest["status"].get("phase") in ("Succeeded", "Failed"):
                return
            pod = _Pod(resource_path("v1/pods", metadata["namespace"], metadata["name"]), metadata["uid"])
            self._pods[pod.uid] = pod
            pod.task = asyncio.create_task(self._live(pod, manifest), name=pod.path)
        if "deletionTimestamp" in metadata:
            pod.deletion_requested.set()

    def _forget(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod and pod.task:
            pod.task.cancel()

    # --- the life of a pod -------------------------------------------------------------------------------------

    async def _live(self, pod: _Pod, manifest: Mapping[str, Any]) -> None:
        """Everything that happens to a pod, in order; cancelled when the pod is gone."""
        bound = "nodeName" in manifest["spec"]
        if bound:
            self._slots.take_now()
        else:
            if self._slots.full:
                await self._patch_status(pod, pod_status.unschedulable(_NODE))
            await self._slots.take()
        try:
            if not bound:
                await self._bind(pod, manifest)
            if manifest["status"].get("phase") == "Pending":
                await self._start(pod, manifest)
            await pod.deletion_requested.wait()
            await asyncio.sleep(self._termination_lag_s)
            await self._send("DELETE", pod.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}})
        finally:
            self._slots.release()

    async def _start(self, pod: _Pod, manifest: Mapping[str, Any]) -> None:
        bound_at = pod_status.now()
        try:
            async with asyncio.timeout(self._draw_startup_s(manifest)):
                await pod.deletion_requested.wait()
        except TimeoutError:
            ready = self._failures_due <= 0
            self._failures_due -= not ready
            await self._patch_status(
                pod, pod_status.started(manifest, bound_at, self._next_address(), ready=ready)
            )

    def _draw_startup_s(self, manifest: Mapping[str, Any]) -> float:
        annotations = manifest["metadata"].get("annotations", {})
        median_s = _number(annotations, STARTUP_MEDIAN_ANNOTATION, self._startup_median_s)
        sigma = _number(annotations, STARTUP_SIGMA_ANNOTATION, self._startup_sigma)
        return median_s * self._random.lognormvariate(0.0, sigma)

    def _next_address(self) -> str:
        number = next(self._addresses)
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    async def _bind(self, pod: _Pod, manifest: Mapping[str, Any]) -> None:
        # Bound pods end as on a real cluster: with a grace period. The API server drops unbound ones at once.
        metadata = {name: manifest["metadata"][name] for name in ("name", "namespace", "uid")}
        target = {"apiVersion": "v1", "kind": "Node", "name": _NODE}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
        await self._send("POST", f"{pod.path}/binding", body)

    async def _patch_status(self, pod: _Pod, status: Mapping[str, Any]) -> None:
        # The uid makes the API server refuse the patch for a later pod of the same name.
        body = {"metadata": {"uid": pod.uid}, "status": status}
        await self._send("PATCH", f"{pod.path}/status", body, "application/strategic-merge-patch+json")

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json"
    ) -> None:
        """Send a request until the API server has answered it; the pod's end cancels the attempts."""
        headers = {"Content-Type": content_type}
        for backoff_s in _backoff():
            try:
                async with self._session.request(method, path, json=body, headers=headers) as answer:
                    if answer.status != 429 and answer.status < 500:
                        if answer.status >= 400 and answer.status not in (
                            404,
                            409,
                        ):  # gone, or another by now
                            _log.warning("%s %s: %s %s", method, path, answer.status, await answer.text())
                        return
                    problem = str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            _log.info("%s %s: %s; trying again in %g s", method, path, problem, backoff_s)
            await asyncio.sleep(backoff_s)


def _backoff() -> itertools.chain[float]:
    """Pauses between attempts, in seconds, without end."""
    return itertools.chain((0.1, 0.2, 0.5, 1.0, 2.0), itertools.repeat(_LONGEST_BACKOFF_S))


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, however long (`readline` has a limit that a pod may exceed)."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _number(annotations: Mapping[str, str], name: str, default: float) -> float:
    """A non-negative number in an annotation."""
    text = annotations.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        _log.warning("annotation %s is %r; write a number of at least 0; using %g", name, text, default)
        return default
    return value
