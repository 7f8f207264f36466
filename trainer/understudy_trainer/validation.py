"""How good a network is while it learns: on services that no run learns from, beside rules calibrated in hindsight."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from understudy_policy import actions
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.autoscaling import AutoscalingEnvironment
from understudy_trainer.export import LEAST_OBSERVATIONS
from understudy_trainer.options import OptionsError

VALIDATION_SEED = 1_000_003
"""Of the services that a policy is judged on while it learns; no training run draws from it."""

RECORDED_DECISIONS = 64
"""Decisions, at least or all, whose observations prove the artefact and make its reference histogram."""

PRICE_CLASSES = 8
"""Classes of prices, with equally many held-out services in each."""


class Validation:
    """Services that no run learns from, and what the reference rows cost on them: calibrated in hindsight, no less."""

    def __init__(self, world: AutoscalingEnvironment) -> None:
        """Draw them.

        Args:
            world: with the shape and the program to use; it is left alone.

        Raises:
            OptionsError: they show too little for an artefact to be proven on.
        """
        # No critic is asked here, so nothing is prepared for it.
        config = replace(world.config, hints=False)
        self.world = AutoscalingEnvironment(
            config, VALIDATION_SEED, str(world.device), world.source, world.program
        )
        # As everywhere else: with gradients the compiled model would be compiled once more.
        with torch.no_grad():
            self.batch = self.world.draw(0)
        self.seen: list[Tensor] = []
        self.figures: dict[str, float] = {}
        decisions = self.batch.episode.decisions
        self._recorded = range(0, decisions, max(1, decisions // RECORDED_DECISIONS))
        shown = world.num_envs * len(self._recorded)
        if shown < LEAST_OBSERVATIONS:
            raise OptionsError(
                f"world.workloads is {world.num_envs}: in {decisions} decisions they show {shown} observations, but an "
                f"artefact is proven on {LEAST_OBSERVATIONS:,}; give more, or a longer world.episode_ticks"
            )

    def recorded(self) -> Tensor:
        """Observations `[M, F]` of the network that was judged last, spread over the episodes."""
        return torch.stack([self.seen[decision] for decision in self._recorded]).flatten(0, 1)

    def __call__(self, model: ActorCritic) -> dict[str, float]:
        """The network's most probable rows beside the reference's.

        A cost is pods and misses at their price. `cost_ratio` sums it up over the services of a class of prices, as the
        judge does over quiet and troubled hours of one, and is the geometric mean over the classes; `score` is minus
        that. `cost_ratio_alone` is the geometric mean over services, each a class of its own.
        """
        self.seen = []
        actor = model.actor().to(self.world.device)
        every = torch.ones(len(actions.TABLE), device=self.world.device)

        def choose(observation: Tensor) -> Tensor:
            self.seen.append(observation)
            return actor.logits(observation, every).argmax(dim=1)

        played = self.world.play(self.batch, choose)
        own, reference, price = played.own, played.reference, played.price[:, None]
        mine, theirs = own.reward(price).mean(dim=1), reference.reward(price).mean(dim=1)
        ratio = (mine / theirs).log()
        classes = [part for part in played.price.argsort().tensor_split(PRICE_CLASSES) if len(part)]
        summed = torch.stack([mine[part].sum() / theirs[part].sum() for part in classes]).log()
        self.figures = {
            "score": -float(summed.mean().exp()),
            "cost_ratio": float(summed.mean().exp()),
            "cost_ratio_dear": float(summed[-1].exp()),
            "cost_ratio_alone": float(ratio.mean().exp()),
            "cost_ratio_p90": float(ratio.quantile(0.9).exp()),
            "better_share": float((ratio < 0).float().mean()),
            "pods_ratio": float(own.cost.mean() / reference.cost.mean()),
            "missed_ratio": float(own.missed.mean() / reference.missed.mean()),
            "changes_ratio": float(own.changes.mean() / reference.changes.mean()),
        }
        return self.figures
