"""Why this exists: tests, demo and benchmarks need a few plain calls to an API server, and to see its answers as is.

Resources are named by API version and plural, as in the URL: `v1/pods`, `apps/v1/deployments`,
`understudy.dev/v1alpha1/rlpolicies`. Objects are plain dictionaries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

_T = TypeVar("_T")
_Object = dict[str, Any]
_Objects = list[_Object]
_Param = str | int | bool

FIELD_MANAGER = "understudy-demo"
_TIMEOUT_S = 30.0
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"


class KubeError(RuntimeError):
    """The API server refused a request."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Keep the HTTP `status` (such as 409), the `reason` (such as `Conflict`) and the server's `message`."""
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


def load_configuration(kubeconfig: Path | None = None, context: str | None = None) -> Configuration:
    """Credentials of a kubeconfig (by default `$KUBECONFIG`, then `~/.kube/config`) and one of its contexts."""
    configuration = Configuration()
    file = str(kubeconfig) if kubeconfig else None
    load_kube_config(file, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
    return configuration


def authorization(configuration: Configuration) -> dict[str, str]:
    """The headers that carry the bearer token, renewed if need be; empty for a user with a certificate."""
    token = configuration.auth_settings().get("BearerToken")
    return {"Authorization": str(token["value"])} if token else {}


def wait_for(condition: Callable[[], _T], what: str, timeout_s: float = 30.0, interval_s: float = 0.1) -> _T:
    """Poll `condition` until it holds.

    Args:
        condition: Asked again and again; whatever is truthy ends the wait.
        what: What is waited for, for the error.
        timeout_s: When to give up, in seconds.
        interval_s: Pause between two questions, in seconds.

    Returns:
        The truthy answer.

    Raises:
        TimeoutError: It did not hold in time; the message holds the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; the last answer was {answer!r}")
        time.sleep(interval_s)
    return answer


class Kube:
    """A small synchronous client of one API server. Not for use by several threads at once."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        """Connect as the user of this kubeconfig."""
        self._configuration = load_configuration(kubeconfig, context)
        self._session = requests.Session()
        self._session.trust_env = False  # else REQUESTS_CA_BUNDLE would override the kubeconfig's authority
        self._session.verify = self._configuration.ssl_ca_cert or self._configuration.verify_ssl
        if self._configuration.cert_file:
            self._session.cert = (self._configuration.cert_file, str(self._configuration.key_file))
        self._discover = cache(lambda version: self.request("GET", _prefix(version))["resources"])

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        params: Mapping[str, _Param] | None = None,
    ) -> _Object:
        """Send one request.

        Args:
            method: The HTTP verb.
            path: The path of the URL, such as `/api/v1/pods`.
            body: Sent as JSON.
            content_type: The media type of the body; decides the kind of a patch.
            accept: The media type of the answer, such as `application/json;as=Table;v=v1;g=meta.k8s.io`.
            params: The query, such as `{"fieldManager": "x", "dryRun": "All"}`.

        Raises:
            KubeError: The answer is not a 2xx.
        """
        headers = {"Content-Type": content_type, "Accept": accept, **authorization(self._configuration)}
        answer = self._session.request(
            method,
            f"{self._configuration.host}{path}",
            data=None if body is None else json.dumps(body),
            headers=headers,
            params={name: json.dumps(v) if isinstance(v, bool) else v for name, v in (params or {}).items()},
            timeout=_TIMEOUT_S,
        )
        if answer.ok:
            return (
                answer.json() if "json" in answer.headers.get("Content-Type", "") else {"text": answer.text}
            )
        try:
            status = answer.json()
        except ValueError:
            status = {}
        reason, message = status.get("reason", answer.reason), status.get("message", answer.text)
        raise KubeError(answer.status_code, reason, message)

    def get(
        self,
        resource: str,
        name: str,
        namespace: str | None = None,
        subresource: str = "",
        **params: _Param,
    ) -> _Object:
        """Read one object, or a subresource of it such as `scale`; `params` are the query, here and below."""
        return self.request("GET", resource_path(resource, namespace, name, subresource), params=params)

    def list(self, resource: str, namespace: str | None = None, **params: _Param) -> _Objects:
        """Read the objects of a namespace, or of all; `labelSelector` and `fieldSelector` are query parameters."""
        items: _Objects = self.request("GET", resource_path(resource, namespace), params=params)["items"]
        return items

    def create(self, resource: str, body: Any, namespace: str | None = None, **params: _Param) -> _Object:
        """Create an object."""
        return self.request("POST", resource_path(resource, namespace), body, params=params)

    def patch(
        self,
        resource: str,
        name: str,
        body: Any,
        namespace: str | None = None,
        subresource: str = "",
        content_type: str = _MERGE_PATCH,
        **params: _Param,
    ) -> _Object:
        """Patch an object or a subresource of it; a merge patch unless `content_type` says otherwise."""
        path = resource_path(resource, namespace, name, subresource)
        return self.request("PATCH", path, body, content_type=content_type, params=params)

    def delete(self, resource: str, name: str, namespace: str | None = None, **params: _Param) -> None:
        """Delete an object; it is no error when there is none."""
        try:
            self.request("DELETE", resource_path(resource, namespace, name), params=params)
        except KubeError as error:
            if error.status != 404:
                raise

    def apply(
        self,
        objects: Iterable[Mapping[str, Any]],
        *,
        namespace: str | None = None,
        manager: str = FIELD_MANAGER,
    ) -> _Objects:
        """Apply objects server-side, in order, and wait until each CustomResourceDefinition serves.

        Args:
            objects: Whole manifests, such as those of `read_manifests`.
            namespace: For namespaced objects that name none.
            manager: The field manager.

        Returns:
            The objects as stored.
        """
        return [self._apply(manifest, namespace, manager) for manifest in objects]

    def _apply(self, manifest: Mapping[str, Any], namespace: str | None, manager: str) -> _Object:
        version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
        plural, namespaced = self._plural(version, kind)
        where = (metadata.get("namespace") or namespace or "default") if namespaced else None

        def attempt() -> _Object | None:
            try:
                return self.patch(
                    f"{version}/{plural}",
                    metadata["name"],
                    manifest,
                    where,
                    content_type=_APPLY_PATCH,
                    fieldManager=manager,
                    force=True,
                )
            except KubeError as error:
                # The storage of a new resource answers 429 while it warms up.
                if error.status != 429:
                    raise
                return None

        stored = wait_for(attempt, f"{kind} {metadata['name']} to be accepted")
        if kind == "CustomResourceDefinition":
            self._wait_established(metadata["name"])
        return stored or {}

    def _wait_established(self, name: str) -> None:
        def established() -> bool:
            crd = self.get("apiextensions.k8s.io/v1/customresourcedefinitions", name)
            conditions = {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions") or []}
            if conditions.get("NamesAccepted") == "False":
                raise KubeError(409, "NamesNotAccepted", f"CustomResourceDefinition {name}: {conditions}")
            return conditions.get("Established") == "True"

        wait_for(established, f"CustomResourceDefinition {name} to be established")
        self._discover.cache_clear()

    def _plural(self, version: str, kind: str) -> tuple[str, bool]:
        """The plural of a kind and whether it is namespaced, as the API server says."""
        for resource in self._discover(version):
            if resource["kind"] == kind and "/" not in resource["name"]:
                return resource["name"], resource["namespaced"]
        raise KubeError(
            404, "NotFound", f"{version} has no kind {kind}; apply its CustomResourceDefinition first"
        )


def resource_path(resource: str, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
    """The URL path of `resource` (such as `apps/v1/deployments`), or of one object, or of its subresource."""
    version, _, plural = resource.rpartition("/")
    scope = f"/namespaces/{namespace}" if namespace else ""
    return "/".join(part for part in (f"{_prefix(version)}{scope}", plural, name, subresource) if part)


def _prefix(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def read_manifests(*paths: Path) -> _Objects:
    """The objects in YAML files; a folder stands for the `*.yaml` in it, in order of their names."""
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text()) if manifest]
