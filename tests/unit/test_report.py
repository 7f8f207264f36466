"""The report's figures are those that a person would count by hand, and the page stands on its own."""

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from one_tick import tick
from understudy_demo import figures, report
from understudy_demo.cluster import the_policy
from understudy_demo.figures import Drill
from understudy_demo.load import Load
from understudy_demo.samples import Sample
from understudy_policy import explain
from understudy_simulator.traces import Trace

BEGAN_S = 1_800_000_000.0
KILLED_S, RESUMED_S = BEGAN_S + 10.4, BEGAN_S + 15.5
TEMPLATE = explain.record(*[tick(authority=1.0)[k] for k in (2, 0, 1)], 0)


def decision(second, authority, reason="None"):
    """The ledger's record of one second."""
    time = datetime.fromtimestamp(BEGAN_S + second, UTC).isoformat(timespec="milliseconds")
    head = {"decision_id": str(second), "time": time.replace("+00:00", "Z"), "model_sha256": "ab" * 32}
    return TEMPLATE | head | {"authority": {"granted": 1.0, "in_force": authority}, "reason": reason}


def ledger_of(acting_after_kill):
    """A decision a second: the actor acts, a kill at 10.4 s takes so many decisions to work, a resume at 15.5 s."""
    silent = range(11 + acting_after_kill, 16)
    return [
        decision(second, 0.0 if second in silent else 1.0, "ScaleUpLimit" if second < 3 else "None")
        for second in range(20)
    ]


def sample(second):
    """100 requests a second, of which 2 miss the objective, half of these dropped; 10 pods exist."""
    owner, desired = "understudy-demo", 10
    if second >= 5:
        owner, desired = "understudy", 12
    if second >= 8:
        owner, desired = "kubectl-edit", 11
    if second >= 14:
        owner, desired = "understudy", 9
    return Sample(
        time_s=BEGAN_S + second,
        load_rps=100.0,
        requests=1000.0 + 100 * second,
        violations=50.0 + 2 * second,
        dropped=7.0 + second,
        pod_seconds=300.0 + 10 * second,
        desired=desired,
        ready=desired,
        owner=owner,
    )


SAMPLES = [sample(second) for second in range(21)]


def played(acting_after_kill=1, recorded=False):
    drill = Drill(KILLED_S, RESUMED_S)
    ledger = ledger_of(acting_after_kill)
    flat = Trace("flat", 60.0 * np.arange(21), np.full(21, 100.0))
    return report.Played(
        load=Load("generated load, not a recording", recorded, 60.0, flat),
        where="a <test> cluster",
        policy=the_policy(),
        began_s=BEGAN_S,
        samples=SAMPLES,
        ledger=ledger,
        drill=drill,
        figures=figures.compute(SAMPLES, ledger, drill, overrun_ticks=3),
        commands=[report.Command("understudy kill checkout", "killed <checkout>", KILLED_S)],
        versions={"Kubernetes": "v1.36.3"},
    )


def test_the_figures_are_those_counted_by_hand():
    figure = played().figures
    assert figure.seconds == 20
    assert (figure.requests, figure.missed, figure.dropped) == (2000, 40, 20)
    assert figure.served == 1980
    assert figure.missed_share == pytest.approx(0.02)
    assert figure.pod_hours == pytest.approx(200 / 3600)
    assert (figure.scale_ups, figure.scale_downs) == (1, 1)  # the change by kubectl-edit is not ours
    assert figure.actions_per_hour == pytest.approx(360)
    assert (figure.most_ready, figure.deepest_fall) == (12, 3)
    assert (figure.decisions, figure.acted, figure.overrun_ticks) == (20, 16, 3)


@pytest.mark.parametrize(("late", "handover_s"), [(0, 0.6), (1, 1.6), (3, 3.6)])
def test_a_handover_is_counted_in_decisions_after_the_kill(late, handover_s):
    run = played(acting_after_kill=late)
    assert run.figures.handover_ticks == late
    assert run.figures.handover_s == pytest.approx(handover_s)
    assert (run.missing == []) == (late <= 1)


def test_a_kill_that_never_worked_is_no_success():
    missing = played(acting_after_kill=5).missing
    assert "no decision after the kill was the reference's" in missing


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale_ups": 0}, "never raised"),
        ({"scale_downs": 0}, "never lowered"),
        ({"acted": 0}, "never had authority"),
        ({"most_ready": 10}, "no pod became ready"),
        ({"deepest_fall": 0}, "no pod went away"),
        ({"resumed": False}, "after the resume"),
    ],
)
def test_every_part_of_the_loop_that_stayed_open_is_named(change, why):
    figure = dataclasses.replace(played().figures, **change)
    assert [sentence for sentence in figures.shortcomings(figure, first_ready=10) if why in sentence]


def test_the_page_stands_alone_and_states_every_figure(tmp_path):
    run = played()
    page = report.write(tmp_path, run).read_text()
    for name, figure, _ in report.rows(run):
        assert name in page
        assert figure in page
    assert "generated load, not a recording" in page
    assert "a &lt;test&gt; cluster" in page  # what comes from outside cannot become markup
    assert "killed &lt;checkout&gt;" in page
    assert "ScaleUpLimit" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page


def test_pictures_and_figures_lie_beside_the_page(tmp_path):
    report.write(tmp_path, played())
    for name in ("replicas.png", "latency.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["served"] == 1980
    assert told["handover_ticks"] == 1
    assert told["load_is_recorded"] is False


def test_an_open_loop_is_not_reported_as_closed(tmp_path):
    page = report.write(tmp_path, played(acting_after_kill=3)).read_text()
    assert "The loop did not close: the actor kept its authority for 3 decisions after the kill" in page


def test_the_terminal_is_told_what_kind_of_load_it_was():
    assert report.summary(played()).startswith("generated load, not a recording")
