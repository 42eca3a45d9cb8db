"""Time stretching of sound without a change of pitch: WSOLA by whole pitch periods.

One period is removed or repeated, cross-faded over its own length: pitch-synchronous overlap-add (Verhelst
and Roelands, 1993). Samples are 48 kHz mono.
"""

from __future__ import annotations

import functools

import numpy as np

from cuda_kernels.arrays import F32

MIN_SAMPLES = 120  # 2.5 ms, 400 Hz
MAX_SAMPLES = 720  # 15 ms, 67 Hz
COMPARED_SAMPLES = 480  # 10 ms on each side decide how alike two places are
SEAM_SAMPLES = 240  # 5 ms, for joins of sounds that have nothing to do with one another

_QUIET_RMS = 10 ** (-50 / 20)
_ABOUT_AS_ALIKE = 0.05


@functools.cache
def _ramp(samples: int) -> F32:
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)).astype(np.float32)
    ramp.flags.writeable = False
    return ramp


def cross_fade(old: F32, new: F32) -> F32:
    """Returns (n,) float32: `old` (n,) cross-faded to `new` (n,)."""
    return np.asarray(old + (new - old) * _ramp(len(new)), np.float32)


def is_quiet(samples: F32) -> bool:
    """Returns whether the loudness is below -50 dBFS, where a cut is inaudible."""
    return bool(np.dot(samples, samples) <= len(samples) * _QUIET_RMS**2)


def find_period(samples: F32, *, longest: int = MAX_SAMPLES) -> tuple[int, float]:
    """Returns the pitch period in samples, and the normalised correlation at that lag, up to 1.

    Of periods about as good the longest is taken: fewer joins for the same time.

    Args:
        samples: (n,) with n >= longest + 480.
        longest: at least 120; nothing shorter than that counts as a period.
    """
    if longest < MIN_SAMPLES or len(samples) < longest + COMPARED_SAMPLES:
        raise ValueError(
            f"period: expected longest >= {MIN_SAMPLES} and {COMPARED_SAMPLES} samples more than that, "
            f"got longest {longest} and {len(samples)} samples"
        )
    span = np.asarray(samples[: longest + COMPARED_SAMPLES], np.float64)
    products = np.correlate(span, span[:COMPARED_SAMPLES], "valid")  # (longest + 1,)
    sums = np.concatenate([[0.0], np.cumsum(span * span)])
    energies = np.maximum(sums[COMPARED_SAMPLES:] - sums[:-COMPARED_SAMPLES], 0.0)  # (longest + 1,)
    alike = products / np.sqrt(energies[0] * energies + 1e-12)
    alike[:MIN_SAMPLES] = -1.0
    best = int(np.argmax(alike))
    walled = np.concatenate([alike, [-1.0]])  # what is still rising at the end counts as a peak
    peaks = 1 + np.flatnonzero(
        (walled[1:-1] >= walled[:-2])
        & (walled[1:-1] >= walled[2:])
        & (walled[1:-1] >= alike[best] - _ABOUT_AS_ALIKE)
    )
    period = int(peaks[-1]) if len(peaks) else best
    return period, float(alike[period])


def shorten(samples: F32, period: int) -> F32:
    """Returns (n - period,): the first two periods of (n,) become one. n >= 2 period."""
    first, second = samples[:period], samples[period : 2 * period]
    return np.concatenate([cross_fade(first, second), samples[2 * period :]])


def lengthen(samples: F32, period: int) -> F32:
    """Returns (n + period,): the first two periods of (n,) become three. n >= 2 period."""
    first, second = samples[:period], samples[period : 2 * period]
    return np.concatenate([first, cross_fade(second, first), samples[period:]])
