"""Arrivals drawn around a rate: a curve says what to expect, but users come in clumps.

A smooth curve is trivial to scale for; what an autoscaler fights is the scatter on top of it. Counts are
drawn as Gamma-Poisson (negative binomial), whose variance is the mean times the index of dispersion: 1 is
Poisson, 2 is a usual web service, 8 is bursty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from understudy_policy.rows import Array, maximum, namespace


def draw_arrivals(
    rng: np.random.Generator, expected: ArrayLike, dispersion: ArrayLike
) -> NDArray[np.float64]:
    """Draw the requests that arrive in a sub-step.

    Args:
        rng: source of the draws.
        expected: expected requests per sub-step, any shape (say `[N, sub_steps]`).
        dispersion: variance over mean, at least 1, broadcast against `expected`.

    Returns:
        Whole numbers as float64, in the broadcast shape.
    """
    expected, clumping = np.broadcast_arrays(np.asarray(expected, float), np.asarray(dispersion, float) - 1.0)
    clumped = (clumping > 0) & (expected > 0)
    scale = np.where(clumped, clumping, 1.0)
    rate = np.where(clumped, rng.gamma(np.where(clumped, expected / scale, 1.0)) * scale, expected)
    return rng.poisson(rate).astype(np.float64)


def arrivals_from_normals(expected: Array, dispersion: Array, normals: Array) -> Array:
    """The same distribution from given standard normals, in any array library: for learners on a device.

    A gamma variable of the same mean and variance stands for the count (Wilson and Hilferty's cube); it is
    not whole, which the fluid queue does not mind. The mean is exact to 1 % from half an expected clump on.

    Args:
        expected: expected requests per sub-step.
        dispersion: variance over mean, broadcast against `expected`.
        normals: standard normal draws, broadcast against `expected`.
    """
    xp = namespace(expected, normals)
    ninth = dispersion / (9.0 * maximum(xp, expected, 1e-9))
    cube = maximum(xp, 1.0 - ninth + normals * ninth**0.5, 0.0)
    return expected * cube**3
