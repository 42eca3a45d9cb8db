"""ONNX export of a GeneFace speaker's Audio2Motion and PostNet as one graph: features to landmarks.

The networks are not causal: the graph takes the features of T video frames and gives as many. T is free, a
multiple of a latent step's frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cuda_kernels.arrays import F32
from models.audio2motion import Audio2Motion, f0_to_coarse
from models.landmark_subspace import LandmarkSubspace
from models.postnet import PostNet
from models.time_convolution import plain_copy

from ..onnx.graphs import strip_metadata, to_float16_weights
from ..onnx.torch_graph import ExportError, compare, refuse_if_wrong, write_graph

MAX_ERROR = 1e-4
"""Two orders of float32 sums of a few hundred terms differ by some 1e-6; a wrong graph by more than 1e-2."""
TRIED_STEPS = (1, 2, 7, 25, 63)
"""Latent steps of the windows that a graph is tried on; at 4 frames a step, up to 10 s."""


@dataclass(frozen=True, kw_only=True)
class GenefaceMotionReport:
    """motion.onnx and its error against torch.

    Attributes:
        path: The graph.
        block_frames, latent_channels: Video frames to a step of the latent, and its width.
        takes_pitch: The graph takes `f0_hz`.
        largest_error: Largest difference between the float32 graph and torch over all tried windows.
        float16_change: Largest change of a landmark by rounding the weights; None where they are float32.
        cases: How many windows were tried.
    """

    path: Path
    block_frames: int
    latent_channels: int
    takes_pitch: bool
    largest_error: float
    float16_change: float | None
    cases: int


class GenefaceMotionChain(nn.Module):
    """Audio2Motion, then PostNet, then the projection onto the landmark subspace, if there is one.

    GeneFace blanks in PostNet those frames whose landmarks are all zero, which marks the padding of a batch
    of clips. Here is one clip, and a network's output is never all zero: no frame is blanked.
    """

    def __init__(
        self,
        audio2motion: Audio2Motion,
        postnet: PostNet,
        pitch_embed: nn.Embedding | None = None,
        subspace: LandmarkSubspace | None = None,
    ) -> None:
        super().__init__()
        self.audio2motion, self.postnet, self.pitch_embed = audio2motion, postnet, pitch_embed
        self.subspace = subspace

    def forward(self, features: Tensor, latent: Tensor, f0_hz: Tensor | None = None) -> Tensor:
        """Returns landmarks (1, T, 204).

        Args:
            features: (1, 2 T, feature_dimension).
            latent: (1, latent_channels, T / block_frames), noise already times its temperature.
            f0_hz: (1, 2 T), 0 where unvoiced; only for the pitch variant.
        """
        landmarks = self.audio2motion.predict(features, f0_hz=f0_hz, z_prior=latent)  # (1, T, 204)
        pitch = None
        if self.pitch_embed is not None:
            assert f0_hz is not None
            pitch = self.pitch_embed(f0_to_coarse(f0_hz[:, ::2]))  # (1, T, 64)
        refined: Tensor = self.postnet(landmarks, pitch=pitch)  # (1, T, 204)
        return refined if self.subspace is None else self.subspace(refined)


def export_geneface_motion(
    chain: GenefaceMotionChain,
    *,
    path: Path,
    features: F32 | None = None,
    f0_hz: F32 | None = None,
    float32_weights: bool = False,
) -> GenefaceMotionReport:
    """Writes motion.onnx to `path` and returns its error against the torch modules.

    The graph takes `features` (1, 2 T, feature_dimension), `latent` (1, latent_channels, T / block_frames)
    and, for the pitch variant, `f0_hz` (1, 2 T); it gives `landmarks` (1, T, 204).

    Args:
        chain: Audio2Motion as it stands in PostNet's checkpoint, the speaker's PostNet, for the pitch variant
            the embedding that both take, and the projection, if there is one.
        path: Where the graph goes; one file.
        features: (Tx, feature_dimension) of real speech to compare on, besides noise.
        f0_hz: (>= Tx,) of the same speech.
        float32_weights: Keep the weights as they are, twice the size.

    Raises:
        ExportError: The networks do not fit together, or the graph differs from its source.
        GraphError: Rounded weights change the landmarks too much.
    """
    audio2motion, config = chain.audio2motion, chain.audio2motion.config
    takes_pitch = config.pitch_channels > 0
    if config.causal:
        raise ExportError(
            "motion.onnx: audio2motion: expected one that looks both ways, got a causal one; "
            "export.bundle.motion writes those"
        )
    for name, there in (
        ("postnet", chain.postnet.config.pitch_channels > 0),
        ("pitch_embed", chain.pitch_embed is not None),
    ):
        if there != takes_pitch:
            expected, got = ("one", "none") if takes_pitch else ("none", "one")
            raise ExportError(
                f"motion.onnx: {name}: expected {expected} that hears pitch, as audio2motion does"
                f"{'' if takes_pitch else ' not'}, got {got}; take both from one PostNet checkpoint"
            )
    chain = chain.eval()
    names = ("features", "latent", "f0_hz") if takes_pitch else ("features", "latent")
    feeds = _windows_to_try(audio2motion, features, f0_hz)
    steps = torch.export.Dim("steps", min=1, max=1 << 20)
    block = 2 * config.squeeze
    axes = {"features": {1: block * steps}, "latent": {2: steps}, "f0_hz": {1: block * steps}}
    example = tuple(torch.from_numpy(feeds[TRIED_STEPS.index(7)][name]) for name in names)
    write_graph(
        plain_copy(chain),
        example,
        path,
        inputs=names,
        outputs=("landmarks",),
        dynamic_shapes=tuple(axes[name] for name in names),
    )
    content = strip_metadata(path.read_bytes())
    error = compare(content, chain, feeds).largest_error
    refuse_if_wrong(path, error, MAX_ERROR)
    change = None
    if not float32_weights:
        small = to_float16_weights(content, feeds)
        content, change = small.content, small.rounding
    path.write_bytes(content)
    return GenefaceMotionReport(
        path=path,
        block_frames=config.squeeze,
        latent_channels=config.latent_channels,
        takes_pitch=takes_pitch,
        largest_error=error,
        float16_change=change,
        cases=len(feeds),
    )


def _windows_to_try(
    audio2motion: Audio2Motion, features: F32 | None, f0_hz: F32 | None
) -> list[dict[str, F32]]:
    """Returns inputs of `TRIED_STEPS` steps of noise, and of the recording where it is that long."""
    config = audio2motion.config
    random = np.random.default_rng(0)
    longest = 2 * config.squeeze * max(TRIED_STEPS)
    noise = random.normal(0, 0.5, (longest, config.feature_dimension)).astype(np.float32)
    hertz = (random.uniform(60, 600, longest) * random.integers(0, 2, longest)).astype(np.float32)
    sources = [(noise, hertz)]
    if features is not None:
        sources.append((features, np.zeros(len(features), np.float32) if f0_hz is None else f0_hz))
    feeds = []
    for encoded, pitch in sources:
        for steps in TRIED_STEPS:
            length = 2 * config.squeeze * steps
            if len(encoded) < length:
                continue
            part = slice(start := int(random.integers(0, len(encoded) - length + 1)), start + length)
            feed = {
                "features": encoded[None, part].astype(np.float32),
                "latent": random.standard_normal((1, config.latent_channels, steps)).astype(np.float32),
            }
            if config.pitch_channels:
                feed["f0_hz"] = _middle_of_step(pitch[part].astype(np.float32))[None]
            feeds.append(feed)
    return feeds


def _middle_of_step(f0_hz: F32) -> F32:
    """Returns the pitch of each coarse step's middle, where two logarithms cannot round to two steps."""
    coarse = f0_to_coarse(torch.from_numpy(f0_hz)).numpy()
    lowest, highest = (1127.0 * np.log1p(hz / 700.0) for hz in (50.0, 1100.0))
    hertz = 700.0 * np.expm1(((coarse - 1) * (highest - lowest) / 254.0 + lowest) / 1127.0)
    middle: F32 = np.where(f0_hz > 0, hertz, 0.0).astype(np.float32)
    return middle
