"""What an actor lives through: it names a row of the action table, a minute passes, and it sees what came of it.

Everything here is a pure function over arrays `[N]`, stepped one decision (four ticks) at a time, so that thousands of
workloads learn at once in NumPy or torch, and a learner can compile the three functions of `Program`. What the actor
is shown are the decision program's own features, and what it earns can be compared with what a constant row would have
earned on the very same arrivals and start-ups: luck is a function of seed and tick here, whoever acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from understudy_policy import actions, history
from understudy_policy import estimates as learned
from understudy_policy.actions import DECISION_TICKS, RULE_WINDOWS, Row
from understudy_policy.rows import Array, device, is_unknown, maximum, namespace, shared
from understudy_policy.settings import Settings
from understudy_policy.signals import Signal
from understudy_simulator import cluster, witness
from understudy_simulator.cluster import ClusterConfig, ClusterState
from understudy_simulator.columns import by_column, by_row, stack
from understudy_simulator.witness import Known

HEADROOM = 1.3
"""Ready pods at the start over the demand of that moment."""

AIMS = (0.44, 0.51, 0.58, 0.66, 0.75, 0.84, 0.95, 1.06)
"""Utilisations among which the one is sought that was best in a workload's past."""

AIM_ROWS = tuple(actions.TABLE.index(Row(20, aim)) for aim in AIMS)
"""Rows that say which it was: like an HPA they look back over five minutes."""

PAST_TICKS = history.TICKS + DECISION_TICKS - 1
"""Ticks of the past that must lie before the first decision."""


@dataclass(frozen=True)
class Episode:
    """N workloads and all that happens to them whatever is decided; time runs over T ticks, the past first.

    Attributes:
        cluster: what the workloads really are.
        settings: what people asked for, and the capacity that they believe in; behaviour and guards are not looked at.
        seeds: `[N]` int32, of every chance.
        dispersion: `[N]` variance over mean of the arrivals in a sub-step.
        rate_rps: `[N, T]` expected request rate.
        mean_rps: `[N]` its mean from the first decision on: the unit of what is earned.
        observed_rps: `[N, T]` what a query would have returned in the past, NaN where nothing is remembered.
        yesterday_rps: `[N, T / 20 + 3]` means of the five-minute blocks of T, a day earlier; NaN where unknown.
        last_week_rps: the same a week earlier.
        service: `[N]` int64, equal where rows are the same service at different times.
        row_rule: `[A]` int64 rule of every row of the action table, `actions.ROW_RULE`.
        row_utilization: `[A]` its target.
        first_tick: of the episode, at least `PAST_TICKS`.
    """

    cluster: ClusterConfig
    settings: Settings
    seeds: Array
    dispersion: Array
    rate_rps: Array
    mean_rps: Array
    observed_rps: Array
    yesterday_rps: Array
    last_week_rps: Array
    service: Array
    row_rule: Array = shared()
    row_utilization: Array = shared()
    first_tick: int = shared(default=PAST_TICKS)

    @property
    def decisions(self) -> int:
        """Decisions until the episode is cut off."""
        return int((self.rate_rps.shape[1] - self.first_tick) // DECISION_TICKS)


@dataclass(frozen=True)
class Terms:
    """What a decision was worth; every field is `[N]` (or has an axis of decisions), and less is better.

    Attributes:
        cost: pod-seconds, in units of what the mean demand of the episode keeps fully busy.
        missed: requests that missed the objective, in units of the mean arrivals of a decision.
        changes: share of the ticks at which replicas were changed.
    """

    cost: Array
    missed: Array
    changes: Array

    def reward(self, price: Array, change_price: float = 0.0) -> Array:
        """Minus the sum of all terms; of the misses at their price, without the budget of the objective."""
        return -(self.cost + price * self.missed + change_price * self.changes)


@dataclass(frozen=True)
class Body:
    """What changes from tick to tick.

    Attributes:
        cluster: the workloads.
        known: what telemetry tells of them.
        newest: `[N]` largest request rate since the decision, that of the decision included; the newest one where the
            row in force looks at no other. Minus infinity where unknown.
        terms: sums since the decision.
    """

    cluster: ClusterState
    known: Known
    newest: Array
    terms: Terms


@dataclass(frozen=True)
class State:
    """An episode at a decision.

    Attributes:
        body: the workloads.
        rate: `[N, history.TICKS]` request rates as observed, newest last.
        tick: the next one.
    """

    body: Body
    rate: Array
    tick: int = shared()


@dataclass(frozen=True)
class Rule:
    """The row in force.

    Attributes:
        now: `[N]` bool, of those since the decision it looks at the newest rate only.
        carried: `[N]` bool, it carries the rate forward.
        utilization: `[N]` its target.
    """

    now: Array
    carried: Array
    utilization: Array


def choose(rate: Array, rule: Array) -> Array:
    """What a row's rule knows from before the decision at each of the coming ticks, `[N, DECISION_TICKS]`.

    Args:
        rate: `[N, history.TICKS]` newest last, NaN where unknown.
        rule: `[N]` int64, see `actions.ROW_RULE`.

    Returns:
        Largest rate of the past part of the rule's window: minus infinity where the window has left the past, or
        nothing is known in it. Of a rule that carries the rate forward, the rate that it compares with, or NaN.
    """
    xp = namespace(rate)
    recent = by_column(rate[:, -max(RULE_WINDOWS) :])
    carried, behind = rule == actions.CARRIED, actions.CARRY_TICKS + 1
    before = [recent[later - behind] for later in range(DECISION_TICKS)]
    recent = xp.where(is_unknown(recent), xp.full_like(recent, -xp.inf), recent)
    nothing = xp.full_like(recent[0], -xp.inf)
    columns = [xp.where(carried, then, nothing) for then in before]
    for index, ticks in enumerate(RULE_WINDOWS):
        largest = nothing
        for later in reversed(range(DECISION_TICKS)):
            left = ticks - later
            if left > 0:
                reached = xp.max(recent[-left:], axis=0) if largest is nothing else recent[-left]
                largest = maximum(xp, largest, reached)
            columns[later] = xp.where(rule == index, largest, columns[later])
    return stack(*columns)


def advance(
    episode: Episode, body: Body, rule: Rule, older: Array, rate_rps: Array, tick: Array
) -> tuple[Body, Array]:
    """Let the row in force decide, let a tick pass, and look at what can be seen of it.

    Args:
        episode: the workloads; only what is constant in it.
        body: before the tick.
        rule: the row in force.
        older: `[N]` this tick's column of `choose`.
        rate_rps: `[N]` this tick's column of `episode.rate_rps`.
        tick: its number, int32 `[1]`.

    Returns:
        The body after it, and the request rate as observed, `[N]`, NaN where nothing is believed.
    """
    settings, known = episode.settings, body.known
    xp = namespace(known.replicas)
    capacity_rps = learned.capacity_rps(settings.given_capacity_rps, known.estimates)
    going_by = xp.where(
        rule.carried, actions.carried_forward(body.newest, older), maximum(xp, older, body.newest)
    )
    asked = _asked(xp, going_by, capacity_rps * rule.utilization)
    replicas = xp.where(xp.isfinite(asked), witness.bounded(settings, asked), known.replicas)
    arrivals, draws = cluster.draw(episode.cluster, rate_rps, episode.dispersion, episode.seeds, tick)
    state, outcome = cluster.step(episode.cluster, body.cluster, replicas, arrivals, draws)
    terms = Terms(
        cost=body.terms.cost + outcome.pod_seconds,
        missed=body.terms.missed + outcome.violations,
        changes=body.terms.changes + xp.astype(replicas != known.replicas, replicas.dtype),
    )
    signals = cluster.observe(episode.cluster, state)
    known = witness.look(settings, known, signals, state.signals_age_s, replicas, outcome.ready)
    rate = known.values[:, Signal.REQUEST_RATE]
    found = xp.where(is_unknown(rate), xp.full_like(rate, -xp.inf), rate)
    newest = xp.where(rule.now, found, maximum(xp, body.newest, found))
    return Body(state, known, newest, terms), rate


@dataclass(frozen=True)
class Program:
    """The functions that do the work; `compiled` makes them fast."""

    choose: Callable[..., Any] = choose
    advance: Callable[..., Any] = advance
    features: Callable[..., Any] = witness.features


PLAIN = Program()


def compiled(compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Program:
    """The program as a compiler leaves it: each of its functions is compiled once per shape."""
    return Program(compiler(choose), compiler(advance), compiler(witness.features))


def reset(episode: Episode, program: Program = PLAIN) -> tuple[State, Array]:
    """Begin an episode, with ready pods for the demand of that moment.

    Returns:
        The state and what the actor sees, `[N, F]` float32.
    """
    first, config = episode.first_tick, episode.cluster
    xp = namespace(episode.rate_rps)
    now_rps = episode.rate_rps[:, first - 1]
    nothing = xp.zeros_like(now_rps)
    replicas = witness.bounded(episode.settings, xp.ceil(HEADROOM * now_rps / config.service.capacity_rps))
    body = cluster.initial(config, replicas, now_rps)
    signals = cluster.observe(config, body)
    # One array in two places would be another program for a compiler, used once an episode.
    ready = replicas + 0.0
    known = witness.look(
        episode.settings, witness.initial(replicas), signals, body.signals_age_s, replicas, ready
    )
    past = by_column(episode.observed_rps)[first - history.TICKS : first - 1]
    rate = by_row(xp.concat([past, known.values[None, :, Signal.REQUEST_RATE]], axis=0))
    state = State(Body(body, known, nothing, _no_terms(nothing)), rate, first)
    return state, _seen(episode, state, program)


def step(
    episode: Episode, state: State, action: Array, program: Program = PLAIN
) -> tuple[State, Array, Terms]:
    """Let the actor's rows rule until its next decision.

    Args:
        episode: the workloads.
        state: at this decision.
        action: `[N]` int64 rows of `actions.TABLE`.
        program: the functions, compiled or not.

    Returns:
        The state at the next decision, what the actor sees then (`[N, F]` float32), and what the time between was
        worth.
    """
    state, terms = _pass(episode, state, action, program)
    return state, _seen(episode, state, program), terms


def rehearse(episode: Episode, row: Array, program: Program = PLAIN) -> Terms:
    """What a constant row would be worth, decision by decision: every field is `[N, episode.decisions]`.

    A learner takes it off its own rewards. What both had to pay cancels out, and with it most of the noise.

    Args:
        episode: the workloads.
        row: `[N]` int64 row of `actions.TABLE` for each.
        program: the functions, compiled or not.
    """
    state, _ = reset(episode, program)
    passed = []
    for _ in range(episode.decisions):
        state, terms = _pass(episode, state, row, program)
        passed.append(terms)
    return Terms(
        **{field.name: stack(*(getattr(terms, field.name) for terms in passed)) for field in fields(Terms)}
    )


def calibrate(episode: Episode, rows: Sequence[int], program: Program = PLAIN) -> Array:
    """The cheapest of some rows of `actions.TABLE` for every workload, by the judge's figure, `[N]` int64.

    It is the opponent that an actor should be compared with. Calibrate on other luck than that of the comparison
    (`replace(episode, seeds=…)`): a rule that was chosen in hindsight of the very same draws is too good.
    """
    xp, settings = namespace(episode.rate_rps), episode.settings
    adjusted = []
    for row in rows:
        terms = rehearse(episode, xp.zeros_like(settings.min_replicas) + row, program)
        violation = xp.mean(terms.missed, axis=1)
        beyond = maximum(xp, violation - (1.0 - settings.slo_target), 0.0)
        adjusted.append(xp.mean(terms.cost, axis=1) + settings.missed_request_price * beyond)
    return xp.asarray(rows, device=device(episode.rate_rps))[xp.argmin(xp.stack(adjusted), axis=0)]


def best_aim(price: Array, cost: Array, missed: Array) -> Array:
    """Which of `AIMS` was cheapest, `[N]`; of those that differ by rounding alone, the lowest.

    Args:
        price: `[N]` of a missed request.
        cost, missed: `[len(AIMS), N]` of a rule over five minutes at each of them.
    """
    xp = namespace(cost)
    spent = cost + price * missed
    cheapest = xp.astype(spent <= (1.0 + 1e-5) * xp.min(spent, axis=0), xp.int8)
    return xp.asarray(AIMS, dtype=cost.dtype, device=device(cost))[xp.argmax(cheapest, axis=0)]


def _pass(episode: Episode, state: State, action: Array, program: Program) -> tuple[State, Terms]:
    xp, body = namespace(state.rate), state.body
    number = episode.row_rule[action]
    carried = number == actions.CARRIED
    rule = Rule(carried | (number == RULE_WINDOWS.index(1)), carried, episode.row_utilization[action])
    older = program.choose(state.rate, number)
    newest = by_column(state.rate)[-1]
    newest = xp.where(is_unknown(newest), xp.full_like(newest, -xp.inf), newest)
    body = replace(body, newest=newest, terms=_no_terms(newest))
    rates = []
    for later in range(DECISION_TICKS):
        tick = state.tick + later
        at = xp.zeros_like(episode.seeds[:1]) + tick
        body, rate = program.advance(episode, body, rule, older[:, later], episode.rate_rps[:, tick], at)
        rates.append(rate)
    rate = by_row(xp.concat([by_column(state.rate)[DECISION_TICKS:], xp.stack(rates)], axis=0))
    return State(body, rate, state.tick + DECISION_TICKS), _in_units(episode, body.terms)


def _no_terms(like: Array) -> Terms:
    """Sums of nothing, in arrays of their own."""
    xp = namespace(like)
    return Terms(xp.zeros_like(like), xp.zeros_like(like), xp.zeros_like(like))


def _in_units(episode: Episode, terms: Terms) -> Terms:
    """Sums of a decision in units of the workload's own demand."""
    arrivals = episode.mean_rps * (DECISION_TICKS * episode.cluster.tick_s)
    return Terms(
        cost=terms.cost * episode.cluster.service.capacity_rps / arrivals,
        missed=terms.missed / arrivals,
        changes=terms.changes / DECISION_TICKS,
    )


def _seen(episode: Episode, state: State, program: Program) -> Array:
    block = state.tick // history.BLOCK_TICKS - 1
    days = (episode.yesterday_rps[:, block : block + 4], episode.last_week_rps[:, block : block + 4])
    return program.features(episode.settings, state.body.known, state.rate, *days)


def _asked(xp: Any, rate_rps: Array, per_replica_rps: Array) -> Array:
    """As `actions.replicas_of`: a rate that fills the pods to the last digit must not cost one more."""
    ratio = xp.astype(rate_rps, xp.float64) / xp.astype(per_replica_rps, xp.float64)
    return xp.astype(xp.ceil(ratio - 1e-6), rate_rps.dtype)


def table(like: Array) -> dict[str, Array]:
    """The action table as `Episode` holds it, in the library of an array `like`, on its device."""
    xp = namespace(like)
    return {
        "row_rule": xp.asarray(actions.ROW_RULE, device=device(like)),
        "row_utilization": xp.asarray(actions.ROW_UTILIZATION, device=device(like)),
    }
