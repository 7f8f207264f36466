"""A person's pin beats everything that was computed."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.rows import Array, minimum, namespace


def override(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Use the pinned replicas where there are any; `maxReplicas` still holds, `minReplicas` does not."""
    xp = namespace(replicas)
    pinned = minimum(xp, context.override, context.settings.max_replicas)
    value = xp.where(context.override >= 0, pinned, replicas)
    return value, xp.full_like(replicas, int(Reason.OVERRIDE))
