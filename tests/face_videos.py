"""Stills of May, videos made of them, and where her landmarks are: `import face_videos`."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIDE_PX = 256
BACKGROUND = 127
MS = Fraction(1, 1000)
CORNERS = (36, 45, 48, 54)
"""Of the 68 landmarks: outer corners of the eyes, corners of the mouth, which every definition has alike."""
PLACES_PX = {
    "open": np.array([(97.3, 110.3), (160.7, 111.1), (109.8, 161.2), (147.3, 161.6)]),
    "closed": np.array([(103.7, 113.8), (167.2, 115.8), (116.7, 162.2), (151.8, 163.2)]),
}
"""Where they are in the stills, by the geometry that these were drawn from."""
MAX_ERROR_PX = 3.5
"""Of a corner: the mesh's own definition lies 1.5 px off on average, at 64 px between the eyes."""


def may(mouth: str) -> np.ndarray:
    """Returns a picture (256, 256, 3) RGB of May with her mouth "open" or "closed"."""
    picture = cv2.imread(str(Path(__file__).with_name(f"may_{mouth}.jpg")))
    return np.ascontiguousarray(picture[..., ::-1])


def empty() -> np.ndarray:
    """Returns a picture of that size without anybody in it."""
    return np.full((SIDE_PX, SIDE_PX, 3), BACKGROUND, np.uint8)


def placed(picture: np.ndarray, *, width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    """Returns a gray picture (height, width, 3) with another one in it as a square."""
    whole = np.full((height, width, 3), BACKGROUND, np.uint8)
    whole[top : top + side, left : left + side] = cv2.resize(
        picture, (side, side), interpolation=cv2.INTER_AREA
    )
    return whole


def write(
    path: Path, pictures, *, times_ms=None, pixel_format: str = "yuv444p", codec: str = "ffv1", sar=None
) -> Path:
    """Writes pictures (H, W, 3) RGB as a video and returns its path; 25 a second without `times_ms`."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        if times_ms is not None:
            stream.codec_context.time_base = MS
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], MS
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def turn_clockwise(path: Path) -> None:
    """Makes an MP4 say that a player must turn its pictures a quarter clockwise, as a telephone does."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # behind version, times, number and layer
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
