"""`spec.behavior` of an HPA, exactly: how far and how fast a recommendation may move the replicas.

It stands apart from the rest of the HPA because the actor's proposals pass through it, too. Scaling down is
scaling up seen in a mirror: where Kubernetes has two functions, one per direction, this module picks each
row's sign first (+1 up, -1 down), multiplies replicas by it, and needs only the one for "up".

What it remembers is exact, too: kube-controller-manager overwrites scale events in an order of its own, and at
times one that a longer policy of the *other* direction still counts. `overwrite` does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from understudy_policy.rows import Array, device, maximum, minimum, namespace

INT32_MAX = 2**31 - 1

DEFAULT_TOLERANCE = 0.1
DEFAULT_DOWNSCALE_STABILIZATION_S = 300

SELECT_MAX, SELECT_MIN, SELECT_DISABLED = 0, 1, 2
POLICY_NONE, POLICY_PODS, POLICY_PERCENT = 0, 1, 2

NO_RECOMMENDATION = -1
"""In a ring of recommendations: nothing was recommended then (held, bypassed, or the row did not exist)."""


class LimitReason(IntEnum):
    """Why the replicas differ from what the metrics asked for: the reasons of HPA's conditions."""

    DESIRED_WITHIN_RANGE = 0
    TOO_FEW_REPLICAS = 1
    TOO_MANY_REPLICAS = 2
    SCALE_UP_LIMIT = 3
    SCALE_DOWN_LIMIT = 4
    SCALE_UP_STABILIZED = 5
    SCALE_DOWN_STABILIZED = 6
    SCALING_DISABLED = 7

    @property
    def condition(self) -> str:
        """The reason as HPA's status spells it, e.g. `ScaleUpLimit`."""
        return self.name.title().replace("_", "")


@dataclass(frozen=True)
class Direction:
    """`behavior.scaleUp` or `behavior.scaleDown` of every workload (`[N]`, `[N, P]` for the policies)."""

    stabilization_window_s: Array
    select: Array
    """`SELECT_MAX`, `SELECT_MIN` or `SELECT_DISABLED`."""
    policy_type: Array
    """`POLICY_PODS` or `POLICY_PERCENT`; `POLICY_NONE` in unused slots."""
    policy_value: Array
    policy_period_s: Array
    tolerance: Array
    """Share of the target, e.g. 0.1 (float64)."""


@dataclass(frozen=True)
class Behavior:
    """`spec.behavior` of every workload; both directions have the same number of policy slots P."""

    scale_up: Direction
    scale_down: Direction


def default_behavior(n: int, like: Array, slots: int = 2) -> Behavior:
    """HPA's defaults for n workloads: up by 4 pods or 100 % per 15 s, down freely after 300 s.

    Args:
        n: Number of workloads.
        like: Any array of the library and device wanted.
        slots: Policy slots P per direction, at least 2; unused ones hold `POLICY_NONE`.
    """
    xp = namespace(like)

    def rows(*values: float) -> Array:
        one = xp.asarray(values, device=device(like))
        return _columns(xp, xp.tile(one[:, None], (1, n)))

    def direction(window_s: int, *policies: tuple[int, int, int]) -> Direction:
        padded = (*policies, *((POLICY_NONE, 0, 0) for _ in range(slots - len(policies))))
        kinds, values, periods = zip(*padded, strict=True)
        return Direction(
            stabilization_window_s=rows(window_s)[:, 0],
            select=rows(SELECT_MAX)[:, 0],
            policy_type=rows(*kinds),
            policy_value=rows(*values),
            policy_period_s=rows(*periods),
            tolerance=xp.full((n,), DEFAULT_TOLERANCE, dtype=xp.float64, device=device(like)),
        )

    return Behavior(
        scale_up=direction(0, (POLICY_PODS, 4, 15), (POLICY_PERCENT, 100, 15)),
        scale_down=direction(DEFAULT_DOWNSCALE_STABILIZATION_S, (POLICY_PERCENT, 100, 15)),
    )


def stabilize(
    desired: Array, current: Array, behavior: Behavior, now_s: float, time_s: Array, recommendation: Array
) -> Array:
    """The mildest recommendation of the stabilisation window, and never a step in the other direction.

    Args:
        desired: Replicas that the metrics ask for `[N]`.
        current: `spec.replicas` of the scale `[N]`.
        behavior: The workloads' behaviour.
        now_s: Time of this tick, on the clock of `time_s`.
        time_s: When each column of the ring was written, minus infinity where it was not `[K]`.
        recommendation: *Unstabilised* desired replicas of earlier ticks; below 0 is ignored `[N, K]`.

    Returns:
        Replicas, int64 `[N]`.
    """
    xp = namespace(desired, current, recommendation)
    desired, current = as_int(desired), as_int(current)
    up = desired > current
    sign = _sign(up)
    window_s = as_float(
        xp.where(up, behavior.scale_up.stabilization_window_s, behavior.scale_down.stabilization_window_s)
    )
    # Column by column: the rings of the judge's many workloads lie so in memory.
    ring = _columns(xp, recommendation)
    counts = (as_float(time_s)[:, None] > (now_s - window_s)[None, :]) & (ring >= 0)
    mirrored = ring * xp.astype(sign, ring.dtype)[None, :]
    mildest = as_int(xp.min(xp.where(counts, mirrored, INT32_MAX), axis=0))
    return sign * maximum(xp, sign * current, minimum(xp, sign * desired, mildest))


def limit(
    desired: Array,
    current: Array,
    behavior: Behavior,
    min_replicas: Array,
    max_replicas: Array,
    now_s: float,
    time_s: Array,
    change: Array,
) -> tuple[Array, Array]:
    """What the rate policies and the bounds leave of a step.

    Args:
        desired: Stabilised replicas `[N]`.
        current: `spec.replicas` of the scale, within the bounds `[N]`.
        behavior: The workloads' behaviour.
        min_replicas: `[N]`.
        max_replicas: `[N]`.
        now_s: Time of this tick, on the clock of `time_s`.
        time_s: When each column of the ring was written, minus infinity where it was not `[K]`.
        change: Signed changes of replicas that were applied at earlier ticks and are still remembered, see
            `overwrite` `[N, K]`.

    Returns:
        Replicas (int64 `[N]`) and a `LimitReason` (int64 `[N]`).
    """
    xp = namespace(desired, current, change)
    desired, current = as_int(desired), as_int(current)
    up = desired > current
    sign = _sign(up)
    rules, other = behavior.scale_up, behavior.scale_down
    select = xp.where(up, rules.select, other.select)

    def policies(upward: Array, downward: Array) -> Array:
        return xp.where(up[None, :], _columns(xp, upward), _columns(xp, downward))

    kind = policies(rules.policy_type, other.policy_type)
    value = policies(rules.policy_value, other.policy_value)
    period_s = policies(rules.policy_period_s, other.policy_period_s)

    start = current[None, :] - _change_since(xp, now_s - as_float(period_s), time_s, change)
    step = sign[None, :] * value
    percent = as_float(start) * (1 + as_float(step) / 100)
    percent = xp.where(up[None, :], xp.ceil(percent), xp.trunc(percent))
    proposed = sign[None, :] * xp.where(kind == POLICY_PODS, as_int(start + step), as_capped_int(percent))
    used = kind != POLICY_NONE
    furthest = xp.max(xp.where(used, proposed, -INT32_MAX), axis=0)
    nearest = xp.min(xp.where(used, proposed, INT32_MAX), axis=0)

    here = sign * current
    rate_limit = maximum(xp, xp.where(select == SELECT_MIN, nearest, furthest), here)
    rate_limit = xp.where(select == SELECT_DISABLED, here, rate_limit)
    bound = sign * as_int(xp.where(up, max_replicas, min_replicas))
    allowed = minimum(xp, bound, rate_limit)
    limited = sign * desired > allowed

    by_rate = xp.where(up, LimitReason.SCALE_UP_LIMIT.value, xp.full_like(sign, LimitReason.SCALE_DOWN_LIMIT))
    by_bound = xp.where(
        up, LimitReason.TOO_MANY_REPLICAS.value, xp.full_like(sign, LimitReason.TOO_FEW_REPLICAS)
    )
    reason = xp.where(limited, xp.where(bound > rate_limit, by_rate, by_bound), 0)
    return xp.where(limited, sign * allowed, desired), reason


def overwrite(
    size: Array, at_s: float, behavior: Behavior, time_s: Array, change: Array, place: Array, length: Array
) -> tuple[Array, Array, Array]:
    """Make room for a scale event where kube-controller-manager would put it, and forget what it forgets.

    It keeps a list of events per direction. A new one overwrites the last in the list (which need not be the
    newest) that is older than the longest period of its *own* direction; where there is none, the list grows.

    Args:
        size: The event, a signed change of replicas; where it is 0, nothing happens `[N]`.
        at_s: When it was applied, on the clock of `time_s`.
        behavior: The workloads' behaviour.
        time_s: When each column of the rings was written, minus infinity where it was not `[K]`.
        change: Signed changes that are remembered so far, 0 where none `[N, K]`.
        place: The index of each of them in its direction's list `[N, K]`.
        length: Lengths of the lists up and down; they hold events that left the rings long ago, too `[N, 2]`.

    Returns:
        `change` without what is overwritten, the event's place (int64 `[N]`), and the new lengths. The event
        itself belongs into a column of its own.
    """
    xp = namespace(size, change)
    up, happened = size > 0, size != 0
    longest_s = xp.where(
        up,
        xp.max(behavior.scale_up.policy_period_s, axis=1),
        xp.max(behavior.scale_down.policy_period_s, axis=1),
    )
    alike = (change != 0) & ((change > 0) == up[:, None])
    young = alike & (time_s[None, :] >= (at_s - as_float(longest_s))[:, None])
    mine = as_int(xp.where(up, length[:, 0], length[:, 1]))
    # From the end of the list to its start: the first place that no young event holds is the last old one's.
    held = xp.sort(xp.where(young, place, xp.full_like(place, -1)), axis=1, descending=True)
    back = mine[:, None] - 1 - xp.arange(place.shape[1], device=device(place))[None, :]
    gaps = xp.cumulative_sum(as_int((held != back) | (back < 0)), axis=1)
    last_old = mine - 1 - xp.sum(as_int(gaps == 0), axis=1)
    grows = last_old < 0
    new_place = xp.where(grows, mine, last_old)
    overwritten = happened[:, None] & alike & ~young & (place == new_place[:, None])
    direction = xp.stack([up, ~up], axis=1)
    grown = (happened & grows)[:, None] & direction
    return (
        xp.where(overwritten, xp.zeros_like(change), change),
        new_place,
        length + xp.astype(grown, length.dtype),
    )


def _change_since(xp: Any, cutoff_s: Array, time_s: Array, change: Array) -> Array:
    """Sum of every row's changes after its cut-offs: `[P, N]` from `[P, N]`, `[K]` and `[N, K]`.

    All rows share the clock, so one cumulative sum, newest first, answers every policy of every row.
    """
    if cutoff_s.shape[1] == 0:
        return as_int(cutoff_s)
    # Only the columns that any policy still counts: an hour is kept, and most look back for seconds.
    reached = int(xp.sum(as_int(time_s > xp.min(cutoff_s))))
    order = xp.argsort(time_s, descending=True)[: max(reached, 1)]
    total = xp.cumulative_sum(xp.take(change, order, axis=1), axis=1, dtype=change.dtype)
    age_s = -as_float(xp.take(time_s, order, axis=0))
    count = xp.searchsorted(age_s, xp.reshape(-cutoff_s, (-1,)), side="left")
    count = _columns(xp, xp.reshape(count, cutoff_s.shape))
    found = xp.take_along_axis(total, maximum(xp, count - 1, 0), axis=1)
    return _columns(xp, as_int(xp.where(count > 0, found, 0)))


def _columns(xp: Any, rows: Array) -> Array:
    """`[K, N]` from `[N, K]`."""
    return xp.permute_dims(rows, (1, 0))


def _sign(up: Array) -> Array:
    return 2 * as_int(up) - 1


def as_int(array: Array) -> Array:
    """Replicas and counts, whatever dtype they were kept in, as int64."""
    return namespace(array).astype(array, namespace(array).int64, copy=False)


def as_float(array: Array) -> Array:
    """The array as float64, the arithmetic of HPA's ratios."""
    return namespace(array).astype(array, namespace(array).float64, copy=False)


def as_capped_int(array: Array) -> Array:
    """Whole floats as int64 within the range of int32, in which Kubernetes counts replicas."""
    return as_int(namespace(array).clip(array, -INT32_MAX, INT32_MAX))
