"""The media clock, counted in 16 kHz samples; the monotonic clock and the CPU's, which tests replace."""

from __future__ import annotations

import time
from typing import Protocol

from cuda_kernels.core_time import core_time_s
from models.time_base import FRAME_SAMPLES, SAMPLE_RATE_HZ


def frames_covering(samples: int) -> int:
    """Returns the number of video frames that cover `samples` samples, rounded up."""
    return -(-samples // FRAME_SAMPLES)


def first_sample(frame: int) -> int:
    """Returns the sample a frame begins with."""
    return frame * FRAME_SAMPLES


def samples_to_ms(samples: int) -> float:
    """Returns the length of `samples` samples in milliseconds."""
    return samples * 1000 / SAMPLE_RATE_HZ


class MonotonicClock(Protocol):
    """Monotonic time; only differences mean something."""

    def now_s(self) -> float:
        """Returns the time in seconds since some fixed moment."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Returns the time in seconds since some fixed moment."""
        return time.perf_counter()


class CpuClock(Protocol):
    """CPU time: neither waiting nor other programs on the same cores count."""

    def thread_s(self) -> float:
        """Returns the seconds of the calling thread and of the raymarcher's threads that drew for it."""

    def process_s(self) -> float:
        """Returns the seconds of all threads of this process."""


class SystemCpuClock:
    """The machine's CPU clock."""

    def thread_s(self) -> float:
        """Returns the seconds of the calling thread and of the raymarcher's threads that drew for it."""
        return core_time_s()

    def process_s(self) -> float:
        """Returns the seconds of all threads of this process."""
        return time.process_time()


class MediaClock:
    """Media time in samples of sound received; one producer advances it."""

    def __init__(self) -> None:
        self._samples = 0

    @property
    def samples(self) -> int:
        """Samples that came in so far; also the number of the next one."""
        return self._samples

    @property
    def frames(self) -> int:
        """Frames whose sound has begun to come in."""
        return frames_covering(self._samples)

    def advance(self, samples: int) -> int:
        """Returns the number of the first of `samples` new samples."""
        if samples < 0:
            raise ValueError(f"media clock: expected samples >= 0, got {samples}; it never goes back")
        start = self._samples
        self._samples += samples
        return start
