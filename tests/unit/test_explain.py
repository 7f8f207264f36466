"""A record holds every number of a decision, and its sentence says what happened in a person's words."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from one_tick import CAPACITY_RPS, tick
from understudy_policy import actions, decision, explain, features, signals
from understudy_policy.guards.reasons import KillScope, Reason


def told(**kwargs):
    settings, state, decided = tick(**kwargs)
    return explain.record(decided, settings, state, 0)


def test_the_record_holds_every_number_of_the_decision():
    record = told(authority=0.5)
    assert record["current_replicas"] == 8
    assert record["reference_raw_replicas"] == 8  # 60 rps over 70 % of 10 rps is 8.6: within the tolerance
    assert record["signals"]["requestRate"] == {
        "value": 60.0,
        "quality": "Fresh",
        "cause": "Ok",
        "age_s": 1.0,
    }
    assert record["demand_pods"] == 6.0
    assert (record["capacity_rps"], record["capacity_given"]) == (CAPACITY_RPS, True)
    assert record["actor"] == {
        "row": 25,
        "rule": "rate, max of 5 min, at 66%",
        "probability": 0.71,
        "age_ticks": 0,
    }
    assert set(record["features"]) == {name for name, _ in features.SCHEMA}
    assert [top["probability"] for top in record["top_rows"]] == [
        0.71,
        *[round(0.29 / (len(actions.TABLE) - 1), 4)] * 2,
    ]
    assert record["top_rows"][0]["rule"] == record["actor"]["rule"]


def test_the_guards_lead_from_the_proposal_to_the_replicas_without_a_gap():
    record = told(authority=1.0, row=20)
    steps = record["guards"]
    assert steps[0]["before"] == record["proposed_replicas"]
    assert all(step["after"] == following["before"] for step, following in pairwise(steps))
    assert steps[-1]["after"] == record["desired_replicas"]
    assert all((step["reason"] == "None") == (step["before"] == step["after"]) for step in steps)


def test_the_sentence_names_who_asked_for_what():
    assert explain.sentence(told(authority=0.5, row=20)) == (
        "8 → 13: the actor asked for 19 (rate, max of 5 min, at 33%, p=0.71), the reference for 8, authority 0.5 → 13"
    )


@pytest.mark.parametrize(
    ("situation", "reason", "phrase"),
    [
        ({"model": False}, "NoModel", "no verified model is loaded"),
        ({"value": (signals.Signal.LATENCY, math.nan)}, "TelemetryUnknown", "a signal that the actor needs"),
        ({"killed": KillScope.NAMESPACE, "row": 20}, "KilledNamespace", "killed for this namespace"),
        (
            {"settled": False, "row": 20, "current": 40},
            "DoubtForbidsScaleIn",
            "unknown never lowers replicas",
        ),
        ({"current": 0}, "ScaledToZero", "only a person may end"),
    ],
)
def test_the_sentence_says_what_bound_the_decision(situation, reason, phrase):
    record = told(**situation)
    assert record["reason"] == reason or record["actor_doubt"] == reason
    assert phrase in explain.sentence(record)


def test_an_unreadable_target_is_unknown_and_not_minus_one():
    record = told(current=-1)
    assert record["current_replicas"] is None
    assert record["desired_replicas"] is None
    assert "TargetUnknown" in record["doubt"]
    assert explain.sentence(record).startswith("nothing decided: the target's scale could not be read")


@pytest.mark.parametrize(
    ("situation", "why"),
    [
        ({"killed": KillScope.UNREADABLE}, ["KillSwitchUnreadable"]),
        ({"value": (signals.Signal.REQUEST_RATE, math.nan)}, ["ReferenceUnknown", "TelemetryUnknown"]),
        ({}, []),
        ({"model": False}, []),
    ],
)
def test_doubt_is_explained(situation, why):
    assert told(**situation)["doubt"] == why


def test_a_start_is_doubt_too():
    settings, state, decided = tick(settled=True)
    state.ticks_seen[:] = 0
    fresh, observation = decision.observe(settings, state, decided.observation.seen)
    _, again = decision.decide(settings, fresh, observation, decided.probabilities)
    assert explain.record(again, settings, fresh, 0)["doubt"] == ["Settling"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_records_are_strict_json_whatever_came(value):
    record = told(value=(signals.Signal.LATENCY, value))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["signals"]["latency"]["quality"] == "Implausible"


def test_what_came_is_told_even_where_it_was_not_believed():
    assert told(value=(signals.Signal.LATENCY, -1.0))["signals"]["latency"]["value"] == -1.0


def test_one_row_alone_reads_as_in_the_batch():
    settings, state, decided = tick(5)
    details = np.array([True, False, True, False, False])
    batch = [json.loads(line) for line in explain.lines(decided, settings, state, details=details)]
    assert batch[2] == explain.record(decided, settings, state, 2)
    assert ["features" in record for record in batch] == details.tolist()
    without = {key: value for key, value in batch[0].items() if key not in ("features", "top_rows")}
    assert batch[1] == without


def test_details_are_worth_it_where_a_row_was_chosen_or_replicas_move():
    _, state, decided = tick(3, row=25, authority=0.0)
    state.row_age[:] = [0, 1, 1]
    decided.replicas[:] = [8, 8, 9]
    assert explain.worth_details(decided, state).tolist() == [True, False, True]


def test_every_reason_has_a_sentence():
    assert all(explain._SENTENCE_OF[reason.label] for reason in Reason)
