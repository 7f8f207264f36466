"""The status says what is going on, and is written when that changes and not when time passes."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from one_policy import body
from understudy_operator.conditions import WRITING_MODES, Situation, conditions_of, stage_of
from understudy_operator.events import EventReason, EventRecorder, transitions
from understudy_operator.kube import KubeError
from understudy_operator.status import Figures, StatusConfig, StatusWriter
from understudy_operator.store import PolicyStore
from understudy_policy.api import RLPolicyStatus
from understudy_policy.guards.reasons import KillScope, Reason
from understudy_policy.signals import SIGNAL_NAMES, Cause

ACTIVE = Situation(mode="Active")
MODES = ("Off", "Shadow", "Approve", "Canary", "Active")

situations = st.builds(
    Situation,
    mode=st.sampled_from(MODES),
    invalid=st.sampled_from(["", "spec.owner is missing: add it"]),
    killed=st.sampled_from(list(KillScope)),
    kill_reason=st.sampled_from(["", "incident 7"]),
    target_problem=st.none() | st.just(("TargetNotFound", "Deployment prod/shop does not exist")),
    conflict=st.sampled_from(["", "HorizontalPodAutoscaler shop scales it"]),
    causes=st.none() | st.just(()) | st.tuples(*[st.sampled_from(list(Cause))] * len(SIGNAL_NAMES)),
    model_loaded=st.booleans(),
    model_problem=st.sampled_from(["", "its digest is not the one that was asked for"]),
    granted=st.booleans(),
    actor_doubt=st.sampled_from([r for r in Reason if r <= Reason.MODEL_OUTPUT_INVALID]),
    limited_by=st.sampled_from(list(Reason)),
    write_problem=st.sampled_from(["", "forbidden"]),
    ledger_problem=st.sampled_from(["", "no space left on device"]),
)


def found(situation, kind):
    (condition,) = [c for c in conditions_of(situation, 1, [], "2026-01-01T00:00:00Z") if c["type"] == kind]
    return condition["status"], condition["reason"]


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (ACTIVE, ("True", "Active")),
        (Situation(mode="Canary"), ("True", "Canary")),
        (Situation(mode="Canary", granted=False), ("False", "CanaryHold")),
        (Situation(mode="Shadow"), ("False", "ShadowMode")),
        (Situation(mode="Off", killed=KillScope.POLICY), ("False", "Off")),
        (ACTIVE._replace(killed=KillScope.NAMESPACE), ("False", "KillSwitch")),
        (Situation(mode="Shadow", killed=KillScope.CLUSTER), ("False", "KillSwitch")),
        (ACTIVE._replace(conflict="an HPA"), ("False", "Conflict")),
        (ACTIVE._replace(actor_doubt=Reason.TELEMETRY_UNKNOWN), ("False", "TelemetryUnknown")),
        (ACTIVE._replace(limited_by=Reason.OVERRIDE), ("False", "Override")),
        (ACTIVE._replace(target_problem=("TargetNotFound", "gone")), ("False", "TargetNotFound")),
        (Situation(invalid="spec.owner is missing: add it"), ("False", "PolicyInvalid")),
    ],
)
def test_acting_says_why_the_actor_does_not(situation, expected):
    assert found(situation, "Acting") == expected


def test_an_hpa_beside_a_shadow_is_no_conflict():
    assert found(Situation(mode="Shadow", conflict="an HPA"), "Conflict") == ("False", "NoConflict")
    assert found(Situation(mode="Shadow", conflict="an HPA"), "Ready") == ("True", "Deciding")
    assert found(Situation(mode="Canary", conflict="an HPA"), "Ready") == ("False", "Conflict")


def test_telemetry_names_the_signals_and_the_cause():
    causes = (Cause.TIMEOUT, Cause.OK, Cause.OK, Cause.TIMEOUT, Cause.NOT_A_NUMBER)
    (fresh,) = [
        c for c in conditions_of(ACTIVE._replace(causes=causes), 1, [], "t") if c["type"] == "TelemetryFresh"
    ]
    assert (fresh["status"], fresh["reason"]) == ("False", "Timeout")
    assert (
        fresh["message"]
        == "requestRate, cpuUsage: Prometheus did not answer in time; cpuRequest: the value is NaN"
    )


def test_a_signal_that_no_decision_needs_is_named_and_costs_nothing():
    unmeasured = ACTIVE._replace(causes=(Cause.OK,) * 5 + (Cause.EMPTY,))
    assert found(unmeasured, "Ready") == ("True", "Deciding")
    (fresh,) = [c for c in conditions_of(unmeasured, 1, [], "t") if c["type"] == "TelemetryFresh"]
    assert (fresh["status"], fresh["reason"]) == ("True", "Fresh")
    assert fresh["message"] == "decisions go on without missRate: the query returned no series"


@given(situations)
def test_every_situation_gives_a_status_that_the_api_accepts(situation):
    conditions = conditions_of(situation, 3, [], "2026-01-01T00:00:00Z")
    status = RLPolicyStatus.model_validate({"stage": stage_of(situation), "conditions": conditions})
    assert [c.type for c in status.conditions] == [
        "Ready", "TelemetryFresh", "ModelLoaded", "TargetResolved", "Acting", "GuardrailLimited", "Conflict",
        "Degraded",
    ]  # fmt: skip


@given(situations)
def test_acting_and_ready_are_never_claimed_against_the_facts(situation):
    acting, ready = found(situation, "Acting")[0], found(situation, "Ready")[0]
    held_back = (
        situation.killed > KillScope.POLICY or situation.mode not in WRITING_MODES or situation.invalid
    )
    assert acting == "False" or not held_back
    assert ready != "True" or not (situation.invalid or situation.target_problem)


@given(situations, situations)
def test_a_condition_keeps_its_time_until_its_status_flips(first, second):
    before = conditions_of(first, 1, [], "2026-01-01T00:00:00Z")
    after = conditions_of(second, 2, before, "2026-02-02T00:00:00Z")
    for old, new in zip(before, after, strict=True):
        kept = new["lastTransitionTime"] == old["lastTransitionTime"]
        assert kept == (new["status"] == old["status"])
    assert transitions({c["type"]: c for c in after}, {c["type"]: c for c in after}) == []


class FakeKube:
    """Remembers what was asked of it, and fails as told."""

    def __init__(self):
        self.patches, self.created, self.failures = [], [], []
        self.uid = "u1"

    async def patch(self, path, body, **_):
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.patches.append((path, body))
        return {"metadata": {"uid": self.uid}}

    async def create(self, path, body, **_):
        self.created.append((path, body))
        return body


DECISION = {
    "decision_id": "01", "time": "2026-01-01T00:00:00.000Z", "current_replicas": 8, "desired_replicas": 11,
    "proposed_replicas": 14, "reference_replicas": 9, "reference_raw_replicas": 9, "reference_known": True,
    "reason": "Authority", "actor_doubt": None, "doubt": [], "model_sha256": None,
    "actor": {"row": 1, "rule": "rate, now, at 38%", "probability": 0.7, "age_ticks": 0},
    "authority": {"granted": 0.5, "in_force": 0.5},
    "guards": [{"guard": "quality", "after": 14}, {"guard": "authority", "after": 11}],
}  # fmt: skip


class Bench:
    """A status writer beside a clock that only moves when told."""

    def __init__(self, **config):
        self.now_s, self.kube, self.outcomes, self.posted = 1000.0, FakeKube(), [], []
        self.events = EventRecorder(self.kube, self.posted.append, clock=lambda: self.now_s)
        self.writer = StatusWriter(
            self.kube, self.events, lambda key: DECISION, self.outcomes.append,
            StatusConfig(**config), clock=lambda: self.now_s,
        )  # fmt: skip
        self.store = PolicyStore()
        self.update()

    def update(self, **kwargs):
        self.store.on_event("MODIFIED", body(**kwargs))

    def tick(self, situation=ACTIVE, after_s=15.0, **figures):
        """One tick; the statuses that were written in it."""
        self.now_s += after_s
        before = len(self.kube.patches)
        for record in self.store:
            self.writer.offer(
                record, situation, Figures(**{"authority": 1.0, "current": 8, "desired": 8, **figures})
            )
        asyncio.run(self.writer.flush())
        return [patch["status"] for _, patch in self.kube.patches[before:]]

    def reasons(self):
        return [event["reason"] for _, event in self.kube.created]


def test_the_first_tick_writes_a_status_that_the_api_accepts():
    bench = Bench()
    (status,) = bench.tick(desired=11)
    path, patch = bench.kube.patches[0]
    assert path == "/apis/understudy.dev/v1alpha1/namespaces/prod/rlpolicies/shop/status"
    assert list(patch) == ["status"]
    parsed = RLPolicyStatus.model_validate(status)
    assert (parsed.stage, parsed.desired_replicas, parsed.authority) == ("Active", 11, 1.0)
    assert parsed.last_decision.message.startswith("8 → 11: the actor asked for 14")
    assert bench.outcomes == ["Written"]


def test_ticks_that_change_nothing_write_nothing_for_hours():
    bench = Bench()
    bench.tick()
    assert [bench.tick() for _ in range(1000)] == [[]] * 1000


def test_numbers_of_a_tick_wait_for_the_heartbeat():
    bench = Bench()
    bench.tick(reference=8, proposed=9)
    written = [bench.tick(reference=9, proposed=10) for _ in range(60)]
    statuses = [status for tick in written for status in tick]
    assert len(statuses) == 1
    assert statuses[0]["referenceReplicas"] == 9
    assert not written[0]


def test_replicas_are_written_when_they_change_but_not_at_every_tick():
    bench = Bench(min_interval_ticks=4)
    bench.tick()
    assert bench.tick(desired=9) == []
    assert sum(len(bench.tick(desired=10 + i)) for i in range(8)) == 2
    bench.tick(desired=30, after_s=60)
    assert bench.tick(desired=30, after_s=60) == []


@pytest.mark.parametrize(
    ("situation", "figures"),
    [
        (ACTIVE._replace(killed=KillScope.CLUSTER, kill_reason="incident 7"), {"authority": 0.0}),
        (ACTIVE._replace(conflict="an HPA"), {}),
        (ACTIVE, {"authority": 0.5}),
    ],
)
def test_what_is_grave_is_written_at_once(situation, figures):
    bench = Bench(min_interval_ticks=1000)
    bench.tick()
    assert len(bench.tick(situation, after_s=1.0, **figures)) == 1


def test_a_new_spec_is_acknowledged_at_once():
    bench = Bench(min_interval_ticks=1000)
    bench.tick()
    bench.update(version=2, generation=2)
    (status,) = bench.tick()
    assert status["observedGeneration"] == 2


def test_a_restart_writes_nothing_and_tells_nothing_again():
    bench = Bench()
    killed = ACTIVE._replace(killed=KillScope.NAMESPACE, causes=(Cause.TIMEOUT,) * 5)
    (status,) = bench.tick(killed, model_uri="builtin://generalist")
    assert bench.reasons()
    again = Bench()
    as_stored = {k: v for k, v in status.items() if v is not None} | {
        "model": {"uri": "builtin://generalist"}
    }
    again.store.on_event("MODIFIED", {**body(version=3), "status": as_stored})
    assert again.tick(killed, model_uri="builtin://generalist") == []
    assert again.reasons() == []


def test_recreation_under_the_same_name_starts_anew():
    bench = Bench()
    bench.tick()
    bench.kube.uid = "u2"
    assert len(bench.tick(desired=9, authority=0.5)) == 1  # hits the successor before its record is known
    bench.store.on_event("ADDED", body(uid="u2", version=9))
    assert len(bench.tick(desired=9, authority=0.5)) == 1
    assert bench.tick(desired=9, authority=0.5) == []


@pytest.mark.parametrize(
    ("status", "tried_again"), [(404, 0), (409, 1), (422, 0), (429, 1), (500, 1), (0, 1)]
)
def test_a_write_that_fails_is_tried_again_where_that_can_help(status, tried_again):
    bench = Bench()
    bench.kube.failures = [KubeError(status, "Failed", "no")]
    assert bench.tick() == []
    assert bench.outcomes == ["Failed"]
    asyncio.run(bench.writer.flush())
    assert len(bench.kube.patches) == tried_again


def test_when_the_api_server_asks_for_less_the_flush_ends():
    bench = Bench(concurrency=1)
    for i in range(20):
        bench.store.on_event(None, body(f"shop-{i}"))
    bench.kube.failures = [KubeError(429, "TooManyRequests", "slow down")]
    assert bench.tick() == []
    assert bench.outcomes == ["TooManyRequests"]
    asyncio.run(bench.writer.flush())
    assert len(bench.kube.patches) == 21


def test_a_forgotten_policy_is_not_written():
    bench = Bench()
    record = bench.store.get(("prod", "shop"))
    bench.writer.offer(record, ACTIVE, Figures())
    bench.writer.forget(record.key)
    asyncio.run(bench.writer.flush())
    assert bench.kube.patches == []


def test_events_are_posted_on_transitions_with_the_owner_on_them():
    bench = Bench()
    bench.tick()
    killed = ACTIVE._replace(killed=KillScope.NAMESPACE, kill_reason="incident 7")
    lost = ACTIVE._replace(causes=(Cause.UNREACHABLE,) * 5)
    rejected = ACTIVE._replace(model_problem="its digest differs")
    for situation in (killed, killed, ACTIVE, lost, ACTIVE, rejected):
        bench.tick(situation)
    assert bench.reasons() == [
        "ModelLoaded", "KillSwitchEngaged", "KillSwitchReleased", "TelemetryLost", "TelemetryRecovered",
        "ModelRejected",
    ]  # fmt: skip
    _, event = bench.kube.created[1]
    assert event["type"] == "Warning"
    assert event["note"] == "killed for this namespace: incident 7 (owner: team-shop)"
    assert event["metadata"]["annotations"] == {"understudy.dev/owner": "team-shop"}
    assert bench.posted == bench.reasons()


def test_mode_off_is_told_as_a_kill_only_where_it_was_switched():
    bench = Bench()
    bench.tick(Situation(mode="Off", killed=KillScope.POLICY))
    assert "KillSwitchEngaged" not in bench.reasons()
    bench.tick(ACTIVE)
    bench.tick(Situation(mode="Off", killed=KillScope.POLICY))
    assert bench.reasons()[-2:] == ["KillSwitchReleased", "KillSwitchEngaged"]


def test_the_same_event_is_told_once_in_ten_minutes():
    bench = Bench()
    record = bench.store.get(("prod", "shop"))
    for after_s in (0, 300, 299, 2):
        bench.now_s += after_s
        bench.events.post(record, EventReason.SCALED_UP, "8 → 11")
    bench.events.post(record, EventReason.SCALED_UP, "11 → 12")
    asyncio.run(bench.events.flush())
    assert [event["note"] for _, event in bench.kube.created] == [
        "8 → 11 (owner: team-shop)", "8 → 11 (owner: team-shop)", "11 → 12 (owner: team-shop)",
    ]  # fmt: skip


def test_a_note_fits_into_an_event_however_long_the_reason_is():
    bench = Bench()
    bench.events.post(bench.store.get(("prod", "shop")), EventReason.CONFLICT, "ü" * 2000)
    asyncio.run(bench.events.flush())
    note = bench.kube.created[0][1]["note"]
    assert len(note.encode()) <= 1024
    assert note.endswith("… (owner: team-shop)")


def test_events_do_not_wait_one_by_one_for_an_api_server_that_does_not_answer():
    bench = Bench()
    tried = []

    async def create(path, body, **_):
        tried.append(body["note"])
        raise KubeError(0, "Timeout", "no answer within 5 s")

    bench.kube.create = create
    for i in range(20):
        bench.events.post(bench.store.get(("prod", "shop")), EventReason.SCALED_UP, f"{i} → {i + 1}")
    asyncio.run(bench.events.flush())
    assert len(tried) == 1
