"""The servers of the control plane are taken from where they are, refused when too old, and built once."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from understudy_demo.controlplane.binaries import BinariesError, ensure_binaries

VERSIONS = {
    "etcd": "etcd Version: 3.6.0",
    "kube-apiserver": "Kubernetes v1.36.3",
    "kube-controller-manager": "Kubernetes v1.36.3",
    "prometheus": "prometheus, version 3.15.0",
    "promtool": "promtool, version 3.15.0",
}

# Resolves two packages, "compiles" them, notes what it built and writes the program.
GO = """#!/bin/sh
case "$1" in
  version) echo "go version go1.26.9 linux/amd64" ;;
  list) echo one; echo two ;;
  build)
    echo one; echo two
    while [ "$1" != -o ]; do shift; done
    echo "$3" >> "{log}"
    {then}
    echo built > "$2" ;;
esac
"""


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def server(folder, name, version):
    program(folder, name, f'#!/bin/sh\necho "{version}"\n')


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with all servers on the PATH, but neither Go nor a cache; returns the folder on the PATH."""
    path = tmp_path / "path"
    for name, version in VERSIONS.items():
        server(path, name, version)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return path


def install_go(machine, then=":"):
    log = machine.parent / "built"
    program(machine, "go", GO.format(log=log, then=then))
    return log


def test_servers_on_the_path_are_used(machine):
    assert ensure_binaries() == {name: machine / name for name in VERSIONS}


def test_kubebuilder_assets_go_before_the_path(machine, tmp_path, monkeypatch):
    server(tmp_path / "assets", "etcd", "etcd Version: 3.5.13")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    found = ensure_binaries()
    assert found["etcd"] == tmp_path / "assets" / "etcd"
    assert found["kube-apiserver"] == machine / "kube-apiserver"


def test_an_old_etcd_in_kubebuilder_assets_is_refused(machine, tmp_path, monkeypatch):
    server(tmp_path / "assets", "etcd", "etcd Version: 3.5.12")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(BinariesError, match=r"etcd is 3\.5\.12, and 3\.5\.13 or newer is needed"):
        ensure_binaries()


def test_an_old_etcd_on_the_path_is_passed_over_and_another_is_built(machine, capfd):
    server(machine, "etcd", "etcd Version: 3.4.23")
    built = install_go(machine)
    assert ensure_binaries()["etcd"].read_text() == "built\n"
    assert built.read_text() == "go.etcd.io/etcd/server/v3\n"
    assert "is 3.4.23, and 3.5.13 or newer is needed, so it is not used" in capfd.readouterr().err


def test_an_api_server_without_its_controller_manager_is_passed_over(machine, capfd):
    (machine / "kube-controller-manager").unlink()
    built = install_go(machine)
    assert ensure_binaries()["kube-apiserver"] != machine / "kube-apiserver"
    assert len(built.read_text().split()) == 2
    assert "not using kube-apiserver from the PATH" in capfd.readouterr().err


def test_parallel_callers_build_once(machine):
    (machine / "etcd").unlink()
    built = install_go(machine, then="/bin/sleep 0.2")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ensure_binaries()["etcd"], range(4)))
    assert len(set(answers)) == 1
    assert built.read_text().count("\n") == 1


def test_a_failed_build_says_what_go_said_and_leaves_nothing(machine, tmp_path):
    (machine / "etcd").unlink()
    install_go(machine, then="echo 'x.go:1: undefined: y'; exit 1")
    with pytest.raises(BinariesError, match=r"building etcd failed; go said last:[\s\S]*undefined: y"):
        ensure_binaries()
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []
