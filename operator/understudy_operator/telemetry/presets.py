"""Which PromQL measures which signal for a kind of workload: one query per signal for all policies at once.

The metric names are those that HTTP servers instrumented with a Prometheus client, cAdvisor, kube-state-metrics and
the kube-prometheus recording rules have in real clusters. A query groups by the labels that name the workload, so
its cost does not grow with the number of policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from understudy_policy.signals import Signal


@dataclass(frozen=True)
class SignalQuery:
    """How one signal is measured for all workloads.

    Attributes:
        promql: the query; `{window}` stands for the range of its rates, `{threshold}` for a regular expression of the
            bucket that ends at the objective's threshold.
        workload_label: label of the result that carries the workload's name.
        namespace_label: label of the result that carries its namespace.
    """

    promql: str
    workload_label: str
    namespace_label: str = "namespace"

    def of(self, window_s: float, threshold_s: float) -> str:
        """The query for policies with such a window and objective."""
        filled = self.promql.replace("{window}", f"{round(window_s * 1000)}ms")
        return filled.replace("{threshold}", _bucket(threshold_s))


def _bucket(threshold_s: float) -> str:
    """Matches the label `le` of the bucket: 1 second is "1" to some exporters and "1.0" to others."""
    text = f"{threshold_s:.3f}".rstrip("0")
    return f"{text[:-1]}([.]0)?" if text.endswith(".") else text.replace(".", "[.]")


Preset = Mapping[Signal, SignalQuery]

# A pod that two workloads claim would make the join, and with it the signal of every policy, fail: topk keeps one.
_WORKLOAD_OF_POD = (
    "topk by (namespace, pod) (1,"
    " max by (namespace, pod, workload) (namespace_workload_pod:kube_pod_owner:relabel))"
)
_OF_BUCKET = "sum by (namespace, service) (rate(http_request_duration_seconds_bucket{%s}[{window}]))"
_IN_TIME = _OF_BUCKET % 'le=~"{threshold}"'
_SERVED_IN_TIME = _OF_BUCKET % 'le=~"{threshold}",code!~"5.."'
_REQUESTS = "sum by (namespace, service) (rate(http_requests_total[{window}]))"

HTTP_SERVER: Preset = {
    # The service is expected to carry the workload's name.
    Signal.REQUEST_RATE: SignalQuery(_REQUESTS, "service"),
    Signal.LATENCY: SignalQuery(
        "histogram_quantile(0.99,"
        " sum by (namespace, service, le) (rate(http_request_duration_seconds_bucket[{window}])))",
        "service",
    ),
    # A service that never failed has no 5xx series: that is an error rate of zero, not a missing one.
    Signal.ERROR_RATE: SignalQuery(
        'sum by (namespace, service) (rate(http_requests_total{code=~"5.."}[{window}]))'
        f" / {_REQUESTS} or 0 * {_REQUESTS}",
        "service",
    ),
    Signal.CPU_USAGE: SignalQuery(
        "sum by (namespace, workload) ("
        'sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{container!=""}[{window}]))'
        f" * on (namespace, pod) group_left (workload) {_WORKLOAD_OF_POD})",
        "workload",
    ),
    # max per container first: two replicas of kube-state-metrics must not double the request.
    Signal.CPU_REQUEST: SignalQuery(
        "avg by (namespace, workload) (sum by (namespace, pod) (max by (namespace, pod, container) ("
        'kube_pod_container_resource_requests{resource="cpu"}))'
        f" * on (namespace, pod) group_left (workload) {_WORKLOAD_OF_POD})",
        "workload",
    ),
    # Where the histogram knows no code, the matcher finds an empty one and lets every request pass; where nothing but
    # failures is known, all were missed. Without a bucket at the threshold there is no answer.
    Signal.MISS_RATE: SignalQuery(
        f"clamp_min(1 - ({_SERVED_IN_TIME} or 0 * {_IN_TIME})"
        " / sum by (namespace, service) (rate(http_request_duration_seconds_count[{window}])), 0)",
        "service",
    ),
}

PRESETS: Mapping[str, Preset] = {"http-server": HTTP_SERVER}
"""By the name in `spec.telemetry.preset`."""
