"""Ray sampler: the pixels of a training step, their ground truth and their background.

Shapes are static and tensors stay on the device: no step waits for the host.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from models.settings import check_ranges, require
from preparation.speaker_set import BACKGROUND, HEAD, NECK

from .ranges import SHARE
from .speaker_data import EYES, MOUTH, SpeakerData

EDGE_WEIGHT = 3.0  # sampling weight at the head's edge; inside it is 1
EMPTY_WEIGHT = 0.1  # and away from the head
EDGE_RADIUS_PX = 2
BOX_MARGIN = 0.3  # of the mouth's and eyes' own size


@dataclass(frozen=True, kw_only=True)
class SamplingShares:
    """Shares of a frame's rays; the rest is sampled over the head's box by weight."""

    mouth: Annotated[float, SHARE] = 0.2
    eyes: Annotated[float, SHARE] = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges, and that something is left for the figure."""
        check_ranges(self)
        require(self.mouth + self.eyes <= 1, "mouth and eyes", "at most 1 together", self.mouth + self.eyes)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Sampled pixels with their ground truth: n of each of F frames."""

    frames: Tensor  # (F,) int64
    rows: Tensor  # (F, n) int64
    columns: Tensor  # (F, n) int64
    truth: Tensor  # (F, n, 3) in [0, 1]
    labels: Tensor  # (F, n) uint8
    edge: Tensor  # (F, n) bool: within EDGE_RADIUS_PX of where head and not head meet


@dataclass(frozen=True, kw_only=True)
class CompositeTarget:
    """The background of a step and the ground truth composited over it."""

    behind: Tensor  # (F, n, 3)
    target: Tensor  # (F, n, 3)


def figure_box(labels: Tensor, *, least_label: int = HEAD, margin_px: int = 6) -> tuple[int, int, int, int]:
    """Returns the bounding box (row, column, rows, columns) of the labels of all frames (n, H, W)."""
    covered = torch.zeros(labels.shape[1:], dtype=torch.bool, device=labels.device)
    for part in torch.split(labels, 256):
        chosen = part == HEAD if least_label == HEAD else part >= least_label
        covered |= chosen.any(0)
    rows, columns = covered.any(1).nonzero()[:, 0], covered.any(0).nonzero()[:, 0]
    height, width = labels.shape[1:]
    top, left = max(0, int(rows[0]) - margin_px), max(0, int(columns[0]) - margin_px)
    bottom = min(height, int(rows[-1]) + 1 + margin_px)
    right = min(width, int(columns[-1]) + 1 + margin_px)
    return top, left, bottom - top, right - left


@functools.lru_cache(maxsize=64)
def _offsets(places: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (rows, columns), each (k,); cached, since copying them to the device would synchronise."""
    down, right = torch.tensor(places, device=device).unbind(1)
    return down, right


def neighbours(radius_px: int) -> tuple[tuple[int, int], ...]:
    """Returns the (row, column) offsets of a pixel's eight neighbours at each radius from 1."""
    return tuple(
        (down, right)
        for radius in range(1, radius_px + 1)
        for down in (-radius, 0, radius)
        for right in (-radius, 0, radius)
        if down or right
    )


def labels_around(
    labels: Tensor, frames: Tensor, rows: Tensor, columns: Tensor, places: tuple[tuple[int, int], ...]
) -> Tensor:
    """Returns labels (F, n, k) at k offsets from pixels (F, n) of frames (F,), clamped to the picture."""
    height, width = labels.shape[1:]
    down, right = _offsets(places, labels.device)
    row = (rows[..., None] + down).clamp(0, height - 1)
    column = (columns[..., None] + right).clamp(0, width - 1)
    return labels[frames[:, None, None], row, column]


def at_edge(labels: Tensor, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns (F, n) bool: the head's edge is within EDGE_RADIUS_PX of the pixel."""
    head = labels[frames[:, None], rows, columns] == HEAD
    around = labels_around(labels, frames, rows, columns, neighbours(EDGE_RADIUS_PX)) == HEAD
    return (around != head[..., None]).any(-1)


def ground_truth_at(data: SpeakerData, frames: Tensor, rows: Tensor, columns: Tensor) -> Pixels:
    """Returns the ground truth of pixels (F, n) of frames (F,)."""
    at = (frames[:, None], rows, columns)
    return Pixels(
        frames=frames,
        rows=rows,
        columns=columns,
        truth=data.pictures[at].float() / 255,
        labels=data.labels[at],
        edge=at_edge(data.labels, frames, rows, columns),
    )


def sample_by_weight(weight: Tensor, count: int) -> Tensor:
    """Returns (F, count) indices sampled by weight (F, n) without replacement (Gumbel top-k)."""
    gumbel = -torch.log(-torch.log(torch.rand_like(weight).clamp(1e-9, 1 - 1e-7)))
    return (weight.log() + gumbel).topk(count, dim=1, sorted=False).indices


def sample_pixels(
    data: SpeakerData,
    box: tuple[int, int, int, int],
    *,
    frames: int,
    pixels: int,
    shares: SamplingShares,
) -> Pixels:
    """Returns random pixels of random training frames, more of them at edges, mouth and eyes.

    Args:
        data: the speaker.
        box: from `figure_box`.
        frames: how many frames, F.
        pixels: of each frame, n.
        shares: of n that go to the mouth's and the eyes' boxes.
    """
    device = data.device
    chosen = torch.randint(data.train_frames, (frames,), device=device)
    mouth, eyes = round(pixels * shares.mouth), round(pixels * shares.eyes)
    rest = pixels - mouth - eyes

    top, left, height, width = box
    rows = top + torch.randint(height, (frames, 2 * rest), device=device)
    columns = left + torch.randint(width, (frames, 2 * rest), device=device)
    inside = data.labels[chosen[:, None], rows, columns] == HEAD
    edge = at_edge(data.labels, chosen, rows, columns)
    weight = torch.where(inside, 1.0, EMPTY_WEIGHT).masked_fill(edge, EDGE_WEIGHT)
    best = sample_by_weight(weight, rest)
    rows, columns = rows.gather(1, best), columns.gather(1, best)

    points = data.landmarks_2d[chosen]  # (F, 68, 2)
    parts = [(rows, columns)]
    if mouth:
        parts.append(_in_box_of(points[:, MOUTH], mouth, data.size_px))
    for count, eye in zip((eyes // 2, eyes - eyes // 2), EYES, strict=True):
        if count:
            parts.append(_in_box_of(points[:, eye], count, data.size_px))
    return ground_truth_at(
        data, chosen, torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
    )


def _in_box_of(points: Tensor, count: int, size_px: int) -> tuple[Tensor, Tensor]:
    """Returns rows and columns, each (F, count), uniform in the widened box of points (F, p, 2)."""
    low, high = points.amin(1), points.amax(1)
    margin = BOX_MARGIN * (high - low).amax(1, keepdim=True)
    low, high = low - margin, high + margin
    drawn = low[:, None] + torch.rand(points.shape[0], count, 2, device=points.device) * (high - low)[:, None]
    drawn = drawn.long().clamp(0, size_px - 1)
    return drawn[..., 1], drawn[..., 0]


def true_background(data: SpeakerData, pixels: Pixels) -> Tensor:
    """Returns (F, n, 3) in [0, 1] behind the head: the plate, or the background where that is visible."""
    at = (pixels.rows, pixels.columns)
    plain = (pixels.labels == BACKGROUND)[..., None]
    return torch.where(plain, data.background[at], data.plate[at]).float() / 255


def composite_target(data: SpeakerData, pixels: Pixels, *, edge_random_share: float = 0.0) -> CompositeTarget:
    """Returns random backgrounds and the ground truth composited over them: opaque inside, empty outside.

    At the head's edge, where hair is partly transparent, the true background and the picture itself are
    used. There alone could the field learn the background's colour as hair, so a random
    `edge_random_share` of the edge's pixels is treated like all others.
    """
    random = torch.rand_like(pixels.truth)
    head = (pixels.labels == HEAD)[..., None]
    soft = torch.rand(pixels.edge.shape, device=pixels.edge.device) >= edge_random_share
    edge = (pixels.edge & soft)[..., None]
    behind = torch.where(edge, true_background(data, pixels), random)
    target = torch.where(head | edge, pixels.truth, random)
    return CompositeTarget(behind=behind, target=target)


def visible_behind(data: SpeakerData, labels: Tensor, truth: Tensor) -> Tensor:
    """Returns (H, W, 3) in [0, 1]: a frame (labels (H, W), truth (H, W, 3)) with its head removed."""
    plain = (labels == BACKGROUND)[..., None]
    hidden = torch.where(plain, data.background, data.plate).float() / 255
    return torch.where((labels >= NECK)[..., None], truth, hidden)
