"""SyncNet: audio-visual synchronisation of sound and mouth movements.

Two encoders map 0.2 s of audio and of mouth landmarks to unit vectors that are compared by cosine (after
Chung and Zisserman, 2016, and Prajwal et al., 2020). With `SyncNetConfig()` it is GeneFace's, key for key.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from cuda_kernels.errors import InputError

MOUTH_POINTS = slice(48, 68)
MOUTH_DIMENSION = 60
"""20 points by x, y, z."""
MOTION_FRAMES = 5
"""Video frames of a window."""
AUDIO_FRAMES = 10
"""Feature frames of a window, at 50 Hz; they begin at twice the first video frame."""


@dataclass(frozen=True, kw_only=True)
class SyncNetConfig:
    """Sizes of SyncNet; the defaults are GeneFace's.

    Attributes:
        feature_dimension: Numbers in one audio feature frame.
        feature_offset, feature_scale: A feature f enters as (f + offset) * scale.
        audio_widths: Channels of the audio encoder's four stages, the last is the embedding's.
        mouth_stem: Channels of the mouth encoder's first layer.
        mouth_widths: Channels of the mouth encoder's stages.
    """

    feature_dimension: int = 1024
    feature_offset: float = 0.0
    feature_scale: float = 1.0
    audio_widths: tuple[int, int, int] = (128, 256, 512)
    mouth_stem: int = 96
    mouth_widths: tuple[int, int, int] = (128, 256, 512)

    def __post_init__(self) -> None:
        """Raises InputError where the two embeddings would differ in size."""
        if self.audio_widths[-1] != self.mouth_widths[-1]:
            raise InputError(
                f"SyncNetConfig: audio_widths, mouth_widths: expected the same last width, got "
                f"{self.audio_widths[-1]} and {self.mouth_widths[-1]}; the embeddings are compared"
            )

    @classmethod
    def streaming(cls) -> SyncNetConfig:
        """Returns May's sizes, for log-mel features."""
        return cls(
            feature_dimension=80,
            feature_offset=6.0,
            feature_scale=0.4,
            audio_widths=(64, 96, 128),
            mouth_stem=48,
            mouth_widths=(64, 96, 128),
        )


class ConvUnit(nn.Module):
    """Convolution, batch norm, its input if residual, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, stride, padding), nn.BatchNorm1d(outputs)
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, frames / stride)."""
        y = self.conv_block(x)
        return functional.relu(y + x if self.residual else y)


def _stage(inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    return [
        ConvUnit(inputs, outputs, stride=stride),
        ConvUnit(outputs, outputs, residual=True),
        ConvUnit(outputs, outputs, residual=True),
    ]


def _head(width: int) -> list[nn.Module]:
    """Returns the layers from 3 frames of `width` channels to one."""
    return [
        ConvUnit(width, width),
        ConvUnit(width, width, padding=0),
        ConvUnit(width, width, kernel=1, padding=0),
    ]


class SyncNet(nn.Module):
    """The two encoders. Embeddings are of unit length and not negative, so cosines lie in [0, 1]."""

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SyncNetConfig()
        first, second, third = config.audio_widths
        self.hubert_encoder = nn.Sequential(
            ConvUnit(config.feature_dimension, first),  # 10 frames
            *_stage(first, first, stride=1),  # 10
            *_stage(first, second, stride=2),  # 5
            *_stage(second, third, stride=2),  # 3
            *_head(third),  # 1
        )
        first, second, third = config.mouth_widths
        self.mouth_encoder = nn.Sequential(
            ConvUnit(MOUTH_DIMENSION, config.mouth_stem),  # 5 frames
            *_stage(config.mouth_stem, first, stride=1),  # 5
            *_stage(first, second, stride=2),  # 3
            *_stage(second, third, stride=1),  # 3
            *_head(third),  # 1
        )

    def embed_audio(self, features: Tensor) -> Tensor:
        """Returns (B, embedding) of (B, 10, feature_dimension)."""
        config = self.config
        if features.ndim != 3 or features.shape[1:] != (AUDIO_FRAMES, config.feature_dimension):
            raise InputError(
                f"SyncNet: features: expected (batch, {AUDIO_FRAMES}, {config.feature_dimension}), got "
                f"{tuple(features.shape)}; cut windows of {AUDIO_FRAMES} feature frames"
            )
        if (config.feature_offset, config.feature_scale) != (0.0, 1.0):
            features = (features + config.feature_offset) * config.feature_scale
        return functional.normalize(self.hubert_encoder(features.transpose(1, 2)).flatten(1), dim=1)

    def embed_mouth(self, mouth: Tensor) -> Tensor:
        """Returns (B, embedding) of (B, 5, 60), the un-normalised landmarks of points 48 to 67."""
        if mouth.ndim != 3 or mouth.shape[1:] != (MOTION_FRAMES, MOUTH_DIMENSION):
            raise InputError(
                f"SyncNet: mouth: expected (batch, {MOTION_FRAMES}, {MOUTH_DIMENSION}), got "
                f"{tuple(mouth.shape)}; cut windows of {MOTION_FRAMES} frames of points 48 to 67"
            )
        return functional.normalize(self.mouth_encoder(mouth.transpose(1, 2)).flatten(1), dim=1)

    def forward(self, features: Tensor, mouth: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both embeddings, (B, embedding) each."""
        return self.embed_audio(features), self.embed_mouth(mouth)
