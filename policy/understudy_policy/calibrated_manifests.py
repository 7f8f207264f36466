"""A calibrated rule as something to `kubectl apply`, for people who will never run a learned policy.

Only what can be said exactly, or nearly so, in an HPA or a KEDA ScaledObject is rendered; where the object adds
something of its own to the rule that was judged, a comment in the YAML says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from understudy_policy import actions
from understudy_policy.calibration import Choice, HpaChoice, KedaChoice, RowChoice, SeasonalChoice

_LOOSER = """\
# The HPA behind it leaves a difference of up to 10 % alone, and adds at most 4 pods or doubles within 15 s;
# the judged rule follows at once.
"""


@dataclass(frozen=True)
class ScaleTarget:
    """What is scaled, and within which bounds."""

    name: str
    min_replicas: int
    max_replicas: int
    namespace: str = "default"
    kind: str = "Deployment"
    api_version: str = "apps/v1"


@dataclass(frozen=True)
class RateQuery:
    """How KEDA reads the request rate.

    Attributes:
        server_address: of Prometheus, e.g. `http://prometheus.monitoring:9090`.
        query: PromQL of the request rate of the whole workload: one series.
        capacity_rps: requests per second that one pod serves when fully busy.
    """

    server_address: str
    query: str
    capacity_rps: float


def render(choice: Choice, target: ScaleTarget, rate: RateQuery) -> str:
    """The choice as YAML: an HPA where CPU is the signal, else a ScaledObject.

    Raises:
        ValueError: Neither can express the choice.
    """
    return (
        render_hpa(choice, target)
        if isinstance(choice, HpaChoice)
        else render_scaled_object(choice, target, rate)
    )


def render_hpa(choice: HpaChoice, target: ScaleTarget) -> str:
    """An `autoscaling/v2` HorizontalPodAutoscaler, as YAML."""
    behavior = "" if choice.legacy else f"  behavior:\n{_scale_down(choice.stabilization_s, '    ')}\n"
    return f"""\
# {choice.sentence()}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {json.dumps(target.name)}
  namespace: {json.dumps(target.namespace)}
spec:
  scaleTargetRef:
    apiVersion: {target.api_version}
    kind: {target.kind}
    name: {json.dumps(target.name)}
  minReplicas: {target.min_replicas}
  maxReplicas: {target.max_replicas}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {choice.target_percent}
{behavior}"""


def render_scaled_object(choice: Choice, target: ScaleTarget, rate: RateQuery) -> str:
    """A KEDA `ScaledObject` with Prometheus triggers on the request rate, as YAML.

    Raises:
        ValueError: KEDA cannot express the choice.
    """
    note, stabilization_s = _LOOSER, 0
    match choice:
        case KedaChoice():
            queries, utilization = [rate.query], choice.target_percent / 100
            note, stabilization_s = "", choice.stabilization_s
        case RowChoice():
            row = actions.TABLE[choice.row]
            queries, utilization = [_rate(rate.query, row)], row.utilization
        case SeasonalChoice():
            # A subquery reaches back from its offset: the half hour that ended 23.5 hours ago began a day ago.
            yesterday = f"quantile_over_time({choice.quantile:g}, ({rate.query})[30m:1m] offset 23h30m)"
            queries, utilization = [f"{yesterday} or ({rate.query})"], choice.utilization
            queries += [rate.query] * choice.reactive
        case _:
            raise ValueError(
                f"'{choice.sentence()}' has no ScaledObject; calibrate among HPA, KEDA, seasonal and table rows."
            )
    # KEDA keeps whole milli-units and cuts the rest off; the judge did the same.
    threshold = f"{utilization * rate.capacity_rps:.9f}".rstrip("0").rstrip(".")
    if utilization * rate.capacity_rps < 0.001:
        raise ValueError(f"a threshold of {threshold} rps per pod is less than KEDA can hold (0.001).")
    triggers = "\n".join(_trigger(rate.server_address, query, threshold) for query in queries)
    return f"""\
# {choice.sentence()}
{note}apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {json.dumps(target.name)}
  namespace: {json.dumps(target.namespace)}
spec:
  scaleTargetRef:
    apiVersion: {target.api_version}
    kind: {target.kind}
    name: {json.dumps(target.name)}
  minReplicaCount: {target.min_replicas}
  maxReplicaCount: {target.max_replicas}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
{_scale_down(stabilization_s, "        ")}
  triggers:
{triggers}
"""


def _scale_down(stabilization_s: int, indent: str) -> str:
    return f"{indent}scaleDown:\n{indent}  stabilizationWindowSeconds: {stabilization_s}"


def _rate(query: str, row: actions.Row) -> str:
    """What a row goes by, in ticks of 15 s, the last one included."""
    if row.carried:
        before = f"last_over_time(({query})[1s:1s] offset {15 * actions.CARRY_TICKS}s)"
        ahead = actions.CARRY_AHEAD_TICKS / actions.CARRY_TICKS
        # A subquery's steps are whole multiples of its resolution: of a second, so that it looks back for no longer.
        # Right after a first sample there is nothing to rise from: then the rate itself.
        return f"(({query}) + {ahead:g} * clamp_min(({query}) - ({before}), 0)) or ({query})"
    return query if row.window_ticks == 1 else f"max_over_time(({query})[{15 * row.window_ticks}s:15s])"


def _trigger(server_address: str, query: str, threshold: str) -> str:
    # An empty answer is an error, so that the HPA holds: it must not pass for no load.
    return f"""\
    - type: prometheus
      metadata:
        serverAddress: {json.dumps(server_address)}
        query: {json.dumps(query)}
        threshold: "{threshold}"
        ignoreNullValues: "false\""""
