"""How much say the actor has: the mode grants it, a canary lets it grow with time."""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import datetime
from typing import Any

from understudy_policy.api import RLPolicySpec

WRITING_MODES = frozenset({"Canary", "Active"})


def authority(spec: RLPolicySpec, canary_age_s: float) -> float:
    """The authority that mode and rollout grant, from 0 (the reference alone) to 1.

    Args:
        spec: of the policy.
        canary_age_s: seconds since the canary began; ignored in other modes.
    """
    if spec.mode == "Active":
        return 1.0
    if spec.mode != "Canary":
        return 0.0
    steps = spec.rollout.steps
    step = int(max(canary_age_s, 0.0) // spec.rollout.step_duration_s)  # the wall clock may be set back
    return steps[min(step, len(steps) - 1)]


class Canaries:
    """When each policy's canary began; a restart finds it in the status."""

    def __init__(self) -> None:
        self._began: dict[str, float | None] = {}

    def began_s(self, uid: str, spec: RLPolicySpec, status: Mapping[str, Any], now_s: float) -> float | None:
        """Unix time at which this policy's canary began, None where it is in another mode."""
        if spec.mode != "Canary":
            self._began[uid] = None
        elif uid not in self._began:
            self._began[uid] = min(_unix(status.get("canaryStartedAt")) or now_s, now_s)
        elif self._began[uid] is None:
            # The status may still tell of the canary before, which came to an end.
            self._began[uid] = now_s
        return self._began[uid]

    def keep(self, uids: Set[str]) -> None:
        """Drop all policies but these."""
        self._began = {uid: began for uid, began in self._began.items() if uid in uids}


def override_replicas(spec: RLPolicySpec, now_s: float) -> int:
    """The replicas that a person pinned, −1 where there is no pin or its time is over."""
    pin = spec.override
    if pin is None or (pin.until is not None and now_s >= pin.until.timestamp()):
        return -1
    return pin.replicas


def _unix(moment: object) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
