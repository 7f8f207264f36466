"""Every reason for which a guard may change a number, in one list: metrics, events and the ledger use these names."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Why a guard changed the replicas (0: it did not)."""

    NONE = 0
    TELEMETRY_UNKNOWN = 1
    CAPACITY_UNKNOWN = 2
    WARMING_UP = 3
    NO_MODEL = 4
    MODEL_OUTPUT_INVALID = 5
    AUTHORITY = 10
    ENVELOPE_BELOW_REFERENCE = 20
    ENVELOPE_ABOVE_REFERENCE = 21
    ENVELOPE_OBSERVED_LOAD = 22
    DOUBT_FORBIDS_SCALE_IN = 23
    SCALE_UP_STABILIZED = 30
    SCALE_DOWN_STABILIZED = 31
    SCALE_UP_LIMIT = 32
    SCALE_DOWN_LIMIT = 33
    TOO_FEW_REPLICAS = 40
    TOO_MANY_REPLICAS = 41
    OVERRIDE = 50
    KILLED_POLICY = 60
    KILLED_NAMESPACE = 61
    KILLED_CLUSTER = 62
    KILL_SWITCH_UNREADABLE = 63
    TARGET_UNKNOWN = 70
    SCALED_TO_ZERO = 71

    @property
    def label(self) -> str:
        """CamelCase, as Kubernetes reasons and metric labels are written."""
        return "".join(word.capitalize() for word in self.name.split("_"))


SENTENCES = {
    Reason.NONE: "unchanged",
    Reason.TELEMETRY_UNKNOWN: "a signal that the actor needs is not fresh, so the reference decides",
    Reason.CAPACITY_UNKNOWN: "the capacity of a pod is neither given nor known yet, so the reference decides",
    Reason.WARMING_UP: "too little history has been seen since the start, so the reference decides",
    Reason.NO_MODEL: "no verified model is loaded, so the reference decides",
    Reason.MODEL_OUTPUT_INVALID: "the model's output is not a probability distribution, so the reference decides",
    Reason.AUTHORITY: "the mode grants the actor only a share of its way from the reference",
    Reason.ENVELOPE_BELOW_REFERENCE: "the actor may not go further below the reference",
    Reason.ENVELOPE_ABOVE_REFERENCE: "the actor may not go further above the reference",
    Reason.ENVELOPE_OBSERVED_LOAD: "the load of this moment needs more replicas",
    Reason.DOUBT_FORBIDS_SCALE_IN: "something is in doubt, and unknown never lowers replicas",
    Reason.SCALE_UP_STABILIZED: "a lower recommendation is within the scale-up stabilisation window",
    Reason.SCALE_DOWN_STABILIZED: "a higher recommendation is within the scale-down stabilisation window",
    Reason.SCALE_UP_LIMIT: "the scale-up policies allow no more for now",
    Reason.SCALE_DOWN_LIMIT: "the scale-down policies allow no less for now",
    Reason.TOO_FEW_REPLICAS: "minReplicas",
    Reason.TOO_MANY_REPLICAS: "maxReplicas",
    Reason.OVERRIDE: "a person pinned the replicas",
    Reason.KILLED_POLICY: "killed for this policy (spec.mode: Off)",
    Reason.KILLED_NAMESPACE: "killed for this namespace",
    Reason.KILLED_CLUSTER: "killed for the whole cluster",
    Reason.KILL_SWITCH_UNREADABLE: "the kill switch could not be read, which counts as killed",
    Reason.TARGET_UNKNOWN: "the target's scale could not be read, so nothing is decided",
    Reason.SCALED_TO_ZERO: "the target was scaled to zero, which only a person may end",
}


class KillScope(IntEnum):
    """Who has stopped the actor; the widest scope wins."""

    NONE = 0
    POLICY = 1
    NAMESPACE = 2
    CLUSTER = 3
    UNREADABLE = 4
