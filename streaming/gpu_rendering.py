"""Frames of all sessions drawn on one GPU: what is asked for within a few milliseconds is one launch.

A session's render thread asks and waits. One thread of this process gathers what was asked for, draws it, and
hands each its picture. A GPU that fails, or gives nothing in time, is lost for good: whoever asks is told so.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from .clock import MonotonicClock, SystemClock
from .cuda_device import find_cuda_device
from .errors import GpuLostError, InputError, Stopped

if TYPE_CHECKING:
    from cuda_kernels.cuda_raymarcher import CudaScene, FrameRequest
    from cuda_kernels.scene import Scene

    from .engine import DeviceName

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)

GATHER_S = 0.0025  # that the first frame of a launch waits for others
RECENT_S = 0.1  # who asked within the last two frames is waited for
MOST_FRAMES = 32  # of a launch: more would make the first ones wait, and gain nothing
HANG_S = 2.0  # a launch takes milliseconds; a GPU that is silent for so long will not answer
_JOIN_S = 0.5
_MEASURED_FRAMES, _MEASUREMENTS = 8, 3
_WARM_UP_PX = 32


class BatchRenderer(Protocol):
    """Draws frames of the scenes that were loaded: a `cuda_kernels.cuda_raymarcher.CudaRenderer`."""

    kernel_ms: float

    def load(self, scene: Scene) -> CudaScene:
        """Returns the scene, ready to be drawn."""

    def unload(self, scene: CudaScene) -> None:
        """Gives back what the scene takes up."""

    def render(self, requests: Sequence[FrameRequest]) -> list[U8]:
        """Returns the pictures, in the order of the requests."""

    def close(self) -> None:
        """Gives everything back."""


class Gathering:
    """Decides when the frames that were asked for are drawn. Time is the caller's; no two threads at once."""

    def __init__(self, *, gather_s: float = GATHER_S, most_frames: int = MOST_FRAMES) -> None:
        """Knows nobody yet.

        Args:
            gather_s: that a frame waits for others, at most.
            most_frames: so many are not waited beyond.
        """
        self.most_frames = most_frames
        self._gather_s = gather_s
        self._asked_s: dict[int, float] = {}  # when each asker asked last

    def asked(self, asker: int, *, now_s: float) -> None:
        """Takes that someone asked for a frame."""
        self._asked_s[asker] = now_s

    def wait_s(self, waiting: Sequence[tuple[int, float]], *, now_s: float) -> float | None:
        """Returns how long to wait for others; 0: draw now. None: nothing is to be drawn.

        Args:
            waiting: who asked and when, oldest first.
            now_s: the time.
        """
        if not waiting:
            return None
        self._asked_s = {who: at_s for who, at_s in self._asked_s.items() if now_s - at_s <= RECENT_S}
        if len(waiting) >= self.most_frames or self._asked_s.keys() <= {who for who, _ in waiting}:
            return 0.0
        return max(waiting[0][1] + self._gather_s - now_s, 0.0)


class _Wanted:
    """A frame that was asked for."""

    def __init__(self, request: FrameRequest, asker: int, asked_s: float) -> None:
        self.request, self.asker, self.asked_s = request, asker, asked_s
        self.settled = threading.Event()
        self.picture: U8 | None = None
        self.failure: Callable[[], Exception] | None = None  # each who waits raises one of its own


class GpuRenderer:
    """What draws on the GPU for everyone in this process; every thread may ask."""

    def __init__(
        self,
        renderer: BatchRenderer,
        *,
        name: str,
        observe: Callable[[int, float], None] = lambda frames, kernel_ms: None,
        gathering: Gathering | None = None,
        hang_s: float = HANG_S,
        clock: MonotonicClock | None = None,
    ) -> None:
        """Takes what draws, which is closed with it; `start` starts the thread.

        Args:
            renderer: draws.
            name: of the GPU.
            observe: told of each launch how many frames it drew, and what its kernels took; from the thread.
            gathering: decides what is drawn together.
            hang_s: a frame that takes longer means that the GPU is lost.
            clock: tells when frames are asked for.
        """
        self.name = name
        self._renderer = renderer
        self._observe = observe
        self._gathering = gathering or Gathering()
        self._hang_s = hang_s
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[_Wanted] = deque()
        self._drawing: list[_Wanted] = []
        self._lost = ""
        self._on_lost: Callable[[str], None] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> str:
        """Why it draws no more; empty while it does."""
        return self._lost

    def start(self) -> None:
        """Starts the thread that draws."""
        if self._thread is not None or self._closed:
            raise RuntimeError("GPU renderer: started twice, or after it was closed")
        self._thread = threading.Thread(target=self._run, name="geneface-gpu", daemon=True)
        self._thread.start()

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Calls back once with the reason when it is lost, from any thread; at once if it is already."""
        with self._changed:
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

    def unload(self, scene: CudaScene) -> None:
        """Gives back what a scene takes up; of a lost GPU that is done already, or cannot be."""
        from cuda_kernels.cuda_module import CudaError

        if not self._lost:
            try:
                self._renderer.unload(scene)
            except CudaError as error:
                self._lose(str(error))

    def draw(self, requests: Sequence[FrameRequest]) -> list[U8]:
        """Returns the pictures, in order; they are asked for at once and may share a launch.

        Raises:
            RenderInputError: a request that cannot be drawn; nothing is drawn then.
            GpuLostError: the GPU draws no more, or has given nothing for `hang_s`.
            Stopped: it was closed.
        """
        for request in requests:
            request.check()  # here: a launch is not to fail for one of many
        asker, now_s = threading.get_ident(), self._clock.now_s()
        wanted = [_Wanted(request, asker, now_s) for request in requests]
        with self._changed:
            if self._lost:
                raise GpuLostError(self._lost)
            if self._closed:
                raise Stopped("the GPU renderer was closed")
            if self._thread is None:
                raise RuntimeError("GPU renderer: asked to draw before it was started")
            self._gathering.asked(asker, now_s=now_s)
            self._waiting.extend(wanted)
            self._changed.notify_all()
        pictures = []
        for one in wanted:
            if not one.settled.wait(self._hang_s):
                self._lose(f"it gave no picture within {self._hang_s:g} s")
            if one.failure is not None:
                raise one.failure()
            assert one.picture is not None  # settled without a failure
            pictures.append(one.picture)
        return pictures

    def close(self) -> None:
        """Ends the thread, and what draws with it; who waits hears `Stopped`.

        A GPU that hangs is left behind after half a second. A second time, or unstarted, it is safe.
        """
        with self._changed:
            first, self._closed = not self._closed, True
            self._fail(self._waiting, lambda: Stopped("the GPU renderer was closed"))
            self._waiting.clear()
            self._changed.notify_all()
        if not first:
            return
        if self._thread is None:
            self._release()
            return
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.error("%s did not end within %.1f s and is left behind", self.name, _JOIN_S)
            with self._changed:
                self._fail(self._drawing, lambda: Stopped("the GPU renderer was closed"))

    # The thread's side --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._gather():
                self._draw_batch(batch)
        except BaseException:  # a thread's outermost frame
            log.exception("the thread that draws on the GPU failed")
            self._lose("its thread failed, the log says why")
        finally:
            self._release()

    def _gather(self) -> list[_Wanted]:
        """Returns what is drawn next, oldest first; nothing once it is over."""
        with self._changed:
            while not self._closed and not self._lost:
                waiting = [(wanted.asker, wanted.asked_s) for wanted in self._waiting]
                wait_s = self._gathering.wait_s(waiting, now_s=self._clock.now_s())
                if wait_s == 0.0:
                    count = min(len(self._waiting), self._gathering.most_frames)
                    self._drawing = [self._waiting.popleft() for _ in range(count)]
                    return self._drawing
                self._changed.wait(wait_s)
            return []

    def _draw_batch(self, batch: list[_Wanted]) -> None:
        from cuda_kernels.cuda_module import CudaError

        try:
            pictures = self._renderer.render([wanted.request for wanted in batch])
        except CudaError as error:
            self._lose(str(error))
            return
        except Exception as error:
            log.exception(
                "drawing %d frames on the GPU failed, and that is a fault of the program", len(batch)
            )
            text = f"drawing on the GPU failed: {error}"
            with self._changed:
                self._fail(batch, lambda: RuntimeError(text))
                self._drawing = []
            return
        with self._changed:
            self._drawing = []
            if not self._lost:
                for wanted, picture in zip(batch, pictures, strict=True):
                    wanted.picture = picture
                    wanted.settled.set()
        self._observe(len(batch), self._renderer.kernel_ms)

    def _lose(self, reason: str) -> None:
        with self._changed:
            if self._lost:
                return
            self._lost = reason
            self._fail([*self._drawing, *self._waiting], lambda: GpuLostError(reason))
            self._waiting.clear()
            self._changed.notify_all()
            call = self._on_lost
        log.error("%s draws no more: %s; start anew to draw on it again", self.name, reason)
        if call is not None:
            call(reason)

    @staticmethod
    def _fail(unsettled: Sequence[_Wanted] | deque[_Wanted], failure: Callable[[], Exception]) -> None:
        for wanted in unsettled:
            if not wanted.settled.is_set():
                wanted.failure = failure
                wanted.settled.set()

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
        self.scene = scene
        self._gpu = gpu
        self._loaded = gpu.load(scene)
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
        from cuda_kernels.cuda_raymarcher import FrameRequest

        request = FrameRequest(
            scene=self._loaded, c2w=c2w, condition=condition, size_px=size_px, region_px=region_px, out=out
        )
        return self._gpu.draw([request])[0]

    def render_i420(self, *, c2w: F32, condition: F32, size_px: int) -> U8:
        """Returns (size * 3 / 2, size) uint8 planar I420, BT.601, limited range; the size is even.

        Raises:
            RenderInputError, GpuLostError, Stopped: see `GpuRenderer.draw`.
        """
        return self._gpu.draw([self._finished(c2w, condition, size_px)])[0]

    def frame_ms(self, *, poses: F32, condition: F32, size_px: int) -> float:
        """Returns what a finished picture takes the GPU and its thread, as one of several in a launch.

        Args:
            poses: (P, 4, 4) the head's path; pictures are spread over it.
            condition: (C,).
            size_px: side of the picture, even.
        """
        numbers = [len(poses) * number // _MEASURED_FRAMES for number in range(_MEASURED_FRAMES)]
        requests = [self._finished(poses[number], condition, size_px) for number in numbers]
        clock, spent_s = SystemClock(), []
        self._gpu.draw(requests)  # buffers and background are made
        for _ in range(_MEASUREMENTS):  # the fastest counts: a moment's noise is not the machine
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
        """Gives back what the scene takes up; a second time it does nothing."""
        if not self._closed:
            self._closed = True
            self._gpu.unload(self._loaded)

    def _finished(self, c2w: F32, condition: F32, size_px: int) -> FrameRequest:
        from cuda_kernels.cuda_raymarcher import FrameRequest

        return FrameRequest(scene=self._loaded, c2w=c2w, condition=condition, size_px=size_px, i420=True)


def open_gpu(
    device: DeviceName,
    *,
    say: Callable[[str], None],
    observe: Callable[[int, float], None] = lambda frames, kernel_ms: None,
) -> GpuRenderer | None:
    """Returns what draws on the first GPU, started; None where the CPU draws.

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
