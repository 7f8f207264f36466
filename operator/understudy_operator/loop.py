"""Time: one cohort per tick length, each on its own beat. A tick that overruns skips beats, it never queues them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable

from understudy_operator.cohort import Cohort, interval_of
from understudy_operator.metrics import Metrics
from understudy_operator.store import PolicyStore
from understudy_operator.tick import Finished, Tick

log = logging.getLogger(__name__)

LOOK_FOR_INTERVALS_S = 0.5


class Loop:
    """Runs the ticks of all cohorts until it is stopped.

    Attributes:
        last_tick_s: monotonic time at which the last tick of any cohort ended; now, while there is none.
        longest_interval_s: of the cohorts that exist.
    """

    def __init__(
        self,
        store: PolicyStore,
        tick: Tick,
        record: Callable[[Finished], Awaitable[None]],
        tend: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """Wire the loop.

        Args:
            store: tells which intervals exist.
            tick: what runs on every beat.
            record: is given every finished tick.
            tend: called now and then where there is nothing to tick for.
            metrics: told of durations, overruns and failures.
        """
        self._store, self._tick, self._metrics = store, tick, metrics
        self._record, self._tend = record, tend
        self._stopping = asyncio.Event()
        self._beats: dict[float, asyncio.Task[None]] = {}
        self.last_tick_s = time.monotonic()
        self.longest_interval_s = LOOK_FOR_INTERVALS_S

    async def run(self) -> None:
        """Tick until `stop` is called; then every tick under way is finished."""
        intervals: set[float] = set()
        intervals_of = -1
        while not self._stopping.is_set():
            if intervals_of != self._store.spec_version:
                intervals_of = self._store.spec_version
                intervals = {
                    interval for record in self._store if (interval := interval_of(record)) is not None
                }
            self._beats = {interval: task for interval, task in self._beats.items() if not task.done()}
            for interval in intervals - self._beats.keys():
                self._beats[interval] = asyncio.create_task(self._beat(Cohort(interval)))
            self.longest_interval_s = max(intervals, default=LOOK_FOR_INTERVALS_S)
            if not intervals:
                self.last_tick_s = time.monotonic()
                self._tend()
            await self._pause(LOOK_FOR_INTERVALS_S)
        await asyncio.gather(*self._beats.values())

    def stop(self) -> None:
        """Begin no further tick."""
        self._stopping.set()

    async def _beat(self, cohort: Cohort) -> None:
        """The ticks of one cohort, as long as it has policies."""
        due = time.monotonic()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                finished = await self._tick.run(cohort, time.time())
                await self._record(finished)
            except (
                Exception
            ):  # the loop survives whatever a tick meets; the next one starts from what is true then
                log.exception("a tick failed; replicas stay as they are until the next one")
                self._metrics.tick_errors.labels("tick").inc()
            self.last_tick_s = time.monotonic()
            self._metrics.tick_seconds.observe(self.last_tick_s - began)
            if not cohort.records:
                self._metrics.hide(cohort.tick_s)
                return
            due += cohort.tick_s
            late = self.last_tick_s - due
            if late > 0:
                skipped = math.ceil(late / cohort.tick_s)
                due += skipped * cohort.tick_s
                self._metrics.overruns.inc(skipped)
                log.warning("a tick overran its interval of %g s, %d skipped", cohort.tick_s, skipped)
            await self._pause(due - time.monotonic())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), max(seconds, 0.0))
