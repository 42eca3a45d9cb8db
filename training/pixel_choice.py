"""Which pixels a step looks at, and what stands behind the head in them.

Everything has a fixed size and stays on the device: no step waits for the host.
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

EDGE_WEIGHT = 3.0  # how often a pixel at the head's edge is looked at, a pixel inside counting 1
EMPTY_WEIGHT = 0.1  # and a pixel far from the head
EDGE_RADIUS_PX = 2
BOX_MARGIN = 0.3  # of the mouth's and eyes' own size


@dataclass(frozen=True, kw_only=True)
class SamplingShares:
    """How a frame's rays are shared out; the rest goes to the figure by its weights."""

    mouth: Annotated[float, SHARE] = 0.2
    eyes: Annotated[float, SHARE] = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges, and that something is left for the figure."""
        check_ranges(self)
        require(self.mouth + self.eyes <= 1, "mouth and eyes", "at most 1 together", self.mouth + self.eyes)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """F frames, n pixels of each."""

    frames: Tensor  # (F,) int64
    rows: Tensor  # (F, n) int64
    columns: Tensor  # (F, n) int64
    truth: Tensor  # (F, n, 3) in [0, 1]
    labels: Tensor  # (F, n) uint8
    edge: Tensor  # (F, n) bool: within EDGE_RADIUS_PX of where head and not head meet


@dataclass(frozen=True, kw_only=True)
class CompositeTarget:
    """What training puts behind the head, and what must then be seen."""

    behind: Tensor  # (F, n, 3)
    target: Tensor  # (F, n, 3)


def figure_box(labels: Tensor, *, least_label: int = HEAD, margin_px: int = 6) -> tuple[int, int, int, int]:
    """(row, column, rows, columns) of the box that holds the labels of all frames (n, H, W)."""
    wanted = torch.zeros(labels.shape[1:], dtype=torch.bool, device=labels.device)
    for part in torch.split(labels, 256):
        chosen = part == HEAD if least_label == HEAD else part >= least_label
        wanted |= chosen.any(0)
    rows, columns = wanted.any(1).nonzero()[:, 0], wanted.any(0).nonzero()[:, 0]
    height, width = labels.shape[1:]
    top, left = max(0, int(rows[0]) - margin_px), max(0, int(columns[0]) - margin_px)
    bottom = min(height, int(rows[-1]) + 1 + margin_px)
    right = min(width, int(columns[-1]) + 1 + margin_px)
    return top, left, bottom - top, right - left


@functools.lru_cache(maxsize=64)
def _offsets(places: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, columns), each (k,): a tensor made of numbers would make every step wait for the device."""
    down, right = torch.tensor(places, device=device).unbind(1)
    return down, right


def neighbours(radius_px: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) down and to the right of the eight places around a pixel, at each radius from 1."""
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
    """(F, n, k) labels at k places around pixels (F, n) of frames (F,); the picture's edge goes on."""
    height, width = labels.shape[1:]
    down, right = _offsets(places, labels.device)
    row = (rows[..., None] + down).clamp(0, height - 1)
    column = (columns[..., None] + right).clamp(0, width - 1)
    return labels[frames[:, None, None], row, column]


def at_edge(labels: Tensor, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(F, n) bool: whether head and not head meet within EDGE_RADIUS_PX of the pixel."""
    head = labels[frames[:, None], rows, columns] == HEAD
    around = labels_around(labels, frames, rows, columns, neighbours(EDGE_RADIUS_PX)) == HEAD
    return (around != head[..., None]).any(-1)


def look_up(data: SpeakerData, frames: Tensor, rows: Tensor, columns: Tensor) -> Pixels:
    """The truth of pixels (F, n) of frames (F,)."""
    at = (frames[:, None], rows, columns)
    return Pixels(
        frames=frames,
        rows=rows,
        columns=columns,
        truth=data.pictures[at].float() / 255,
        labels=data.labels[at],
        edge=at_edge(data.labels, frames, rows, columns),
    )


def drawn_by_weight(weight: Tensor, count: int) -> Tensor:
    """(F, count) places drawn from each row of weights (F, n), without repeating one (Gumbel's top k)."""
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
    """Random pixels of random training frames, more where the picture is hard.

    Args:
        data: the speaker.
        box: from `figure_box`.
        frames: how many frames, F.
        pixels: of each frame, n.
        shares: what part of n goes to the mouth's and the eyes' boxes.
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
    best = drawn_by_weight(weight, rest)
    rows, columns = rows.gather(1, best), columns.gather(1, best)

    points = data.landmarks_2d[chosen]  # (F, 68, 2)
    parts = [(rows, columns)]
    if mouth:
        parts.append(_in_box_of(points[:, MOUTH], mouth, data.size_px))
    for count, eye in zip((eyes // 2, eyes - eyes // 2), EYES, strict=True):
        if count:
            parts.append(_in_box_of(points[:, eye], count, data.size_px))
    return look_up(
        data, chosen, torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
    )


def _in_box_of(points: Tensor, count: int, size_px: int) -> tuple[Tensor, Tensor]:
    """(rows, columns) (F, count) drawn in the widened box of points (F, p, 2)."""
    low, high = points.amin(1), points.amax(1)
    margin = BOX_MARGIN * (high - low).amax(1, keepdim=True)
    low, high = low - margin, high + margin
    drawn = low[:, None] + torch.rand(points.shape[0], count, 2, device=points.device) * (high - low)[:, None]
    drawn = drawn.long().clamp(0, size_px - 1)
    return drawn[..., 1], drawn[..., 0]


def true_background(data: SpeakerData, pixels: Pixels) -> Tensor:
    """(F, n, 3) in [0, 1] what stands behind the head: plate, or the plain background where it is seen."""
    at = (pixels.rows, pixels.columns)
    plain = (pixels.labels == BACKGROUND)[..., None]
    return torch.where(plain, data.background[at], data.plate[at]).float() / 255


def backdrop(data: SpeakerData, pixels: Pixels, *, edge_random_share: float = 0.0) -> CompositeTarget:
    """Random colours behind all but the head's edge, so that it becomes solid within and nothing without.

    At the edge, where a pixel may be part hair, part background, the true background stands behind and
    the picture itself is the target; there alone hair could be painted in the background's colour, so
    `edge_random_share` of the edge's pixels, drawn anew in each step, are treated like all others.
    """
    random = torch.rand_like(pixels.truth)
    head = (pixels.labels == HEAD)[..., None]
    soft = torch.rand(pixels.edge.shape, device=pixels.edge.device) >= edge_random_share
    edge = (pixels.edge & soft)[..., None]
    behind = torch.where(edge, true_background(data, pixels), random)
    target = torch.where(head | edge, pixels.truth, random)
    return CompositeTarget(behind=behind, target=target)


def visible_behind(data: SpeakerData, labels: Tensor, truth: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1]: one frame with its head (labels (H, W), truth (H, W, 3)) taken out."""
    plain = (labels == BACKGROUND)[..., None]
    hidden = torch.where(plain, data.background, data.plate).float() / 255
    return torch.where((labels >= NECK)[..., None], truth, hidden)
