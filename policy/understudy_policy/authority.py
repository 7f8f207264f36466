"""One number says how much of the actor's proposal reaches the cluster."""

from __future__ import annotations

from understudy_policy.rows import Array, namespace


def blend(reference: Array, proposal: Array, authority: Array) -> Array:
    """`reference + authority × (proposal − reference)`, rounded towards the reference.

    Rounding towards the reference means that a small authority changes nothing until it is worth a whole pod.

    Args:
        reference: `[N]` int64 replicas.
        proposal: `[N]` int64 replicas.
        authority: `[N]` float64 from 0 (the reference alone) to 1 (the actor alone).

    Returns:
        `[N]` int64 replicas between reference and proposal.
    """
    xp = namespace(reference)
    step = authority * xp.astype(proposal - reference, xp.float64)
    # 0.1 × 30 is 2.9999999999999996: without the nudge a share that is worth a whole pod would lose it.
    return reference + xp.astype(xp.trunc(step + 1e-9 * xp.sign(step)), reference.dtype)
