"""Speakers drawn on an NVIDIA GPU: the frames of any number of sessions in one launch, as RGB or I420."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .cpu_raymarcher import MAX_SIZE_PX, MIN_SIZE_PX, RenderInputError
from .cuda_module import CudaDevice, machine_code
from .cuda_records import (
    CHUNKS_A_TILE,
    FRAME,
    LAUNCH,
    PIXEL_BYTES,
    WORK,
    PackedScene,
    Record,
    as_bytes,
    background_words,
    fill_frame,
    pack_scene,
    tile_count,
)
from .folding import resize_by_area
from .scene import F32, U8, Scene

_BACKGROUNDS_KEPT = 4  # sizes of one scene's
_ALIGNMENT = 256  # bytes, of what lies one after the other in a buffer
_COUNTS_BYTES = 8  # samples of the head, and samples that went through the networks
_TILES_A_WARP = 8  # from so many on a warp takes its rays a tile at a time; below, in smaller chunks


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class CudaScene:
    """A scene on a device; made by `CudaRenderer.load`."""

    def __init__(self, device: CudaDevice, scene: Scene, packed: PackedScene) -> None:
        self.scene = scene
        self.packed = packed
        self._device = device
        self._owned: list[int] = []
        self._backgrounds: dict[int, int] = {}
        try:
            addresses = {name: self._upload(array) for name, array in packed.arrays.items()}
            self.address = self._upload(packed.with_addresses(addresses))
        except BaseException:  # no room for all of it: none of it stays
            self.free()
            raise

    @property
    def condition_size(self) -> int:
        """Length of the condition vector."""
        return self.packed.head.condition_size

    def _upload(self, array: npt.NDArray[np.generic] | Record) -> int:
        address = self._device.upload(as_bytes(array))
        self._owned.append(address)
        return address

    def background(self, size_px: int) -> int:
        """Address of the background at a size."""
        found = self._backgrounds.get(size_px)
        if found is None:
            words = background_words(resize_by_area(self.scene.background, size_px))
            found = self._backgrounds[size_px] = self._device.upload(as_bytes(words))
        return found

    def forget_backgrounds(self, kept: set[int]) -> None:
        """Gives back the oldest backgrounds beyond a few, of sizes other than `kept`."""
        for size_px in [size for size in self._backgrounds if size not in kept]:
            if len(self._backgrounds) <= _BACKGROUNDS_KEPT:
                return
            self._device.free(self._backgrounds.pop(size_px))

    def free(self) -> None:
        """Gives the memory back; the scene cannot be drawn any more."""
        for address in (*self._owned, *self._backgrounds.values()):
            self._device.free(address)
        self._owned.clear()
        self._backgrounds.clear()


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """One picture of a launch."""

    scene: CudaScene
    c2w: npt.NDArray[np.floating]  # (4, 4) camera to head space, OpenGL axes
    condition: F32  # (C,)
    size_px: int  # side of the whole picture, 8 to 2048
    region_px: tuple[int, int, int, int] | None = None  # x0 y0 x1 y1: the part that is drawn
    i420: bool = False  # planar YUV, BT.601 limited range, instead of RGB; all edges even
    out: U8 | None = field(default=None, repr=False)  # C-contiguous array to write into

    @property
    def region(self) -> tuple[int, int, int, int]:
        """x0 y0 x1 y1 of what is drawn."""
        return self.region_px if self.region_px is not None else (0, 0, self.size_px, self.size_px)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result: (height, width, 3), or (height * 3 / 2, width) for I420."""
        x0, y0, x1, y1 = self.region
        return ((y1 - y0) * 3 // 2, x1 - x0) if self.i420 else (y1 - y0, x1 - x0, 3)

    def check(self) -> None:
        """Raises RenderInputError if an argument has the wrong shape or range, or NaN in it."""
        pose, length = np.asarray(self.c2w), self.scene.condition_size
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            got = f"shape {pose.shape}" if pose.shape != (4, 4) else "NaN or infinity"
            raise RenderInputError(f"c2w: expected (4, 4) finite numbers, got {got}")
        vector = np.asarray(self.condition)
        if vector.shape != (length,) or not np.isfinite(vector).all():
            got = f"shape {vector.shape}" if vector.shape != (length,) else "NaN or infinity"
            raise RenderInputError(f"condition: expected ({length},) finite numbers, got {got}")
        if not MIN_SIZE_PX <= self.size_px <= MAX_SIZE_PX:
            raise RenderInputError(f"size_px: expected {MIN_SIZE_PX} to {MAX_SIZE_PX}, got {self.size_px}")
        x0, y0, x1, y1 = self.region
        if not (0 <= x0 < x1 <= self.size_px and 0 <= y0 < y1 <= self.size_px):
            raise RenderInputError(
                f"region_px: expected x0 < x1 and y0 < y1 within 0 to {self.size_px}, got {self.region_px}"
            )
        if self.i420 and any(edge % 2 for edge in self.region):
            raise RenderInputError(f"region_px: expected even edges for I420, got {self.region}")
        out = self.out
        if out is not None and not (
            out.shape == self.shape
            and out.dtype == np.uint8
            and out.flags.c_contiguous
            and out.flags.writeable
        ):
            raise RenderInputError(
                f"out: expected a writeable C-contiguous uint8 array of shape {self.shape}, "
                f"got {out.dtype} of shape {out.shape}"
            )


class _Buffer:
    """Bytes in pinned memory and as many on the device; grows, never shrinks."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.size = self.pinned = self.address = 0

    def reserve(self, size: int) -> None:
        """Makes room for so many bytes; what was in it is lost if it grows."""
        if size > self.size:
            self.free()
            self.pinned = self._device.allocate_pinned(size)
            self.address = self._device.allocate(size)
            self.size = size

    def bytes_at(self, start: int, size: int) -> U8:
        """The pinned bytes, shared."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pinned + start))

    def free(self) -> None:
        """Gives both back."""
        if self.pinned:
            self._device.free_pinned(self.pinned)
        if self.address:
            self._device.free(self.address)
        self.size = self.pinned = self.address = 0


class _DeviceMemory:
    """Bytes on the device; grows, never shrinks."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.size = self.address = 0

    def reserve(self, size: int) -> None:
        """Makes room for so many bytes; what was in it is lost if it grows."""
        if size > self.size:
            self.free()
            self.address = self._device.allocate(size)
            self.size = size

    def free(self) -> None:
        """Gives it back."""
        if self.address:
            self._device.free(self.address)
        self.size = self.address = 0


class _Layout:
    """Where in the buffers of a launch everything lies, in bytes from each buffer's start."""

    def __init__(self, requests: Sequence[FrameRequest], works: int) -> None:
        self.frames_at = _aligned(works * WORK.itemsize)
        self.input_bytes = max(self.frames_at + len(requests) * FRAME.itemsize, _COUNTS_BYTES)
        self.pictures_at: list[int] = []
        self.output_bytes = 0
        # In the scratch memory: counts and what is taken, chunks' pixels done (zeros so far), pixels.
        self.finished_chunks_at = _COUNTS_BYTES
        self.taken_chunks_at = self.finished_chunks_at + 4 * works
        self.done_at: list[int] = []
        self.zeros_bytes = self.taken_chunks_at + 4 * len(requests)
        for request in requests:
            x0, y0, x1, y1 = request.region
            self.done_at.append(self.zeros_bytes)
            self.zeros_bytes += 4 * CHUNKS_A_TILE * tile_count(x1 - x0, y1 - y0)[1]
            self.pictures_at.append(self.output_bytes)
            self.output_bytes += _aligned(math.prod(request.shape))
        self.pixels_at: list[int] = []
        self.scratch_bytes = _aligned(self.zeros_bytes)
        for request in requests:
            x0, y0, x1, y1 = request.region
            self.pixels_at.append(self.scratch_bytes)
            self.scratch_bytes += _aligned(PIXEL_BYTES * (x1 - x0) * (y1 - y0))


class CudaRenderer:
    """Draws frames of the scenes loaded on one GPU; safe to call from several threads, which then wait.

    A call copies one record per frame to the device, launches one kernel for each width of networks among
    the frames' scenes, copies the pictures back and waits once.
    """

    def __init__(self, *, device: int = 0) -> None:
        """Opens the GPU of that number.

        Raises:
            CudaUnavailableError: it cannot be used here.
        """
        self.device = CudaDevice(device)
        self.samples = 0
        """Head samples of the last call."""
        self.samples_passed = 0
        """Samples that the last call took through the networks, those of lanes without a ray among them."""
        self.kernel_ms = 0.0
        """Time that the last call's kernels took on the GPU."""
        self._input, self._output = _Buffer(self.device), _Buffer(self.device)
        self._scratch = _DeviceMemory(self.device)
        self._scenes: list[CudaScene] = []
        self._lock = threading.Lock()
        self._closed = False

    def load(self, scene: Scene) -> CudaScene:
        """The scene, folded, packed and on the device, and the kernel for its width loaded.

        Raises:
            SceneError: its arrays do not fit together, or the kernel is not built for such networks or grids.
            CudaUnavailableError: there is no kernel for this GPU.
            CudaError: the device has no room.
        """
        # Both may take long, so others draw meanwhile; a kernel that is compiled here is kept on disk.
        packed = pack_scene(scene)
        machine_code(packed.width, self.device.architecture)
        with self._lock:
            self._refuse_closed()
            self.device.make_current()
            loaded = CudaScene(self.device, scene, packed)
            self.device.kernel(loaded.packed.width)
            self._scenes.append(loaded)
            return loaded

    def unload(self, scene: CudaScene) -> None:
        """Gives back what a scene takes up on the device."""
        with self._lock:
            if scene in self._scenes:
                self._scenes.remove(scene)
                self.device.make_current()
                scene.free()

    def render(self, requests: Sequence[FrameRequest]) -> list[U8]:
        """The pictures, in the order of the requests; each equals what a call of its own would give.

        Raises:
            RenderInputError: a request has an argument of the wrong shape, range or with NaN in it.
            CudaError: the device failed.
        """
        for request in requests:
            request.check()
        if not requests:
            return []
        pictures = [r.out if r.out is not None else np.empty(r.shape, np.uint8) for r in requests]
        with self._lock:
            self._refuse_closed()
            for request in requests:
                if request.scene not in self._scenes:
                    raise RenderInputError("scene: expected one that is loaded here, got one that is not")
            self.device.make_current()
            starts = self._draw(requests)
            for picture, start in zip(pictures, starts, strict=True):
                np.copyto(picture.reshape(-1), self._output.bytes_at(start, picture.size))
        return pictures

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the renderer is closed")

    def _draw(self, requests: Sequence[FrameRequest]) -> list[int]:
        """Draws into the output buffer; where in it each picture begins."""
        device = self.device
        sizes: dict[CudaScene, set[int]] = {}
        for request in requests:
            sizes.setdefault(request.scene, set()).add(request.size_px)
        scenes = sorted(sizes, key=lambda scene: scene.packed.width)
        layout = _Layout(requests, len(scenes))
        self._input.reserve(layout.input_bytes)
        self._output.reserve(layout.output_bytes)
        self._scratch.reserve(layout.scratch_bytes)
        works, frames = np.zeros(len(scenes), WORK), np.zeros(len(requests), FRAME)
        works["scene"] = [scene.address for scene in scenes]
        order = sorted(range(len(requests)), key=lambda number: scenes.index(requests[number].scene))
        for place, number in enumerate(order):
            request = requests[number]
            work = works[scenes.index(request.scene)]
            if work["frames"] == 0:
                work["first_frame"] = place
            work["frames"] += 1
            work["tiles"] += fill_frame(
                frames[place],
                request.scene.packed,
                c2w=np.asarray(request.c2w, np.float64),
                condition=np.ascontiguousarray(request.condition, np.float32),
                size_px=request.size_px,
                region_px=request.region,
                i420=request.i420,
                first_tile=int(work["tiles"]),
                background=request.scene.background(request.size_px),
                pixels=self._scratch.address + layout.pixels_at[number],
                done=self._scratch.address + layout.done_at[number],
                out=self._output.address + layout.pictures_at[number],
            )
        self._input.bytes_at(0, works.nbytes)[:] = works.view(np.uint8)
        self._input.bytes_at(layout.frames_at, frames.nbytes)[:] = frames.view(np.uint8)
        device.copy_in(self._input.address, self._input.pinned, layout.input_bytes)
        device.clear(self._scratch.address, layout.zeros_bytes)
        device.mark(0)
        for width in sorted({scene.packed.width for scene in scenes}):
            own = [index for index, scene in enumerate(scenes) if scene.packed.width == width]
            kernel = device.kernel(width)
            launch = np.zeros((), LAUNCH)
            launch["works"] = self._input.address + own[0] * WORK.itemsize
            launch["frames"] = self._input.address + layout.frames_at
            launch["counts"] = self._scratch.address
            launch["finished_chunks"] = self._scratch.address + layout.finished_chunks_at + 4 * own[0]
            launch["taken_chunks"] = self._scratch.address + layout.taken_chunks_at
            tiles, warps = int(works["tiles"][own].sum()), kernel.threads // 32
            many = tiles >= _TILES_A_WARP * warps * device.multiprocessors
            launch["work_count"], launch["chunks_at_once"] = len(own), CHUNKS_A_TILE if many else 1
            blocks = min(device.multiprocessors, max(len(own), -(-tiles * CHUNKS_A_TILE // warps)))
            device.launch(kernel, blocks, as_bytes(launch))
        device.mark(1)
        device.copy_out(self._output.pinned, self._output.address, layout.output_bytes)
        device.copy_out(self._input.pinned, self._scratch.address, _COUNTS_BYTES)
        device.synchronize()
        self.kernel_ms = device.elapsed_ms()
        counts = self._input.bytes_at(0, _COUNTS_BYTES).view(np.uint32)
        self.samples, self.samples_passed = int(counts[0]), int(counts[1])
        for scene, drawn in sizes.items():
            scene.forget_backgrounds(drawn)
        return layout.pictures_at

    def close(self) -> None:
        """Gives all memory back; drawing is over. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.device.make_current()
            for scene in self._scenes:
                scene.free()
            self._scenes.clear()
            self._input.free()
            self._output.free()
            self._scratch.free()
            self.device.close()


class CudaRaymarcher:
    """Draws one scene, as CpuRaymarcher does; several on one GPU share a CudaRenderer."""

    def __init__(self, scene: Scene, *, renderer: CudaRenderer | None = None) -> None:
        """Loads the scene.

        Args:
            scene: what to draw; checked here.
            renderer: where to draw it; one of its own on the first GPU if None.

        Raises:
            SceneError: the scene's arrays do not fit together, or the kernel is not built for such networks.
            CudaUnavailableError: no GPU can be used here.
            CudaError: the device has no room.
        """
        self.scene = scene
        self._owns_renderer = renderer is None
        self.renderer = renderer if renderer is not None else CudaRenderer()
        self.loaded = self.renderer.load(scene)
        """The scene as a FrameRequest wants it."""

    @property
    def condition_size(self) -> int:
        """Length of the condition vector."""
        return self.loaded.condition_size

    @property
    def samples(self) -> int:
        """Head samples of the renderer's last call."""
        return self.renderer.samples

    def render(
        self,
        *,
        c2w: npt.NDArray[np.floating],
        condition: F32,
        size_px: int,
        region_px: tuple[int, int, int, int] | None = None,
        out: U8 | None = None,
    ) -> U8:
        """The picture (size, size, 3) uint8 RGB, or a region of it.

        Args:
            c2w: (4, 4) camera to head space, OpenGL axes.
            condition: (C,).
            size_px: side of the square picture, 8 to 2048.
            region_px: (x0, y0, x1, y1) in pixels of that picture; the result is then (y1 - y0, x1 - x0, 3)
                and equals the crop of the whole picture bit for bit.
            out: C-contiguous array of the result's shape to write into.

        Raises:
            RenderInputError: an argument of the wrong shape, range or with NaN in it.
            CudaError: the device failed.
        """
        request = FrameRequest(
            scene=self.loaded, c2w=c2w, condition=condition, size_px=size_px, region_px=region_px, out=out
        )
        return self.renderer.render([request])[0]

    def render_i420(
        self,
        *,
        c2w: npt.NDArray[np.floating],
        condition: F32,
        size_px: int,
        out: U8 | None = None,
    ) -> U8:
        """The picture as planar I420 (size * 3 / 2, size) uint8, BT.601 limited range; size must be even.

        Raises:
            RenderInputError: as for `render`, or an odd size.
            CudaError: the device failed.
        """
        request = FrameRequest(
            scene=self.loaded, c2w=c2w, condition=condition, size_px=size_px, i420=True, out=out
        )
        return self.renderer.render([request])[0]

    def warm_up(self) -> float:
        """Seconds that it took to draw once."""
        started = time.perf_counter()
        condition = np.zeros(self.condition_size, np.float32)
        self.render(c2w=np.eye(4, dtype=np.float32), condition=condition, size_px=32)
        return time.perf_counter() - started

    def close(self) -> None:
        """Gives back what the scene takes up; drawing is over. May be called twice."""
        self.renderer.unload(self.loaded)
        if self._owns_renderer:
            self.renderer.close()
