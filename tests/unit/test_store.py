"""The store follows the cluster, whatever order its events come in, and no policy can harm another."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from one_policy import body
from understudy_operator.store import PolicyStore


@pytest.fixture
def store():
    return PolicyStore()


def keys(store):
    return [record.key for record in store]


def test_events_add_change_and_remove(store):
    store.on_event("ADDED", body())
    store.on_event("MODIFIED", body(version=2, generation=2, mode="Active"))
    record = store.get(("prod", "shop"))
    assert record.policy.spec.mode == "Active"
    assert record.owner == "team-shop"
    store.on_event("DELETED", body(version=3))
    assert len(store) == 0


def test_what_cannot_be_parsed_becomes_a_sentence_and_harms_nobody(store):
    store.on_event(None, body("good"))
    store.on_event(None, body("bad", maxReplicas="many"))
    store.on_event(None, {**body("worse"), "spec": "not an object"})
    bad = store.get(("prod", "bad"))
    assert bad.policy is None
    assert "spec.maxReplicas is 'many'" in bad.invalid
    assert bad.owner == "team-shop"
    assert store.get(("prod", "worse")).invalid
    assert store.get(("prod", "good")).policy is not None


def test_mending_the_spec_heals_the_record(store):
    store.on_event("ADDED", body(maxReplicas="many"))
    store.on_event("MODIFIED", body(version=2, generation=2))
    assert store.get(("prod", "shop")).invalid is None


def test_a_strange_status_does_not_invalidate_the_policy(store):
    store.on_event("ADDED", {**body(), "status": {"authority": "a lot"}})
    assert store.get(("prod", "shop")).invalid is None


def test_creation_under_a_new_uid_is_a_new_record_whatever_comes_first(store):
    store.on_event("ADDED", body(uid="old", version=1))
    store.on_event("ADDED", body(uid="new", version=9))
    store.on_event("MODIFIED", body(uid="old", version=5))
    store.on_event("DELETED", body(uid="old", version=6))
    assert store.get(("prod", "shop")).uid == "new"


def test_an_older_event_does_not_turn_back_time(store):
    store.on_event("ADDED", body(version=7, generation=3, mode="Off"))
    store.on_event(None, body(version=5, generation=2, mode="Active"))
    assert store.get(("prod", "shop")).policy.spec.mode == "Off"


def test_a_status_write_of_ours_does_not_count_as_a_new_spec(store):
    store.on_event("ADDED", body())
    version, policy = store.spec_version, store.get(("prod", "shop")).policy
    store.on_event("MODIFIED", {**body(version=2), "status": {"stage": "Shadow"}})
    record = store.get(("prod", "shop"))
    assert store.spec_version == version
    assert record.policy is policy
    assert record.status == {"stage": "Shadow"}
    assert record.resource_version == "2"


def test_a_complete_list_syncs_and_counts_what_was_missed(store):
    async def list_all():
        store.on_event("ADDED", body("newer", version=50))  # arrives while the list is under way
        return [body("kept"), body("missed")]

    assert not store.synced
    store.on_event(None, body("kept"))
    store.on_event(None, body("gone"))
    assert asyncio.run(store.sync(list_all)) == 2
    assert keys(store) == [("prod", "kept"), ("prod", "missed"), ("prod", "newer")]
    assert store.synced


def test_a_policy_that_is_deleted_while_the_list_is_under_way_does_not_come_back(store):
    async def list_all():
        store.on_event("DELETED", body(version=2))
        return [body()]

    store.on_event(None, body())
    asyncio.run(store.sync(list_all))
    assert len(store) == 0


def test_a_list_that_fails_changes_nothing(store):
    async def list_all():
        raise OSError("no route")

    store.on_event(None, body())
    with pytest.raises(OSError, match="no route"):
        asyncio.run(store.sync(list_all))
    assert len(store) == 1
    assert not store.synced


def test_of_policies_with_one_target_the_oldest_keeps_it(store):
    store.on_event(None, body("a", target="shop", created="2026-01-02T00:00:00Z"))
    store.on_event(None, body("b", target="shop", created="2026-01-01T00:00:00Z"))
    store.on_event(None, body("c", target="shop", created="2026-01-03T00:00:00Z"))
    store.on_event(None, body("d", target="shop", namespace="test"))
    store.on_event(None, body("e", target="other"))
    store.on_event(None, body("f", target="shop", created="2025-01-01T00:00:00Z", maxReplicas=0))
    assert store.duplicates() == {("prod", "a"): ("prod", "b"), ("prod", "c"): ("prod", "b")}


@given(st.permutations(["a", "b", "c", "d"]))
def test_iteration_does_not_depend_on_the_order_of_events(names):
    store = PolicyStore()
    for name in names:
        store.on_event(None, body(name))
    assert [record.key[1] for record in store] == ["a", "b", "c", "d"]


def test_ten_thousand_policies_are_cheap(store):
    started = time.process_time()
    for i in range(10_000):
        store.on_event(None, body(f"shop-{i:05}", uid=str(i)))
    assert len(list(store)) == 10_000
    assert store.duplicates() == {}
    assert time.process_time() - started < 15
