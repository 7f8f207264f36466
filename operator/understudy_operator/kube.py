"""Raw JSON verbs against the API server, because the client's models cost more than the decisions do.

`kubernetes.aio` supplies what is hard to get right: kubeconfigs, contexts, exec plugins, certificates and the
service account's rotating token. Bodies go in and come out as plain dicts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yaml import YAMLError
from yarl import URL

FIELD_MANAGER = "understudy"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

PAGE_SIZE = 500
RELOAD_KUBECONFIG_AFTER_S = 60.0

Body = dict[str, Any]
Bodies = list[Body]
CallCounter = Callable[[str, str], None]
"""Told the verb and the outcome of every call: the HTTP status, or the reason for which there is none."""


def _not_counted(verb: str, outcome: str) -> None:
    """Nobody wants to know."""


class KubeError(Exception):
    """A call that did not succeed, in one sentence.

    Attributes:
        status: HTTP status, 0 where no answer came.
        reason: CamelCase as in `metav1.Status`, or `Timeout`, `Unreachable`, `Configuration`, `BadResponse`.
        message: the sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def is_conflict(self) -> bool:
        """Whether the object has changed since it was read."""
        return self.status == HTTPStatus.CONFLICT

    @property
    def is_not_found(self) -> bool:
        """Whether the object does not exist."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_forbidden(self) -> bool:
        """Whether RBAC or admission refused the call."""
        return self.status == HTTPStatus.FORBIDDEN


class Kube:
    """Get, list, create and patch, each with a timeout, none with a retry: retrying belongs to whoever decides.

    Bound to the event loop of its first call. Use it as `async with`.
    """

    def __init__(
        self, configuration: Configuration, *, on_call: CallCounter = _not_counted, timeout_s: float = 5.0
    ) -> None:
        """Wrap a loaded configuration.

        Args:
            configuration: where the API server is, and who is calling.
            on_call: counts every call.
            timeout_s: limit of a call that names none.
        """
        self._client = ApiClient(configuration)
        self._client.user_agent = FIELD_MANAGER
        self._on_call = on_call
        self._timeout_s = timeout_s

    @classmethod
    async def connect(
        cls,
        kubeconfig: Path | None = None,
        context: str | None = None,
        *,
        on_call: CallCounter = _not_counted,
        timeout_s: float = 5.0,
    ) -> Kube:
        """Load the configuration: the given kubeconfig, else the pod's service account, else the default kubeconfig.

        Raises:
            KubeError: neither can be loaded.
        """
        configuration = await load_configuration(kubeconfig, context)
        return cls(configuration, on_call=on_call, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(
        self, path: str, params: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> Body:
        """Read one object.

        Args:
            path: as in `/api/v1/namespaces/default`.
            params: query parameters.
            timeout_s: limit of this call.

        Raises:
            KubeError: the object was not returned.
        """
        return await self._call("get", "GET", path, params, timeout_s=timeout_s)

    async def create(self, path: str, body: Mapping[str, Any], *, field_manager: str = FIELD_MANAGER) -> Body:
        """Create an object in the collection at `path` and return it; raises `KubeError`."""
        return await self._call("create", "POST", path, {"fieldManager": field_manager}, body)

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | Bodies,
        *,
        content_type: str = MERGE_PATCH,
        field_manager: str = FIELD_MANAGER,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Body:
        """Patch an object or a subresource and return it as it is afterwards.

        Args:
            path: of the object, or of its `/status` or `/scale`.
            body: the patch; `metadata.resourceVersion` in a merge patch makes it conditional.
            content_type: `MERGE_PATCH` or `JSON_PATCH`.
            field_manager: who owns the fields afterwards.
            params: further query parameters, such as `{"force": "true"}`.
            timeout_s: limit of this call.

        Raises:
            KubeError: the patch was not applied, or (`Timeout`) nobody knows.
        """
        query = {"fieldManager": field_manager, **(params or {})}
        return await self._call("patch", "PATCH", path, query, body, content_type, timeout_s)

    async def list(self, path: str) -> Bodies:
        """Read a whole collection, page by page; raises `KubeError` if any page fails."""
        items: Bodies = []
        params = {"limit": str(PAGE_SIZE)}
        while True:
            page = await self._call("list", "GET", path, params)
            # Items of a list do not say what they are; those of a watch do.
            what = {
                "apiVersion": page.get("apiVersion"),
                "kind": str(page.get("kind", "")).removesuffix("List"),
            }
            items += [what | item for item in page.get("items") or ()]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            params["continue"] = token

    async def _call(
        self,
        verb: str,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Bodies | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> Body:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            status, data = await self._send(method, path, params, body, content_type, limit_s)
        except (aiohttp.ClientError, ConfigException, OSError) as error:
            failure = _unanswered(error, f"{method} {path}", limit_s)
            self._on_call(verb, failure.reason)
            raise failure from error
        self._on_call(verb, str(status))
        return _parse(status, data, f"{method} {path}")

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | Bodies | None,
        content_type: str,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """Status and body of the answer; the whole exchange shares one limit."""
        headers = {"Accept": "application/json", "Content-Type": content_type, **self._client.default_headers}
        configuration = self._client.configuration
        for setting in (await configuration.auth_settings()).values():
            headers[setting["key"]] = setting["value"]
        response = await self._client.call_api(
            method,
            str(URL(configuration.host + path).update_query(params or {})),
            headers,
            body,
            _request_timeout=aiohttp.ClientTimeout(total=timeout_s),
        )
        return response.status, await response.read()


def _unanswered(error: Exception, call: str, limit_s: float) -> KubeError:
    if isinstance(error, TimeoutError):
        return KubeError(0, "Timeout", f"{call}: the API server did not answer within {limit_s:g} s")
    if isinstance(error, ConfigException):
        return KubeError(0, "Configuration", f"{call}: the credentials cannot be renewed: {error}")
    return KubeError(0, "Unreachable", f"{call}: the API server cannot be reached: {error}")


def _parse(status: int, data: bytes, call: str) -> Body:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        text = data[:200].decode(errors="replace")
        raise KubeError(
            status, "BadResponse", f"{call}: HTTP {status} with a body that is not an object: {text!r}"
        )
    if status >= HTTPStatus.BAD_REQUEST:
        reason = body.get("reason") or f"Http{status}"
        raise KubeError(status, reason, f"{call}: {body.get('message') or reason} (HTTP {status})")
    return body


async def load_configuration(kubeconfig: Path | None = None, context: str | None = None) -> Configuration:
    """The given kubeconfig, else the pod's service account, else the default kubeconfig.

    Raises:
        KubeError: neither can be loaded.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None and _in_cluster():
            load_incluster_config(client_configuration=configuration)
        else:
            await _load_kubeconfig(configuration, kubeconfig, context)
    except (ConfigException, OSError) as error:
        where = kubeconfig or "the default kubeconfig"
        raise KubeError(
            0,
            "Configuration",
            f"{where} cannot be used: {error}; name a kubeconfig and a context that exist, or run in a pod",
        ) from error
    return configuration


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


async def _load_kubeconfig(configuration: Configuration, path: Path | None, context: str | None) -> None:
    """Load a kubeconfig, now and every minute: tokens from files and exec plugins expire."""

    async def load() -> float:
        file = None if path is None else str(path)
        try:
            await load_kube_config(file, context, client_configuration=configuration, persist_config=False)
        except (TypeError, YAMLError) as error:  # an empty kubeconfig is a TypeError in there
            raise ConfigException(f"it is not a kubeconfig: {error}") from error
        return time.monotonic()

    loaded_at = await load()

    async def reload(_: Configuration) -> None:
        nonlocal loaded_at
        if time.monotonic() - loaded_at > RELOAD_KUBECONFIG_AFTER_S:
            loaded_at = await load()

    configuration.refresh_api_key_hook = reload  # type: ignore[assignment]  # declared as None in the client


def manager_of(metadata: Mapping[str, Any], *fields: str) -> tuple[str, str]:
    """Who last wrote a field, and when, by `metadata.managedFields`.

    Args:
        metadata: of the object.
        fields: path of the field as `fieldsV1` spells it, such as `"f:spec", "f:replicas"`.

    Returns:
        Field manager and RFC 3339 time, both empty where nobody is known.
    """
    newest = ("", "")
    for entry in metadata.get("managedFields") or ():
        node = entry.get("fieldsV1")
        for field in fields:
            node = node.get(field) if isinstance(node, Mapping) else None
        if node is not None and entry.get("time", "") >= newest[1]:
            newest = (entry.get("manager", ""), entry.get("time", ""))
    return newest
