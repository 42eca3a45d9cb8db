"""Untrained causal networks in which all does something, and the windows that a stream cuts for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.time_base import FRAME_SAMPLES


def unsettled(module: nn.Module, seed: int = 1) -> nn.Module:
    """Returns the module in evaluation mode with no weight at zero and batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1, generator=generator)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def motion_windows(
    pcm: np.ndarray, *, window_frames: int, lookahead_frames: int, left_context_samples: int
) -> np.ndarray:
    """Returns the windows (T, window_samples) for each whole frame of `pcm` (samples,), silence around it.

    The window of frame i ends at sample 640 (i + 1 + lookahead_frames).
    """
    frames = len(pcm) // FRAME_SAMPLES
    width = FRAME_SAMPLES * window_frames + left_context_samples
    left = width - FRAME_SAMPLES * (1 + lookahead_frames)
    padded = np.pad(pcm[: frames * FRAME_SAMPLES], (max(0, left), FRAME_SAMPLES * lookahead_frames))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::FRAME_SAMPLES]
    return np.ascontiguousarray(windows[:frames])
