"""A GeneFace speaker's `trainval_dataset.npy`: poses, camera, background and landmark statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32, F64, U8
from models.settings import one_line

from .pickles import GenefaceFileError, read_npy

POINTS: Final = 68
HUBERT_DIMENSION: Final = 1024
MELS: Final = 80
_SMOOTHING_FRAMES: Final = 7
"""GeneFace's `infer_smooth_camera_path_kernel_size`: a pose and three to each side."""
_ROTATION_ERROR: Final = 1e-3
_FEATURE_SLACK_FRAMES: Final = 2
"""HuBERT's, mel's and pitch's frames are counted by different rules, one apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenefaceDataset:
    """One speaker's data, its T video frames in order: those for training, then those for validation.

    Attributes:
        poses: (T, 4, 4) camera to head space, as tracked.
        poses_smoothed: (T, 4, 4), what GeneFace's inference draws from.
        focal_px, cx_px, cy_px: The camera.
        image_size_px: Height and width.
        background: (H, W, 3) RGB.
        landmark_mean, landmark_std: (68, 3) over all frames; landmarks are ten times the offset from the mean
            face in decimetres.
        landmarks: (T, 68, 3), not normalised.
        hubert: (Tx, 1024) features of the video's sound at 50 Hz.
        f0_hz: (Tx,) pitch, 0 where unvoiced; None where the file has none.
        mel: (Tx, 80) log10 amplitudes; None where the file has none.
    """

    poses: F32
    poses_smoothed: F32
    focal_px: float
    cx_px: float
    cy_px: float
    image_size_px: int
    background: U8
    landmark_mean: F32
    landmark_std: F32
    landmarks: F32
    hubert: F32
    f0_hz: F32 | None
    mel: F32 | None


def read_dataset(file: Path) -> GenefaceDataset:
    """Returns the content of a `trainval_dataset.npy`.

    Raises:
        GenefaceFileError: the file is broken, holds anything but arrays, texts and numbers, or a value is
            missing, of another shape, not finite or contradicts another.
    """
    content = read_npy(file)
    if not isinstance(content, dict):
        raise GenefaceFileError(
            f"{file}: expected a dict, got {type(content).__name__}; give trainval_dataset.npy"
        )
    entries = _Entries(file, content)
    height, width = (int(entries.number(key)) for key in ("H", "W"))
    entries.require(height == width > 0, "H, W", "a square picture", f"{height} by {width}")
    background = entries.array("bg_img", (height, width, 3), np.uint8)
    camera = {key: entries.number(key) for key in ("focal", "cx", "cy")}
    entries.require(camera["focal"] > 0, "focal", "above 0", camera["focal"])
    for key in ("cx", "cy"):
        entries.require(0 <= camera[key] <= width, key, f"within the picture's 0 to {width}", camera[key])

    samples = [*entries.samples("train_samples"), *entries.samples("val_samples")]
    poses = np.stack([sample.array("c2w", (4, 4), np.float64) for sample in samples])
    for sample, pose in zip(samples, poses, strict=True):
        _check_pose(sample, pose)
    landmarks = np.stack([sample.array("idexp_lm3d", (POINTS, 3), np.float32) for sample in samples])
    std = entries.array("idexp_lm3d_std", (1, POINTS, 3), np.float32)[0]
    flat = np.flatnonzero(std.min(axis=1) <= 0)
    got = f"one that never moves: point {flat[0]}" if len(flat) else ""
    entries.require(not len(flat), "idexp_lm3d_std", "points that move", got)

    hubert = entries.array("hubert", (None, HUBERT_DIMENSION), np.float32)
    f0_hz = entries.array("f0", (None,), np.float32) if entries.has("f0") else None
    mel = entries.array("mel", (None, MELS), np.float32) if entries.has("mel") else None
    counts = {len(feature) for feature in (hubert, f0_hz, mel) if feature is not None}
    alike = max(counts) - min(counts) <= _FEATURE_SLACK_FRAMES
    entries.require(alike, "hubert, f0, mel", "as many frames each", sorted(counts))
    frames = min(counts)
    return GenefaceDataset(
        poses=poses.astype(np.float32),
        poses_smoothed=smooth_poses(poses).astype(np.float32),
        focal_px=camera["focal"],
        cx_px=camera["cx"],
        cy_px=camera["cy"],
        image_size_px=height,
        background=background,
        landmark_mean=entries.array("idexp_lm3d_mean", (1, POINTS, 3), np.float32)[0],
        landmark_std=std,
        landmarks=landmarks,
        hubert=hubert[:frames],
        f0_hz=None if f0_hz is None else f0_hz[:frames],
        mel=None if mel is None else mel[:frames],
    )


def smooth_poses(poses: F64) -> F64:
    """Returns (T, 4, 4) poses, each the mean of those at most three frames from it.

    Translations are averaged; the mean rotation is the one whose matrix is nearest to all in the sum of
    squares (the chordal mean, which SciPy's `Rotation.mean` is): the singular vectors of the matrices' mean.
    """
    smoothed = poses.copy()
    reach = _SMOOTHING_FRAMES // 2
    for i in range(len(poses)):
        near = poses[max(0, i - reach) : i + reach + 1]
        u, _, v = np.linalg.svd(near[:, :3, :3].mean(axis=0))
        u[:, 2] *= np.linalg.det(u @ v)  # a rotation, no reflection
        smoothed[i, :3, :3] = u @ v
        smoothed[i, :3, 3] = near[:, :3, 3].mean(axis=0)
    return smoothed


def _check_pose(sample: _Entries, pose: F64) -> None:
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    whole = error <= _ROTATION_ERROR and np.linalg.det(rotation) > 0 and (pose[3] == (0, 0, 0, 1)).all()
    expected = f"a rotation (within {_ROTATION_ERROR:g}) and a translation"
    sample.require(bool(whole), "c2w", expected, f"another matrix (off by {error:.2g})")


class _Entries:
    """A dict of the file: values are checked when read; a refusal names their key."""

    def __init__(self, file: Path, values: Mapping[Any, Any], place: str = "") -> None:
        self._file = file
        self._values = values
        self._place = place

    def require(self, holds: bool, key: str, expected: str, got: object) -> None:
        if not holds:
            raise GenefaceFileError(
                f"{self._file}: {self._place}{key}: expected {expected}, got {one_line(str(got))}; "
                f"binarize the speaker's data again with GeneFace"
            )

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def number(self, key: str) -> float:
        value = self._values.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.require(False, key, "a number", "none" if value is None else type(value).__name__)
        assert isinstance(value, (int, float))
        self.require(abs(value) < 1e6, key, "a finite number within 1e6", value)
        return float(value)

    def array(self, key: str, shape: tuple[int | None, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Returns a copy as `dtype` of the array of that shape, None being any size above 0.

        All numbers are finite, in float32 too.
        """
        value = self._values.get(key)
        expected = "x".join("any" if size is None else str(size) for size in shape)
        if not isinstance(value, np.ndarray):
            self.require(
                False, key, f"an array of {expected}", "none" if value is None else type(value).__name__
            )
        assert isinstance(value, np.ndarray)
        fits = len(shape) == value.ndim and all(
            size == given if size is not None else given > 0
            for size, given in zip(shape, value.shape, strict=True)
        )
        self.require(fits, key, f"shape {expected}", "x".join(map(str, value.shape)) or "a single value")
        if dtype is np.uint8:
            self.require(value.dtype == np.uint8, key, "bytes", value.dtype)
        else:
            self.require(value.dtype.kind in "fiu", key, "numbers", value.dtype)
            with np.errstate(over="ignore"):
                finite = bool(np.isfinite(value.astype(np.float32)).all())
            self.require(finite, key, "finite numbers, in float32 too", "others")
        return value.astype(dtype)

    def samples(self, key: str) -> list[_Entries]:
        """Returns the entries of each video frame's dict in a list that is not empty."""
        values = self._values.get(key)
        if not isinstance(values, list) or not values:
            self.require(False, key, "a list of frames", "none" if not values else type(values).__name__)
        assert isinstance(values, list)
        for i, value in enumerate(values):
            self.require(isinstance(value, dict), f"{key}[{i}]", "a dict", type(value).__name__)
        return [_Entries(self._file, value, f"{key}[{i}].") for i, value in enumerate(values)]
