import asyncio

import pytest

import fake_kube
from fake_kube import FakeKube
from understudy_operator.killswitch import KillSwitch
from understudy_operator.store import PolicyStore
from understudy_policy.guards.reasons import KillScope

POLICY = "/apis/understudy.dev/v1alpha1/namespaces/shop/rlpolicies/web"
NAMESPACE = "/api/v1/namespaces/shop"
CONFIG_MAP = "/api/v1/namespaces/understudy-system/configmaps/understudy-kill-switch"


def policy(mode="Active", generation=3, **metadata):
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "RLPolicy",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "p1",
            "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
        "spec": {
            "owner": "team",
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "maxReplicas": 10,
            "mode": mode,
            "objective": {"latencyThreshold": "250ms"},
        },
    }


def namespace(kill=None):
    return {
        "metadata": {"name": "shop", "annotations": {} if kill is None else {"understudy.dev/kill": kill}}
    }


def config_map(**data):
    return {"metadata": {"name": "understudy-kill-switch"}, "data": data}


def with_switch(test, *, mode="Active", watched=True, timeout_s=30.0):
    """Run `await test(fake, switch, record)` with one policy, its namespace and no ConfigMap."""

    async def run():
        fake, store = FakeKube(), PolicyStore()
        fake.put(NAMESPACE, namespace())
        store.on_event("ADDED", fake.put(POLICY, policy(mode)))
        async with fake_kube.serving(fake) as kube:
            switch = KillSwitch(kube, "understudy-system", timeout_s=timeout_s)
            if watched:
                switch.on_namespace_event(fake.objects[NAMESPACE], deleted=False)
            return await test(fake, switch, next(iter(store)))

    return asyncio.run(run())


async def both(switch, record):
    return [(await switch.read([record]))[record.key], await switch.confirm(record)]


def test_nothing_engaged_is_no_kill():
    async def test(fake, switch, record):
        for state in await both(switch, record):
            assert state.scope is KillScope.NONE
            assert not state.deleted

    with_switch(test)


def test_the_config_map_stops_the_cluster():
    async def test(fake, switch, record):
        fake.put(CONFIG_MAP, config_map(engaged="true", reason="incident 7", actor="ada"))
        for state in await both(switch, record):
            assert (state.scope, state.reason, state.actor) == (KillScope.CLUSTER, "incident 7", "ada")

    with_switch(test)


@pytest.mark.parametrize("data", [{}, {"engaged": "false"}, {"engaged": "No", "reason": "over"}])
def test_a_config_map_that_does_not_engage_is_no_kill(data):
    async def test(fake, switch, record):
        fake.put(CONFIG_MAP, config_map(**data))
        assert [state.scope for state in await both(switch, record)] == [KillScope.NONE] * 2

    with_switch(test)


@pytest.mark.parametrize(
    ("value", "scope"),
    [("shop is on fire", KillScope.NAMESPACE), ("true", KillScope.NAMESPACE)]
    + [(off, KillScope.NONE) for off in ("", "false", "False", "0", "no", " NO ")],
)
def test_the_annotation_stops_its_namespace_unless_it_says_no(value, scope):
    async def test(fake, switch, record):
        switch.on_namespace_event(fake.put(NAMESPACE, namespace(value)), deleted=False)
        for state in await both(switch, record):
            assert state.scope is scope
            assert state.reason == (value if scope else "")

    with_switch(test)


def test_mode_off_stops_the_policy():
    async def test(fake, switch, record):
        assert [state.scope for state in await both(switch, record)] == [KillScope.POLICY] * 2

    with_switch(test, mode="Off")


def test_the_widest_scope_is_reported():
    async def test(fake, switch, record):
        switch.on_namespace_event(fake.put(NAMESPACE, namespace("on fire")), deleted=False)
        assert [state.scope for state in await both(switch, record)] == [KillScope.NAMESPACE] * 2
        fake.put(CONFIG_MAP, config_map(engaged="true"))
        assert [state.scope for state in await both(switch, record)] == [KillScope.CLUSTER] * 2

    with_switch(test, mode="Off")


@pytest.mark.parametrize(
    ("flip", "scope"),
    [
        (lambda fake: fake.put(POLICY, policy("Off", generation=4)), KillScope.POLICY),
        (lambda fake: fake.put(NAMESPACE, namespace("stop")), KillScope.NAMESPACE),
        (lambda fake: fake.put(CONFIG_MAP, config_map(engaged="true")), KillScope.CLUSTER),
    ],
    ids=["policy", "namespace", "cluster"],
)
def test_a_kill_between_decision_and_write_is_found_by_confirm(flip, scope):
    async def test(fake, switch, record):
        assert (await switch.read([record]))[record.key].scope is KillScope.NONE
        flip(fake)
        state = await switch.confirm(record)
        assert state.scope is scope
        assert not state.deleted  # the reference is to be written instead

    with_switch(test)


@pytest.mark.parametrize(
    "change",
    [
        lambda fake: fake.objects.pop(POLICY),
        lambda fake: fake.put(POLICY, policy(), uid="p2"),
        lambda fake: fake.put(POLICY, policy(deletionTimestamp="2026-01-01T01:00:00Z")),
        lambda fake: fake.put(POLICY, policy("Shadow", generation=4)),
    ],
    ids=["deleted", "re-created", "being deleted", "back to Shadow"],
)
def test_a_policy_that_is_gone_or_edited_writes_nothing(change):
    async def test(fake, switch, record):
        change(fake)
        fake.put(CONFIG_MAP, config_map(engaged="true"))
        state = await switch.confirm(record)
        assert state.deleted
        assert state.scope is KillScope.POLICY

    with_switch(test)


def test_retargeting_a_policy_that_was_off_already_writes_nothing():
    async def test(fake, switch, record):
        fake.put(POLICY, policy("Off", generation=4))
        assert (await switch.confirm(record)).deleted

    with_switch(test, mode="Off")


@pytest.mark.parametrize("path", [POLICY, NAMESPACE, CONFIG_MAP])
@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 403, "reason": "Forbidden"}, {"hang": True}],
    ids=["500", "403", "hang"],
)
def test_what_cannot_be_read_before_a_write_counts_as_killed(path, fault):
    async def test(fake, switch, record):
        fake.fail("GET", path, **fault)
        state = await switch.confirm(record)
        assert state.scope is KillScope.UNREADABLE
        assert path in state.reason

    with_switch(test, timeout_s=0.3 if "hang" in fault else 30.0)


def test_a_config_map_that_cannot_be_read_counts_as_killed_for_the_tick():
    async def test(fake, switch, record):
        fake.fail("GET", CONFIG_MAP, status=500)
        assert (await switch.read([record]))[record.key].scope is KillScope.UNREADABLE
        assert (await switch.read([record]))[record.key].scope is KillScope.NONE

    with_switch(test)


def test_a_namespace_that_the_watch_has_not_shown_is_asked_for():
    async def test(fake, switch, record):
        fake.put(NAMESPACE, namespace("stop"))
        assert (await switch.read([record]))[record.key].scope is KillScope.NAMESPACE
        fake.fail("GET", NAMESPACE, status=403, reason="Forbidden")
        assert (await switch.read([record]))[record.key].scope is KillScope.UNREADABLE

    with_switch(test, watched=False)


def test_writes_under_way_together_share_their_reads():
    async def test(fake, switch, record):
        await asyncio.gather(*(switch.confirm(record) for _ in range(20)))
        assert fake.calls.count(("GET", CONFIG_MAP)) == 1
        assert fake.calls.count(("GET", NAMESPACE)) == 1
        assert fake.calls.count(("GET", POLICY)) == 20

    with_switch(test)


def test_a_read_that_began_before_the_question_is_never_its_answer():
    """The first read hangs on its way back with "not engaged"; who asks after the kill must see the kill."""

    async def test(fake, switch, record):
        answering, release = asyncio.Event(), asyncio.Event()
        handle = fake.handle

        async def slow(request):
            response = await handle(request)
            if request.path == CONFIG_MAP and not answering.is_set():
                answering.set()
                await release.wait()
            return response

        fake.handle = slow
        first = asyncio.create_task(switch.confirm(record))
        await answering.wait()
        fake.put(CONFIG_MAP, config_map(engaged="true"))
        second = asyncio.create_task(switch.confirm(record))
        await asyncio.sleep(0)
        release.set()
        assert (await first).scope is KillScope.NONE
        assert (await second).scope is KillScope.CLUSTER

    with_switch(test)


def test_a_caller_that_gives_up_does_not_take_the_answer_from_others():
    async def test(fake, switch, record):
        impatient = asyncio.create_task(switch.confirm(record))
        patient = asyncio.create_task(switch.confirm(record))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).scope is KillScope.NONE
        with pytest.raises(asyncio.CancelledError):
            await impatient

    with_switch(test)
