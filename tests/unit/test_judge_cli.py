"""`bench`, `calibrate` and `replay` as typed: what they print, what they write, and how they say what is wrong."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from small_contest import NamesARow, constant_actor, wave, write_trace
from understudy_operator.cli import main
from understudy_policy.api.parts import Objective
from understudy_simulator import cli, own
from understudy_simulator.cluster import PROFILES
from understudy_simulator.judge import bench as bench_module
from understudy_simulator.judge import tuning
from understudy_simulator.traces import Trace


def never(*_):
    raise AssertionError("Prometheus was asked although it was not named")


def run(*arguments, code=0, read_range=never):
    app = typer.Typer()
    cli.register(app, read_range)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    write_trace(folder / "wave.csv", wave(hours=2.5))
    (folder / "cpu.csv").write_text("timestamp_s,value\n0,1\n60,1\n")
    return folder


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return write_trace(tmp_path_factory.mktemp("history") / "shop.csv", wave(hours=2.5))


@pytest.fixture(scope="module")
def bench(traces, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    policy = constant_actor(out / "mine.onnx", 15)
    result = run("bench", "--traces", traces, "--quick", "--policy", policy, "--json", out / "figures.json",
                 "--out", out / "results", "--markdown", out / "judge.md", "--workers", 1)  # fmt: skip
    return result, out


def test_bench_prints_a_table_a_verdict_and_what_was_left_out(bench):
    result, _ = bench
    assert "rule-past" in result.stdout
    assert "clairvoyant" in result.stdout
    assert "zero-shot" in result.stdout
    assert "best rule of the past (" in result.stdout
    assert "left out cpu.csv: its column is no request rate" in result.stderr


def test_bench_writes_figures_report_and_tables(bench):
    _, out = bench
    told = json.loads((out / "figures.json").read_text())
    assert told["conditions"]["quick"] is True
    assert told["conditions"]["policies"] == ["mine.onnx"]
    assert {(c["profile"], c["startup_s"]) for c in told["cells"]} == {
        ("web", 30),
        ("web", 180),
        ("llm", 180),
    }
    assert (out / "results" / "report.html").read_text().startswith("<!doctype html>")
    assert "| `rule-past` |" in (out / "judge.md").read_text()
    assert len(list((out / "results").glob("*.npz"))) == 3


def test_bench_goes_on_where_it_stopped(bench, traces):
    _, out = bench
    before = {file: file.stat().st_mtime_ns for file in (out / "results").glob("*.npz")}
    again = run("bench", "--traces", traces, "--quick", "--policy", out / "mine.onnx", "--json", out / "again.json",
                "--out", out / "results", "--workers", 1)  # fmt: skip
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "rule-past" in again.stdout
    first, second = (json.loads((out / name).read_text()) for name in ("figures.json", "again.json"))
    assert first["headlines"] == second["headlines"]


def test_calibrate_prints_a_manifest_and_says_what_it_saves(history):
    result = run("calibrate", "--history", history, "--capacity-rps", 20, "--name", "shop", "-n", "prod",
                 "--min-replicas", 2, "--max-replicas", 40, "--seeds", 2)  # fmt: skip
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    assert manifest["metadata"] == {"name": "shop", "namespace": "prod"}
    assert manifest["spec"]["scaleTargetRef"]["name"] == "shop"
    assert 40 in (manifest["spec"].get("maxReplicas"), manifest["spec"].get("maxReplicaCount"))
    assert "of a stock HPA's adjusted cost" in result.stderr
    assert "95 % interval" in result.stderr
    assert "a pod serves 20 requests/s of 0.05 s each" in result.stderr
    assert "for an RLPolicy's objective, with capacityPerPod 20:" in result.stderr
    (found,) = re.findall(r"^calibratedUtilizations:\n(?:- .*\n)+", result.stderr, re.MULTILINE)
    objective = Objective.model_validate({"latencyThreshold": "1s", **yaml.safe_load(found)})
    told = [(one.missed_request_price, one.utilization) for one in objective.calibrated_utilizations]
    prices, utilizations = zip(*told, strict=True)
    assert 10 in prices, "the default"
    assert list(utilizations) == sorted(utilizations, reverse=True), "the dearer a miss, the more head-room"


def test_replay_asks_prometheus_and_says_what_would_have_been_saved(tmp_path):
    asked = []
    trace = wave(hours=2.5, step_s=15.0)

    def read_range(url, promql, duration_s, step_s):
        asked.append((url, promql, duration_s, step_s))
        known = np.arange(len(trace.timestamp_s)) % 100 != 7
        return 1.8e9 + trace.timestamp_s[known], trace.requests_per_second[known]

    result = run("replay", "--prometheus", "http://p:9090", "--query", "sum(rate(x[1m]))", "--capacity-rps", 20,
                 "--days", 3, "--seeds", 2, "--workers", 1, "--html", tmp_path / "r.html",
                 read_range=read_range)  # fmt: skip
    assert asked == [("http://p:9090", "sum(rate(x[1m]))", 3 * 86400.0, 15.0)]
    assert "6 missing samples of 600 were filled in" in result.stderr
    assert "rule-past would have saved" in result.stdout
    assert "perfect-forecast, which nobody has, would have saved" in result.stdout
    assert "95 % interval" in result.stdout
    assert "own/0" in (tmp_path / "r.html").read_text()


def test_a_history_that_is_not_there_is_one_line_and_no_mistake_in_the_command():
    for command in ("calibrate", "replay"):
        said = run(command, "--capacity-rps", 20, "--history", "nowhere.csv", code=1).stderr
        assert said == "error: nowhere.csv: no such trace file; give the path of a .csv or .csv.gz file.\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prometheus", "http://p:9090"], "--query"),
        ([], "exactly one source"),
        (["--history", "nowhere.csv", "--prometheus", "http://p:9090"], "exactly one source"),
    ],
)
def test_a_source_that_makes_no_sense_is_one_line(arguments, says):
    for command in ("calibrate", "replay"):
        result = run(command, "--capacity-rps", 20, *arguments, code=2)
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert says in result.stderr


def test_a_history_that_is_too_short_says_how_long_it_must_be(tmp_path):
    short = write_trace(tmp_path / "short.csv", wave(hours=1))
    assert "two hours or more" in run("replay", "--history", short, "--capacity-rps", 20, code=1).stderr


def test_a_part_that_is_nearly_silent_is_not_judged(tmp_path):
    trace = wave(hours=3)
    trace.requests_per_second[100:] = 0
    trace.requests_per_second[150] = 1e-4
    silent = write_trace(tmp_path / "silent.csv", trace)
    told = run("replay", "--history", silent, "--capacity-rps", 20, "--seeds", 2, code=1).stderr
    assert "100 requests" in told


def test_rates_over_windows_that_overlap_do_not_make_clumped_requests_look_calm():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(100.0 / 7.0, size=4 * 3600) * 7.0)  # per second, dispersion 8
    total = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(60, len(total), 15)
    rates = Trace("sum(rate(x[1m]))", 15.0 * np.arange(len(at)), (total[at] - total[at - 60]) / 60.0)
    (cell,) = own.own_cells(own.Own(rates, PROFILES["web"], 30.0), seeds=2)
    assert cell.dispersion == 2.0


def test_a_prometheus_that_fails_is_one_line():
    def read_range(*_):
        raise OSError("--prometheus http://p:9090: connection refused")

    told = run("replay", "--prometheus", "http://p:9090", "--query", "up", "--capacity-rps", 20, code=1,
               read_range=read_range)  # fmt: skip
    assert told.stderr == "error: --prometheus http://p:9090: connection refused\n"


def test_a_folder_without_traces_and_a_file_that_is_no_policy_are_one_line(tmp_path, traces):
    assert "no such folder" in run("bench", "--traces", tmp_path / "none", code=1).stderr
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    result = run("bench", "--traces", traces, "--quick", "--policy", tmp_path / "bad.onnx", code=1)
    assert "bad.onnx" in result.stderr.splitlines()[-1]


def test_a_folder_that_is_missing_is_said_before_hours_of_work(tmp_path, traces):
    gone = tmp_path / "gone" / "figures.json"
    assert "make it first" in run("bench", "--traces", traces, "--quick", "--json", gone, code=2).stderr


def test_a_page_without_marks_is_refused_before_hours_of_work(tmp_path, traces, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# no marks\n")
    monkeypatch.setattr(bench_module, "run", never)
    assert "judge: begin" in run("bench", "--traces", traces, "--quick", "--markdown", page, code=1).stderr
    assert page.read_text() == "# no marks\n"


def test_training_further_needs_a_policy_and_a_trainer(tmp_path, traces, monkeypatch):
    told = run("bench", "--traces", traces, "--quick", "--finetune", code=2).stderr
    assert "--finetune needs --policy" in told

    def lacking():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(tuning, "plugged", lacking)
    policy = constant_actor(tmp_path / "mine.onnx", 15)
    told = run("bench", "--traces", traces, "--quick", "--finetune", "--policy", policy, code=1).stderr
    assert (
        told.splitlines()[-1]
        == "error: --finetune needs the trainer, which lacks torch: pip install 'understudy[trainer]'"
    )


def test_a_past_that_is_too_short_to_learn_from_leaves_the_policy_as_it_was(tmp_path, history, monkeypatch):
    monkeypatch.setattr(tuning, "plugged", lambda: NamesARow(()))
    policy = constant_actor(tmp_path / "mine.onnx", 15)
    result = run("replay", "--history", history, "--capacity-rps", 20, "--seeds", 2, "--workers", 1, "--finetune",
                 "--policy", policy, "--json", tmp_path / "told.json")  # fmt: skip
    assert "not trained further" in result.stderr
    assert "fine-tuned would have saved" in result.stdout
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["conditions"]["not_fine_tuned"]) == 1
    by_name = {row["contestant"]: row["adjusted"] for row in told["cells"]}
    assert by_name["fine-tuned"] == by_name["zero-shot"]


def test_the_operators_command_line_has_them_and_loads_none_of_it():
    commands = {command.name or command.callback.__name__ for command in main.app.registered_commands}
    assert {"bench", "calibrate", "replay", "status"} <= commands
    heavy = "[m for m in ('matplotlib', 'jinja2', 'scipy', 'understudy_simulator.judge') if m in sys.modules]"
    program = f"import sys, understudy_operator.cli.main; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_is_not_installed_is_named(traces, monkeypatch):
    monkeypatch.setitem(sys.modules, "understudy_simulator.protocol", None)
    told = run("bench", "--traces", traces, code=1).stderr
    assert "pip install 'understudy[bench]'" in told
