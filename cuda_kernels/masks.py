"""The part of a picture that speech changes, as blocks of pixels, and how it fades into the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .arrays import BOOL, I32, I64

BLOCK_PX = 4
_CUBIC_BEFORE, _CUBIC_AFTER = 1, 2  # pixels that a cubic filter reads before and after a place


def block_count(size_px: int) -> int:
    """Returns the number of blocks along a side; the last may reach beyond the picture."""
    return -(-size_px // BLOCK_PX)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockMask:
    """Which 4 x 4 blocks of a square picture are drawn; the rest is the plate's."""

    size_px: int
    covered: BOOL  # (n, n), n = ceil(size_px / 4)

    def __post_init__(self) -> None:
        """Refuses a grid of another size."""
        side = block_count(self.size_px)
        if self.covered.shape != (side, side) or self.covered.dtype != np.bool_:
            raise ValueError(
                f"mask: expected ({side}, {side}) bool for {self.size_px} px, "
                f"got {self.covered.dtype} of shape {self.covered.shape}"
            )

    @cached_property
    def blocks(self) -> I32:
        """Row and column (N, 2) of each covered block, row by row."""
        return np.ascontiguousarray(np.argwhere(self.covered), np.int32)

    @cached_property
    def corners(self) -> BOOL:
        """Where the drawn pixels hide the plate, (n + 1, n + 1): all blocks about a corner are covered.

        Between the corners of a block the weight of the drawn pixels is bilinear: they fade out within the
        mask's outermost blocks, and nothing beyond the mask is needed. What lies outside the picture counts
        as covered: nothing fades towards its edge.
        """
        padded = np.pad(self.covered, 1, constant_values=True)
        return np.asarray(padded[:-1, :-1] & padded[:-1, 1:] & padded[1:, :-1] & padded[1:, 1:])

    @property
    def pixels(self) -> BOOL:
        """Which pixels (size, size) are covered."""
        whole = np.kron(self.covered, np.ones((BLOCK_PX, BLOCK_PX), bool))
        return np.asarray(whole[: self.size_px, : self.size_px])

    @property
    def share(self) -> float:
        """Share of the picture that is drawn."""
        return float(self.covered.mean())

    def at_size(self, size_px: int) -> BlockMask:
        """Returns what has to be drawn at another size to be scaled to this one by a cubic filter."""
        if size_px == self.size_px:
            return self
        first, end = _sources(self.size_px, size_px)
        sums = np.pad(self.covered.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # (n + 1, n + 1)
        rows = sums[end] - sums[first]
        return BlockMask(size_px=size_px, covered=rows[:, end] > rows[:, first])


def _sources(size_px: int, drawn_px: int) -> tuple[I64, I64]:
    """Returns first and end (m,) of the blocks of a side of `size_px` that need each one of `drawn_px`."""
    first_px = np.arange(block_count(size_px)) * BLOCK_PX
    last_px = np.minimum(first_px + BLOCK_PX, size_px) - 1
    ratio = drawn_px / size_px

    def below(pixel: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        return np.asarray(np.floor((pixel + 0.5) * ratio - 0.5).astype(np.int64))

    first = np.clip(below(first_px) - _CUBIC_BEFORE, 0, drawn_px - 1) // BLOCK_PX
    last = np.clip(below(last_px) + _CUBIC_AFTER, 0, drawn_px - 1) // BLOCK_PX
    own = np.arange(block_count(drawn_px))
    begin = np.searchsorted(last, own, "left")
    return begin, np.maximum(np.searchsorted(first, own, "right"), begin)
