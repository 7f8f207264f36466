"""The parts of an `RLPolicy`'s spec, one model per concern. Every field is obeyed by the operator."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from understudy_policy.api.base import (
    ApiModel,
    Duration,
    ObjectName,
    Rule,
    Sha256,
    Timestamp,
    duration_s,
)
from understudy_policy.api.behavior import Behavior, Tolerance

MAX_REPLICAS = 10_000

CALIBRATED_SLOTS = 16
"""Prices at which a resource may say how its workload was scaled best."""

Query = Annotated[str, Field(min_length=1, max_length=2048)]


_WITHOUT_SCALE = ("DaemonSet", "RLPolicy", "HorizontalPodAutoscaler", "ScaledObject")


def _int_or_string(value: object) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise ValueError(f'{value!r} is neither a whole number nor a string: write Auto, 25 or "12.5"')


IntOrString = Annotated[
    int | str,
    PlainValidator(_int_or_string),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 16,
        }
    ),
]


class ScaleTargetRef(ApiModel):
    """The workload whose replicas are scaled, in the policy's own namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    api_version: str = Field(
        default="apps/v1",
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9][a-z0-9]*$",
        max_length=253,
        description="API version of the workload.",
    )
    kind: str = Field(
        default="Deployment",
        pattern=r"^[A-Z][A-Za-z0-9]*$",
        max_length=63,
        description="Kind of the workload: any that has /scale. Beyond Deployment and StatefulSet the operator needs "
        "the rights to get it and to get and patch its scale.",
    )
    name: ObjectName = Field(description="Name of the workload.")

    rules = (
        Rule(
            field="kind",
            cel=f"!(self.kind in {list(_WITHOUT_SCALE)})",
            holds=lambda ref: ref.kind not in _WITHOUT_SCALE,
            message="kind is {kind}, which has no replicas of its own to scale: name the Deployment, StatefulSet or "
            "other kind with /scale behind it",
        ),
    )


class CalibratedUtilization(ApiModel):
    """How the workload was scaled best in its past, at one price."""

    missed_request_price: float = Field(ge=0.1, le=100, description="Price of a missed request.")
    utilization: float = Field(
        ge=0.1,
        le=1.5,
        description="Utilisation of capacityPerPod at which scaling by the largest request rate of five minutes was "
        "cheapest at that price, such as 0.75.",
    )


class Objective(ApiModel):
    """What good service is, and what it is worth."""

    latency_threshold: Duration = Field(
        description="A request that takes longer has missed the objective; a duration such as 250ms."
    )
    slo_target: float = Field(
        default=0.99,
        ge=0.5,
        le=0.9999,
        description="Share of requests that must stay below latencyThreshold.",
    )
    missed_request_price: float = Field(
        default=10,
        ge=0.1,
        le=100,
        description="What a missed request costs, in the cost of the pod time that serves it: "
        "higher buys service with pods, lower saves pods.",
    )
    capacity_per_pod: IntOrString = Field(
        default="Auto",
        description='Requests per second that one pod serves within the objective, such as 25 or "12.5"; '
        "Auto estimates it from request rate and CPU.",
    )
    error_budget_window: Duration = Field(
        default="12h",
        description="How far back misses are held against the error budget (1 - sloTarget), from 1h to 720h. While "
        "less is missed, the actor is asked with a lower price than missedRequestPrice, and with a higher one when the "
        "budget is spent: from 0.37 to 4.5 times as much, within 0.5 and 40, which actors learn with. 0s: always with "
        "missedRequestPrice itself, as where misses are not measured.",
    )
    calibrated_utilizations: tuple[CalibratedUtilization, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=CALIBRATED_SLOTS,
        description="How this workload was scaled best in its past, by the price of a missed request; understudy "
        "calibrate prints it. Utilisations are of capacityPerPod: give that as well. Actors that learned with it go by "
        "the nearest price as by experience (a model's card says so), others do not see it; leave it out where nobody "
        "looked.",
    )

    rules = (
        Rule(
            field="latencyThreshold",
            cel="duration(self.latencyThreshold) >= duration('1ms')",
            holds=lambda objective: objective.latency_threshold_s >= 0.001,
            message="latencyThreshold is {latencyThreshold}, shorter than 1ms: give the time within which "
            "a request must be answered, such as 250ms",
        ),
        Rule(
            field="errorBudgetWindow",
            cel="duration(self.errorBudgetWindow) == duration('0s') || (duration(self.errorBudgetWindow) >= "
            "duration('1h') && duration(self.errorBudgetWindow) <= duration('720h'))",
            holds=lambda objective: (
                objective.error_budget_window_s == 0 or 3600 <= objective.error_budget_window_s <= 720 * 3600
            ),
            message="errorBudgetWindow is {errorBudgetWindow}: choose a window from 1h to 720h, such as 12h, "
            "or 0s for a price that stays",
        ),
        Rule(
            field="capacityPerPod",
            cel="type(self.capacityPerPod) == string"
            " ? self.capacityPerPod == 'Auto' || self.capacityPerPod.matches('^[0-9]{1,6}([.][0-9]{1,6})?$')"
            " && self.capacityPerPod.matches('[1-9]')"
            " : self.capacityPerPod > 0 && self.capacityPerPod < 1000000",
            holds=lambda objective: _is_capacity(objective.capacity_per_pod),
            message="capacityPerPod is {capacityPerPod}: write Auto, or the requests per second of one pod "
            "above 0 and below 1000000, such as 25",
        ),
    )

    @property
    def latency_threshold_s(self) -> float:
        """The threshold in seconds."""
        return duration_s(self.latency_threshold)

    @property
    def error_budget_window_s(self) -> float:
        """The window in seconds; 0: the price is not steered."""
        return duration_s(self.error_budget_window)

    @property
    def capacity_per_pod_rps(self) -> float | None:
        """The given capacity in requests per second, or None where it is to be estimated."""
        return None if self.capacity_per_pod == "Auto" else float(self.capacity_per_pod)


def _is_capacity(value: int | str) -> bool:
    if isinstance(value, int):
        return 0 < value < 1_000_000
    return value == "Auto" or (
        re.fullmatch(r"[0-9]{1,6}([.][0-9]{1,6})?", value) is not None and float(value) > 0
    )


class Model(ApiModel):
    """The actor that proposes replicas."""

    uri: str = Field(
        default="builtin://generalist",
        pattern=r"^(builtin|file)://.+$",
        max_length=1024,
        description="Where the artefact is: builtin://NAME ships with the operator, file:///PATH is a folder "
        "that the operator can read.",
    )
    sha256: Sha256 | None = Field(
        default=None, description="Digest that the artefact must have; anything else is not loaded."
    )


class SignalQueries(ApiModel):
    """PromQL to use instead of the preset's, one query per signal, each with one series as its answer."""

    request_rate: Query | None = Field(default=None, description="Requests per second of the whole workload.")
    latency: Query | None = Field(
        default=None, description="99th percentile of the response time, in seconds."
    )
    error_rate: Query | None = Field(default=None, description="Share of requests that failed, 0 to 1.")
    cpu_usage: Query | None = Field(default=None, description="CPU used by all pods, in cores.")
    cpu_request: Query | None = Field(default=None, description="CPU requested by one pod, in cores.")
    miss_rate: Query | None = Field(
        default=None,
        description="Share of requests that failed or took longer than objective.latencyThreshold, 0 to 1. The preset "
        "reads it off the histogram's bucket that ends at the threshold; without such a bucket the price of a miss is "
        "not steered.",
    )


class Telemetry(ApiModel):
    """What is read from Prometheus, and how often."""

    preset: Literal["http-server"] = Field(
        default="http-server", description="Named set of queries for a kind of workload."
    )
    interval: Duration = Field(
        default="15s", description="The tick: time between two decisions, from 1s to 5m."
    )
    window: Duration = Field(
        default="60s", description="Window over which the preset takes rates; at least one interval."
    )
    stale_after: Duration | None = Field(
        default=None,
        description="Age from which a sample is stale and nothing is scaled in on it; longer than one "
        "interval (default: four intervals).",
    )
    signals: SignalQueries = Field(default_factory=SignalQueries, description="Queries of your own.")

    rules = (
        Rule(
            field="interval",
            cel="duration(self.interval) >= duration('1s') && duration(self.interval) <= duration('5m')",
            holds=lambda telemetry: 1 <= telemetry.interval_s <= 300,
            message="interval is {interval}: choose a tick between 1s and 5m",
        ),
        Rule(
            field="window",
            cel="duration(self.window) >= duration(self.interval)",
            holds=lambda telemetry: telemetry.window_s >= telemetry.interval_s,
            message="window {window} is shorter than interval {interval} and would leave out requests: "
            "lengthen window or shorten interval",
        ),
        Rule(
            field="staleAfter",
            cel="!has(self.staleAfter) || duration(self.staleAfter) > duration(self.interval)",
            holds=lambda telemetry: telemetry.stale_after_s > telemetry.interval_s,
            message="staleAfter {staleAfter} is not longer than interval {interval}, so every sample would "
            "be stale: lengthen staleAfter or shorten interval",
        ),
    )

    @property
    def interval_s(self) -> float:
        """The tick in seconds."""
        return duration_s(self.interval)

    @property
    def window_s(self) -> float:
        """The rate window in seconds."""
        return duration_s(self.window)

    @property
    def stale_after_s(self) -> float:
        """Age in seconds from which a sample is stale."""
        return 4 * self.interval_s if self.stale_after is None else duration_s(self.stale_after)


class Reference(ApiModel):
    """The rule beside the actor: an exact HPA, which scales whenever the actor may not."""

    signal: Literal["cpuUtilization", "requestRate"] = Field(
        default="cpuUtilization", description="What the rule follows."
    )
    target: float = Field(
        default=0.7,
        ge=0.05,
        le=1,
        description="What the rule aims at: CPU used as a share of CPU requested, or request rate as a share "
        "of capacityPerPod.",
    )
    tolerance: Tolerance = Field(
        default=0.1, description="Share by which the signal may miss the target before replicas change."
    )
    behavior: Behavior = Field(
        default_factory=Behavior, description="Stabilisation and rate limits, as in HPA v2."
    )


class Envelope(ApiModel):
    """How far the actor may leave the reference."""

    below_reference: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the reference's replicas that the actor may go below it.",
    )
    above_reference: float = Field(
        default=1,
        ge=0,
        le=10,
        description="Share of the reference's replicas that the actor may go above it.",
    )
    utilization_ceiling: float = Field(
        default=1,
        ge=0.1,
        le=2,
        description="The floor of all replicas: as many as keep the load of this moment at or below this "
        "utilisation.",
    )


class Guardrails(ApiModel):
    """Bounds on what leaves the operator."""

    envelope: Envelope = Field(
        default_factory=Envelope, description="How far the actor may leave the reference."
    )


class Rollout(ApiModel):
    """How authority grows in mode Canary."""

    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.1, 0.25, 0.5, 1.0),
        min_length=1,
        max_length=10,
        description="Authority of each step, ascending: the share of the actor's proposal that is applied.",
    )
    step_duration: Duration = Field(default="30m", description="Time at each step; at least one interval.")

    rules = (
        Rule(
            field="steps",
            cel="self.steps.isSorted()",
            holds=lambda rollout: all(low <= high for low, high in pairwise(rollout.steps)),
            message="steps fall somewhere: write them in ascending order, such as [0.1, 0.25, 0.5, 1.0]",
        ),
    )

    @property
    def step_duration_s(self) -> float:
        """Seconds at each step."""
        return duration_s(self.step_duration)


class Override(ApiModel):
    """Replicas pinned by a person: they hold against actor, reference and guards."""

    replicas: int = Field(ge=0, le=MAX_REPLICAS, description="Replicas to hold, at most maxReplicas.")
    until: Timestamp | None = Field(
        default=None, description="When the pin ends (default: when it is removed)."
    )
    reason: str = Field(min_length=1, max_length=1024, description="Why, for whoever is on call next.")
