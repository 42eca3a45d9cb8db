"""Offline inference of a speaker's motion over a whole recording, as the reference does it.

The ground truth of the look-ahead benchmark, and the teacher of a causal student.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cuda_kernels.arrays import F32
from models.latent_noise import latent_noise
from models.onnx_runtime import load_onnxruntime
from models.pitch import WINDOW_SAMPLES, f0_hz
from models.speaker import Speaker
from models.speaker_settings import LANDMARKS, FeatureSettings
from models.time_base import FEATURE_HOP_SAMPLES, FRAME_SAMPLES

from ..geneface.hubert import CLIP_FEATURES, offline_features
from ..onnx.graphs import open_graph

PIECE_FRAMES = 3000
CONTEXT_FRAMES = 82
"""That one frame of GeneFace's Audio2Motion (75) and PostNet (7) depends on to each side."""


class OfflineMotion:
    """A speaker's networks, opened to run over recordings."""

    def __init__(self, speaker: Speaker, *, providers: Sequence[str] | None = None) -> None:
        """Opens the networks.

        Args:
            speaker: of either kind.
            providers: ONNX Runtime's names of what runs them, the best first; if absent, CUDA where it is
                there.
        """
        if providers is None:
            there = load_onnxruntime().get_available_providers()
            known = ("CUDAExecutionProvider", "CPUExecutionProvider")
            providers = [name for name in known if name in there]
        self._settings = speaker.motion
        self._motion = open_graph(speaker.motion_onnx, all_cores=True, providers=providers)
        self._features = None
        if speaker.features_onnx is not None:
            self._features = open_graph(speaker.features_onnx, all_cores=True, providers=providers)

    def landmarks(self, pcm: F32, *, temperature: float | None = None) -> F32:
        """Returns landmarks (n // 640, 68, 3) in the speaker's domain of a recording.

        A non-causal network gets the latent noise of a stream that begins with the recording, and zero
        features after its end. A causal one gets, as in a stream, silence before it and reflection after it.

        Args:
            pcm: (n,) float32 in [-1, 1], 16 kHz mono.
            temperature: of the latent's noise, 0 for the prior's mode; the speaker's own if absent. A causal
                network has none.
        """
        frames = len(pcm) // FRAME_SAMPLES
        if not frames:
            return np.zeros((0, LANDMARKS, 3), np.float32)
        features = self._settings.features
        if features is None:
            moved = self._causal(pcm, frames)
        else:
            moved = self._both_ways(
                pcm, features, features.temperature if temperature is None else temperature
            )
        return moved[:frames].reshape(frames, LANDMARKS, 3)

    def _causal(self, pcm: F32, frames: int) -> F32:
        width, lookahead = self._settings.window_samples, self._settings.lookahead_frames
        missing = max(0, FRAME_SAMPLES * (frames + lookahead) - len(pcm))
        sound = np.pad(pcm, (width, 0))
        sound = np.concatenate([sound, sound[len(sound) - missing :][::-1]])
        ends = width + FRAME_SAMPLES * (np.arange(frames) + 1 + lookahead)
        windows = (sound[None, end - width : end] for end in ends)
        return np.concatenate([self._motion.run(None, {"pcm": window})[0] for window in windows])

    def _both_ways(self, pcm: F32, of: FeatureSettings, temperature: float) -> F32:
        """Returns landmarks (>= n // 640, 204); features are zero-padded to a whole latent step."""
        assert self._features is not None
        encoder = self._features
        features = offline_features(lambda sound: encoder.run(None, {"pcm": sound})[0], pcm)
        steps = -(-len(features) // (2 * of.block_frames))
        frames = steps * of.block_frames
        feed = {
            "features": np.pad(features, ((0, 2 * frames - len(features)), (0, 0)))[None],
            "latent": np.float32(temperature)
            * latent_noise(seed=of.seed, first_step=0, steps=steps, channels=of.latent_channels),
        }
        if of.hears_pitch:
            feed["f0_hz"] = _pitch(pcm, 2 * frames)[None]
        return self._in_pieces(feed, of.block_frames, frames)

    def _in_pieces(self, feed: dict[str, F32], block: int, frames: int) -> F32:
        """Returns landmarks (frames, 204), computed in pieces with the receptive field around each."""
        piece, context = (-(-length // block) * block for length in (PIECE_FRAMES, CONTEXT_FRAMES))
        moved = []
        for start in range(0, frames, piece):
            end = min(frames, start + piece)
            first, last = max(0, start - context), min(frames, end + context)
            part = {"latent": feed["latent"][:, :, first // block : last // block]}
            part |= {name: feed[name][:, 2 * first : 2 * last] for name in feed if name != "latent"}
            moved.append(self._motion.run(None, part)[0][0, start - first : end - first])
        return np.concatenate(moved)


def _pitch(pcm: F32, count: int) -> F32:
    """Returns (count,) Hz, 0 where unvoiced and beyond the end; found clip by clip, as the features are."""
    step, overlap = CLIP_FEATURES * FEATURE_HOP_SAMPLES, WINDOW_SAMPLES - FEATURE_HOP_SAMPLES
    found = np.concatenate([f0_hz(pcm[start : start + step + overlap]) for start in range(0, len(pcm), step)])
    return np.pad(found[:count], (0, max(0, count - len(found))))
