"""A tiny, complete, valid speaker bundle with random weights: `import bundle_factory` in any test.

The head is an ellipsoid, the torso a trapezium, the background a gradient. `motion.onnx` opens the mouth with
the loudness of the frame's own 640 samples; the nets are so small that a picture costs next to nothing.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cuda_kernels.scene import Camera, Grid, GridLayout, HeadField, Scene, TorsoField
from export.bundle.writer import BundleParts, write_bundle
from models.speaker_settings import ConditionSettings, MotionSettings, OriginRecord

CONDITION_SIZE = 8
CAMERA_DISTANCE_DM = 13.0
FIELD_SCALE = 0.385  # decimetres to the field's unit: a head 2.6 dm high fills half the cube
FULL_OPEN_RMS = 0.1  # a frame this loud opens the mouth by 10 mm


def write_tiny_bundle(path: Path, **changes) -> Path:
    """Returns the bundle folder `path`, written from `tiny_parts(**changes)`."""
    write_bundle(path, tiny_parts(**changes))
    return path


def tiny_parts(
    *,
    name: str = "Tiny",
    seed: int = 0,
    image_size_px: int = 512,
    window_frames: int = 8,
    lookahead_frames: int = 4,
    condition_window_frames: int = 1,
    condition_lookahead_frames: int = 0,
    torso: bool = True,
) -> BundleParts:
    """Returns the parts of the tiny bundle; the same seed gives the same bytes."""
    random = np.random.default_rng(seed)
    motion = MotionSettings(
        window_samples=640 * window_frames + 192,
        window_frames=window_frames,
        lookahead_frames=lookahead_frames,
        landmark_mean=np.zeros((68, 3), np.float32),
        landmark_std=np.full((68, 3), 0.5, np.float32),
        mean_face=schematic_face(),
    )
    condition = ConditionSettings(
        window_frames=condition_window_frames,
        lookahead_frames=condition_lookahead_frames,
        size=CONDITION_SIZE,
    )
    return BundleParts(
        name=name,
        synthetic=True,
        licence="Apache-2.0",
        origin=OriginRecord(
            subject="an ellipsoid", consent="none needed: nobody is shown", data="none", recipe="random"
        ),
        motion=motion,
        condition=condition,
        scene=tiny_scene(random, image_size_px=image_size_px, torso=torso),
        motion_onnx=loudness_motion_onnx(motion),
        condition_onnx=random_condition_onnx(condition, random),
        poses=swaying_poses(50),
        blinks=short_blink(),
        model_card="# Tiny\n\nRandom weights for tests.\n",
    )


def schematic_face() -> np.ndarray:
    """Returns (68, 3) points of a plain face in head space, decimetres, mouth closed."""
    face = np.zeros((68, 3), np.float32)

    def ellipse(points, centre, radii, start_deg, end_deg, closed):
        angle = np.radians(np.linspace(start_deg, end_deg, len(points), endpoint=not closed))
        face[points, 0] = centre[0] + radii[0] * np.cos(angle)
        face[points, 1] = centre[1] + radii[1] * np.sin(angle)
        face[points, 2] = 0.8

    ellipse(range(17), (0, 0.1), (0.75, 0.9), 180, 360, closed=False)
    for points, x in ((range(17, 22), -0.35), (range(22, 27), 0.35)):
        ellipse(points, (x, 0.5), (0.2, 0.08), 180, 0, closed=False)
    face[27:31, 1] = np.linspace(0.35, 0.0, 4)
    face[27:31, 2] = np.linspace(0.9, 1.1, 4)
    ellipse(range(31, 36), (0, -0.08), (0.14, 0.03), 180, 360, closed=False)
    for points, x in ((range(36, 42), -0.33), (range(42, 48), 0.33)):
        ellipse(points, (x, 0.3), (0.14, 0.05), 180, -180, closed=True)
    ellipse(range(48, 60), (0, -0.4), (0.25, 0.09), 180, -180, closed=True)
    ellipse(range(60, 68), (0, -0.4), (0.2, 0.01), 180, -180, closed=True)
    return face


def tiny_scene(random: np.random.Generator, *, image_size_px: int = 512, torso: bool = True) -> Scene:
    """Returns an ellipsoid before a gradient, on a trapezium."""
    ramp = np.linspace(0, 1, image_size_px, dtype=np.float32)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    background = np.stack([60 + 80 * rows, 90 + 60 * columns, 150 - 50 * rows], axis=-1)
    focal_px = 2004.8 * image_size_px / 512
    return Scene(
        head=_head(random),
        torso=_torso(random) if torso else None,
        camera=Camera(focal_px=focal_px, cx_px=image_size_px / 2, cy_px=image_size_px / 2, scale=FIELD_SCALE),
        background=np.round(background).astype(np.uint8),
        image_size_px=image_size_px,
    )


def _grid(random, dimensions: int, levels: int = 4, log2_rows: int = 10, growth: float = 0.5) -> Grid:
    base = 16
    sides = [int(np.ceil(base * 2 ** (level * growth))) + 1 for level in range(levels)]
    rows = [-(-min(2**log2_rows, side**dimensions) // 8) * 8 for side in sides]
    offsets = (0, *itertools.accumulate(rows))
    table = random.uniform(-0.5, 0.5, (offsets[-1], 2)).astype(np.float16).astype(np.float32)
    table[: rows[0], 0] = 1.0  # the nets have no bias: this feature is their constant
    layout = GridLayout(dimensions=dimensions, offsets=offsets, log2_growth=growth, base_resolution=base)
    return Grid(table=table, layout=layout)


def _net(random, *widths: int) -> list[np.ndarray]:
    return [
        random.normal(0, (2 / inputs) ** 0.5, (outputs, inputs)).astype(np.float32)
        for inputs, outputs in itertools.pairwise(widths)
    ]


def _constant_logit(net: list[np.ndarray], logit: float, row: int) -> None:
    """Carries the constant feature through the net's first hidden unit into output `row`."""
    for weight in net[:-1]:
        weight[0] = 0.0
        weight[0, 0] = 1.0
    net[-1][row] *= 0.1
    net[-1][row, 0] = logit


def _head(random) -> HeadField:
    position, ambient = _grid(random, 3), _grid(random, 2)
    sigma = _net(random, 16, 16, 8)
    _constant_logit(sigma, 6.0, 0)  # density exp(6): opaque within a step
    return HeadField(
        position_grid=position,
        ambient_grid=ambient,
        ambient_net=tuple(_net(random, 8 + CONDITION_SIZE, 16, 2)),
        sigma_net=tuple(sigma),
        color_net=tuple(_net(random, 16 + 7 + 4, 16, 3)),
        individual_code=random.normal(0, 0.1, 4).astype(np.float32),
        density_bitfield=ellipsoid_bitfield(128, (0.5, 0.4, 0.38)),
        grid_size=128,
        aabb=np.array([-1, -0.5, -1, 1, 0.5, 1], np.float32),
    )


def ellipsoid_bitfield(grid_size: int, radii: tuple[float, float, float]) -> np.ndarray:
    """Returns the packed occupancy (grid_size**3 / 8,) uint8, Morton order, of an ellipsoid in [-1, 1]^3."""
    cell = (np.arange(grid_size) + 0.5) / grid_size * 2 - 1
    squares = [(cell / radius) ** 2 for radius in radii]
    inside = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] <= 1
    number = np.arange(grid_size)
    spread = np.zeros(grid_size, np.int64)
    for bit in range(grid_size.bit_length() - 1):
        spread |= (number >> bit & 1) << 3 * bit
    morton = spread[:, None, None] | spread[None, :, None] << 1 | spread[None, None, :] << 2
    occupied = np.zeros(grid_size**3, bool)
    occupied[morton] = inside
    return np.packbits(occupied, bitorder="little")


def _torso(random) -> TorsoField:
    grid = _grid(random, 2)
    inputs = 42 + 54 + 8
    deform = _net(random, inputs, 16, 2)
    deform[-1] *= 0.01
    canonical = _net(random, 8 + inputs, 16, 4)
    _constant_logit(canonical, 6.0, 0)
    side = 32
    row = np.linspace(-1, 1, side)
    occupancy = (row[:, None] > 0.5) & (np.abs(row[None, :]) < 0.2 + 0.5 * (row[:, None] + 1) / 2)
    return TorsoField(
        grid=grid,
        deform_net=tuple(deform),
        canonical_net=tuple(canonical),
        individual_code=random.normal(0, 0.1, 8).astype(np.float32),
        occupancy=occupancy.astype(np.float32),
    )


def swaying_poses(count: int) -> np.ndarray:
    """Returns (count, 4, 4) c2w of a head that turns gently, one loop without a seam."""
    phase = 2 * np.pi * np.arange(count) / count
    poses = np.tile(np.eye(4, dtype=np.float64), (count, 1, 1))
    for i, (yaw, pitch) in enumerate(zip(0.08 * np.sin(phase), 0.03 * np.cos(phase), strict=True)):
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        poses[i, :3, :3] = turn @ nod
        poses[i, :3, 3] = poses[i, :3, :3] @ (0, 0, CAMERA_DISTANCE_DM)
    return poses.astype(np.float32)


def short_blink() -> np.ndarray:
    """Returns (7, 68, 3): the upper lids come down 0.8 mm x 10 and go up again."""
    blink = np.zeros((7, 68, 3), np.float32)
    blink[:, [37, 38, 43, 44], 1] = -0.08 * 10 * np.hanning(7)[:, None]
    return blink


def open_mouth() -> np.ndarray:
    """Returns (68, 3) idexp of a mouth 10 mm open: 1.0 down at the lower inner lip and the chin."""
    offset = np.zeros((68, 3), np.float32)
    offset[[65, 66, 67], 1] = -1.0
    offset[[55, 56, 57, 58, 59], 1] = -0.9
    offset[5:12, 1] = -0.8
    return offset


def loudness_motion_onnx(motion: MotionSettings) -> bytes:
    """Returns motion.onnx: open_mouth * min(1, rms of the frame's own samples / FULL_OPEN_RMS)."""
    end = motion.window_samples - 640 * motion.lookahead_frames
    constants = {
        "start": np.array([end - 640], np.int64),
        "end": np.array([end], np.int64),
        "axis": np.array([1], np.int64),
        "gain": np.float32(1 / FULL_OPEN_RMS).reshape(1, 1),
        "zero": np.float32(0),
        "one": np.float32(1),
        "open": open_mouth().reshape(1, 204),
    }
    nodes = [
        helper.make_node("Slice", ["pcm", "start", "end", "axis"], ["own"]),
        helper.make_node("Mul", ["own", "own"], ["power"]),
        helper.make_node("ReduceMean", ["power"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["rms"]),
        helper.make_node("Mul", ["rms", "gain"], ["loudness"]),
        helper.make_node("Clip", ["loudness", "zero", "one"], ["opening"]),
        helper.make_node("MatMul", ["opening", "open"], ["landmarks"]),
    ]
    return _model(nodes, constants, ("pcm", (1, motion.window_samples)), ("landmarks", (1, 204)))


def random_condition_onnx(condition: ConditionSettings, random: np.random.Generator) -> bytes:
    """Returns condition.onnx: tanh of a random linear map of the whole window."""
    width = condition.window_frames * 204
    constants = {
        "flat": np.array([1, width], np.int64),
        "vector": np.array([condition.size], np.int64),
        "weight": random.normal(0, 0.05, (width, condition.size)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["window", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["bounded"]),
        helper.make_node("Reshape", ["bounded", "vector"], ["condition"]),
    ]
    inputs, outputs = (condition.window_frames, 204), (condition.size,)
    return _model(nodes, constants, ("window", inputs), ("condition", outputs))


def _model(nodes, constants, source, target) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
