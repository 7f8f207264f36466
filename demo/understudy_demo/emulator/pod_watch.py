"""Which pods are ready, straight from the API server: one watch for all namespaces.

The emulator must lose capacity when a pod goes, and gain it only when a pod is ready, at the moment at which
a real Service would; so it follows pods as the endpoints controller does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from kubernetes.aio import client, config

from understudy_demo.emulator.fleet import Fleet

LABEL = "app"
_log = logging.getLogger(__name__)
_LIST_S = 30.0
_WATCH_S = 120  # then the server ends the watch; one that does not end soon after is dead
_PAUSE_S = 0.5


async def follow_pods(kubeconfig: Path, fleet: Fleet, listed: asyncio.Event) -> None:
    """Keep the fleet's pods as the API server has them, until cancelled.

    Args:
        kubeconfig: credentials that may list and watch pods in all namespaces.
        fleet: whose pods; a pod belongs to the workload of its namespace that its label `app` names.
        listed: set as soon as all pods are known.
    """
    async with await config.new_client_from_config(str(kubeconfig), persist_config=False) as api:
        pods = client.CoreV1Api(api)
        while True:
            try:
                version = await _list(pods, fleet)
                listed.set()
                while version:
                    version = await _watch(pods, fleet, version)
            except (aiohttp.ClientError, client.ApiException, TimeoutError) as error:
                _log.warning("pods cannot be followed (%s); listing them anew", error or type(error).__name__)
            await asyncio.sleep(_PAUSE_S)


async def _list(pods: client.CoreV1Api, fleet: Fleet) -> str:
    async with await pods.list_pod_for_all_namespaces_without_preload_content(
        label_selector=LABEL, _request_timeout=_LIST_S
    ) as answer:
        answer.raise_for_status()
        found = orjson.loads(await answer.read())
    fleet.keep_pods({(p["metadata"]["namespace"], p["metadata"]["name"]) for p in found["items"]})
    for pod in found["items"]:
        _notice(fleet, pod)
    return str(found["metadata"]["resourceVersion"])


async def _watch(pods: client.CoreV1Api, fleet: Fleet, version: str) -> str:
    """Follow the pods from `version`; the version to go on from, empty if there is no going on."""
    async with await pods.list_pod_for_all_namespaces_without_preload_content(
        label_selector=LABEL,
        watch=True,
        resource_version=version,
        allow_watch_bookmarks=True,
        timeout_seconds=_WATCH_S,
        _request_timeout=_WATCH_S + _LIST_S,
    ) as answer:
        answer.raise_for_status()
        async for line in _lines(answer.content):
            event = orjson.loads(line)
            if event["type"] == "ERROR":
                return ""
            pod = event["object"]
            version = pod["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                fleet.remove_pod(pod["metadata"]["namespace"], pod["metadata"]["name"])
            elif event["type"] != "BOOKMARK":
                _notice(fleet, pod)
    return version


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, however long (`readline` has a limit that a pod may exceed)."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _notice(fleet: Fleet, pod: Mapping[str, Any]) -> None:
    metadata = pod["metadata"]
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())}
    serving = conditions.get("Ready") == "True" and "deletionTimestamp" not in metadata
    fleet.set_pod(metadata["namespace"], metadata["name"], metadata["labels"][LABEL], serving)
