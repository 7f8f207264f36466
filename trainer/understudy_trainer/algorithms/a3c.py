"""A3C: asynchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783).

Every worker is A2C with an environment and a copy of the weights of its own. Its gradients move weights and RMSProp
statistics that all of them share, without a lock; then it takes the shared weights over. One worker alone is A2C, bit
for bit. See docs/algorithms/a3c.md; the processes are in `understudy_trainer.workers`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from pydantic import dataclasses as checked
from torch import Tensor

from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import ActorCritic
from understudy_trainer.algorithms.a2c import A2C, A2CConfig
from understudy_trainer.algorithms.optimizers import FlatParameters, make_optimizer
from understudy_trainer.collector import Rollout
from understudy_trainer.constraint import ConstraintConfig


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class A3CConfig(A2CConfig):
    """Options of A3C."""

    workers: int = Field(default=2, ge=1)
    """Processes that learn; more than there are cores only get in each other's way."""


@dataclass
class Shared:
    """What the workers have in common, in memory that all of them see.

    Attributes:
        parameters: `[P]`.
        optimizer: the optimiser's moments.
        buffers: what a network has beside its weights, by name: the moments of the observations.
        steps: `[1]` int64, environment steps done by all.
        lock: held while `buffers` or `steps` are changed; weights and their moments are changed without.
    """

    parameters: Tensor
    optimizer: dict[str, Tensor]
    buffers: dict[str, Tensor]
    lock: Any
    steps: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_())

    @classmethod
    def of(cls, model: ActorCritic, config: A3CConfig, lock: Any) -> Shared:
        """Begin with a network's weights; the network itself is left as it is."""
        parameters = FlatParameters(model).flat.clone().share_memory_()
        moments = make_optimizer(config.optimizer, parameters).state_dict()
        return cls(
            parameters,
            {name: tensor.share_memory_() for name, tensor in moments.items()},
            {name: tensor.clone().share_memory_() for name, tensor in model.named_buffers()},
            lock,
        )


class A3C(A2C):
    """One worker's learner."""

    name = "a3c"

    def __init__(
        self,
        model: ActorCritic,
        config: A3CConfig,
        shared: Shared,
        constraint: ConstraintConfig | None = None,
        compiled: bool = False,
    ) -> None:
        """Take over a network and fill it with the shared weights.

        Raises:
            ValueError: `normalize_value` is set: the workers' heads would answer in different units.
        """
        if config.normalize_value:
            raise ValueError(
                "normalize_value is True; A3C's workers cannot share it, so scale the rewards instead"
            )
        super().__init__(model, config, constraint, compiled)
        self.shared = shared
        self.optimizer.share(shared.optimizer)
        self.pull()

    def pull(self) -> None:
        """Take the shared weights and moments of the observations over."""
        self.parameters.flat.copy_(self.shared.parameters)
        with self.shared.lock:
            self._pull_buffers()

    def push(self) -> None:
        """Begin with this network's: before there are workers, so without the lock."""
        self.shared.parameters.copy_(self.parameters.flat)
        self._push_buffers()

    def apply(self, gradient: Tensor, learning_rate: float) -> None:
        """Move the shared weights, then take them over. A gradient with NaN in it stays this worker's own trouble."""
        if bool(torch.isfinite(gradient).all()):
            self.optimizer.step(self.shared.parameters, gradient, learning_rate)
        self.parameters.flat.copy_(self.shared.parameters)

    @torch.no_grad()
    def observe(self, rollout: Rollout) -> None:
        """See `Learner`; all workers' observations go into the same moments."""
        with self.shared.lock:
            self._pull_buffers()
            super().observe(rollout)
            self._push_buffers()

    def undo(self, state: dict[str, Any]) -> None:
        """See `Learner`; the weights that are shared are sane, whatever this worker's own became."""
        self.pull()

    def _pull_buffers(self) -> None:
        for name, tensor in self.model.named_buffers():
            tensor.copy_(self.shared.buffers[name])

    def _push_buffers(self) -> None:
        for name, tensor in self.model.named_buffers():
            self.shared.buffers[name].copy_(tensor)
