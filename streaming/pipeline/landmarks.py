"""Filtered landmarks to the condition network's windows, with blinks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from cuda_kernels.arrays import F32
from models.landmark_filter import LandmarkFilter
from models.speaker import Speaker
from models.time_base import FRAME_RATE_HZ

BLINKS_PER_MINUTE = 16.0
MIN_INTERVAL_S = 1.2
MAX_INTERVAL_S = 7.0
_GAMMA_SHAPE = 4.0  # spread of the intervals: standard deviation is half the mean


class FrameWindows:
    """Windows of frames around each frame; at either end the edge frame is repeated."""

    def __init__(self, *, window_frames: int, lookahead_frames: int) -> None:
        if not 0 <= lookahead_frames < window_frames:
            raise ValueError(
                f"window: expected 0 <= lookahead < {window_frames} frames, got {lookahead_frames}"
            )
        self._window_frames = window_frames
        self._lookahead_frames = lookahead_frames
        self._rows: deque[F32] = deque(maxlen=window_frames)
        self._ahead = 0  # rows beyond the last frame that was given out

    def reset(self) -> None:
        """Forgets the frames so far: the next one is an edge again."""
        self._rows.clear()
        self._ahead = 0

    def first_of(self, frame: int) -> int:
        """Returns the first frame of a frame's window."""
        return frame + self._lookahead_frames - self._window_frames + 1

    def push(self, row: F32) -> Iterator[F32]:
        """Yields the window (window_frames, 204) of each frame that is complete with this row."""
        flat = row.reshape(-1)
        if not self._rows:
            past = self._window_frames - 1 - self._lookahead_frames
            self._rows.extend([flat] * past)
        self._rows.append(flat)
        self._ahead += 1
        if self._ahead > self._lookahead_frames:
            self._ahead -= 1
            yield np.stack(tuple(self._rows))

    def finish(self) -> Iterator[F32]:
        """Yields the windows of the last frames, their future being the last row repeated."""
        if not self._rows:
            return
        last = self._rows[-1]
        missing = self._window_frames - len(self._rows)
        for _ in range(self._ahead):
            # A recording shorter than the window is filled up from the right until it is whole.
            self._rows.extend([last] * max(1, missing))
            missing = 0
            yield np.stack(tuple(self._rows))
        self.reset()


class BlinkSchedule:
    """Seeded blink times with a gamma distribution of intervals; chunking changes nothing."""

    def __init__(self, *, seed: int, blink_frames: int) -> None:
        """Draws the first blink.

        Args:
            seed: the same seed gives the same blinks.
            blink_frames: length of one blink; the next begins after it at the earliest.
        """
        self._random = np.random.default_rng([seed, 0xB11])
        self._blink_frames = blink_frames
        self._start = self._interval()

    def _interval(self) -> int:
        mean_s = 60.0 / BLINKS_PER_MINUTE
        interval_s = 0.0
        while not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
            interval_s = float(self._random.gamma(_GAMMA_SHAPE, mean_s / _GAMMA_SHAPE))
        return max(round(interval_s * FRAME_RATE_HZ), self._blink_frames)

    def phase(self, frame: int) -> int | None:
        """Returns which frame of a blink `frame` shows, None between blinks; ask in rising order."""
        if not self._blink_frames:
            return None
        while frame >= self._start + self._blink_frames:
            self._start += self._interval()
        return frame - self._start if frame >= self._start else None


class DrawnLandmarks:
    """Post-processing of the motion network's landmarks: clamp, exponential smoothing, blinks."""

    def __init__(self, speaker: Speaker, *, seed: int) -> None:
        """Begins a stream.

        Args:
            speaker: who talks.
            seed: picks the blinks.
        """
        motion = speaker.motion
        self._filter = LandmarkFilter(
            mean=motion.landmark_mean, std=motion.landmark_std, clamp_std=motion.clamp_std, ema=motion.ema
        )
        self._blink = self._filter.scale(speaker.blinks)  # (F, 68, 3) in standard deviations
        self._blinks = BlinkSchedule(seed=seed, blink_frames=len(self._blink))
        self.last_blink = -1
        """The last frame that showed one."""

    def step(self, frame: int, landmarks: F32) -> F32:
        """Returns `landmarks_normalized` (68, 3) float32 of the next frame; frame numbers rise."""
        normalized = self._filter.step(landmarks)
        phase = self._blinks.phase(frame)
        if phase is not None:
            # After clamp and smoothing: both are for noise, and would leave the lids half open.
            normalized = normalized + self._blink[phase]
            self.last_blink = frame
        return normalized

    def restore(self, landmarks_normalized: F32) -> F32:
        """Returns landmarks (68, 3) float32 with the speaker's mean and std put back."""
        return self._filter.restore(landmarks_normalized)
