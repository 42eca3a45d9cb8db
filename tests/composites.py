"""A plate with drawn pixels faded into it, in plain numpy: `import composites`."""

from __future__ import annotations

import numpy as np

from cuda_kernels.cpu_raymarcher import rgb_to_i420
from cuda_kernels.masks import BlockMask, block_count


def plane_weights(mask, side):
    """(side * n, side * n) integers up to 4 side^2: what drawn values weigh, side x side of a block."""
    corners = mask.corners.astype(np.int64)
    after = 2 * np.arange(side) + 1
    rows = np.kron(corners[:-1].T, 2 * side - after).T.reshape(-1, corners.shape[1])
    rows += np.kron(corners[1:].T, after).T.reshape(-1, corners.shape[1])
    return np.kron(rows[:, :-1], 2 * side - after) + np.kron(rows[:, 1:], after)


def weights(mask):
    """(S, S): what a drawn pixel weighs against the plate, 0 to 1."""
    return plane_weights(mask, 4)[: mask.size_px, : mask.size_px] / 64


def composite(plate, drawn, mask):
    """(S * 3 / 2, S) of an I420 plate and the (S, S, 3) RGB picture drawn whole."""
    size, half = mask.size_px, mask.size_px // 2
    weights = plane_weights(mask, 2)[:half, :half].reshape(-1)
    chroma = np.concatenate([weights, weights])
    luma = plane_weights(mask, 4)[:size, :size].reshape(-1)
    before, after = plate.reshape(-1).astype(np.int64), rgb_to_i420(drawn).reshape(-1).astype(np.int64)
    at = size * size
    mixed = [
        (after[:at] * luma + before[:at] * (64 - luma) + 32) >> 6,
        (after[at:] * chroma + before[at:] * (16 - chroma) + 8) >> 4,
    ]
    return np.concatenate(mixed).astype(np.uint8).reshape(plate.shape)


def random_plate(size_px, seed=0):
    """(S * 3 / 2, S) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (size_px * 3 // 2, size_px), np.uint8)


def masks_of(size_px):
    """Masks of a size by what is covered."""
    side = block_count(size_px)
    random = np.random.default_rng(size_px)
    middle, edges = np.zeros((side, side), bool), np.zeros((side, side), bool)
    middle[side // 4 : -(side // 4), side // 3 : -(side // 3)] = True
    edges[: side // 3, side // 2 :] = edges[-2:, : side // 2] = True
    covered = {
        "nothing": np.zeros((side, side), bool),
        "all": np.ones((side, side), bool),
        "the middle": middle,
        "at the edges": edges,
        "one block": np.eye(1, side * side, side + 1, dtype=bool).reshape(side, side),
        "most, with holes": random.random((side, side)) < 0.9,
    }
    return {name: BlockMask(size_px=size_px, covered=grid) for name, grid in covered.items()}
