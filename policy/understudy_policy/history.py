"""What every workload has been through: ring buffers over ticks, and five-minute means over a week.

All rows tick together, so time and head are shared, a write touches one column, and a window is a slice. The rings
are the one thing in this package that is updated in place: copying them would cost more than the whole decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from understudy_policy.references.behavior import NO_RECOMMENDATION
from understudy_policy.rows import Array, is_unknown, namespace, shared

TICKS = 240
"""Length of the tick ring: one hour of 15 s ticks."""

BLOCK_TICKS = 20
"""Ticks in one coarse mean: five minutes of 15 s ticks."""

BLOCKS_PER_DAY = 288

BLOCKS = 7 * BLOCKS_PER_DAY + 1
"""Length of the coarse ring: it ends with the block of this time a week ago, since nothing older is looked at."""


class Past(Protocol):
    """What features ask of a past; a learner keeps less of it than `History` does."""

    def window(self, ticks: int) -> Array:
        """The last `ticks` request rates, oldest first, `[N, ticks]`, NaN where unknown."""

    def block_ago(self, blocks: int) -> Array:
        """The coarse mean that was complete `blocks` blocks before the newest one, `[N]`; NaN if unknown."""


@dataclass
class History:
    """Rings of the last `K = TICKS` ticks and coarse means of the last `B = BLOCKS` blocks.

    Attributes:
        rate: `[N, 2K]` float32 requests per second, NaN where unknown. Every value is written twice, K columns
            apart, so that any window of up to K ticks is one contiguous slice.
        reference_recommendation: `[N, K]` int32, what the reference wanted before stabilisation.
        recommendation: `[N, K]` int32, what was wanted before stabilisation, all things considered.
        change: `[N, K]` int32, replicas added or removed after the decision of that tick; 0 again once the HPA has
            overwritten the event, see `references.behavior.overwrite`.
        place: `[N, K]` int16, where the HPA keeps that change.
        places: `[N, 2]` int16, how many changes it keeps per direction, up first.
        blocks: `[N, B]` float32 means of the request rate, NaN where unknown.
        block_sum, block_count: `[N]` float32, the block being filled.
        time_s: `[K]` float64 time of each column, −inf where none.
        head: column of the newest tick.
        ticks: ticks written since the start.
        block_head: column of the newest complete block.
    """

    rate: Array
    reference_recommendation: Array
    recommendation: Array
    change: Array
    place: Array
    places: Array
    blocks: Array
    block_sum: Array
    block_count: Array
    time_s: Array = shared()
    head: int = shared(default=-1)
    ticks: int = shared(default=0)
    block_head: int = shared(default=-1)

    def advance(self, now_s: float, rate: Array) -> None:
        """Open the column of a new tick.

        Args:
            now_s: time of the tick, seconds; must not run backwards.
            rate: `[N]` requests per second, NaN where unknown.
        """
        xp = namespace(self.rate)
        self.head = (self.head + 1) % TICKS
        self.ticks += 1
        self.time_s[self.head] = now_s
        value = xp.astype(rate, self.rate.dtype)
        self.rate[:, self.head] = value
        self.rate[:, self.head + TICKS] = value
        for ring in (self.reference_recommendation, self.recommendation):
            ring[:, self.head] = NO_RECOMMENDATION
        self.change[:, self.head] = 0
        self._fill_block(xp, value)

    def join(self, new: Array, replicas: Array) -> None:
        """Let rows that just joined start from the replicas that they found, as if they had just been recommended.

        That is what keeps a restart from scaling in: the stabilisation window has to pass first.

        Args:
            new: `[N]` bool.
            replicas: `[N]` int64.
        """
        xp, column = namespace(new), (self.head - 1) % TICKS
        for ring in (self.recommendation, self.reference_recommendation):
            ring[:, column] = xp.where(new, xp.astype(replicas, ring.dtype), ring[:, column])

    def book(self, recommendation: Array, reference_recommendation: Array, known: Array) -> None:
        """Write down what this tick recommends, `[N]` int64; where it only held, knowing nothing, that is nothing."""
        xp = namespace(known)
        nothing = xp.full_like(recommendation, NO_RECOMMENDATION)
        for ring, wanted in (
            (self.recommendation, recommendation),
            (self.reference_recommendation, reference_recommendation),
        ):
            ring[:, self.head] = xp.astype(xp.where(known, wanted, nothing), ring.dtype)

    def _fill_block(self, xp: Any, value: Array) -> None:
        known = ~is_unknown(value)
        self.block_sum += xp.where(known, value, xp.zeros_like(value))
        self.block_count += xp.astype(known, value.dtype)
        if self.ticks % BLOCK_TICKS:
            return
        self.block_head = (self.block_head + 1) % BLOCKS
        nothing = self.block_count == 0
        mean = self.block_sum / xp.where(nothing, xp.ones_like(value), self.block_count)
        self.blocks[:, self.block_head] = xp.where(nothing, xp.full_like(value, xp.nan), mean)
        self.block_sum = xp.zeros_like(self.block_sum)
        self.block_count = xp.zeros_like(self.block_count)

    def window(self, ticks: int) -> Array:
        """The last `ticks` request rates, oldest first, `[N, ticks]`: a view, not a copy."""
        end = self.head + TICKS + 1
        return self.rate[:, end - ticks : end]

    def block_ago(self, blocks: int) -> Array:
        """The coarse mean that was complete `blocks` blocks before the newest one, `[N]`; NaN if unknown."""
        return self.blocks[:, (self.block_head - blocks) % BLOCKS]

    def backfill(self, rows: Array, rate: Array) -> None:
        """Give rows a past that was read from elsewhere; what they have seen themselves is kept.

        Args:
            rows: `[M]` integer row indices.
            rate: `[M, k]` requests per second of the k ticks before the newest one, oldest first, k < K.
        """
        for age in range(1, rate.shape[1] + 1):
            column = (self.head - age) % TICKS
            known = self.rate[rows, column]
            value = np.where(np.isnan(known), rate[:, -age], known).astype(self.rate.dtype)
            self.rate[rows, column] = value
            self.rate[rows, column + TICKS] = value


def empty(n: int) -> History:
    """A past of nothing for n rows (NumPy)."""
    return History(
        rate=np.full((n, 2 * TICKS), np.nan, np.float32),
        reference_recommendation=np.full((n, TICKS), NO_RECOMMENDATION, np.int32),
        recommendation=np.full((n, TICKS), NO_RECOMMENDATION, np.int32),
        change=np.zeros((n, TICKS), np.int32),
        place=np.zeros((n, TICKS), np.int16),
        places=np.zeros((n, 2), np.int16),
        blocks=np.full((n, BLOCKS), np.nan, np.float32),
        block_sum=np.zeros(n, np.float32),
        block_count=np.zeros(n, np.float32),
        time_s=np.full(TICKS, -np.inf),
    )


@dataclass(frozen=True)
class WindowStats:
    """Statistics of one window of the request rate; NaN ticks are left out.

    Attributes:
        mean, std, largest: `[N]` requests per second; NaN where the whole window is unknown.
    """

    mean: Array
    std: Array
    largest: Array


def window_stats(history: Past, ticks: int) -> WindowStats:
    """Mean, standard deviation and maximum of the last `ticks` rates."""
    window = history.window(ticks)
    xp = namespace(window)
    known = ~is_unknown(window)
    values = xp.where(known, window, 0.0)
    count = xp.sum(xp.astype(known, window.dtype), axis=1)
    nothing = count == 0
    divisor = xp.where(nothing, xp.ones_like(count), count)
    mean = xp.sum(values, axis=1) / divisor
    largest = xp.max(values, axis=1)
    # Under the old name, so that no more than two arrays of this size exist at once.
    values = values - mean[:, None]
    values = xp.where(known, values, 0.0)
    variance = xp.sum(values * values, axis=1) / divisor
    unknown = xp.full_like(mean, xp.nan)
    return WindowStats(
        mean=xp.where(nothing, unknown, mean),
        std=xp.where(nothing, unknown, xp.sqrt(variance)),
        largest=xp.where(nothing, unknown, largest),
    )
