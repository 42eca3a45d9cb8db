"""Sound to landmarks: the interface of both kinds of motion network, and the kind that takes samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cuda_kernels.arrays import F32
from models.landmark_filter import POINTS
from models.speaker_settings import MotionSettings
from models.time_base import FRAME_SAMPLES

from ..errors import NetworkFailureError
from .clock import first_sample, frames_covering
from .onnx_engine import Engine


@dataclass(frozen=True, kw_only=True)
class MovedFrame:
    """One frame's motion."""

    frame: int
    landmarks: F32  # (204,) as the network gives them, in the speaker's domain
    sound: F32  # (640,) the frame's own sound, a copy
    failure: NetworkFailureError | None = None  # of the networks: there are no landmarks, all are NaN


UNKNOWN_LANDMARKS: F32 = np.full(3 * POINTS, np.nan, np.float32)


class MotionStream(Protocol):
    """Turns sound into landmarks. Frames depend on samples and numbers alone, not on how the sound was cut.

    Exhaust what a method yields before the next call. A run of a network that fails costs its frames their
    landmarks, and leaves the stream in order.
    """

    def push(self, pcm: F32) -> Iterator[MovedFrame]:
        """Takes samples (n,) and yields every frame that they complete."""

    def skip_to(self, sample: int) -> Iterator[MovedFrame]:
        """Yields the frames completed by silence up to `sample`, where sound was lost."""

    def restart(self, sample: int) -> None:
        """Forgets all sound and goes on at `sample`, with silence before it."""

    def finish(self) -> Iterator[MovedFrame]:
        """Yields the frames that still have sound; none comes after it."""


def frames_at_once(settings: MotionSettings) -> int:
    """Returns the number of frames that one run of a speaker's motion networks yields."""
    return 1 if settings.features is None else settings.features.hop_frames


@dataclass(frozen=True, kw_only=True)
class PcmWindow:
    """One frame's window of samples."""

    frame: int
    samples: F32  # (1, window_samples), ends `lookahead` frames after the frame; the ring's own memory
    sound: F32  # (640,) the frame's own sound, a copy


class PcmMotion:
    """A motion network of kind "pcm": one window of samples a frame."""

    def __init__(self, engine: Engine, *, window_samples: int, lookahead_frames: int) -> None:
        """Begins at sample 0.

        Args:
            engine: motion.onnx.
            window_samples: that it takes.
            lookahead_frames: of them, after the frame itself.
        """
        self._engine = engine
        self._ring = PcmRing(window_samples=window_samples, lookahead_frames=lookahead_frames)

    def push(self, pcm: F32) -> Iterator[MovedFrame]:
        """Takes samples (n,) and yields every frame that they complete."""
        return self._moved(self._ring.push(pcm))

    def skip_to(self, sample: int) -> Iterator[MovedFrame]:
        """Yields the frames completed by silence up to `sample`, where sound was lost."""
        return self._moved(self._ring.skip_to(sample))

    def restart(self, sample: int) -> None:
        """Forgets all sound and goes on at `sample`, with silence before it."""
        self._ring.restart(sample)

    def finish(self) -> Iterator[MovedFrame]:
        """Yields the frames that still have sound; see `PcmRing.finish`."""
        return self._moved(self._ring.finish())

    def _moved(self, windows: Iterator[PcmWindow]) -> Iterator[MovedFrame]:
        for window in windows:
            landmarks, failure = UNKNOWN_LANDMARKS, None
            try:
                landmarks = self._engine.run({"pcm": window.samples}).reshape(-1)
            except NetworkFailureError as error:
                failure = error
            yield MovedFrame(frame=window.frame, landmarks=landmarks, sound=window.sound, failure=failure)


class PcmRing:
    """A ring buffer of samples that gives out each frame's window once its look-ahead is complete.

    Before the first sample there is silence. Two copies of each sample lie one ring apart, so that every
    window is one contiguous piece.
    """

    def __init__(self, *, window_samples: int, lookahead_frames: int) -> None:
        reach = FRAME_SAMPLES * (1 + lookahead_frames)
        self._window_samples = window_samples
        self._lookahead_frames = lookahead_frames
        self._size = max(window_samples, reach)
        self._memory = np.zeros(2 * self._size, np.float32)
        self._written = 0  # number of the next sample
        self._frame = 0  # the next frame to give out

    @property
    def samples(self) -> int:
        """Number of the next sample."""
        return self._written

    @property
    def next_frame(self) -> int:
        """The next frame that will be given out."""
        return self._frame

    def push(self, pcm: F32) -> Iterator[PcmWindow]:
        """Takes samples (n,) and yields every frame that they complete; exhaust it before the next push."""
        at = 0
        while at < len(pcm):
            missing = self._due() - self._written
            piece = pcm[at : at + missing]
            self._write(piece)
            at += len(piece)
            if self._written == self._due():
                yield self._window()
                self._frame += 1

    def skip_to(self, sample: int) -> Iterator[PcmWindow]:
        """Yields the frames completed by silence up to `sample`, where sound was lost."""
        missing = sample - self._written
        while missing > 0:
            piece = min(missing, self._size)
            yield from self.push(np.zeros(piece, np.float32))
            missing -= piece

    def restart(self, sample: int) -> None:
        """Forgets all sound and goes on at `sample`, with silence before it."""
        self._memory[:] = 0
        self._written = sample
        self._frame = sample // FRAME_SAMPLES

    def finish(self) -> Iterator[PcmWindow]:
        """Yields the frames that still have sound; their look-ahead is the sound's end, backwards.

        A recording is cut in a room that is never silent. To the net a sudden silence after it is the hush
        before a plosive, and the mouth would open over the last frames.
        """
        end, frames = self._written, frames_covering(self._written)
        if not frames:
            return
        missing = first_sample(frames + self._lookahead_frames) - end
        for window in self.push(self._last(missing)[::-1].copy()):
            beyond = first_sample(window.frame + 1) - end
            if beyond > 0:
                window.sound[-beyond:] = 0  # beyond the end there is silence
            yield window

    def _due(self) -> int:
        return first_sample(self._frame + 1 + self._lookahead_frames)

    def _write(self, piece: F32) -> None:
        piece = piece[-self._size :] if len(piece) > self._size else piece
        skipped = 0
        while skipped < len(piece):
            start = (self._written + skipped) % self._size
            part = piece[skipped : skipped + self._size - start]
            self._memory[start : start + len(part)] = part
            self._memory[start + self._size : start + self._size + len(part)] = part
            skipped += len(part)
        self._written += len(piece)

    def _last(self, samples: int, before: int = 0) -> F32:
        """Returns the `samples` samples that end `before` samples ago."""
        end = (self._written - before - 1) % self._size + 1 + self._size
        return self._memory[end - samples : end]

    def _window(self) -> PcmWindow:
        return PcmWindow(
            frame=self._frame,
            samples=self._last(self._window_samples)[None],
            sound=self._last(FRAME_SAMPLES, before=FRAME_SAMPLES * self._lookahead_frames).copy(),
        )
