"""The rules against scalar transcriptions of them on random lives of random workloads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hpa_scalar
import keda_scalar
import kpa_scalar
from understudy_policy import calibration
from understudy_policy.references.behavior import (
    POLICY_NONE,
    POLICY_PERCENT,
    POLICY_PODS,
    SELECT_DISABLED,
    SELECT_MAX,
    SELECT_MIN,
    Behavior,
    Direction,
)
from understudy_policy.references.hpa_rule import HpaRule
from understudy_policy.references.keda import NO_FALLBACK, FallbackBehavior, KedaRule
from understudy_policy.references.knative import KnativeRule
from understudy_policy.references.rule import RuleSignals
from understudy_policy.references.seasonal import SeasonalRule
from understudy_policy.rows import take

SLOTS = 2
SELECT = {"Max": SELECT_MAX, "Min": SELECT_MIN, "Disabled": SELECT_DISABLED}
KIND = {"Pods": POLICY_PODS, "Percent": POLICY_PERCENT}
FALLBACK = dict(
    zip(
        ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"],
        FallbackBehavior,
        strict=True,
    )
)
TICKS = 45

rules = st.builds(
    hpa_scalar.Rules,
    st.sampled_from([0, 15, 60, 300]),
    st.sampled_from(sorted(SELECT)),
    st.lists(
        st.builds(
            hpa_scalar.Policy,
            st.sampled_from(sorted(KIND)),
            st.integers(1, 150),
            st.sampled_from([15, 30, 90]),
        ),
        min_size=1,
        max_size=SLOTS,
    ).map(tuple),
)


def direction(rows: list[hpa_scalar.Rules]) -> Direction:
    kind, value = np.full((len(rows), SLOTS), POLICY_NONE), np.zeros((len(rows), SLOTS), int)
    period = np.zeros((len(rows), SLOTS), int)
    for n, row in enumerate(rows):
        for p, policy in enumerate(row.policies):
            kind[n, p], value[n, p], period[n, p] = KIND[policy.type], policy.value, policy.period_s
    return Direction(
        stabilization_window_s=np.array([float(row.stabilization_window_s) for row in rows]),
        select=np.array([SELECT[row.select] for row in rows]),
        policy_type=kind,
        policy_value=value,
        policy_period_s=period,
        tolerance=np.full(len(rows), 0.1),
    )


def signals(replicas, ready=None, **known) -> RuleSignals:
    n = len(replicas)
    unknown = {"rate_rps": np.nan, "cpu_usage_cores": np.nan, "concurrency": np.nan, "capacity_rps": 10.0}
    columns = {name: np.asarray(known.get(name, np.full(n, value)), float) for name, value in unknown.items()}
    return RuleSignals(
        **columns,
        cpu_request_cores=np.full(n, 0.5),
        replicas=np.asarray(replicas),
        ready=np.asarray(replicas if ready is None else ready),
        failed=np.asarray(known.get("failed", np.zeros(n, bool))),
    )


@st.composite
def scaled_objects(draw):
    low = draw(st.integers(0, 3))
    return keda_scalar.ScaledObject(
        threshold=draw(st.sampled_from([0.5, 7.0, 10.0, 33.333])),
        activation=draw(st.sampled_from([0.0, 20.0])),
        min_replicas=low,
        max_replicas=low + draw(st.integers(1, 60)),
        cooldown_s=draw(st.sampled_from([0.0, 60.0, 300.0])),
        ignore_null=draw(st.booleans()),
        fallback=draw(st.sampled_from([None, 0, 4, 12])),
        failure_threshold=draw(st.integers(0, 6)),
        fallback_behavior=draw(st.sampled_from(sorted(FALLBACK))),
        polling_interval_s=30.0,
        up=draw(rules),
        down=draw(rules),
        legacy=False,
    )


def keda_rule(specs: list[keda_scalar.ScaledObject], legacy: bool, polling_interval_s: float) -> KedaRule:
    def column(name: str, dtype: type = float):
        return np.array([getattr(spec, name) for spec in specs], dtype)

    return KedaRule(
        min_replicas=column("min_replicas", int),
        max_replicas=column("max_replicas", int),
        behavior=Behavior(direction([s.up for s in specs]), direction([s.down for s in specs])),
        legacy=legacy,
        threshold_rps=column("threshold"),
        activation_rps=column("activation"),
        cooldown_s=column("cooldown_s"),
        ignore_null=column("ignore_null", bool),
        fallback_replicas=np.array([NO_FALLBACK if s.fallback is None else s.fallback for s in specs]),
        failure_threshold=column("failure_threshold", int),
        fallback_behavior=np.array([FALLBACK[s.fallback_behavior] for s in specs]),
        polling_interval_s=polling_interval_s,
    )


def answers(n: int, rng: np.random.Generator) -> list[list[keda_scalar.Answer]]:
    """Loads with idle stretches and outages, in rows that live their own lives."""

    def one() -> list[keda_scalar.Answer]:
        level, kind, life = 50.0, "ok", []
        for _ in range(TICKS):
            if rng.random() < 0.15:
                kind = str(rng.choice(["ok", "ok", "idle", "error", "empty"]))
                level = float(np.exp(rng.uniform(0, 6)))
            number = level * rng.uniform(0.9, 1.1)
            odd = float(rng.choice([-3.0, math.inf, math.nan]))
            noisy = odd if rng.random() < 0.02 else number
            life.append({"ok": noisy, "idle": 0.0, "error": "error", "empty": None}[kind])
        return life

    return [one() for _ in range(n)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(scaled_objects(), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([5.0, 15.0, 30.0, 40.0]),
    st.integers(0, 2**32 - 1),
)
def test_keda_answers_as_its_transcription_does(specs, legacy, polling_s, seed):
    rng = np.random.default_rng(seed)
    specs = [replace(spec, legacy=legacy, polling_interval_s=polling_s) for spec in specs]
    rule, n = keda_rule(specs, legacy, polling_s), len(specs)
    expected = [keda_scalar.Keda(spec) for spec in specs]
    lives, replicas, state = answers(n, rng), rng.integers(0, 30, n), None
    for tick in range(TICKS):
        now_s = 1000.0 + 15.0 * tick
        current = [life[tick] for life in lives]
        rate = [math.nan if a is None or a == "error" else a for a in current]
        seen = signals(replicas, rate_rps=rate, failed=[a == "error" for a in current])
        state = rule.initial(seen, now_s) if state is None else state
        state, got = rule.decide(state, seen, now_s)
        want = [
            keda.tick(answer, int(r), now_s)
            for keda, answer, r in zip(expected, current, replicas, strict=True)
        ]
        assert got.tolist() == want, f"tick {tick}"
        assert state.failures.tolist() == [keda.failures for keda in expected], f"tick {tick}"
        # Now and then somebody else scales.
        replicas = np.where(rng.random(n) < 0.05, rng.integers(0, 40, n), got)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(rules, rules, st.integers(20, 120)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_hpa_rule_remembers_what_the_scalar_hpa_remembers(rows, legacy, seed):
    """The scalar HPA's lists are as long as they grow: the rule's short rings must not be too short."""
    rng = np.random.default_rng(seed)
    n, low, high = len(rows), 1, 50
    rule = HpaRule(
        min_replicas=np.full(n, low),
        max_replicas=np.full(n, high),
        behavior=Behavior(direction([up for up, _, _ in rows]), direction([down for _, down, _ in rows])),
        legacy=legacy,
        target_percent=np.array([target for _, _, target in rows]),
    )
    histories = [hpa_scalar.History() for _ in rows]
    replicas, state, level = rng.integers(1, 20, n), None, np.full(n, 4.0)
    for tick in range(TICKS):
        now_s = 15.0 * tick
        level = np.where(rng.random(n) < 0.15, np.exp(rng.uniform(-1, 3, n)), level)
        ready = np.maximum(replicas - rng.integers(0, 3, n), 0)
        usage = np.where(
            rng.random(n) < 0.05, np.nan, np.minimum(level * rng.uniform(0.9, 1.1, n), 0.5 * ready)
        )
        seen = signals(replicas, ready, cpu_usage_cores=usage)
        state = rule.initial(seen, now_s) if state is None else state
        state, got = rule.decide(state, seen, now_s)
        want = [
            _hpa(rows[i], histories[i], usage[i], int(ready[i]), int(replicas[i]), (low, high), now_s, legacy)
            for i in range(n)
        ]
        assert got.tolist() == want, f"tick {tick}"
        replicas = np.where(rng.random(n) < 0.05, rng.integers(0, 60, n), got)


def _hpa(row, history, usage, ready, current, bounds, now_s, legacy) -> int:
    up, down, target = row
    if not history.recommendations:
        history.recommendations.append((now_s, current))
    outside = hpa_scalar.bypass(current, *bounds)
    if outside:
        desired = outside[0]
    elif math.isnan(usage) or ready == 0:
        return current
    else:
        total = math.ceil(usage * 1000 - 1e-6)
        each = [total // ready + (i < total % ready) for i in range(ready)]
        pods = [hpa_scalar.Pod("ready", milli, 500) for milli in each]
        pods += [hpa_scalar.Pod("unready", 0, 500)] * (current - ready)
        wanted = hpa_scalar.pod_metric(pods, current, target, hpa_scalar.Tolerance(), utilization=True)
        if legacy:
            desired, _ = hpa_scalar.normalize_legacy(wanted, current, *bounds, history, now_s, 300.0)
        else:
            desired, _ = hpa_scalar.normalize(wanted, current, *bounds, up, down, history, now_s)
        history.recommendations.append((now_s, wanted))
    if desired != current:
        history.record(now_s, current, desired, up, down)
    return desired


knative_specs = st.builds(
    kpa_scalar.Spec,
    target=st.sampled_from([0.7, 1.0, 7.0, 70.0]),
    panic_threshold=st.sampled_from([1.1, 2.0, 10.0]),
    max_scale_up_rate=st.sampled_from([1.1, 2.0, 1000.0]),
    max_scale_down_rate=st.sampled_from([1.1, 2.0, 10.0]),
    activation_scale=st.sampled_from([1, 3]),
    scale_down_delay_s=st.sampled_from([0.0, 20.0, 90.0]),
    min_replicas=st.integers(0, 3),
    max_replicas=st.sampled_from([3, 40, 1000]),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(knative_specs, min_size=1, max_size=6),
    st.sampled_from([2.0, 15.0, 60.0]),
    st.integers(0, 2**32 - 1),
)
def test_knative_answers_as_its_transcription_does(specs, tick_s, seed):
    rng = np.random.default_rng(seed)
    specs, n = [replace(spec, tick_s=tick_s) for spec in specs], len(specs)

    def column(name: str):
        return np.array([getattr(spec, name) for spec in specs])

    rule = KnativeRule(
        min_replicas=column("min_replicas"),
        max_replicas=column("max_replicas"),
        target=column("target"),
        scale_down_delay_s=column("scale_down_delay_s"),
        activation_scale=column("activation_scale"),
        panic_threshold=column("panic_threshold"),
        max_scale_up_rate=column("max_scale_up_rate"),
        max_scale_down_rate=column("max_scale_down_rate"),
        tick_s=tick_s,
    )
    replicas, level = rng.integers(0, 20, n), np.full(n, 5.0)
    state, deciders = None, []
    for tick in range(120):
        now_s = tick_s * tick
        level = np.where(rng.random(n) < 0.1, np.exp(rng.uniform(-2, 6, n)), level)
        # Quarters: sums that are exact in any order, as the two implementations add differently.
        sample = np.where(rng.random(n) < 0.2, np.nan, np.round(4 * level) / 4)
        ready = np.maximum(replicas - rng.integers(0, 3, n), 0)
        seen = signals(replicas, ready, concurrency=sample)
        if state is None:
            state = rule.initial(seen, now_s)
            deciders = [kpa_scalar.Decider.start(s, int(r), now_s) for s, r in zip(specs, ready, strict=True)]
        state, got = rule.decide(state, seen, now_s)
        want = [
            deciders[i].tick(
                None if np.isnan(sample[i]) else float(sample[i]), int(replicas[i]), int(ready[i]), now_s
            )
            for i in range(n)
        ]
        assert got.tolist() == want, f"tick {tick}"
        replicas = got


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=4),
    st.floats(0, 1e6),
    st.lists(st.sampled_from([15.0, 60.0, 90.0, 1000.0, 5000.0, 90000.0]), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_the_seasonal_rule_remembers_yesterday_and_no_other_day(quantiles, start_s, steps_s, seed):
    """Against lists of what every minute saw, on a clock that stumbles: gaps of minutes, hours and days."""
    rng, n = np.random.default_rng(seed), len(quantiles)
    rule = SeasonalRule(
        min_replicas=np.zeros(n, int),
        max_replicas=np.full(n, 10**6),
        quantile=np.array(quantiles),
        utilization=np.ones(n),
        reactive=np.zeros(n, bool),
    )
    minutes: list[dict[int, list[float]]] = [{} for _ in range(n)]
    state, now_s = None, start_s
    for step_s in rng.choice(steps_s, 300, p=rng.dirichlet(np.ones(len(steps_s)))):
        rate = np.where(rng.random(n) < 0.1, np.nan, 10.0 * rng.integers(1, 1000, n))
        seen = signals(np.full(n, 3), rate_rps=rate)
        state = rule.initial(seen, now_s) if state is None else state
        state, got = rule.decide(state, seen, now_s)
        slot = int(now_s // 60)
        for row, known in enumerate(minutes):
            ahead = [known[s] for s in range(slot - 1440, slot - 1410) if s in known]
            ordered = sorted(float(np.float32(sum(rates)) / np.float32(len(rates))) for rates in ahead)
            rank = max(math.ceil(quantiles[row] * len(ordered)), 1) - 1
            expected = ordered[rank] if ordered else rate[row]
            assert got[row] == (3 if math.isnan(expected) else math.ceil(expected / 10 - 1e-6))
            if not math.isnan(rate[row]):
                known.setdefault(slot, []).append(rate[row])
        now_s += float(step_s)


SWEEP = (calibration.STOCK, *calibration.CHOICES)
GROUPS = [[SWEEP[i] for i in group] for group in calibration.groups(SWEEP)]


def life(choices: list[calibration.Choice], index: np.ndarray, seed: int) -> np.ndarray:
    """Replicas `[T, rows]` of some rows of a rule on loads and telemetry of their own."""
    rng, n = np.random.default_rng(seed), len(choices)
    workload = calibration.Workload(rng.uniform(5, 20, n), 1.0, rng.integers(0, 4, n), rng.integers(5, 80, n))
    rule = take(calibration.build(choices, workload), index)
    load = np.cumsum(rng.normal(0, 8, (100, n)), axis=0) + 100
    holes = rng.random((100, n))
    replicas, state, lived = rng.integers(1, 20, n)[index], None, []
    for tick in range(100):
        rate = np.where(holes[tick] < 0.05, np.nan, np.maximum(load[tick], 0))[index]
        seen = signals(
            replicas,
            np.maximum(replicas - 1, 0),
            rate_rps=rate,
            cpu_usage_cores=rate / 20,
            concurrency=rate / 10,
            failed=(holes[tick] > 0.95)[index],
        )
        state = rule.initial(seen, 15.0 * tick) if state is None else state
        state, replicas = rule.decide(state, seen, 15.0 * tick)
        lived.append(replicas)
    return np.stack(lived)


@pytest.mark.parametrize("choices", GROUPS, ids=lambda choices: type(choices[0]).__name__)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_row_of_a_rule_depends_on_its_neighbours_and_all_keep_their_bounds(choices, seed):
    every = np.arange(len(choices))
    together = life(choices, every, seed)
    some = np.random.default_rng(seed).permutation(every)[: max(1, len(every) // 3)]
    assert np.array_equal(life(choices, some, seed), together[:, some])

    rng = np.random.default_rng(seed)
    rng.uniform(5, 20, len(choices))
    low, high = rng.integers(0, 4, len(choices)), rng.integers(5, 80, len(choices))
    assert np.all(together >= low), "below the minimum"
    assert np.all(together <= high), "above the maximum"
