"""From telemetry to replicas: one tick of all workloads, and every number that led to it.

`observe` turns what was seen into what the actor sees; the caller asks the actor; `decide` turns its answer into
replicas. Between the two stands only the model, so simulator, judge and operator share all the rest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy_policy import actions, features, signals
from understudy_policy import budget as error_budget
from understudy_policy import estimates as learned
from understudy_policy import history as past
from understudy_policy.guards import chain as guard_chain
from understudy_policy.guards.context import Context
from understudy_policy.guards.kill import handover
from understudy_policy.guards.reasons import KillScope, Reason
from understudy_policy.guards.target import left_alone
from understudy_policy.references import hpa, observed
from understudy_policy.references.behavior import overwrite
from understudy_policy.rows import Array, device, is_unknown, maximum, minimum, namespace, shared, take
from understudy_policy.settings import Settings
from understudy_policy.signals import Cause, Signal

ACTOR_WARMUP_TICKS = 20
"""The actor is silent until so many ticks of the request rate are known."""

LONGEST_RULE_TICKS = max(actions.RULE_WINDOWS)
SETTLE_TICKS = actions.DECISION_TICKS
"""After a start nothing is scaled in for so many ticks, however complete the past that was read back."""


@dataclass
class State:
    """What a workload carries from tick to tick.

    Attributes:
        history, estimates, budget: see there.
        values: `[N, S]` last believed values, NaN if none.
        unchanged_ticks: `[N]` see `signals.assess`.
        replicas: `[N]` int64 desired replicas at the last tick, −1 before the first.
        ticks_since_change: `[N]` int64.
        ticks_seen: `[N]` int64 ticks since this row was added.
        row: `[N]` int64 row of the action table in force, −1 for none.
        row_age: `[N]` int64 ticks since it was chosen.
    """

    history: past.History
    estimates: learned.Estimates
    budget: error_budget.Budget
    values: Array
    unchanged_ticks: Array
    replicas: Array
    ticks_since_change: Array
    ticks_seen: Array
    row: Array
    row_age: Array


def initial_state(n: int) -> State:
    """The state of n workloads of which nothing is known (NumPy)."""
    unknown = np.full(n, np.nan)
    return State(
        history=past.empty(n),
        estimates=learned.Estimates(
            log_capacity=unknown.copy(),
            log_capacity_variance=np.zeros(n),
            startup_ticks=np.full(n, learned.DEFAULT_STARTUP_TICKS),
            pending_ticks=np.zeros(n),
        ),
        budget=error_budget.unknown(n),
        values=np.full((n, len(Signal)), np.nan),
        unchanged_ticks=np.zeros(n, np.int64),
        replicas=np.full(n, -1, np.int64),
        ticks_since_change=np.zeros(n, np.int64),
        ticks_seen=np.zeros(n, np.int64),
        row=np.full(n, actions.NO_ROW, np.int64),
        row_age=np.zeros(n, np.int64),
    )


@dataclass(frozen=True)
class Seen:
    """What the outside world looked like in one tick.

    Attributes:
        samples: telemetry.
        replicas: `[N]` int64 desired replicas of the target, −1 if it could not be read.
        ready: `[N]` int64 ready replicas.
        authority: `[N]` float64 that mode and rollout grant.
        override: `[N]` int64 pinned replicas, −1 for none.
        killed: `[N]` int64 `KillScope`.
        now_s: evaluation time of the tick.
        created: `[N]` int64 pods that exist, `status.replicas`; None: as many as desired.
    """

    samples: signals.Samples
    replicas: Array
    ready: Array
    authority: Array
    override: Array
    killed: Array
    now_s: float = shared()
    created: Array | None = None


@dataclass(frozen=True)
class Observation:
    """What is known once telemetry has been judged, and what the actor is shown.

    Attributes:
        features: `[N, F]` float32.
        allowed: `[N, A]` bool rows of the action table that the guards would not refuse.
        values: `[N, S]` believed values, NaN where not fresh.
        cause: `[N, S]` int64 `Cause`.
        capacity_rps, demand_pods: `[N]` float64, NaN where unknown.
        error_budget_burn: `[N]` see `budget.burn`.
        missed_request_price: `[N]` in force: the given one, as the error budget steers it.
        load: request rates of all windows.
        reference_raw, reference: `[N]` int64 before and after behaviour and bounds.
        reference_known: `[N]` bool.
        doubt: `[N]` bool.
        actor_doubt: `[N]` int64 `Reason`, as far as the inputs tell.
    """

    seen: Seen
    features: Array
    allowed: Array
    values: Array
    cause: Array
    capacity_rps: Array
    demand_pods: Array
    error_budget_burn: Array
    missed_request_price: Array
    load: features.Load
    reference_raw: Array
    reference: Array
    reference_known: Array
    doubt: Array
    actor_doubt: Array


@dataclass(frozen=True)
class Decision:
    """Every number of one tick.

    Attributes:
        replicas: `[N]` int64 to write.
        if_killed: `[N]` int64 to write instead where a kill is found right before the write.
        proposal: `[N]` int64 of the actor.
        reference_raw, reference: `[N]` int64.
        authority: `[N]` float64 in force: granted, and not taken away by doubt or kill.
        doubt: `[N]` bool scale-in was forbidden.
        actor_doubt: `[N]` int64 `Reason` why the actor was not heard, 0 where it was.
        row: `[N]` int64 row of the action table in force, −1 for none.
        probability: `[N]` float of that row at this tick; NaN without a model.
        probabilities: `[N, A]`.
        chain: what every guard did.
        limited_by: `[N]` int64 index of the last guard that changed the number, −1 for none.
        reason: `[N]` int64 `Reason` of that guard.
        observation: what it was decided on.
    """

    replicas: Array
    if_killed: Array
    proposal: Array
    reference_raw: Array
    reference: Array
    authority: Array
    doubt: Array
    actor_doubt: Array
    row: Array
    probability: Array
    probabilities: Array
    chain: guard_chain.Chain
    limited_by: Array
    reason: Array
    observation: Observation


def observe(settings: Settings, state: State, seen: Seen) -> tuple[State, Observation]:
    """Judge telemetry, remember it, and compute what reference and actor need.

    Args:
        settings: what people asked for.
        state: of the last tick; its rings are advanced in place.
        seen: the outside world now.

    Returns:
        The new state and the observation of this tick.
    """
    xp = namespace(seen.samples.values)
    known_target = seen.replicas >= 0
    current = xp.where(known_target, seen.replicas, maximum(xp, state.replicas, 0))
    ready = minimum(xp, seen.ready, current)
    freshness = signals.Freshness(
        settings.stale_after_s,
        signals.largest_plausible(
            settings.max_replicas, settings.given_capacity_rps, state.values[:, Signal.CPU_REQUEST]
        ),
    )
    values, cause, unchanged = signals.assess(seen.samples, freshness, state.values, state.unchanged_ticks)
    estimates = learned.update(state.estimates, values, current, ready)
    capacity = learned.capacity_rps(settings.given_capacity_rps, estimates)
    budget = error_budget.update(
        state.budget,
        settings,
        values[:, Signal.REQUEST_RATE],
        values[:, Signal.MISS_RATE],
        settings.tick_s,
    )
    burn = error_budget.burn(budget, settings)
    price = error_budget.price(burn, settings)

    history = state.history
    changed = xp.where(known_target & (state.replicas >= 0), current - state.replicas, xp.zeros_like(current))
    _remember_change(xp, history, changed, seen.now_s, settings)
    history.advance(seen.now_s, values[:, Signal.REQUEST_RATE])
    history.join(state.ticks_seen == 0, current)
    since = xp.where(changed == 0, state.ticks_since_change + 1, xp.zeros_like(current))

    load = features.load(history)
    created = current if seen.created is None else xp.where(known_target, seen.created, current)
    reference_raw, reference_known = observed.recommend(
        settings, values, capacity, current, created, seen.ready
    )
    reference, _ = hpa.normalize(
        reference_raw,
        current,
        settings.min_replicas,
        settings.max_replicas,
        settings.behavior,
        seen.now_s,
        history.time_s,
        history.reference_recommendation,
        history.change,
    )
    observation = features.compute(
        dataclasses.replace(settings, missed_request_price=price),
        load,
        history,
        estimates,
        values,
        capacity,
        current,
        ready,
        since,
        reference,
    )
    actor_doubt = _actor_doubt(xp, cause, capacity, load.known_ticks)
    settling = (state.ticks_seen < SETTLE_TICKS) | (load.known_ticks < LONGEST_RULE_TICKS)
    doubt = (
        settling
        | (actor_doubt > 0)
        | ~reference_known
        | ~known_target
        | (seen.killed == KillScope.UNREADABLE)
    )
    new_state = dataclasses.replace(
        state,
        estimates=estimates,
        budget=budget,
        values=xp.where(is_unknown(values), state.values, values),
        unchanged_ticks=unchanged,
        replicas=current,
        ticks_since_change=since,
        ticks_seen=state.ticks_seen + 1,
    )
    return new_state, Observation(
        seen=dataclasses.replace(seen, ready=ready),
        features=observation,
        allowed=actions.allowed(settings.utilization_ceiling),
        values=values,
        cause=cause,
        capacity_rps=capacity,
        demand_pods=xp.astype(load.rate_rps, xp.float64) / capacity,
        error_budget_burn=burn,
        missed_request_price=price,
        load=load,
        reference_raw=reference_raw,
        reference=reference,
        reference_known=reference_known,
        doubt=doubt,
        actor_doubt=actor_doubt,
    )


def decide(
    settings: Settings, state: State, observation: Observation, probabilities: Array
) -> tuple[State, Decision]:
    """Turn the actor's answer into replicas.

    Args:
        settings, state, observation: as `observe` returned them.
        probabilities: `[N, A]` of the rows of the action table; a row of NaN where no model is loaded.

    Returns:
        The state for the next tick and the decision.
    """
    xp = namespace(probabilities)
    seen = observation.seen
    row, row_age, proposal, model_doubt = _propose(xp, settings, state, observation, probabilities)
    actor_doubt = xp.where(observation.actor_doubt > 0, observation.actor_doubt, model_doubt)
    doubt = observation.doubt | (model_doubt == Reason.MODEL_OUTPUT_INVALID)
    context = Context(
        settings=settings,
        history=state.history,
        now_s=seen.now_s,
        current=seen.replicas,
        reference_raw=observation.reference_raw,
        reference=observation.reference,
        authority=seen.authority,
        demand_pods=observation.demand_pods,
        actor_doubt=actor_doubt,
        doubt=doubt,
        override=seen.override,
        killed=seen.killed,
    )
    chain = guard_chain.run(context, proposal)
    replicas = chain.replicas[-1]

    history = state.history
    wanted = guard_chain.before(chain, "behavior")
    # Outside its bounds an HPA moves without asking its metrics, and recommends nothing.
    within = (seen.replicas >= settings.min_replicas) & (seen.replicas <= settings.max_replicas)
    known = observation.reference_known & within
    history.book(wanted, observation.reference_raw, known)
    limited_by, reason = _last_limit(xp, chain)
    columns = xp.arange(probabilities.shape[1], device=device(probabilities))[None, :]
    chosen = xp.where(columns == row[:, None], probabilities, xp.zeros_like(probabilities))
    silent = (actor_doubt > 0) | (seen.killed > 0)
    decision = Decision(
        replicas=replicas,
        if_killed=xp.where(left_alone(context), context.current, handover(context)),
        proposal=proposal,
        reference_raw=observation.reference_raw,
        reference=observation.reference,
        authority=xp.where(silent, xp.zeros_like(seen.authority), seen.authority),
        doubt=doubt,
        actor_doubt=actor_doubt,
        row=row,
        probability=xp.sum(chosen, axis=1),
        probabilities=probabilities,
        chain=chain,
        limited_by=limited_by,
        reason=reason,
        observation=observation,
    )
    return dataclasses.replace(state, row=row, row_age=row_age), decision


def _propose(
    xp: Any, settings: Settings, state: State, observation: Observation, probabilities: Array
) -> tuple[Array, Array, Array, Array]:
    """The row in force, its age, the replicas that it asks for, and why the model may not be believed."""
    nothing = xp.all(is_unknown(probabilities), axis=1)
    total = xp.sum(probabilities, axis=1)
    # A comparison with NaN is false, so one bad number makes the whole row invalid.
    valid = (xp.abs(total - 1.0) < 1e-3) & xp.all(probabilities >= 0, axis=1)
    refused = xp.where(observation.allowed, probabilities, xp.full_like(probabilities, -1.0))
    best = xp.argmax(refused, axis=1)
    due = (state.row < 0) | (state.row_age + 1 >= actions.DECISION_TICKS)
    row = xp.where(due & valid, best, state.row)
    row = xp.where(nothing, xp.full_like(row, actions.NO_ROW), row)
    age = xp.where(due & valid, xp.zeros_like(state.row_age), state.row_age + 1)

    asked = actions.replicas_of(maximum(xp, row, 0), observation.load.rule_rate_rps, observation.capacity_rps)
    low = xp.astype(settings.min_replicas, xp.float64)
    high = xp.astype(settings.max_replicas, xp.float64)
    usable = (row >= 0) & ~is_unknown(asked)
    asked = xp.where(usable, minimum(xp, maximum(xp, asked, low), high), low)
    proposal = xp.where(usable, xp.astype(asked, xp.int64), observation.reference_raw)

    doubt = xp.where(
        nothing, xp.full_like(row, int(Reason.NO_MODEL)), xp.full_like(row, int(Reason.MODEL_OUTPUT_INVALID))
    )
    return row, age, proposal, xp.where(valid & (row >= 0), xp.zeros_like(row), doubt)


def _actor_doubt(xp: Any, cause: Array, capacity: Array, known_ticks: Array) -> Array:
    """Why the actor may not speak, as far as its inputs tell; the gravest reason last, so that it wins."""
    none = xp.zeros_like(known_ticks)
    reason = xp.where(known_ticks < ACTOR_WARMUP_TICKS, xp.full_like(none, int(Reason.WARMING_UP)), none)
    reason = xp.where(is_unknown(capacity), xp.full_like(none, int(Reason.CAPACITY_UNKNOWN)), reason)
    stale = (cause[:, Signal.REQUEST_RATE] != Cause.OK) | (cause[:, Signal.LATENCY] != Cause.OK)
    return xp.where(stale, xp.full_like(none, int(Reason.TELEMETRY_UNKNOWN)), reason)


def _remember_change(
    xp: Any, history: past.History, changed: Array, now_s: float, settings: Settings
) -> None:
    """Book what changed since the last tick, whoever wrote it, at that tick's time: then the write happened."""
    if history.ticks == 0:
        # An opening column one tick ago, so that a seed for rows that just joined has a time.
        history.head = 0
        history.time_s[0] = now_s - settings.tick_s
    column = history.head
    rows = xp.nonzero(changed)[0]
    if rows.shape[0]:
        history.change[rows, :], place, history.places[rows, :] = overwrite(
            changed[rows],
            history.time_s[column],
            take(settings.behavior, rows),
            history.time_s,
            history.change[rows, :],
            history.place[rows, :],
            history.places[rows, :],
        )
        history.place[rows, column] = xp.astype(place, history.place.dtype)
    history.change[:, column] = xp.astype(changed, history.change.dtype)


def _last_limit(xp: Any, chain: guard_chain.Chain) -> tuple[Array, Array]:
    """Index and reason of the last guard that changed the number, −1 and 0 where none did."""
    index = xp.full_like(chain.replicas[0], -1)
    reason = xp.zeros_like(chain.replicas[0])
    for i in range(chain.reasons.shape[0]):
        moved = chain.replicas[i + 1] != chain.replicas[i]
        index = xp.where(moved, xp.full_like(index, i), index)
        reason = xp.where(moved, chain.reasons[i], reason)
    return index, reason
