"""A trained head and torso as a bundle's scene, and the PSNR of rendering it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuda_kernels.arrays import F32, U8
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.errors import InputError
from cuda_kernels.scene import Camera, Grid, Scene
from cuda_kernels.torch_reference import render_scene
from models.head import Head
from models.torso import Torso

MIN_PSNR_DB = 45.0


class SceneExportError(InputError):
    """A head and a torso that do not fit together, or a scene that is rendered below the PSNR limit."""


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """PSNR over all pixels against the torch twin with the weights as trained."""

    float16_psnr_db: float  # the twin, from the scene as the bundle holds it
    raymarcher_psnr_db: float  # the CPU raymarcher, from the scene as the bundle holds it


def scene_of(head: Head, torso: Torso | None, camera: Camera, background: U8) -> Scene:
    """Returns the scene of trained networks before `background` (S, S, 3)."""
    side = background.shape[0]
    return Scene(
        head=head.field(),
        torso=None if torso is None else torso.field(),
        camera=camera,
        background=background,
        image_size_px=side,
    )


def require_same_camera(head: Camera, torso: Camera) -> None:
    """Raises SceneExportError where the torso was trained on poses in another field space than the head's."""
    for entry in dataclasses.fields(Camera):
        one, other = getattr(head, entry.name), getattr(torso, entry.name)
        if not np.allclose(one, other, rtol=1e-5, atol=1e-6):
            raise SceneExportError(
                f"torso: camera.{entry.name}: expected the head's {one}, got {other}; "
                "train both on the same --data"
            )


def stored(scene: Scene) -> Scene:
    """Returns the scene as it comes back from a bundle: grids rounded to float16."""

    def rounded(grid: Grid) -> Grid:
        return dataclasses.replace(grid, table=grid.table.astype(np.float16).astype(np.float32))

    head = dataclasses.replace(
        scene.head,
        position_grid=rounded(scene.head.position_grid),
        ambient_grid=rounded(scene.head.ambient_grid),
    )
    torso = None if scene.torso is None else dataclasses.replace(scene.torso, grid=rounded(scene.torso.grid))
    return dataclasses.replace(scene, head=head, torso=torso)


def measure_faithfulness(
    trained: Scene, kept: Scene, *, poses: F32, conditions: Sequence[F32], size_px: int = 256
) -> Faithfulness:
    """Returns the PSNR of the stored scene's pictures against the trained one's, over (F, 4, 4) poses."""
    raymarcher = CpuRaymarcher(kept)
    rounding, drawing = [], []
    try:
        for c2w, condition in zip(poses, conditions, strict=True):
            truth = render_scene(trained, c2w=c2w, condition=condition, size_px=size_px).numpy()
            again = render_scene(kept, c2w=c2w, condition=condition, size_px=size_px).numpy()
            drawn = raymarcher.render(c2w=c2w, condition=condition, size_px=size_px)
            rounding.append(np.mean((again - truth) ** 2))
            drawing.append(np.mean((drawn / np.float32(255) - truth) ** 2))
    finally:
        raymarcher.close()
    return Faithfulness(float16_psnr_db=psnr_db(rounding), raymarcher_psnr_db=psnr_db(drawing))


def psnr_db(squares: list[np.floating]) -> float:
    """Returns the PSNR of pictures in [0, 1] with these mean squared errors, at most 120."""
    mean = float(np.mean(squares))
    return min(120.0, -10 * float(np.log10(max(mean, 1e-12))))


def require_faithful(found: Faithfulness) -> None:
    """Raises SceneExportError below `MIN_PSNR_DB`."""
    for entry in dataclasses.fields(found):
        value = getattr(found, entry.name)
        if not value >= MIN_PSNR_DB:
            raise SceneExportError(
                f"head and torso: {entry.name}: expected at least {MIN_PSNR_DB:g} dB against torch, got "
                f"{value:.1f}; the weights may be too large for float16"
            )
