"""One speaker's video and ground truth, resident on the training device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cuda_kernels.arrays import F32, U8
from cuda_kernels.errors import InputError
from preparation.corpus_set import LANDMARKS_FILE, read_mean_face
from preparation.silhouettes import FieldBox, field_box, torso_plate
from preparation.speaker_set import (
    SpeakerDataError,
    read_background,
    read_labels,
    read_pictures,
    read_truth,
    training_frames,
)

log = logging.getLogger(__name__)

MOUTH = slice(48, 68)
EYES = (slice(36, 42), slice(42, 48))
STD_FLOOR = 0.03  # in landmark units (a hundredth of a decimetre is 0.1): keeps noise of rigid points small
UPLOAD_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class SpeakerData:
    """A speaker's frames and their ground truth; n frames of H x W pixels, on `device`."""

    pictures: Tensor  # (n, H, W, 3) uint8 RGB
    labels: Tensor  # (n, H, W) uint8, 0..3
    landmarks_normalized: Tensor  # (n, window_frames, 204)
    landmarks_2d: Tensor  # (n, 68, 2) px
    c2w: Tensor  # (n, 4, 4)
    background: Tensor  # (H, W, 3) uint8
    plate: Tensor  # (H, W, 3) uint8: the mean picture without the head, see `torso_plate`
    plate_alpha: Tensor  # (H, W): share of the torso in it, 0..1
    train_frames: int  # the first rows; the rest is the validation split
    frame_index: npt.NDArray[np.int64]  # (n,) place in the video
    mean_face: F32  # (68, 3) dm
    landmark_mean: F32  # (68, 3)
    landmark_std: F32  # (68, 3)
    box: FieldBox

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.pictures.device

    @property
    def size_px(self) -> int:
        """Side of the square pictures."""
        return int(self.pictures.shape[1])


def load_speaker_data(
    folder: Path,
    *,
    device: torch.device,
    frames: int | None = None,
    window_frames: int = 1,
    lookahead_frames: int = 0,
    mean_face: Path | None = None,
) -> SpeakerData:
    """Returns one speaker's data on `device`; `frames` takes that many, spread over the video.

    Raises:
        FileError: a file is absent, broken or does not fit the others.
    """
    truth = read_truth(folder)
    total = len(truth["landmarks"])
    step = 1 if frames is None else max(1, total // frames)
    index = np.arange(0, total, step)[: frames or total]
    train_frames = int((index < training_frames(total)).sum())
    if not 0 < train_frames < len(index):
        way_out = "take more frames or a longer video"
        raise SpeakerDataError(folder, "frames", "11 or more to split", len(index), way_out)

    face = _mean_face(folder, mean_face, truth["landmarks"])
    offsets = 10.0 * (truth["landmarks"] - face)
    mean = offsets.mean(0)
    std = np.maximum(offsets.std(0), STD_FLOOR)
    normalized = ((offsets - mean) / std).reshape(total, -1).astype(np.float32)
    windows = normalized[window_rows(index, total, window_frames, lookahead_frames)]

    background = read_background(folder)
    size_px = len(background)
    pictures = _upload(read_pictures(folder, index, frames=total, size_px=size_px), len(index), device)
    labels = _upload(read_labels(folder, index, frames=total, size_px=size_px), len(index), device)
    plate, plate_alpha = torso_plate(
        pictures[:train_frames], labels[:train_frames], torch.from_numpy(background).to(device)
    )
    box = field_box(
        labels[:train_frames],
        truth["landmarks"][index[:train_frames]],
        truth["c2w"][index[:train_frames]],
        focal_px=float(truth["focal"]),
        cx_px=float(truth["cx"]),
        cy_px=float(truth["cy"]),
    )
    log.info(
        "%s: %d frames, %d train; camera scale %.4f offset %s, aabb %s",
        folder,
        len(index),
        train_frames,
        box.camera.scale,
        tuple(round(value, 4) for value in box.camera.offset),
        np.round(box.aabb, 4).tolist(),
    )

    def tensor(array: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)

    return SpeakerData(
        pictures=pictures,
        labels=labels,
        landmarks_normalized=tensor(windows),
        landmarks_2d=tensor(truth["landmarks_2d"][index]),
        c2w=tensor(truth["c2w"][index]),
        background=torch.from_numpy(background).to(device),
        plate=plate,
        plate_alpha=plate_alpha,
        train_frames=train_frames,
        frame_index=index,
        mean_face=face.astype(np.float32),
        landmark_mean=mean.astype(np.float32),
        landmark_std=std.astype(np.float32),
        box=box,
    )


def window_rows(
    index: npt.NDArray[np.int64], total: int, window_frames: int, lookahead_frames: int
) -> npt.NDArray[np.int64]:
    """Returns rows (n, window_frames) of the windows around `index`, clamped to the video."""
    if not 0 <= lookahead_frames < window_frames:
        raise InputError(f"lookahead_frames: expected 0 to {window_frames - 1}, got {lookahead_frames}")
    span = np.arange(window_frames) - (window_frames - 1 - lookahead_frames)
    rows: npt.NDArray[np.int64] = np.clip(index[:, None] + span[None], 0, total - 1)
    return rows


def _mean_face(folder: Path, path: Path | None, landmarks: F32) -> F32:
    """Returns (68, 3): of the npz at `path`, else of the corpus beside the folder, else the set's mean."""
    beside = folder.parent / "corpus" / LANDMARKS_FILE
    if path is not None or beside.is_file():
        return read_mean_face(path or beside)
    log.info("%s: no mean_face here; the mean of this set stands in", folder)
    return np.asarray(landmarks.mean(0), dtype=np.float32)


def _upload(frames: Iterator[U8], count: int, device: torch.device) -> Tensor:
    """Returns the frames as one tensor (count, ...) uint8 on `device`, copied in batches."""
    found: Tensor | None = None
    done = 0
    while batch := list(itertools.islice(frames, UPLOAD_FRAMES)):
        if found is None:
            found = torch.empty((count, *batch[0].shape), dtype=torch.uint8, device=device)
        found[done : done + len(batch)] = torch.from_numpy(np.stack(batch)).to(device)
        done += len(batch)
    assert found is not None
    return found
