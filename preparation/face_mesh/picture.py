"""A contact sheet of a track: pictures of the video with the 68 landmarks drawn, for looking at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cuda_kernels.arrays import F32, U8

from .track import FaceTrack, upright_pictures

COLUMNS, ROWS = 4, 3
TILE_PX = 360
_WIDENED = 1.25  # a tile's side over the longer one of the landmarks' box
_LINES = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (36, 42), (42, 48), (48, 60), (60, 68))
_CLOSED = 36  # from this landmark on lines end where they began
_COLOUR, _LINE = (0, 255, 90), (255, 200, 0)


def contact_sheet(video: Path, track: FaceTrack) -> U8:
    """Returns a picture (H, W, 3) RGB of `COLUMNS` x `ROWS` moments of a video, evenly spaced.

    Args:
        video: of the track.
        track: with the 68 landmarks.
    """
    total = COLUMNS * ROWS
    chosen = np.linspace(0, len(track.times_s) - 1, total).round().astype(int).tolist()
    tiles = {}
    for number, (picture, time_s) in enumerate(upright_pictures(video)):
        if number in chosen:
            landmarks = track.points[number] if track.found[number] else None
            tiles[number] = _tile(picture, landmarks, f"{time_s:.2f} s")
        if number == chosen[-1]:
            break
    rows = [np.hstack([tiles[n] for n in chosen[row * COLUMNS :][:COLUMNS]]) for row in range(ROWS)]
    sheet: U8 = np.vstack(rows)
    return sheet


def _tile(picture: U8, landmarks: F32 | None, title: str) -> U8:
    height, width = picture.shape[:2]
    if landmarks is None:
        middle, side, title = (
            np.array([width / 2, height / 2]),
            float(max(height, width)),
            f"{title}: no face",
        )
    else:
        low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
        middle, side = (low + high) / 2, _WIDENED * float((high - low).max())
    scale = TILE_PX / side
    shift = TILE_PX / 2 - scale * middle
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    tile = cv2.warpAffine(picture, matrix, (TILE_PX, TILE_PX))
    if landmarks is not None:
        places = (landmarks[:, :2] * scale + shift).round().astype(np.int32)
        for begin, end in _LINES:
            cv2.polylines(tile, [places[begin:end]], begin >= _CLOSED, _LINE, 1, cv2.LINE_AA)
        for place in places.tolist():
            cv2.circle(tile, place, 2, _COLOUR, -1, cv2.LINE_AA)
    cv2.putText(tile, title, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return tile.astype(np.uint8, copy=False)
