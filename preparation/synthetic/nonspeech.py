"""Sounds that nobody says, at which a mouth stays shut: silence, rooms, hum, tones, breath, keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cuda_kernels.arrays import F64, I16
from models.time_base import SAMPLE_RATE_HZ


def draw_sound(kind: str, samples: int, rng: np.random.Generator) -> I16:
    """Returns a sound (samples,) of one of `KINDS`, 16 kHz.

    Raises:
        KeyError: there is no such kind.
    """
    sound = _MAKERS[kind](samples, rng)
    peak = float(np.abs(sound).max()) or 1.0
    loudest = 10 ** (rng.uniform(-34, -8) / 20)
    return np.rint(sound / peak * loudest * 32_767 * (kind != "silence")).astype(np.int16)


def _silence(samples: int, rng: np.random.Generator) -> F64:
    return np.zeros(samples)


def _coloured(samples: int, rng: np.random.Generator, slope: float) -> F64:
    """Returns noise whose power falls by `slope` decades a decade."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= (np.arange(len(spectrum)) + 20.0) ** (-slope / 2)
    return np.fft.irfft(spectrum, samples)


def _noise(samples: int, rng: np.random.Generator) -> F64:
    """Returns a room: coloured noise that swells and falls a little."""
    time_s = np.arange(samples) / SAMPLE_RATE_HZ
    swell = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.05, 0.4) * time_s + rng.uniform(0, 6))
    return _coloured(samples, rng, rng.uniform(0.2, 2.0)) * swell


def _hum(samples: int, rng: np.random.Generator) -> F64:
    time_s = np.arange(samples) / SAMPLE_RATE_HZ
    mains_hz = rng.choice([50.0, 60.0])
    tones = [
        rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * k * mains_hz * time_s + rng.uniform(0, 6))
        for k in range(1, 9)
    ]
    sound: F64 = np.sum(tones, axis=0) + 0.3 * _coloured(samples, rng, 1.0) / 30
    return sound


def _music(samples: int, rng: np.random.Generator) -> F64:
    """Returns notes of a few partials that ring out, one after another and together."""
    sound = np.zeros(samples)
    at = 0
    while at < samples:
        length = min(samples - at, int(rng.uniform(0.15, 0.9) * SAMPLE_RATE_HZ))
        time_s = np.arange(length) / SAMPLE_RATE_HZ
        for _ in range(int(rng.integers(1, 4))):
            note_hz = 110 * 2 ** (int(rng.integers(0, 36)) / 12)
            ring = np.exp(-time_s * rng.uniform(1, 6)) * np.minimum(time_s / 0.01, 1)
            sound[at : at + length] += ring * sum(
                rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * note_hz * time_s) for k in range(1, 6)
            )
        at += int(length * rng.uniform(0.5, 1.0)) + 1
    return sound


def _breath(samples: int, rng: np.random.Generator) -> F64:
    """Returns breathing: soft band-limited noise that comes and goes."""
    time_s = np.arange(samples) / SAMPLE_RATE_HZ
    rate_hz = rng.uniform(0.25, 0.5)
    swell = np.maximum(0, np.sin(2 * np.pi * rate_hz * time_s + rng.uniform(0, 6))) ** 2
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    middle_hz = rng.uniform(700, 2500)
    sound: F64 = np.fft.irfft(spectrum * np.exp(-((np.log((hz + 50) / middle_hz)) ** 2)), samples) * swell
    return sound


def _clicks(samples: int, rng: np.random.Generator) -> F64:
    """Returns typing: short bursts over a quiet room."""
    sound = 0.01 * _noise(samples, rng)
    for at in np.cumsum(rng.exponential(0.18 * SAMPLE_RATE_HZ, size=samples // 500)).astype(int):
        length = min(int(rng.uniform(0.004, 0.03) * SAMPLE_RATE_HZ), samples - at)
        if length <= 0:
            break
        decay = np.exp(-np.arange(length) / (0.25 * length))
        sound[at : at + length] += rng.uniform(0.3, 1) * decay * rng.standard_normal(length)
    return sound


_MAKERS: Mapping[str, Callable[[int, np.random.Generator], F64]] = {
    "silence": _silence,
    "noise": _noise,
    "hum": _hum,
    "music": _music,
    "breath": _breath,
    "clicks": _clicks,
}
KINDS = tuple(_MAKERS)
