"""Pictures as planar I420, and drawn pixels laid over a plate, on the CPU."""

from __future__ import annotations

import functools

import numpy as np

from . import i420_kernels
from .arrays import F32, I32, U8
from .compilation import compiled
from .masks import BlockMask


def rgb_to_i420(image: U8, out: U8 | None = None) -> U8:
    """Returns planar I420 (H * 3 / 2, W), BT.601 limited range, of RGB (H, W, 3) with even sides.

    Chroma is the mean of each two by two pixels.
    """
    height, width = image.shape[:2]
    if out is None:
        out = np.empty((height * 3 // 2, width), np.uint8)
    compiled(i420_kernels.to_i420)(image, out)
    return out


def compose_i420(plate: U8, drawn: U8, mask: BlockMask, out: U8 | None = None) -> U8:
    """Returns the plate with the drawn pixels of a mask laid over it.

    They fade out within the mask's outermost blocks, as `BlockMask.corners` says.

    Args:
        plate: (S * 3 / 2, S) uint8 planar I420, BT.601 limited range; S is even.
        drawn: (s, s, 3) uint8 RGB, of which at least `mask.at_size(s)` is drawn; scaled up by a cubic filter
            where s is smaller than S.
        mask: of S pixels.
        out: C-contiguous array like `plate` to write into.

    Raises:
        ValueError: plate and mask are of different sizes.
    """
    size_px = mask.size_px
    if plate.shape != (size_px * 3 // 2, size_px):
        raise ValueError(f"plate: expected one of {size_px} px, got shape {plate.shape}")
    if out is None:
        out = np.empty(plate.shape, np.uint8)
    np.copyto(out, plate)
    places, taps = _cubic(drawn.shape[0], size_px)
    compiled(i420_kernels.compose)(drawn, mask.blocks, mask.corners, places, taps, out)
    return out


@functools.lru_cache(16)
def _cubic(drawn_px: int, size_px: int) -> tuple[I32, F32]:
    """Returns places and taps (size, 4) of Catmull and Rom's cubic filter; at the edges the last pixel."""
    at = (np.arange(size_px) + 0.5) * (drawn_px / size_px) - 0.5
    before = np.floor(at)
    t = at - before
    taps = np.stack(
        (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ),
        axis=1,
    )
    places = np.clip(before.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32), 0, drawn_px - 1)
    return places.astype(np.int32), taps.astype(np.float32)
