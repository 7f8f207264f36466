"""Why this exists: the operator is only worth trusting on a real API server with real controllers.

One `ControlPlane` is etcd, kube-apiserver and kube-controller-manager with RBAC on, on ports and in a folder of
its own, so that several run side by side. There is no scheduler and there are no nodes: see `kubelet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import requests

from understudy_demo.controlplane.binaries import ensure_binaries
from understudy_demo.controlplane.client import Kube, KubeError, wait_for
from understudy_demo.controlplane.pki import Authority, service_account_key, write_kubeconfig
from understudy_demo.controlplane.processes import Process, ProcessError, Workspace, free_port

# What an autoscaled workload needs; every controller left out is seconds of start-up and memory saved.
CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "horizontal-pod-autoscaler-controller",
)

_PORT_ATTEMPTS = 5
_READY_TIMEOUT_S = 120.0
# A client that keeps a watch open would hold the API server for a minute, and the data are thrown away anyway.
_STOP_TIMEOUT_S = 3.0
_TOKEN_LIFETIME_S = 24 * 3600


class ControlPlane:
    """A control plane that runs between `start` and `stop`, or inside a `with`.

    Attributes:
        url: The API server, from `start` on.
        folder: Everything the plane writes; removed by `stop`.
        logs: The folder of the components' logs.
        authority: The certificate that the API server's is signed with.
        admin_kubeconfig: Credentials of a cluster administrator.
        processes: The running components by name, in the order they were started.
    """

    def __init__(
        self,
        *,
        controllers: Sequence[str] = CONTROLLERS,
        controller_manager_flags: Sequence[str] = (),
        apiserver_flags: Sequence[str] = (),
        binaries: Mapping[str, Path] | None = None,
    ) -> None:
        """Describe a plane.

        Args:
            controllers: The controllers that run.
            controller_manager_flags: More flags, such as `--horizontal-pod-autoscaler-sync-period=1s`.
            apiserver_flags: More flags for the API server.
            binaries: The servers; by default those of `ensure_binaries`.
        """
        self._controllers = controllers
        self._controller_manager_flags = controller_manager_flags
        self._apiserver_flags = apiserver_flags
        self._binaries = binaries
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> ControlPlane:
        """Start the plane."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the plane."""
        self.stop()

    def start(self) -> None:
        """Start all components and wait until workloads can be created.

        Raises:
            ProcessError: A component ended; the message holds the end of its log.
            TimeoutError: A component did not become ready.
        """
        self._binaries = self._binaries or ensure_binaries()
        self._workspace = Workspace("plane")
        self.folder = self._workspace.folder
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        try:
            self._make_credentials()
            self._start_etcd()
            self._start_apiserver()
            self._start_controller_manager()
            # Without a service account the API server refuses pods.
            accounts = partial(Kube(self.admin_kubeconfig).list, "v1/serviceaccounts", "default")
            self._wait_until(accounts, self.processes["kube-controller-manager"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all components and remove the folder.

        In the opposite order of the start: an API server that has lost its etcd would hang for minutes.
        """
        while self.processes:
            self.processes.popitem()[1].stop(_STOP_TIMEOUT_S)
        self._workspace.remove()

    def kubeconfig_for_service_account(self, namespace: str, name: str) -> Path:
        """Credentials of an existing ServiceAccount: a kubeconfig with a token that is good for a day."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": _TOKEN_LIFETIME_S},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = Kube(self.admin_kubeconfig).request("POST", path, request)["status"]["token"]
        kubeconfig = self.folder / f"{namespace}.{name}.kubeconfig"
        return write_kubeconfig(kubeconfig, server=self.url, authority=self.authority, token=token)

    # --- components --------------------------------------------------------------------------------------------

    def _make_credentials(self) -> None:
        pki = self.folder / "pki"
        pki.mkdir()
        self._ca = Authority(pki, "ca")
        self.authority = self._ca.certificate
        self._serving = self._ca.issue(
            "kube-apiserver",
            server_names=["localhost", "kubernetes.default.svc", "127.0.0.1", "10.96.0.1"],
        )
        self._admin = self._ca.issue("understudy-admin", organizations=["system:masters"])
        self._manager = self._ca.issue("system:kube-controller-manager")
        # The API server proves itself to aggregated API servers with a certificate of another authority.
        self._proxy_ca = Authority(pki, "front-proxy-ca")
        self._proxy = self._proxy_ca.issue("front-proxy-client")
        self._service_account_key = service_account_key(pki / "service-account.key")

    def _run(self, name: str, *flags: str) -> Process:
        assert self._binaries is not None  # set by start()
        process = Process(name, [self._binaries[name], *flags], self.logs / f"{name}.log")
        self.processes[name] = process
        return process

    def _start_etcd(self) -> None:
        # A socket in a private folder: no port to choose, and no other user of the machine can reach it.
        self._etcd_url, peer = (f"unix://{self.folder}/{name}.sock:0" for name in ("etcd", "peer"))
        self._run(
            "etcd",
            "--name=default",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _start_apiserver(self) -> None:
        """Start the API server, on another port if the chosen one was taken in the meantime."""
        for attempt in range(_PORT_ATTEMPTS):
            port = free_port()
            self.url = f"https://127.0.0.1:{port}"
            self.admin_kubeconfig = write_kubeconfig(
                self.folder / "admin.kubeconfig",
                server=self.url,
                authority=self.authority,
                certificate=self._admin,
            )
            process = self._run("kube-apiserver", *self._apiserver_command(port))
            try:
                self._wait_until(partial(_is_ready, Kube(self.admin_kubeconfig)), process)
            except ProcessError:
                if attempt == _PORT_ATTEMPTS - 1 or "address already in use" not in process.log_tail():
                    raise
            else:
                break

    def _apiserver_command(self, port: int) -> list[str]:
        issuer = "https://kubernetes.default.svc"
        return [
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--cert-dir={self.folder / 'pki'}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self.authority}",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            f"--service-account-issuer={issuer}",
            f"--api-audiences={issuer}",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            f"--requestheader-client-ca-file={self._proxy_ca.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self._proxy.certificate}",
            f"--proxy-client-key-file={self._proxy.key}",
            "--profiling=false",
            *self._apiserver_flags,
        ]

    def _start_controller_manager(self) -> None:
        kubeconfig = write_kubeconfig(
            self.folder / "kube-controller-manager.kubeconfig",
            server=self.url,
            authority=self.authority,
            certificate=self._manager,
        )
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            "--secure-port=0",  # nobody asks it anything; a flag may open a port again
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self.authority}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            f"--controllers={','.join(self._controllers)}",
            *self._controller_manager_flags,
        )

    def _wait_until(self, ready: Callable[[], object], process: Process) -> None:
        def check() -> object:
            process.check()
            return ready()

        wait_for(check, f"{process.name} to be ready (log: {process.log})", _READY_TIMEOUT_S, interval_s=0.05)


def _is_ready(kube: Kube) -> bool:
    try:
        kube.request("GET", "/readyz")
    except (KubeError, requests.ConnectionError, requests.Timeout):
        return False  # a stranger's server on this port fails the handshake, which is a ConnectionError, too
    return True
