"""The golden vectors V1 to V19 of the HPA; no answer depends on a row's neighbours or the array library."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

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
    default_behavior,
    limit,
    overwrite,
    stabilize,
)
from understudy_policy.rows import as_torch_or_numpy, namespace, take

UNBOUNDED = 100_000
NEVER_S = np.array([-np.inf])
NOTHING = np.array([[0]])
NO_HISTORY = np.array([[NO_RECOMMENDATION]])


def one(value: float) -> np.ndarray:
    return np.array([value])


def pods(ready: list[int], missing: int = 0, unready: int = 0, request: int = 1000) -> hpa.PodSums:
    """One workload whose pods all have the same request."""
    return hpa.PodSums(
        ready=one(len(ready)),
        ready_usage_milli=one(sum(ready)),
        ready_request_milli=one(len(ready) * request),
        missing=one(missing),
        missing_request_milli=one(missing * request),
        unready=one(unready),
        unready_request_milli=one(unready * request),
    )


def direction(window_s: int = 0, select: int = SELECT_MAX, *policies: tuple[int, int, int]) -> Direction:
    kinds, values, periods = zip(*(*policies, (POLICY_NONE, 0, 0), (POLICY_NONE, 0, 0))[:2], strict=True)
    return Direction(one(window_s), one(select), *(np.array([x]) for x in (kinds, values, periods)), one(0.1))


def ring(*recommendations: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(replicas, time) pairs as the shared clock and a ring of one row."""
    return np.array([float(t) for _, t in recommendations]), np.array([[r for r, _ in recommendations]])


def ceiling(
    current: int, behavior: Behavior, now_s: float = 0.0, change: tuple[int, float] = (0, -1e9)
) -> int:
    """The most replicas that the behaviour allows right now."""
    size, time_s = change
    replicas, _ = limit(
        one(UNBOUNDED), one(current), behavior, one(0), one(UNBOUNDED), now_s, one(time_s), np.array([[size]])
    )
    return int(replicas[0])


def floor(current: int, behavior: Behavior) -> int:
    """The fewest replicas that the behaviour allows right now."""
    replicas, _ = limit(one(0), one(current), behavior, one(0), one(UNBOUNDED), 0.0, NEVER_S, NOTHING)
    return int(replicas[0])


@pytest.mark.parametrize(
    ("sums", "current", "target", "expected"),
    [
        pytest.param(pods([1000, 1000, 1000]), 3, 50, 6, id="V1-doubles"),
        pytest.param(pods([549]), 1, 50, 1, id="V2-54.9-percent-truncates-into-tolerance"),
        pytest.param(pods([560]), 1, 50, 2, id="V2-56-percent-is-out-of-tolerance"),
        pytest.param(pods([100, 100], missing=1), 3, 50, 3, id="V3-missing-is-full-on-the-way-down"),
        pytest.param(pods([100, 100, 100], missing=1), 4, 50, 3, id="V3-of-four"),
        pytest.param(pods([900, 900], missing=1), 3, 50, 4, id="V4-missing-is-idle-on-the-way-up"),
        pytest.param(pods([900, 900], unready=2), 4, 50, 4, id="V5-unready-turns-the-direction"),
        pytest.param(pods([100, 100, 100], unready=1), 4, 50, 1, id="V6-unready-does-not-count-downwards"),
        pytest.param(pods([500, 500], missing=1), 3, 50, 3, id="exactly-at-target-missing-is-left-out"),
        pytest.param(pods([200, 200], missing=1), 3, 150, 2, id="V7-missing-is-at-a-target-above-100"),
    ],
)
def test_resource_utilization(sums: hpa.PodSums, current: int, target: int, expected: int) -> None:
    replicas, valid = hpa.resource_utilization(sums, one(current), one(target), one(0.1), one(0.1))
    assert valid.all()
    assert replicas.tolist() == [expected]


def test_v8_pods_average() -> None:
    sums = pods([20_000, 20_000, 20_000])
    replicas, valid = hpa.pods_average(sums, one(3), one(10_000), one(0.1), one(0.1))
    assert valid.all()
    assert replicas.tolist() == [6]


@pytest.mark.parametrize(("current", "expected"), [(1, 5), (2, 6), (3, 7), (4, 8), (5, 10), (10, 20)])
def test_v9_default_scale_up_ceiling(current: int, expected: int) -> None:
    assert ceiling(current, default_behavior(1, one(0))) == expected


@pytest.mark.parametrize(("current", "expected"), [(1, 4), (3, 6)])
def test_v9_legacy_scale_up_ceiling(current: int, expected: int) -> None:
    replicas, reason = hpa.normalize_legacy(
        one(UNBOUNDED), one(current), one(1), one(UNBOUNDED), 0.0, NEVER_S, NO_HISTORY
    )
    assert replicas.tolist() == [expected]
    assert reason.tolist() == [LimitReason.SCALE_UP_LIMIT]


def test_legacy_maximum_at_the_ceiling_is_the_maximum() -> None:
    replicas, reason = hpa.normalize_legacy(one(UNBOUNDED), one(3), one(1), one(6), 0.0, NEVER_S, NO_HISTORY)
    assert replicas.tolist() == [6]
    assert reason.tolist() == [LimitReason.TOO_MANY_REPLICAS]


@pytest.mark.parametrize(("now_s", "expected"), [(14, 20), (15, 40)])
def test_v10_a_period_ends_when_it_has_fully_passed(now_s: float, expected: int) -> None:
    assert ceiling(20, default_behavior(1, one(0)), now_s, change=(10, 0.0)) == expected


@pytest.mark.parametrize(
    ("current", "expected"), [(1, 2), (3, 4), (7, 8), (10, 11), (20, 22), (30, 33), (50, 56), (100, 111)]
)
def test_v11_ten_percent_up_rounds_as_ieee_does(current: int, expected: int) -> None:
    up = direction(0, SELECT_MAX, (POLICY_PERCENT, 10, 60))
    assert ceiling(current, Behavior(up, direction())) == expected


@pytest.mark.parametrize(
    ("current", "expected"), [(1, 0), (3, 2), (7, 6), (9, 8), (10, 9), (50, 45), (100, 90)]
)
def test_v12_ten_percent_down_truncates(current: int, expected: int) -> None:
    down = direction(0, SELECT_MAX, (POLICY_PERCENT, 10, 60))
    assert floor(current, Behavior(direction(), down)) == expected


@pytest.mark.parametrize(
    ("select", "current", "expected"),
    [
        (SELECT_MIN, 10, 9),
        (SELECT_MIN, 40, 36),
        (SELECT_MIN, 80, 75),
        (SELECT_MAX, 10, 5),
        (SELECT_MAX, 40, 35),
        (SELECT_MAX, 80, 72),
    ],
)
def test_v13_select_policy_downwards(select: int, current: int, expected: int) -> None:
    down = direction(0, select, (POLICY_PODS, 5, 60), (POLICY_PERCENT, 10, 60))
    assert floor(current, Behavior(direction(), down)) == expected


@pytest.mark.parametrize(
    ("current", "desired", "recommendations", "up_s", "down_s", "expected"),
    [
        pytest.param(10, 4, [(8, -200), (6, -100)], 0, 300, 8, id="V14-highest-of-the-window"),
        pytest.param(10, 4, [(12, -200)], 0, 300, 10, id="V15-never-up-on-the-way-down"),
        pytest.param(10, 20, [(15, -30)], 60, 300, 15, id="V16-lowest-of-the-window"),
        pytest.param(17, 14, [(21, -100), (19, -200)], 300, 600, 17, id="V17-both-windows"),
        pytest.param(10, 4, [(8, -300)], 0, 300, 4, id="a-recommendation-as-old-as-the-window-is-out"),
        pytest.param(
            10, 20, [(NO_RECOMMENDATION, -30)], 60, 300, 20, id="no-recommendation-is-not-minus-one"
        ),
    ],
)
def test_stabilize(
    current: int, desired: int, recommendations: list[tuple[int, int]], up_s: int, down_s: int, expected: int
) -> None:
    time_s, recommendation = ring(*recommendations)
    behavior = Behavior(direction(up_s), direction(down_s))
    replicas = stabilize(one(desired), one(current), behavior, 0.0, time_s, recommendation)
    assert replicas.tolist() == [expected]


@pytest.mark.parametrize(("status", "expected"), [(9, 10), (12, 10), (10, 10), (11, 11)])
def test_v18_external_average_value(status: int, expected: int) -> None:
    replicas = hpa.external_average_value(one(100_000), one(10_000), one(status), one(0.1), one(0.1))
    assert replicas.tolist() == [expected]


@pytest.mark.parametrize(("other", "desired", "held"), [(2, 3, True), (5, 5, False)])
def test_v19_a_silent_metric_forbids_the_way_down(other: int, desired: int, held: bool) -> None:
    replicas, hold = hpa.combine(np.array([[7], [other]]), np.array([[False], [True]]), one(3))
    assert replicas.tolist() == [desired]
    assert hold.tolist() == [held]


def test_all_metrics_silent_holds() -> None:
    replicas, held = hpa.combine(np.array([[9], [9]]), np.array([[False], [False]]), one(3))
    assert replicas.tolist() == [3]
    assert held.all()


@pytest.mark.parametrize("sums", [pods([], missing=3), pods([], unready=2), pods([300, 300], request=0)])
def test_no_usable_pod_is_invalid_not_zero(sums: hpa.PodSums) -> None:
    replicas, valid = hpa.resource_utilization(sums, one(3), one(50), one(0.1), one(0.1))
    assert not valid.any()
    assert replicas.tolist() == [3]


def test_an_absurd_metric_is_capped_to_int32() -> None:
    metric = one(2**62)
    assert hpa.external_average_value(metric, one(1), one(5), one(0.1), one(0.1)).tolist() == [2**31 - 1]
    assert hpa.external_value(metric, one(1), one(5), one(5), one(0.1), one(0.1)).tolist() == [2**31 - 1]


def test_external_value_wakes_from_zero_without_pods() -> None:
    replicas = hpa.external_value(one(2500), one(1000), one(0), one(0), one(0.1), one(0.1))
    assert replicas.tolist() == [3]


@pytest.mark.parametrize(
    ("desired", "current", "low", "high", "expected", "condition"),
    [
        (5, 4, 1, 10, 5, "DesiredWithinRange"),
        (50, 20, 1, 30, 30, "TooManyReplicas"),
        (50, 10, 1, 30, 20, "ScaleUpLimit"),
        (50, 10, 1, 20, 20, "TooManyReplicas"),
        (0, 4, 2, 10, 2, "TooFewReplicas"),
        (4, 40, 1, 30, 30, "TooManyReplicas"),
        (40, 1, 3, 30, 3, "TooFewReplicas"),
        (7, 0, 1, 30, 0, "ScalingDisabled"),
        (7, 0, 0, 30, 4, "ScaleUpLimit"),
    ],
)
def test_normalize_names_what_bound(
    desired: int, current: int, low: int, high: int, expected: int, condition: str
) -> None:
    replicas, reason = hpa.normalize(
        one(desired), one(current), one(low), one(high), default_behavior(1, one(0)),
        0.0, NEVER_S, NO_HISTORY, NOTHING,
    )  # fmt: skip
    assert replicas.tolist() == [expected]
    assert LimitReason(int(reason[0])).condition == condition


def test_a_held_row_stays_whatever_its_history() -> None:
    time_s, recommendation = ring((30, -10), (1, -5))
    behavior = Behavior(direction(60), direction(300))
    change = np.array([[5, -9]])
    replicas, _ = hpa.normalize(
        one(8), one(8), one(1), one(30), behavior, 0.0, time_s, recommendation, change
    )
    assert replicas.tolist() == [8]


@pytest.mark.parametrize(("desired", "expected"), [(50, 10), (2, 10)])
def test_disabled_directions_do_not_move(desired: int, expected: int) -> None:
    rules = direction(0, SELECT_DISABLED, (POLICY_PODS, 100, 15))
    replicas, _ = limit(one(desired), one(10), Behavior(rules, rules), one(1), one(90), 0.0, NEVER_S, NOTHING)
    assert replicas.tolist() == [expected]


def test_events_count_in_any_column_order() -> None:
    """A ring wraps: its newest column may lie left of its oldest, with unwritten ones between."""
    up = direction(0, SELECT_MAX, (POLICY_PODS, 10, 30))
    time_s = np.array([90.0, -np.inf, 60.0, 75.0])
    change = np.array([[3, 100, 1000, 4]])
    replicas, _ = limit(one(99), one(20), Behavior(up, direction()), one(1), one(99), 91.0, time_s, change)
    assert replicas.tolist() == [20 - 3 - 4 + 10]


def test_an_event_is_forgotten_though_the_other_direction_still_counts_it() -> None:
    """Up by 4, a minute later by 3: to the controller the second takes the place of the first."""
    up = direction(0, SELECT_MAX, (POLICY_PODS, 4, 15))
    behavior = Behavior(up, direction(0, SELECT_MAX, (POLICY_PODS, 1, 300)))
    clock, change, nowhere = np.array([0.0]), np.array([[4]]), np.array([[0]])
    kept, place, length = overwrite(one(3), 60.0, behavior, clock, change, nowhere, np.array([[1, 0]]))
    assert (kept.tolist(), place.tolist(), length.tolist()) == ([[0]], [0], [[1, 0]])

    # Younger than the longest period of its own direction, it stays, and the list grows.
    kept, place, length = overwrite(one(3), 15.0, behavior, clock, change, nowhere, np.array([[1, 0]]))
    assert (kept.tolist(), place.tolist(), length.tolist()) == ([[4]], [1], [[2, 0]])


# --- many rows, two libraries -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Everything the functions take, for n workloads of all sorts."""

    desired: np.ndarray
    current: np.ndarray
    low: np.ndarray
    high: np.ndarray
    behavior: Behavior
    recommendation: np.ndarray
    change: np.ndarray
    place: np.ndarray
    length: np.ndarray
    pods: hpa.PodSums
    target: np.ndarray


def fleet(n: int, k: int) -> Fleet:
    draw = np.random.default_rng(7)

    def rules() -> Direction:
        return Direction(
            stabilization_window_s=draw.choice([0, 15, 60, 300], n),
            select=draw.integers(0, 3, n),
            policy_type=draw.integers(0, 3, (n, 4)),
            policy_value=draw.integers(1, 120, (n, 4)),
            policy_period_s=draw.choice([15, 60, 600], (n, 4)),
            tolerance=draw.choice([0.0, 0.1, 0.2], n),
        )

    low = draw.integers(0, 4, n)
    return Fleet(
        desired=draw.integers(0, 80, n),
        current=draw.integers(0, 60, n),
        low=low,
        high=low + draw.integers(1, 60, n),
        behavior=Behavior(rules(), rules()),
        recommendation=draw.integers(-1, 80, (n, k)).astype(np.int32),
        change=draw.integers(-4, 5, (n, k)).astype(np.int32),
        place=np.tile(np.arange(k, dtype=np.int16), (n, 1)),
        length=np.full((n, 2), k, np.int16),
        pods=hpa.PodSums(*(draw.integers(0, top, n) for top in (5, 9000, 9000, 3, 3000, 3, 3000))),
        target=draw.integers(10, 200, n),
    )


def every_function(rows: Fleet, time_s: np.ndarray) -> dict[str, np.ndarray]:
    now_s, up, down = 601.0, rows.behavior.scale_up.tolerance, rows.behavior.scale_down.tolerance
    ring_args = (now_s, time_s, rows.recommendation)
    usage = rows.pods.ready_usage_milli
    xp = namespace(usage)
    asked = xp.stack([rows.desired, rows.desired - 5])
    answered = xp.stack([rows.pods.ready > 0, rows.pods.ready > 2])
    outputs: dict[str, object] = {
        "resource": hpa.resource_utilization(rows.pods, rows.current, rows.target, up, down),
        "pods": hpa.pods_average(rows.pods, rows.current, rows.target, up, down),
        "external_average": hpa.external_average_value(usage, rows.target, rows.current, up, down),
        "external": hpa.external_value(usage, rows.target, rows.current, rows.pods.ready, up, down),
        "combine": hpa.combine(asked, answered, rows.current),
        "normalize": hpa.normalize(
            rows.desired, rows.current, rows.low, rows.high, rows.behavior, *ring_args, rows.change
        ),
        "overwrite": overwrite(
            rows.desired - 40, 620.0, rows.behavior, time_s, rows.change, rows.place, rows.length
        ),
        "legacy": hpa.normalize_legacy(rows.desired, rows.current, rows.low, rows.high, *ring_args),
    }
    return {
        f"{name}[{i}]": np.asarray(array)
        for name, output in outputs.items()
        for i, array in enumerate(output if isinstance(output, tuple) else (output,))
    }


TIME_S = np.roll(np.append(np.arange(39) * 15.0 + 30.0, -np.inf), 11)


def test_a_row_alone_equals_the_row_of_ten_thousand() -> None:
    rows = fleet(10_000, len(TIME_S))
    together = every_function(rows, TIME_S)
    assert len(np.unique(together["normalize[1]"])) == len(LimitReason), "the fleet must meet every reason"
    for i in (0, 1, 17, 4_999, 9_999):
        alone = every_function(take(rows, np.array([i])), TIME_S)
        assert {name: a.tolist() for name, a in alone.items()} == {
            name: a[[i]].tolist() for name, a in together.items()
        }


def test_numpy_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    rows = fleet(2_000, len(TIME_S))
    in_torch = every_function(as_torch_or_numpy(rows, torch.as_tensor), torch.as_tensor(TIME_S))
    for name, expected in every_function(rows, TIME_S).items():
        np.testing.assert_array_equal(in_torch[name], expected, err_msg=name, strict=True)


def test_default_behavior_follows_the_library() -> None:
    torch = pytest.importorskip("torch")
    here, there = default_behavior(3, one(0), slots=4), default_behavior(3, torch.zeros(1), slots=4)
    for side in ("scale_up", "scale_down"):
        for field in dataclasses.fields(Direction):
            expected = getattr(getattr(here, side), field.name)
            actual = getattr(getattr(there, side), field.name)
            assert isinstance(actual, torch.Tensor)
            np.testing.assert_array_equal(actual.numpy(), expected, err_msg=f"{side}.{field.name}")


def test_inputs_are_left_untouched() -> None:
    rows, time_s = fleet(50, len(TIME_S)), TIME_S.copy()
    before = dataclasses.asdict(rows)
    every_function(rows, time_s)
    np.testing.assert_equal(dataclasses.asdict(rows), before)
    np.testing.assert_array_equal(time_s, TIME_S)
