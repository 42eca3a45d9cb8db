"""Image quality against the ground truth: PSNR and SSIM by region, pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cuda_kernels.arrays import BOOL, F32, F64, U8
from models.partial_files import atomic_write

PSNR_CEILING_DB = 100.0


def write_picture(path: Path, picture: U8) -> None:
    """Writes (H, W, 3) RGB to a file; its suffix is the format.

    Raises:
        OSError: it could not be written.
    """
    with atomic_write(path) as part:
        if not cv2.imwrite(str(part), np.ascontiguousarray(picture[..., ::-1])):
            raise OSError(f"{path}: could not be written; is the disk full?")


def psnr_of(mean_squared_error: float) -> float:
    """Returns the peak signal-to-noise ratio in dB of values in [0, 1], at most PSNR_CEILING_DB."""
    return float(min(PSNR_CEILING_DB, -10 * np.log10(max(mean_squared_error, 1e-10))))


def squared_error(picture: U8, truth: U8) -> F64:
    """Returns squared errors (H, W), mean over the channels, of pictures scaled to [0, 1]."""
    difference = (picture.astype(np.float64) - truth.astype(np.float64)) / 255
    mean: F64 = np.square(difference).mean(-1)
    return mean


def ssim_map(picture: U8, truth: U8) -> F64:
    """Returns SSIM (H, W), mean over the channels (Wang et al. 2004: Gaussian of 1.5 px, 11 x 11)."""
    a, b = picture.astype(np.float64) / 255, truth.astype(np.float64) / 255

    def blur(image: F64) -> F64:
        return np.asarray(cv2.GaussianBlur(image, (11, 11), 1.5), dtype=np.float64)

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    similarity: F64 = (luminance * structure).mean(-1)
    return similarity


def box_of(points: F32, size_px: int, *, margin: float = 0.2) -> tuple[int, int, int, int]:
    """Returns the bounding box (x0, y0, x1, y1) of points (p, 2), widened by `margin` of its longer side."""
    low, high = points.min(0), points.max(0)
    pad = margin * float((high - low).max())
    x0, y0 = (int(v) for v in np.clip(np.floor(low - pad), 0, size_px - 1))
    x1, y1 = (int(v) for v in np.clip(np.ceil(high + pad), 1, size_px))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """PSNR and SSIM by region, over frames."""

    psnr_db: dict[str, float]  # of the mean squared error over all frames
    ssim: dict[str, float]


class ClosenessMeter:
    """Accumulates PSNR and SSIM by region over frames."""

    def __init__(self) -> None:
        """Starts empty."""
        self._error: dict[str, list[float]] = {}
        self._ssim: dict[str, list[float]] = {}

    def add(self, picture: U8, truth: U8, regions: Mapping[str, BOOL]) -> None:
        """Adds one frame (H, W, 3) with the masks (H, W) of its regions; empty ones are skipped."""
        error, similarity = squared_error(picture, truth), ssim_map(picture, truth)
        for name, region in regions.items():
            if region.any():
                self._error.setdefault(name, []).append(float(error[region].mean()))
                self._ssim.setdefault(name, []).append(float(similarity[region].mean()))

    def closeness(self) -> Closeness:
        """Returns the figures of all frames so far."""
        return Closeness(
            psnr_db={name: psnr_of(float(np.mean(values))) for name, values in self._error.items()},
            ssim={name: float(np.mean(values)) for name, values in self._ssim.items()},
        )


def regions_of(labels: U8, landmarks_2d: F32) -> dict[str, BOOL]:
    """Returns masks (H, W) of the measured regions: whole, head and torso by label, mouth by box."""
    size_px = labels.shape[0]
    mouth = np.zeros(labels.shape, dtype=np.bool_)
    x0, y0, x1, y1 = box_of(landmarks_2d[48:68], size_px)
    mouth[y0:y1, x0:x1] = True
    return {
        "whole": np.ones(labels.shape, dtype=np.bool_),
        "head": labels == 1,
        "mouth": mouth,
        "torso": labels >= 2,
    }


def side_by_side(picture: U8, truth: U8, landmarks_2d: F32) -> U8:
    """Returns rendering, ground truth and five times their difference; below, the mouth enlarged."""
    difference = np.abs(picture.astype(np.int16) - truth.astype(np.int16)) * 5
    error = np.clip(difference, 0, 255).astype(np.uint8)
    top = np.hstack([picture, truth, error])
    size_px = picture.shape[0]
    x0, y0, x1, y1 = box_of(landmarks_2d[48:68], size_px, margin=0.3)
    height = max(1, round(size_px * (y1 - y0) / (x1 - x0)))
    crops = [
        cv2.resize(
            np.ascontiguousarray(image[y0:y1, x0:x1]), (size_px, height), interpolation=cv2.INTER_CUBIC
        )
        for image in (picture, truth, error)
    ]
    return np.asarray(np.vstack([top, np.hstack(crops)]), dtype=np.uint8)
