"""The resources, defined once for the CRDs, the checks and the code.

The schemas under `manifests/crds` are generated from these models (`python -m understudy_policy.crd`), and
the operator parses objects with them, so that what the API server accepts is what the operator understands.
"""

from understudy_policy.api.base import GROUP, VERSION, ApiModel, ObjectMeta, Rule, duration_s, refusal
from understudy_policy.api.behavior import Behavior, ScaleDown, ScaleUp, ScalingPolicy, ScalingRules
from understudy_policy.api.parts import (
    Envelope,
    Guardrails,
    Model,
    Objective,
    Override,
    Reference,
    Rollout,
    ScaleTargetRef,
    SignalQueries,
    Telemetry,
)
from understudy_policy.api.policy import Mode, RLPolicy, RLPolicySpec
from understudy_policy.api.status import Condition, LastDecision, ModelStatus, RLPolicyStatus
from understudy_policy.api.training import (
    Artifact,
    Budget,
    PolicyRef,
    RLTraining,
    RLTrainingSpec,
    RLTrainingStatus,
)

__all__ = [
    "GROUP",
    "VERSION",
    "ApiModel",
    "Artifact",
    "Behavior",
    "Budget",
    "Condition",
    "Envelope",
    "Guardrails",
    "LastDecision",
    "Mode",
    "Model",
    "ModelStatus",
    "ObjectMeta",
    "Objective",
    "Override",
    "PolicyRef",
    "RLPolicy",
    "RLPolicySpec",
    "RLPolicyStatus",
    "RLTraining",
    "RLTrainingSpec",
    "RLTrainingStatus",
    "Reference",
    "Rollout",
    "Rule",
    "ScaleDown",
    "ScaleTargetRef",
    "ScaleUp",
    "ScalingPolicy",
    "ScalingRules",
    "SignalQueries",
    "Telemetry",
    "duration_s",
    "refusal",
]
