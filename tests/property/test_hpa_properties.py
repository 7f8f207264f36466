"""The vectorised HPA against the scalar one on random pods, behaviours and histories, and its invariants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import hpa_scalar as scalar
from understudy_policy.references import hpa
from understudy_policy.references.behavior import (
    NO_RECOMMENDATION,
    POLICY_NONE,
    POLICY_PERCENT,
    POLICY_PODS,
    SELECT_DISABLED,
    SELECT_MAX,
    SELECT_MIN,
    Behavior,
    Direction,
    LimitReason,
    overwrite,
)

SLOTS = 3
NOW_S = 1000.0
SELECT = {"Max": SELECT_MAX, "Min": SELECT_MIN, "Disabled": SELECT_DISABLED}
KIND = {"Pods": POLICY_PODS, "Percent": POLICY_PERCENT}

# Multiples of five seconds everywhere: window edges that meet a sample exactly are the interesting ones.
windows = st.integers(0, 12).map(lambda steps: 5 * steps)
periods = st.integers(1, 12).map(lambda steps: 5 * steps)
replicas = st.one_of(st.integers(0, 12), st.integers(0, 300))
policies = st.builds(scalar.Policy, st.sampled_from(sorted(KIND)), st.integers(1, 150), periods)
rules = st.builds(
    scalar.Rules,
    windows,
    st.sampled_from(sorted(SELECT)),
    st.lists(policies, min_size=1, max_size=SLOTS).map(tuple),
)
tolerances = st.builds(
    scalar.Tolerance, st.sampled_from([0.0, 0.05, 0.1, 0.5]), st.sampled_from([0.0, 0.1, 0.3])
)


def direction(rows: list[scalar.Rules]) -> Direction:
    def slots(of: dict[str, int] | None, name: str) -> np.ndarray:
        table = np.full((len(rows), SLOTS), POLICY_NONE)
        for n, row in enumerate(rows):
            for p, policy in enumerate(row.policies):
                value = getattr(policy, name)
                table[n, p] = of[value] if of else value
        return table

    return Direction(
        stabilization_window_s=np.array([row.stabilization_window_s for row in rows]),
        select=np.array([SELECT[row.select] for row in rows]),
        policy_type=slots(KIND, "type"),
        policy_value=slots(None, "value"),
        policy_period_s=slots(None, "period_s"),
        tolerance=np.full(len(rows), 0.1),
    )


@dataclass(frozen=True)
class Workload:
    desired: int
    current: int
    low: int
    high: int
    up: scalar.Rules
    down: scalar.Rules
    recommendations: list[int]
    changes: list[int]

    def history(self, time_s: list[float]) -> scalar.History:
        paired = zip(time_s, self.recommendations, self.changes, strict=True)
        written = [(t, r, c) for t, r, c in paired if t > -np.inf]
        return scalar.History(
            recommendations=[(t, r) for t, r, _ in written if r != NO_RECOMMENDATION],
            up_events=[(t, c) for t, _, c in written if c > 0],
            down_events=[(t, -c) for t, _, c in written if c < 0],
        )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[float], list[Workload]]:
    k = draw(st.integers(1, 8))
    ages = draw(st.lists(st.integers(0, 14).map(lambda steps: 5 * steps), min_size=k, max_size=k))
    blanks = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    time_s = [-np.inf if blank else NOW_S - age for age, blank in zip(ages, blanks, strict=True)]

    @st.composite
    def workloads(draw: st.DrawFn) -> Workload:
        low = draw(st.integers(0, 10))
        return Workload(
            desired=draw(replicas),
            current=draw(replicas),
            low=low,
            high=low + draw(st.integers(1, 250)),
            up=draw(rules),
            down=draw(rules),
            recommendations=draw(st.lists(st.integers(-1, 300), min_size=k, max_size=k)),
            changes=draw(st.lists(st.integers(-40, 40), min_size=k, max_size=k)),
        )

    return time_s, draw(st.lists(workloads(), min_size=1, max_size=6))


def normalized(
    time_s: list[float], rows: list[Workload], ring: type = np.int32, *, legacy: bool = False
) -> list[tuple[int, str]]:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows])

    bounds = (column("desired"), column("current"), column("low"), column("high"))
    clock, recommendation = np.array(time_s), column("recommendations").astype(ring)
    if legacy:
        result = hpa.normalize_legacy(*bounds, NOW_S, clock, recommendation, 30)
    else:
        behavior = Behavior(direction([r.up for r in rows]), direction([r.down for r in rows]))
        change = column("changes").astype(ring)
        result = hpa.normalize(*bounds, behavior, NOW_S, clock, recommendation, change)
    return [(int(n), LimitReason(int(why)).condition) for n, why in zip(*result, strict=True)]


@settings(max_examples=250, deadline=None)
@given(fleets(), st.sampled_from([np.int32, np.int64, np.float32]))
def test_normalize_equals_the_scalar_hpa(fleet: tuple[list[float], list[Workload]], ring: type) -> None:
    time_s, rows = fleet
    expected = [
        scalar.normalize(r.desired, r.current, r.low, r.high, r.up, r.down, r.history(time_s), NOW_S)
        for r in rows
    ]
    assert normalized(time_s, rows, ring) == expected


@settings(max_examples=200, deadline=None)
@given(fleets())
def test_normalize_legacy_equals_the_scalar_hpa(fleet: tuple[list[float], list[Workload]]) -> None:
    time_s, rows = fleet
    expected = [
        scalar.normalize_legacy(r.desired, r.current, r.low, r.high, r.history(time_s), NOW_S, 30)
        for r in rows
    ]
    assert normalized(time_s, rows, legacy=True) == expected


@settings(max_examples=200, deadline=None)
@given(fleets())
def test_bounds_and_direction_always_hold(fleet: tuple[list[float], list[Workload]]) -> None:
    time_s, rows = fleet
    for row, (result, condition) in zip(rows, normalized(time_s, rows), strict=True):
        if row.current == 0 and row.low > 0:
            assert (result, condition) == (0, "ScalingDisabled")
            continue
        assert row.low <= result <= row.high
        if row.low <= row.current <= row.high:
            between = sorted((row.current, row.desired))
            assert between[0] <= result <= between[1] or result in (row.low, row.high)
            recent = [
                r
                for t, r in row.history(time_s).recommendations
                if t > NOW_S - row.down.stabilization_window_s
            ]
            if result < row.current:
                assert result >= min(row.current, max([row.low, *recent]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(rules, rules), min_size=1, max_size=5),
    st.sampled_from([2, 5]),
    st.floats(0.1, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_events_are_forgotten_as_the_scalar_hpa_forgets_them(
    rows: list[tuple[scalar.Rules, scalar.Rules]], tick_s: int, busy: float, seed: int
) -> None:
    """On a ring that wraps, with ticks that are late, so that the lists' order is not that of time."""
    random, n, k = np.random.default_rng(seed), len(rows), 60 // tick_s + 1
    behavior = Behavior(direction([up for up, _ in rows]), direction([down for _, down in rows]))
    histories = [scalar.History() for _ in rows]
    time_s, change = np.full(k, -np.inf), np.zeros((n, k), np.int32)
    place, length, now_s = np.zeros((n, k), np.int16), np.zeros((n, 2), np.int16), 0.0
    for tick in range(60):
        now_s += tick_s * int(random.choice([1, 1, 1, 4]))
        size = random.integers(-4, 5, n) * (random.random(n) < busy)
        column = tick % k
        change[:, column] = 0
        change, new_place, length = overwrite(size, now_s, behavior, time_s, change, place, length)
        time_s[column], change[:, column], place[:, column] = now_s, size, new_place
        for i, history in enumerate(histories):
            if size[i]:
                history.record(now_s, 10, 10 + size[i], *rows[i])
            assert length[i].tolist() == [len(history.up_events), len(history.down_events)]
            wanted = history.up_events + [(t, -c) for t, c in history.down_events]
            got = zip(time_s.tolist(), change[i].tolist(), strict=True)
            # What is older than every period is in nobody's way, wherever it is kept.
            assert sorted((t, c) for t, c in got if c and t >= now_s - 60) == sorted(
                (t, c) for t, c in wanted if t >= now_s - 60
            )


# --- metrics --------------------------------------------------------------------------------------------------


@st.composite
def pod_lists(draw: st.DrawFn) -> list[scalar.Pod]:
    request = draw(st.sampled_from([0, 1, 33, 250, 1000]))
    usage = st.one_of(st.integers(0, 60), st.integers(0, 5000))
    pod = st.builds(
        scalar.Pod, st.sampled_from(["ready", "ready", "missing", "unready"]), usage, st.just(request)
    )
    return draw(st.lists(pod, min_size=1, max_size=9))


def sums(workloads: list[list[scalar.Pod]]) -> hpa.PodSums:
    def total(group: str, value: str | None) -> np.ndarray:
        return np.array(
            [sum(getattr(p, value) if value else 1 for p in w if p.group == group) for w in workloads]
        )

    return hpa.PodSums(
        ready=total("ready", None),
        ready_usage_milli=total("ready", "usage_milli"),
        ready_request_milli=total("ready", "request_milli"),
        missing=total("missing", None),
        missing_request_milli=total("missing", "request_milli"),
        unready=total("unready", None),
        unready_request_milli=total("unready", "request_milli"),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(pod_lists(), min_size=1, max_size=5),
    st.integers(0, 12),
    st.integers(1, 200),
    tolerances,
    st.booleans(),
)
def test_pod_metrics_equal_the_scalar_hpa(
    workloads: list[list[scalar.Pod]],
    current: int,
    target: int,
    tolerance: scalar.Tolerance,
    utilization: bool,
) -> None:
    n = len(workloads)
    function = hpa.resource_utilization if utilization else hpa.pods_average
    got, valid = function(
        sums(workloads),
        np.full(n, current),
        np.full(n, target),
        np.full(n, tolerance.up),
        np.full(n, tolerance.down),
    )
    for i, workload in enumerate(workloads):
        try:
            expected = scalar.pod_metric(workload, current, target, tolerance, utilization=utilization)
        except ValueError:
            assert not valid[i]
            assert got[i] == current
        else:
            assert valid[i]
            assert got[i] == expected


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.integers(0, 5000), st.integers(0, 2**62)),
    st.integers(1, 3000),
    st.integers(0, 50),
    st.integers(0, 50),
    tolerances,
)
def test_external_metrics_equal_the_scalar_hpa(
    metric: int, target: int, current: int, ready: int, tolerance: scalar.Tolerance
) -> None:
    up, down = np.array([tolerance.up]), np.array([tolerance.down])
    value, goal, count = np.array([metric]), np.array([target]), np.array([current])
    average = hpa.external_average_value(value, goal, count, up, down)
    assert average.tolist() == [scalar.external_average(metric, target, current, tolerance)]
    plain = hpa.external_value(value, goal, count, np.array([ready]), up, down)
    assert plain.tolist() == [scalar.external_value(metric, target, current, ready, tolerance)]


@given(st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=1, max_size=5), st.integers(0, 40))
def test_combine_equals_the_scalar_hpa(proposals: list[int | None], current: int) -> None:
    asked = np.array([[-7 if p is None else p] for p in proposals])
    desired, held = hpa.combine(asked, np.array([[p is not None] for p in proposals]), np.array([current]))
    expected = scalar.combine(proposals, current)
    assert held.tolist() == [expected is None]
    assert desired.tolist() == [current if expected is None else expected]


# --- a whole day's life ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(replicas, min_size=5, max_size=40), rules, rules, st.integers(1, 30))
def test_a_closed_loop_keeps_its_rates(
    wanted: list[int], up: scalar.Rules, down: scalar.Rules, k: int
) -> None:
    """Tick after tick on a ring that wraps, against the replicas that were really there a period ago."""
    low, high, tick_s = 2, 120, 5.0
    behavior = Behavior(direction([up]), direction([down]))
    k += 13  # the ring holds the longest window, 60 s, whatever its size
    time_s, recommendation, change = (
        np.full(k, -np.inf),
        np.full((1, k), NO_RECOMMENDATION),
        np.zeros((1, k), int),
    )
    current, seen = 10, {-1e9: 10}
    for i, want in enumerate(wanted):
        now = i * tick_s
        bounds = (np.array([want]), np.array([current]), np.array([low]), np.array([high]))
        after = int(hpa.normalize(*bounds, behavior, now, time_s, recommendation, change)[0][0])
        assert low <= after <= high
        if after != current:
            side = up if after > current else down
            assert side.select != "Disabled"
            reach = []
            for policy in side.policies:
                then = seen[max(t for t in seen if t <= now - policy.period_s)]
                sign = 1 if after > current else -1
                moved = then + sign * policy.value
                scaled = then * (1 + sign * policy.value / 100)
                reach.append(
                    moved if policy.type == "Pods" else np.ceil(scaled) if sign > 0 else np.trunc(scaled)
                )
            furthest_up = (max if up.select == "Max" else min)(reach)
            furthest_down = (min if down.select == "Max" else max)(reach)
            assert after <= furthest_up if after > current else after >= furthest_down
        column = i % k
        time_s[column], recommendation[0, column], change[0, column] = now, want, after - current
        current = seen[now] = after
