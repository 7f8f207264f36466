"""What is going on with a policy, as Kubernetes conditions: observations with a reason, never a state machine.

Messages hold no number that changes from tick to tick: each change would be a write, and each write an event for
everybody who watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from understudy_policy.guards.reasons import SENTENCES, KillScope, Reason
from understudy_policy.signals import CAUSE_SENTENCES, OPTIONAL_SIGNALS, SIGNAL_NAMES, Cause, Signal

Condition = dict[str, Any]

WRITING_MODES = frozenset({"Canary", "Active"})

_SILENT = frozenset(reason for reason in Reason if Reason.NONE < reason <= Reason.MODEL_OUTPUT_INVALID)
_LIMITS = frozenset(
    reason for reason in Reason if Reason.ENVELOPE_BELOW_REFERENCE <= reason <= Reason.TOO_MANY_REPLICAS
)
_KILLED = {
    KillScope.POLICY: Reason.KILLED_POLICY,
    KillScope.NAMESPACE: Reason.KILLED_NAMESPACE,
    KillScope.CLUSTER: Reason.KILLED_CLUSTER,
    KillScope.UNREADABLE: Reason.KILL_SWITCH_UNREADABLE,
}


class Situation(NamedTuple):
    """All that conditions are made of: cheap to build for every policy at every tick, and to compare.

    Attributes:
        mode: `spec.mode`, empty where the policy is invalid.
        invalid: what is wrong with the policy, empty where nothing is.
        killed: scope of the kill switch that is engaged.
        kill_reason: what the person said who engaged it.
        target_problem: CamelCase reason and sentence why the target cannot be scaled, such as `TargetNotFound`.
        conflict: who else scales the target, as a sentence.
        causes: `Cause` of every signal; empty where all are fresh, None before the first tick.
        model_loaded: whether a verified actor is loaded.
        model_problem: why the newest artefact was refused, empty where it was not.
        granted: whether mode and rollout grant any authority at this time.
        actor_doubt: `Decision.actor_doubt`: why the actor is not heard.
        limited_by: `Decision.reason`: the guard that spoke last.
        write_problem: why replicas could not be written, empty where they could.
        ledger_problem: why decisions cannot be recorded, empty where they can.
    """

    mode: str = ""
    invalid: str = ""
    killed: int = KillScope.NONE
    kill_reason: str = ""
    target_problem: tuple[str, str] | None = None
    conflict: str = ""
    causes: tuple[int, ...] | None = ()
    model_loaded: bool = True
    model_problem: str = ""
    granted: bool = True
    actor_doubt: int = Reason.NONE
    limited_by: int = Reason.NONE
    write_problem: str = ""
    ledger_problem: str = ""


def stage_of(situation: Situation) -> str:
    """What Understudy is doing, in one word."""
    if situation.invalid:
        return "Invalid"
    if situation.killed > KillScope.POLICY:
        return "Killed"
    return "Conflict" if _conflict(situation) else situation.mode


def conditions_of(
    situation: Situation, generation: int, previous: Iterable[Mapping[str, Any]], now: str
) -> list[Condition]:
    """The conditions, always all of them and in the same order.

    Args:
        situation: of the policy.
        generation: of the spec that was looked at.
        previous: the conditions so far; a time is taken over where the status is the same.
        now: RFC 3339 time of those that have turned.
    """
    before = {condition["type"]: condition for condition in previous}
    conditions = []
    for kind, find in _FINDERS:
        status, reason, message = find(situation)
        known = before.get(kind)
        since = known["lastTransitionTime"] if known is not None and known["status"] == status else now
        conditions.append(
            {
                "type": kind,
                "status": status,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            }
        )
    return conditions


Finding = tuple[str, str, str]
"""Status, reason and message."""


def _conflict(s: Situation) -> str:
    """Beside a policy that does not write, another autoscaler is what is expected."""
    return s.conflict if s.mode in WRITING_MODES else ""


def _ready(s: Situation) -> Finding:
    if s.invalid:
        return "False", "PolicyInvalid", s.invalid
    for finding in (_target_resolved(s), _telemetry_fresh(s), _model_loaded(s)):
        if finding[0] != "True":
            return finding
    if conflict := _conflict(s):
        return "False", "Conflict", conflict
    return "True", "Deciding", "a decision is taken at every tick"


def _telemetry_fresh(s: Situation) -> Finding:
    if s.invalid:
        return "Unknown", "PolicyInvalid", "nothing is read for a policy that is invalid"
    if s.causes is None:
        return "Unknown", "Starting", "telemetry has not been read yet"
    needed: dict[Cause, list[str]] = {}
    optional: dict[Cause, list[str]] = {}
    for signal, cause in zip(Signal, s.causes, strict=False):
        if cause != Cause.OK:
            stale = optional if signal in OPTIONAL_SIGNALS else needed
            stale.setdefault(Cause(cause), []).append(SIGNAL_NAMES[signal])
    message = "; ".join(
        f"{', '.join(names)}: {CAUSE_SENTENCES[cause]}"
        for stale in (needed, optional)
        for cause, names in stale.items()
    )
    if needed:
        return "False", _camel(next(iter(needed)).name), message
    return "True", "Fresh", f"decisions go on without {message}" if optional else "all signals are fresh"


def _model_loaded(s: Situation) -> Finding:
    if s.model_loaded and s.model_problem:
        return "True", "LastGoodKept", f"the last good actor stays: {s.model_problem}"
    if s.model_loaded:
        return "True", "Verified", "the actor is verified and loaded"
    if s.model_problem:
        return "False", "ModelRejected", s.model_problem
    return "Unknown", "NotLoaded", "no actor has been loaded yet"


def _target_resolved(s: Situation) -> Finding:
    if s.invalid:
        return "Unknown", "PolicyInvalid", "the target of a policy that is invalid is not looked for"
    if s.target_problem is not None:
        return "False", *s.target_problem
    return "True", "Found", "the target's scale can be read"


def _acting(s: Situation) -> Finding:
    reason = Reason(s.actor_doubt)
    if s.invalid:
        return "False", "PolicyInvalid", "nothing is written for a policy that is invalid"
    if s.killed > KillScope.POLICY:
        said = f": {s.kill_reason}" if s.kill_reason else ""
        return "False", "KillSwitch", f"{SENTENCES[_KILLED[KillScope(s.killed)]]}{said}"
    if s.mode not in WRITING_MODES:
        return "False", *_MODES_THAT_DO_NOT_WRITE[s.mode]
    if conflict := _conflict(s):
        return "False", "Conflict", conflict
    if s.target_problem is not None:
        return "False", *s.target_problem
    if s.limited_by == Reason.OVERRIDE:
        return "False", "Override", SENTENCES[Reason.OVERRIDE]
    if reason in _SILENT:
        return "False", reason.label, SENTENCES[reason]
    if not s.granted:
        return "False", "CanaryHold", "the canary is held at no authority"
    return "True", s.mode, "the actor's proposals reach the workload"


_MODES_THAT_DO_NOT_WRITE = {
    "Off": ("Off", "spec.mode is Off: the actor has no authority"),
    "Shadow": ("ShadowMode", "spec.mode is Shadow: the actor proposes and nothing is written"),
    "Approve": ("ApproveMode", "spec.mode is Approve: the actor proposes and nothing is written"),
}


def _guardrail_limited(s: Situation) -> Finding:
    reason = Reason(s.limited_by)
    if reason in _LIMITS:
        return "True", reason.label, SENTENCES[reason]
    return "False", "WithinLimits", "no guard bounds the replicas"


def _conflicting(s: Situation) -> Finding:
    if conflict := _conflict(s):
        return "True", "OtherWriter", conflict
    return "False", "NoConflict", "nobody else is known to scale the target"


def _degraded(s: Situation) -> Finding:
    reason = Reason(s.actor_doubt)
    if s.killed == KillScope.UNREADABLE:
        return "True", "KillSwitchUnreadable", SENTENCES[Reason.KILL_SWITCH_UNREADABLE]
    if s.write_problem:
        return "True", "ScaleWriteFailed", s.write_problem
    if s.mode in WRITING_MODES and reason in _SILENT and reason != Reason.WARMING_UP:
        return "True", reason.label, SENTENCES[reason]
    if s.model_problem:
        return "True", "ModelRejected", s.model_problem
    if s.ledger_problem:
        return "True", "LedgerUnavailable", s.ledger_problem
    return "False", "AsIntended", "everything works as intended"


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


_FINDERS = (
    ("Ready", _ready),
    ("TelemetryFresh", _telemetry_fresh),
    ("ModelLoaded", _model_loaded),
    ("TargetResolved", _target_resolved),
    ("Acting", _acting),
    ("GuardrailLimited", _guardrail_limited),
    ("Conflict", _conflicting),
    ("Degraded", _degraded),
)
