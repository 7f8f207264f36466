"""Random numbers that are a function of a seed and a counter, the same in every array library and on every device.

A generator with a state of its own would tie the rows of a batch to each other and a result to a library. Here each
draw is a hash of the row's seed and the number of the draw: a row has the same luck whatever runs beside it, two
policies can be compared on the very same luck, and drawing fuses with the arithmetic around it.
"""

from __future__ import annotations

import math
from typing import Any

from understudy_policy.rows import Array, device, namespace


def uniforms(seeds: Array, counter: Array | int, count: int) -> list[Array]:
    """Draw uniformly from (0, 1).

    Args:
        seeds: `[N]` int32, any values; equal seeds give equal draws.
        counter: number of the draw (of the tick, say), 0 to 2^26; an int or an array of one int32.
        count: how many to draw, at most 32.

    Returns:
        `count` arrays `[N]` float32, never 0 and never 1.
    """
    xp = namespace(seeds)
    stream = xp.arange(count, dtype=xp.int32, device=device(seeds)) + counter * 32
    # Counters are mixed before they meet the seeds: two rows never run through the same numbers one behind the other.
    words = _mix(_mix(stream) + 0x3C6EF372)
    own = _mix(seeds)
    return [_unit(xp, _mix(own ^ words[k])) for k in range(count)]


def normals(seeds: Array, counter: Array | int, count: int, skip: int = 0) -> list[Array]:
    """Draw standard normals (Box and Muller's).

    Args:
        seeds, counter: as in `uniforms`, whose draws these are made from.
        count: how many.
        skip: uniform draws of the same counter that are used for something else.

    Returns:
        `count` arrays `[N]` float32.
    """
    xp = namespace(seeds)
    pairs = uniforms(seeds, counter, skip + count + count % 2)[skip:]
    drawn = []
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        radius, angle = xp.sqrt(-2.0 * xp.log(first)), 2.0 * math.pi * second
        drawn += [radius * xp.cos(angle), radius * xp.sin(angle)]
    return drawn[:count]


def _mix(x: Array) -> Array:
    """A permutation of the 32-bit numbers that leaves no pattern (lowbias32, of the Hash Prospector project)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x2CA5D269  # 0xD35A2D97 as a signed number
    return x ^ ((x >> 15) & 0x1FFFF)


def _unit(xp: Any, x: Array) -> Array:
    """The middle of one of 2^23 equal parts of (0, 1); all of them are float32 numbers."""
    return (xp.astype((x >> 9) & 0x7FFFFF, xp.float32) + 0.5) * 2.0**-23
