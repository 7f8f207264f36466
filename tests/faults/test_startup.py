"""A start that cannot succeed ends the process: whoever started it has to be told, and not after a minute."""

import socket
import subprocess
import sys

import pytest

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
clusters: [{name: here, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: me, user: {token: t}}]
"""


@pytest.mark.parametrize(
    ("content", "said"), [(KUBECONFIG, "address already in use"), ("kind: Config", "config cannot be used")]
)
def test_a_port_that_is_taken_or_a_bad_kubeconfig_ends_the_operator(tmp_path, content, said):
    config = tmp_path / "config"
    config.write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "understudy_operator", "--prometheus-url", "http://127.0.0.1:9"]
        command += ["--kubeconfig", str(config), "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode != 0
    assert said in ended.stderr
