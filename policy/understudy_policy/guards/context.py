"""What every guard may look at: one tick of all rows, read-only."""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.history import History
from understudy_policy.rows import Array
from understudy_policy.settings import Settings


@dataclass(frozen=True)
class Context:
    """One tick.

    Attributes:
        settings, history, now_s: see there.
        current: `[N]` int64 desired replicas of the target now.
        reference_raw: `[N]` int64 what the reference wants before stabilisation; `current` where it cannot know.
        reference: `[N]` int64 what the reference would write now: stabilised, limited, within bounds.
        authority: `[N]` float64 granted by mode, rollout and kill switch.
        demand_pods: `[N]` float64 pods that the load of this moment fills completely; NaN where unknown.
        actor_doubt: `[N]` int64 `Reason` why the actor may not speak; 0 where it may.
        doubt: `[N]` bool: something is unknown, replicas must not be lowered.
        override: `[N]` int64 replicas that a person pinned; −1: none.
        killed: `[N]` int64 `KillScope`.
    """

    settings: Settings
    history: History
    now_s: float
    current: Array
    reference_raw: Array
    reference: Array
    authority: Array
    demand_pods: Array
    actor_doubt: Array
    doubt: Array
    override: Array
    killed: Array
