"""Whatever telemetry, model and people do, the decision keeps its promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hpa_scalar as scalar
from understudy_policy import actions, decision
from understudy_policy import settings as settings_module
from understudy_policy.api import RLPolicySpec
from understudy_policy.guards.reasons import KillScope
from understudy_policy.rows import take
from understudy_policy.signals import Cause, Samples, Signal

N = 24


def specs(rng: np.random.Generator) -> list[RLPolicySpec]:
    def one() -> RLPolicySpec:
        low = int(rng.integers(1, 5))
        down = {"stabilizationWindowSeconds": int(rng.choice([0, 60, 300]))}
        return RLPolicySpec.model_validate(
            {
                "owner": "team",
                "scaleTargetRef": {"name": "web"},
                "minReplicas": low,
                "maxReplicas": low + int(rng.integers(0, 60)),
                "onKill": str(rng.choice(["Reference", "Hold"])),
                "objective": {
                    "latencyThreshold": "250ms",
                    "capacityPerPod": "Auto" if rng.random() < 0.3 else 25,
                },
                "reference": {
                    "signal": str(rng.choice(["cpuUtilization", "requestRate"])),
                    "target": float(rng.uniform(0.3, 0.95)),
                    "behavior": {"scaleDown": down},
                },
            }
        )

    return [one() for _ in range(N)]


@dataclass
class World:
    """A world that obeys decisions, and lies about its telemetry with a given probability."""

    rng: np.random.Generator
    lies: float
    current: np.ndarray

    def seen(
        self, tick: int, authority: np.ndarray, killed: np.ndarray, override: np.ndarray
    ) -> decision.Seen:
        rng = self.rng
        rate = rng.gamma(3.0, 60.0, N) * (1 + np.sin(tick / 30 + np.arange(N)))
        used = np.minimum(rate / 25, self.current) + 0.01
        nothing = np.zeros(N)
        values = np.stack([rate, rng.gamma(2, 0.05, N), nothing, used, np.ones(N), nothing], axis=1)
        cause = np.zeros(values.shape, np.int64)
        age = rng.uniform(0, 10, values.shape)
        lie = rng.random(values.shape) < self.lies
        garbage = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e12, 0.0], values.shape)
        values = np.where(lie & (rng.random(values.shape) < 0.5), garbage, values)
        transport = rng.choice([int(c) for c in Cause], values.shape)
        cause = np.where(lie & (rng.random(values.shape) < 0.3), transport, cause)
        values = np.where(cause == Cause.EMPTY, np.nan, values)
        age = np.where(lie & (rng.random(values.shape) < 0.3), rng.choice([-1e4, 1e4], values.shape), age)
        unreadable = rng.random(N) < 0.1 * self.lies
        ready = np.maximum(self.current - rng.integers(0, 3, N), 0)
        return decision.Seen(
            Samples(values, age, cause),
            np.where(unreadable, -1, self.current),
            ready,
            authority,
            override,
            killed,
            now_s=1e9 + 15.0 * tick,
        )


def probabilities(rng: np.random.Generator, lies: float) -> np.ndarray:
    answer = rng.dirichlet(np.full(len(actions.TABLE), 0.1), N)
    broken = rng.random(N) < 0.3 * lies
    answer[broken] = rng.choice([np.nan, np.inf, -1.0, 0.0], (int(broken.sum()), len(actions.TABLE)))
    return answer


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lies=st.sampled_from([0.0, 0.05, 0.5]))
def test_every_tick_keeps_the_promises(seed: int, lies: float) -> None:
    rng = np.random.default_rng(seed)
    policy = settings_module.from_specs(specs(rng), 15.0)
    state = decision.initial_state(N)
    world = World(rng, lies, rng.integers(0, 40, N))
    for tick in range(90):
        authority = rng.choice([0.0, 0.1, 0.5, 1.0], N)
        killed = np.where(rng.random(N) < 0.1, rng.integers(1, 5, N), 0)
        override = np.where(rng.random(N) < 0.05, rng.integers(0, 100, N), -1)
        seen = world.seen(tick, authority, killed, override)
        state, observation = decision.observe(policy, state, seen)
        assert np.isfinite(observation.features).all()
        state, made = decision.decide(policy, state, observation, probabilities(rng, lies))

        current = seen.replicas
        pinned = override >= 0
        alone = (current < 0) | ((current == 0) & ~pinned)
        assert (made.replicas[alone] == current[alone]).all(), (
            "a target that is unknown or at zero was touched"
        )
        bound = ~alone & ~pinned
        low, high = policy.min_replicas, policy.max_replicas
        assert (made.replicas[bound] >= low[bound]).all()
        assert (made.replicas[~alone] <= high[~alone]).all()
        for written in (made.replicas, made.if_killed):
            held = made.doubt & bound
            assert (written[held] >= np.minimum(current, high)[held]).all(), "doubt lowered replicas"
        unknown = np.isnan(observation.values[:, Signal.REQUEST_RATE]) & bound
        assert made.doubt[unknown].all()
        stopped = killed > KillScope.NONE
        assert (made.replicas[stopped] == made.if_killed[stopped]).all()
        assert (made.authority[stopped] == 0).all()
        world.current = np.where(made.replicas >= 0, made.replicas, world.current)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_without_authority_the_decision_is_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy = settings_module.from_specs(specs(rng), 15.0)
    state = decision.initial_state(N)
    world = World(rng, 0.0, rng.integers(1, 40, N))
    nobody = np.zeros(N, np.int64)
    certain_since = np.full(N, np.inf)
    compared = 0
    for tick in range(150):
        seen = world.seen(tick, np.zeros(N), nobody, np.full(N, -1))
        state, observation = decision.observe(policy, state, seen)
        state, made = decision.decide(policy, state, observation, probabilities(rng, 0.0))
        certain_since = np.where(made.doubt, np.inf, np.minimum(certain_since, tick))
        # What doubt held up stays among the recommendations until the stabilisation window has passed.
        settled = tick - certain_since > 300 / 15
        np.testing.assert_array_equal(made.replicas[settled], made.reference[settled])
        compared += int(settled.sum())
        world.current = made.replicas
    assert compared > 0


def test_rows_do_not_see_each_other() -> None:
    rng = np.random.default_rng(3)
    policy = settings_module.from_specs(specs(rng), 15.0)
    order = rng.permutation(N)
    worlds = [World(np.random.default_rng(5), 0.1, np.full(N, 10)) for _ in range(2)]
    states = [decision.initial_state(N), decision.initial_state(N)]
    policies = [policy, take(policy, order)]
    for tick in range(70):
        seen = worlds[0].seen(tick, np.ones(N), np.zeros(N, np.int64), np.full(N, -1))
        answer = probabilities(worlds[0].rng, 0.1)
        results = []
        for which, rows in enumerate((np.arange(N), order)):
            mine = take(seen, rows)
            states[which], observation = decision.observe(policies[which], states[which], mine)
            states[which], made = decision.decide(policies[which], states[which], observation, answer[rows])
            results.append(made.replicas)
        np.testing.assert_array_equal(results[0][order], results[1])
        worlds[0].current = np.where(results[0] >= 0, results[0], worlds[0].current)


@pytest.mark.parametrize(
    ("cause", "value", "age"),
    [
        (Cause.EMPTY, np.nan, 0.0),
        (Cause.HTTP_ERROR, np.nan, 0.0),
        (Cause.TIMEOUT, np.nan, 0.0),
        (Cause.NOT_A_NUMBER, np.nan, 0.0),
        (Cause.INFINITE, np.inf, 0.0),
        (Cause.NEGATIVE, -3.0, 0.0),
        (Cause.TOO_LARGE, 1e12, 0.0),
        (Cause.OLD_TIMESTAMP, 5.0, 3600.0),
        (Cause.FUTURE_TIMESTAMP, 5.0, -3600.0),
    ],
)
def test_each_fault_holds_and_names_itself(cause: Cause, value: float, age: float) -> None:
    rng = np.random.default_rng(1)
    policy = settings_module.from_specs(specs(rng), 15.0)
    state = decision.initial_state(N)
    world = World(rng, 0.0, np.full(N, 30))
    nobody = np.zeros(N, np.int64)
    transport = cause if cause in (Cause.EMPTY, Cause.HTTP_ERROR, Cause.TIMEOUT) else Cause.OK
    for tick in range(100):
        seen = world.seen(tick, np.ones(N), nobody, np.full(N, -1))
        if tick >= 80:
            column = (slice(None), Signal.REQUEST_RATE)
            seen.samples.values[column] = value
            seen.samples.age_s[column] = age
            seen.samples.cause[column] = int(transport)
        state, observation = decision.observe(policy, state, seen)
        state, made = decision.decide(policy, state, observation, probabilities(rng, 0.0))
        if tick >= 80:
            assert (observation.cause[:, Signal.REQUEST_RATE] == cause).all()
            assert (made.replicas >= np.minimum(world.current, policy.max_replicas)).all()
        world.current = made.replicas


def test_zero_traffic_is_not_missing_traffic() -> None:
    rng = np.random.default_rng(2)
    policy = settings_module.from_specs(specs(rng), 15.0)
    state = decision.initial_state(N)
    world = World(rng, 0.0, np.full(N, 10))
    for tick in range(200):
        seen = world.seen(tick, np.zeros(N), np.zeros(N, np.int64), np.full(N, -1))
        if tick >= 80:
            seen.samples.values[:, Signal.REQUEST_RATE] = 0.0
            seen.samples.values[:, [Signal.LATENCY, Signal.MISS_RATE]] = np.nan
            seen.samples.values[:, Signal.CPU_USAGE] = 0.0
        state, observation = decision.observe(policy, state, seen)
        state, made = decision.decide(policy, state, observation, probabilities(rng, 0.0))
        world.current = made.replicas
    assert (observation.cause[:, [Signal.LATENCY, Signal.MISS_RATE]] == Cause.OK).all()
    idle = ~made.doubt
    assert idle.any()
    np.testing.assert_array_equal(made.replicas[idle], policy.min_replicas[idle])


def test_a_capacity_learned_from_an_idle_service_does_not_forbid_to_believe_in_its_load() -> None:
    spec = {
        "owner": "team",
        "scaleTargetRef": {"name": "web"},
        "minReplicas": 2,
        "maxReplicas": 10,
        "objective": {"latencyThreshold": "250ms"},
        "reference": {"signal": "requestRate", "target": 0.7},
    }
    policy = settings_module.from_specs([RLPolicySpec.model_validate(spec)], 15.0)
    state, current = decision.initial_state(1), np.array([2])
    for tick in range(160):
        idle = tick < 120
        # Probes and a garbage collector at night: 0.1 requests for 12 % of a request of 0.1 cores. Then 200 a second.
        rate, used = (0.1, 0.012) if idle else (200.0, current[0] * 0.25)
        values = np.array([[rate * (1 + 1e-6 * (tick % 7)), 0.1, 0.0, used, 0.1, 0.0]])
        samples = Samples(values, np.ones_like(values), np.zeros(values.shape, np.int64))
        nobody = np.zeros(1, np.int64)
        seen = decision.Seen(samples, current, current, np.zeros(1), nobody - 1, nobody, 1e9 + 15.0 * tick)
        state, observation = decision.observe(policy, state, seen)
        state, made = decision.decide(policy, state, observation, np.full((1, len(actions.TABLE)), np.nan))
        current = made.replicas
    assert observation.cause[0, Signal.REQUEST_RATE] == Cause.OK
    assert current[0] == 10


@pytest.mark.parametrize(
    ("signal", "desired", "created", "ready", "cores", "rate_rps", "expected"),
    [
        # Four busy pods, and no others exist: the HPA asks for what those four need.
        ("cpuUtilization", 10, 4, 4, 5.6, 0.0, 8),
        # Six more are on their way: idle, they bring the mean below the target, so it waits.
        ("cpuUtilization", 10, 10, 4, 5.6, 0.0, 10),
        # A rollout runs two pods more than desired: their load is not that of the other ten.
        ("cpuUtilization", 10, 12, 12, 8.4, 0.0, 10),
        # Within the tolerance of the pods that exist, as many stay as exist.
        ("requestRate", 10, 11, 10, 0.0, 186.0, 11),
        ("requestRate", 10, 4, 4, 0.0, 186.0, 11),
    ],
)
def test_the_reference_counts_the_pods_that_exist(
    signal: str, desired: int, created: int, ready: int, cores: float, rate_rps: float, expected: int
) -> None:
    spec = {
        "owner": "team",
        "scaleTargetRef": {"name": "web"},
        "minReplicas": 1,
        "maxReplicas": 50,
        "objective": {"latencyThreshold": "250ms", "capacityPerPod": 25},
        "reference": {"signal": signal, "target": 0.7},
    }
    policy = settings_module.from_specs([RLPolicySpec.model_validate(spec)], 15.0)
    values = np.array([[rate_rps, 0.1, 0.0, cores, 1.0, 0.0]])
    seen = decision.Seen(
        Samples(values, np.ones_like(values), np.zeros(values.shape, np.int64)),
        np.array([desired]),
        np.array([ready]),
        np.zeros(1),
        np.array([-1]),
        np.zeros(1, np.int64),
        1e9,
        np.array([created]),
    )
    _, observation = decision.observe(policy, decision.initial_state(1), seen)
    assert observation.reference_known.all()
    assert observation.reference_raw.tolist() == [expected]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_operator_forgets_scale_events_as_the_hpa_does(seed: int) -> None:
    """Whoever changes the replicas: what is remembered is what is in the HPA's own lists."""
    rng = np.random.default_rng(seed)
    up, down = (
        [
            scalar.Rules(0, "Max", (scalar.Policy("Pods", 4, float(period_s)),))
            for period_s in rng.choice([15, 45, 120, 600], N)
        ]
        for _ in range(2)
    )

    def spec(row: int) -> RLPolicySpec:
        def rules(of: scalar.Rules) -> dict:
            period_s = int(of.policies[0].period_s)
            return {"policies": [{"type": "Pods", "value": 4, "periodSeconds": period_s}]}

        return RLPolicySpec.model_validate(
            {
                "owner": "team",
                "scaleTargetRef": {"name": "web"},
                "minReplicas": 1,
                "maxReplicas": 50,
                "objective": {"latencyThreshold": "250ms"},
                "reference": {"behavior": {"scaleUp": rules(up[row]), "scaleDown": rules(down[row])}},
            }
        )

    policy = settings_module.from_specs([spec(row) for row in range(N)], 15.0)
    state, world = decision.initial_state(N), World(rng, 0.0, rng.integers(5, 30, N))
    histories, nobody = [scalar.History() for _ in range(N)], np.zeros(N, np.int64)
    for tick in range(300):
        seen = world.seen(tick, np.zeros(N), nobody, nobody - 1)
        state, _ = decision.observe(policy, state, seen)
        after = np.where(rng.random(N) < 0.4, rng.integers(1, 30, N), world.current)
        for row in np.flatnonzero(after != world.current):
            before = int(world.current[row])
            histories[row].record(seen.now_s, before, int(after[row]), up[row], down[row])
        world.current = after
    state, _ = decision.observe(policy, state, world.seen(300, np.zeros(N), nobody, nobody - 1))
    time_s, change, since_s = state.history.time_s, state.history.change, 1e9 + 15.0 * 300 - 600
    for row, history in enumerate(histories):
        events = history.up_events + [(t, -c) for t, c in history.down_events]
        kept = np.flatnonzero(change[row] * (time_s >= since_s))
        assert sorted(e for e in events if e[0] >= since_s) == sorted(
            zip(time_s[kept].tolist(), change[row, kept].tolist(), strict=True)
        )


def test_nothing_to_decide_is_no_error() -> None:
    policy, nobody = settings_module.from_specs([], 15.0), np.zeros(0, np.int64)
    samples = Samples(*np.zeros((2, 0, len(Signal))), np.zeros((0, len(Signal)), np.int64))
    seen = decision.Seen(samples, nobody, nobody, np.zeros(0), nobody, nobody, 1e9)
    state, observation = decision.observe(policy, decision.initial_state(0), seen)
    _, made = decision.decide(policy, state, observation, np.zeros((0, len(actions.TABLE))))
    assert made.replicas.shape == (0,)
