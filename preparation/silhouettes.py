"""From the masks of a speaker's video: the plate behind the head and the head's bounding box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cuda_kernels.arrays import F32
from cuda_kernels.scene import Camera

from .speaker_set import HEAD, LABEL_STEP, MASKS_FILE, NECK, TRUTH_FILE, SpeakerDataError

BOX_FILL = 0.95  # how much of [-1, 1] the visible head fills along its longest side
CONTINUED_PX = 64
_FRAMES_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class FieldBox:
    """A head's place in the field's space."""

    camera: Camera
    aabb: F32  # (6,) xmin ymin zmin xmax ymax zmax, in scaled space


def torso_plate(pictures: Tensor, labels: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the plate behind the head, (H, W, 3) uint8, and the torso's opacity in it (H, W).

    A pixel is its mean over the frames in which the head does not hide it. Pixels always hidden repeat the
    torso at most `CONTINUED_PX` below them in their column, if there is one, else the background.
    """
    height, width = labels.shape[1:]
    colour = torch.zeros(height, width, 3, device=pictures.device)
    torso = torch.zeros(height, width, device=pictures.device)
    seen = torch.zeros(height, width, device=pictures.device)
    for start in range(0, len(pictures), _FRAMES_AT_ONCE):
        part = labels[start : start + _FRAMES_AT_ONCE]
        figure = (part >= NECK).float()
        seen += (part != HEAD).float().sum(0)
        torso += figure.sum(0)
        colour += (pictures[start : start + _FRAMES_AT_ONCE].float() * figure[..., None]).sum(0)
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
    """Returns the camera mapping and the bounding box with which the visible head fills the field.

    The visual hull is carved out of a coarse grid around the landmarks; from the front (the most
    forward landmark and a margin) the box reaches back as deep as the carved shape is wide.
    """
    points = landmarks.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    if not (high > low).any():
        raise SpeakerDataError(Path(TRUTH_FILE), "landmarks", "a face", "one point", "prepare the set anew")
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
        expected = f"the head ({LABEL_STEP * HEAD}) where the landmarks project"
        way_out = "do masks and poses match?"
        raise SpeakerDataError(Path(MASKS_FILE), "labels", expected, "none there", way_out)
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
    """Returns the share (N,) of frames in which head-space points (N, 3) project onto the head's mask.

    `margin_px` widens the masks. Outside the picture is no head.
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
