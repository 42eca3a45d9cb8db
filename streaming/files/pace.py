"""Adaptive render size of a file run: stepped down where it falls behind real time, never up."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.time_base import FRAME_RATE_HZ

from ..pipeline.render_size import HEADROOM

PARTS, PART_FRAMES = (
    3,
    16,
)  # window of the output; the median of its parts counts, so that one stall is no load
MIN_LEFT_S = 1.0  # of the video; what is left after that changes nothing
MAX_CATCH_UP = 0.6  # least real-time factor that is aimed at, to catch up


@dataclass(frozen=True, kw_only=True)
class SizeStep:
    """From where on a smaller size was drawn."""

    at_s: float  # of the video
    size_px: int
    real_time_factor: float  # of the two seconds before


class FilePace:
    """Chooses the next size. For one thread; time is the caller's."""

    def __init__(
        self,
        *,
        start_px: int,
        sizes_px: Sequence[int],
        core_ms: Callable[[int], float],
        duration_s: float | None,
    ) -> None:
        """Begins at a size.

        Args:
            start_px: the size that is drawn at first.
            sizes_px: those there are.
            core_ms: what a frame of a size takes; only how sizes compare counts.
            duration_s: of the recording; None: unknown, and taken for long.
        """
        self.size_px = start_px
        self.steps: list[SizeStep] = []
        """What was changed so far."""
        self._sizes_px = sorted(sizes_px, reverse=True)
        self._core_ms = core_ms
        self._duration_s = duration_s
        self._start_s: float | None = None
        self._times_s: deque[float] = deque(maxlen=PARTS * PART_FRAMES + 1)  # of frames of this size

    def begin(self, now_s: float) -> None:
        """Takes the time at which the run began."""
        self._start_s = now_s

    def frame_done(self, *, now_s: float, frames: int, render_px: int) -> bool:
        """Takes that a frame was written and returns whether `size_px` changed.

        Args:
            now_s: monotonic time.
            frames: that were written so far.
            render_px: what this one was drawn at; the pipeline still holds some of the size before.
        """
        if self._start_s is None:
            self._start_s = now_s
        if render_px != self.size_px:
            return False
        self._times_s.append(now_s)
        smaller = [size for size in self._sizes_px if size < self.size_px]
        if len(self._times_s) < PARTS * PART_FRAMES + 1 or not smaller:
            return False
        factor, done_s = self._recent_factor(), frames / FRAME_RATE_HZ
        wanted = HEADROOM
        if self._duration_s is not None:
            left_s = self._duration_s - done_s
            ends_s = self._duration_s - (now_s - self._start_s)  # from now, to end with the sound
            if left_s < MIN_LEFT_S or left_s * factor <= ends_s:
                return False
            wanted = min(max(ends_s / left_s, MAX_CATCH_UP), HEADROOM)
        if factor <= 1.0:
            return False
        of_now_ms = self._core_ms(self.size_px)
        fitting = [size for size in smaller if factor * self._core_ms(size) <= wanted * of_now_ms]
        self.size_px = fitting[0] if fitting else smaller[-1]
        self.steps.append(SizeStep(at_s=done_s, size_px=self.size_px, real_time_factor=factor))
        self._times_s.clear()
        return True

    def _recent_factor(self) -> float:
        times_s = list(self._times_s)[::PART_FRAMES]
        parts = sorted(after - before for before, after in itertools.pairwise(times_s))
        return parts[PARTS // 2] * FRAME_RATE_HZ / PART_FRAMES


def describe_steps(start_px: int, steps: Sequence[SizeStep]) -> str:
    """Returns the steps of render size in words; empty without any."""
    if not steps:
        return ""
    later = ", ".join(f"from {step.at_s:.1f} s on at {step.size_px} px" for step in steps)
    return f"drawn at {start_px} px, {later}, to keep up with the sound"
