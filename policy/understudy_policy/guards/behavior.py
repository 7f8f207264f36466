"""HPA v2 behaviour on the whole decision: stabilise first, then limit the rate, in that order."""

from __future__ import annotations

from understudy_policy.guards.context import Context
from understudy_policy.guards.reasons import Reason
from understudy_policy.references.behavior import LimitReason
from understudy_policy.references.hpa import normalize
from understudy_policy.rows import Array, namespace

REASONS = {
    LimitReason.SCALE_UP_STABILIZED: Reason.SCALE_UP_STABILIZED,
    LimitReason.SCALE_DOWN_STABILIZED: Reason.SCALE_DOWN_STABILIZED,
    LimitReason.SCALE_UP_LIMIT: Reason.SCALE_UP_LIMIT,
    LimitReason.SCALE_DOWN_LIMIT: Reason.SCALE_DOWN_LIMIT,
    LimitReason.TOO_FEW_REPLICAS: Reason.TOO_FEW_REPLICAS,
    LimitReason.TOO_MANY_REPLICAS: Reason.TOO_MANY_REPLICAS,
}


def behavior(context: Context, replicas: Array) -> tuple[Array, Array]:
    """Stabilise and rate-limit against this policy's own past recommendations and changes."""
    xp = namespace(replicas)
    settings, history = context.settings, context.history
    value, why = normalize(
        replicas,
        context.current,
        settings.min_replicas,
        settings.max_replicas,
        settings.behavior,
        context.now_s,
        history.time_s,
        history.recommendation,
        history.change,
    )
    reason = xp.zeros_like(replicas)
    for code, ours in REASONS.items():
        reason = xp.where(why == int(code), xp.full_like(reason, int(ours)), reason)
    return value, reason
