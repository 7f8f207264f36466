"""How the operator is put together: what feeds its caches, what a tick keeps to itself, what is told without one."""

import asyncio
import inspect
import itertools
from dataclasses import replace

import kopf
import numpy as np

from one_policy import body
from one_tick import tick as decided
from understudy_operator.actors import Actors, Answers
from understudy_operator.cache import Cache
from understudy_operator.cohort import Cohort
from understudy_operator.events import EventRecorder
from understudy_operator.killswitch import KillState
from understudy_operator.ledger import DecidedTick
from understudy_operator.loop import Loop
from understudy_operator.main import OperatorConfig, configure_kopf, handlers
from understudy_operator.metrics import Metrics
from understudy_operator.recorder import Decisions, Recorder
from understudy_operator.scaling import Outcome, ScaleProblem
from understudy_operator.status import StatusWriter
from understudy_operator.store import PolicyStore
from understudy_operator.telemetry.collect import Problem
from understudy_operator.telemetry.port import PrometheusConfig, QueryFailed, RangeResult, RangeSeries
from understudy_operator.tick import Finished, Tick, View
from understudy_policy import budget
from understudy_policy.guards.reasons import KillScope
from understudy_policy.signals import Cause, Signal


def test_no_handler_runs_in_a_thread_beside_the_loop_that_reads_the_caches():
    registry = handlers(OperatorConfig(PrometheusConfig("http://nowhere")))
    watching = list(registry._watching.get_all_handlers())
    assert {handler.selector.any_name for handler in watching} == {
        "rlpolicies", "deployments", "statefulsets", "horizontalpodautoscalers", "namespaces",
    }  # fmt: skip
    assert all(inspect.iscoroutinefunction(handler.fn) for handler in watching)


def test_an_api_server_that_is_ill_for_long_does_not_end_the_process():
    settings = kopf.OperatorSettings()
    configure_kopf(settings)
    for _ in range(2):  # every request begins anew
        waits = list(itertools.islice(settings.networking.error_backoffs, 1000))
        assert len(waits) == 1000
        assert max(waits) <= 30


def test_what_a_watch_tells_during_a_list_is_newer_than_the_list():
    known = {"deleted": 1, "changed": 1, "missed": 1}
    cache = Cache(
        ("/things",),
        lambda body, deleted: known.pop(body["name"], None) if deleted else known.update({body["name"]: body["v"]}),
        lambda: set(known),
        known.pop,
        lambda body: body["name"],
    )  # fmt: skip

    async def things(path):
        for kind, name in (("DELETED", "deleted"), ("MODIFIED", "changed"), ("ADDED", "new")):
            cache.on_event({"type": kind, "object": {"name": name, "v": 2}})
        return [{"name": name, "v": 1} for name in ("deleted", "changed", "unseen")]

    asyncio.run(cache.refresh(things))
    assert known == {"changed": 2, "new": 2, "unseen": 1}


class Nowhere:
    """A cluster without targets, a Prometheus that does not answer, and nobody who killed anything."""

    conflict = None

    async def query(self, *_):
        await asyncio.sleep(0.01)
        raise QueryFailed(Cause.UNREACHABLE, "gone")

    query_range = query

    async def read_many(self, targets):
        return [ScaleProblem(Outcome.NOT_FOUND, "gone") for _ in targets]

    async def read(self, policies):
        return {policy.key: KillState() for policy in policies}

    def conflict_of(self, target, hold_s):
        return self.conflict


def a_tick(store, nowhere):
    return Tick(store, nowhere, nowhere, nowhere, Actors(), lambda stage: lambda: 0.0)


def test_ticks_of_two_intervals_that_overlap_keep_their_own_numbers():
    store = PolicyStore()
    store.on_event(None, body("fast", uid="f", telemetry={"interval": "5s"}))
    store.on_event(None, body("slow", uid="s"))
    tick = a_tick(store, Nowhere())

    async def run():
        return await asyncio.gather(tick.run(Cohort(5.0), 1e9), tick.run(Cohort(15.0), 1e9))

    assert [finished.decided.tick_id for finished in asyncio.run(run())] == [1, 2]


class Remembers(Nowhere):
    """A Prometheus that knows of a day in which every twentieth request missed the objective."""

    asked = ()

    async def query_range(self, promql, start_s, end_s, step_s, timeout_s):
        self.asked += ((promql, end_s - start_s, step_s),)
        times = np.arange(start_s, end_s + 1.0, step_s)
        value = 0.05 if promql.startswith("clamp_min") else 60.0
        series = RangeSeries({"namespace": "prod", "service": "shop"}, times, np.full(len(times), value))
        return RangeResult([series], ())


def test_a_restart_does_not_forgive_what_was_missed_before_it():
    store, cohort, prometheus = PolicyStore(), Cohort(15.0), Remembers()
    store.on_event(None, body())
    asyncio.run(a_tick(store, prometheus).run(cohort, 1e9))
    (asked,) = [one for one in prometheus.asked if "_bucket" in one[0]]
    assert asked[1:] == (24 * 3600.0 - 960.0, 960.0), "two windows of 12 hours"
    assert asked[0].count("[960000ms]") == 3, "no miss between two steps"
    assert cohort.state.budget.known[0] > 0.8
    assert budget.burn(cohort.state.budget, cohort.settings)[0] > 4.0
    forgetful = Cohort(15.0)
    asyncio.run(a_tick(store, Nowhere()).run(forgetful, 1e9))
    assert budget.burn(forgetful.state.budget, forgetful.settings).tolist() == [1.0]


def test_every_budget_is_read_back_over_its_own_window_and_none_where_nothing_follows_it():
    store, prometheus = PolicyStore(), Remembers()
    for window in ("1h", "720h", "0s"):
        objective = body()["spec"]["objective"] | {"errorBudgetWindow": window}
        store.on_event(None, body(window, uid=window, target="shop", objective=objective))
    cohort = Cohort(15.0)
    asyncio.run(a_tick(store, prometheus).run(cohort, 1e9))
    steps = sorted(step_s for promql, _, step_s in prometheus.asked if "_bucket" in promql)
    assert steps == [60.0, 61_440.0], "no less than the window of rates"
    known = dict(zip((record.uid for record in cohort.records), cohort.state.budget.known, strict=True))
    assert known["0s"] == 0.0
    assert known["1h"] > 0.8
    assert known["720h"] > 0.8


def test_many_windows_are_read_back_with_few_queries():
    store, prometheus = PolicyStore(), Remembers()
    for hours in range(1, 61):
        objective = body()["spec"]["objective"] | {"errorBudgetWindow": f"{hours}h"}
        store.on_event(None, body(f"p{hours}", uid=str(hours), target="shop", objective=objective))
    cohort = Cohort(15.0)
    asyncio.run(a_tick(store, prometheus).run(cohort, 1e9))
    assert len(prometheus.asked) <= 20
    assert np.all(cohort.state.budget.known > 0.8)


def test_who_does_not_write_for_a_conflict_grants_no_authority():
    store, nowhere = PolicyStore(), Nowhere()
    store.on_event(None, body(mode="Active"))

    def granted():
        finished = asyncio.run(a_tick(store, nowhere).run(Cohort(15.0), 1e9))
        return finished.decided.decision.observation.seen.authority.tolist()

    assert granted() == [1.0]
    nowhere.conflict = "HorizontalPodAutoscaler web scales this target"
    assert granted() == [0.0]


class Kube:
    """Remembers what was written."""

    def __init__(self):
        self.patches, self.written = [], asyncio.Event()

    async def patch(self, path, body, **_):
        self.patches.append((path, body["status"]))
        self.written.set()
        return {"metadata": {"uid": "u1"}}

    async def create(self, path, body, **_):
        return body


def a_recorder(store):
    kube, metrics, decisions = Kube(), Metrics(), Decisions()
    events = EventRecorder(kube, lambda _: None)
    status = StatusWriter(kube, events, decisions.last, lambda _: None)
    return Recorder(store, decisions, None, metrics, status, events), kube, metrics


def test_the_only_policy_is_told_what_is_wrong_with_it_although_nothing_ticks():
    store = PolicyStore()
    store.on_event(None, body(maxReplicas="many"))
    recorder, kube, metrics = a_recorder(store)

    async def run():
        loop = Loop(store, None, recorder.record, recorder.tend, metrics)
        running = asyncio.create_task(loop.run())
        await asyncio.wait_for(kube.written.wait(), 5)
        loop.stop()
        await running

    asyncio.run(run())
    ((_, status),) = kube.patches
    assert status["stage"] == "Invalid"
    assert 'understudy_policies{mode="Invalid"} 1.0' in metrics.render().decode()


def finished(store, **situation):
    """One tick of the policy in the store, which is Active."""
    settings, state, made = decided(authority=1.0, **situation)
    record = next(iter(store))
    actor = type("Actor", (), {"uri": "builtin://x", "sha256": "0" * 64})
    tick = DecidedTick(1, 1e9, [record], ["0" * 64], settings, state, made, [None])
    killed = KillState(KillScope(situation.get("killed", 0)))
    view = View([None], {}, {}, {record.key: killed}, ())
    return Finished(tick, [record.policy.spec], view, Answers(made.probabilities, [actor], {}), [None], 0.0)


def test_acting_is_shown_where_the_actor_reaches_the_workload_and_nowhere_else():
    store = PolicyStore()
    store.on_event(None, body(mode="Active"))

    def acting(**situation):
        recorder, _, metrics = a_recorder(store)
        asyncio.run(recorder.record(finished(store, **situation)))
        line = next(
            x for x in metrics.render().decode().splitlines() if x.startswith("understudy_policy_acting{")
        )
        return line.endswith(" 1")  # fmt: skip

    assert acting()
    assert not acting(killed=int(KillScope.NAMESPACE))
    assert not acting(current=0)
    assert not acting(model=False)


def test_the_status_of_a_policy_whose_deletion_a_list_found_is_forgotten():
    store = PolicyStore()
    store.on_event(None, body(mode="Active"))
    recorder, kube, _ = a_recorder(store)

    async def run(tick):
        await recorder.record(tick)
        await recorder.settle()

    told = finished(store)
    asyncio.run(run(told))

    async def nothing():
        return []

    asyncio.run(store.sync(nothing))
    # The tick that was under way offers it once more.
    changed = replace(
        told.decided, time_s=2e9, decision=replace(told.decided.decision, replicas=np.array([3]))
    )
    asyncio.run(run(replace(told, decided=changed)))
    assert len(kube.patches) == 1


def test_what_prometheus_said_is_logged_when_it_begins_and_counted_every_time(caplog):
    store = PolicyStore()
    store.on_event(None, body(mode="Active"))
    recorder, _, metrics = a_recorder(store)
    told = finished(store)
    refused = Problem(Signal.LATENCY, Cause.HTTP_ERROR, "Prometheus answered HTTP 400: parse error", (0,))

    async def run():
        for problems in ((refused,), (refused,), (), (refused,)):
            await recorder.record(replace(told, view=replace(told.view, telemetry_problems=problems)))
        await recorder.settle()

    asyncio.run(run())
    assert [r.getMessage() for r in caplog.records if "parse error" in r.getMessage()] == [
        "telemetry, latency of 1 policies: Prometheus answered HTTP 400: parse error"
    ] * 2
    metrics.count_query(Cause.HTTP_ERROR)
    assert 'understudy_prometheus_queries_total{cause="HttpError"} 1.0' in metrics.render().decode()
