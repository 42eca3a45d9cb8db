"""Post-processing of predicted landmarks: normalisation, clamping, exponential smoothing."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32

POINTS = 68
BROWS = slice(17, 27)
EYES = slice(36, 48)
MOUTH = slice(48, 68)


def clamp_limits(clamp_std: float) -> F32:
    """Returns each coordinate's limit (68, 3) float32, in standard deviations from its mean.

    Brows and eyes get half of `clamp_std` in x and y (GeneFace's inference rule).
    """
    limits = np.full((POINTS, 3), clamp_std, np.float32)
    limits[BROWS, :2] *= np.float32(0.5)
    limits[EYES, :2] *= np.float32(0.5)
    return limits


class LandmarkFilter:
    """Normalises by the speaker's mean and std, clamps, and smooths over time, frame by frame."""

    def __init__(self, *, mean: F32, std: F32, clamp_std: float, ema: float) -> None:
        """Keeps the speaker's statistics.

        Args:
            mean: (68, 3) float32.
            std: (68, 3) float32, > 0.
            clamp_std: bound of a coordinate, in standard deviations.
            ema: weight of the previous smoothed frame, [0, 1).
        """
        self._mean = np.asarray(mean, np.float32).reshape(POINTS, 3)
        self._std = np.asarray(std, np.float32).reshape(POINTS, 3)
        self._limits = clamp_limits(clamp_std)
        self._ema = np.float32(ema)
        self._previous: F32 | None = None

    def step(self, landmarks: F32) -> F32:
        """Returns the next frame's `landmarks_normalized` (68, 3) float32."""
        normalized = (landmarks.reshape(POINTS, 3) - self._mean) / self._std
        clamped = np.clip(normalized, -self._limits, self._limits)
        if self._previous is not None:
            clamped = self._ema * self._previous + (np.float32(1) - self._ema) * clamped
        self._previous = clamped.astype(np.float32, copy=False)
        return self._previous

    def restore(self, landmarks_normalized: F32) -> F32:
        """Returns landmarks (68, 3) float32 with the speaker's mean and std put back."""
        return landmarks_normalized * self._std + self._mean

    def scale(self, offsets: F32) -> F32:
        """Returns un-normalised offsets (F, 68, 3) in standard deviations."""
        return (offsets / self._std).astype(np.float32)
