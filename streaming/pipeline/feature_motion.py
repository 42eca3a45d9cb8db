"""Streaming inference of motion networks that take features, on overlapping windows with look-ahead.

GeneFace's networks were made for whole recordings: HuBERT takes 20 s at once, Audio2Motion and PostNet look
three seconds ahead and back. A stream runs them every hop, on windows that overlap, and gives out those
frames whose look-ahead is then known. Everything hangs on absolute frame numbers: hops and latent steps begin
at the same frames whenever sound began and however it came, and a latent step has one noise for good. So
frames from two windows fit, and the same sound gives the same frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cuda_kernels.arrays import F32
from models.latent_noise import latent_noise
from models.pitch import f0_hz
from models.speaker_settings import MotionSettings, feature_count
from models.time_base import FEATURES_PER_FRAME, FRAME_SAMPLES

from ..errors import NetworkFailureError
from .clock import first_sample, frames_covering
from .input_normalisation import RunningNormalisation
from .onnx_engine import Engine
from .pcm_motion import UNKNOWN_LANDMARKS, MovedFrame


class FeatureMotion:
    """A motion network of kind "features" over a stream; a `MotionStream`."""

    def __init__(self, settings: MotionSettings, *, features: Engine, motion: Engine) -> None:
        """Begins at sample 0.

        Args:
            settings: the speaker's, of kind "features".
            features: features.onnx.
            motion: motion.onnx.
        """
        assert settings.features is not None  # of the other kind is `PcmMotion`
        self._of = settings.features
        self._window_frames = settings.window_frames
        self._lookahead_frames = settings.lookahead_frames
        self._features_engine, self._motion_engine = features, motion
        self._level = RunningNormalisation()
        self.restart(0)

    def restart(self, sample: int) -> None:
        """Forgets all sound and goes on at `sample`, with silence before it."""
        of = self._of
        self._first_sample = self._written = sample  # the first there is, the next to come
        self._first_frame = self._frame = sample // FRAME_SAMPLES  # the same in frames; the next to give out
        self._end = (self._frame // of.hop_frames + 1) * of.hop_frames  # where the next hop ends
        self._level.reset()
        # The sound of the frames before `_end`, silence where none is known.
        self._sound = np.zeros(FRAME_SAMPLES * max(of.window_frames, self._lookahead_frames + 1), np.float32)
        # What the motion network takes: its window's first frame, and what is known of it; zero beyond that.
        self._begin = self._window_begin()
        self._features = np.zeros((FEATURES_PER_FRAME * self._window_frames, of.dimension), np.float32)
        self._f0_hz = np.zeros(FEATURES_PER_FRAME * self._window_frames, np.float32)
        self._latent = self._window_latent()
        self._features_failure: NetworkFailureError | None = None  # of the newest block

    def push(self, pcm: F32) -> Iterator[MovedFrame]:
        """Takes samples (n,) and yields the frames of every hop that they complete."""
        at = 0
        while at < len(pcm):
            missing = first_sample(self._end) - self._written
            piece = pcm[at : at + missing]
            start = len(self._sound) - missing
            self._sound[start : start + len(piece)] = piece
            self._written += len(piece)
            at += len(piece)
            if len(piece) == missing:
                self._update_features()
                yield from self._move(self._end - self._lookahead_frames - 1 + self._of.hop_frames)
                self._end += self._of.hop_frames
                _shift(self._sound, FRAME_SAMPLES * self._of.hop_frames)

    def skip_to(self, sample: int) -> Iterator[MovedFrame]:
        """Yields the frames completed by silence up to `sample`, where sound was lost."""
        while self._written < sample:
            yield from self.push(np.zeros(min(sample - self._written, len(self._sound)), np.float32))

    def finish(self) -> Iterator[MovedFrame]:
        """Yields the frames that still have sound; beyond its end features are zero, as in the reference."""
        if self._written > first_sample(self._end - self._of.hop_frames):
            self._update_features()
        yield from self._move(frames_covering(self._written))

    def _update_features(self) -> None:
        """Runs the feature network on the sound before `_end` and keeps its newest features."""
        of = self._of
        missing = first_sample(self._end) - self._written  # some only at the end of a recording
        new = min(self._written - self._first_sample, FRAME_SAMPLES * of.hop_frames - missing)
        known = len(self._sound) - missing
        self._level.update(self._sound[known - new : known])
        sound = self._sound[-of.window_samples :]
        features = pitch_hz = None
        self._features_failure = None
        try:
            features = self._features_engine.run({"pcm": self._level.apply(sound)[None]})[0]  # (steps, F)
            pitch_hz = f0_hz(sound) if of.hears_pitch else None
        except NetworkFailureError as error:  # this block stays zero, as what is not known yet
            self._features_failure = error
        self._slide()
        block_from = FEATURES_PER_FRAME * (self._end - of.window_frames)
        kept_from = self._end - of.kept_frames
        first = FEATURES_PER_FRAME * max(kept_from, self._first_frame, self._begin)
        last = feature_count(self._written)  # one whose samples are not all there does not count
        if first < last and features is not None:
            of_window = slice(
                first - FEATURES_PER_FRAME * self._begin, last - FEATURES_PER_FRAME * self._begin
            )
            of_block = slice(first - block_from, last - block_from)
            self._features[of_window] = features[of_block]
            if pitch_hz is not None:
                self._f0_hz[of_window] = pitch_hz[of_block]

    def _slide(self) -> None:
        """Moves the motion network's window to where it ends with the block of `_end`."""
        by_frames = self._window_begin() - self._begin
        if by_frames:
            self._begin += by_frames
            _shift(self._features, FEATURES_PER_FRAME * by_frames)
            _shift(self._f0_hz, FEATURES_PER_FRAME * by_frames)
            self._latent = self._window_latent()

    def _move(self, until: int) -> Iterator[MovedFrame]:
        """Yields the frames before `until` that were not given out yet."""
        if self._frame >= until:
            return
        landmarks, failure = None, self._features_failure
        if failure is None:
            inputs = {"features": self._features[None], "latent": self._latent}
            if self._of.hears_pitch:
                inputs["f0_hz"] = self._f0_hz[None]
            try:
                landmarks = self._motion_engine.run(inputs)[0]  # (window_frames, 204)
            except NetworkFailureError as error:
                failure = error
        for frame in range(self._frame, until):
            start = len(self._sound) - FRAME_SAMPLES * (self._end - frame)
            yield MovedFrame(
                frame=frame,
                landmarks=UNKNOWN_LANDMARKS if landmarks is None else landmarks[frame - self._begin],
                sound=self._sound[start : start + FRAME_SAMPLES].copy(),
                failure=failure,
            )
        self._frame = until

    def _window_begin(self) -> int:
        block = self._of.block_frames
        return -(-self._end // block) * block - self._window_frames

    def _window_latent(self) -> F32:
        of = self._of
        noise = latent_noise(
            seed=of.seed,
            first_step=self._begin // of.block_frames,
            steps=self._window_frames // of.block_frames,
            channels=of.latent_channels,
        )
        return noise * np.float32(of.temperature)


def _shift(values: F32, by: int) -> None:
    """Moves values (n, ...) towards the front, in place; what comes in behind is zero."""
    values[:-by] = values[by:]
    values[-by:] = 0
