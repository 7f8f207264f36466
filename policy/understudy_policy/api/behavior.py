"""Scaling behaviour as in HPA v2, so that it can be moved over from a HorizontalPodAutoscaler unchanged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from understudy_policy.api.base import ApiModel

Tolerance = Annotated[float, Field(ge=0, le=1)]


class ScalingPolicy(ApiModel):
    """How much may change within a period."""

    type: Literal["Pods", "Percent"] = Field(
        description="Whether value counts pods or percent of the replicas."
    )
    value: int = Field(ge=1, le=100_000, description="How much may change within the period.")
    period_seconds: int = Field(
        ge=1,
        le=1800,
        description="Length of the period, in seconds; at most 240 ticks of spec.telemetry.interval.",
    )


def _policies(*default: ScalingPolicy) -> tuple[ScalingPolicy, ...]:
    policies: tuple[ScalingPolicy, ...] = Field(
        default=default,
        min_length=1,
        max_length=8,
        description="Rate limits; a list given here replaces the default list.",
    )
    return policies


_PODS_4 = ScalingPolicy(type="Pods", value=4, period_seconds=15)
_PERCENT_100 = ScalingPolicy(type="Percent", value=100, period_seconds=15)
_WINDOW = (
    "Seconds of past recommendations to look at before replicas change in this direction; "
    "at most 240 ticks of spec.telemetry.interval, which is as far as history is kept."
)


class ScalingRules(ApiModel):
    """Stabilisation and rate limits for one direction."""

    stabilization_window_seconds: int = Field(default=0, ge=0, le=3600, description=_WINDOW)
    select_policy: Literal["Max", "Min", "Disabled"] = Field(
        default="Max",
        description="Which policy counts when several do: Max allows the largest change, Min the smallest, "
        "Disabled none in this direction.",
    )
    policies: tuple[ScalingPolicy, ...] = _policies(_PODS_4, _PERCENT_100)
    tolerance: Tolerance | None = Field(
        default=None,
        description="Share by which the metric may miss its target before replicas change in this direction "
        "(default: spec.reference.tolerance).",
    )


class ScaleUp(ScalingRules):
    """Scale-out: at once, by default by 4 pods or a doubling every 15 s, whichever is more."""


class ScaleDown(ScalingRules):
    """Scale-in: by default to the highest recommendation of the last five minutes."""

    stabilization_window_seconds: int = Field(default=300, ge=0, le=3600, description=_WINDOW)
    policies: tuple[ScalingPolicy, ...] = _policies(_PERCENT_100)


class Behavior(ApiModel):
    """Scaling behaviour with the fields and defaults of HPA v2; it binds actor and reference alike."""

    scale_up: ScaleUp = Field(default_factory=ScaleUp, description="Limits on scale-out.")
    scale_down: ScaleDown = Field(default_factory=ScaleDown, description="Limits on scale-in.")
