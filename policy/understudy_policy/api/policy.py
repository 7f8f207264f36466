"""`RLPolicy`: what a person asks of the autoscaler for one workload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from understudy_policy.api.base import ApiModel, ObjectMeta, Rule
from understudy_policy.api.behavior import ScalingRules
from understudy_policy.api.parts import (
    MAX_REPLICAS,
    Guardrails,
    Model,
    Objective,
    Override,
    Reference,
    Rollout,
    ScaleTargetRef,
    Telemetry,
)
from understudy_policy.api.status import RLPolicyStatus
from understudy_policy.history import TICKS

Mode = Literal["Off", "Shadow", "Approve", "Canary", "Active"]


def _history_rules(direction: str, select: Callable[[RLPolicySpec], ScalingRules]) -> tuple[Rule, ...]:
    """Neither a stabilisation window nor a period may reach further back than history is kept."""
    path = f"reference.behavior.{direction}"
    longest_ms = f"{TICKS} * duration(self.telemetry.interval).getMilliseconds()"
    mend = (
        f"than the history of {TICKS} ticks of telemetry.interval {{telemetry.interval}}: "
        "shorten it or lengthen the interval"
    )

    def fits(spec: RLPolicySpec, seconds: int) -> bool:
        return seconds <= TICKS * spec.telemetry.interval_s

    return (
        Rule(
            field=f"{path}.stabilizationWindowSeconds",
            cel=f"self.{path}.stabilizationWindowSeconds * 1000 <= {longest_ms}",
            holds=lambda spec: fits(spec, select(spec).stabilization_window_seconds),
            message=f"{path}.stabilizationWindowSeconds "
            f"{{{path}.stabilizationWindowSeconds}} is longer {mend}",
        ),
        Rule(
            field=f"{path}.policies",
            cel=f"self.{path}.policies.all(policy, policy.periodSeconds * 1000 <= {longest_ms})",
            holds=lambda spec: all(fits(spec, policy.period_seconds) for policy in select(spec).policies),
            message=f"{path}.policies has a periodSeconds longer {mend}",
        ),
    )


class RLPolicySpec(ApiModel):
    """What is asked for."""

    owner: str = Field(
        min_length=1, max_length=128, description="Team or person to call; shown on every event and alert."
    )
    scale_target_ref: ScaleTargetRef = Field(description="The workload to scale.")
    min_replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS, description="Never fewer replicas than this.")
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS, description="Never more replicas than this.")
    mode: Mode = Field(
        default="Shadow",
        description="The most that Understudy may do. Shadow and Approve propose and write nothing. Canary "
        "applies a growing share of the actor's proposal, Active all of it. Off takes all authority from the "
        "actor: the reference carries on where Understudy already scales, and nothing is written elsewhere. "
        'Quote "Off" in YAML: bare, it is read as false.',
    )
    on_kill: Literal["Reference", "Hold"] = Field(
        default="Reference",
        description="What a kill or Off hands over to: the reference, which keeps scaling, or Hold, which "
        "leaves replicas as they are.",
    )
    objective: Objective = Field(description="What good service is, and what it is worth.")
    model: Model = Field(default_factory=Model, description="The actor.")
    telemetry: Telemetry = Field(default_factory=Telemetry, description="What is read from Prometheus.")
    reference: Reference = Field(default_factory=Reference, description="The rule beside the actor.")
    guardrails: Guardrails = Field(
        default_factory=Guardrails, description="Bounds on what leaves the operator."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How authority grows in mode Canary.")
    override: Override | None = Field(default=None, description="Replicas pinned by a person.")

    rules = (
        Rule(
            field="minReplicas",
            cel="self.minReplicas <= self.maxReplicas",
            holds=lambda spec: spec.min_replicas <= spec.max_replicas,
            message="minReplicas {minReplicas} is above maxReplicas {maxReplicas}: "
            "lower the one or raise the other",
        ),
        Rule(
            field="override.replicas",
            cel="!has(self.override) || self.override.replicas <= self.maxReplicas",
            holds=lambda spec: spec.override is None or spec.override.replicas <= spec.max_replicas,
            message="override.replicas {override.replicas} is above maxReplicas {maxReplicas}: "
            "lower the one or raise the other",
        ),
        Rule(
            field="rollout.stepDuration",
            cel="duration(self.rollout.stepDuration) >= duration(self.telemetry.interval)",
            holds=lambda spec: spec.rollout.step_duration_s >= spec.telemetry.interval_s,
            message="rollout.stepDuration {rollout.stepDuration} is shorter than telemetry.interval "
            "{telemetry.interval}, so steps would be skipped: lengthen it",
        ),
        *_history_rules("scaleUp", lambda spec: spec.reference.behavior.scale_up),
        *_history_rules("scaleDown", lambda spec: spec.reference.behavior.scale_down),
    )


class RLPolicy(ApiModel):
    """A learned autoscaler for one workload, which auditions in mode Shadow before it acts."""

    api_version: Literal["understudy.dev/v1alpha1"] = "understudy.dev/v1alpha1"
    kind: Literal["RLPolicy"] = "RLPolicy"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: RLPolicySpec = Field(description="What is asked for.")
    status: RLPolicyStatus | None = Field(default=None, description="What was found and done.")
