"""What a person on call types does what it says, says what it did, and can be typed twice."""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from one_policy import body
from one_tick import tick
from test_ledger import calm, decided
from understudy_operator.cli import main
from understudy_operator.cli.cluster import Cluster, ClusterError
from understudy_operator.ledger import Ledger, LedgerConfig
from understudy_policy import explain

PROXY = "/api/v1/namespaces/understudy-system/services/understudy-operator:8080/proxy/decisions/prod/shop"
CONFIG_MAP = "/api/v1/namespaces/understudy-system/configmaps/understudy-kill-switch"


def merged(into, patch):
    """JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(into) if isinstance(into, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class FakeCluster:
    """Objects by path, with resourceVersions; counts what was written."""

    namespace = "prod"

    def __init__(self):
        self.objects = {"/api/v1/namespaces/prod": {"metadata": {"name": "prod"}}}
        self.writes, self.refusals, self.rivals = 0, {}, 0
        self.put(body(mode="Active"))

    def put(self, policy):
        meta = policy["metadata"]
        self.objects[
            f"/apis/understudy.dev/v1alpha1/namespaces/{meta['namespace']}/rlpolicies/{meta['name']}"
        ] = policy

    def policy(self, name="shop"):
        return self.objects[f"/apis/understudy.dev/v1alpha1/namespaces/prod/rlpolicies/{name}"]

    def get(self, path):
        if path in self.refusals:
            raise self.refusals[path]
        if path.endswith("/rlpolicies"):
            prefix = path if "/namespaces/" in path else "/apis/understudy.dev"
            return {"items": [o for p, o in self.objects.items() if p.startswith(prefix)]}
        if path not in self.objects:
            raise ClusterError(f"GET {path}: not found (HTTP 404)", 404)
        return copy.deepcopy(self.objects[path])

    def create(self, path, body):
        self.writes += 1
        self.objects[f"{path}/{body['metadata']['name']}"] = body
        return body

    def patch(self, path, patch):
        if self.rivals:
            self.rivals -= 1
            meta = self.objects[path]["metadata"]
            meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != self.objects[path]["metadata"]["resourceVersion"]:
            raise ClusterError("the object has been modified (HTTP 409)", 409)
        self.writes += 1
        self.objects[path] = merged(self.objects[path], patch)
        return self.objects[path]

    def user(self):
        return "alice"


@pytest.fixture
def cluster(monkeypatch):
    fake = FakeCluster()
    monkeypatch.setattr(main, "connect", lambda kubeconfig, context: fake)
    return fake


def run(*arguments, code=0):
    result = CliRunner().invoke(main.app, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_kill_switches_a_policy_off_and_resume_brings_its_mode_back(cluster):
    said = run("kill", "shop", "--reason", "incident 7").stdout
    assert said == (
        "prod/shop: mode Active → Off; at the next tick the reference takes over where Understudy was scaling; "
        "back with: understudy resume shop -n prod\n"
    )
    assert cluster.policy()["spec"]["mode"] == "Off"
    assert cluster.policy()["metadata"]["annotations"] == {
        "understudy.dev/resume-mode": "Active",
        "understudy.dev/kill-reason": "incident 7",
    }
    assert "mode Off → Active" in run("resume", "shop").stdout
    assert cluster.policy()["spec"]["mode"] == "Active"
    assert cluster.policy()["metadata"]["annotations"] == {}


@pytest.mark.parametrize(
    "scope", [["shop"], ["--namespace-wide"], ["--cluster"]], ids=["policy", "namespace", "cluster"]
)
def test_killing_and_resuming_twice_does_it_once(cluster, scope):
    run("kill", *scope)
    killed, writes = copy.deepcopy(cluster.objects), cluster.writes
    assert "already" in run("kill", *scope, "--reason", "again").stdout
    assert (cluster.objects, cluster.writes) == (killed, writes)
    run("resume", *scope)
    resumed, writes = copy.deepcopy(cluster.objects), cluster.writes
    assert "is not killed" in run("resume", *scope).stdout
    assert (cluster.objects, cluster.writes) == (resumed, writes)


def test_a_second_kill_does_not_forget_the_mode_to_go_back_to(cluster):
    run("kill", "shop")
    run("kill", "shop")
    run("mode", "shop", "off")
    run("resume", "shop")
    assert cluster.policy()["spec"]["mode"] == "Active"


def test_a_namespace_is_killed_by_its_annotation(cluster):
    run("kill", "--namespace-wide", "-n", "prod", "--reason", "incident 7")
    namespace = cluster.objects["/api/v1/namespaces/prod"]
    assert namespace["metadata"]["annotations"] == {"understudy.dev/kill": "incident 7"}
    run("resume", "--namespace-wide")
    assert cluster.objects["/api/v1/namespaces/prod"]["metadata"]["annotations"] == {}


@pytest.mark.parametrize("present", [False, True])
def test_the_cluster_is_killed_by_the_config_map(cluster, present):
    if present:
        cluster.objects[CONFIG_MAP] = {
            "metadata": {"name": "understudy-kill-switch"},
            "data": {"engaged": "false"},
        }
    run("kill", "--cluster", "--reason", "incident 7")
    assert cluster.objects[CONFIG_MAP]["data"] == {
        "engaged": "true",
        "reason": "incident 7",
        "actor": "alice",
    }
    run("resume", "--cluster")
    assert cluster.objects[CONFIG_MAP]["data"]["engaged"] == "false"


def test_a_config_map_that_cannot_be_read_is_not_taken_for_resumed(cluster):
    cluster.refusals[CONFIG_MAP] = ClusterError("GET: configmaps is forbidden (HTTP 403)", 403)
    assert "forbidden" in run("kill", "--cluster", code=1).stderr
    assert cluster.writes == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["kill"],
        ["kill", "shop", "--cluster"],
        ["kill", "--namespace-wide", "--cluster"],
        ["resume"],
        ["kill", "--namespace-wide", "--reason", "No"],
        ["kill", "--cluster", "--reason", " "],
        ["mode", "shop", "Turbo"],
        ["status", "shop", "-A"],
        ["status", "-o", "xml"],
        ["explain", "shop", "--ledger", "a", "--operator-url", "b"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(cluster, arguments):
    run(*arguments, code=2)
    assert cluster.writes == 0


def test_a_policy_that_is_not_there_is_said_in_one_line(cluster):
    for command in (["kill"], ["resume"], ["status"], ["explain"]):
        result = run(*command, "nobody", code=1)
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_a_policy_that_was_off_from_the_start_names_no_mode_to_go_back_to(cluster):
    cluster.put(body(mode="Off"))
    assert "understudy mode shop Shadow -n prod" in run("resume", "shop", code=1).stderr


def test_setting_a_mode_forgets_the_one_to_go_back_to(cluster):
    run("kill", "shop")
    assert "mode Off → Shadow" in run("mode", "shop", "shadow").stdout
    assert cluster.policy()["metadata"]["annotations"] == {}


def test_a_kill_gets_through_although_others_write_too(cluster):
    cluster.rivals = 3
    run("kill", "shop")
    assert cluster.policy()["spec"]["mode"] == "Off"


@given(st.lists(st.sampled_from(["kill", "resume", "Shadow", "Canary", "Active", "Off"]), max_size=8))
def test_resume_always_returns_to_the_last_mode_that_was_not_off(commands):
    fake, last = FakeCluster(), "Active"
    for command in commands:
        before = main.connect
        main.connect = lambda *_: fake
        try:
            run(command, "shop") if command in ("kill", "resume") else run("mode", "shop", command)
        finally:
            main.connect = before
        mode = fake.policy()["spec"]["mode"]
        last = mode if mode != "Off" else last
        remembered = fake.policy()["metadata"].get("annotations", {}).get("understudy.dev/resume-mode")
        assert remembered == (last if mode == "Off" else None)


STATUS = {
    "stage": "Active",
    "authority": 1.0,
    "currentReplicas": 8,
    "referenceReplicas": 9,
    "proposedReplicas": 14,
    "desiredReplicas": 11,
    "lastDecision": {"decisionId": "01", "reason": "ScaleUpLimit", "message": "8 → 11: because"},
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Deciding", "message": "m", "lastTransitionTime": "t"},
        {
            "type": "TelemetryFresh",
            "status": "False",
            "reason": "Timeout",
            "message": "m",
            "lastTransitionTime": "t",
        },
    ],
}


def test_status_shows_a_line_a_policy_and_what_is_not_as_it_should_be(cluster):
    cluster.put({**body(mode="Active"), "status": STATUS})
    cluster.put(body("fresh"))
    cluster.put(body("elsewhere", namespace="test"))
    header, *lines = run("status").stdout.splitlines()
    assert header.split()[:5] == ["NAMESPACE", "NAME", "MODE", "STAGE", "AUTHORITY"]
    assert [line.split()[:2] for line in lines] == [["prod", "shop"], ["prod", "fresh"]]
    assert lines[0].split()[2:10] == ["Active", "Active", "1", "8", "9", "14", "11", "ScaleUpLimit"]
    assert lines[0].rstrip().endswith("TelemetryFresh=False (Timeout)")
    assert lines[1].rstrip().endswith("no status yet")
    assert len(run("status", "-A").stdout.splitlines()) == 4


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_everything_can_be_had_as_data(cluster, output, parse):
    cluster.put({**body(mode="Active"), "status": STATUS})
    (row,) = parse(run("status", "-o", output).stdout)
    assert (row["name"], row["desired"], row["lastDecision"]["reason"]) == ("shop", 11, "ScaleUpLimit")
    assert parse(run("status", "shop", "-o", output).stdout) == row
    change = parse(run("kill", "shop", "-o", output).stdout)
    assert (change["scope"], change["target"], change["changed"]) == ("policy", "prod/shop", True)
    cluster.objects[PROXY] = record()
    assert parse(run("explain", "shop", "-o", output).stdout) == record()


def record():
    settings, state, decision = tick(authority=0.5, row=20)
    head = {
        "decision_id": "01a1", "time": "2026-01-01T00:00:00.000Z", "tick_id": 3, "namespace": "prod", "policy": "shop",
        "uid": "u1", "generation": 1, "mode": "Canary", "model_sha256": "a" * 64,
        "write": {"outcome": "Written", "resource_version": "17", "message": ""},
    }  # fmt: skip
    return head | explain.record(decision, settings, state, 0)


def test_explain_asks_the_operator_and_tells_the_whole_chain(cluster):
    cluster.objects[PROXY] = record()
    told = run("explain", "shop").stdout
    assert "prod/shop  8 → 13: the actor asked for 19" in told
    for part in ("requestRate", "Fresh", "authority", "rate, max of 5 min, at 33%", "log_demand", "Written",
                 "10, error budget burnt 1.00 ×"):  # fmt: skip
        assert part in told
    guards = [line.split()[0] for line in told.splitlines() if line.split()[:1] and line.split()[0] in GUARDS]
    assert set(guards) >= GUARDS


GUARDS = {"quality", "envelope", "behavior", "bounds", "override", "kill", "target"}


def test_explain_reads_what_an_older_operator_wrote(cluster):
    older = record()
    del older["error_budget"]
    cluster.objects[PROXY] = older
    assert "written by an older operator" in run("explain", "shop").stdout


def test_explain_falls_back_to_the_status_and_says_what_is_missing(cluster):
    cluster.put({**body(mode="Active"), "status": STATUS})
    cluster.refusals[PROXY] = ClusterError("GET proxy: forbidden (HTTP 403)", 403)
    result = run("explain", "shop")
    assert "8 → 11: because" in result.stdout
    assert "only what the status holds" in result.stderr
    assert "services/proxy" in result.stderr


def test_explain_reads_a_ledger_without_any_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "connect", lambda *_: pytest.fail("the cluster was asked"))
    path = tmp_path / "decisions.jsonl"
    ledger = Ledger(LedgerConfig(path), lambda _: None)
    ledger.append(decided(1, tick_id=1))
    ledger.append(calm(decided(1, tick_id=2)))
    ledger.close()
    told = run("explain", "shop-0000", "-n", "prod", "--ledger", str(path)).stdout
    assert "tick 2" in told
    assert "log_demand" in told
    assert "holds no decision" in run("explain", "other", "--ledger", str(path), code=1).stderr
    assert "cannot be read" in run("explain", "x", "--ledger", str(tmp_path / "none"), code=1).stderr


def test_explain_asks_an_operator_by_its_address():
    class Operator(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/decisions/prod/shop"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(record() if known else {}).encode())

        def log_message(self, *_):
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Operator)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        assert "8 → 13" in run("explain", "shop", "-n", "prod", "--operator-url", url).stdout
        assert "404" in run("explain", "other", "-n", "prod", "--operator-url", url, code=1).stderr
    finally:
        server.shutdown()
        server.server_close()


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
contexts:
  - {name: one, context: {cluster: here, user: me, namespace: prod}}
  - {name: two, context: {cluster: here, user: me}}
clusters:
  - {name: here, cluster: {server: "http://127.0.0.1:1"}}
users:
  - {name: me, user: {token: secret}}
"""


def test_the_context_says_which_namespace(tmp_path):
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    assert Cluster.connect(str(path), None).namespace == "prod"
    assert Cluster.connect(str(path), "two").namespace == "default"
    with pytest.raises(ClusterError, match="context 'three' is not in the kubeconfig: use one of one, two"):
        Cluster.connect(str(path), "three")


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_1(tmp_path):
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    result = run("status", "--kubeconfig", str(path), code=1)
    assert result.stderr.startswith("error: the API server at http://127.0.0.1:1 cannot be reached")
    assert "kubeconfig cannot be used" in run("status", "--kubeconfig", str(tmp_path / "none"), code=1).stderr


def test_learning_is_a_command_where_the_trainer_is_installed(monkeypatch):
    class Entry:
        def __init__(self, load):
            self.load = load

    told = []
    monkeypatch.setattr(main, "entry_points", lambda **_: [Entry(lambda: lambda seed: told.append(seed))])
    assert CliRunner().invoke(main.app, ["train", "7"]).exit_code == 0
    assert told == ["7"]

    def lacking():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(main, "entry_points", lambda **_: [Entry(lacking)])
    result = CliRunner().invoke(main.app, ["train", "7"])
    assert result.exit_code == 1
    assert "the trainer lacks torch: pip install 'understudy[trainer]'" in result.stderr
