"""Device data of the CUDA raymarcher: folded networks as half-precision mma fragments, grids, records.

The records are those of raymarcher_scene.cuh, byte for byte; the fragments those of warp_matrix.cuh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .arrays import F32, F64, U8, U16, U32
from .cpu_kernels import PackedGrid
from .folding import (
    SH_TERMS,
    FoldedHead,
    FoldedTorso,
    SceneError,
    check_scene,
    fold_color,
    fold_condition,
    fold_head,
    fold_torso,
)
from .masks import BlockMask, block_count
from .scene import Camera, HeadField, Scene, TorsoField

F16 = npt.NDArray[np.float16]
Record = npt.NDArray[np.void]

WIDTHS = (32, 64, 96, 128)
MAX_LEVELS = 16
BLOCKS_A_CHUNK = 2  # of 32 rays
CHUNK_BYTES = 32 * 8  # a pixel's head colour and transmittance
TORSO_DEFORM_WIDTH, TORSO_CANONICAL_WIDTH, TORSO_OCTAVES = 64, 32, 10

_FEATURES = 2 * MAX_LEVELS  # a grid's inputs, padded to MAX_LEVELS
_FREQUENCIES = 48  # the torso's frequency inputs, padded
_SH_CONSTANT = 0.28209479177387814  # the first harmonic; the kernel has one in its place
_MAX_HALF = 65504.0

LEVEL = np.dtype(
    [
        ("scale", "<f4"),
        ("stride_y", "<u4"),
        ("stride_z", "<u4"),
        ("mask", "<u4"),
        ("start", "<u4"),
        ("unused", "<u4", 3),
    ]
)
GRID = np.dtype([("cells", "<u8"), ("levels_with_z", "<u4"), ("levels", "<u4"), ("level", LEVEL, MAX_LEVELS)])
SCENE = np.dtype(
    [
        ("position", GRID),
        ("ambient", GRID),
        ("torso", GRID),
        ("head_weights", "<u8"),
        ("torso_weights", "<u8"),
        ("distance", "<u8"),
        ("occupancy", "<u8"),
        ("aabb", "<f4", 6),
        ("box", "<f4", 6),
        ("bound", "<f4"),
        ("step", "<f4"),
        ("min_near", "<f4"),
        ("stop_transmittance", "<f4"),
        ("shrink", "<f4"),
        ("max_steps", "<u4"),
        ("side", "<u4"),
        ("occupancy_side", "<u4"),
    ]
)
FRAME = np.dtype(
    [
        ("pose", "<f4", 12),
        ("focal_px", "<f4"),
        ("cx_px", "<f4"),
        ("cy_px", "<f4"),
        ("pixel_px", "<f4"),
        ("image_size_px", "<f4"),
        ("size_px", "<u4"),
        ("x0", "<u4"),
        ("y0", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("first_chunk", "<u4"),
        ("chunks", "<u4"),
        ("block_count", "<u4"),
        ("blocks_across", "<u4"),
        ("i420", "<u4"),
        ("background", "<u8"),
        ("blocks", "<u8"),
        ("plate", "<u8"),
        ("pixels", "<u8"),
        ("done", "<u8"),
        ("out", "<u8"),
        ("ambient_bias", "<f4", WIDTHS[-1]),
        ("deform_bias", "<f4", TORSO_DEFORM_WIDTH),
        ("canonical_bias", "<f4", TORSO_CANONICAL_WIDTH),
    ],
    align=True,
)
WORK = np.dtype(
    [
        ("scene", "<u8"),
        ("first_frame", "<u4"),
        ("frames", "<u4"),
        ("chunks", "<u4"),
        ("unused", "<u4"),
    ]
)
LAUNCH = np.dtype(
    [
        ("works", "<u8"),
        ("frames", "<u8"),
        ("taken_chunks", "<u8"),
        ("finished_chunks", "<u8"),
        ("counts", "<u8"),
        ("work_count", "<u4"),
        ("unused", "<u4"),
    ]
)


# ---------------------------------------------------------------------------------------------- networks
def _halves(field: str, array: F32) -> F16:
    if array.size and float(np.abs(array).max()) > _MAX_HALF:
        raise SceneError(
            f"{field}: expected at most {_MAX_HALF:.0f}, got {float(np.abs(array).max()):.3g}; "
            "the CUDA raymarcher keeps halves, draw this speaker with the CPU raymarcher"
        )
    return array.astype(np.float16)


def hidden_fragments(field: str, weight: F32) -> U32:
    """Returns a hidden layer's fragments, flat: for each 16 outputs, for each 16 inputs, four words a lane.

    Args:
        field: what an error names.
        weight: (outputs, inputs), both multiples of 16.
    """
    rows, columns = weight.shape
    parts = _halves(field, weight).reshape(rows // 16, 2, 8, columns // 16, 2, 4, 2)
    # [16 outputs, 16 inputs, row of the fragment, pair, upper outputs, upper inputs, of the pair]
    ordered = parts.transpose(0, 3, 2, 5, 1, 4, 6)
    return np.ascontiguousarray(ordered).reshape(-1).view(np.uint32)


def last_fragments(field: str, weight: F32) -> U32:
    """Returns a last layer's (outputs <= 8, inputs) fragments, flat: two words a lane for each 16 inputs."""
    padded = np.zeros((8, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    parts = _halves(field, padded).reshape(8, weight.shape[1] // 16, 2, 4, 2)
    return np.ascontiguousarray(parts.transpose(1, 0, 3, 2, 4)).reshape(-1).view(np.uint32)


def _placed(shape: tuple[int, int], *parts: tuple[F32, int]) -> F32:
    """Returns zeros of a shape with matrices (weight, first column) placed in them."""
    result = np.zeros(shape, np.float32)
    for weight, column in parts:
        result[: weight.shape[0], column : column + weight.shape[1]] = weight
    return result


def _net_words(field: str, layers: list[F32]) -> list[U32]:
    """Returns the fragments of padded hidden layers and a last layer."""
    words = [hidden_fragments(f"{field}[{index}]", weight) for index, weight in enumerate(layers[:-1])]
    return [*words, last_fragments(f"{field}[{len(layers) - 1}]", layers[-1])]


def _refuse_layers(field: str, net: tuple[F32, ...], layers: int) -> None:
    if len(net) != layers:
        raise SceneError(
            f"{field}: expected {layers} layers, got {len(net)}; the CUDA raymarcher is built for GeneFace's "
            "networks, draw this speaker with the CPU raymarcher"
        )


def _narrowest(field: str, hidden: int, widths: tuple[int, ...]) -> int:
    for width in widths:
        if hidden <= width:
            return width
    raise SceneError(
        f"{field}: expected hidden layers of at most {widths[-1]}, got {hidden}; "
        "draw this speaker with the CPU raymarcher"
    )


def head_width(head: HeadField) -> int:
    """Returns the width, one of WIDTHS, to which the head's hidden layers are padded.

    Raises:
        SceneError: another number of layers than GeneFace's, or wider than the widest.
    """
    nets = {"ambient_net": (head.ambient_net, 3), "sigma_net": (head.sigma_net, 3)}
    for name, (net, layers) in {**nets, "color_net": (head.color_net, 2)}.items():
        _refuse_layers(f"head.{name}", net, layers)
    hidden = max(
        weight.shape[0] for net in (head.ambient_net, head.sigma_net, head.color_net) for weight in net[:-1]
    )
    return _narrowest("head", hidden, WIDTHS)


def head_words(head: HeadField, width: int) -> U32:
    """Returns the head's folded weights as fragments, in the kernel's order."""
    position = head.position_grid.width
    ambient_first, _ = fold_condition(head.ambient_net[0], position)
    merged, direction, code_bias = fold_color(head.sigma_net[-1], head.color_net[0], head.individual_code)
    direction = direction.copy()
    direction[:, 0] = direction[:, 0] * np.float32(_SH_CONSTANT) + code_bias
    sigma_first, square = head.sigma_net[0], (width, width)
    words = _net_words(
        "head.ambient_net",
        [
            _placed((width, _FEATURES), (ambient_first, 0)),
            _placed(square, (head.ambient_net[1], 0)),
            _placed((2, width), (head.ambient_net[2], 0)),
        ],
    )
    words += _net_words(
        "head.sigma_net",
        [
            _placed(
                (width, 2 * _FEATURES), (sigma_first[:, :position], 0), (sigma_first[:, position:], _FEATURES)
            ),
            _placed(square, (head.sigma_net[1], 0)),
            _placed((1, width), (head.sigma_net[2][:1], 0)),
        ],
    )
    words += _net_words(
        "head.color_net",
        [
            _placed((width, width + SH_TERMS), (merged, 0), (direction, width)),
            _placed((3, width), (head.color_net[1], 0)),
        ],
    )
    return np.concatenate(words)


def torso_words(torso: TorsoField) -> U32:
    """Returns the torso's folded weights as fragments, in the kernel's order.

    Raises:
        SceneError: other sizes than the kernel has room for.
    """
    _refuse_layers("torso.deform_net", torso.deform_net, 3)
    _refuse_layers("torso.canonical_net", torso.canonical_net, 3)
    deform, canonical = torso.deform_net, torso.canonical_net
    _narrowest("torso.deform_net", max(w.shape[0] for w in deform[:-1]), (TORSO_DEFORM_WIDTH,))
    _narrowest("torso.canonical_net", max(w.shape[0] for w in canonical[:-1]), (TORSO_CANONICAL_WIDTH,))
    if torso.position_octaves > TORSO_OCTAVES:
        raise SceneError(
            f"torso.position_octaves: expected at most {TORSO_OCTAVES}, got {torso.position_octaves}; "
            "draw this speaker with the CPU raymarcher"
        )
    seen, features = 2 * (1 + 2 * torso.position_octaves), torso.grid.width
    wide, narrow = TORSO_DEFORM_WIDTH, TORSO_CANONICAL_WIDTH
    words = _net_words(
        "torso.deform_net",
        [
            _placed((wide, _FREQUENCIES), (deform[0][:, :seen], 0)),
            _placed((wide, wide), (deform[1], 0)),
            _placed((2, wide), (deform[2], 0)),
        ],
    )
    words += _net_words(
        "torso.canonical_net",
        [
            _placed(
                (narrow, _FREQUENCIES + _FEATURES),
                (canonical[0][:, features : features + seen], 0),
                (canonical[0][:, :features], _FREQUENCIES),
            ),
            _placed((narrow, narrow), (canonical[1], 0)),
            _placed((4, narrow), (canonical[2], 0)),
        ],
    )
    return np.concatenate(words)


# ---------------------------------------------------------------------------------------------- grids
def _level_cells(grid: PackedGrid, level: int, words: U32) -> U32:
    """Returns (rows, 4) words of a level: each row with those at x + 1, at y + 1 and at both.

    Args:
        grid: whose level it is.
        level: which.
        words: one word a row of the whole packed table.
    """
    first, rows = int(grid.start[level]) // 2, int(grid.rows[level])
    own = words[first : first + rows + 2]  # the first row stands behind the last
    row = np.arange(rows, dtype=np.uint32)
    # A level that does not wrap is never read beyond its end.
    above = np.minimum((row + grid.stride_y[level]) & grid.mask[level], np.uint32(rows))
    return np.stack([own[row], own[row + 1], own[above], own[above + 1]], axis=1)


def _grid_record(field: str, grid: PackedGrid) -> tuple[Record, U32]:
    """Returns a GRID record without its address, and all levels' cells (rows, 4).

    Raises:
        SceneError: more levels than the kernel has room for, or another kind of grid than GeneFace's.
    """
    levels = len(grid.scale)
    limits = [
        (levels <= MAX_LEVELS, f"at most {MAX_LEVELS} levels", f"{levels} levels"),
        (grid.features == 2, "two features a level", f"{grid.features}"),
        (not grid.hashed.any(), "levels that are tiled", "a hashed level"),
        (not grid.smoothstep, "linear interpolation", "smoothstep"),
        (bool((grid.mask != 0).all()), "wrapped levels of a power of two of rows", f"{grid.rows.tolist()}"),
    ]
    for holds, expected, got in limits:
        if not holds:
            raise SceneError(
                f"{field}: expected {expected}, got {got}; draw this speaker with the CPU raymarcher"
            )
    words = _halves(f"{field}.table", grid.table).view(np.uint32)
    parts = [_level_cells(grid, level, words) for level in range(levels)]
    record = np.zeros((), GRID)
    with_z = int((grid.stride_z > 0).sum())  # a level that leaves z out is finer than any that does not
    record["levels_with_z"], record["levels"] = with_z, levels
    level = record["level"][:levels]
    level["scale"], level["mask"] = grid.scale, grid.mask
    level["stride_y"], level["stride_z"] = grid.stride_y, grid.stride_z
    level["start"] = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    return record, np.concatenate(parts)


# ---------------------------------------------------------------------------------------------- scenes
@dataclass(frozen=True, kw_only=True)
class PackedScene:
    """A scene's arrays for upload, and the record that will hold their addresses."""

    width: int
    head: FoldedHead
    torso: FoldedTorso | None
    camera: Camera
    image_size_px: int
    record: Record  # SCENE with no addresses in it
    arrays: Mapping[str, npt.NDArray[np.generic]]

    @cached_property
    def torso_constant(self) -> F64:
        """Weights (O, I) of the pose's frequencies and the code, those of the deform net first."""
        assert self.torso is not None
        both = (self.torso.deform_constant, self.torso.canonical_constant)
        return np.concatenate(both).astype(np.float64)

    def with_addresses(self, addresses: Mapping[str, int]) -> Record:
        """Returns the SCENE record with the addresses of `arrays`."""
        record = self.record.copy()
        for name, address in addresses.items():
            if name.endswith("_cells"):
                record[name.removesuffix("_cells")]["cells"] = address
            else:
                record[name] = address
        return record


def pack_scene(scene: Scene) -> PackedScene:
    """Returns the scene packed for the CUDA kernel.

    Raises:
        SceneError: the arrays do not fit together, or the kernel is not built for such networks or grids.
    """
    check_scene(scene)
    field = scene.head
    width = head_width(field)
    head = fold_head(field)
    record = np.zeros((), SCENE)
    arrays: dict[str, npt.NDArray[np.generic]] = {"distance": head.distance.reshape(-1)}
    for name, grid in (("position", head.position_grid), ("ambient", head.ambient_grid)):
        record[name], arrays[f"{name}_cells"] = _grid_record(f"head.{name}_grid", grid)
    arrays["head_weights"] = head_words(field, width)
    record["aabb"], record["box"] = field.aabb, head.occupied_box
    record["bound"], record["step"] = field.bound, head.step
    record["min_near"], record["stop_transmittance"] = field.min_near, field.stop_transmittance
    record["max_steps"], record["side"] = field.max_steps, field.grid_size
    torso = None
    if scene.torso is not None:
        torso = fold_torso(scene.torso)
        record["torso"], arrays["torso_cells"] = _grid_record("torso.grid", torso.grid)
        arrays["torso_weights"] = torso_words(scene.torso)
        arrays["occupancy"] = torso.occupancy
        record["shrink"], record["occupancy_side"] = torso.shrink, torso.occupancy.shape[0]
    return PackedScene(
        width=width,
        head=head,
        torso=torso,
        camera=scene.camera,
        image_size_px=scene.image_size_px,
        record=record,
        arrays=arrays,
    )


def background_words(background: F32) -> U16:
    """Returns (size, size, 4) uint16: RGB of a (size, size, 3) picture in [0, 1], and padding."""
    size = background.shape[0]
    words = np.zeros((size, size, 4), np.uint16)
    words[..., :3] = np.rint(np.clip(background, 0, 1) * 65535)
    return words


# ---------------------------------------------------------------------------------------------- frames
@dataclass(frozen=True, kw_only=True)
class PlacedPlate:
    """A plate on the device, and the blocks that are drawn over it."""

    picture: int  # address
    blocks: int  # address of `block_words`
    block_count: int


def block_words(mask: BlockMask) -> U32:
    """Returns the mask's blocks (N,) as the kernel reads them: column, row, and at which corners they show.

    Blocks that show at no corner are left out: nothing of them would be seen.
    """
    row, column = mask.blocks.T.astype(np.uint32)
    words = column | (row << 12)
    corners = np.zeros_like(words)
    for number, (below, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        corners |= mask.corners[row + below, column + right].astype(np.uint32) << number
    return np.asarray((words | (corners << 24))[corners > 0], np.uint32)


def frame_template(
    scene: PackedScene,
    *,
    size_px: int,
    region_px: tuple[int, int, int, int],
    i420: bool,
    background: int,
    plate: PlacedPlate | None = None,
) -> Record:
    """Returns a FRAME record with the fields that depend only on scene, size and region; the rest is zero.

    Args:
        scene: whose frames they are.
        size_px: side of the whole picture.
        region_px: x0 y0 x1 y1, the part of it that is drawn.
        i420: planar YUV instead of RGB.
        background: address of `background_words` of that size.
        plate: what is shown where no block is drawn; None: all of the region is drawn.
    """
    record, camera = np.zeros((), FRAME), scene.camera
    scale = size_px / scene.image_size_px
    x0, y0, x1, y1 = region_px
    record["focal_px"] = camera.focal_px * scale
    record["cx_px"], record["cy_px"] = camera.cx_px * scale, camera.cy_px * scale
    record["pixel_px"], record["image_size_px"] = 1 / scale, scene.image_size_px
    record["size_px"] = size_px
    record["x0"], record["y0"], record["width"], record["height"] = x0, y0, x1 - x0, y1 - y0
    record["i420"], record["background"] = i420, background
    if plate is None:
        record["blocks_across"] = block_count(x1 - x0)
        record["block_count"] = block_count(x1 - x0) * block_count(y1 - y0)
    else:
        record["block_count"] = plate.block_count
        record["blocks"], record["plate"] = plate.blocks, plate.picture
    record["chunks"] = max(1, -(-int(record["block_count"]) // BLOCKS_A_CHUNK))
    return record


def fill_frames(records: Record, scene: PackedScene, *, c2w: F64, conditions: F32) -> None:
    """Writes each frame's pose and the biases folded from its inputs.

    A frame's record is the same bit for bit however many are filled at once: each has its own products.

    Args:
        records: (N,) of FRAME.
        scene: whose frames they are.
        c2w: (N, 4, 4) camera to head space.
        conditions: (N, C).
    """
    pose = np.empty((len(c2w), 3, 4))
    pose[:] = c2w[:, (1, 2, 0)]  # the turn into the field's space; see folding.field_pose
    pose[:, :, 1:3] *= -1
    pose[:, :, 3] *= scene.camera.scale
    pose[:, :, 3] += scene.camera.offset
    records["pose"] = pose.reshape(-1, 12)
    weights = scene.head.condition_weights
    records["ambient_bias"][:, : weights.shape[0]] = np.matmul(weights, conditions[:, :, None])[..., 0]
    if scene.torso is None:
        return
    biases = np.matmul(scene.torso_constant, _torso_inputs(scene.torso, pose)[:, :, None])[..., 0]
    rows = len(scene.torso.deform_constant)
    records["deform_bias"][:, :rows] = biases[:, :rows]
    records["canonical_bias"][:, : biases.shape[1] - rows] = biases[:, rows:]


def _torso_inputs(torso: FoldedTorso, pose: F64) -> F64:
    """Returns (N, 6 (1 + 2 octaves) + I): the poses' angles, translations and frequencies, and the code."""
    octaves = torso.pose_octaves
    values = np.empty((len(pose), 6))
    values[:, 0] = np.arctan2(-pose[:, 1, 2], pose[:, 2, 2])  # as folding.pose_vector
    values[:, 1] = np.arcsin(np.clip(pose[:, 0, 2], -1, 1))
    values[:, 2] = np.arctan2(-pose[:, 0, 1], pose[:, 0, 0])
    values[:, 3:] = pose[:, :, 3]
    inputs = np.empty((len(pose), 6 + 12 * octaves + len(torso.individual_code)))
    inputs[:, :6] = values
    waves = inputs[:, 6 : 6 + 12 * octaves].reshape(len(pose), octaves, 2, 6)  # a view
    turns = values[:, None, :] * 2.0 ** np.arange(octaves)[:, None]  # (N, octaves, 6)
    waves[:, :, 0], waves[:, :, 1] = np.sin(turns), np.cos(turns)
    inputs[:, 6 + 12 * octaves :] = torso.individual_code
    return inputs


def as_bytes(array: npt.NDArray[np.generic] | Record) -> U8:
    """Returns the array's bytes, flat."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
