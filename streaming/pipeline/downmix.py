"""Downmix to mono: the mean of the channels, or the loudest one where they cancel.

A microphone wired the wrong way round, or a "widened" recording, has sides of opposite phase: their mean is
silence. What shows it is the coherence of the channels, the power of their sum over the sum of their powers:
the number of channels for the same sound in each, 1 for sounds that have nothing to do with one another (a
dead channel beside a live one, too), 0 where they cancel. It is measured where speech is, 300 Hz to 4 kHz, so
that neither hum nor an offset that the channels share hides it.
"""

from __future__ import annotations

import math

import numpy as np

from cuda_kernels.arrays import F32

MAX_CANCELLING_COHERENCE = 0.3  # below it the louder channel is taken: the mean is 8 dB or more below it
MIN_MIXING_COHERENCE = 0.6  # above it the mean is taken again
MIN_LEAD = 4.0  # hysteresis in power before another channel is taken

_MEASURED_RATE_HZ = 8_000
_HOP_VALUES = 160  # 20 ms at the measured rate
_MEMORY_S = 0.3  # time constant of the powers: a pause between words leaves the choice as it is
_MIN_POWER = 1e-7  # of a hop, -70 dBFS in that band; quieter hops decide nothing


class Downmix:
    """Downmix of a stream, without delay; block boundaries change nothing.

    Every 20 ms of the stream it is decided what the next 20 ms are made of, and they fade to it. Where
    nothing cancels, what comes out is the mean to the bit.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        """Begins with the mean.

        Args:
            sample_rate_hz: of what `step` is given.
        """
        if sample_rate_hz <= 0:
            raise ValueError(f"downmix: expected a sample rate in Hz, got {sample_rate_hz}")
        self._group_samples = max(round(sample_rate_hz / _MEASURED_RATE_HZ), 1)
        self._hop_samples = self._group_samples * _HOP_VALUES
        self._keep = math.exp(-self._hop_samples / (_MEMORY_S * sample_rate_hz))
        self._group_mean = np.full(self._group_samples, 1 / self._group_samples, np.float32)
        self._ramp = ((np.arange(self._hop_samples) + 0.5) / self._hop_samples).astype(np.float32)
        self._filled = 0  # of the hop that runs
        self._channel: int | None = None
        self._channel_before: int | None = None  # what this hop fades from
        self._begin(1)

    @property
    def channel(self) -> int | None:
        """Which channel is taken by itself, None while the mean is."""
        return self._channel

    def step(self, block: F32) -> F32:
        """Returns (n,) float32 for the next (channels, n); for one channel that channel itself.

        Another number of channels than before begins anew, with the mean.
        """
        if block.ndim != 2 or not len(block):
            raise ValueError(f"downmix: expected (channels, n) samples, got {block.shape}")
        if len(block) != len(self._hop):
            self._begin(len(block))
        if len(block) == 1:
            return np.asarray(block[0], np.float32)
        mixed = np.asarray(np.add.reduce(block, axis=0) / np.float32(len(block)), np.float32)
        at = 0
        while at < len(mixed):
            count = min(self._hop_samples - self._filled, len(mixed) - at)
            piece = slice(at, at + count)
            self._hop[:, self._filled : self._filled + count] = block[:, piece]
            mixed[piece] = self._mixed(block[:, piece], mixed[piece])
            self._filled += count
            at += count
            if self._filled == self._hop_samples:
                self._choose()
                self._filled = 0
        return mixed

    def _begin(self, channels: int) -> None:
        self._channel = self._channel_before = None
        self._filled = 0
        self._hop = np.zeros((channels, self._hop_samples), np.float32)
        self._last_values = np.zeros((channels, 1), np.float32)
        self._powers = np.zeros(channels)
        self._sum_power = 0.0

    def _mixed(self, piece: F32, mean: F32) -> F32:
        new = mean if self._channel is None else piece[self._channel]
        if self._channel == self._channel_before:
            return new
        old = mean if self._channel_before is None else piece[self._channel_before]
        ramp = self._ramp[self._filled : self._filled + len(mean)]
        return np.asarray(old + (new - old) * ramp, np.float32)

    def _choose(self) -> None:
        """Measures the hop that is over and chooses for the next one."""
        self._channel_before = self._channel
        values = self._hop.reshape(-1, self._group_samples) @ self._group_mean
        values = values.reshape(len(self._hop), _HOP_VALUES)
        slopes = np.diff(values, axis=1, prepend=self._last_values)  # (channels, 160)
        self._last_values = values[:, -1:]
        powers = np.square(slopes).mean(axis=1)  # (channels,)
        total = float(powers.sum())
        if not (math.isfinite(total) and total >= _MIN_POWER):
            if not math.isfinite(total):
                self._last_values = np.zeros_like(self._last_values)
            return
        self._powers = self._keep * self._powers + powers
        self._sum_power = self._keep * self._sum_power + float(np.square(slopes.sum(axis=0)).mean())
        coherence = self._sum_power / float(self._powers.sum())
        loudest = int(np.argmax(self._powers))
        if self._channel is None:
            if coherence < MAX_CANCELLING_COHERENCE:
                self._channel = loudest
        elif coherence > MIN_MIXING_COHERENCE:
            self._channel = None
        elif self._powers[loudest] > MIN_LEAD * self._powers[self._channel]:
            self._channel = loudest
