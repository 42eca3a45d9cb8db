"""One speaker's video with its ground truth, whole on the device that trains.

A folder holds `video.mp4`, `masks.mkv` (gray = label x 80: 0 background, 1 head, 2 neck, 3 clothes),
`background.png` and `truth.npz` (`landmarks` (T, 68, 3) in head space, `landmarks_2d` (T, 68, 2) in pixels,
`c2w` (T, 4, 4), `focal`, `cx`, `cy`). The first 10/11 of the frames train, the rest validate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from cuda_kernels.scene import Camera

log = logging.getLogger(__name__)

BACKGROUND, HEAD, NECK, CLOTHES = range(4)
LABEL_STEP = 80
MOUTH = slice(48, 68)
EYES = (slice(36, 42), slice(42, 48))
STD_FLOOR = 0.03  # in landmark units (a hundredth of a decimetre is 0.1): rigid points stay quiet
BOX_FILL = 0.95  # how much of [-1, 1] the visible head fills along its longest side
UPLOAD_FRAMES = 128
CONTINUED_PX = 64


class SpeakerDataError(InputError):
    """A training folder that cannot be used: file, expected, got, the way out."""


@dataclass(frozen=True, kw_only=True)
class FieldBox:
    """Where a head lies in the field's space."""

    camera: Camera
    aabb: F32  # (6,) xmin ymin zmin xmax ymax zmax, in scaled space


@dataclass(frozen=True, kw_only=True)
class SpeakerData:
    """A speaker's frames and their truth; n frames of H x W pixels, on `device`."""

    pictures: Tensor  # (n, H, W, 3) uint8 RGB
    labels: Tensor  # (n, H, W) uint8, 0..3
    landmarks_normalized: Tensor  # (n, window_frames, 204)
    landmarks_2d: Tensor  # (n, 68, 2) px
    c2w: Tensor  # (n, 4, 4)
    background: Tensor  # (H, W, 3) uint8
    plate: Tensor  # (H, W, 3) uint8: what is seen where no head is, averaged over time and continued
    plate_alpha: Tensor  # (H, W): share of the torso in it, 0..1
    train_frames: int  # the first that many train, the rest validate
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
    """The data of one speaker on `device`; `frames` takes that many, spread over the video.

    Raises:
        SpeakerDataError: a file is absent or does not fit the others.
    """
    truth = _truth(folder)
    total = len(truth["landmarks"])
    step = 1 if frames is None else max(1, total // frames)
    index = np.arange(0, total, step)[: frames or total]
    train_frames = int((index < training_frames(total)).sum())
    if not 0 < train_frames < len(index):
        raise SpeakerDataError(f"{folder}: expected 11 frames or more to split, got {len(index)}")

    face = _mean_face(folder, mean_face, truth["landmarks"])
    offsets = 10.0 * (truth["landmarks"] - face)
    mean = offsets.mean(0)
    std = np.maximum(offsets.std(0), STD_FLOOR)
    normalized = ((offsets - mean) / std).reshape(total, -1).astype(np.float32)
    windows = normalized[window_rows(index, total, window_frames, lookahead_frames)]

    background = cv2.imread(str(folder / "background.png"), cv2.IMREAD_COLOR)
    if background is None:
        raise SpeakerDataError(
            f"{folder / 'background.png'}: expected the empty background, found no picture"
        )
    background = np.ascontiguousarray(background[..., ::-1])
    height, width = background.shape[:2]
    if height != width:
        raise SpeakerDataError(f"{folder / 'background.png'}: expected a square, got {width} x {height}")
    pictures = _upload(folder / "video.mp4", "rgb24", index, (height, width, 3), device)
    labels = _upload(folder / "masks.mkv", "gray", index, (height, width), device).div_(
        LABEL_STEP, rounding_mode="floor"
    )
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


def training_frames(total: int) -> int:
    """How many of a video's frames train: the first 10/11; the rest validates."""
    return total * 10 // 11


def window_rows(
    index: npt.NDArray[np.int64], total: int, window_frames: int, lookahead_frames: int
) -> npt.NDArray[np.int64]:
    """Rows (n, window_frames) of the windows around `index`; beyond the ends the edge row stands in."""
    if not 0 <= lookahead_frames < window_frames:
        raise InputError(f"lookahead_frames: expected 0 to {window_frames - 1}, got {lookahead_frames}")
    span = np.arange(window_frames) - (window_frames - 1 - lookahead_frames)
    rows: npt.NDArray[np.int64] = np.clip(index[:, None] + span[None], 0, total - 1)
    return rows


def _truth(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Arrays of truth.npz, shapes checked."""
    path = folder / "truth.npz"
    if not path.is_file():
        raise SpeakerDataError(
            f"{path}: no such file; --data expects a speaker's folder with the ground truth"
        )
    shapes: dict[str, tuple[int, ...]] = {
        "landmarks": (68, 3),
        "landmarks_2d": (68, 2),
        "c2w": (4, 4),
        "focal": (),
        "cx": (),
        "cy": (),
    }
    found: dict[str, npt.NDArray[np.float32]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name, shape in shapes.items():
            if name not in archive.files:
                raise SpeakerDataError(f"{path}: {name}: expected an array, found none; prepare the set anew")
            array = np.asarray(archive[name], dtype=np.float32)
            inner = array.shape[1:] if shape else array.shape
            if inner != shape or not np.isfinite(array).all():
                raise SpeakerDataError(
                    f"{path}: {name}: expected finite (frames, *{shape}), got {array.shape}; prepare it anew"
                )
            found[name] = array
    lengths = {name: len(found[name]) for name in ("landmarks", "landmarks_2d", "c2w")}
    if len(set(lengths.values())) != 1:
        raise SpeakerDataError(f"{path}: expected equal lengths, got {lengths}; prepare the set anew")
    return found


def _mean_face(folder: Path, path: Path | None, landmarks: F32) -> F32:
    """(68, 3): from the npz named, else from the corpus beside the folder, else the set's own mean."""
    beside = folder.parent / "corpus" / "landmarks.npz"
    source = path if path is not None else beside
    if source.is_file():
        with np.load(source, allow_pickle=False) as archive:
            if "mean_face" not in archive.files:
                raise SpeakerDataError(f"{source}: mean_face: expected an array (68, 3), found none")
            face = np.asarray(archive["mean_face"], dtype=np.float32)
        if face.shape != (68, 3):
            raise SpeakerDataError(f"{source}: mean_face: expected (68, 3), got {face.shape}")
        return face
    if path is not None:
        raise SpeakerDataError(f"{path}: no such file; --mean-face expects an npz with mean_face (68, 3)")
    log.info("%s: no mean_face here; the mean of this set stands in", folder)
    return np.asarray(landmarks.mean(0), dtype=np.float32)


def _upload(
    path: Path,
    pixel_format: Literal["rgb24", "gray"],
    index: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """(n, *shape) uint8 on `device`: the frames of a video at `index` (ascending)."""
    found = torch.empty((len(index), *shape), dtype=torch.uint8, device=device)
    done = 0
    for batch in _batches(path, pixel_format, index, shape):
        found[done : done + len(batch)] = torch.from_numpy(batch).to(device)
        done += len(batch)
    if done != len(index):
        raise SpeakerDataError(
            f"{path}: expected frame {int(index[done])} (truth.npz has it), got the end of the video"
        )
    return found


def _batches(
    path: Path, pixel_format: Literal["rgb24", "gray"], index: npt.NDArray[np.int64], shape: tuple[int, ...]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Pictures at `index`, `UPLOAD_FRAMES` at a time."""
    from preparation.media import video_frames  # PyAV; frames that are in memory already need none

    wanted = set(index.tolist())
    last = int(index[-1])
    batch: list[npt.NDArray[np.uint8]] = []
    for i, picture in enumerate(video_frames(path, pixel_format)):
        if i in wanted:
            if picture.shape != shape:
                raise SpeakerDataError(f"{path}: frame {i}: expected {shape}, got {picture.shape}")
            batch.append(picture)
        if len(batch) == UPLOAD_FRAMES or (batch and i == last):
            yield np.stack(batch)
            batch = []
        if i >= last:
            break
    if batch:
        yield np.stack(batch)


def torso_plate(pictures: Tensor, labels: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """What stands behind the head: (H, W, 3) uint8 and the torso's share in it (H, W).

    The mean over the frames in which the head does not hide the pixel. Pixels always hidden repeat the
    torso at most `CONTINUED_PX` below them in their column where there is one, else show the background.
    """
    height, width = labels.shape[1:]
    colour = torch.zeros(height, width, 3, device=pictures.device)
    torso = torch.zeros(height, width, device=pictures.device)
    seen = torch.zeros(height, width, device=pictures.device)
    for start in range(0, len(pictures), UPLOAD_FRAMES):
        part = labels[start : start + UPLOAD_FRAMES]
        figure = (part >= NECK).float()
        seen += (part != HEAD).float().sum(0)
        torso += figure.sum(0)
        colour += (pictures[start : start + UPLOAD_FRAMES].float() * figure[..., None]).sum(0)
    colour += (seen - torso)[..., None] * background.float()  # no fringe of thin hair
    enough = seen >= max(2.0, 0.002 * len(pictures))
    colour = torch.where(enough[..., None], colour / seen.clamp(min=1)[..., None], background.float())
    alpha = torch.where(enough, torso / seen.clamp(min=1), torch.zeros_like(torso))

    # From the bottom up: a hidden pixel over torso takes the colour of the nearest seen pixel below.
    solid = enough & (alpha > 0.5)
    rows = torch.arange(height, device=pictures.device)[:, None].expand(height, width)
    source = torch.where(enough, rows, torch.full_like(rows, height))
    below = source.flip(0).cummin(0).values.flip(0).clamp(max=height - 1)
    columns = torch.arange(width, device=pictures.device)[None].expand(height, width)
    continued = ~enough & solid[below, columns] & (below - rows <= CONTINUED_PX)
    colour = torch.where(continued[..., None], colour[below, columns], colour)
    alpha = torch.where(continued, alpha[below, columns], alpha)
    return colour.round().clamp(0, 255).to(torch.uint8), alpha


def field_box(
    labels: Tensor, landmarks: F32, c2w: F32, *, focal_px: float, cx_px: float, cy_px: float
) -> FieldBox:
    """The camera mapping and the box that let the visible head fill the field.

    The head's silhouettes are carved out of a coarse grid around the landmarks; from the front (the most
    forward landmark and a margin) the box reaches back as deep as the carved shape is wide.
    """
    points = landmarks.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    reach = 1.5 * float((high - low).max())
    side = 64
    middle = (low + high) / 2
    front = float(high[2]) + 0.1 * float(high[2] - low[2])
    axes = [np.linspace(-reach, reach, side) + middle[0], np.linspace(-reach, reach, side) + middle[1]]
    depths = np.linspace(low[2] - 0.5 * (high[2] - low[2]), front, 16)
    grid = np.stack(np.meshgrid(axes[0], axes[1], depths, indexing="ij"), -1).reshape(-1, 3)
    chosen = np.unique(np.linspace(0, len(labels) - 1, 60).astype(int))
    share = carve(
        torch.from_numpy(grid.astype(np.float32)).to(labels.device),
        labels[torch.from_numpy(chosen).to(labels.device)],
        torch.from_numpy(c2w[chosen]).to(labels.device),
        focal_px=focal_px,
        cx_px=cx_px,
        cy_px=cy_px,
        margin_px=2,
    )
    inside = grid[(share > 0.9).cpu().numpy()]
    if not len(inside):
        raise SpeakerDataError(
            "masks.mkv: expected head labels (80) where the landmarks project; do masks and poses match?"
        )
    cell = 2 * reach / (side - 1)
    x_low, y_low = inside[:, :2].min(0) - cell
    x_high, y_high = inside[:, :2].max(0) + cell
    x_low, y_low = min(x_low, float(low[0])), min(y_low, float(low[1]))
    x_high, y_high = max(x_high, float(high[0])), max(y_high, float(high[1]))
    back = front - (x_high - x_low)
    lows, highs = np.array([y_low, back, x_low]), np.array([y_high, front, x_high])  # the field's axes
    scale = 2 * BOX_FILL / float((highs - lows).max())
    offset = -scale * (lows + highs) / 2
    half = scale * (highs - lows) / 2
    camera = Camera(
        focal_px=focal_px,
        cx_px=cx_px,
        cy_px=cy_px,
        scale=scale,
        offset=(float(offset[0]), float(offset[1]), float(offset[2])),
    )
    return FieldBox(camera=camera, aabb=np.concatenate([-half, half]).astype(np.float32))


def carve(
    points: Tensor,
    labels: Tensor,
    c2w: Tensor,
    *,
    focal_px: float,
    cx_px: float,
    cy_px: float,
    margin_px: int,
) -> Tensor:
    """(N,): the share of frames in which head-space points (N, 3) project onto the head's mask.

    `margin_px` widens the masks. Points outside the picture do not count as head.
    """
    height, width = labels.shape[1:]
    inside = torch.zeros(len(points), device=points.device)
    for i in range(len(labels)):
        head = (labels[i] == HEAD).float()[None, None]
        head = functional.max_pool2d(head, 2 * margin_px + 1, 1, margin_px)[0, 0]
        rotation, position = c2w[i, :3, :3], c2w[i, :3, 3]
        seen = ((points - position)[:, :, None] * rotation).sum(1)  # (N, 3) in the camera's axes, not in TF32
        depth = (-seen[:, 2]).clamp(min=1e-6)
        column = (cx_px + focal_px * seen[:, 0] / depth).floor().long()
        row = (cy_px - focal_px * seen[:, 1] / depth).floor().long()
        outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
        hit = head[row.clamp(0, height - 1), column.clamp(0, width - 1)] > 0
        inside += (hit & ~outside).float()
    return inside / len(labels)
