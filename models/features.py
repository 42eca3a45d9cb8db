"""Audio features: the log-mel front end of the motion networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_kernels.errors import InputError

from .time_base import FEATURE_HOP_SAMPLES, SAMPLE_RATE_HZ
from .torchaudio_pair import import_torchaudio


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Sizes of the log-mel front end; the defaults are GeneFace's mel."""

    sample_rate_hz: int = SAMPLE_RATE_HZ
    window_samples: int = 512
    hop_samples: int = FEATURE_HOP_SAMPLES
    bands: int = 80
    lowest_hz: float = 80.0
    highest_hz: float = 7600.0
    floor: float = 1e-6

    def __post_init__(self) -> None:
        """Raises InputError where the framing by whole hops would not hold."""
        if not self.hop_samples <= self.window_samples <= 2 * self.hop_samples:
            raise InputError(
                f"LogMelConfig: window_samples: expected hop_samples ({self.hop_samples}) to twice that, "
                f"got {self.window_samples}; change one of the two"
            )
        if not 0 <= self.lowest_hz < self.highest_hz <= self.sample_rate_hz / 2:
            raise InputError(
                f"LogMelConfig: lowest_hz, highest_hz: expected 0 <= lowest < highest <= "
                f"{self.sample_rate_hz / 2}, got {self.lowest_hz}, {self.highest_hz}; narrow the band"
            )


class LogMel(nn.Module):
    """Log10 amplitude mel bands of 16 kHz audio, two frames to a video frame.

    Called on bare samples, frame k covers samples [320 k, 320 k + 512): the framing of the reference's mel.
    Called on samples that begin 192 earlier (`causal` pads them), frame k covers [320 k - 192, 320 k + 320)
    and depends on nothing later than its own 20 ms. The maths is the same.

    The Fourier transform is two matrix products, on the even and the odd half of the window: that exports to
    ONNX, and only the bins that a band uses are computed. There are no parameters and no state to save.

    Attributes:
        dimension: Numbers in one feature frame.
        left_context_samples: Samples before its own 20 ms that it depends on.
        centre_hz: Mean frequency of each band, (bands,).
    """

    def __init__(self, config: LogMelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LogMelConfig()
        self.dimension = config.bands
        self.left_context_samples = config.window_samples - config.hop_samples
        size = config.window_samples
        mel_bands = import_torchaudio().functional.melscale_fbanks(
            n_freqs=size // 2 + 1,
            f_min=config.lowest_hz,
            f_max=config.highest_hz,
            n_mels=config.bands,
            sample_rate=config.sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        filters = mel_bands.numpy()  # (size // 2 + 1, bands)
        used = np.flatnonzero(filters.any(axis=1))
        n, k = np.arange(size), np.arange(used[0], used[-1] + 1)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / size)
        angle = 2 * np.pi * np.outer(n, k) / size  # (window, bins)
        half = size // 2
        # x[n] + x[size - n] meets the cosine once, x[n] - x[size - n] the sine; the window is symmetric too.
        cosine = (hann[:, None] * np.cos(angle))[1 : half + 1]  # (half, bins), sample 0 has window weight 0
        cosine[-1] *= 0.5  # sample `half` is its own mirror
        sine = (hann[:, None] * np.sin(angle))[1 : half + 1]  # (half, bins)
        centre_hz = (k * config.sample_rate_hz / size) @ filters[k] / filters.sum(axis=0)  # (bands,)
        tables = (("cosine", cosine), ("sine", sine), ("filters", filters[k]), ("centre_hz", centre_hz))
        for name, table in tables:
            self.register_buffer(name, torch.from_numpy(table.astype(np.float32)), persistent=False)
        self.cosine: Tensor
        self.sine: Tensor
        self.filters: Tensor
        self.centre_hz: Tensor

    def forward(self, pcm: Tensor) -> Tensor:
        """Returns (B, (samples - 512) // 320 + 1, bands) of `pcm` (B, samples) in [-1, 1]."""
        hop, size = self.config.hop_samples, self.config.window_samples
        if pcm.ndim != 2 or pcm.shape[1] < size:
            raise InputError(
                f"LogMel: pcm: expected (batch, >= {size}) samples, got {tuple(pcm.shape)}; pad it"
            )
        frames = (pcm.shape[1] - size) // hop + 1
        needed = (frames + 1) * hop
        pcm = functional.pad(pcm[:, :needed], (0, max(0, needed - pcm.shape[1])))  # (B, (frames + 1) hop)
        hops = pcm.reshape(pcm.shape[0], frames + 1, hop)  # (B, frames + 1, hop)
        x = torch.cat([hops[:, :-1], hops[:, 1:, : size - hop]], dim=2)  # (B, frames, window)
        half = size // 2
        # Samples n and window - n, each (B, frames, half).
        ahead, behind = x[..., 1 : half + 1], x[..., half:].flip(-1)
        real = (ahead + behind) @ self.cosine  # (B, frames, bins)
        imaginary = (ahead - behind) @ self.sine  # (B, frames, bins)
        amplitude = torch.sqrt(real * real + imaginary * imaginary)  # (B, frames, bins)
        return torch.log10(torch.clamp(amplitude @ self.filters, min=self.config.floor))  # (B, frames, bands)

    def causal(self, pcm: Tensor) -> Tensor:
        """Returns (B, samples // 320, bands) of `pcm` (B, samples) after silence."""
        return self.forward(functional.pad(pcm, (self.left_context_samples, 0)))
