"""The guards in their order, and a record of what each of them did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy_policy.guards.authority import authority
from understudy_policy.guards.behavior import behavior
from understudy_policy.guards.bounds import bounds
from understudy_policy.guards.context import Context
from understudy_policy.guards.envelope import envelope
from understudy_policy.guards.kill import kill
from understudy_policy.guards.override import override
from understudy_policy.guards.quality import quality
from understudy_policy.guards.target import target
from understudy_policy.rows import Array, namespace

Guard = Callable[[Context, Array], tuple[Array, Array]]
"""`(context, replicas [N]) → (replicas [N], reason [N])`; the reason counts only where the replicas changed."""

GUARDS: tuple[Guard, ...] = (quality, authority, envelope, behavior, bounds, override, kill, target)
GUARD_NAMES: tuple[str, ...] = tuple(guard.__name__ for guard in GUARDS)


@dataclass(frozen=True)
class Chain:
    """What went in and what every guard made of it.

    Attributes:
        replicas: `[1 + len(GUARDS), N]` int64: the proposal, then the value after each guard.
        reasons: `[len(GUARDS), N]` int64 `Reason`, 0 where a guard changed nothing.
    """

    replicas: Array
    reasons: Array


def run(context: Context, proposal: Array) -> Chain:
    """Pass the proposal `[N]` int64 through all guards."""
    xp = namespace(proposal)
    values, reasons = [proposal], []
    for guard in GUARDS:
        value, reason = guard(context, values[-1])
        reasons.append(xp.where(value != values[-1], reason, xp.zeros_like(reason)))
        values.append(value)
    return Chain(xp.stack(values), xp.stack(reasons))


def before(chain: Chain, guard: str) -> Array:
    """The replicas that reached the named guard, `[N]`."""
    return chain.replicas[GUARD_NAMES.index(guard)]
