import asyncio

import pytest

import fake_kube
from fake_kube import FakeKube
from understudy_operator import kube as kube_module
from understudy_operator.kube import JSON_PATCH, Kube, KubeError
from understudy_operator.scaling import Outcome, ScaleProblem, Scaler, ScaleView, Target

WEB = Target("shop", "apps/v1", "Deployment", "web")
PATH = "/apis/apps/v1/namespaces/shop/deployments/web"
HOLD_S = 20.0


def deployment(replicas=5, ready=4, uid="u1", created=None):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"replicas": replicas},
        "status": {"readyReplicas": ready, "replicas": replicas if created is None else created},
    }


def hpa(name="web", target="web", **metadata):
    return {
        "metadata": {"name": name, "namespace": "shop", **metadata},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}},
    }


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def with_scaler(test, **options):
    """Run `await test(fake, kube, scaler, clock)` with one watched Deployment of 5 replicas."""

    async def run():
        fake, clock = FakeKube(), Clock()
        async with fake_kube.serving(fake, **options) as kube:
            scaler = Scaler(kube, clock=clock)
            scaler.on_workload_event(fake.put(PATH, deployment(created=6)), deleted=False)
            return await test(fake, kube, scaler, clock)

    return asyncio.run(run())


async def seen(scaler, target=WEB):
    (view,) = await scaler.read_many([target])
    return view


def test_what_the_watch_has_shown_is_not_asked_for_again():
    async def test(fake, kube, scaler, clock):
        view = await seen(scaler)
        assert (view.replicas, view.created, view.ready) == (5, 6, 4)
        assert (view.uid, view.owner) == ("u1", "kubectl")
        assert fake.calls == []

    with_scaler(test)


def test_an_unwatched_target_is_read_and_a_missing_one_named():
    async def test(fake, kube, scaler, clock):
        scaler.on_workload_event(fake.objects[PATH], deleted=True)
        assert (await seen(scaler)).replicas == 5
        del fake.objects[PATH]
        problem = await seen(scaler)
        assert isinstance(problem, ScaleProblem)
        assert problem.outcome is Outcome.NOT_FOUND
        assert PATH in problem.message

    with_scaler(test)


@pytest.mark.parametrize(
    ("status", "reason", "outcome"),
    [
        (403, "Forbidden", Outcome.FORBIDDEN),
        (422, "Invalid", Outcome.FORBIDDEN),
        (404, "NotFound", Outcome.NOT_FOUND),
        (500, "InternalError", Outcome.FAILED),
        (429, "TooManyRequests", Outcome.FAILED),
    ],
)
def test_a_refused_write_is_an_outcome_and_not_an_exception(status, reason, outcome):
    async def test(fake, kube, scaler, clock):
        fake.fail("PATCH", PATH + "/scale", status=status, reason=reason)
        result = await scaler.write(WEB, 8, await seen(scaler))
        assert result.outcome is outcome
        assert f"HTTP {status}" in result.message
        assert fake.count("PATCH") == 1

    with_scaler(test)


def test_a_write_goes_through_scale_as_understudy_and_the_next_tick_sees_it_at_once():
    async def test(fake, kube, scaler, clock):
        before = fake.objects[PATH]
        result = await scaler.write(WEB, 8, await seen(scaler))
        assert result.outcome is Outcome.WRITTEN
        assert fake.objects[PATH]["spec"]["replicas"] == 8
        assert fake.objects[PATH]["metadata"]["managedFields"][0]["manager"] == "understudy"
        # A watch event that was on its way while we wrote must not undo what we know.
        scaler.on_workload_event(before, deleted=False)
        view = await seen(scaler)
        assert (view.replicas, view.owner) == (8, "understudy")
        assert view.resource_version == result.resource_version
        assert fake.calls == [("PATCH", PATH + "/scale")]

    with_scaler(test)


def test_the_same_replicas_are_not_written():
    async def test(fake, kube, scaler, clock):
        assert (await scaler.write(WEB, 5, await seen(scaler))).outcome is Outcome.UNCHANGED
        assert fake.calls == []

    with_scaler(test)


def test_a_status_update_in_between_costs_one_more_try():
    async def test(fake, kube, scaler, clock):
        expected = await seen(scaler)
        fake.put(PATH, deployment(ready=5))
        assert (await scaler.write(WEB, 8, expected)).outcome is Outcome.WRITTEN
        assert fake.objects[PATH]["spec"]["replicas"] == 8
        assert fake.count("PATCH") == 2

    with_scaler(test)


@pytest.mark.parametrize(
    ("now", "why"),
    [(deployment(replicas=6), "somebody else"), (deployment(uid="u2"), "created again")],
    ids=["other replicas", "re-created"],
)
def test_nothing_is_written_once_the_decision_no_longer_fits(now, why):
    async def test(fake, kube, scaler, clock):
        expected = await seen(scaler)
        fake.put(PATH, now)
        result = await scaler.write(WEB, 8, expected)
        assert result.outcome is Outcome.CONFLICT
        assert why in result.message
        assert fake.objects[PATH]["spec"]["replicas"] == now["spec"]["replicas"]

    with_scaler(test)


def test_a_second_conflict_is_not_fought():
    async def test(fake, kube, scaler, clock):
        fake.fail("PATCH", PATH + "/scale", status=409, reason="Conflict", times=2)
        assert (await scaler.write(WEB, 8, await seen(scaler))).outcome is Outcome.CONFLICT
        assert fake.count("PATCH") == 2

    with_scaler(test)


def test_a_hanging_write_ends_and_says_so():
    async def test(fake, kube, scaler, clock):
        fake.fail("PATCH", PATH + "/scale", hang=True)
        result = await scaler.write(WEB, 8, await seen(scaler))
        assert result.outcome is Outcome.FAILED
        assert "did not answer within 0.2 s" in result.message

    with_scaler(test, timeout_s=0.2)


def test_a_target_deleted_behind_the_back_of_the_watch_is_noticed_by_the_write():
    async def test(fake, kube, scaler, clock):
        expected = await seen(scaler)
        del fake.objects[PATH]
        assert (await scaler.write(WEB, 8, expected)).outcome is Outcome.NOT_FOUND
        assert isinstance(await seen(scaler), ScaleProblem)

    with_scaler(test)


def test_taking_over_from_kubectl_is_no_conflict_but_a_later_change_by_it_is():
    async def test(fake, kube, scaler, clock):
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=6), "helm"), deleted=False)
        assert scaler.conflict_of(WEB, HOLD_S) is None
        await scaler.write(WEB, 8, await seen(scaler))
        scaler.on_workload_event(fake.objects[PATH], deleted=False)
        assert scaler.conflict_of(WEB, HOLD_S) is None
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=3), "kubectl"), deleted=False)
        assert "kubectl" in scaler.conflict_of(WEB, HOLD_S)
        clock.now = 15
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=3, ready=3), "kubectl"), deleted=False)
        clock.now = 21
        assert scaler.conflict_of(WEB, HOLD_S) is None  # a status update did not renew it
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=4), "kubectl"), deleted=False)
        clock.now = 40
        assert "kubectl" in scaler.conflict_of(WEB, HOLD_S)  # another change did

    with_scaler(test)


def test_after_a_restart_the_ownership_in_the_cluster_counts_as_our_first_write():
    async def test(fake, kube, scaler, clock):
        scaler.on_workload_event(fake.put(PATH, deployment(), "understudy"), deleted=False)
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=2), "kubectl"), deleted=False)
        assert "kubectl" in scaler.conflict_of(WEB, HOLD_S)

    with_scaler(test)


def test_a_recreated_target_starts_without_a_conflict():
    async def test(fake, kube, scaler, clock):
        scaler.on_workload_event(fake.put(PATH, deployment(), "understudy"), deleted=False)
        scaler.on_workload_event(fake.put(PATH, deployment(replicas=1, uid="u2"), "helm"), deleted=False)
        assert scaler.conflict_of(WEB, HOLD_S) is None
        assert (await seen(scaler)).uid == "u2"

    with_scaler(test)


def test_an_hpa_owns_its_target_until_it_is_deleted_or_turned_elsewhere():
    async def test(fake, kube, scaler, clock):
        keda = hpa("keda-hpa-web", ownerReferences=[{"kind": "ScaledObject", "name": "web"}])
        scaler.on_hpa_event(hpa(), deleted=False)
        scaler.on_hpa_event(keda, deleted=False)
        assert scaler.conflict_of(WEB, HOLD_S)
        scaler.on_hpa_event(hpa(target="other"), deleted=False)
        assert "keda-hpa-web of ScaledObject web" in scaler.conflict_of(WEB, HOLD_S)
        scaler.on_hpa_event(keda, deleted=True)
        assert scaler.conflict_of(WEB, HOLD_S) is None
        assert "HorizontalPodAutoscaler web" in scaler.conflict_of(
            Target("shop", "apps/v1beta2", "Deployment", "other"), HOLD_S
        )

    with_scaler(test)


ROLLOUT = Target("shop", "example.io/v1", "Rollout", "web")
ROLLOUT_PATH = "/apis/example.io/v1/namespaces/shop/rollouts/web"


def test_any_kind_with_scale_is_found_by_discovery_once():
    async def test(fake, kube, scaler, clock):
        resources = [{"name": "rollouts", "kind": "Rollout"}, {"name": "rollouts/scale", "kind": "Scale"}]
        fake.put("/apis/example.io/v1", {"resources": resources})
        fake.put(ROLLOUT_PATH, deployment(replicas=3, ready=2), uid="r1")
        view = await seen(scaler, ROLLOUT)
        assert (view.replicas, view.ready, view.uid, view.owner) == (3, 2, "r1", "kubectl")
        fake.fail("GET", ROLLOUT_PATH, status=403, reason="Forbidden")
        view = await seen(scaler, ROLLOUT)
        # The scale alone says only how many pods there are.
        assert (view.created, view.ready, view.owner) == (3, 3, "")
        assert (await scaler.write(ROLLOUT, 4, view)).outcome is Outcome.WRITTEN
        assert fake.calls.count(("GET", "/apis/example.io/v1")) == 1

    with_scaler(test)


def test_a_kind_without_scale_is_refused_by_name():
    async def test(fake, kube, scaler, clock):
        fake.put("/apis/example.io/v1", {"resources": [{"name": "rollouts", "kind": "Rollout"}]})
        problem = await seen(scaler, ROLLOUT)
        assert problem.outcome is Outcome.NOT_FOUND
        assert "scaleTargetRef.kind Rollout" in problem.message

    with_scaler(test)


def test_many_unwatched_targets_are_read_with_bounded_concurrency():
    async def run():
        fake = FakeKube()
        targets = [Target("shop", "apps/v1", "Deployment", f"web{i}") for i in range(60)]
        for target in targets:
            fake.put(
                f"/apis/apps/v1/namespaces/shop/deployments/{target.name}", deployment(), uid=target.name
            )
        active, most = 0, 0
        handle = fake.handle

        async def counted(request):
            nonlocal active, most
            active += 1
            most = max(most, active)
            await asyncio.sleep(0.01)
            active -= 1
            return await handle(request)

        fake.handle = counted
        async with fake_kube.serving(fake) as kube:
            views = await Scaler(kube, concurrency=7).read_many(targets)
        assert [view.uid for view in views] == [target.name for target in targets]
        assert 1 < most <= 7

    asyncio.run(run())


def test_every_call_is_counted_by_verb_and_outcome():
    counted = []

    async def test(fake, kube, scaler, clock):
        await kube.get(PATH)
        with pytest.raises(KubeError) as missing:
            await kube.get("/api/v1/namespaces/nowhere")
        assert missing.value.is_not_found
        assert "fake NotFound" in missing.value.message
        fake.fail("PATCH", PATH, hang=True)
        with pytest.raises(KubeError, match="did not answer within") as slow:
            await kube.patch(PATH, [{"op": "remove", "path": "/spec"}], content_type=JSON_PATCH)
        assert slow.value.reason == "Timeout"

    with_scaler(test, on_call=lambda verb, outcome: counted.append((verb, outcome)), timeout_s=2.0)
    assert counted == [("get", "200"), ("get", "404"), ("patch", "Timeout")]


def test_an_api_server_that_is_gone_is_called_unreachable():
    async def run():
        async with fake_kube.serving(FakeKube()) as kube:
            pass
        async with kube:
            (problem,) = await Scaler(kube).read_many([WEB])
            result = await Scaler(kube).write(WEB, 3, ScaleView(1, 1, 1, "1", "u1"))
        assert "cannot be reached" in problem.message
        assert result.outcome is Outcome.FAILED

    asyncio.run(run())


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "{server}"}}}}]
users: [{{name: me, user: {{tokenFile: token}}}}]
"""


def test_a_rotated_token_of_a_kubeconfig_is_picked_up(tmp_path, monkeypatch):
    monkeypatch.setattr(kube_module, "RELOAD_KUBECONFIG_AFTER_S", 0.0)
    sent = []

    async def run():
        fake = FakeKube()
        fake.put(PATH, deployment())
        handle = fake.handle

        async def noted(request):
            sent.append(request.headers["Authorization"])
            return await handle(request)

        fake.handle = noted
        async with fake_kube.serving(fake):
            (tmp_path / "token").write_text("first")
            config = tmp_path / "config"
            config.write_text(KUBECONFIG.format(server=fake.url))
            async with await Kube.connect(config) as kube:
                await kube.get(PATH)
                (tmp_path / "token").write_text("second")
                await kube.get(PATH)

    asyncio.run(run())
    assert sent == ["Bearer first", "Bearer second"]


def test_a_kubeconfig_that_is_half_written_when_it_is_read_again_is_a_failed_call_and_no_more(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(kube_module, "RELOAD_KUBECONFIG_AFTER_S", 0.0)

    async def run():
        fake = FakeKube()
        fake.put(PATH, deployment())
        async with fake_kube.serving(fake):
            (tmp_path / "token").write_text("first")
            config = tmp_path / "config"
            config.write_text(KUBECONFIG.format(server=fake.url))
            async with await Kube.connect(config) as kube:
                for torn in ("", "clusters: [{"):
                    config.write_text(torn)
                    with pytest.raises(KubeError, match="credentials cannot be renewed"):
                        await kube.get(PATH)

    asyncio.run(run())


@pytest.mark.parametrize(
    "content", ["", "{", "kind: Config", None], ids=["empty", "not YAML", "no context", "missing"]
)
def test_a_kubeconfig_that_cannot_be_used_is_refused_by_name(tmp_path, content):
    config = tmp_path / "config"
    if content is not None:
        config.write_text(content)
    with pytest.raises(KubeError, match="config cannot be used") as refusal:
        asyncio.run(Kube.connect(config))
    assert refusal.value.reason == "Configuration"
