"""Frames of all sessions drawn on one GPU, in batches (`gpu_batching`).

A session's render thread requests a frame and blocks. One thread of this process batches requests and submits
launches, so that the GPU has the next one queued before it ends the present one; another collects their
pictures and wakes the requesters. A GPU that fails, or does not answer in time, is lost for good: every
request raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cuda_kernels.arrays import F32, U8

from ..errors import GpuLostError, InputError, Stopped
from .clock import MonotonicClock, SystemClock
from .cuda_device import find_cuda_device
from .gpu_batching import MAX_FRAMES, BatchPolicy, PendingFrame

if TYPE_CHECKING:
    from cuda_kernels.cuda_raymarcher import CudaScene, FrameRequest, Launch
    from cuda_kernels.masks import BlockMask
    from cuda_kernels.scene import Scene

    from .engine_choice import DeviceName


log = logging.getLogger(__name__)

HANG_S = 2.0  # timeout of a frame; a launch takes milliseconds
_JOIN_S = 0.5
_MEASURED_FRAMES, _MEASUREMENTS = 2 * MAX_FRAMES, 3  # two full launches, one behind the other
_WARM_UP_PX = 32


class BatchRenderer(Protocol):
    """Draws frames of the scenes that were loaded: a `cuda_kernels.cuda_raymarcher.CudaRenderer`."""

    kernel_ms: float
    may_keep: bool  # pictures that were collected last, uncopied

    def load(self, scene: Scene) -> CudaScene:
        """Returns the scene, ready to be drawn."""

    def load_plates(self, scene: CudaScene, pictures: U8, masks: Sequence[BlockMask]) -> None:
        """Uploads the scene's plates."""

    def unload(self, scene: CudaScene) -> None:
        """Frees the scene's memory."""

    def submit(self, requests: Sequence[FrameRequest]) -> Launch:
        """Returns a launch that draws the requests."""

    def collect(self, launch: Launch) -> list[U8]:
        """Returns a launch's pictures, in the order of its requests; to be copied unless they may be kept."""

    def close(self) -> None:
        """Gives everything back."""


class GpuRenderer:
    """The GPU renderer that all sessions of a process share; thread-safe."""

    def __init__(
        self,
        renderer: BatchRenderer,
        *,
        name: str,
        observe: Callable[[int, float], None] = lambda frames, kernel_ms: None,
        policy: BatchPolicy | None = None,
        hang_s: float = HANG_S,
        clock: MonotonicClock | None = None,
    ) -> None:
        """Takes what draws, which is closed with it; `start` starts the threads.

        Args:
            renderer: draws.
            name: of the GPU.
            observe: told, from a thread, each launch's batch size and kernel time.
            policy: of dynamic batching.
            hang_s: a frame that takes longer means that the GPU is lost.
            clock: tells when frames are asked for.
        """
        self.name = name
        self._renderer = renderer
        self._observe = observe
        self._policy = policy or BatchPolicy()
        self._hang_s = hang_s
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()  # guards all below
        self._asked = threading.Condition(self._lock)  # also: a launch has landed, it is over
        self._submitted = threading.Condition(self._lock)  # also: nothing more will be
        self._waiting: deque[PendingFrame] = deque()
        self._submitting: list[PendingFrame] = []
        self._flying: deque[tuple[list[PendingFrame], Launch]] = deque()
        self._lost = ""
        self._on_lost: Callable[[str], None] | None = None
        self._closed = False
        self._submits = True
        self._threads: list[threading.Thread] = []

    @property
    def lost(self) -> str:
        """Why it draws no more; empty while it does."""
        return self._lost

    def start(self) -> None:
        """Starts the threads that submit and collect."""
        if self._threads or self._closed:
            raise RuntimeError("GPU renderer: started twice, or after it was closed")
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._submit_all, "geneface-gpu"), (self._collect_all, "geneface-gpu-collect"))
        ]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Returns whether the threads have ended, after at most so long; once lost or closed they do."""
        until_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Calls back once with the reason when it is lost, from any thread; at once if it is already."""
        with self._lock:
            self._on_lost = call
            reason = self._lost
        if reason:
            call(reason)

    def load(self, scene: Scene) -> CudaScene:
        """Returns a scene, ready to be drawn.

        Raises:
            SceneError: the kernels are not built for such a scene.
            CudaUnavailableError: there is no kernel for this GPU.
            CudaError: it has no room.
            GpuLostError: it draws no more.
        """
        if self._lost:
            raise GpuLostError(self._lost)
        return self._renderer.load(scene)

    def load_plates(self, scene: CudaScene, pictures: U8, masks: Sequence[BlockMask]) -> None:
        """Uploads a scene's plates while others draw; see `CudaRenderer.load_plates`.

        Raises:
            RenderInputError: they do not fit together, or the scene was unloaded.
            CudaError: it has no room; the scene is drawn without.
            GpuLostError: it draws no more.
        """
        if self._lost:
            raise GpuLostError(self._lost)
        self._renderer.load_plates(scene, pictures, masks)

    def unload(self, scene: CudaScene) -> None:
        """Frees a scene's memory; does nothing on a lost GPU."""
        from cuda_kernels.cuda_module import CudaError

        if not self._lost:
            try:
                self._renderer.unload(scene)
            except CudaError as error:
                self._lose(str(error))

    def draw(self, requests: Sequence[FrameRequest]) -> list[U8]:
        """Returns the pictures, in order; they are requested at once and may share a launch.

        Raises:
            RenderInputError: a request that cannot be drawn; nothing is drawn then.
            GpuLostError: the GPU draws no more, or has given nothing for `hang_s`.
            Stopped: it was closed.
        """
        for request in requests:
            request.check()  # here: a launch is not to fail for one of many
        asker, now_s = threading.get_ident(), self._clock.now_s()
        wanted = [PendingFrame(request, asker, now_s) for request in requests]
        with self._lock:
            if self._lost:
                raise GpuLostError(self._lost)
            if self._closed:
                raise Stopped("the GPU renderer was closed")
            if not self._threads:
                raise RuntimeError("GPU renderer: asked to draw before it was started")
            self._policy.asked(asker, now_s=now_s)
            self._waiting.extend(wanted)
            if self._policy.should_wake(len(self._waiting)):
                self._asked.notify()
        pictures = []
        for one in wanted:
            if not one.wait(self._hang_s):
                self._lose(f"it gave no picture within {self._hang_s:g} s")
            if one.failure is not None:
                raise one.failure()
            pictures.append(one.take())
        return pictures

    def close(self) -> None:
        """Ends the threads and the renderer; blocked requests raise `Stopped`.

        Launches under way are collected before. A GPU that hangs is left behind after half a second. A second
        time, or unstarted, it is safe.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            self._fail(self._waiting, lambda: Stopped("the GPU renderer was closed"))
            self._waiting.clear()
            self._asked.notify_all()
        if not first:
            return
        if not self._threads:
            self._release()
            return
        if not self.join(_JOIN_S):
            log.error("%s did not end within %.1f s and is left behind", self.name, _JOIN_S)
            with self._lock:
                self._fail(self._drawing(), lambda: Stopped("the GPU renderer was closed"))

    def _drawing(self) -> list[PendingFrame]:
        """Returns the frames that the GPU has, or is about to."""
        return [*(wanted for batch, _ in self._flying for wanted in batch), *self._submitting]

    # The threads' side --------------------------------------------------------------------------------

    def _submit_all(self) -> None:
        try:
            while batch := self._gather():
                self._submit(batch)
        except BaseException:  # a thread's outermost frame
            log.exception("the thread that draws on the GPU failed")
            self._lose("its thread failed, the log says why")
        finally:
            with self._lock:
                self._submits = False
                self._submitted.notify_all()

    def _gather(self) -> list[PendingFrame]:
        """Returns the next batch, oldest first; empty once it is over."""
        with self._lock:
            while not self._closed and not self._lost:
                oldest = islice(self._waiting, self._policy.max_frames)
                waiting = [(wanted.asker, wanted.asked_s) for wanted in oldest]
                wait_s = self._policy.wait_s(waiting, now_s=self._clock.now_s())
                if wait_s == 0.0:
                    self._submitting = [self._waiting.popleft() for _ in waiting]
                    return self._submitting
                self._asked.wait(wait_s)
            return []

    def _submit(self, batch: list[PendingFrame]) -> None:
        from cuda_kernels.cuda_module import CudaError

        try:
            launch = self._renderer.submit([wanted.request for wanted in batch])
        except CudaError as error:
            self._lose(str(error))
            return
        except Exception as error:  # noqa: BLE001 - logged, and raised to the requesters
            self._fail_batch(batch, error)
            with self._lock:
                self._submitting = []
            return
        with self._lock:
            self._submitting = []
            self._flying.append((batch, launch))
            self._policy.submitted(len(batch), now_s=self._clock.now_s())
            self._submitted.notify()

    def _collect_all(self) -> None:
        try:
            while flying := self._next_flying():
                self._collect(*flying)
        except BaseException:  # a thread's outermost frame
            log.exception("the thread that collects from the GPU failed")
            self._lose("its thread failed, the log says why")
        finally:
            self._threads[0].join()  # lost or closed, so it ends, unless the device holds it
            self._release()

    def _next_flying(self) -> tuple[list[PendingFrame], Launch] | None:
        """Returns the oldest launch under way; None once there will be no more, or the GPU is lost."""
        with self._lock:
            while self._submits and not self._flying and not self._lost:
                self._submitted.wait()
            return self._flying[0] if self._flying and not self._lost else None

    def _collect(self, batch: list[PendingFrame], launch: Launch) -> None:
        from cuda_kernels.cuda_module import CudaError

        kernel_ms, kept = 0.0, False
        try:
            pictures = self._renderer.collect(launch)
            kernel_ms, kept = self._renderer.kernel_ms, self._renderer.may_keep
        except CudaError as error:
            self._lose(str(error))
            return
        except Exception as error:  # noqa: BLE001 - logged, and raised to the requesters
            self._fail_batch(batch, error)
            pictures = []
        with self._lock:
            self._flying.popleft()
            self._policy.collected(kernel_ms, now_s=self._clock.now_s())
            self._asked.notify()
            for wanted, picture in zip(batch, pictures, strict=False):  # none of a batch that failed
                wanted.settle(picture=picture, kept=kept)
        if pictures:
            self._observe(len(batch), kernel_ms)

    def _fail_batch(self, batch: list[PendingFrame], error: Exception) -> None:
        log.error(
            "drawing %d frames on the GPU failed, and that is a fault of the program",
            len(batch),
            exc_info=error,
        )
        text = f"drawing on the GPU failed: {error}"
        with self._lock:
            self._fail(batch, lambda: RuntimeError(text))

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = reason
            self._fail([*self._drawing(), *self._waiting], lambda: GpuLostError(reason))
            self._waiting.clear()
            self._asked.notify_all()
            self._submitted.notify_all()
            call = self._on_lost
        log.error("%s draws no more: %s; start anew to draw on it again", self.name, reason)
        if call is not None:
            call(reason)

    @staticmethod
    def _fail(
        unsettled: Sequence[PendingFrame] | deque[PendingFrame], failure: Callable[[], Exception]
    ) -> None:
        for wanted in unsettled:
            wanted.settle(failure=failure)

    def _release(self) -> None:
        try:
            self._renderer.close()
        except Exception as error:  # noqa: BLE001 - a failed device takes nothing back; its memory goes with us
            log.info("%s did not close well: %s", self.name, error)


class GpuRaymarcher:
    """Draws one speaker on the GPU that all share."""

    def __init__(self, gpu: GpuRenderer, scene: Scene) -> None:
        """Loads the scene.

        Raises:
            SceneError, CudaUnavailableError, CudaError, GpuLostError: see `GpuRenderer.load`.
        """
        from cuda_kernels.cuda_raymarcher import FrameRequest

        self.scene = scene
        self._gpu = gpu
        self._loaded = gpu.load(scene)
        self._request = partial(FrameRequest, scene=self._loaded)
        self._plates_px = 0
        self._closed = False

    @property
    def device(self) -> str:
        """The GPU's name."""
        return self._gpu.name

    def render(
        self,
        *,
        c2w: F32,
        condition: F32,
        size_px: int,
        region_px: tuple[int, int, int, int] | None = None,
        out: U8 | None = None,
    ) -> U8:
        """Returns (size, size, 3) uint8 RGB, or the part x0 y0 x1 y1 of that picture.

        Raises:
            RenderInputError, GpuLostError, Stopped: see `GpuRenderer.draw`.
        """
        request = self._request(c2w=c2w, condition=condition, size_px=size_px, region_px=region_px, out=out)
        return self._gpu.draw([request])[0]

    def render_i420(self, *, c2w: F32, condition: F32, size_px: int) -> U8:
        """Returns (size * 3 / 2, size) uint8 planar I420, BT.601, limited range; the size is even.

        Raises:
            RenderInputError, GpuLostError, Stopped: see `GpuRenderer.draw`.
        """
        return self._gpu.draw([self._finished(c2w, condition, size_px)])[0]

    def load_plates(self, pictures: U8, masks: Sequence[BlockMask]) -> None:
        """Uploads the pictures (P, S * 3 / 2, S) I420 and masks that `render_composite` needs, once.

        From any thread, while frames are drawn; they are freed with the scene.

        Raises:
            RenderInputError, CudaError, GpuLostError: see `GpuRenderer.load_plates`; also if it was closed.
        """
        self._gpu.load_plates(self._loaded, pictures, masks)
        self._plates_px = pictures.shape[-1]

    def render_composite(self, *, c2w: F32, condition: F32, number: int) -> U8:
        """Returns (S * 3 / 2, S) uint8 I420: a mask drawn over its plate.

        Args:
            c2w: (4, 4) of the pose.
            condition: (C,).
            number: of the mask, among those that were loaded.

        Raises:
            RenderInputError, GpuLostError, Stopped: see `GpuRenderer.draw`; also if no plates are loaded.
        """
        return self._gpu.draw([self._finished(c2w, condition, self._plates_px, plate=number)])[0]

    def frame_ms(self, *, poses: F32, condition: F32, size_px: int) -> float:
        """Returns the milliseconds a frame of a full batch takes, copies and threads included.

        It is drawn over its plate where plates of that size are loaded.

        Args:
            poses: (P, 4, 4) the head's path; pictures are spread over it.
            condition: (C,).
            size_px: side of the picture, even.
        """
        numbers = [len(poses) * number // _MEASURED_FRAMES for number in range(_MEASURED_FRAMES)]
        plated = size_px == self._plates_px
        requests = [
            self._finished(poses[number], condition, size_px, plate=number if plated else None)
            for number in numbers
        ]
        clock, spent_s = SystemClock(), []
        self._gpu.draw(requests)  # buffers and background are made
        for _ in range(_MEASUREMENTS):  # the fastest counts: noise only adds
            start_s = clock.now_s()
            self._gpu.draw(requests)
            spent_s.append(clock.now_s() - start_s)
        return min(spent_s) * 1000 / _MEASURED_FRAMES

    def warm_up(self) -> float:
        """Returns the seconds that it took to draw once."""
        clock = SystemClock()
        start_s = clock.now_s()
        condition = np.zeros(self._loaded.condition_size, np.float32)
        self.render(c2w=np.eye(4, dtype=np.float32), condition=condition, size_px=_WARM_UP_PX)
        return clock.now_s() - start_s

    def close(self) -> None:
        """Frees the scene's memory; safe twice."""
        if not self._closed:
            self._closed = True
            self._gpu.unload(self._loaded)

    def _finished(self, c2w: F32, condition: F32, size_px: int, *, plate: int | None = None) -> FrameRequest:
        return self._request(c2w=c2w, condition=condition, size_px=size_px, i420=True, plate=plate)


def open_gpu(
    device: DeviceName,
    *,
    say: Callable[[str], None],
    observe: Callable[[int, float], None] = lambda frames, kernel_ms: None,
) -> GpuRenderer | None:
    """Returns the renderer of the first GPU, started; None where the CPU draws.

    Args:
        device: `cpu`: never; `cuda`: on a GPU or not at all; `auto`: where there is one.
        say: told in one line why a GPU that is there does not draw.
        observe: see `GpuRenderer`.

    Raises:
        InputError: a GPU was asked for and cannot draw.
    """
    if device == "cpu":
        return None
    found = find_cuda_device()
    if found is None:
        if device == "cuda":
            raise InputError(
                "--device cuda: expected a CUDA device, got none; check nvidia-smi, or leave --device out"
            )
        return None
    from cuda_kernels.cuda_module import CudaError, CudaUnavailableError
    from cuda_kernels.cuda_raymarcher import CudaRenderer

    try:
        renderer = CudaRenderer()
    except (CudaUnavailableError, CudaError) as error:
        if device == "cuda":
            raise InputError(f"--device cuda: {error}") from None
        say(f"the CPU draws, not {found.name}: {error}")
        return None
    gpu = GpuRenderer(renderer, name=found.name, observe=observe)
    gpu.start()
    return gpu
