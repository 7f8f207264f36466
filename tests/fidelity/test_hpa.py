"""Our HPA against the real one: kube-controller-manager's own decisions, recorded, and recorded afresh."""

import copy

import pytest

import hpa_live
import hpa_replay
from understudy_demo.controlplane.binaries import BinariesError, ensure_binaries

ALL_REASONS = {
    "DesiredWithinRange",
    "TooFewReplicas",
    "TooManyReplicas",
    "ScaleUpLimit",
    "ScaleDownLimit",
    "ScaleUpStabilized",
    "ScaleDownStabilized",
    "ScalingDisabled",
    "MetricUnavailable",
}


@pytest.fixture(scope="module")
def recording():
    return hpa_replay.load()


@pytest.fixture(scope="module")
def comparison(recording):
    return hpa_replay.compare(recording)


def check(comparison, at_least=2000):
    assert comparison.decisions >= at_least
    assert comparison.identical_ratio >= 0.999, comparison.differences


def test_decisions_are_those_of_the_real_controller(comparison):
    check(comparison)
    assert comparison.differences == []


def test_decisions_hang_on_what_the_controller_forgets(recording):
    """Or the recording could not show that events are forgotten as they should be."""
    assert len(hpa_replay.compare(recording, forgets=False).differences) >= 30


def test_the_recording_has_something_to_decide(comparison):
    assert comparison.changes >= 500
    assert set(comparison.reasons) == ALL_REASONS
    assert len(comparison.kinds) == 5
    assert min(comparison.kinds.values()) >= 200


def test_no_decision_hung_on_the_clock(comparison):
    """Or a slow machine could have excused a difference."""
    assert comparison.clock_uncertain <= comparison.decisions / 100


@pytest.mark.parametrize(
    "change",
    [
        lambda hpa: hpa.pop("behavior", None),
        lambda hpa: (
            hpa["behavior"]["scaleDown"].update(stabilizationWindowSeconds=0) if "behavior" in hpa else None
        ),
        lambda hpa: hpa["behavior"]["scaleUp"].update(tolerance="0") if "behavior" in hpa else None,
    ],
    ids=["without behavior", "without stabilization", "without tolerance"],
)
def test_another_specification_would_be_noticed(recording, change):
    """The comparison is not one that anything passes."""
    other = copy.deepcopy(recording)
    for workload in other["workloads"]:
        change(workload["hpa"])
    assert hpa_replay.compare(other).identical_ratio < 0.99


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_fresh_recording_agrees_as_well(tmp_path):
    try:
        ensure_binaries()
    except BinariesError as error:
        pytest.skip(f"no control plane on this machine: {error}")
    recording = hpa_live.record(decisions_each=15, seed=1, folder=tmp_path)
    hpa_live.save(recording, tmp_path / "hpa.json.gz")
    comparison = hpa_replay.compare(hpa_replay.load(tmp_path / "hpa.json.gz"))
    check(comparison, at_least=600)
    assert {d.reason for d in comparison.differences} <= {hpa_replay.CLOCK}
