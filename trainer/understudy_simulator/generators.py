"""Synthetic loads: shapes that services have, drawn at random, so that no learner knows one trace by heart.

Every family returns many different members at once, with mean 1: scale them by whatever the service is worth.
A *mixture* multiplies several shapes, as reality does, and is what training should mostly see.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]
DAY_S, WEEK_S = 86400.0, 7 * 86400.0
LEAST = 0.02
"""No shape falls below this share of its mean: a rate of exactly 0 would make ratios meaningless."""


def generate(
    family: str, duration_s: float, step_s: float, rng: np.random.Generator, count: int = 1
) -> Rates:
    """Draw `count` random members of a family of loads.

    Args:
        family: one of `FAMILIES`.
        duration_s: time that each covers.
        step_s: length of a sample.
        rng: source of the draws; the same state gives the same loads.
        count: how many.

    Returns:
        `[count, T]` rates with mean 1 each.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; choose one of {', '.join(FAMILIES)}.")
    samples = round(duration_s / step_s)
    if samples < 2:
        raise ValueError(f"duration_s is {duration_s:g}; it must hold at least two steps of {step_s:g} s.")
    rates = FAMILIES[family](step_s * np.arange(samples, dtype=np.float64), rng, count)
    rates = rates / rates.mean(axis=1, keepdims=True)
    rates = np.maximum(rates, LEAST)
    return rates / rates.mean(axis=1, keepdims=True)


def _uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Rates:
    return rng.uniform(low, high, (count, 1))


def _log_uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Rates:
    return np.exp(rng.uniform(np.log(low), np.log(high), (count, 1)))


def _diurnal(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Day and night with a second harmonic and quieter (or busier) week-ends, from any moment of the week."""
    clock_s = time_s[None, :] + _uniform(rng, 0.0, WEEK_S, count)
    angle = 2.0 * np.pi * clock_s / DAY_S
    depth = _uniform(rng, 0.2, 0.9, count)
    shape = np.sin(angle) + _uniform(rng, 0.0, 0.5, count) * np.sin(
        2.0 * angle + _uniform(rng, 0.0, 6.3, count)
    )
    weekend = (clock_s % WEEK_S) >= 5 * DAY_S
    return np.exp(depth * shape) * np.where(weekend, _uniform(rng, 0.4, 1.2, count), 1.0)


def _trend(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Growth or decline by up to a factor of six over the time covered."""
    return np.exp(rng.uniform(-1.8, 1.8, (count, 1)) * time_s[None, :] / time_s[-1])


def _shift(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Level shifts: a release, a big customer, a failed-over region. Sudden or within minutes."""
    log_rate = np.zeros((count, len(time_s)))
    for k in range(5):
        size = rng.normal(0.0, 0.7, (count, 1)) * (rng.random((count, 1)) < 1.0 / (1.0 + 0.5 * k))
        at_s = _uniform(rng, 0.05, 0.95, count) * time_s[-1]
        log_rate += size * np.clip((time_s - at_s) / _log_uniform(rng, 1.0, 600.0, count), 0.0, 1.0)
    return np.exp(log_rate)


def _flash(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Flash crowds: a rise within seconds to minutes to several times the level, then a slow decay."""
    rates = np.ones((count, len(time_s)))
    longest_s = 0.25 * time_s[-1]
    for k in range(4):
        present = rng.random((count, 1)) < (1.0 if k == 0 else 0.5)
        at_s = _uniform(rng, 0.1, 0.8, count) * time_s[-1]
        rise_s = np.minimum(_log_uniform(rng, 5.0, 900.0, count), 0.5 * longest_s)
        decay_s = np.minimum(rise_s * _log_uniform(rng, 1.0, 8.0, count) + 60.0, longest_s)
        since_s = time_s - at_s
        up = np.clip(since_s / rise_s, 0.0, 1.0)
        down = np.exp(-np.maximum(since_s - rise_s, 0.0) / decay_s)
        rates += present * _log_uniform(rng, 0.5, 6.0, count) * up * down
    return rates


def _spikes(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Spikes that recur: schedules at full hours and odd periods, each with its own width and height."""
    rates = np.ones((count, len(time_s)))
    usual_s = np.array([60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0])
    for _ in range(2):
        odd_s = _log_uniform(rng, 90.0, 7200.0, count)
        period_s = np.where(rng.random((count, 1)) < 0.5, rng.choice(usual_s, (count, 1)), odd_s)
        width_s = np.maximum(period_s * _uniform(rng, 0.02, 0.25, count), 10.0)
        phase_s = (time_s[None, :] + period_s * rng.random((count, 1))) % period_s
        rates += _log_uniform(rng, 0.2, 4.0, count) * np.exp(-phase_s / width_s)
    return rates


def _square(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """On and off: batch windows and business hours, with uneven lengths."""
    period_s = np.minimum(_log_uniform(rng, 240.0, DAY_S, count), time_s[-1])
    wander = 0.15 * _noise_path(rng, count, len(time_s), 3.0)
    phase = (time_s[None, :] / period_s + rng.random((count, 1)) + wander) % 1.0
    return np.where(phase < _uniform(rng, 0.15, 0.85, count), _log_uniform(rng, 1.5, 8.0, count), 1.0)


def _noise(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Slow wandering, fast jitter, and short bursts with a heavy tail."""
    samples = len(time_s)
    slow = _uniform(rng, 0.05, 0.5, count) * _noise_path(
        rng, count, samples, rng.uniform(1.2, 2.2, (count, 1))
    )
    fast = _uniform(rng, 0.0, 0.25, count) * _noise_path(
        rng, count, samples, rng.uniform(0.2, 1.0, (count, 1))
    )
    step_s = time_s[1] - time_s[0]
    starts = rng.random((count, samples)) < np.minimum(
        _log_uniform(rng, 0.2, 6.0, count) / 3600.0 * step_s, 0.2
    )
    height = np.minimum(rng.pareto(2.0, (count, samples)), 8.0) * _uniform(rng, 0.0, 0.8, count)
    lasts = max(1, round(float(rng.uniform(20.0, 240.0)) / step_s))
    bursts = np.cumsum(starts * height, axis=1)
    bursts[:, lasts:] -= bursts[:, :-lasts].copy()
    return np.exp(slow + fast) + np.maximum(bursts, 0.0)


def _drift(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Wandering over minutes to hours with a little jitter and no event at all: most services at most times."""
    samples, step_s = len(time_s), time_s[1] - time_s[0]
    frequency_hz = np.fft.rfftfreq(samples, step_s)
    span_s = _log_uniform(rng, 900.0, 4 * 3600.0, count)
    # Faster than its own span a path hardly moves, slower than that it moves freely.
    amplitude = 1.0 / (1.0 + (frequency_hz * span_s) ** 2)
    amplitude[:, 0] = 0.0
    slow = _path(rng, count, samples, amplitude)
    fast = _noise_path(rng, count, samples, rng.uniform(0.0, 0.8, (count, 1)))
    return np.exp(_log_uniform(rng, 0.03, 0.5, count) * slow + _log_uniform(rng, 0.002, 0.06, count) * fast)


def _noise_path(rng: np.random.Generator, count: int, samples: int, exponent: float | Rates) -> Rates:
    """Random paths with a power-law spectrum (1/f^exponent), mean 0 and standard deviation 1."""
    frequency = np.arange(samples // 2 + 1, dtype=np.float64)
    frequency[0] = np.inf
    return _path(rng, count, samples, frequency ** (-0.5 * np.asarray(exponent)))


def _path(rng: np.random.Generator, count: int, samples: int, amplitude: Rates) -> Rates:
    """Random paths `[count, samples]` with these amplitudes of their waves, mean 0 and standard deviation 1."""
    shape = (count, amplitude.shape[-1])
    waves = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    paths = np.fft.irfft(waves * amplitude, n=samples, axis=1)
    return paths / np.maximum(paths.std(axis=1, keepdims=True), 1e-12)


def _mixture(time_s: Rates, rng: np.random.Generator, count: int) -> Rates:
    """Two to four of the shapes multiplied, each softened at random."""
    shapes = (_diurnal, _trend, _shift, _flash, _spikes, _square, _noise, _drift)
    share = (0.7, 0.2, 0.3, 0.3, 0.3, 0.15, 0.5, 0.5)
    log_rate = np.zeros((count, len(time_s)))
    for shape, probability in zip(shapes, share, strict=True):
        strength = _uniform(rng, 0.3, 1.0, count) * (rng.random((count, 1)) < probability)
        part = shape(time_s, rng, count)
        log_rate += strength * np.log(part / part.mean(axis=1, keepdims=True))
    return np.exp(np.clip(log_rate, -4.0, 3.5))


FAMILIES: dict[str, Callable[[Rates, np.random.Generator, int], Rates]] = {
    "diurnal": _diurnal,
    "trend": _trend,
    "shift": _shift,
    "flash": _flash,
    "spikes": _spikes,
    "square": _square,
    "noise": _noise,
    "drift": _drift,
    "mixture": _mixture,
}
"""Name of every family and the function that draws its members."""
