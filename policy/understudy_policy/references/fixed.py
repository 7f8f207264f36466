"""A number that somebody chose once: what every autoscaler has to be worth more than."""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.references.rule import Rule, RuleSignals
from understudy_policy.rows import Array


@dataclass(frozen=True)
class FixedMemory:
    """Nothing."""


@dataclass(frozen=True, kw_only=True)
class FixedRule(Rule[FixedMemory]):
    """Always the same replicas.

    Attributes:
        replicas: `[N]` int64.
    """

    replicas: Array

    def initial(self, seen: RuleSignals, now_s: float) -> FixedMemory:
        """See `Rule`."""
        return FixedMemory()

    def decide(self, state: FixedMemory, seen: RuleSignals, now_s: float) -> tuple[FixedMemory, Array]:
        """See `Rule`."""
        return state, self.bounded(self.replicas)
