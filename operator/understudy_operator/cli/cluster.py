"""The API server as the command line needs it: whatever kubeconfig says, raw JSON, one sentence when it fails."""

from __future__ import annotations

import json
from typing import Any, Self

import urllib3
from kubernetes import client, config

from understudy_policy.api import GROUP, VERSION

TIMEOUT_S = 10.0
MERGE_PATCH = "application/merge-patch+json"

Body = dict[str, Any]


class ClusterError(Exception):
    """What could not be done, in one sentence.

    Attributes:
        status: HTTP status, 0 where no answer came.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """One cluster, one user.

    Attributes:
        namespace: that kubeconfig's context names.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self._api = api

    @classmethod
    def connect(cls, kubeconfig: str | None, context: str | None) -> Self:
        """Use a kubeconfig, or the service account of the pod that this runs in.

        Args:
            kubeconfig: path; by default `$KUBECONFIG` or `~/.kube/config`.
            context: by default the current one.

        Raises:
            ClusterError: there is no usable configuration.
        """
        try:
            contexts, current = config.list_kube_config_contexts(kubeconfig)
            chosen = current if context is None else next((c for c in contexts if c["name"] == context), None)
            if chosen is None:
                names = ", ".join(each["name"] for each in contexts)
                raise ClusterError(f"context {context!r} is not in the kubeconfig: use one of {names}")
            api = config.new_client_from_config(kubeconfig, context, persist_config=False)
            return cls(api, chosen["context"].get("namespace", "default"))
        except config.ConfigException as error:
            if kubeconfig is not None or context is not None:
                raise ClusterError(f"the kubeconfig cannot be used: {error}") from error
        try:
            config.load_incluster_config()
        except config.ConfigException as error:
            raise ClusterError("there is no kubeconfig: name one with --kubeconfig or $KUBECONFIG") from error
        return cls(client.ApiClient(), "default")

    def get(self, path: str) -> Body:
        """Read what is at a path such as `/api/v1/namespaces/default`; raises `ClusterError`."""
        return self._call("GET", path)

    def create(self, path: str, body: Body) -> Body:
        """Create an object in a collection; raises `ClusterError`."""
        return self._call("POST", f"{path}?fieldManager=understudy-cli", body)

    def patch(self, path: str, body: Body) -> Body:
        """Merge a patch into an object; with `metadata.resourceVersion`, only if it is unchanged."""
        return self._call("PATCH", f"{path}?fieldManager=understudy-cli", body, MERGE_PATCH)

    def user(self) -> str:
        """Who we are to the API server, `unknown` where it does not tell."""
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            review = self.create(
                path, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
            )
        except ClusterError:
            return "unknown"
        name: str = review["status"]["userInfo"]["username"]
        return name

    def _call(
        self, method: str, path: str, body: Body | None = None, content_type: str = "application/json"
    ) -> Body:
        api = self._api
        headers = {"Accept": "application/json", "Content-Type": content_type}
        api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{api.configuration.host}{path}"
        try:
            response = api.call_api(method, url, headers, body, _request_timeout=TIMEOUT_S)
            status, text = response.status, response.read()
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(
                f"the API server at {api.configuration.host} cannot be reached: {error}"
            ) from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"message": text.decode(errors="replace")[:200]}
        if status >= 400:
            raise ClusterError(
                f"{method} {path.split('?')[0]}: {answer.get('message', 'refused')} (HTTP {status})", status
            )
        return answer


def policies_path(namespace: str | None, name: str = "") -> str:
    """Path of a policy, of all policies of a namespace, or (None) of all there are."""
    base = f"/apis/{GROUP}/{VERSION}"
    if namespace is None:
        return f"{base}/rlpolicies"
    return f"{base}/namespaces/{namespace}/rlpolicies{f'/{name}' if name else ''}"
