"""The policies as they are in the cluster, parsed once per change, so that a tick never reads the API server for them.

Watch events feed it and a periodic list corrects it. What cannot be understood becomes a sentence on its record:
one bad policy must not cost the others a tick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from understudy_policy.api import RLPolicy, refusal

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One policy of one uid: a policy that was deleted and created again is another record.

    Attributes:
        key: namespace and name.
        uid: of the object.
        generation: of the spec.
        resource_version: of the object as last seen.
        created: creationTimestamp, as written by the API server.
        owner: whom to call, also where the rest of the spec cannot be read.
        policy: as parsed; None where it is invalid, and then nothing is decided.
        status: as last seen.
        invalid: what is wrong with it, in one sentence.
    """

    key: Key
    uid: str
    generation: int
    resource_version: str
    created: str
    owner: str
    policy: RLPolicy | None
    status: Mapping[str, Any]
    invalid: str | None = None


class PolicyStore:
    """All policies, by namespace and name.

    Attributes:
        synced: whether a complete list has been seen.
        spec_version: changes whenever any spec, or the set of policies, does: arrays made of the specs hold until then.
    """

    def __init__(self) -> None:
        self.synced = False
        self.spec_version = 0
        self._records: dict[Key, PolicyRecord] = {}
        self._told: set[Key] = set()
        self._ordered: tuple[PolicyRecord, ...] | None = ()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[PolicyRecord]:
        """All records by namespace and name."""
        return iter(self.snapshot())

    def snapshot(self) -> tuple[PolicyRecord, ...]:
        """All records by namespace and name: the same tuple as long as nothing changes, be it a status."""
        if self._ordered is None:
            self._ordered = tuple(self._records[key] for key in sorted(self._records))
        return self._ordered

    def get(self, key: Key) -> PolicyRecord | None:
        """The record of a policy, None where there is none."""
        return self._records.get(key)

    def on_event(self, event_type: str | None, body: Mapping[str, Any]) -> None:
        """Take in one watch event.

        Args:
            event_type: `ADDED`, `MODIFIED`, `DELETED`, or None for an object of an initial list.
            body: the whole object.
        """
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        self._told.add(key)
        known = self._records.get(key)
        if event_type == "DELETED":
            # The old object's end may be told after its successor's beginning.
            if known is not None and known.uid == metadata["uid"]:
                self._remove(key)
        elif known is None or not _older(metadata["resourceVersion"], known.resource_version):
            self._put(_record(key, body, known))

    async def sync(self, list_all: Callable[[], Awaitable[Iterable[Mapping[str, Any]]]]) -> int:
        """Take in a complete list, which is also how missed events are found.

        Args:
            list_all: lists all policies; what it raises is passed on, and then nothing is changed.

        Returns:
            How many records had to be corrected.
        """
        before = set(self._records)
        self._told.clear()
        listed = {
            (body["metadata"]["namespace"], body["metadata"]["name"]): body for body in await list_all()
        }
        # What the watch brought while the list was under way, deletions included, is newer than the list.
        told, seen = set(self._told), self._versions()
        for key in listed.keys() - told:
            self.on_event(None, listed[key])
        for key in before - listed.keys() - told:
            self._remove(key)
        self.synced = True
        return len({key for key, _ in seen.items() ^ self._versions().items()})

    def duplicates(self) -> dict[Key, Key]:
        """Policies whose target another policy scales already: its key to that policy's, the oldest of them."""
        first: dict[tuple[str, str, str], PolicyRecord] = {}
        others: list[tuple[tuple[str, str, str], PolicyRecord]] = []
        for record in sorted(self, key=lambda record: (record.created, record.uid)):
            if record.policy is None:
                continue
            target = record.policy.spec.scale_target_ref
            scaled = (record.key[0], target.kind, target.name)
            if first.setdefault(scaled, record) is not record:
                others.append((scaled, record))
        return {record.key: first[scaled].key for scaled, record in others}

    def _versions(self) -> dict[Key, tuple[str, str]]:
        return {key: (record.uid, record.resource_version) for key, record in self._records.items()}

    def _put(self, record: PolicyRecord) -> None:
        known = self._records.get(record.key)
        same = known is not None and known.policy is record.policy and known.invalid == record.invalid
        self._records[record.key] = record
        self._ordered = None
        self.spec_version += not same

    def _remove(self, key: Key) -> None:
        del self._records[key]
        self._ordered = None
        self.spec_version += 1


def _record(key: Key, body: Mapping[str, Any], known: PolicyRecord | None) -> PolicyRecord:
    metadata, status = body["metadata"], body.get("status") or {}
    generation = metadata.get("generation", 0)
    if known is not None and (known.uid, known.generation) == (metadata["uid"], generation):
        # Every status that we write comes back as an event: the spec is parsed once per generation.
        return replace(known, resource_version=metadata["resourceVersion"], status=status)
    policy, invalid = None, None
    try:
        policy = RLPolicy.model_validate({**body, "status": None})
    except ValidationError as error:
        invalid = refusal(error)
    spec = body.get("spec")
    owner = spec.get("owner") if isinstance(spec, Mapping) else None
    return PolicyRecord(
        key=key,
        uid=metadata["uid"],
        generation=generation,
        resource_version=metadata["resourceVersion"],
        created=metadata.get("creationTimestamp", ""),
        owner=owner if isinstance(owner, str) else "unknown",
        policy=policy,
        status=status,
        invalid=invalid,
    )


def _older(resource_version: str, than: str) -> bool:
    """Whether one resourceVersion precedes another; versions that are not numbers cannot be compared."""
    return resource_version.isdigit() and than.isdigit() and int(resource_version) < int(than)
