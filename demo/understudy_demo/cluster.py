"""Where the demo runs: on a control plane of its own, or on a cluster at hand, and with which rights.

Nobody but the person who starts the demo is an administrator. Operator, emulator and the person on call each get a
token of their own ServiceAccount, so that a right that the chart would not give is missed here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.config import ConfigException

from understudy_demo.controlplane.binaries import ensure_binaries
from understudy_demo.controlplane.client import Kube, KubeError, load_configuration, read_manifests, wait_for
from understudy_demo.controlplane.kubelet import FakeKubelet
from understudy_demo.controlplane.pki import write_kubeconfig
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.processes import Workspace
from understudy_policy.api import RLPolicy

_PACKAGE = Path(__file__).resolve().parent
_MANIFESTS = _PACKAGE.parents[1] / "manifests"
_POLICY = _PACKAGE / "manifests" / "policy.yaml"
_TOKEN_LIFETIME_S = 24 * 3600

_CLUSTER_WIDE = {
    "Namespace": "v1/namespaces",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1/customresourcedefinitions",
    "ClusterRole": "rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1/clusterrolebindings",
}

OPERATOR_NAMESPACE = "understudy-system"
NAMESPACE = "shop"
WORKLOAD = "checkout"


class DemoError(RuntimeError):
    """The demo cannot run, or did not show what it has to; the message says why."""


@dataclass(frozen=True)
class Cluster:
    """A cluster with the demo's objects in it.

    Attributes:
        kube: as its administrator.
        kubeconfig: of the administrator; None for the one that `kubectl` would use.
        operator_kubeconfig: of the operator's ServiceAccount.
        emulator_kubeconfig: of a ServiceAccount that may only see pods.
        oncall_kubeconfig: of a ServiceAccount that may look, kill and resume.
        version: of the API server, such as v1.36.3.
        words: where this is, for a person.
    """

    kube: Kube
    kubeconfig: Path | None
    operator_kubeconfig: Path
    emulator_kubeconfig: Path
    oncall_kubeconfig: Path
    version: str
    words: str

    def apply_policy(self) -> None:
        """Hand the workload over to the operator."""
        self.kube.apply(read_manifests(_POLICY))

    def deployment(self) -> dict[str, Any]:
        """The workload as it is now."""
        return self.kube.get("apps/v1/deployments", WORKLOAD, NAMESPACE)

    def wait_for_pods(self, timeout_s: float = 120.0) -> None:
        """Wait until every replica of the workload is ready."""

        def ready() -> bool:
            workload = self.deployment()
            return bool(workload["status"].get("readyReplicas", 0) == workload["spec"]["replicas"])

        wait_for(ready, f"the pods of {NAMESPACE}/{WORKLOAD} to be ready", timeout_s, interval_s=0.2)


def the_policy() -> RLPolicy:
    """The policy of the demo."""
    return RLPolicy.model_validate(read_manifests(_POLICY)[0])


@contextmanager
def local_cluster(seed: int) -> Iterator[Cluster]:
    """A control plane of its own, with a fake kubelet that plays the nodes.

    Args:
        seed: of the start-up delays of pods.
    """
    with ControlPlane() as plane, FakeKubelet(plane.admin_kubeconfig, seed=seed):
        kube = Kube(plane.admin_kubeconfig)
        words = "a local control plane: etcd, kube-apiserver, kube-controller-manager, and a fake kubelet"
        yield _furnish(kube, plane.admin_kubeconfig, None, plane.folder, words)


@contextmanager
def cluster_at_hand(context: str) -> Iterator[Cluster]:
    """A cluster that exists already; what the demo puts there is taken away again.

    Args:
        context: of the kubeconfig that `kubectl` would use.

    Raises:
        DemoError: the cluster cannot be used, or holds something that the demo would overwrite.
    """
    try:
        kube = Kube(context=context)
    except ConfigException as error:
        raise DemoError(
            f"context {context} cannot be used ({error}): see `kubectl config get-contexts`"
        ) from error
    cluster_wide = [
        (_CLUSTER_WIDE[m["kind"]], m["metadata"]["name"]) for m in _objects() if m["kind"] in _CLUSTER_WIDE
    ]
    for resource, name in cluster_wide:
        if _exists(kube, resource, name):
            raise DemoError(
                f"context {context} has {resource}/{name} already, which the demo would overwrite and then remove: "
                "use another cluster, or delete it first"
            )
    ensure_binaries()  # Prometheus' are needed here too, and a first build should not keep their cluster waiting
    workspace = Workspace("demo")
    try:
        words = f"the cluster of context {context}; operator, Prometheus and emulator run on this machine"
        yield _furnish(kube, None, context, workspace.folder, words)
    finally:
        workspace.remove()
        for resource, name in reversed(cluster_wide):
            kube.delete(resource, name)


def _furnish(kube: Kube, kubeconfig: Path | None, context: str | None, folder: Path, words: str) -> Cluster:
    """Apply everything but the policy, and make credentials."""
    kube.apply(_objects())

    def credentials(namespace: str, name: str) -> Path:
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": _TOKEN_LIFETIME_S},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        configuration = load_configuration(kubeconfig, context)
        if not configuration.ssl_ca_cert:
            raise DemoError(f"context {context} names no certificate authority: add one to the kubeconfig")
        return write_kubeconfig(
            folder / f"{name}.kubeconfig",
            server=configuration.host,
            authority=Path(configuration.ssl_ca_cert),
            token=kube.request("POST", path, request)["status"]["token"],
        )

    return Cluster(
        kube=kube,
        kubeconfig=kubeconfig,
        operator_kubeconfig=credentials(OPERATOR_NAMESPACE, "understudy-operator"),
        emulator_kubeconfig=credentials(NAMESPACE, "emulator"),
        oncall_kubeconfig=credentials(NAMESPACE, "oncall"),
        version=kube.request("GET", "/version")["gitVersion"],
        words=words,
    )


def _objects() -> list[dict[str, Any]]:
    """Everything that the demo applies, but for the policy; namespaces come before what lives in them."""
    found = read_manifests(_MANIFESTS / "crds", _MANIFESTS / "rbac", _PACKAGE / "manifests" / "shop.yaml")
    return sorted(found, key=lambda manifest: manifest["kind"] != "Namespace")


def _exists(kube: Kube, resource: str, name: str) -> bool:
    try:
        kube.get(resource, name)
    except KubeError as error:
        if error.status != 404:
            raise
        return False
    return True
