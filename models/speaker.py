"""A speaker bundle on disk: found, checked and read without torch and without pickle.

A bundle is a folder. `speaker.json` names every other file with its size and SHA-256 and holds the sizes
and settings; arrays are safetensors, networks are ONNX, the background is a PNG. Whatever is invalid is
refused with one line: file, field, expected, got and the way out. The ONNX files are
checked by hash here; the engine that runs them checks their inputs and outputs when it starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32
from cuda_kernels.scene import Camera, Grid, GridLayout, HeadField, Scene, TorsoField

from .bundle_files import (
    PLATE_MASKS_FILE,
    PLATE_VIDEO_FILE,
    BundleError,
    Tensors,
    read_background,
    read_files,
)
from .plates import PlateFiles
from .settings import one_line
from .speaker_settings import (
    LANDMARKS,
    CameraSettings,
    ConditionSettings,
    GridSettings,
    HeadSettings,
    MotionSettings,
    OriginRecord,
    SpeakerSettings,
    TorsoSettings,
    read_settings,
    scene_hash,
)
from .time_base import FRAME_RATE_HZ, SAMPLE_RATE_HZ

MAX_CAMERA_DISTANCE = 1e4


@dataclass(frozen=True, kw_only=True, eq=False)
class Speaker:
    """One speaker, read and checked."""

    name: str
    path: Path
    synthetic: bool
    licence: str
    origin: OriginRecord
    image_size_px: int
    fps: int = FRAME_RATE_HZ
    sample_rate_hz: int = SAMPLE_RATE_HZ
    motion: MotionSettings
    condition: ConditionSettings
    motion_onnx: Path
    condition_onnx: Path
    features_onnx: Path | None = None  # where motion.kind is "features"
    syncnet_onnx: Path | None = None
    poses: F32  # (P, 4, 4) camera to head space; frame i shows pose i mod P
    blinks: F32  # (F, 68, 3) what one blink adds to the landmarks, first and last frame 0
    plates: PlateFiles | None = None
    verification: Mapping[str, float]
    figures: Mapping[str, float]
    settings: SpeakerSettings
    scene: Scene  # what the raymarcher draws

    @property
    def lookahead_frames(self) -> int:
        """Frames of sound after a frame that its picture depends on."""
        return self.motion.lookahead_frames + self.condition.lookahead_frames


def load_speaker(path: Path) -> Speaker:
    """Returns the speaker in the bundle folder `path`, everything checked.

    Raises:
        BundleError: the first thing that does not hold, in one line.
    """
    path = Path(path)
    settings = read_settings(path)
    contents = read_files(path, settings.files)
    head = _read_head(path / "head.safetensors", contents["head.safetensors"], settings.head)
    torso = None
    if settings.torso is not None:
        torso = _read_torso(path / "torso.safetensors", contents["torso.safetensors"], settings.torso)
    poses, blinks = _read_poses(path / "poses.safetensors", contents["poses.safetensors"])
    background = read_background(path / "background.png", contents["background.png"], settings.image_size_px)
    camera = Camera(**{e.name: getattr(settings.camera, e.name) for e in dataclasses.fields(CameraSettings)})
    plates = None
    if not {PLATE_VIDEO_FILE, PLATE_MASKS_FILE}.isdisjoint(settings.files):
        plates = PlateFiles(
            path=path,
            records=settings.files,
            made_of=None if settings.plates is None else settings.plates.of,
            scene=scene_hash(settings),
            size_px=settings.image_size_px,
            poses=len(poses),
        )
    return Speaker(
        name=settings.name,
        path=path,
        synthetic=settings.synthetic,
        licence=settings.licence,
        origin=settings.origin,
        image_size_px=settings.image_size_px,
        fps=settings.fps,
        sample_rate_hz=settings.sample_rate_hz,
        motion=settings.motion,
        condition=settings.condition,
        motion_onnx=path / "motion.onnx",
        condition_onnx=path / "condition.onnx",
        features_onnx=path / "features.onnx" if "features.onnx" in settings.files else None,
        syncnet_onnx=path / "syncnet.onnx" if "syncnet.onnx" in settings.files else None,
        poses=poses,
        blinks=blinks,
        plates=plates,
        verification=settings.verification,
        figures=settings.figures,
        settings=settings,
        scene=Scene(
            head=head,
            torso=torso,
            camera=camera,
            background=background,
            image_size_px=settings.image_size_px,
        ),
    )


def _read_grid(tensors: Tensors, prefix: str, settings: GridSettings, dimensions: int) -> Grid:
    table = tensors.take(f"{prefix}.embeddings", (settings.rows, settings.features), "F16", "F32")
    offsets = tensors.take(f"{prefix}.offsets", (settings.levels + 1,), "I32")
    if offsets[0] != 0 or offsets[-1] != settings.rows or (np.diff(offsets.astype(np.int64)) <= 0).any():
        expected = f"rising from 0 to {settings.rows}"
        raise BundleError(tensors.file, f"{prefix}.offsets", expected, one_line(str(offsets.tolist())))
    layout = GridLayout(
        dimensions=dimensions,
        offsets=tuple(offsets.tolist()),
        base_resolution=settings.base_resolution,
        log2_growth=settings.log2_growth,
        hashed=settings.hashed,
        smoothstep=settings.smoothstep,
    )
    return Grid(table=table, layout=layout)


def _read_net(tensors: Tensors, prefix: str, widths: tuple[int, ...]) -> tuple[F32, ...]:
    return tuple(
        tensors.take(f"{prefix}.net.{i}.weight", (widths[i + 1], widths[i]), "F16", "F32")
        for i in range(len(widths) - 1)
    )


def _read_head(file: Path, content: bytes, settings: HeadSettings) -> HeadField:
    tensors = Tensors(file, content)
    head = HeadField(
        position_grid=_read_grid(tensors, "position_embedder", settings.position_grid, 3),
        ambient_grid=_read_grid(tensors, "ambient_embedder", settings.ambient_grid, 2),
        ambient_net=_read_net(tensors, "ambient_net", settings.ambient_net),
        sigma_net=_read_net(tensors, "sigma_net", settings.sigma_net),
        color_net=_read_net(tensors, "color_net", settings.color_net),
        individual_code=tensors.take("individual_code", (settings.individual_code,), "F32"),
        density_bitfield=tensors.take("density_bitfield", (settings.grid_size**3 // 8,), "U8"),
        grid_size=settings.grid_size,
        bound=settings.bound,
        aabb=tensors.take("aabb", (6,), "F32"),
        max_steps=settings.max_steps,
        min_near=settings.min_near,
        stop_transmittance=settings.stop_transmittance,
    )
    tensors.finish()
    low, high = head.aabb[:3], head.aabb[3:]
    if not (low < high).all() or np.abs(head.aabb).max() > settings.bound:
        expected = f"a box within +-{settings.bound:g}"
        raise BundleError(str(file), "aabb", expected, one_line(str(head.aabb.tolist()), 100))
    if not head.density_bitfield.any():
        raise BundleError(str(file), "density_bitfield", "at least one occupied cell", "an empty grid")
    return head


def _read_torso(file: Path, content: bytes, settings: TorsoSettings) -> TorsoField:
    tensors = Tensors(file, content)
    side = settings.occupancy_side
    torso = TorsoField(
        grid=_read_grid(tensors, "torso_embedder", settings.grid, 2),
        deform_net=_read_net(tensors, "torso_deform_net", settings.deform_net),
        canonical_net=_read_net(tensors, "torso_canonicial_net", settings.canonical_net),
        individual_code=tensors.take("individual_code", (settings.individual_code,), "F32"),
        occupancy=tensors.take("occupancy", (side, side), "F16", "F32"),
        position_octaves=settings.position_octaves,
        pose_octaves=settings.pose_octaves,
        shrink=settings.shrink,
    )
    tensors.finish()
    return torso


def _read_poses(file: Path, content: bytes) -> tuple[F32, F32]:
    tensors = Tensors(file, content)
    poses = tensors.take("c2w", (None, 4, 4), "F32")
    blinks = tensors.take("blink", (None, LANDMARKS, 3), "F32")
    tensors.finish()
    for key, array in (("c2w", poses), ("blink", blinks)):
        if not len(array):
            raise BundleError(str(file), key, "at least one frame", "none")
    rotations = poses[:, :3, :3].astype(np.float64)
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    error = np.maximum(error, np.abs(np.linalg.det(rotations) - 1))
    error = np.maximum(error, np.abs(poses[:, 3] - np.array([0, 0, 0, 1])).max(axis=1))
    worst = int(error.argmax())
    if not error[worst] <= 1e-3:
        expected = "rotations (orthonormal within 1e-3, last row 0 0 0 1)"
        raise BundleError(str(file), f"c2w[{worst}]", expected, f"an error of {error[worst]:.3g}")
    far = float(np.abs(poses[:, :3, 3]).max())
    if not far <= MAX_CAMERA_DISTANCE:
        raise BundleError(
            str(file), "c2w", f"a camera within {MAX_CAMERA_DISTANCE:g} of the head", f"one at {far:.3g}"
        )
    if np.abs(blinks[[0, -1]]).max() > 1e-6:
        got = f"{np.abs(blinks[[0, -1]]).max():.3g}"
        raise BundleError(str(file), "blink", "0 in the first and last frame", got)
    return poses, blinks
