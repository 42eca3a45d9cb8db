"""Plates for a tiny bundle: `import plate_factory` in any test.

The plate of pose p is a gradient whose brightness says p; the mask is a square of blocks that moves with it.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import bundle_factory
import numpy as np
from safetensors.numpy import save

from cuda_kernels.masks import block_count
from export.bundle.writer import PlateParts, put_plates
from models.plates import MASK_KEY, packed_masks
from models.speaker import Speaker

POSES = 50  # of the tiny bundle


def write_plated_bundle(path: Path, *, image_size_px: int = 64, **changes) -> Speaker:
    """Returns the speaker of the bundle folder `path`, written from `bundle_factory` and with plates."""
    bundle_factory.write_tiny_bundle(path, image_size_px=image_size_px, **changes)
    return put_plates(path, plate_parts(image_size_px))


def plate_parts(size_px: int, poses: int = POSES) -> PlateParts:
    return PlateParts(
        video=video(pictures(size_px, poses)),
        masks=save({MASK_KEY: packed_masks(covered(size_px, poses))}),
        verification={"plates_psnr_db": 50.0, "plates_share": 0.1},
    )


def pictures(size_px: int, poses: int = POSES) -> list[np.ndarray]:
    """Returns `poses` pictures (size * 3 / 2, size) uint8 I420."""
    ramp = np.linspace(40, 120, size_px)
    made = []
    for pose in range(poses):
        picture = np.full((size_px * 3 // 2, size_px), 128, np.uint8)
        picture[:size_px] = ramp + pose
        made.append(picture)
    return made


def covered(size_px: int, poses: int = POSES) -> np.ndarray:
    """Returns masks (2, poses, n, n) bool: a square, and twice as wide a one during a blink."""
    side = block_count(size_px)
    masks = np.zeros((2, poses, side, side), bool)
    for pose in range(poses):
        left = pose % max(1, side - 4)
        masks[:, pose, side // 2 : side // 2 + 4, left : left + 4] = True
        masks[1, pose, side // 2 : side // 2 + 4, left + 4 : left + 8] = True
    return masks


def video(
    frames: list[np.ndarray], *, codec="libx264", pixel_format="yuv420p", container="matroska", streams=1
) -> bytes:
    """Returns a video of pictures (size * 3 / 2, size) uint8 I420."""
    file = io.BytesIO()
    options = {"crf": "6", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(file, "w", format=container) as out:
        tracks = [out.add_stream(codec, rate=25, options=options) for _ in range(streams)]
        for track in tracks:
            track.width = track.height = frames[0].shape[1]
            track.pix_fmt = pixel_format
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for track in tracks:
                out.mux(track.encode(frame))
        for track in tracks:
            out.mux(track.encode(None))
    return file.getvalue()
