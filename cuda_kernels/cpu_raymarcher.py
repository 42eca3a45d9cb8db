"""CPU raymarcher: head, torso and background of one speaker in one call, any size, as RGB or I420."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from . import cpu_kernels
from .arrays import F32, I32, U8
from .compilation import compiled
from .compositing import rgb_to_i420
from .core_time import add_helpers_time
from .cpu_kernels import (
    CHUNK,
    RAYS,
    TILE,
    FrameArrays,
    HeadArrays,
    PackedNet,
    Scratch,
    TorsoArrays,
)
from .folding import (
    EMPTY_NET,
    SH_TERMS,
    check_scene,
    field_pose,
    fold_head,
    fold_torso,
    resize_by_area,
    round_up,
)
from .masks import BLOCK_PX, BlockMask
from .scene import MAX_SIZE_PX, MIN_SIZE_PX, Scene

_BACKGROUNDS_KEPT = 4
MAX_POSE = 1e6


class RenderInputError(ValueError):
    """An invalid argument of a render call: field, expected, got."""


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of cpu_kernels, compiled."""
    return compiled(function, fast_maths=frozenset(cpu_kernels.FAST_MATHS))


def _output(shape: tuple[int, ...], out: U8 | None) -> U8:
    """Returns `out`, or a new array if None; RenderInputError if `out` does not fit."""
    if out is None:
        return np.empty(shape, np.uint8)
    fits = out.shape == shape and out.dtype == np.uint8
    if not (fits and out.flags.c_contiguous and out.flags.writeable):
        raise RenderInputError(
            f"out: expected a writeable C-contiguous uint8 array of shape {shape}, "
            f"got {out.dtype} of shape {out.shape}"
        )
    return out


@functools.lru_cache(64)
def _tiles(width_px: int, height_px: int) -> I32:
    """Returns row and column (N, 2) of each tile of a picture."""
    rows, columns = (-(-side // TILE) for side in (height_px, width_px))
    return np.indices((rows, columns), np.int32).reshape(2, -1).T.copy()


def _checked_mask(mask: BlockMask, size_px: int, region_px: tuple[int, int, int, int] | None) -> I32:
    if mask.size_px != size_px:
        raise RenderInputError(f"mask: expected one of {size_px} px, got {mask.size_px}")
    if region_px is not None:
        raise RenderInputError(f"region_px: expected none beside a mask, got {region_px}")
    return mask.blocks


def _widest(*nets: PackedNet) -> int:
    """Returns the most rows that any layer of the nets reads or writes."""
    rows = 0
    for net in nets:
        if len(net.inputs):
            rows = max(rows, int(net.inputs.max()), int(net.blocks.max()) * cpu_kernels.BLOCK)
    return rows


class CpuRaymarcher:
    """Renders one scene; thread-safe, calls are serialised.

    A thread pool and the caller share the blocks through one compiled function that releases the GIL.
    Numba's own `parallel` is not used: of its threading layers `workqueue` aborts the process when two
    threads enter it, `omp` breaks in forked children, and `tbb` is a further package.
    """

    def __init__(self, scene: Scene, *, threads: int = 2) -> None:
        """Folds and packs the scene's networks.

        Args:
            scene: what to draw; checked here.
            threads: that render, the caller included; 1 to 64.

        Raises:
            SceneError: the scene's arrays do not fit together.
            RenderInputError: threads out of range.
        """
        if not 1 <= threads <= 64:
            raise RenderInputError(f"threads: expected 1 to 64, got {threads}")
        check_scene(scene)
        self.scene = scene
        self.threads = threads
        self.samples = 0
        """Head samples of the last call."""
        self._head = fold_head(scene.head)
        self._torso = fold_torso(scene.torso) if scene.torso is not None else None
        self._head_arrays = self._make_head_arrays()
        self._torso_arrays = self._make_torso_arrays()
        self._scratches = [self._make_scratch() for _ in range(threads)]
        self._backgrounds: dict[int, F32] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(threads - 1, "raymarch") if threads > 1 else None

    @property
    def condition_size(self) -> int:
        """Length of the condition vector."""
        return self._head.condition_size

    def _make_head_arrays(self) -> HeadArrays:
        head, field = self._head, self.scene.head
        return HeadArrays(
            position_grid=head.position_grid,
            ambient_grid=head.ambient_grid,
            ambient_net=head.ambient_net,
            sigma_net=head.sigma_net,
            density_net=head.density_net,
            color_net=head.color_net,
            hidden_rows=head.hidden_rows,
            distance=head.distance.reshape(-1),
            side=field.grid_size,
            bound=np.float32(field.bound),
            step=np.float32(head.step),
            aabb=field.aabb.copy(),
            box=head.occupied_box.astype(np.float32),
            min_near=np.float32(field.min_near),
            max_steps=field.max_steps,
            stop_transmittance=np.float32(field.stop_transmittance),
        )

    def _make_torso_arrays(self) -> TorsoArrays:
        torso = self._torso
        if torso is None:
            return TorsoArrays(
                present=False,
                grid=self._head.ambient_grid,
                deform_net=EMPTY_NET,
                canonical_net=EMPTY_NET,
                occupancy=np.zeros((2, 2), np.float32),
                octaves=1,
                shrink=np.float32(1),
            )
        return TorsoArrays(
            present=True,
            grid=torso.grid,
            deform_net=torso.deform_net,
            canonical_net=torso.canonical_net,
            occupancy=torso.occupancy,
            octaves=torso.position_octaves,
            shrink=np.float32(torso.shrink),
        )

    def _make_scratch(self) -> Scratch:
        head, torso = self._head, self._torso
        features = head.position_grid.width + head.ambient_grid.width
        widest = _widest(head.ambient_net, head.sigma_net, head.density_net, head.color_net) + SH_TERMS
        rows = features + 2 * widest
        if torso is not None:
            fixed = torso.grid.width + 2 * (1 + 2 * torso.position_octaves)
            rows = max(rows, fixed + 2 * _widest(torso.deform_net, torso.canonical_net))
        rows = round_up(rows, 2)
        return Scratch(
            rays=np.zeros((cpu_kernels.RAY_ROWS, RAYS), np.float32),
            steps=np.zeros((cpu_kernels.STEP_ROWS, RAYS), np.int32),
            points=np.full(3 * (RAYS + CHUNK), 0.5, np.float32),
            buffers=np.zeros(rows * CHUNK, np.float32),
            corners=np.zeros(8 * CHUNK, np.uint32),
            weights=np.zeros(8 * CHUNK, np.float32),
            where=np.full(2 * CHUNK, 0.5, np.float32),
        )

    def _background(self, size_px: int) -> F32:
        found = self._backgrounds.get(size_px)
        if found is None:
            while len(self._backgrounds) >= _BACKGROUNDS_KEPT:
                self._backgrounds.pop(next(iter(self._backgrounds)))
            found = self._backgrounds[size_px] = resize_by_area(self.scene.background, size_px)
        return found

    def render(
        self,
        *,
        c2w: npt.NDArray[np.floating],
        condition: F32,
        size_px: int,
        region_px: tuple[int, int, int, int] | None = None,
        mask: BlockMask | None = None,
        out: U8 | None = None,
    ) -> U8:
        """Returns the picture (size, size, 3) uint8 RGB, a region of it, or the blocks of a mask.

        Args:
            c2w: (4, 4) camera to head space, OpenGL axes.
            condition: (C,).
            size_px: side of the square picture, 8 to 2048.
            region_px: (x0, y0, x1, y1) in pixels of that picture; the result is then (y1 - y0, x1 - x0, 3)
                and equals the crop of the whole picture bit for bit.
            mask: of that size; its blocks equal those of the whole picture bit for bit, the rest is what
                `out` held, black in a new array. Without a region.
            out: C-contiguous array of the result's shape to write into.

        Raises:
            RenderInputError: an argument of the wrong shape, range or with NaN in it.
        """
        pose, vector = self._checked(c2w, condition)
        x0, y0, x1, y1 = self._checked_region(size_px, region_px)
        shape = (y1 - y0, x1 - x0, 3)
        if mask is None:
            blocks, edge = _tiles(x1 - x0, y1 - y0), TILE
        else:
            blocks, edge = _checked_mask(mask, size_px, region_px), BLOCK_PX
            out = np.zeros(shape, np.uint8) if out is None else out
        out = _output(shape, out)
        with self._lock:
            if self._closed:
                raise RuntimeError("the raymarcher is closed")
            frame = self._frame(pose, vector, size_px, x0, y0)
            counter = np.zeros(1, np.int64)
            draw = _kernel(cpu_kernels.draw_blocks)
            head, torso = self._head_arrays, self._torso_arrays

            def draw_share(scratch: Scratch) -> tuple[int, float]:
                start_s = time.thread_time()
                taken: int = draw(head, torso, frame, scratch, counter, blocks, edge, out)
                return taken, time.thread_time() - start_s

            others = [
                self._pool.submit(draw_share, scratch)
                for scratch in self._scratches[1:]
                if self._pool is not None
            ]
            taken = draw(head, torso, frame, self._scratches[0], counter, blocks, edge, out)
            helped = [other.result() for other in others]
            self.samples = taken + sum(samples for samples, _ in helped)
        add_helpers_time(sum(spent_s for _, spent_s in helped))
        return out

    def render_i420(
        self,
        *,
        c2w: npt.NDArray[np.floating],
        condition: F32,
        size_px: int,
        out: U8 | None = None,
    ) -> U8:
        """Returns the picture as planar I420 (size * 3 / 2, size) uint8, BT.601 limited range; even sizes.

        Raises:
            RenderInputError: as for `render`, or an odd size.
        """
        if size_px % 2:
            raise RenderInputError(f"size_px: expected an even number for I420, got {size_px}")
        self._checked_region(size_px, None)
        out = _output((size_px * 3 // 2, size_px), out)
        return rgb_to_i420(self.render(c2w=c2w, condition=condition, size_px=size_px), out)

    def warm_up(self) -> float:
        """Returns the seconds taken to compile the kernels, or read them from the cache, and render once."""
        started = time.perf_counter()
        condition = np.zeros(self.condition_size, np.float32)
        self.render(c2w=np.eye(4, dtype=np.float32), condition=condition, size_px=32)
        return time.perf_counter() - started

    def close(self) -> None:
        """Ends the threads; further calls are refused. May be called twice."""
        with self._lock:
            self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _checked(self, c2w: npt.NDArray[np.floating], condition: F32) -> tuple[npt.NDArray[np.float64], F32]:
        pose = np.asarray(c2w, np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            got = f"shape {pose.shape}" if pose.shape != (4, 4) else "NaN or infinity"
            raise RenderInputError(f"c2w: expected (4, 4) finite numbers, got {got}")
        if np.abs(pose).max() > MAX_POSE:  # beyond, float32 cannot resolve cells
            raise RenderInputError(f"c2w: expected numbers up to {MAX_POSE:g}, got {np.abs(pose).max():.3g}")
        vector = np.ascontiguousarray(condition, np.float32)
        if vector.shape != (self.condition_size,) or not np.isfinite(vector).all():
            wrong = vector.shape != (self.condition_size,)
            got = f"shape {vector.shape}" if wrong else "NaN or infinity"
            raise RenderInputError(f"condition: expected ({self.condition_size},) finite numbers, got {got}")
        return pose, vector

    @staticmethod
    def _checked_region(
        size_px: int, region_px: tuple[int, int, int, int] | None
    ) -> tuple[int, int, int, int]:
        if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
            raise RenderInputError(f"size_px: expected {MIN_SIZE_PX} to {MAX_SIZE_PX}, got {size_px}")
        if region_px is None:
            return 0, 0, size_px, size_px
        x0, y0, x1, y1 = region_px
        if not (0 <= x0 < x1 <= size_px and 0 <= y0 < y1 <= size_px):
            raise RenderInputError(
                f"region_px: expected x0 < x1 and y0 < y1 within 0 to {size_px}, got {region_px}"
            )
        return x0, y0, x1, y1

    def _frame(
        self, pose: npt.NDArray[np.float64], condition: F32, size_px: int, x0: int, y0: int
    ) -> FrameArrays:
        camera, full = self.scene.camera, self.scene.image_size_px
        field = field_pose(pose, camera)
        none = np.zeros(1, np.float32)
        deform, canonical = self._torso.biases(field) if self._torso is not None else (none, none)
        scale = size_px / full
        return FrameArrays(
            pose=np.ascontiguousarray(field, np.float32),
            ambient_biases=self._head.ambient_biases(condition),
            deform_biases=deform,
            canonical_biases=canonical,
            background=self._background(size_px),
            focal_px=np.float32(camera.focal_px * scale),
            cx_px=np.float32(camera.cx_px * scale),
            cy_px=np.float32(camera.cy_px * scale),
            pixel_px=np.float32(1 / scale),
            image_size_px=np.float32(full),
            x0=x0,
            y0=y0,
        )
