"""CUDA raymarcher: batched frames of any number of sessions and scenes in one launch, as RGB or I420.

A scene may have plates: pictures of what does not change, over which only the blocks of a mask are drawn.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .arrays import F32, U8
from .cpu_raymarcher import RenderInputError
from .cuda_memory import DeviceMemory, Lease, PinnedBuffer, PinnedPool
from .cuda_module import CudaDevice, CudaError, machine_code
from .cuda_records import (
    CHUNK_BYTES,
    FRAME,
    LAUNCH,
    WORK,
    PackedScene,
    PlacedPlate,
    Record,
    as_bytes,
    background_words,
    block_words,
    fill_frames,
    frame_template,
    pack_scene,
)
from .folding import resize_by_area
from .masks import BlockMask
from .scene import MAX_SIZE_PX, MIN_SIZE_PX, Scene

_SLOTS = 3  # launches in flight: one rendered, one queued, one copied out
_BACKGROUNDS_KEPT = 4  # sizes of one scene's
_KINDS_KEPT = 64  # of one scene's frames, and one for each plate
_ALIGNMENT = 256  # bytes, of what lies one after the other in a buffer
_COUNTS_BYTES = 8  # samples of the head, and samples that went through the networks
# Initial allocations, enough for 32 pictures of 512 px: pinning and freeing stall all launches in flight for
# milliseconds, so memory should not grow after the first ones.
_MIN_INPUT_BYTES, _MIN_PICTURES_BYTES, _MIN_SCRATCH_BYTES = 1 << 17, 1 << 24, 1 << 27
_MAX_KEPT_BYTES = 1 << 29  # of buffers whose pictures are kept: one picture holds its whole launch's
_SCHEDULERS = 4  # of a multiprocessor


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _finite(numbers: npt.NDArray[np.floating]) -> bool:
    """Returns whether all are finite; where their squares' sum is, in half the time."""
    return math.isfinite(np.vdot(numbers, numbers)) or bool(np.isfinite(numbers).all())


class CudaPlates:
    """Device memory of a scene's plates and their masks; made by `CudaRenderer.load_plates`."""

    def __init__(self, device: CudaDevice, *, size_px: int, count: int, masks: Sequence[BlockMask]) -> None:
        self.size_px = size_px
        self._device = device
        words = [block_words(mask) for mask in masks]
        ends = np.cumsum([len(of_one) for of_one in words])
        self._blocks = device.upload(as_bytes(np.concatenate([*words, np.zeros(1, np.uint32)])))
        try:
            self._stride = _aligned(size_px * size_px * 3 // 2)
            self._pictures = device.allocate(self._stride * count)
        except BaseException:
            device.free(self._blocks)
            raise
        self.placed = tuple(
            PlacedPlate(
                picture=self._pictures + self._stride * (number % count),
                blocks=self._blocks + 4 * (int(end) - len(of_one)),
                block_count=len(of_one),
            )
            for number, (of_one, end) in enumerate(zip(words, ends, strict=True))
        )

    def upload(self, number: int, picture: U8) -> None:
        """Copies a plate to its place."""
        whole, stream = np.ascontiguousarray(picture), self._device.stream
        self._device.copy_in(self.placed[number].picture, whole.ctypes.data, whole.nbytes, stream)
        self._device.synchronize(stream)

    def free(self) -> None:
        """Frees the memory."""
        self._device.free(self._pictures)
        self._device.free(self._blocks)


class CudaScene:
    """A scene's device memory; made by `CudaRenderer.load`."""

    def __init__(self, device: CudaDevice, scene: Scene, packed: PackedScene) -> None:
        self.scene = scene
        self.packed = packed
        self._device = device
        self._owned: list[int] = []
        self._backgrounds: dict[int, int] = {}
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self.plates: CudaPlates | None = None  # once they are all there
        self.coming_plates: CudaPlates | None = None
        try:
            addresses = {name: self._upload(array) for name, array in packed.arrays.items()}
            self.address = self._upload(packed.with_addresses(addresses))
        except BaseException:  # all or nothing
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
        """Returns the device address of the background at a size."""
        found = self._backgrounds.get(size_px)
        if found is None:
            words = background_words(resize_by_area(self.scene.background, size_px))
            found = self._backgrounds[size_px] = self._device.upload(as_bytes(words))
        return found

    def kind(self, request: FrameRequest) -> _Kind:
        """Returns what requests of this size and region share; valid until backgrounds are freed."""
        key = (request.size_px, request.region_px, request.i420, request.plate)
        found = self._kinds.get(key)
        if found is None:
            if len(self._kinds) >= _KINDS_KEPT + (0 if self.plates is None else len(self.plates.placed)):
                self._kinds.clear()
            found = self._kinds[key] = _Kind(request, self.background(request.size_px))
        return found

    def forget_backgrounds(self, kept: set[int]) -> None:
        """Frees the oldest backgrounds beyond a few, of sizes other than `kept`."""
        for size_px in [size for size in self._backgrounds if size not in kept]:
            if len(self._backgrounds) <= _BACKGROUNDS_KEPT:
                return
            self._device.free(self._backgrounds.pop(size_px))
            self._kinds.clear()  # they hold its address

    def free(self) -> None:
        """Frees the memory; the scene cannot be rendered any more."""
        for address in (*self._owned, *self._backgrounds.values()):
            self._device.free(address)
        for plates in (self.plates, self.coming_plates):
            if plates is not None:
                plates.free()
        self.plates = self.coming_plates = None
        self._owned.clear()
        self._backgrounds.clear()
        self._kinds.clear()


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """One frame of a launch."""

    scene: CudaScene
    c2w: npt.NDArray[np.floating]  # (4, 4) camera to head space, OpenGL axes
    condition: F32  # (C,)
    size_px: int  # side of the whole picture, 8 to 2048
    region_px: tuple[int, int, int, int] | None = None  # x0 y0 x1 y1: the part that is drawn
    i420: bool = False  # planar YUV, BT.601 limited range, instead of RGB; all edges even
    out: U8 | None = field(default=None, repr=False)  # C-contiguous array to write into
    plate: int | None = None  # number of the mask that is drawn over its plate; a whole picture, as I420

    @property
    def region(self) -> tuple[int, int, int, int]:
        """The rendered region, x0 y0 x1 y1."""
        return self.region_px if self.region_px is not None else (0, 0, self.size_px, self.size_px)

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's shape: (height, width, 3), or (height * 3 / 2, width) for I420."""
        x0, y0, x1, y1 = self.region
        return ((y1 - y0) * 3 // 2, x1 - x0) if self.i420 else (y1 - y0, x1 - x0, 3)

    def check(self) -> None:
        """Raises RenderInputError if an argument has the wrong shape or range, or NaN in it."""
        pose, length = np.asarray(self.c2w), self.scene.condition_size
        if pose.shape != (4, 4) or not _finite(pose):
            got = f"shape {pose.shape}" if pose.shape != (4, 4) else "NaN or infinity"
            raise RenderInputError(f"c2w: expected (4, 4) finite numbers, got {got}")
        vector = np.asarray(self.condition)
        if vector.shape != (length,) or not _finite(vector):
            got = f"shape {vector.shape}" if vector.shape != (length,) else "NaN or infinity"
            raise RenderInputError(f"condition: expected ({length},) finite numbers, got {got}")
        if self.plate is not None:
            self._check_plate(self.plate)
        if not MIN_SIZE_PX <= self.size_px <= MAX_SIZE_PX:
            raise RenderInputError(f"size_px: expected {MIN_SIZE_PX} to {MAX_SIZE_PX}, got {self.size_px}")
        x0, y0, x1, y1 = self.region
        if not (0 <= x0 < x1 <= self.size_px and 0 <= y0 < y1 <= self.size_px):
            raise RenderInputError(
                f"region_px: expected x0 < x1 and y0 < y1 within 0 to {self.size_px}, got {self.region_px}"
            )
        if self.i420 and (x0 | y0 | x1 | y1) % 2:
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

    def _check_plate(self, number: int) -> None:
        """Raises RenderInputError if there is no such plate, or it cannot lie under such a picture."""
        plates = self.scene.plates
        if plates is None:
            raise RenderInputError("plate: expected a scene whose plates are loaded, got one without")
        if not 0 <= number < len(plates.placed):
            raise RenderInputError(f"plate: expected 0 to {len(plates.placed) - 1}, got {number}")
        if self.region_px is not None or not self.i420:
            got = "RGB" if not self.i420 else f"region_px {self.region_px}"
            raise RenderInputError(f"plate: expected a whole picture as I420, got {got}")
        if self.size_px != plates.size_px:
            raise RenderInputError(f"size_px: expected {plates.size_px} as the plate's, got {self.size_px}")


class _Kind:
    """What frames of one scene, size, region and plate share."""

    def __init__(self, request: FrameRequest, background: int) -> None:
        plates = request.scene.plates
        self.template = frame_template(
            request.scene.packed,
            size_px=request.size_px,
            region_px=request.region,
            i420=request.i420,
            background=background,
            plate=None if plates is None or request.plate is None else plates.placed[request.plate],
        )
        self.shape = request.shape
        self.picture_bytes = math.prod(self.shape)
        chunks = int(self.template["chunks"])
        # Of one frame in a launch's memory: done chunks, the picture, its pixels.
        self.sizes = (4 * (chunks + 1), _aligned(self.picture_bytes), _aligned(CHUNK_BYTES * chunks))


class _Slot:
    """A stream with its own memory and events, for one launch at a time."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.stream = device.create_stream()
        self.begin, self.end = (device.create_event(timed=True) for _ in range(2))  # of the kernels
        self.done = device.create_event(timed=False)
        self.input = PinnedBuffer(device, _MIN_INPUT_BYTES)
        self.output = DeviceMemory(device, _MIN_PICTURES_BYTES)
        self.scratch = DeviceMemory(device, _MIN_SCRATCH_BYTES)

    def free(self) -> None:
        """Frees all; nothing of it may be in use."""
        for memory in (self.input, self.output, self.scratch):
            memory.free()
        for event in (self.begin, self.end, self.done):
            self._device.destroy_event(event)
        self._device.destroy_stream(self.stream)


class Launch:
    """A launch in flight; made by `CudaRenderer.submit`, for `CudaRenderer.collect`."""

    def __init__(self, slot: _Slot, requests: Sequence[FrameRequest]) -> None:
        self.slot = slot
        self.sizes_px: dict[CudaScene, set[int]] = {}
        for request in requests:
            self.sizes_px.setdefault(request.scene, set()).add(request.size_px)
        self.lease: Lease | None = None
        self.pictures: list[tuple[int, int, tuple[int, ...]]] = []  # (first byte, bytes, shape) in the lease
        self.counts_at = 0  # in the lease


class CudaRenderer:
    """Renders frames of the scenes loaded on one GPU; thread-safe.

    A launch copies one record per frame to the device, starts one kernel for each width of networks among
    the frames' scenes, and copies the pictures back. Launches are pipelined: while the GPU renders one, the
    next is queued behind it, and the one before is copied out.
    """

    def __init__(self, *, device: int = 0) -> None:
        """Opens the GPU of that number.

        Raises:
            CudaUnavailableError: it cannot be used here.
        """
        self.device = CudaDevice(device)
        self.samples = 0
        """Head samples of the last collected launch."""
        self.samples_passed = 0
        """Its network evaluations, those of idle lanes included."""
        self.kernel_ms = 0.0
        """Its kernels' GPU time, without their overlap with the previous launch."""
        self.may_keep = False
        """Whether its pictures may be kept: their buffer is not mostly empty, and few buffers are kept."""
        self._pinned = PinnedPool(self.device, _MIN_PICTURES_BYTES)
        self._scenes: list[CudaScene] = []
        self._slots: list[_Slot] = []
        self._free_slots: list[_Slot] = []
        self._in_flight: list[Launch] = []  # kept while the GPU may write to their memory
        self._last: _Slot | None = None  # whose launch was collected last, until another is drawn there
        self._lock = threading.Lock()  # guards all above, and the device
        self._slot_free = threading.Condition(self._lock)
        self._closed = False

    def load(self, scene: Scene) -> CudaScene:
        """Returns the scene folded, packed and uploaded, with the kernel for its width loaded.

        Raises:
            SceneError: its arrays do not fit together, or the kernel is not built for such networks or grids.
            CudaUnavailableError: there is no kernel for this GPU.
            CudaError: the device has no room.
        """
        # Both may take long, so without the lock; a kernel compiled here is cached on disk.
        packed = pack_scene(scene)
        machine_code(packed.width, self.device.architecture)
        with self._lock:
            self._refuse_closed()
            self.device.make_current()
            loaded = CudaScene(self.device, scene, packed)
            self.device.kernel(loaded.packed.width)
            self._scenes.append(loaded)
            return loaded

    def load_plates(self, scene: CudaScene, pictures: U8, masks: Sequence[BlockMask]) -> None:
        """Uploads a scene's plates, once; they are freed with it.

        Frames are drawn meanwhile, between one plate and the next.

        Args:
            scene: whose they are.
            pictures: (P, size * 3 / 2, size) I420, BT.601 limited range; the size is even.
            masks: one or more rounds of P, of that size: mask n is drawn over picture n % P.

        Raises:
            RenderInputError: they do not fit together, or the scene is not loaded here or has plates.
            CudaError: the device has no room; the scene is drawn without.
        """
        size_px, count = pictures.shape[-1], len(pictures)
        shaped = pictures.shape == (count, size_px * 3 // 2, size_px) and pictures.dtype == np.uint8
        if not shaped or not count or not masks or len(masks) % count:
            raise RenderInputError(
                f"plates: expected (P, size * 3 / 2, size) uint8 and P masks or a multiple, "
                f"got {pictures.dtype} of shape {pictures.shape} and {len(masks)} masks"
            )
        sizes_px = {mask.size_px for mask in masks}
        if sizes_px != {size_px} or size_px % 2 or not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
            raise RenderInputError(
                f"plates: expected masks and pictures of one even size from {MIN_SIZE_PX} to {MAX_SIZE_PX}, "
                f"got {size_px} with masks of {sorted(sizes_px)}"
            )
        with self._lock:
            self._refuse_unloaded(scene)
            if scene.plates is not None or scene.coming_plates is not None:
                raise RenderInputError("plates: expected a scene without, got one that has some")
            self.device.make_current()
            plates = scene.coming_plates = CudaPlates(self.device, size_px=size_px, count=count, masks=masks)
        try:
            for number, picture in enumerate(pictures):
                with self._lock:
                    self._refuse_unloaded(scene)
                    self.device.make_current()
                    plates.upload(number, picture)
        except BaseException:
            with self._lock:
                if scene in self._scenes:
                    scene.coming_plates = None
                    plates.free()
            raise
        with self._lock:
            self._refuse_unloaded(scene)
            scene.plates, scene.coming_plates = plates, None

    def unload(self, scene: CudaScene) -> None:
        """Frees a scene's device memory once the launches that render it are done."""
        with self._lock:
            if scene in self._scenes:
                self._scenes.remove(scene)
                self.device.make_current()
                for launch in self._in_flight:
                    if scene in launch.sizes_px:
                        self.device.wait(launch.slot.done)
                scene.free()

    def render(self, requests: Sequence[FrameRequest]) -> list[U8]:
        """Returns the pictures in the order of the requests; each equals that of a separate call bit for bit.

        Raises:
            RenderInputError: a request has an argument of the wrong shape, range or with NaN in it.
            CudaError: the device failed.
        """
        for request in requests:
            request.check()
        if not requests:
            return []
        pictures = [r.out if r.out is not None else np.empty(r.shape, np.uint8) for r in requests]
        for picture, drawn in zip(pictures, self.collect(self.submit(requests)), strict=True):
            np.copyto(picture, drawn)
        return pictures

    def submit(self, requests: Sequence[FrameRequest]) -> Launch:
        """Returns the launch of one or more requests; `collect` must be called for it.

        Each must have passed `FrameRequest.check`; their `out` is not written to. Blocks while three
        launches are in flight.

        Raises:
            RenderInputError: a scene that is not loaded here.
            CudaError: the device failed.
        """
        with self._lock:
            while not self._closed and not self._free_slots and len(self._slots) >= _SLOTS:
                self._slot_free.wait()
            self._refuse_closed()
            for scene in {request.scene for request in requests}:
                self._refuse_unloaded(scene)
            self.device.make_current()
            if not self._free_slots:
                self._slots.append(_Slot(self.device))
                self._free_slots.append(self._slots[-1])
            launch = Launch(self._free_slots.pop(0), requests)
            if launch.slot is self._last:
                self._last = None
            self._in_flight.append(launch)
            try:
                self._enqueue(launch, requests)
            except BaseException:
                self._abandon(launch)
                raise
            return launch

    def collect(self, launch: Launch) -> list[U8]:
        """Returns a launch's pictures once rendered, in the order of its requests.

        They are views of a pinned buffer that is reused once none is referred to: copy what is kept, unless
        `may_keep`.

        Raises:
            CudaError: the device failed.
        """
        self.device.make_current()
        with self._lock:
            self._refuse_closed()
            if launch not in self._in_flight:
                raise RuntimeError("a launch: expected one that is under way here, got one that is not")
        try:
            self.device.wait(launch.slot.done)
        except BaseException:
            with self._lock:
                self._finish(launch)
            raise
        with self._lock:
            self._refuse_closed()
            self._measure(launch)
            self._finish(launch)
        assert launch.lease is not None  # it was submitted
        memory = np.asarray(launch.lease)
        well_filled = 4 * launch.counts_at >= launch.lease.size
        self.may_keep = well_filled and self._pinned.leased_bytes <= _MAX_KEPT_BYTES
        launch.lease = None
        counts = memory[launch.counts_at : launch.counts_at + _COUNTS_BYTES].view(np.uint32)
        self.samples, self.samples_passed = int(counts[0]), int(counts[1])
        return [memory[start : start + size].reshape(shape) for start, size, shape in launch.pictures]

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the renderer is closed")

    def _refuse_unloaded(self, scene: CudaScene) -> None:
        self._refuse_closed()
        if scene not in self._scenes:
            raise RenderInputError("scene: expected one that is loaded here, got one that is not")

    def _abandon(self, launch: Launch) -> None:
        """Withdraws a launch that may be only partly enqueued."""
        with contextlib.suppress(CudaError):  # a device that failed writes no more
            self.device.synchronize(launch.slot.stream)
        self._finish(launch)

    def _finish(self, launch: Launch) -> None:
        """Frees a launch's slot, and backgrounds that none uses."""
        if launch not in self._in_flight:  # the renderer was closed meanwhile
            return
        self._in_flight.remove(launch)
        self._free_slots.append(launch.slot)
        self._slot_free.notify()
        for scene in launch.sizes_px:
            if scene in self._scenes:
                drawn = (other.sizes_px.get(scene, set()) for other in (launch, *self._in_flight))
                scene.forget_backgrounds(set().union(*drawn))

    def _measure(self, launch: Launch) -> None:
        """Measures the time of a launch's kernels."""
        slot, elapsed_ms = launch.slot, self.device.elapsed_ms
        spent_ms = elapsed_ms(slot.begin, slot.end)
        if self._last is not None and self._last is not slot:  # it may have begun behind that one
            spent_ms = min(spent_ms, elapsed_ms(self._last.end, slot.end))
        self.kernel_ms = max(spent_ms, 0.0)
        self._last = slot

    def _enqueue(self, launch: Launch, requests: Sequence[FrameRequest]) -> None:
        """Enqueues a launch on its slot's stream."""
        device, slot = self.device, launch.slot
        stream, count = slot.stream, len(requests)
        scenes = sorted(launch.sizes_px, key=lambda scene: scene.packed.width)
        numbers: dict[CudaScene, list[int]] = {scene: [] for scene in scenes}
        for number, request in enumerate(requests):
            numbers[request.scene].append(number)
        order = [number for scene in scenes for number in numbers[scene]]
        kinds = [requests[number].scene.kind(requests[number]) for number in order]

        sizes = np.array([kind.sizes for kind in kinds], np.int64)
        ends = np.cumsum(sizes, axis=0)
        done_at, pictures_at, pixels_at = (ends - sizes).T
        done_bytes, output_bytes, pixels_bytes = (int(end) for end in ends[-1])
        # In the scratch memory: counts and what is taken, chunks' pixels done (zeros so far), pixels.
        finished_chunks_at = _COUNTS_BYTES
        taken_chunks_at = finished_chunks_at + 4 * len(scenes)
        first_done_at = taken_chunks_at + 4 * count
        zeros_bytes = first_done_at + done_bytes
        frames_at = _aligned(len(scenes) * WORK.itemsize)
        input_bytes = frames_at + count * FRAME.itemsize
        slot.input.reserve(input_bytes)
        slot.output.reserve(output_bytes)
        slot.scratch.reserve(_aligned(zeros_bytes) + pixels_bytes)
        launch.lease = self._pinned.lease(output_bytes + _COUNTS_BYTES)
        launch.counts_at = output_bytes
        launch.pictures = [(0, 0, ())] * count
        for number, kind, start in zip(order, kinds, pictures_at.tolist(), strict=True):
            launch.pictures[number] = (start, kind.picture_bytes, kind.shape)

        works = np.zeros(len(scenes), WORK)
        frames = slot.input.bytes_at(frames_at, count * FRAME.itemsize).view(FRAME)
        first = 0
        for work, scene in zip(works, scenes, strict=True):
            last = first + len(numbers[scene])
            own, records = kinds[first:last], frames[first:last]
            for place, kind in enumerate(own):
                records[place] = kind.template
            c2w = np.empty((len(own), 4, 4))
            conditions = np.empty((len(own), scene.condition_size), np.float32)
            for place, number in enumerate(numbers[scene]):
                c2w[place], conditions[place] = requests[number].c2w, requests[number].condition
            fill_frames(records, scene.packed, c2w=c2w, conditions=conditions)
            chunks = np.cumsum(records["chunks"])
            records["first_chunk"] = chunks - records["chunks"]
            work["scene"], work["first_frame"], work["frames"] = scene.address, first, len(own)
            work["chunks"] = chunks[-1]
            first = last
        frames["pixels"] = slot.scratch.address + _aligned(zeros_bytes) + pixels_at
        frames["done"] = slot.scratch.address + first_done_at + done_at
        frames["out"] = slot.output.address + pictures_at
        slot.input.bytes_at(0, works.nbytes)[:] = works.view(np.uint8)

        device.copy_in(slot.input.address, slot.input.pinned, input_bytes, stream)
        device.clear(slot.scratch.address, zeros_bytes, stream)
        device.mark(slot.begin, stream)
        for width in sorted({scene.packed.width for scene in scenes}):
            of_width = [index for index, scene in enumerate(scenes) if scene.packed.width == width]
            kernel = device.kernel(width)
            record = np.zeros((), LAUNCH)
            record["works"] = slot.input.address + of_width[0] * WORK.itemsize
            record["frames"] = slot.input.address + frames_at
            record["counts"] = slot.scratch.address
            record["finished_chunks"] = slot.scratch.address + finished_chunks_at + 4 * of_width[0]
            record["taken_chunks"] = slot.scratch.address + taken_chunks_at
            record["work_count"] = len(of_width)
            # Few chunks are spread: a multiprocessor takes a step in less time the fewer warps it has.
            blocks = max(len(of_width), -(-int(works["chunks"][of_width].sum()) // _SCHEDULERS))
            device.launch(kernel, min(device.multiprocessors, blocks), as_bytes(record), stream)
        device.mark(slot.end, stream)
        device.copy_out(launch.lease.address, slot.output.address, output_bytes, stream)
        device.copy_out(launch.lease.address + launch.counts_at, slot.scratch.address, _COUNTS_BYTES, stream)
        device.mark(slot.done, stream)

    def close(self) -> None:
        """Frees all memory once launches in flight are done. May be called twice.

        Pictures that are still referred to keep their buffer.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._slot_free.notify_all()
            self.device.make_current()
            for launch in self._in_flight:
                self.device.synchronize(launch.slot.stream)
                launch.lease = None
            self._in_flight.clear()
            for scene in self._scenes:
                scene.free()
            self._scenes.clear()
            for slot in self._slots:
                slot.free()
            self._slots.clear()
            self._free_slots.clear()
            self._pinned.close()
