"""Working time of each stage, for benchmarks, reports and admission."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from .clock import CpuClock, MonotonicClock, SystemClock, SystemCpuClock

STAGES = ("decode", "motion", "condition", "render", "compose", "encode")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Frames drawn and CPU time of all stages together."""

    frames: int = 0  # that were drawn
    core_s: float = 0.0  # CPU time


class StageTimes:
    """Accumulates each stage's working time and CPU time, without waiting; thread-safe."""

    def __init__(self, clock: MonotonicClock | None = None, cpu: CpuClock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._cpu = cpu or SystemCpuClock()
        self._frames = 0
        self._lock = threading.Lock()
        self._total_s = dict.fromkeys(STAGES, 0.0)
        self._core_s = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Counts the time of the block to a stage."""
        start_s, core_start_s = self._clock.now_s(), self._cpu.thread_s()
        try:
            yield
        finally:
            spent_s, core_s = self._clock.now_s() - start_s, self._cpu.thread_s() - core_start_s
            with self._lock:
                self._total_s[stage] += spent_s
                self._core_s[stage] += core_s
                self._frames += stage == "render"

    def total_s(self) -> dict[str, float]:
        """Returns the seconds of each stage so far."""
        with self._lock:
            return dict(self._total_s)

    def core_s(self) -> dict[str, float]:
        """Returns the CPU time of each stage so far."""
        with self._lock:
            return dict(self._core_s)

    def work(self) -> Work:
        """Returns frames and CPU time of all stages so far."""
        with self._lock:
            return Work(frames=self._frames, core_s=sum(self._core_s.values()))
