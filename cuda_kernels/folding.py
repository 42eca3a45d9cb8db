"""Constant folding: a scene's networks packed for the fused raymarchers, constant inputs folded into biases.

Four identities, none an approximation (a Linear layer without bias is W x, and W [x, c] = Wx x + Wc c):

* the condition is one vector per frame, so its columns of the ambient net's first layer become a bias;
* the individual code is constant, and so becomes a bias of the colour net's first layer; the direction's
  spherical harmonics are constant along a ray, so with it they make a bias per ray;
* the geometry features pass from the sigma net to the colour net through no activation, so the two matrices
  multiply once, here;
* the torso's pose and code are constant over a frame and become a bias of both torso nets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .arrays import F32, F64, U8
from .compilation import compiled
from .cpu_kernels import BLOCK, PackedGrid, PackedNet
from .errors import InputError
from .scene import Camera, Grid, HeadField, Scene, TorsoField

SH_TERMS = 16


class SceneError(InputError):
    """A scene whose arrays do not fit together: field, expected, got."""


def _refuse(field: str, expected: str, got: object) -> SceneError:
    return SceneError(
        field=field, expected=expected, got=str(got), way_out="the speaker's files do not belong together"
    )


# ---------------------------------------------------------------------------------------------- checks
def _check_array(field: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise _refuse(field, f"an array of {np.dtype(dtype).name}", getattr(array, "dtype", type(array)))
    if array.shape != shape:
        raise _refuse(field, f"shape {shape}", array.shape)
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise _refuse(field, "finite values", "NaN or infinity")


def _check_net(field: str, net: tuple[F32, ...], inputs: int | None, outputs: int) -> int:
    """Returns the number of inputs of a net whose layers chain and that ends in `outputs`."""
    if len(net) < 1:
        raise _refuse(field, "at least one layer", "none")
    width = net[0].shape[1] if inputs is None else inputs
    first = int(width)
    for layer, weight in enumerate(net):
        if not isinstance(weight, np.ndarray) or weight.ndim != 2:
            raise _refuse(
                f"{field}[{layer}]", "a matrix (outputs, inputs)", getattr(weight, "shape", type(weight))
            )
        last = layer == len(net) - 1
        _check_array(f"{field}[{layer}]", weight, (outputs if last else weight.shape[0], width), np.float32)
        width = weight.shape[0]
    return first


def _check_grid(field: str, grid: Grid, dimensions: int) -> int:
    """Returns the number of features that a grid gives (levels times features a level)."""
    layout, offsets = grid.layout, grid.layout.offsets
    if layout.dimensions != dimensions:
        raise _refuse(f"{field}.dimensions", str(dimensions), layout.dimensions)
    if len(offsets) < 2:
        raise _refuse(f"{field}.offsets", "at least one level", offsets)
    if offsets[0] != 0 or min(layout.rows) <= 0:
        raise _refuse(f"{field}.offsets", "growing from 0", offsets)
    if grid.table.ndim != 2:
        raise _refuse(f"{field}.table", "shape (rows, features)", grid.table.shape)
    _check_array(f"{field}.table", grid.table, (offsets[-1], grid.table.shape[1]), np.float32)
    base_resolution, log2_growth = layout.base_resolution, layout.log2_growth
    if base_resolution < 1 or not math.isfinite(log2_growth) or log2_growth < 0:
        raise _refuse(field, "base_resolution >= 1, log2_growth >= 0", (base_resolution, log2_growth))
    return grid.width


def check_scene(scene: Scene) -> None:
    """Raises SceneError with field, expected and got unless the scene can be rendered."""
    head, camera = scene.head, scene.camera
    position_features = _check_grid("head.position_grid", head.position_grid, 3)
    ambient_features = _check_grid("head.ambient_grid", head.ambient_grid, 2)
    inputs = _check_net("head.ambient_net", head.ambient_net, None, 2)
    if inputs <= position_features:
        raise _refuse("head.ambient_net[0]", f"more than {position_features} inputs", inputs)
    geometry = head.sigma_net[-1].shape[0] - 1 if head.sigma_net else 0
    if geometry < 1:
        raise _refuse("head.sigma_net[-1]", "at least 2 rows (density, geometry)", geometry + 1)
    _check_net("head.sigma_net", head.sigma_net, position_features + ambient_features, 1 + geometry)
    code = head.individual_code.shape[0] if head.individual_code.ndim == 1 else -1
    _check_array("head.individual_code", head.individual_code, (max(code, 0),), np.float32)
    _check_net("head.color_net", head.color_net, SH_TERMS + geometry + code, 3)
    side = head.grid_size
    if side < 2 or side & (side - 1) or side > 1024:
        raise _refuse("head.grid_size", "a power of two up to 1024", side)
    _check_array("head.density_bitfield", head.density_bitfield, (side**3 // 8,), np.uint8)
    if not 0 < head.bound <= 1:
        raise _refuse("head.bound", "in (0, 1]: one occupancy cascade", head.bound)
    _check_array("head.aabb", head.aabb, (6,), np.float32)
    if (head.aabb[:3] >= head.aabb[3:]).any():
        raise _refuse("head.aabb", "xmin ymin zmin < xmax ymax zmax", head.aabb.tolist())
    if head.max_steps < 1:
        raise _refuse("head.max_steps", "at least 1", head.max_steps)
    if not (head.min_near > 0 and 0 <= head.stop_transmittance < 1):
        raise _refuse(
            "head", "min_near > 0 and 0 <= stop_transmittance < 1", (head.min_near, head.stop_transmittance)
        )
    numbers = (camera.focal_px, camera.cx_px, camera.cy_px, camera.scale, *camera.offset)
    if len(camera.offset) != 3 or not all(math.isfinite(n) for n in numbers) or camera.focal_px <= 0:
        raise _refuse("camera", "finite numbers, focal_px > 0, three offsets", numbers)
    if scene.image_size_px < 2:
        raise _refuse("image_size_px", "at least 2", scene.image_size_px)
    _check_array("background", scene.background, (scene.image_size_px, scene.image_size_px, 3), np.uint8)
    if scene.torso is not None:
        _check_torso(scene.torso)


def _check_torso(torso: TorsoField) -> None:
    features = _check_grid("torso.grid", torso.grid, 2)
    code = torso.individual_code.shape[0] if torso.individual_code.ndim == 1 else -1
    _check_array("torso.individual_code", torso.individual_code, (max(code, 0),), np.float32)
    if not (0 < torso.position_octaves <= 16 and 0 < torso.pose_octaves <= 16):
        raise _refuse("torso", "1 to 16 octaves", (torso.position_octaves, torso.pose_octaves))
    seen = 2 * (1 + 2 * torso.position_octaves) + 6 * (1 + 2 * torso.pose_octaves) + code
    _check_net("torso.deform_net", torso.deform_net, seen, 2)
    _check_net("torso.canonical_net", torso.canonical_net, features + seen, 4)
    if torso.occupancy.ndim != 2 or torso.occupancy.shape[0] < 2:
        raise _refuse("torso.occupancy", "(side, side)", torso.occupancy.shape)
    _check_array("torso.occupancy", torso.occupancy, (torso.occupancy.shape[0],) * 2, np.float32)


# ---------------------------------------------------------------------------------------------- folds
def fold_condition(ambient_layer: F32, position_features: int) -> tuple[F32, F32]:
    """Returns the ambient net's first layer split: position columns, the rest: bias = rest @ condition."""
    return (
        np.ascontiguousarray(ambient_layer[:, :position_features]),
        np.ascontiguousarray(ambient_layer[:, position_features:]),
    )


def fold_color(sigma_layer: F32, color_layer: F32, individual_code: F32) -> tuple[F32, F32, F32]:
    """Returns the colour net's first layer over the sigma net's last hidden layer, folded.

    Args:
        sigma_layer: (1 + G, H) last layer of the sigma net; row 0 is the density and stays there.
        color_layer: (O, 16 + G + I) first layer of the colour net.
        individual_code: (I,).

    Returns:
        (O, H) merged weights, (O, 16) weights of SH(direction), (O,) bias of the code. A ray's bias is
        `direction_weights @ SH(direction) + code_bias`.
    """
    geometry = sigma_layer.shape[0] - 1
    merged = color_layer[:, SH_TERMS : SH_TERMS + geometry].astype(np.float64) @ sigma_layer[1:].astype(
        np.float64
    )
    code_bias = color_layer[:, SH_TERMS + geometry :].astype(np.float64) @ individual_code.astype(np.float64)
    return (
        merged.astype(np.float32),
        np.ascontiguousarray(color_layer[:, :SH_TERMS]),
        code_bias.astype(np.float32),
    )


def frequency_row(values: F64, octaves: int) -> F64:
    """Returns [v, sin v, cos v, sin 2v, cos 2v, ...] of one vector, each group as wide as the vector."""
    parts = [values]
    for octave in range(octaves):
        parts += [np.sin(values * 2.0**octave), np.cos(values * 2.0**octave)]
    return np.concatenate(parts)


def field_pose(c2w: npt.NDArray[np.floating], camera: Camera) -> F64:
    """Returns the field pose (3, 4) of a camera-to-head pose (4, 4): the instant-ngp convention."""
    rows = np.asarray(c2w, np.float64)[[1, 2, 0]]
    pose = np.concatenate([rows[:, :1], -rows[:, 1:3], rows[:, 3:] * camera.scale], axis=1)
    pose[:, 3] += camera.offset
    return pose


def pose_vector(pose: F64) -> F64:
    """Returns (6,): Euler angles x, y, z with R = Rx Ry Rz, then the translation, of a (3, 4) pose."""
    angles = (
        math.atan2(-pose[1, 2], pose[2, 2]),
        math.asin(min(1.0, max(-1.0, pose[0, 2]))),
        math.atan2(-pose[0, 1], pose[0, 0]),
    )
    return np.concatenate([np.array(angles), pose[:, 3]])


# ---------------------------------------------------------------------------------------------- packing
def round_up(count: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def pack_net(layers: list[tuple[F32, F32 | None]]) -> PackedNet:
    """Returns the packed form of layers [(weight (outputs, inputs), bias (outputs,) or None), ...]."""
    weights, biases, weight_at, bias_at, inputs, blocks = [], [], [], [], [], []
    weight_total = bias_total = previous = 0
    for weight, bias in layers:
        rows, columns = weight.shape
        rows_padded = round_up(rows, BLOCK)
        columns_padded = max(columns, previous)
        padded = np.zeros((rows_padded, columns_padded), np.float32)
        padded[:rows, :columns] = weight
        row = np.zeros(rows_padded, np.float32)
        if bias is not None:
            row[:rows] = bias
        packed = padded.reshape(rows_padded // BLOCK, BLOCK, columns_padded).transpose(0, 2, 1).ravel()
        weights.append(packed)
        biases.append(row)
        weight_at.append(weight_total)
        bias_at.append(bias_total)
        inputs.append(columns_padded)
        blocks.append(rows_padded // BLOCK)
        weight_total += packed.size
        bias_total += row.size
        previous = rows_padded
    return PackedNet(
        weights=np.concatenate(weights),
        biases=np.concatenate(biases),
        weight_at=np.array(weight_at, np.int64),
        bias_at=np.array(bias_at, np.int64),
        inputs=np.array(inputs, np.int64),
        blocks=np.array(blocks, np.int64),
    )


def pack_grid(grid: Grid) -> PackedGrid:
    """Returns the packed form of a grid; addresses equal the reference's for every cell."""
    layout, features = grid.layout, grid.table.shape[1]
    beyond = np.zeros((1, features), np.float32)
    tables = []
    for first, last in pairwise(layout.offsets):
        own = grid.table[first:last]
        tables.append(np.concatenate([own, own[:1], beyond]).ravel())
    _, stride_y, stride_z = np.array([(*strides, 0)[:3] for strides in layout.strides], np.uint32).T.copy()
    return PackedGrid(
        table=np.concatenate(tables),
        start=np.cumsum([0, *(table.size for table in tables[:-1])]),
        scale=np.array(layout.scales, np.float32),
        stride_y=stride_y,
        stride_z=stride_z,
        rows=np.array(layout.rows, np.uint32),
        mask=np.array([mask & 0xFFFFFFFF for mask in layout.masks], np.uint32),
        hashed=np.array(layout.hashes, np.uint8),
        features=features,
        smoothstep=layout.smoothstep,
    )


# ---------------------------------------------------------------------------------------------- occupancy
def _unpack_morton(bitfield: U8, side: int) -> U8:
    occupied = np.zeros((side, side, side), np.uint8)
    for x in range(side):
        for y in range(side):
            for z in range(side):
                code = 0
                for bit in range(10):
                    code |= ((x >> bit) & 1) << (3 * bit)
                    code |= ((y >> bit) & 1) << (3 * bit + 1)
                    code |= ((z >> bit) & 1) << (3 * bit + 2)
                occupied[x, y, z] = (bitfield[code >> 3] >> (code & 7)) & 1
    return occupied


def _chessboard_distance(occupied: U8) -> U8:
    # Two raster sweeps (chamfer), each over the 13 visited neighbours: exact for the chessboard metric.
    side = occupied.shape[0]
    padded = np.full((side + 2, side + 2, side + 2), 255, np.uint8)
    for x in range(side):
        for y in range(side):
            for z in range(side):
                if occupied[x, y, z]:
                    padded[x + 1, y + 1, z + 1] = 0
    for sweep in range(2):
        sign = 1 if sweep == 0 else -1
        for i in range(side):
            x = i + 1 if sweep == 0 else side - i
            for j in range(side):
                y = j + 1 if sweep == 0 else side - j
                for k in range(side):
                    z = k + 1 if sweep == 0 else side - k
                    best = padded[x, y, z]
                    if best == 0:
                        continue
                    near = padded[x, y, z - sign]
                    for b in range(-1, 2):
                        near = min(near, padded[x, y - sign, z + b])
                        for a in range(-1, 2):
                            near = min(near, padded[x - sign, y + a, z + b])
                    if near < 254:
                        best = min(best, np.uint8(near + 1))
                    padded[x, y, z] = best
    return padded[1:-1, 1:-1, 1:-1].copy()


def unpack_bitfield(bitfield: U8, side: int) -> U8:
    """Returns the occupancy (side, side, side) of 0 and 1, [x, y, z], of a Morton-ordered bitfield."""
    occupied: U8 = compiled(_unpack_morton)(bitfield, side)
    return occupied


def distance_field(bitfield: U8, side: int) -> U8:
    """Returns (side, side, side) chessboard distance to the nearest occupied cell, [x, y, z]; at most 255.

    From a cell of distance d, every cell fewer than d cells away on all axes is empty.
    """
    distance: U8 = compiled(_chessboard_distance)(unpack_bitfield(bitfield, side))
    return distance


# ---------------------------------------------------------------------------------------------- the whole
@dataclass(frozen=True, kw_only=True)
class FoldedHead:
    """The folded head; `ambient_biases` gives the biases of a frame."""

    position_grid: PackedGrid
    ambient_grid: PackedGrid
    ambient_net: PackedNet  # position features -> 2; biases of layer 0 are the frame's
    sigma_net: PackedNet  # position and ambient features -> last hidden layer; may have no layers
    density_net: PackedNet  # last hidden layer -> log density
    color_net: PackedNet  # last hidden layer (padded) and 16 SH terms -> 3 logits
    condition_weights: F32  # (O, C)
    hidden_rows: int  # rows of the sigma net's last hidden layer, padded
    distance: U8  # (side, side, side)
    occupied_box: F64  # (6,) bounds of the occupied cells in the field's space; empty if min > max
    step: float  # lattice distance

    @property
    def condition_size(self) -> int:
        """Length of the condition vector."""
        return int(self.condition_weights.shape[1])

    def ambient_biases(self, condition: F32) -> F32:
        """Returns all biases of the ambient net for one frame's condition (C,)."""
        biases = self.ambient_net.biases.copy()
        rows = self.condition_weights.shape[0]
        biases[:rows] = self.condition_weights @ condition
        return biases


@dataclass(frozen=True, kw_only=True)
class FoldedTorso:
    """The folded torso; the biases of both first layers follow from the pose."""

    grid: PackedGrid
    deform_net: PackedNet  # freq(x) -> 2
    canonical_net: PackedNet  # grid features and freq(x) -> 4
    deform_constant: F32  # (O, 6 (1 + 2 octaves) + I) weights of the pose's frequencies and the code
    canonical_constant: F32
    individual_code: F32
    occupancy: F32
    position_octaves: int
    pose_octaves: int
    shrink: float

    def biases(self, pose: F64) -> tuple[F32, F32]:
        """Returns all biases of the deform net and of the canonical net for a (3, 4) field pose."""
        constant = np.concatenate([frequency_row(pose_vector(pose), self.pose_octaves), self.individual_code])
        found = []
        for net, weights in (
            (self.deform_net, self.deform_constant),
            (self.canonical_net, self.canonical_constant),
        ):
            biases = net.biases.copy()
            biases[: weights.shape[0]] = weights.astype(np.float64) @ constant
            found.append(biases)
        return found[0], found[1]


EMPTY_NET = PackedNet(
    weights=np.zeros(0, np.float32),
    biases=np.zeros(0, np.float32),
    weight_at=np.zeros(0, np.int64),
    bias_at=np.zeros(0, np.int64),
    inputs=np.zeros(0, np.int64),
    blocks=np.zeros(0, np.int64),
)


def fold_head(head: HeadField) -> FoldedHead:
    """Returns the folded and packed head."""
    position_grid, ambient_grid = pack_grid(head.position_grid), pack_grid(head.ambient_grid)
    first, condition_weights = fold_condition(head.ambient_net[0], head.position_grid.width)
    merged, direction, code_bias = fold_color(head.sigma_net[-1], head.color_net[0], head.individual_code)
    hidden = merged.shape[1]
    hidden_rows = round_up(hidden, BLOCK) if len(head.sigma_net) > 1 else hidden
    color_first = np.zeros((merged.shape[0], hidden_rows + SH_TERMS), np.float32)
    color_first[:, :hidden] = merged
    color_first[:, hidden_rows:] = direction
    distance = distance_field(head.density_bitfield, head.grid_size)
    cells = np.argwhere(distance == 0)
    cell = 2 * head.bound / head.grid_size
    box = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    if len(cells):
        box = np.concatenate([cells.min(axis=0), cells.max(axis=0) + 1]) * cell - head.bound
    hidden_net = [(weight, None) for weight in head.sigma_net[:-1]]
    return FoldedHead(
        position_grid=position_grid,
        ambient_grid=ambient_grid,
        ambient_net=pack_net([(first, None), *((weight, None) for weight in head.ambient_net[1:])]),
        sigma_net=pack_net(list(hidden_net)) if hidden_net else EMPTY_NET,
        density_net=pack_net([(head.sigma_net[-1][:1], None)]),
        color_net=pack_net([(color_first, code_bias), *((weight, None) for weight in head.color_net[1:])]),
        condition_weights=condition_weights,
        hidden_rows=hidden_rows,
        distance=distance,
        occupied_box=box,
        step=2 * math.sqrt(3) / head.grid_size,
    )


def fold_torso(torso: TorsoField) -> FoldedTorso:
    """Returns the folded and packed torso."""
    seen, features = 2 * (1 + 2 * torso.position_octaves), torso.grid.width
    deform, canonical = torso.deform_net[0], torso.canonical_net[0]
    return FoldedTorso(
        grid=pack_grid(torso.grid),
        deform_net=pack_net([(deform[:, :seen], None), *((weight, None) for weight in torso.deform_net[1:])]),
        canonical_net=pack_net(
            [(canonical[:, : features + seen], None), *((weight, None) for weight in torso.canonical_net[1:])]
        ),
        deform_constant=np.ascontiguousarray(deform[:, seen:]),
        canonical_constant=np.ascontiguousarray(canonical[:, features + seen :]),
        individual_code=torso.individual_code,
        occupancy=np.ascontiguousarray(torso.occupancy),
        position_octaves=torso.position_octaves,
        pose_octaves=torso.pose_octaves,
        shrink=torso.shrink,
    )


def resize_by_area(image: U8, size_px: int) -> F32:
    """Returns a square uint8 image resampled by area to (size, size, 3) in [0, 1]."""
    side = image.shape[0]
    if side == size_px:
        return image.astype(np.float32) / np.float32(255)
    edges = np.arange(size_px + 1) * (side / size_px)
    cells = np.arange(side)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = (np.clip(overlap, 0, None) * (size_px / side)).astype(np.float32)  # (size, side)
    rows = np.tensordot(weights, image.astype(np.float32), axes=(1, 0))  # (size, side, 3)
    resized: F32 = np.einsum("sc,rcd->rsd", weights, rows, optimize=True) / np.float32(255)
    return np.ascontiguousarray(resized, np.float32)
