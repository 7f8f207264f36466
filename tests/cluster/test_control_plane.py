"""The control plane of the tests and the demo behaves like a cluster, and leaves nothing behind."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import requests

from understudy_demo.controlplane.client import Kube, KubeError, wait_for
from understudy_demo.controlplane.kubelet import STARTUP_MEDIAN_ANNOTATION, STARTUP_SIGMA_ANNOTATION
from understudy_demo.controlplane.pki import write_kubeconfig
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.processes import ProcessError, free_port
from understudy_demo.controlplane.prometheus import ScrapeTarget

pytestmark = pytest.mark.cluster


def status(kube, name, namespace):
    return kube.get("apps/v1/deployments", name, namespace)["status"]


def scale(kube, name, namespace, replicas):
    kube.patch("apps/v1/deployments", name, {"spec": {"replicas": replicas}}, namespace, subresource="scale")


def wait_ready(kube, name, namespace, replicas):
    def settled():
        now = status(kube, name, namespace)
        return (now.get("replicas"), now.get("readyReplicas")) == (replicas, replicas)

    wait_for(settled, f"{name} to have exactly {replicas} replicas, all ready")


def pods(kube, namespace):
    return kube.list("v1/pods", namespace)


def conditions(pod):
    return {c["type"]: c for c in pod["status"].get("conditions", [])}


def processes_that_mention(text):
    """Every process with `text` in its command line."""
    return [p.name() for p in psutil.process_iter(["cmdline"]) if text in " ".join(p.info["cmdline"] or [])]


def test_a_deployment_scales_out_and_in_through_the_scale_subresource(kube, deploy, namespace):
    deploy("web", replicas=2)
    scale(kube, "web", namespace, 20)
    wait_ready(kube, "web", namespace, 20)
    scale(kube, "web", namespace, 3)
    wait_ready(kube, "web", namespace, 3)
    wait_for(lambda: len(pods(kube, namespace)) == 3, "the surplus pods to be gone")
    addresses = {pod["status"]["podIP"] for pod in pods(kube, namespace)}
    assert len(addresses) == 3


def test_the_annotation_of_a_pod_sets_its_startup_delay(kube, deploy, namespace):
    slow = {STARTUP_MEDIAN_ANNOTATION: "3600", STARTUP_SIGMA_ANNOTATION: "0"}
    deploy("slow", replicas=1, annotations=slow, ready=False)
    deploy("quick", replicas=1)
    wait_for(
        lambda: any(
            "nodeName" in pod["spec"] for pod in kube.list("v1/pods", namespace, labelSelector="app=slow")
        ),
        "the slow pod to be bound",
    )
    assert status(kube, "slow", namespace).get("readyReplicas", 0) == 0


def test_a_statefulset_becomes_ready_pod_by_pod(kube, namespace):
    template = {
        "metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [{"name": "db", "image": "db"}]},
    }
    spec = {
        "replicas": 3,
        "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "template": template,
    }
    kube.create("apps/v1/statefulsets", {"metadata": {"name": "db"}, "spec": spec}, namespace)
    wait_for(
        lambda: kube.get("apps/v1/statefulsets", "db", namespace)["status"].get("readyReplicas") == 3,
        "the StatefulSet to be ready",
    )
    assert {pod["metadata"]["name"] for pod in pods(kube, namespace)} == {"db-0", "db-1", "db-2"}


def test_pods_beyond_the_capacity_stay_pending_until_there_is_room(kube, kubelet, deploy, namespace):
    deploy("web", replicas=2)
    kubelet.capacity(len([pod for pod in pods(kube, None) if "nodeName" in pod["spec"]]) + 1)
    scale(kube, "web", namespace, 6)

    def unschedulable():
        reasons = [conditions(pod).get("PodScheduled", {}).get("reason") for pod in pods(kube, namespace)]
        return reasons.count("Unschedulable") == 3

    wait_for(unschedulable, "three of four new pods to be unschedulable")
    wait_for(lambda: status(kube, "web", namespace)["readyReplicas"] == 3, "the pod that found room")
    kubelet.capacity(None)
    wait_ready(kube, "web", namespace, 6)


def test_a_pod_told_to_fail_never_becomes_ready(kube, kubelet, deploy, namespace):
    kubelet.fail_next(1)
    deploy("web", replicas=3, ready=False)
    wait_for(lambda: status(kube, "web", namespace).get("readyReplicas") == 2, "the two good pods")

    def reasons():
        statuses = [pod["status"].get("containerStatuses", [{}])[0] for pod in pods(kube, namespace)]
        return [s["state"]["waiting"]["reason"] for s in statuses if "waiting" in s.get("state", {})]

    wait_for(lambda: reasons() == ["CrashLoopBackOff"], "the third pod to crash")


def test_a_service_account_has_no_rights_but_those_granted(plane, kube, namespace):
    kube.create("v1/serviceaccounts", {"metadata": {"name": "reader"}}, namespace)
    reader = Kube(plane.kubeconfig_for_service_account(namespace, "reader"))
    with pytest.raises(KubeError, match=f'"system:serviceaccount:{namespace}:reader" cannot list') as refusal:
        reader.list("v1/pods", namespace)
    assert refusal.value.status == 403

    role = "rbac.authorization.k8s.io/v1/roles"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    kube.create(role, {"metadata": {"name": "reader"}, "rules": rules}, namespace)
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
    }
    kube.create("rbac.authorization.k8s.io/v1/rolebindings", binding, namespace)

    def allowed():
        try:
            return reader.list("v1/pods", namespace) == []
        except KubeError:
            return False

    wait_for(allowed, "the role to take effect")
    with pytest.raises(KubeError, match="cannot list"):
        reader.list("v1/pods")


def test_nobody_gets_in_without_credentials(plane, tmp_path):
    stranger = Kube(write_kubeconfig(tmp_path / "stranger", server=plane.url, authority=plane.authority))
    with pytest.raises(KubeError, match="401 Unauthorized"):
        stranger.list("v1/namespaces")


def test_two_planes_run_side_by_side_and_know_nothing_of_each_other(
    plane, kube, namespace, binaries, capsys, monkeypatch
):
    taken = int(plane.url.rpartition(":")[2])
    ports = iter([taken, free_port()])
    monkeypatch.setattr("understudy_demo.controlplane.plane.free_port", lambda: next(ports))
    started = time.monotonic()
    with ControlPlane(binaries=binaries) as other:
        with capsys.disabled():
            print(f"\nanother control plane was up after {time.monotonic() - started:.1f} s")
        assert other.url != plane.url
        names = [item["metadata"]["name"] for item in Kube(other.admin_kubeconfig).list("v1/namespaces")]
        assert "default" in names
        assert namespace not in names
    assert not other.folder.exists()
    assert processes_that_mention(str(other.folder)) == []
    assert kube.get("v1/namespaces", namespace)


LAUNCHER = """
import sys, time
from understudy_demo.controlplane.pki import write_kubeconfig
from understudy_demo.controlplane.plane import ControlPlane
from understudy_demo.controlplane.prometheus import Prometheus
with ControlPlane() as plane, Prometheus([]) as prometheus:
    print(plane.folder, prometheus.folder, flush=True)
    time.sleep(600)
"""


def test_killing_the_launcher_leaves_no_process_and_the_next_start_removes_its_files(binaries):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    try:
        folders = launcher.stdout.readline().split()
        running = sorted(name for folder in folders for name in processes_that_mention(folder))
        assert running == ["etcd", "kube-apiserver", "kube-controller-manager", "prometheus"]
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
    for folder in folders:
        wait_for(lambda folder=folder: not processes_that_mention(folder), f"the servers of {folder} to end")
        assert os.path.isdir(folder)
    with ControlPlane(binaries=binaries):
        assert not any(os.path.exists(folder) for folder in folders)


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'load_rps{pod="web-1"} 42\n')

    def log_message(self, *args):
        pass


@pytest.fixture
def metrics_address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def value(prometheus, expression):
    return [float(series["value"][1]) for series in prometheus.query(expression)]


def test_prometheus_scrapes_and_keeps_its_data_over_a_restart(prometheus, metrics_address, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{record: doubled, expr: 2 * load_rps}]}]")
    server = prometheus([ScrapeTarget("app", metrics_address)], scrape_interval_s=0.2, rule_files=[rules])
    wait_for(lambda: value(server, "doubled") == [84.0], "the recording rule")

    stopped_at = time.time()
    server.stop()
    with pytest.raises(requests.ConnectionError):
        server.query("load_rps")

    url = server.url
    server.start()
    assert server.url == url
    assert value(server, f"load_rps @ {stopped_at:.3f}") == [42.0]
    wait_for(lambda: value(server, "load_rps") == [42.0], "a scrape after the restart")


def test_a_paused_prometheus_hangs_and_goes_on_when_resumed(prometheus):
    server = prometheus([])
    server.pause()
    with pytest.raises(requests.Timeout):
        requests.get(f"{server.url}/-/ready", timeout=0.5)
    server.resume()
    assert value(server, "vector(1)") == [1.0]


def test_a_wrong_rule_file_is_refused_before_the_start(prometheus, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{record: x, expr: 'rate('}]}]")
    with pytest.raises(ProcessError, match=r"promtool refuses the configuration: [\s\S]*rules\.yaml"):
        prometheus([], rule_files=[rules])


def test_prometheus_takes_another_port_when_the_chosen_one_is_taken(prometheus, monkeypatch):
    first = prometheus([])
    ports = iter([int(first.url.rpartition(":")[2]), free_port()])
    monkeypatch.setattr("understudy_demo.controlplane.prometheus.free_port", lambda: next(ports))
    second = prometheus([])
    assert second.url != first.url
    assert value(second, "vector(1)") == [1.0]
