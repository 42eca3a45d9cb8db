"""A scene: one speaker's head, torso, camera and background as plain numpy arrays.

Shapes follow RAD-NeRF (Tang et al. 2022) as GeneFace trains it. Matrices are stored as torch's
`Linear.weight`: (outputs, inputs), without bias, ReLU between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .arrays import F32, U8

MIN_SIZE_PX, MAX_SIZE_PX = 8, 2048
"""Sides of the pictures that the raymarchers draw."""


@dataclass(frozen=True, kw_only=True)
class GridLayout:
    """Addressing of a multiresolution grid's table (Müller et al. 2022, section 3), as RAD-NeRF does it.

    Level l has scale `2**(l * log2_growth) * base_resolution - 1` and
    `ceil(scale) + 1` cells a side; rows beyond a dense level's size wrap by modulo (tiled) or hash.
    Hashable, so that it can key a cache.
    """

    dimensions: int  # 2 or 3
    offsets: tuple[int, ...]  # (levels + 1,), first row of each level and the total
    base_resolution: int = 16
    log2_growth: float
    hashed: bool = False
    smoothstep: bool = False

    @classmethod
    def growing(
        cls,
        *,
        dimensions: int,
        levels: int,
        base_resolution: int = 16,
        desired_resolution: int,
        log2_rows: int,
        hashed: bool = False,
        smoothstep: bool = False,
    ) -> GridLayout:
        """Returns `levels` from `base_resolution` to `desired_resolution`, up to 2**log2_rows rows each.

        Rows are the cells, capped, rounded up to a multiple of 8.
        """
        growth = 2 ** (math.log2(desired_resolution / base_resolution) / max(1, levels - 1))
        offsets = [0]
        for level in range(levels):
            side = math.ceil(base_resolution * growth**level) + 1
            rows = min(2**log2_rows, side**dimensions)
            offsets.append(offsets[-1] + math.ceil(rows / 8) * 8)
        return cls(
            dimensions=dimensions,
            offsets=tuple(offsets),
            base_resolution=base_resolution,
            log2_growth=math.log2(growth),
            hashed=hashed,
            smoothstep=smoothstep,
        )

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of the table on each level."""
        return tuple(b - a for a, b in pairwise(self.offsets))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Cells per unit of [0, 1] on each level, in float32 as the reference's kernel has it.

        Often a whole number, whose last bit decides how many cells a side there are: the power is taken in
        float64 and rounded once, independent of the machine's float32 exp2.
        """
        growth, base = np.float32(self.log2_growth), np.float32(self.base_resolution)
        powers = (np.exp2(np.float64(np.float32(level) * growth)) for level in range(self.levels))
        return tuple(float(np.float32(power) * base - np.float32(1)) for power in powers)

    @cached_property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """(levels, dimensions) rows per step along each axis; 0 where the axis is left out.

        An axis enters the address only while its stride is within the table.
        """
        table = []
        for scale, rows in zip(self.scales, self.rows, strict=True):
            side, stride, strides = math.ceil(scale) + 2, 1, []
            for _ in range(self.dimensions):
                strides.append(stride if stride <= rows else 0)
                stride *= side if stride <= rows else 1
            table.append(tuple(strides))
        return tuple(table)

    @cached_property
    def hashes(self) -> tuple[bool, ...]:
        """Whether each level's rows are hashed: in a grid that hashes, those of more cells than rows."""
        return tuple(self.hashed and not dense for dense in self._dense)

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """How many leading axes enter each level's address."""
        return tuple(
            self.dimensions if hashed else sum(stride > 0 for stride in strides)
            for strides, hashed in zip(self.strides, self.hashes, strict=True)
        )

    @cached_property
    def groups(self) -> tuple[slice, ...]:
        """Slices of levels that are addressed alike."""
        kinds = list(zip(self.axes, self.hashes, strict=True))
        edges = [i for i in range(self.levels) if i == 0 or kinds[i] != kinds[i - 1]] + [self.levels]
        return tuple(slice(a, b) for a, b in pairwise(edges))

    @cached_property
    def masks(self) -> tuple[int, ...]:
        """Bit masks that wrap an address on each level: -1 where none is needed, 0 where a division is."""
        return tuple(
            -1 if dense else (rows - 1 if rows & (rows - 1) == 0 else 0)
            for dense, rows in zip(self._dense, self.rows, strict=True)
        )

    @cached_property
    def _dense(self) -> tuple[bool, ...]:
        sides = (math.ceil(scale) + 2 for scale in self.scales)
        return tuple(side**self.dimensions <= rows for side, rows in zip(sides, self.rows, strict=True))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A multiresolution feature grid."""

    table: F32  # (rows, features), levels one after another
    layout: GridLayout

    @property
    def width(self) -> int:
        """Numbers that one position is encoded to."""
        return self.layout.levels * int(self.table.shape[1])


@dataclass(frozen=True, kw_only=True)
class HeadField:
    """The head: position and ambient grids, three MLPs, the occupancy bitfield that bounds the march."""

    position_grid: Grid  # over [-bound, bound]^3
    ambient_grid: Grid  # over [-1, 1]^2
    ambient_net: tuple[F32, ...]  # (P + C) -> ... -> 2, tanh; P position features, C condition
    sigma_net: tuple[F32, ...]  # (P + A) -> ... -> 1 + G; row 0 is log density, the rest geometry features
    color_net: tuple[F32, ...]  # (16 SH(direction) + G + I) -> ... -> 3, sigmoid
    individual_code: F32  # (I,)
    density_bitfield: U8  # (grid_size**3 / 8,) Morton order, least significant bit first
    grid_size: int = 128
    bound: float = 1.0
    aabb: F32  # (6,) xmin ymin zmin xmax ymax zmax, in scaled space
    max_steps: int = 16
    min_near: float = 0.05
    stop_transmittance: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class TorsoField:
    """The torso: a 2-D field over the image, conditioned on the head's pose alone."""

    grid: Grid  # 2-D, over [-1, 1]^2
    deform_net: tuple[F32, ...]  # freq(x) + freq(pose6) + code -> ... -> 2
    canonical_net: tuple[F32, ...]  # grid features + the deform net's input -> ... -> 4 (alpha, rgb logits)
    individual_code: F32  # (I,)
    occupancy: F32  # (side, side): [row, column]; > 0 where the torso may be
    position_octaves: int = 10
    pose_octaves: int = 4
    shrink: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole intrinsics in pixels of the full-size image, and how head space maps to the field's space.

    With c2w rows (head space, OpenGL axes) P0 P1 P2, the field's pose has rows P1 P2 P0, columns 1 and 2
    negated, and translation * scale + offset (the instant-ngp convention that RAD-NeRF uses).
    """

    focal_px: float
    cx_px: float
    cy_px: float
    scale: float = 4.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything needed to render one speaker."""

    head: HeadField
    torso: TorsoField | None
    camera: Camera
    background: U8  # (image_size_px, image_size_px, 3) RGB
    image_size_px: int = 512
