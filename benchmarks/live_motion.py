"""A speaker's motion on a whole sound, as the live path makes it. No torch, no OpenCV."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32
from models.landmark_filter import LandmarkFilter
from models.speaker import Speaker
from models.time_base import SAMPLE_RATE_HZ
from streaming.pipeline.networks import open_networks

_SILENCE_S = 3.0


class LiveMotion:
    """The live path's landmarks: motion networks over a stream, clamp, smoothing."""

    def __init__(self, speaker: Speaker) -> None:
        """Opens the speaker's networks."""
        self._motion = speaker.motion
        self._networks = open_networks(speaker)

    def __call__(self, pcm: F32) -> F32:
        """Returns landmarks (T, 204) in the speaker's domain of samples (640 T,) in [-1, 1]."""
        motion = self._motion
        stream = self._networks.motion_stream(motion)
        smooth = LandmarkFilter(
            mean=motion.landmark_mean, std=motion.landmark_std, clamp_std=motion.clamp_std, ema=motion.ema
        )
        frames = []
        for moved_frames in (stream.push(pcm.astype(np.float32)), stream.finish()):
            for moved in moved_frames:
                frames.append(smooth.restore(smooth.step(moved.landmarks)).reshape(204))
        return np.stack(frames).astype(np.float32)

    def resting(self) -> F32:
        """Landmarks (204,) after silence."""
        rest: F32 = self(np.zeros(int(SAMPLE_RATE_HZ * _SILENCE_S), np.float32))[-1]
        return rest
