"""minReplicas and maxReplicas hold on every path."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.rows import Array, maximum, minimum, namespace


def bounds(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Clamp to `[minReplicas, maxReplicas]`."""
    xp = namespace(replicas)
    few = replicas < context.settings.min_replicas
    clamped = minimum(xp, maximum(xp, replicas, context.settings.min_replicas), context.settings.max_replicas)
    reason = xp.where(
        few,
        xp.full_like(replicas, int(Reason.TOO_FEW_REPLICAS)),
        xp.full_like(replicas, int(Reason.TOO_MANY_REPLICAS)),
    )
    return clamped, reason
