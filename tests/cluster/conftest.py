"""One real control plane per test session (per worker under xdist), and a fresh namespace per test."""

import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from understudy_demo.controlplane.binaries import BinariesError, ensure_binaries
from understudy_demo.controlplane.client import Kube, read_manifests, wait_for
from understudy_demo.controlplane.kubelet import FakeKubelet
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.prometheus import Prometheus

CRDS = Path(__file__).resolve().parents[2] / "manifests" / "crds"


def pytest_collection_finish(session):
    """Build the servers before the first test, whose time limit a first build would exceed."""
    if not session.config.option.collectonly and any(
        item.get_closest_marker("cluster") for item in session.items
    ):
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            try:
                ensure_binaries()
            except BinariesError as error:
                pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def binaries():
    """The paths of all servers."""
    return ensure_binaries()


@pytest.fixture(scope="session")
def plane(binaries):
    """A running control plane that knows the CRDs of this repository."""
    with ControlPlane(binaries=binaries) as plane:
        Kube(plane.admin_kubeconfig).apply(read_manifests(CRDS))
        yield plane


@pytest.fixture(scope="session")
def kube(plane):
    """A client with all rights."""
    return Kube(plane.admin_kubeconfig)


@pytest.fixture(scope="session")
def running_kubelet(plane):
    with FakeKubelet(plane.admin_kubeconfig, startup_median_s=0.2) as kubelet:
        yield kubelet


@pytest.fixture
def kubelet(running_kubelet):
    """The nodes: pods start in about 0.2 s, unless annotated otherwise. Faults end with the test."""
    yield running_kubelet
    running_kubelet.capacity(None)
    running_kubelet.fail_next(0)


@pytest.fixture
def namespace(kube, kubelet):
    """The name of a new namespace in which pods can be created."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kube.create("v1/namespaces", {"metadata": {"name": name}})
    wait_for(lambda: kube.list("v1/serviceaccounts", name), f"the service account of namespace {name}")
    yield name
    kube.delete("v1/namespaces", name)
    # Or the next test's faults would hit, and its capacity would count, the pods of this one. The namespace refuses
    # new ones by now, and its controller would come for these only after 5 s.
    kube.request("DELETE", f"/api/v1/namespaces/{name}/pods")
    wait_for(lambda: not kube.list("v1/pods", name), f"the pods of namespace {name} to be gone")


@pytest.fixture
def deploy(kube, namespace):
    """A function that creates a Deployment in the namespace and, unless told otherwise, waits until it is ready."""

    def create(name="web", replicas=2, annotations=None, ready=True):
        template = {
            "metadata": {"labels": {"app": name}, "annotations": annotations or {}},
            "spec": {
                "containers": [{"name": "app", "image": "app", "resources": {"requests": {"cpu": "1"}}}],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        kube.create("apps/v1/deployments", {"metadata": {"name": name}, "spec": spec}, namespace)
        if ready:
            wait_for(
                lambda: ready_replicas(kube, name, namespace) == replicas,
                f"{replicas} ready replicas of {name}",
            )
        return name

    return create


def ready_replicas(kube, name, namespace):
    return kube.get("apps/v1/deployments", name, namespace)["status"].get("readyReplicas", 0)


@pytest.fixture
def prometheus(binaries):
    """A function that starts a Prometheus: `prometheus(targets, scrape_interval_s=0.5, rule_files=[…])`."""
    with ExitStack() as stack:

        def start(targets, **options):
            return stack.enter_context(Prometheus(targets, binaries=binaries, **options))

        yield start
