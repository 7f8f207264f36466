"""The kill switch takes the actor out of the decision and hands over to the reference in the same tick."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import KillScope, Reason
from understudy_policy.rows import Array, maximum, minimum, namespace


def handover(context: Context) -> Array:
    """What is written where the actor is killed, `[N]` int64 replicas.

    The reference carries on, or nothing moves where `onKill: Hold` asks for that. Doubt still forbids scale-in, and
    a person's pin stays: the switch stops the actor, not the people.
    """
    xp = namespace(context.reference)
    settings = context.settings
    value = xp.where(settings.hold_on_kill, context.current, context.reference)
    value = xp.where(context.doubt, maximum(xp, value, context.current), value)
    value = minimum(xp, maximum(xp, value, settings.min_replicas), settings.max_replicas)
    return xp.where(context.override >= 0, minimum(xp, context.override, settings.max_replicas), value)


def kill(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Replace the decision by the hand-over where any scope of the kill switch is engaged."""
    xp = namespace(replicas)
    value = xp.where(context.killed > 0, handover(context), replicas)
    reason = xp.where(
        context.killed > 0,
        context.killed + (int(Reason.KILLED_POLICY) - int(KillScope.POLICY)),
        xp.zeros_like(context.killed),
    )
    return value, reason
