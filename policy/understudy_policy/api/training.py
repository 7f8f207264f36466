"""`RLTraining`: one run of training for a policy. Its form comes ahead of the controller that will obey."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from understudy_policy.api.base import (
    ApiModel,
    Duration,
    Generation,
    ObjectMeta,
    ObjectName,
    Sha256,
    duration_s,
)
from understudy_policy.api.status import Condition, conditions_field


class PolicyRef(ApiModel):
    """The policy to train for, in the same namespace."""

    name: ObjectName = Field(description="Name of the RLPolicy.")


class Budget(ApiModel):
    """Where training stops; whichever bound is met first counts."""

    steps: int | None = Field(default=None, ge=1, le=10**12, description="Ticks of simulated experience.")
    duration: Duration | None = Field(default=None, description="Wall-clock time, such as 30m.")


class RLTrainingSpec(ApiModel):
    """What is asked for."""

    policy_ref: PolicyRef = Field(description="The policy to train for.")
    history: str = Field(
        default="14d",
        pattern=r"^[1-9][0-9]{0,3}[hdw]$",
        max_length=5,
        description="How much of the workload's past to train on, such as 36h, 14d or 2w.",
    )
    algorithm: Literal["a2c", "a3c", "acktr", "ppo"] = Field(default="ppo", description="Learning algorithm.")
    seeds: int = Field(default=1, ge=1, le=32, description="Independent runs, of which the best is kept.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to compute.")
    budget: Budget = Field(default_factory=Budget, description="Where training stops.")

    @property
    def history_s(self) -> float:
        """The history in seconds."""
        return duration_s(self.history)


class Artifact(ApiModel):
    """The actor that came out."""

    uri: str = Field(max_length=1024, description="Where it is.")
    sha256: Sha256 = Field(description="Its digest.")


class RLTrainingStatus(ApiModel):
    """What was found and done."""

    observed_generation: Generation | None = Field(
        default=None, description="Generation of the spec that the status speaks of."
    )
    phase: Literal["Pending", "Running", "Succeeded", "Failed"] | None = Field(
        default=None, description="How far the run is."
    )
    progress: float | None = Field(default=None, ge=0, le=1, description="Share of the budget that is used.")
    metrics: dict[str, float] = Field(
        default_factory=dict, max_length=64, description="Figures of the run, by name."
    )
    artifact: Artifact | None = Field(default=None, description="The actor that came out.")
    conditions: tuple[Condition, ...] = conditions_field()


class RLTraining(ApiModel):
    """One run of training for an RLPolicy. No controller acts on it yet: creating one starts nothing."""

    api_version: Literal["understudy.dev/v1alpha1"] = "understudy.dev/v1alpha1"
    kind: Literal["RLTraining"] = "RLTraining"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: RLTrainingSpec = Field(description="What is asked for.")
    status: RLTrainingStatus | None = Field(default=None, description="What was found and done.")
