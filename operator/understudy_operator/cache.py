"""What a watch tells and what a list tells, kept apart in time: the one is fast, the other complete, neither both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import kopf


@dataclass
class Cache:
    """Something that watch events feed and lists correct.

    Attributes:
        paths: of its lists.
        put: takes a body and whether it was deleted.
        known, drop, identity: of its entries.
    """

    paths: tuple[str, ...]
    put: Callable[[Mapping[str, Any], bool], None]
    known: Callable[[], set[Any]]
    drop: Callable[[Any], None]
    identity: Callable[[Mapping[str, Any]], Any]
    _told: set[Any] = field(default_factory=set)

    def on_event(self, event: kopf.RawEvent) -> None:
        """Take in a watch event."""
        body = event["object"]
        self._told.add(self.identity(body))
        self.put(body, event["type"] == "DELETED")

    async def refresh(self, list_all: Callable[[str], Awaitable[Iterable[Mapping[str, Any]]]]) -> None:
        """Correct the entries by complete lists; what `list_all` raises is passed on, and nothing is changed."""
        before = self.known()
        listed: dict[Any, Mapping[str, Any]] = {}
        self._told.clear()
        for path in self.paths:
            listed |= {self.identity(body): body for body in await list_all(path)}
        # What the watch brought while the lists were under way, deletions included, is newer than the lists.
        for identity in listed.keys() - self._told:
            self.put(listed[identity], False)
        for gone in before - listed.keys() - self._told:
            self.drop(gone)
