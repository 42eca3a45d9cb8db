"""The 478 points of a face: MediaPipe's face mesh with attention, which takes squares of 192 pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cuda_kernels.arrays import F32, F64, I64, U8

from .shipped import IRIS_POINTS, MESH_FILE, MESH_POINTS, MESH_SIDE_PX, POINTS, canonical_face, open_model

LEFT_EYE, RIGHT_EYE = 33, 263  # the outer corners, as the picture shows them
MARGIN = 1.5  # of the region over the points' box
_MIRRORED_IRIS = (0, 3, 2, 1, 4)  # centre, right, top, left, bottom


@dataclass(frozen=True, kw_only=True)
class Region:
    """A turned square of a picture."""

    x_px: float  # its middle
    y_px: float
    side_px: float
    angle_rad: float  # of its upper side, clockwise as the picture shows it

    def moved(self, *, right: float, down: float, scale: float, turn_rad: float) -> Region:
        """Returns another square; the shifts are shares of the side."""
        return Region(
            x_px=self.x_px + right * self.side_px,
            y_px=self.y_px + down * self.side_px,
            side_px=self.side_px * scale,
            angle_rad=self.angle_rad + turn_rad,
        )


def region_of_points(points: F32) -> Region:
    """Returns the square to look for a face in whose points (478, 3) are known.

    Its middle is that of the 468 points' upright box, its side 1.5 times the longer one there, its angle that
    from one eye's outer corner to the other's.
    """
    plane = points[:MESH_POINTS, :2]
    low, high = plane.min(0), plane.max(0)
    return _region((low + high) / 2, (high - low).max(), plane[RIGHT_EYE] - plane[LEFT_EYE])


def region_of_box(box: F32, eyes: F32) -> Region:
    """Returns the square of a detected box (4,) whose upper side is parallel to the eyes (2, 2)."""
    return _region((box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max(), eyes[1] - eyes[0])


def _region(middle: F32 | F64, side_px: float, along: F32) -> Region:
    return Region(
        x_px=float(middle[0]),
        y_px=float(middle[1]),
        side_px=MARGIN * max(float(side_px), 1.0),
        angle_rad=math.atan2(float(along[1]), float(along[0])),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """The part of a picture in a region, as the mesh takes it, and the way back."""

    pixels: U8  # (192, 192, 3) RGB
    to_picture: F64  # (2, 3): from pixels here to pixels there
    mirrored: bool


def crop(picture: U8, region: Region, *, mirrored: bool = False) -> Crop:
    """Returns the part of a picture (H, W, 3) in a region; beyond the picture its edge goes on."""
    shrink = max(round(region.side_px / (2 * MESH_SIDE_PX)), 1)  # or fine detail would turn into noise
    side = MESH_SIDE_PX * shrink
    pixel = region.side_px / side
    cosine, sine = pixel * math.cos(region.angle_rad), pixel * math.sin(region.angle_rad)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    if mirrored:
        turn[:, 0] *= -1
    corner = np.array([region.x_px, region.y_px]) - turn @ (side / 2, side / 2)
    matrix = np.concatenate([turn, corner[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(picture, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if shrink > 1:
        pixels = cv2.resize(pixels, (MESH_SIDE_PX, MESH_SIDE_PX), interpolation=cv2.INTER_AREA)
        matrix[:, 2] += turn @ ((shrink - 1) / 2, (shrink - 1) / 2)  # a mean pixel's middle
        matrix[:, :2] *= shrink
    return Crop(pixels=pixels.astype(np.uint8, copy=False), to_picture=matrix, mirrored=mirrored)


class FaceMesh:
    """Finds a face's points in crops."""

    def __init__(self) -> None:
        """Opens the model."""
        self._session = open_model(MESH_FILE)
        self._mirror = mirrored_points()

    def __call__(self, crops: Sequence[Crop]) -> tuple[F32, F32]:
        """Returns points (n, 478, 3) in px of the picture and the probability (n,) of a face in each crop.

        x goes right, y down, z away from the viewer; the last ten points are the irises.
        """
        points, face = self._session.run(None, {"picture": np.stack([crop.pixels for crop in crops])})
        for crop, found in zip(crops, points, strict=True):
            if crop.mirrored:
                found[:] = found[self._mirror]
            scale = math.sqrt(abs(np.linalg.det(crop.to_picture[:, :2])))
            found[:, :2] = found[:, :2] @ crop.to_picture[:, :2].T + crop.to_picture[:, 2]
            found[:, 2] *= scale
        return points, face


def mirrored_points() -> I64:
    """Returns for each of the 478 points the number of its counterpart on the other half of the face."""
    vertices = canonical_face()
    distances = np.linalg.norm(vertices[:, None] * (-1, 1, 1) - vertices, axis=-1)  # (468, 468)
    irises = MESH_POINTS + np.array([_MIRRORED_IRIS, _MIRRORED_IRIS]) + [[IRIS_POINTS], [0]]
    numbers: I64 = np.concatenate([distances.argmin(1), irises.ravel()])
    assert (numbers[numbers] == np.arange(POINTS)).all()
    return numbers
