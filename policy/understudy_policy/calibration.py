"""The cheapest classical rule for a workload's own past: worth more than most learning, and what an actor must beat.

The candidates are data. Who judges them passes in a function that plays them on the past and returns the judge's
own figure, so nothing here can be tuned on anything else; the winner is applied by hand (`calibrated_manifests`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy_policy import actions
from understudy_policy.references.behavior import Behavior, default_behavior
from understudy_policy.references.fixed import FixedRule
from understudy_policy.references.hpa_rule import HpaRule
from understudy_policy.references.keda import NO_FALLBACK, FallbackBehavior, KedaRule
from understudy_policy.references.knative import KnativeRule
from understudy_policy.references.rule import Rule
from understudy_policy.references.seasonal import SeasonalRule
from understudy_policy.references.table_row import TableRowRule
from understudy_policy.rows import Array

Floats = NDArray[np.float64]
Score = Callable[[Sequence["Choice"]], Floats]
"""`choices [C] → adjusted cost [C, B]` on the past, in B runs (seeds, days) that all choices have in common."""

RESAMPLES = 4000


@dataclass(frozen=True)
class HpaChoice:
    """An HPA on CPU: target in percent of the request, scale-down stabilisation; legacy: no `spec.behavior`."""

    target_percent: int
    stabilization_s: int = 300
    legacy: bool = False

    def sentence(self) -> str:
        """The choice in words."""
        return f"HPA, CPU at {self.target_percent} %, stabilised over {self.stabilization_s} s"


@dataclass(frozen=True)
class KedaChoice:
    """A ScaledObject on request rate: target as percent of a pod's capacity, scale-down stabilisation."""

    target_percent: int
    stabilization_s: int = 300

    def sentence(self) -> str:
        """The choice in words."""
        return f"KEDA, request rate at {self.target_percent} %, stabilised over {self.stabilization_s} s"


@dataclass(frozen=True)
class KnativeChoice:
    """A KPA: requests in flight per pod, over those of a pod that is just fully busy, and the delay of scaling down."""

    target_ratio: float
    scale_down_delay_s: int = 0

    def sentence(self) -> str:
        """The choice in words."""
        return f"Knative, concurrency {self.target_ratio:g} per slot, down after {self.scale_down_delay_s} s"


@dataclass(frozen=True)
class SeasonalChoice:
    """Same time yesterday: quantile of the coming half hour, utilisation, and whether the rate now counts, too."""

    quantile: float
    utilization: float
    reactive: bool

    def sentence(self) -> str:
        """The choice in words."""
        now = " or the rate now" if self.reactive else ""
        return f"yesterday's {self.quantile:.0%} quantile{now}, at {self.utilization:.0%}"


@dataclass(frozen=True)
class RowChoice:
    """A constant row of the action table."""

    row: int

    def sentence(self) -> str:
        """The choice in words."""
        row = actions.TABLE[self.row]
        over = "carried forward" if row.carried else f"largest of {row.window_ticks} ticks"
        return f"rate, {over}, at {row.utilization:.0%}"


@dataclass(frozen=True)
class FixedChoice:
    """A number of replicas."""

    replicas: int

    def sentence(self) -> str:
        """The choice in words."""
        return f"always {self.replicas}"


Choice = HpaChoice | KedaChoice | KnativeChoice | SeasonalChoice | RowChoice | FixedChoice

STOCK = HpaChoice(70, legacy=True)
"""CPU at 70 % and nothing else said."""

_STABILIZATIONS_S = (0, 60, 300)
HPA_CHOICES = tuple(HpaChoice(t, s) for t, s in product(range(30, 91, 5), _STABILIZATIONS_S))
KEDA_CHOICES = tuple(KedaChoice(t, s) for t, s in product(range(30, 101, 5), _STABILIZATIONS_S))
KNATIVE_CHOICES = tuple(
    KnativeChoice(t, s) for t, s in product((0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0), (0, 300))
)
SEASONAL_CHOICES = tuple(
    SeasonalChoice(q, u, now)
    for q, u, now in product((0.5, 0.9, 1.0), (0.44, 0.58, 0.66, 0.75, 0.84, 0.95), (False, True))
)
ROW_CHOICES = tuple(RowChoice(row) for row in range(len(actions.TABLE)))
CHOICES: tuple[Choice, ...] = (
    *HPA_CHOICES,
    *KEDA_CHOICES,
    *KNATIVE_CHOICES,
    *SEASONAL_CHOICES,
    *ROW_CHOICES,
)
"""The whole sweep of the protocol. Every kind but Knative's can be rendered as an HPA or a ScaledObject."""


@dataclass(frozen=True)
class Workload:
    """What a choice has to know of a workload to become a rule; scalars, or one value per choice.

    Attributes:
        capacity_rps: requests per second that one pod serves when fully busy.
        pod_concurrency: requests that a fully busy pod serves at once: capacity times service time.
        min_replicas, max_replicas: bounds.
        tick_s: time between two decisions.
    """

    capacity_rps: Array
    pod_concurrency: Array
    min_replicas: Array
    max_replicas: Array
    tick_s: float = 15.0


def groups(choices: Sequence[Choice]) -> list[NDArray[np.int64]]:
    """Indices of the choices that `build` can make one rule of, group by group."""
    keys: dict[tuple[type, bool], list[int]] = {}
    for index, choice in enumerate(choices):
        keys.setdefault((type(choice), isinstance(choice, HpaChoice) and choice.legacy), []).append(index)
    return [np.array(indices) for indices in keys.values()]


def build(choices: Sequence[Choice], workload: Workload) -> Rule[Any]:
    """The rule that runs these choices, one row each, as NumPy arrays.

    Args:
        choices: of one group (see `groups`).
        workload: what they run on.

    Raises:
        ValueError: The choices cannot share a rule.
    """
    if len(groups(choices)) != 1:
        kinds = sorted({type(choice).__name__ for choice in choices})
        raise ValueError(f"choices are of {len(groups(choices))} groups ({kinds}); build one rule per group.")
    n, first = len(choices), choices[0]

    def column(values: Any, dtype: type = np.float64) -> Array:
        return np.broadcast_to(np.asarray(values, dtype), (n,)).copy()

    def each(name: str, dtype: type = np.float64) -> Array:
        return column([getattr(choice, name) for choice in choices], dtype)

    bounds = {
        "min_replicas": column(workload.min_replicas, np.int64),
        "max_replicas": column(workload.max_replicas, np.int64),
    }
    capacity_rps = column(workload.capacity_rps)
    match first:
        case HpaChoice():
            return HpaRule(
                target_percent=each("target_percent", np.int64),
                behavior=_behavior(each("stabilization_s")),
                legacy=first.legacy,
                tick_s=workload.tick_s,
                **bounds,
            )
        case KedaChoice():
            return KedaRule(
                threshold_rps=each("target_percent") / 100 * capacity_rps,
                activation_rps=column(0.0),
                cooldown_s=column(300.0),
                # Unlike KEDA's default: an empty answer must not pass for no load, neither here nor in the manifest.
                ignore_null=column(False, np.bool_),
                fallback_replicas=column(NO_FALLBACK, np.int64),
                failure_threshold=column(0, np.int64),
                fallback_behavior=column(FallbackBehavior.STATIC, np.int64),
                behavior=_behavior(each("stabilization_s")),
                tick_s=workload.tick_s,
                **bounds,
            )
        case KnativeChoice():
            return KnativeRule(
                target=each("target_ratio") * column(workload.pod_concurrency),
                scale_down_delay_s=each("scale_down_delay_s"),
                activation_scale=column(1, np.int64),
                panic_threshold=column(2.0),
                max_scale_up_rate=column(1000.0),
                max_scale_down_rate=column(2.0),
                tick_s=workload.tick_s,
                **bounds,
            )
        case SeasonalChoice():
            return SeasonalRule(
                quantile=each("quantile"),
                utilization=each("utilization"),
                reactive=each("reactive", np.bool_),
                **bounds,
            )
        case RowChoice():
            return TableRowRule(row=each("row", np.int64), **bounds)
        case FixedChoice():
            return FixedRule(replicas=each("replicas", np.int64), **bounds)


def _behavior(stabilization_s: Array) -> Behavior:
    """HPA's defaults with another scale-down stabilisation."""
    behavior = default_behavior(len(stabilization_s), stabilization_s)
    return replace(behavior, scale_down=replace(behavior.scale_down, stabilization_window_s=stabilization_s))


@dataclass(frozen=True)
class Calibration:
    """The cheapest choice on a past.

    Attributes:
        choice: what it is; `STOCK` where nothing is cheaper.
        adjusted, stock_adjusted: mean adjusted cost of the choice, and of `STOCK`.
        saving_ratio: what the choice saves of stock's adjusted cost, e.g. 0.12.
        low_ratio, high_ratio: 95 % bootstrap interval of the saving over the runs. The choice was made on the same
            runs: the interval tells what luck does to the saving, not how the future may differ from the past.
    """

    choice: Choice
    adjusted: float
    stock_adjusted: float
    saving_ratio: float
    low_ratio: float
    high_ratio: float


def calibrate(score: Score, choices: Sequence[Choice] = CHOICES, seed: int = 0) -> Calibration:
    """The cheapest of the choices, and of `STOCK`, by somebody's score.

    Args:
        score: plays choices on the past; is called once, with `STOCK` first.
        choices: the candidates.
        seed: of the bootstrap.

    Raises:
        ValueError: The score is not finite, or there are fewer than two runs.
    """
    candidates: tuple[Choice, ...] = (STOCK, *choices)
    adjusted = np.asarray(score(candidates), np.float64)
    if adjusted.ndim != 2 or adjusted.shape[0] != len(candidates) or adjusted.shape[1] < 2:
        raise ValueError(
            f"the score has shape {adjusted.shape}; it must be ({len(candidates)}, runs) with two runs or more."
        )
    if not np.all(np.isfinite(adjusted)):
        worst = candidates[int(np.argmin(np.all(np.isfinite(adjusted), axis=1)))]
        raise ValueError(f"the score of '{worst.sentence()}' is not finite; does the past hold any request?")
    mean = adjusted.mean(axis=1)
    best = int(np.argmin(mean))
    runs = adjusted.shape[1]
    drawn = np.random.default_rng(seed).integers(0, runs, (RESAMPLES, runs))
    savings = 1.0 - adjusted[best][drawn].sum(axis=1) / adjusted[0][drawn].sum(axis=1)
    low, high = np.quantile(savings, [0.025, 0.975])
    return Calibration(
        choice=candidates[best],
        adjusted=float(mean[best]),
        stock_adjusted=float(mean[0]),
        saving_ratio=float(1.0 - mean[best] / mean[0]),
        low_ratio=float(low),
        high_ratio=float(high),
    )
