"""Decimation from 48 kHz to 16 kHz, block by block, by a linear-phase FIR filter."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32

FACTOR = 3
DELAY_SAMPLES = 72  # at 48 kHz, 1.5 ms: sample i that comes out is sample 3 i - 72 of what went in
_TAPS = 2 * DELAY_SAMPLES + 1
_CUTOFF = 8_000 / 48_000
_KAISER_BETA = 7.0  # 70 dB; with 145 taps the transition band is 1.45 kHz wide


def low_pass() -> F32:
    """Returns (145,) float32 FIR taps: linear phase, passband to 7.2 kHz, stopband from 8.8 kHz."""
    at = np.arange(_TAPS) - DELAY_SAMPLES
    taps = np.sinc(2 * _CUTOFF * at) * np.kaiser(_TAPS, _KAISER_BETA)
    return np.asarray(taps / taps.sum(), np.float32)


class Decimator:
    """Decimates a stream from 48 kHz to 16 kHz; block boundaries change nothing."""

    def __init__(self) -> None:
        self._low_pass = low_pass()
        self._before = np.zeros(_TAPS - 1, np.float32)

    def step(self, samples: F32) -> F32:
        """Returns (n / 3,) float32 for the next (n,); n is a multiple of 3, 960 for a tick."""
        if samples.ndim != 1 or len(samples) % FACTOR:
            raise ValueError(f"decimation: expected (n,) samples, n a multiple of 3, got {samples.shape}")
        span = np.concatenate([self._before, samples])
        self._before = span[len(samples) :]
        if not len(samples):
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(span, _TAPS)[::FACTOR]  # (n / 3, 145)
        return np.asarray(windows @ self._low_pass, np.float32)
