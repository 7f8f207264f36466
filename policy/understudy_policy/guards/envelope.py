"""However sure the actor is, it stays near the reference and above what the load of this moment needs."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.rows import Array, is_unknown, maximum, minimum, namespace


def envelope(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Bound the actor's share of the decision; where only the reference speaks, bound nothing but doubt.

    The floor wins over the ceiling: a reference that is blind to the load must not starve it.
    """
    xp = namespace(replicas)
    settings = context.settings
    spoken = (context.actor_doubt == 0) & (context.authority > 0)
    reference = xp.astype(context.reference_raw, xp.float64)
    # A hair's breadth keeps 10 × (1 − 0.3) = 7.000000000000001 from costing an eighth pod.
    lowest = xp.ceil(reference * (1.0 - settings.below_reference) - 1e-9)
    highest = xp.floor(reference * (1.0 + settings.above_reference) + 1e-9)
    needed = xp.ceil(context.demand_pods / settings.utilization_ceiling - 1e-6)
    needed = xp.where(is_unknown(needed), xp.zeros_like(needed), needed)
    # Demand beyond maxReplicas is for the bounds to refuse, and must stay far from the edge of the integers.
    needed = minimum(xp, needed, xp.astype(settings.max_replicas, xp.float64))

    value, reason = replicas, xp.zeros_like(replicas)
    for bound, is_floor, code in (
        (highest, False, Reason.ENVELOPE_ABOVE_REFERENCE),
        (lowest, True, Reason.ENVELOPE_BELOW_REFERENCE),
        (needed, True, Reason.ENVELOPE_OBSERVED_LOAD),
    ):
        limit = xp.astype(bound, replicas.dtype)
        limited = maximum(xp, value, limit) if is_floor else minimum(xp, value, limit)
        moved = spoken & (limited != value)
        value = xp.where(moved, limited, value)
        reason = xp.where(moved, xp.full_like(reason, int(code)), reason)

    held = context.doubt & (value < context.current)
    return (
        xp.where(held, context.current, value),
        xp.where(held, xp.full_like(reason, int(Reason.DOUBT_FORBIDS_SCALE_IN)), reason),
    )
