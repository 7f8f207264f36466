"""A target that cannot be read, or that was scaled to zero by a person, is left alone."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.rows import Array, namespace


def left_alone(context: Context) -> Array:
    """Where nothing may be decided, `[N]` bool; a pin still wakes a target that was scaled to zero."""
    return (context.current < 0) | ((context.current == 0) & (context.override < 0))


def target(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Keep the replicas as they are where the target is to be left alone."""
    xp = namespace(replicas)
    unknown = context.current < 0
    reason = xp.where(
        unknown,
        xp.full_like(replicas, int(Reason.TARGET_UNKNOWN)),
        xp.full_like(replicas, int(Reason.SCALED_TO_ZERO)),
    )
    return xp.where(left_alone(context), context.current, replicas), reason
