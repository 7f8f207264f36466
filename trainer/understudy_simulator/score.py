"""The one figure that policies are compared by: what the pods cost, and what missed requests cost beyond it.

The penalty is added to the cost, not multiplied with it: a product would reward serving nothing cheaply.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy_policy.rows import Array, maximum, namespace

MISSED_REQUEST_PRICE = 10.0
"""Cost of missing everything, in units of the demand."""

VIOLATION_BUDGET = 0.01
"""Share of the requests that may be missed for nothing."""


@dataclass(frozen=True)
class Score:
    """How well a run went; every field has the shape of the sums it was made from.

    Attributes:
        cost: pod-seconds over the demand, the pod-seconds that the arrivals need at 100 % utilisation.
        violation: share of requests that were late or dropped.
        adjusted: cost plus the price of every missed request beyond the budget.
    """

    cost: Array
    violation: Array
    adjusted: Array


def score(
    arrivals: Array,
    violations: Array,
    pod_seconds: Array,
    capacity_rps: Array,
    missed_request_price: float = MISSED_REQUEST_PRICE,
    violation_budget: float = VIOLATION_BUDGET,
) -> Score:
    """Judge summed outcomes.

    Args:
        arrivals: requests that came.
        violations: requests that were late or dropped.
        pod_seconds: existence of pods.
        capacity_rps: requests per second of one fully busy pod.
        missed_request_price: cost of missing everything, in units of the demand.
        violation_budget: share that may be missed for nothing.
    """
    xp = namespace(arrivals)
    requests = maximum(xp, arrivals, 1e-9)
    cost = pod_seconds * capacity_rps / requests
    violation = violations / requests
    return Score(
        cost, violation, cost + missed_request_price * maximum(xp, violation - violation_budget, 0.0)
    )
