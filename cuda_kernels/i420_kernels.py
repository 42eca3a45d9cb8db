"""Numba kernels for I420 pictures (BT.601, limited range): conversion, and drawn pixels over a plate.

In one file, as Numba's cache asks for: see `cpu_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .arrays import BOOL, F32, I32, U8


@njit(forceinline=True)
def _luma(r: Any, g: Any, b: Any) -> Any:
    """65.481, 128.553, 24.966 of 255 in 16 fractional bits, with a half for rounding."""
    return (np.int32(16829) * r + np.int32(33039) * g + np.int32(6416) * b + np.int32(1081344)) >> 16


@njit(forceinline=True)
def _blue_difference(r: Any, g: Any, b: Any) -> Any:
    """U of the sums over four pixels."""
    return (np.int32(-9714) * r - np.int32(19071) * g + np.int32(28784) * b + np.int32(257 << 17)) >> 18


@njit(forceinline=True)
def _red_difference(r: Any, g: Any, b: Any) -> Any:
    """V of the sums over four pixels."""
    return (np.int32(28784) * r - np.int32(24103) * g - np.int32(4681) * b + np.int32(257 << 17)) >> 18


def to_i420(image: U8, out: U8) -> None:
    """Writes planar I420 of an (H, W, 3) RGB image into (H * 3 / 2, W); even sides.

    Chroma is the mean of each 2 x 2 pixels.
    """
    height, width = image.shape[0], image.shape[1]
    flat = out.reshape(-1)
    u_at = height * width
    v_at = u_at + height * width // 4
    for y in range(0, height, 2):
        for x in range(0, width, 2):
            r = g = b = np.int32(0)
            for j in range(2):
                for i in range(2):
                    pixel = image[y + j, x + i]
                    pr, pg, pb = np.int32(pixel[0]), np.int32(pixel[1]), np.int32(pixel[2])
                    flat[(y + j) * width + x + i] = _luma(pr, pg, pb)
                    r += pr
                    g += pg
                    b += pb
            at = (y // 2) * (width // 2) + x // 2
            flat[u_at + at] = _blue_difference(r, g, b)
            flat[v_at + at] = _red_difference(r, g, b)


@njit(forceinline=True)
def _steps(corners: BOOL, row: Any, column: Any, y: Any, x: Any, edge: Any) -> Any:
    """Weight of a pixel (y, x) of a block that is `edge` wide, in steps of 1 / (4 edge ** 2)."""
    down, right = 2 * y + 1, 2 * x + 1
    up, left = 2 * edge - down, 2 * edge - right
    return (
        corners[row, column] * up * left
        + corners[row, column + 1] * up * right
        + corners[row + 1, column] * down * left
        + corners[row + 1, column + 1] * down * right
    )


@njit(forceinline=True)
def _scaled(drawn: U8, places: I32, taps: F32, y: Any, x: Any, channel: Any) -> Any:
    """Returns a channel of the pixel (y, x) of a picture that is scaled up, 0 to 255."""
    total = np.float32(0.0)
    for j in range(4):
        across = np.float32(0.0)
        for i in range(4):
            across += taps[x, i] * np.float32(drawn[places[y, j], places[x, i], channel])
        total += taps[y, j] * across
    return np.int32(min(max(total + np.float32(0.5), np.float32(0.0)), np.float32(255.0)))


def compose(drawn: U8, blocks: I32, corners: BOOL, places: I32, taps: F32, picture: U8) -> None:
    """Lays the drawn pixels of a mask's blocks over a plate, in place.

    Args:
        drawn: (s, s, 3) RGB, the mask's blocks and around them what `places` asks for.
        blocks: (N, 2) row and column of each block of 4 x 4 pixels of the picture.
        corners: (n + 1, n + 1), see `masks.BlockMask.corners`.
        places: (S, 4) rows, and columns, of `drawn` that each of the picture's is made of; unread if s is S.
        taps: (S, 4) what each weighs.
        picture: (S * 3 / 2, S) planar I420; S is even.
    """
    size = picture.shape[1]
    as_drawn = drawn.shape[0] == size
    flat = picture.reshape(-1)
    u_at = size * size
    v_at = u_at + u_at // 4
    for n in range(blocks.shape[0]):
        row, column = blocks[n, 0], blocks[n, 1]
        for quad in range(4):
            down, right = quad // 2, quad % 2
            top, left = 4 * row + 2 * down, 4 * column + 2 * right
            if top >= size or left >= size:
                continue
            r = g = b = np.int32(0)
            for pixel in range(4):
                y, x = top + pixel // 2, left + pixel % 2
                if as_drawn:
                    pr, pg, pb = np.int32(drawn[y, x, 0]), np.int32(drawn[y, x, 1]), np.int32(drawn[y, x, 2])
                else:
                    pr = _scaled(drawn, places, taps, y, x, 0)
                    pg = _scaled(drawn, places, taps, y, x, 1)
                    pb = _scaled(drawn, places, taps, y, x, 2)
                w = _steps(corners, row, column, y - 4 * row, x - 4 * column, 4)
                under = np.int32(flat[y * size + x])
                flat[y * size + x] = (_luma(pr, pg, pb) * w + under * (64 - w) + 32) >> 6
                r += pr
                g += pg
                b += pb
            w = _steps(corners, row, column, down, right, 2)
            at = top // 2 * (size // 2) + left // 2
            under_u, under_v = np.int32(flat[u_at + at]), np.int32(flat[v_at + at])
            flat[u_at + at] = (_blue_difference(r, g, b) * w + under_u * (16 - w) + 8) >> 4
            flat[v_at + at] = (_red_difference(r, g, b) * w + under_v * (16 - w) + 8) >> 4
