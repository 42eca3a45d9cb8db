"""Faces in a picture: MediaPipe's short-range detector, which takes squares of 128 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from cuda_kernels.arrays import BOOL, F32, F64, U8

from .shipped import DETECTOR_FILE, DETECTOR_SIDE_PX, open_model

MIN_SCORE = 0.5
MAX_OVERLAP = 0.3  # intersection over union of two faces
_CELLS = ((16, 2), (8, 6))  # cells a side, anchors in each
_MAX_LOGIT = 100.0
_BATCH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """A detected face."""

    score: float  # 0 to 1
    box: F32  # (4,) left, top, right, bottom in px
    keypoints: F32  # (6, 2) px: the eye on the picture's left, that on its right, nose, mouth, both ears

    @property
    def side_px(self) -> float:
        """The box's longer side."""
        return float((self.box[2:] - self.box[:2]).max())

    @property
    def centre(self) -> F32:
        """The box's middle (2,) in px."""
        return np.asarray((self.box[:2] + self.box[2:]) / 2, np.float32)


class FaceDetector:
    """Finds the faces of a picture; small ones too, where the whole picture shows none."""

    def __init__(self) -> None:
        """Opens the model."""
        self._session = open_model(DETECTOR_FILE)
        self._anchors = _anchors()

    def detect(self, picture: U8) -> list[Face]:
        """Returns the faces of a picture (H, W, 3) RGB, the best first, none twice."""
        return next(filter(None, self.search(picture)), [])

    def search(self, picture: U8, *, small: bool = True) -> Iterator[list[Face]]:
        """Yields the faces of a picture (H, W, 3) RGB by their size, the best first, none twice.

        The whole picture is looked at first, then squares as high or as wide as it; where faces may be
        `small`, squares of half and of a quarter of that size follow, which takes a hundred looks.
        """
        for windows in _levels(*picture.shape[:2], small=small):
            found = [
                face
                for start in range(0, len(windows), _BATCH)
                for face in self._detect_in(picture, windows[start : start + _BATCH])
            ]
            yield _suppress(found)

    def _detect_in(self, picture: U8, windows: list[tuple[int, int, int]]) -> Iterator[Face]:
        """Yields what squares (left, top, side) of the picture show."""
        squares = np.stack([_square(picture, *window) for window in windows])
        boxes, logits = self._session.run(None, {"picture": squares})
        scores = 1 / (1 + np.exp(-np.clip(logits[..., 0].astype(np.float64), -_MAX_LOGIT, _MAX_LOGIT)))
        for (left, top, side), all_boxes, all_scores in zip(windows, boxes, scores, strict=True):
            for number in np.flatnonzero(all_scores >= MIN_SCORE):
                numbers = all_boxes[number].reshape(8, 2) / DETECTOR_SIDE_PX  # centre, size, six points
                numbers[0] += self._anchors[number]
                numbers[2:] += self._anchors[number]
                numbers *= side
                numbers[[0, *range(2, 8)]] += (left, top)
                box = np.concatenate([numbers[0] - numbers[1] / 2, numbers[0] + numbers[1] / 2])
                yield Face(score=float(all_scores[number]), box=box, keypoints=numbers[2:])


def _anchors() -> F32:
    """Returns the anchors' middles (896, 2) as shares of the side."""
    middles = []
    for cells, each in _CELLS:
        rows, columns = np.mgrid[:cells, :cells]
        grid = (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) / cells
        middles.append(np.repeat(grid, each, axis=0))
    return np.concatenate(middles).astype(np.float32)


def _levels(height: int, width: int, *, small: bool) -> Iterator[list[tuple[int, int, int]]]:
    """Yields squares (left, top, side) that cover a picture, ever smaller; the first is centred around it."""
    longer, shorter = max(height, width), min(height, width)
    yield [((width - longer) // 2, (height - longer) // 2, longer)]
    for side in (shorter, shorter // 2, shorter // 4)[: 3 if small else 1]:
        if side < DETECTOR_SIDE_PX or side == longer:
            continue
        lefts, tops = (
            np.linspace(0, size - side, -(-2 * (size - side) // side) + 1).astype(int).tolist()
            for size in (width, height)
        )
        yield [(left, top, side) for top in tops for left in lefts]


def _square(picture: U8, left: int, top: int, side: int) -> U8:
    """Returns the part of a picture in a square, black beyond it, at the detector's size."""
    part = picture[max(top, 0) : top + side, max(left, 0) : left + side]
    scale = DETECTOR_SIDE_PX / side
    size = tuple(max(round(extent * scale), 1) for extent in (part.shape[1], part.shape[0]))
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square = np.zeros((DETECTOR_SIDE_PX, DETECTOR_SIDE_PX, 3), np.uint8)
    row, column = (round(max(-edge, 0) * scale) for edge in (top, left))
    square[row : row + size[1], column : column + size[0]] = small
    return square


def _suppress(faces: list[Face]) -> list[Face]:
    """Returns one face for each group that overlaps, its numbers the means weighted by score."""
    left = sorted(faces, key=lambda face: -face.score)
    kept = []
    while left:
        boxes = np.stack([face.box for face in left])
        group: BOOL = _overlap(boxes[0], boxes) > MAX_OVERLAP
        group[0] = True
        inside = [face for face, belongs in zip(left, group, strict=True) if belongs]
        weights = np.array([face.score for face in inside])
        kept.append(
            Face(
                score=inside[0].score,
                box=np.average([face.box for face in inside], axis=0, weights=weights),
                keypoints=np.average([face.keypoints for face in inside], axis=0, weights=weights),
            )
        )
        left = [face for face, belongs in zip(left, group, strict=True) if not belongs]
    return kept


def _overlap(box: F32, boxes: F32) -> F64:
    """Returns the intersection over union of a box with each of `boxes` (N, 4)."""
    sizes = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.maximum(sizes, 0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
    shares: F64 = common / np.maximum(union, 1e-9)
    return shares
