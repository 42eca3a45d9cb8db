"""A progress line on the terminal."""

from __future__ import annotations

import sys
from typing import TextIO

from models.time_base import FRAME_RATE_HZ

from ..pipeline.clock import MonotonicClock, SystemClock

_EVERY_S = 0.2
_BAR = 24


class Progress:
    """Draws frames, speed and time left over one line; on no terminal, or when quiet, nothing at all."""

    def __init__(
        self,
        total_frames: int | None,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: MonotonicClock | None = None,
    ) -> None:
        self._total = total_frames
        self._stream = stream or sys.stderr
        self._shown = not quiet and self._stream is not None and self._stream.isatty()
        self._clock = clock or SystemClock()
        self._start_s = self._clock.now_s()
        self._next_s = self._start_s
        self._width = 0

    def note(self, text: str) -> None:
        """Shows a passing word while something takes its time."""
        if self._shown:
            self._draw(text)

    def at(self, frames: int) -> None:
        """Shows that `frames` frames are done."""
        now_s = self._clock.now_s()
        if not self._shown or now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        self._draw(self.text(frames, now_s - self._start_s))

    def text(self, frames: int, spent_s: float) -> str:
        """Returns the line for `frames` frames after `spent_s` seconds."""
        fps = frames / spent_s if spent_s > 0 else 0.0
        factor = spent_s / (frames / FRAME_RATE_HZ) if frames else 0.0
        speed = f"{fps:5.1f} fps, real-time factor {factor:.2f}"
        if not self._total:
            return f"{frames} frames, {speed}"
        share = min(frames / self._total, 1.0)
        done = round(share * _BAR)
        left_s = max(self._total - frames, 0) / fps if fps else 0.0
        left = f"{int(left_s) // 60}:{int(left_s) % 60:02d} left"
        return f"[{'#' * done}{'.' * (_BAR - done)}] {frames}/{self._total} frames, {speed}, {left}"

    def clear(self) -> None:
        """Takes the line away."""
        if self._shown and self._width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
