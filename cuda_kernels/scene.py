"""What a raymarcher draws: one speaker's head, torso, camera and background as plain numpy arrays.

Shapes follow RAD-NeRF (Tang et al. 2022) as GeneFace trains it. Matrices are stored as torch's
`Linear.weight`: (outputs, inputs), without bias, ReLU between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import F32, U8

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A multiresolution feature grid (Müller et al. 2022, section 3), addressed as RAD-NeRF does.

    Level l has scale `2**(l * log2_growth) * base_resolution - 1` and
    `ceil(scale) + 1` cells a side; rows beyond a dense level's size wrap by modulo (tiled) or hash.
    """

    table: F32  # (rows, features), levels one after another
    offsets: I32  # (levels + 1,), first row of each level and the total
    dimensions: int  # 2 or 3
    base_resolution: int = 16
    log2_growth: float
    hashed: bool = False
    smoothstep: bool = False


def level_scale(level: int, *, log2_growth: float, base_resolution: int) -> float:
    """Cells per unit of [0, 1] on a grid's level, in float32 as the reference's kernel has it.

    Often a whole number, whose last bit decides how many cells a side there are: the power is taken in
    float64 and rounded once, so that no machine's own float32 exp2 has a say.
    """
    power = np.float32(np.exp2(np.float64(np.float32(level) * np.float32(log2_growth))))
    return float(power * np.float32(base_resolution) - np.float32(1))


@dataclass(frozen=True, kw_only=True)
class HeadField:
    """The head: position and ambient grids, three MLPs, the occupancy bits that bound the march."""

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
    """The torso: a 2-D field over the image that sees the head's pose only."""

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
    """All that is needed to draw one speaker."""

    head: HeadField
    torso: TorsoField | None
    camera: Camera
    background: U8  # (image_size_px, image_size_px, 3) RGB
    image_size_px: int = 512
