"""What a voice says: sound, and the phones in it with their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cuda_kernels.arrays import F64, I16
from models.time_base import SAMPLE_RATE_HZ

from ..sounds import Phone

_LOUDEST = 32_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Utterance:
    """Speech of one voice with the times of its phones."""

    pcm: I16  # (samples,), 16 kHz mono
    phones: tuple[Phone, ...]  # from 0 to the sound's end without a gap; silence is `pau`
    voice: str
    language: str  # BCP 47
    text: str

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return len(self.pcm) / SAMPLE_RATE_HZ


def to_pcm(sound: F64, rate_hz: float) -> I16:
    """Returns sound (n,) in [-1, 1] at any rate as 16 kHz int16; nothing is moved in time.

    The spectrum is cut or padded, so the ends of a sound that does not begin and end in silence ring.
    """
    samples = round(len(sound) * SAMPLE_RATE_HZ / rate_hz)
    if samples == 0:
        return np.zeros(0, np.int16)
    if samples != len(sound):
        pad = 2048  # the transform is circular
        padded = np.concatenate([sound, np.zeros(pad)])
        size = round(len(padded) * SAMPLE_RATE_HZ / rate_hz)
        spectrum = np.fft.rfft(padded)
        bins = size // 2 + 1
        spectrum = np.pad(spectrum, (0, max(0, bins - len(spectrum))))[:bins]
        sound = np.fft.irfft(spectrum, size)[:samples] * (size / len(padded))
    peak = float(np.abs(sound).max()) * 32_768
    gain = 32_768 * min(1.0, _LOUDEST / peak) if peak else 0.0
    return np.rint(sound * gain).astype(np.int16)
