"""Condition networks: a window of normalised landmarks to one vector a frame (RAD-NeRF's audio nets)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from .settings import Range, check_ranges, require


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """Sizes of the condition networks; the defaults are GeneFace's."""

    inputs: Annotated[int, Range(1, 4096)] = 204  # numbers a frame
    window_frames: Annotated[int, Range(1, 64)] = 5
    lookahead_frames: int = 2  # of them, after the frame itself
    hidden: Annotated[tuple[int, int, int, int], Range(1, 1024)] = (32, 32, 64, 64)
    outputs: Annotated[int, Range(1, 1024)] = 64

    def __post_init__(self) -> None:
        """Raises SettingsError for a size out of range or a window that does not hold its own frame."""
        check_ranges(self)
        last = self.window_frames - 1
        require(0 <= self.lookahead_frames <= last, "lookahead_frames", f"0 to {last}", self.lookahead_frames)


class FramePrenet(nn.Module):
    """One frame's landmarks to one vector."""

    def __init__(self, config: ConditionConfig) -> None:
        """Convolutions over a time axis of length 1, so that only their centre taps matter."""
        super().__init__()
        widths = (config.inputs, *config.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv1d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.02)]
        self.encoder_conv = nn.Sequential(*layers)
        self.encoder_fc1 = nn.Sequential(
            nn.Linear(widths[-1], 64), nn.LeakyReLU(0.02), nn.Linear(64, config.outputs)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Returns (N, outputs) of (N, inputs) normalised landmarks."""
        hidden = self.encoder_conv(frames.unsqueeze(-1)).squeeze(-1)  # (N, hidden[-1])
        out: Tensor = self.encoder_fc1(hidden)
        return out


class WindowAttention(nn.Module):
    """Weights of the frames of a window, and their weighted sum."""

    def __init__(self, config: ConditionConfig) -> None:
        """Five convolutions down to one channel, then one linear layer over the window."""
        super().__init__()
        widths = (config.outputs, 16, 8, 4, 2, 1)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv1d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.02)]
        self.attentionConvNet = nn.Sequential(*layers)
        self.attentionNet = nn.Sequential(nn.Linear(config.window_frames, config.window_frames))

    def weights(self, features: Tensor) -> Tensor:
        """Returns (B, W) weights that sum to 1 of (B, W, C) features."""
        scores = self.attentionConvNet(features.transpose(1, 2)).squeeze(1)  # (B, W)
        return torch.softmax(self.attentionNet(scores), -1)

    def forward(self, features: Tensor) -> Tensor:
        """Returns (B, C) of (B, W, C)."""
        return (self.weights(features).unsqueeze(-1) * features).sum(1)


class ConditionNet(nn.Module):
    """Windows of landmarks to conditions; a window of one frame needs no attention and has none."""

    def __init__(self, config: ConditionConfig) -> None:
        """Builds the two networks under the reference's names."""
        super().__init__()
        self.config = config
        self.cond_prenet = FramePrenet(config)
        self.cond_att_net = WindowAttention(config) if config.window_frames > 1 else None

    def forward(self, windows: Tensor) -> Tensor:
        """Returns (B, outputs) of (B, W, inputs) normalised landmarks."""
        return encode_windows(windows, self.cond_prenet, self.cond_att_net)


def encode_windows(windows: Tensor, prenet: FramePrenet, attention: WindowAttention | None) -> Tensor:
    """Returns (B, C) conditions of (B, W, inputs) windows."""
    features = prenet(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])  # (B, W, C)
    out: Tensor = features[:, 0] if attention is None else attention(features)
    return out
