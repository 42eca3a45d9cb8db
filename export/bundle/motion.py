"""ONNX export of the motion networks, verified against the torch modules.

`motion.onnx` is one graph from samples to landmarks: front end, Audio2Motion, PostNet, and the projection
onto the speaker's landmark subspace. The causal layers lose their padding, so that a window of the receptive
field gives one frame and computes nothing that this frame does not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cuda_kernels.arrays import F32
from models.audio2motion import LANDMARK_DIMENSION, Audio2Motion, Audio2MotionConfig
from models.features import LogMel
from models.landmark_subspace import LandmarkSubspace
from models.postnet import PostNet, PostNetConfig
from models.syncnet import AUDIO_FRAMES, MOTION_FRAMES, MOUTH_DIMENSION, SyncNet
from models.time_base import FRAME_SAMPLES, SAMPLE_RATE_HZ
from models.time_convolution import plain_copy, without_padding

from ..onnx.torch_graph import ExportError, compare, ms_per_call, refuse_if_wrong, write_graph

MAX_ERROR = 1e-4
"""Two orders of float32 sums of a few hundred terms differ by some 1e-6; a wrong graph by more than 1e-2."""


@dataclass(frozen=True, kw_only=True)
class MotionExportReport:
    """An exported graph and its error against torch.

    Attributes:
        path: The graph.
        window_frames, window_samples, lookahead_frames: The window that one call takes.
        largest_error: Largest difference to torch over all tried inputs, in the output's unit.
        cases: How many inputs were tried.
        ms_per_call: Median on this machine, one thread.
    """

    path: Path
    window_frames: int
    window_samples: int
    lookahead_frames: int
    largest_error: float
    cases: int
    ms_per_call: float


class MotionChain(nn.Module):
    """The module that is exported: samples of one window to the landmarks of one frame.

    With `advance_features` k the networks take sound k feature frames (20 ms each) newer than they learnt to
    take, so lips move that much earlier. The newest, which the look-ahead does not hold, repeat the last one.
    """

    offset: Tensor  # (204,), added to all landmarks: a resting face's correction

    def __init__(
        self,
        audio2motion: Audio2Motion,
        postnet: PostNet | None,
        features: LogMel,
        subspace: LandmarkSubspace | None = None,
        advance_features: int = 0,
    ) -> None:
        super().__init__()
        self.advance_features = advance_features
        self.register_buffer("offset", torch.zeros(LANDMARK_DIMENSION))
        self.audio2motion, self.postnet, self.features = audio2motion, postnet, features
        self.subspace = subspace

    def forward(self, pcm: Tensor) -> Tensor:
        """Returns landmarks (1, 204) of `pcm` (1, window_samples) in [-1, 1]."""
        features = self.features(pcm)  # (1, 2 window_frames, F)
        if self.advance_features:
            newest_feature = features[:, -1:].expand(-1, self.advance_features, -1)
            features = torch.cat([features[:, self.advance_features :], newest_feature], dim=1)
        landmarks = self.audio2motion.predict(features)  # (1, n, 204)
        if self.postnet is not None:
            landmarks = self.postnet(landmarks)  # (1, n, 204)
        newest = landmarks[:, -1] + self.offset  # (1, 204)
        return newest if self.subspace is None else self.subspace(newest)


def motion_window_frames(audio2motion: Audio2MotionConfig, postnet: PostNetConfig | None = None) -> int:
    """Returns the video frames of audio that one emitted frame depends on: the shortest exact window."""
    return audio2motion.receptive_field_frames + (postnet.receptive_field_frames - 1 if postnet else 0)


def window_samples(window_frames: int, features: LogMel) -> int:
    """Returns the samples of a window: its frames and the front end's left context."""
    return FRAME_SAMPLES * window_frames + features.left_context_samples


def export_motion(
    audio2motion: Audio2Motion,
    postnet: PostNet | None,
    features: LogMel,
    *,
    path: Path,
    subspace: LandmarkSubspace | None = None,
    audio: F32 | None = None,
    advance_features: int = 0,
    rest: F32 | None = None,
) -> MotionExportReport:
    """Writes motion.onnx to `path` and returns its error against the torch modules.

    Args:
        audio2motion: A causal network.
        postnet: A causal network, or None for a speaker without one.
        features: The front end that both were trained on.
        path: Where the graph goes; one file.
        subspace: The speaker's landmark subspace; without one nothing is projected.
        audio: (samples,) at 16 kHz in [-1, 1] to compare on, besides noise, tones and silence.
        advance_features: How many feature frames of 20 ms the lips move earlier; see `MotionChain`.
        rest: The face (204,) that silence shall give: all landmarks are moved by what it lacks to it.

    Raises:
        ExportError: The networks are not causal, or the graph differs from its source.
    """
    config = audio2motion.config
    if not config.causal or (postnet is not None and not postnet.config.causal):
        raise ExportError("motion.onnx: networks: expected causal=True in both, got one that looks both ways")
    if config.feature_dimension != features.dimension:
        raise ExportError(
            f"motion.onnx: features: expected {config.feature_dimension} numbers, got {features.dimension}; "
            f"use the front end the network was trained on"
        )
    window_frames = motion_window_frames(config, postnet.config if postnet else None)
    chain = MotionChain(audio2motion, postnet, features, subspace, advance_features).eval()
    width = window_samples(window_frames, features)
    if rest is not None:
        with without_padding(chain), torch.no_grad():
            chain.offset += torch.from_numpy(rest) - chain(torch.zeros(1, width))[0]
    folded = plain_copy(chain)
    with without_padding(folded):
        write_graph(folded, (torch.zeros(1, width),), path, inputs=("pcm",), outputs=("landmarks",))
    with without_padding(chain):
        cases = _windows_to_try(width, audio)
        error = compare(path, chain, [{"pcm": case} for case in cases]).largest_error
    refuse_if_wrong(path, error, MAX_ERROR)
    return MotionExportReport(
        path=path,
        window_frames=window_frames,
        window_samples=width,
        lookahead_frames=config.lookahead_frames,
        largest_error=error,
        cases=len(cases),
        ms_per_call=ms_per_call(path, {"pcm": cases[0]}),
    )


@dataclass(frozen=True, kw_only=True)
class SyncNetExportReport:
    """An exported graph and its error against torch; see `MotionExportReport`."""

    path: Path
    largest_error: float


def export_syncnet(syncnet: SyncNet, *, path: Path) -> SyncNetExportReport:
    """Writes syncnet.onnx to `path` and returns its error against torch.

    The graph takes `audio` (B, 10, feature_dimension) and `mouth` (B, 5, 60) and gives `audio_embedding` and
    `mouth_embedding` (B, embedding) of unit length. B is free.

    Raises:
        ExportError: The graph differs from its source.
    """
    syncnet = syncnet.eval()
    dimension = syncnet.config.feature_dimension
    example = (torch.zeros(2, AUDIO_FRAMES, dimension), torch.zeros(2, MOTION_FRAMES, MOUTH_DIMENSION))
    write_graph(
        syncnet,
        example,
        path,
        inputs=("audio", "mouth"),
        outputs=("audio_embedding", "mouth_embedding"),
        dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=4096)} for _ in example),
    )
    random = np.random.default_rng(0)
    feeds = [
        {
            "audio": random.normal(-2, 2, (batch, AUDIO_FRAMES, dimension)).astype(np.float32),
            "mouth": random.normal(0, 0.5, (batch, MOTION_FRAMES, MOUTH_DIMENSION)).astype(np.float32),
        }
        for batch in (1, 7)
    ]
    error = compare(path, syncnet, feeds).largest_error
    refuse_if_wrong(path, error, MAX_ERROR)
    return SyncNetExportReport(path=path, largest_error=error)


def _windows_to_try(width: int, audio: F32 | None) -> list[F32]:
    random = np.random.default_rng(0)
    seconds = np.arange(width) / SAMPLE_RATE_HZ
    tried = [
        random.normal(0, 0.1, width),
        random.uniform(-1, 1, width),
        # Noise below the tone: without it the quiet bands hold only float32's rounding.
        0.3 * np.sin(2 * np.pi * 220 * seconds) + random.normal(0, 1e-4, width),
        np.zeros(width),
    ]
    if audio is not None:
        starts = np.linspace(0, max(0, len(audio) - width), 16).astype(int)
        tried += [
            np.pad(audio[s : s + width], (max(0, width - len(audio[s : s + width])), 0)) for s in starts
        ]
    return [case.astype(np.float32)[None] for case in tried]
