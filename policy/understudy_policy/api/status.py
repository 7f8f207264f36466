"""What the operator answers: small and bounded, because it is written for every policy and read by people."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from understudy_policy.api.base import ApiModel, Generation, Message, Replicas, Sha256, Timestamp

Reason = Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9]*)$", max_length=128)]


class Condition(ApiModel):
    """One observation about the resource, in the form of a Kubernetes condition."""

    type: Reason = Field(description="What is observed, such as Ready or TelemetryFresh.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Generation | None = Field(
        default=None, description="Generation of the spec that was looked at."
    )
    last_transition_time: Timestamp = Field(description="When status last changed.")
    reason: Reason = Field(description="Why, as one CamelCase word.")
    message: Message = Field(description="Why, as a sentence.")


def conditions_field() -> tuple[Condition, ...]:
    """The field that every status carries."""
    field: tuple[Condition, ...] = Field(
        default=(),
        max_length=16,
        description="Observations about the resource.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    return field


class LastDecision(ApiModel):
    """The last decision that changed something; the ledger holds all of them."""

    decision_id: str = Field(max_length=64, description="Identifier of the record in the decision ledger.")
    time: Timestamp = Field(description="When it was taken.")
    replicas: Replicas = Field(description="The replicas decided on.")
    reason: Reason = Field(description="What bound the decision, as one CamelCase word.")
    rule: str | None = Field(
        default=None, max_length=128, description="The rule and head-room that the actor had chosen."
    )
    message: Message | None = Field(default=None, description="The decision as a sentence.")
    model_sha256: Sha256 | None = Field(default=None, description="Digest of the actor that proposed.")


class ModelStatus(ApiModel):
    """The actor that is loaded."""

    uri: str = Field(max_length=1024, description="Where it came from.")
    sha256: Sha256 | None = Field(default=None, description="Its verified digest.")
    loaded_at: Timestamp | None = Field(default=None, description="When it was loaded.")


class RLPolicyStatus(ApiModel):
    """What was found and done."""

    observed_generation: Generation | None = Field(
        default=None, description="Generation of the spec that the status speaks of."
    )
    stage: Reason | None = Field(
        default=None, description="What Understudy is doing now, such as Shadow or Killed."
    )
    authority: float | None = Field(
        default=None, ge=0, le=1, description="Share of the actor's proposal that reaches the workload."
    )
    current_replicas: Replicas | None = Field(
        default=None, description="Replicas that the workload asks for."
    )
    desired_replicas: Replicas | None = Field(
        default=None, description="Replicas decided on; in a mode that does not write, what would be applied."
    )
    reference_replicas: Replicas | None = Field(
        default=None, description="Replicas that the reference proposes."
    )
    proposed_replicas: Replicas | None = Field(default=None, description="Replicas that the actor proposes.")
    last_decision: LastDecision | None = Field(
        default=None, description="The last decision that changed something."
    )
    model: ModelStatus | None = Field(default=None, description="The actor that is loaded.")
    canary_started_at: Timestamp | None = Field(
        default=None, description="When the canary began: an operator that restarts goes on from there."
    )
    conditions: tuple[Condition, ...] = conditions_field()
