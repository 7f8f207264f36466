"""All options of a training run: dataclasses, read from a YAML file and `--set`, whichever names them.

What is not named keeps the default that stands here; what a policy was trained with stands in its lineage.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic import dataclasses as checked

from understudy_trainer import config as command_line
from understudy_trainer.actor_critic import NetworkConfig
from understudy_trainer.algorithms.a2c import A2CConfig
from understudy_trainer.algorithms.a3c import A3CConfig
from understudy_trainer.algorithms.acktr import ACKTRConfig
from understudy_trainer.algorithms.ppo import PPOConfig
from understudy_trainer.autoscaling import AutoscalingConfig
from understudy_trainer.collector import RewardConfig
from understudy_trainer.loop import RunConfig
from understudy_trainer.training import TrainingConfig

Algorithm = Literal["ppo", "a2c", "a3c", "acktr"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

A_MINUTE_EACH: dict[str, Any] = {
    "gamma": 0.97,
    "gae_lambda": 0.92,
    "entropy_coefficient": 0.01,
    "final_entropy_coefficient": 0.001,
}
"""What suits decisions that are a minute apart."""

ONE_PASS: dict[str, Any] = {
    **A_MINUTE_EACH,
    "learning_rate": 3e-3,
    "final_learning_rate_share": 0.1,
    "normalize_advantage": True,
}
"""The same for one step along the gradient of a rollout."""


@checked.dataclass(frozen=True, config=command_line.DOCUMENTED)
class Options:
    """All options of a run."""

    algorithm: Algorithm = "ppo"
    """Which algorithm learns."""
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            **A_MINUTE_EACH,
            learning_rate=1e-3,
            final_learning_rate_share=0.05,
            epochs=2,
            minibatch_rows=5120,
            target_kl=0.03,
            normalize_value=True,
        )
    )
    """Options of PPO, where it is chosen."""
    a2c: A2CConfig = field(default_factory=lambda: A2CConfig(**ONE_PASS, normalize_value=True))
    """Options of A2C, where it is chosen."""
    a3c: A3CConfig = field(default_factory=lambda: A3CConfig(**ONE_PASS))
    """Options of A3C, where it is chosen; every worker has a world of its own."""
    acktr: ACKTRConfig = field(default_factory=ACKTRConfig)
    """Options of ACKTR, where it is chosen."""
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(hidden=(128, 128), shared_trunk=False, critic_hidden=(64, 64))
    )
    """Shape of the network."""
    world: AutoscalingConfig = field(default_factory=lambda: AutoscalingConfig(compiled=True))
    """The world to learn in."""
    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            total_steps=40_000_000, checkpoint_updates=32, log_updates=16, evaluate_updates=64
        )
    )
    """How long to learn; a step is a decision of one service, four ticks."""
    rollout_steps: int = Field(default=15, ge=1)
    """Decisions between updates."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn."""
    begin_with: str = ""
    """Actor to begin with (`builtin://generalist`, `file:///…`), no wider than this one; empty: with drawn weights."""

    def training(self) -> TrainingConfig:
        """The same as the learner takes it.

        Raises:
            OptionsError: the network is one that no artefact can carry, or whose parts contradict each other.
        """
        if self.network.memory:
            raise OptionsError(
                f"network.memory is {self.network.memory}, but an artefact carries none; leave it out"
            )
        if not self.network.normalize_observation:
            raise OptionsError(
                "network.normalize_observation is False, but an artefact normalises; leave it out"
            )
        if self.network.shared_trunk and self.world.hints:
            raise OptionsError(
                "network.shared_trunk is True, but the actor must not see what the critic is told; "
                "leave it out, or set world.hints to false"
            )
        if self.algorithm == "a3c" and self.a3c.normalize_value:
            raise OptionsError("a3c.normalize_value is True, which A3C's workers cannot share; leave it out")
        return TrainingConfig(
            algorithm=getattr(self, self.algorithm),
            network=self.network,
            reward=RewardConfig(adapt=True),
            run=self.run,
            rollout_steps=self.rollout_steps,
            seed=self.seed,
            compiled=self.world.compiled,
        )


class OptionsError(ValueError):
    """An option makes no sense; the message names it, its value and the mend."""


AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_options(
    file: Path | None,
    settings: list[str],
    kind: type[AnyOptions] = Options,  # type: ignore[assignment]
) -> AnyOptions:
    """Options from a YAML file and `a.b=value` settings, which win.

    Args:
        file: YAML, or None.
        settings: one by one.
        kind: which options there are, and their defaults.

    Raises:
        OptionsError: the file cannot be read, or an option is unknown or refused.
    """
    given: Any = {}
    try:
        if file is not None:
            given = yaml.safe_load(file.read_text()) or {}
        pairs = [(name, yaml.safe_load(value)) for name, _, value in (one.partition("=") for one in settings)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionsError(f"options cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise OptionsError(f"{file} holds {type(given).__name__}; it must map options to values")
    adapter = TypeAdapter(kind)
    # What is not named keeps the default of this command, not that of the dataclass that it lies in.
    merged = _merge(adapter.dump_python(kind()), given, "")
    for name, value in pairs:
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        merged = _merge(merged, nested, "")
    try:
        return adapter.validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OptionsError(f"{where} is {first['input']!r}: {first['msg'].lower()}") from error


def _merge(base: dict[str, Any], over: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = [name for name in over if name not in base]
    if unknown:
        raise OptionsError(f"{where}{unknown[0]} is no option; choose one of: {', '.join(base)}")
    merged = dict(base)
    for name, value in over.items():
        is_group = isinstance(base[name], dict) and isinstance(value, dict)
        merged[name] = _merge(base[name], value, f"{where}{name}.") if is_group else value
    return merged


def chosen(options: Options) -> dict[str, Any]:
    """Options as a run's record and an artefact's lineage tell them: without those of the other algorithms."""
    everything: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return {
        name: value
        for name, value in everything.items()
        if name not in ALGORITHMS or name == options.algorithm
    }
