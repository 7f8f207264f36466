"""Where the actor's inputs or outputs are in doubt, it does not speak: the reference does."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.rows import Array, namespace


def quality(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Replace the proposal by the reference wherever there is doubt about the actor."""
    xp = namespace(replicas)
    return xp.where(context.actor_doubt > 0, context.reference_raw, replicas), context.actor_doubt
