"""PostNet, which maps generic landmarks to one speaker's domain, and its discriminator.

With the default sizes both are GeneFace's, key for key; `PostNetConfig.streaming()` is small and causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cuda_kernels.errors import InputError

from .audio2motion import LANDMARK_DIMENSION
from .time_convolution import TimeConv1d, last_frames


@dataclass(frozen=True, kw_only=True)
class PostNetConfig:
    """Sizes of PostNet; the defaults are GeneFace's.

    Attributes:
        pitch_channels: Channels of the pitch embedding that enters beside the landmarks; 0 for none.
        widths: Channels of the three blocks.
        residuals: Residual units that follow the first one in each of the first two blocks.
        causal: Every layer looks only back.
    """

    pitch_channels: int = 0
    widths: tuple[int, int, int] = (128, 256, 128)
    residuals: int = 2
    causal: bool = False

    @classmethod
    def streaming(cls) -> PostNetConfig:
        """Returns May's sizes."""
        return cls(widths=(64, 96, 64), residuals=1, causal=True)

    @property
    def receptive_field_frames(self) -> int:
        """Frames, its own included, that one output frame depends on; to both sides unless causal."""
        return 1 + 2 * (2 * (1 + self.residuals) + 1)


def nonzero_frames(landmarks: Tensor) -> Tensor:
    """Returns (B, T), 1 where a frame of (B, T, 204) is not all zero: GeneFace's mask."""
    return (landmarks.abs().sum(dim=-1) != 0).to(landmarks.dtype)


class ConvUnit(nn.Module):
    """Convolution of 3 frames, batch norm, its input if residual, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            TimeConv1d(inputs, outputs, 3, causal=causal), nn.BatchNorm1d(outputs)
        )
        self.act = nn.LeakyReLU(0.2)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, T)."""
        y: Tensor = self.conv_block(x)
        if self.residual:
            y = y + last_frames(x, y)
        return self.act(y)  # type: ignore[no-any-return]


class PostNet(nn.Module):
    """Landmarks plus a learnt correction."""

    def __init__(self, config: PostNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PostNetConfig()
        first, second, third = config.widths
        causal = config.causal

        def block(inputs: int, outputs: int) -> nn.Sequential:
            rest = (ConvUnit(outputs, outputs, residual=True, causal=causal) for _ in range(config.residuals))
            return nn.Sequential(ConvUnit(inputs, outputs, causal=causal), *rest)

        self.block1 = block(LANDMARK_DIMENSION + config.pitch_channels, first)
        self.block2 = block(first, second)
        last = nn.Conv1d(third, LANDMARK_DIMENSION, 1)
        nn.init.zeros_(last.weight)  # training starts with no correction
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.block3 = nn.Sequential(ConvUnit(second, third, causal=causal), last)

    def forward(
        self, landmarks: Tensor, *, mask: Tensor | None = None, pitch: Tensor | None = None
    ) -> Tensor:
        """Returns the corrected landmarks (B, T, 204).

        Args:
            landmarks: (B, T, 204), un-normalised.
            mask: (B, T), 1 where a frame counts, `nonzero_frames` for GeneFace's rule; all count if absent.
            pitch: (B, T, pitch_channels), embedded.
        """
        if (pitch is not None) != bool(self.config.pitch_channels):
            raise InputError(
                f"PostNet: pitch: expected {self.config.pitch_channels} channels, got "
                f"{'none' if pitch is None else pitch.shape[-1]}; only the pitch variant takes it"
            )
        x = landmarks if pitch is None else torch.cat([landmarks, pitch], dim=-1)
        x = x.transpose(1, 2)  # (B, 204 + pitch, T)
        for block in (self.block1, self.block2, self.block3):
            x = block(x)
            if mask is not None:
                x = x * mask[:, None]
        return last_frames(landmarks.transpose(1, 2), x).transpose(1, 2) + x.transpose(1, 2)


class MotionDiscriminator(nn.Module):
    """Classifies single frames of landmarks: 1 for the speaker's own, 0 for others."""

    def __init__(self, widths: tuple[int, ...] = (128, 256, 256, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = LANDMARK_DIMENSION
        for place, width in enumerate(widths):
            slope = 0.2 if place == 0 else 0.25
            layers += [nn.Linear(inputs, width), nn.LeakyReLU(slope), nn.Dropout(0.25)]
            inputs = width
        self.backbone = nn.Sequential(*layers, nn.Linear(inputs, 1, bias=False))

    def forward(self, frames: Tensor) -> Tensor:
        """Returns (N, 1) of landmarks (N, 204)."""
        return self.backbone(frames)  # type: ignore[no-any-return]
