"""How long each stage worked, for the benchmark and for a line at the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from .clock import MonotonicClock, SystemClock

STAGES = ("decode", "motion", "condition", "render", "mouth", "upscale", "encode")


class StageTimes:
    """Adds up each stage's working time, waiting left out; every thread may add."""

    def __init__(self, clock: MonotonicClock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._total_s = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Counts the time of the block to a stage."""
        start_s = self._clock.now_s()
        try:
            yield
        finally:
            spent_s = self._clock.now_s() - start_s
            with self._lock:
                self._total_s[stage] += spent_s

    def total_s(self) -> dict[str, float]:
        """Returns the seconds of each stage so far."""
        with self._lock:
            return dict(self._total_s)
