"""Asks the actors: one batch per model and tick, never one call per policy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy_policy import actions
from understudy_policy.api import RLPolicySpec
from understudy_policy.artifact import Actor, ActorStore
from understudy_policy.decision import Observation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """What the actors said in one tick.

    Attributes:
        probabilities: `[N, A]`, NaN rows where no verified actor is loaded or the model failed.
        actors: the actor of every row, None where there is none.
        problems: why a row has no actor, by row.
    """

    probabilities: np.ndarray
    actors: list[Actor | None]
    problems: dict[int, str]


class Actors:
    """The verified actors of all policies."""

    def __init__(self) -> None:
        self._store = ActorStore()
        self.loaded_once = False

    def ask(self, specs: Sequence[RLPolicySpec], observation: Observation) -> Answers:
        """Let every policy's actor choose among the rows that its guards allow.

        Args:
            specs: of the policies, in row order.
            observation: of this tick.
        """
        n = len(specs)
        probabilities = np.full((n, len(actions.TABLE)), np.nan)
        actors: list[Actor | None] = [None] * n
        problems: dict[int, str] = {}
        rows_of: dict[tuple[str, str | None], list[int]] = {}
        for row, spec in enumerate(specs):
            rows_of.setdefault((spec.model.uri, spec.model.sha256), []).append(row)
        for (uri, sha256), rows in rows_of.items():
            actor = self._store.get(uri, sha256)
            rejected = self._store.rejected.get((uri, sha256))
            if rejected:
                problems.update(dict.fromkeys(rows, rejected))
            if actor is None:
                continue
            index = np.array(rows)
            try:
                answer = actor.probabilities(observation.features[index], observation.allowed[index])
            except Exception as error:
                log.exception("model %s failed", uri)
                problems.update(dict.fromkeys(rows, f"{uri} failed while running: {error}"))
                # An answer that is not a distribution is doubt; silence would only be the lack of a model.
                probabilities[index, 0] = -1.0
                continue
            probabilities[index] = answer
            for row in rows:
                actors[row] = actor
        self.loaded_once = True
        return Answers(probabilities, actors, problems)
