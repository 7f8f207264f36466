"""Shadow, canary and active are one number; see `understudy_policy.authority`."""

from __future__ import annotations

from understudy_policy.authority import blend
from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.rows import Array, namespace


def authority(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Go from the reference towards the proposal as far as the granted authority reaches."""
    xp = namespace(replicas)
    blended = blend(context.reference_raw, replicas, context.authority)
    return blended, xp.full_like(replicas, int(Reason.AUTHORITY))
