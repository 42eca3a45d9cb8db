"""A synthetic scene of random weights that costs what a trained speaker does, for benchmarks and tests.

An ellipsoid head that covers most of the picture, opaque within four to five samples a ray as trained heads
are, before a torso and a gradient.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np

from cuda_kernels.arrays import F32, U8
from cuda_kernels.scene import Camera, Grid, GridLayout, HeadField, Scene, TorsoField

HEAD_RADII = (0.50, 0.45, 0.43)  # field space: up, towards the camera, across
CAMERA_DISTANCE = 3.35  # field units, with a field of view of 21.24 degrees


def make_grid(
    random: np.random.Generator,
    *,
    dimensions: int,
    levels: int,
    log2_rows: int,
    resolution: int = 2048,
    features: int = 2,
    hashed: bool = False,
    smoothstep: bool = False,
    amplitude: float = 1.0,
) -> Grid:
    """Returns a grid of noise whose finer levels are fainter, as trained ones are."""
    layout = GridLayout.growing(
        dimensions=dimensions,
        levels=levels,
        desired_resolution=resolution,
        log2_rows=log2_rows,
        hashed=hashed,
        smoothstep=smoothstep,
    )
    table = random.normal(size=(layout.offsets[-1], features)).astype(np.float32)
    for level, (first, last) in enumerate(pairwise(layout.offsets)):
        table[first:last] *= amplitude * 0.7**level
    return Grid(table=table, layout=layout)


def make_net(random: np.random.Generator, widths: tuple[int, ...]) -> tuple[F32, ...]:
    """Returns weights that preserve the activations' scale through ReLU (He)."""
    return tuple(
        (random.normal(size=(rows, columns)) * math.sqrt(2 / columns)).astype(np.float32)
        for columns, rows in pairwise(widths)
    )


def ellipsoid_bitfield(grid_size: int, radii: tuple[float, float, float]) -> U8:
    """Returns the Morton-ordered occupancy bits of an ellipsoid about the origin of [-1, 1]^3."""
    centres = (np.arange(grid_size) + 0.5) / grid_size * 2 - 1
    x, y, z = np.meshgrid(centres, centres, centres, indexing="ij")
    inside = (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1
    cells = np.argwhere(inside)
    code = np.zeros(len(cells), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    bits = np.zeros(grid_size**3, np.uint8)
    bits[code] = 1
    packed: U8 = np.packbits(bits, bitorder="little")
    return packed


def make_scene(
    *,
    hidden: int = 32,
    levels: int = 12,
    log2_rows: int = 14,
    ambient_log2_rows: int | None = None,
    geometry: int | None = None,
    condition: int = 32,
    layers: tuple[int, int, int] = (3, 3, 2),
    torso_hidden: int = 32,
    torso_layers: tuple[int, int] = (3, 3),
    torso_levels: int | None = None,
    with_torso: bool = True,
    image_size_px: int = 512,
    grid_size: int = 128,
    max_steps: int = 16,
    hashed: bool = False,
    smoothstep: bool = False,
    features: int = 2,
    density: float = 4.4,
    seed: int = 0,
) -> Scene:
    """Returns a scene of the given sizes.

    Args:
        hidden: width of the head's networks.
        levels: of the head's grids.
        log2_rows: largest rows of a level of the position grid.
        ambient_log2_rows: likewise of the ambient grid; as log2_rows if None.
        geometry: width of the geometry features; as hidden if None.
        condition: length of the condition.
        layers: of the ambient, sigma and colour nets.
        torso_hidden: width of the deform net; the canonical net has half.
        torso_layers: of the deform and canonical nets.
        torso_levels: of the torso's grid; as levels if None.
        with_torso: whether there is one.
        image_size_px: side of the full picture.
        grid_size: cells a side of the occupancy.
        max_steps: samples a ray at most.
        hashed: grids hash instead of wrapping.
        smoothstep: grids interpolate smoothly.
        features: of each level.
        density: mean log density in the head.
        seed: of the weights.
    """
    random = np.random.default_rng(seed)
    geometry = hidden if geometry is None else geometry
    grid_of = partial(make_grid, random, features=features, hashed=hashed, smoothstep=smoothstep)
    position = grid_of(dimensions=3, levels=levels, log2_rows=log2_rows)
    ambient_rows = log2_rows if ambient_log2_rows is None else ambient_log2_rows
    ambient = grid_of(dimensions=2, levels=levels, log2_rows=ambient_rows, amplitude=0.5)
    seen = levels * features
    ambient_net = list(make_net(random, (seen + condition, *(hidden,) * (layers[0] - 1), 2)))
    ambient_net[-1] *= np.float32(0.2)
    sigma_net = list(make_net(random, (2 * seen, *(hidden,) * (layers[1] - 1), 1 + geometry)))
    if layers[1] > 1:
        # Hidden units are never negative: weights that are all alike make the density high everywhere.
        # What the grids give is their noise, faint in fine levels and averaged between corners.
        fading = np.repeat(0.7 ** np.arange(levels), features)
        size = np.concatenate([0.54 * fading, 0.67 * 0.5 * fading])
        through = (random.normal(size=(2 * seen, 256)) * size[:, None]).astype(np.float32)
        for weight in sigma_net[:-1]:
            through = np.maximum(weight @ through, 0)
        sigma_net[-1][0] = density / through.sum(axis=0).mean()
    head = HeadField(
        position_grid=position,
        ambient_grid=ambient,
        ambient_net=tuple(ambient_net),
        sigma_net=tuple(sigma_net),
        color_net=make_net(random, (16 + geometry + 4, *(hidden,) * (layers[2] - 1), 3)),
        individual_code=(random.normal(size=4) * 0.1).astype(np.float32),
        density_bitfield=ellipsoid_bitfield(grid_size, HEAD_RADII),
        grid_size=grid_size,
        aabb=np.array([-1, -0.5, -1, 1, 0.5, 1], np.float32),
        max_steps=max_steps,
    )
    torso = None
    if with_torso:
        grid = grid_of(dimensions=2, levels=torso_levels or levels, log2_rows=log2_rows)
        torso = _make_torso(random, grid, torso_hidden, torso_layers)
    ramp = np.linspace(60, 200, image_size_px)
    background = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), -1).astype(np.uint8)
    return Scene(
        head=head,
        torso=torso,
        camera=Camera(
            focal_px=image_size_px / 2 / math.tan(math.radians(21.24 / 2)),
            cx_px=image_size_px / 2,
            cy_px=image_size_px / 2,
        ),
        background=background,
        image_size_px=image_size_px,
    )


def _make_torso(random: np.random.Generator, grid: Grid, hidden: int, layers: tuple[int, int]) -> TorsoField:
    octaves, pose_octaves, code = 10, 4, 8
    seen = 2 * (1 + 2 * octaves) + 6 * (1 + 2 * pose_octaves) + code
    deform = list(make_net(random, (seen, *(hidden,) * (layers[0] - 1), 2)))
    deform[-1] *= np.float32(0.02)
    narrow = max(4, hidden // 2)
    canonical = make_net(random, (grid.width + seen, *(narrow,) * (layers[1] - 1), 4))
    side = 128
    rows, columns = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    occupancy = ((rows > 0.45) & (np.abs(columns) < 0.3 + 0.7 * (rows - 0.3))).astype(np.float32)
    return TorsoField(
        grid=grid,
        deform_net=tuple(deform),
        canonical_net=canonical,
        individual_code=(random.normal(size=code) * 0.1).astype(np.float32),
        occupancy=occupancy,
        position_octaves=octaves,
        pose_octaves=pose_octaves,
    )


def make_pose(yaw: float = 0.0, pitch: float = 0.0, *, scale: float = 4.0) -> F32:
    """Returns a pose (4, 4), camera to head space, looking at the head's middle; angles in radians."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = turn @ np.array([0, 0, CAMERA_DISTANCE / scale])
    return pose.astype(np.float32)


def make_condition(scene: Scene, seed: int = 0) -> F32:
    """Returns a random condition (C,) of the length that the scene's head takes."""
    length = scene.head.ambient_net[0].shape[1] - scene.head.position_grid.width
    condition: F32 = np.random.default_rng(seed).normal(size=length).astype(np.float32)
    return condition
