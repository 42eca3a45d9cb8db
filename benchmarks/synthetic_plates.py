"""Synthetic plates and masks for benchmarks: noise, drawn over about mouth and eyes of a synthetic head."""

from __future__ import annotations

import argparse

import numpy as np

from cuda_kernels.arrays import U8
from cuda_kernels.masks import BlockMask, block_count

# Of mouth and both eyes: the middle and the radii, down and across, in sides of the picture.
_PARTS = ((0.64, 0.5, 0.14, 0.23), (0.42, 0.38, 0.065, 0.12), (0.42, 0.62, 0.065, 0.12))
_SWAY = 0.02  # of all, over the poses


DRAWN_SHARE = 0.15


def add_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--plates`, with or without a share of the picture."""
    shown = f"{what}, this share of each picture (default: {DRAWN_SHARE:g})"
    parser.add_argument("--plates", type=float, nargs="?", const=DRAWN_SHARE, metavar="SHARE", help=shown)


def face_mask(size_px: int, turn: float = 0.0, *, share: float = DRAWN_SHARE) -> BlockMask:
    """Returns a mask of about a share of the picture, moved across by the turn (-1 to 1)."""
    scale = (share / DRAWN_SHARE) ** 0.5
    centres = (np.arange(block_count(size_px)) + 0.5) / block_count(size_px)
    covered = np.zeros((len(centres), len(centres)), np.bool_)
    for row, column, down, across in _PARTS:
        own = ((centres - row) / down)[:, None] ** 2 + ((centres - column - _SWAY * turn) / across) ** 2
        covered |= own <= scale**2
    return BlockMask(size_px=size_px, covered=covered)


def make_plates(size_px: int, count: int, *, share: float = DRAWN_SHARE) -> tuple[U8, list[BlockMask]]:
    """Returns plates (P, size * 3 / 2, size) of noise, and their masks."""
    random = np.random.default_rng(0)
    pictures = random.integers(16, 236, (count, size_px * 3 // 2, size_px), np.uint8)
    return pictures, [face_mask(size_px, np.sin(number), share=share) for number in range(count)]
