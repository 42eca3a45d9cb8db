"""The render pipeline: chunks of sound in, frames with their sound out; one media clock, three threads.

    push_audio -> [audio] -> motion -> [poses and conditions] -> render -> [drawings] -> finish -> [frames]

Every queue is bounded in milliseconds of media. Files block their producer, so nothing is lost; live sound
drops the oldest, so nothing is late. A frame depends on its samples and its number alone, never on how the
sound was cut into chunks or on how fast the machine is.

With deadlines, a frame that cannot meet its own is skipped before it is drawn, and a frame is begun only when
the next stage is ready to take it: what is drawn is given out, however slow a stage is.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_kernels.arrays import F32, U8
from models.speaker import Speaker
from models.time_base import FRAME_MS, SAMPLE_RATE_HZ

from ..errors import GpuLostError, NetworkFailureError, Stopped
from .checked_networks import checked
from .clock import MediaClock, MonotonicClock, SystemClock, samples_to_ms
from .frame_renderer import Drawing, FrameRenderer
from .head_poses import PoseLoop
from .i420 import to_rgb
from .landmarks import DrawnLandmarks, FrameWindows
from .networks import SpeakerNetworks, open_networks
from .pcm_motion import MovedFrame, frames_at_once
from .queues import Aborted, BoundedQueue, Ended, Overflow
from .stage_times import StageTimes

log = logging.getLogger(__name__)

CHUNK_SAMPLES = 20 * SAMPLE_RATE_HZ // 1000  # pushed sound is queued in chunks of this
_JOIN_S = 10.0
_RECENT_DRAWINGS = 5  # whose median predicts the next: one stall is not the machine


@dataclass(frozen=True, kw_only=True)
class QueueBounds:
    """Bound of the queue before each stage, in milliseconds of media."""

    audio_ms: float = 400.0
    conditions_ms: float = 200.0
    drawings_ms: float = 120.0
    frames_ms: float = 200.0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One finished frame."""

    index: int  # it belongs to samples [640 index, 640 (index + 1))
    picture: U8  # (size * 3 / 2, size) planar I420, BT.601, limited range: what encoders take
    sound: F32  # (640,) 16 kHz mono
    landmarks: F32  # (68, 3) as drawn: smoothed, with blinks
    windowed_s: float  # when its look-ahead was complete, on the pipeline's clock
    finished_s: float  # when the picture was done
    draw_ms: float  # what the raymarcher took
    render_px: int  # render size that was asked for
    drawn_px: int  # side of what the raymarcher drew
    drawn_share: float  # of the picture, that it drew; 1.0: the whole

    def rgb(self) -> U8:
        """Returns the picture as (size, size, 3) uint8 RGB."""
        return to_rgb(self.picture)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    epoch: int
    start_sample: int
    samples: F32


@dataclass(frozen=True, kw_only=True)
class _Conditioned:
    epoch: int
    index: int
    pose: int
    blinking: bool
    c2w: F32
    condition: F32
    sound: F32
    landmarks: F32
    windowed_s: float


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    of: _Conditioned
    drawing: Drawing
    render_px: int
    begun_s: float
    draw_ms: float


class Pipeline:
    """Turns one stream of sound into frames; one thread pushes, another iterates."""

    def __init__(
        self,
        speaker: Speaker,
        renderer: FrameRenderer,
        *,
        networks: SpeakerNetworks | None = None,
        overflow: Overflow = Overflow.BLOCK,
        bounds: QueueBounds | None = None,
        seed: int = 0,
        times: StageTimes | None = None,
        clock: MonotonicClock | None = None,
        outlives_gpu: bool = False,
        deadline_s: Callable[[int], float] | None = None,
        on_network_failure: Callable[[NetworkFailureError], None] | None = None,
    ) -> None:
        """Builds the stages; `start` sets them going.

        Args:
            speaker: who talks. renderer: draws; used by the pipeline's threads alone from here on. networks:
            the speaker's; opened by default. overflow: `BLOCK` for files, `DROP_OLDEST` for live sound.
            bounds: of the queues; frames that one run of the networks gives at once have room besides. seed:
            picks the blinks. times: where working times are added up. clock: tells when a frame passed a
            stage. outlives_gpu: drop frames while the GPU is lost, until there is another `renderer`, instead
            of failing. deadline_s: says when a frame has to be finished and handled by who iterates, on
            `clock`; of live
                frames the oldest that can be is drawn next, the newest where none can.
            on_network_failure: told each run of a network that fails; the last good landmarks or condition
                hold meanwhile, the neutral face where there are none. None: it fails the pipeline.
        """
        bounds = bounds or QueueBounds()
        self.times = times or StageTimes()
        self.renderer = renderer
        """Draws the next frame; may be changed between any two, from any thread."""
        self._now = clock or SystemClock()
        self._outlives_gpu = outlives_gpu
        self._deadline_s = deadline_s
        self.handling_s = 0.0
        """Seconds that the consumer needs for a frame before its deadline; the consumer keeps it."""
        self._done_after_s: deque[float] = deque(maxlen=_RECENT_DRAWINGS)  # of being begun
        networks = checked(speaker, networks or open_networks(speaker))
        self._on_network_failure = on_network_failure
        self._failing: dict[str, str] = {}
        self._landmarks_held = np.asarray(speaker.motion.landmark_mean, np.float32).reshape(-1)
        self._condition_held = np.zeros(speaker.condition.size, np.float32)
        self._condition_engine, self._condition_file = networks.condition, speaker.condition_onnx.name
        self._motion = networks.motion_stream(speaker.motion)
        self._landmarks = DrawnLandmarks(speaker, seed=seed)
        self._windows = FrameWindows(
            window_frames=speaker.condition.window_frames,
            lookahead_frames=speaker.condition.lookahead_frames,
        )
        self._poses = PoseLoop(speaker.poses)
        # Frames whose condition window is not whole yet, and when their last sound came.
        self._waiting: list[tuple[MovedFrame, F32, float]] = []
        self._clock = MediaClock()
        self._epoch = 0
        self._window_came_s = 0.0
        self._audio: BoundedQueue[_Chunk] = BoundedQueue(
            name="audio",
            bound_ms=bounds.audio_ms,
            overflow=overflow,
            duration_ms=lambda chunk: samples_to_ms(len(chunk.samples)),
        )

        def frames(name: str, bound_ms: float) -> BoundedQueue[Any]:
            return BoundedQueue(
                name=name, bound_ms=bound_ms, overflow=overflow, duration_ms=lambda _: FRAME_MS
            )

        # Beyond the one that each bound has room for.
        at_once_ms = FRAME_MS * (frames_at_once(speaker.motion) - 1)
        self._conditions: BoundedQueue[_Conditioned] = frames("conditions", bounds.conditions_ms + at_once_ms)
        self._drawings: BoundedQueue[_Drawn] = frames("drawings", bounds.drawings_ms)
        self._frames: BoundedQueue[tuple[int, Frame]] = frames("frames", bounds.frames_ms)
        self._queues: tuple[BoundedQueue[Any], ...] = (
            self._audio,
            self._conditions,
            self._drawings,
            self._frames,
        )
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._failure_lock = threading.Lock()
        self._closed = False

    @property
    def dropped(self) -> dict[str, int]:
        """Items dropped by each full queue."""
        return {queue.name: queue.dropped for queue in self._queues}

    @property
    def network_failures(self) -> dict[str, str]:
        """Why each network that fails now does, by its file; empty while all of them work."""
        return dict(self._failing)

    def start(self) -> None:
        """Starts the stages' threads."""
        if self._threads or self._closed:
            raise RuntimeError("pipeline: started twice, or after it was closed")
        for name, stage, after in (
            ("motion", self._run_motion, self._conditions),
            ("render", self._run_render, self._drawings),
            ("finish", self._run_finish, self._frames),
        ):
            self._spawn(name, stage, after.end)

    def start_feed(self, chunks: Iterable[F32]) -> None:
        """Pushes chunks from a thread of its own until they end; for files, where pushing waits."""

        def feed() -> None:
            blocks = iter(chunks)
            while True:
                with self.times.of("decode"):
                    block = next(blocks, None)
                if block is None:
                    return
                self.push_audio(block)

        self._spawn("decode", feed, self.end_audio)

    def push_audio(self, chunk: F32) -> None:
        """Takes the next samples (n,) float32 in [-1, 1], 16 kHz mono. Waits for room in a file run.

        Raises:
            Stopped: the pipeline was closed or a stage failed; iterating says why.
        """
        for at in range(0, len(chunk), CHUNK_SAMPLES):
            piece = np.array(chunk[at : at + CHUNK_SAMPLES], np.float32)  # the caller may reuse its memory
            start = self._clock.advance(len(piece))
            try:
                self._audio.put(_Chunk(epoch=self._epoch, start_sample=start, samples=piece))
            except Aborted:
                raise Stopped("the pipeline was closed") from None

    def end_audio(self) -> None:
        """Ends the sound: the frames that still have some are drawn, then the pipeline ends."""
        self._audio.end()

    def clear_buffer(self) -> None:
        """Flushes all that has not been given out yet; the media clock goes on.

        Call it from the thread that pushes. The next frame is the one of the next sample pushed.
        """
        self._epoch += 1
        for queue in self._queues:
            queue.clear()

    def next_frame(self, timeout_s: float | None = None) -> Frame | None:
        """Returns the next frame, None at the end.

        Raises:
            TimeoutError: nothing came within `timeout_s`.
            Stopped: the pipeline was closed.
            Exception: what a stage failed with.
        """
        while True:
            try:
                epoch, frame = self._frames.get(timeout_s)
            except Ended:
                self._raise_failure()
                return None
            except Aborted:
                self._raise_failure()
                raise Stopped("the pipeline was closed") from None
            if epoch == self._epoch:
                return frame

    def __iter__(self) -> Iterator[Frame]:
        """Yields frames until the sound has ended and every frame with sound was given out."""
        while (frame := self.next_frame()) is not None:
            yield frame

    def close(self) -> None:
        """Stops all stages and waits for their threads; a second time, or unstarted, it does nothing."""
        self._closed = True
        for queue in self._queues:
            queue.abort()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                log.error("thread %s did not end within %.0f s", thread.name, _JOIN_S)
        self._threads.clear()

    def __enter__(self) -> Pipeline:
        """Starts the pipeline."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the pipeline."""
        self.close()

    # Stages -------------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Callable[[], None], done: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guard, args=(work, done), name=f"geneface-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        try:
            work()
            done()
        except (Aborted, Stopped):
            pass
        except BaseException as failure:  # noqa: BLE001 - a thread's outermost frame: raised to the consumer
            with self._failure_lock:
                self._failure = self._failure or failure
            for queue in self._queues:
                queue.abort()

    def _raise_failure(self) -> None:
        with self._failure_lock:
            failure = self._failure
        if failure is not None:
            raise failure

    def _run_motion(self) -> None:
        epoch = 0
        while True:
            try:
                chunk = self._audio.get()
            except Ended:
                break
            if chunk.epoch != self._epoch:
                continue
            if chunk.epoch != epoch:  # the buffer was cleared: nothing from before may be heard or drawn
                epoch = chunk.epoch
                self._motion.restart(chunk.start_sample)
                self._windows.reset()
                self._waiting.clear()
            # Live sound that was dropped leaves a gap: silence takes its place, and the clock stays true.
            self._window_came_s = self._now.now_s()
            self._take_motion(epoch, self._motion.skip_to(chunk.start_sample))
            self._take_motion(epoch, self._motion.push(chunk.samples))
        if epoch != self._epoch:
            return
        self._take_motion(epoch, self._motion.finish())
        for ready in self._windows.finish():
            self._condition(epoch, ready)

    def _take_motion(self, epoch: int, frames: Iterator[MovedFrame]) -> None:
        while True:
            with self.times.of("motion"):  # the networks run as the next frame is asked for
                moved = next(frames, None)
                if moved is None:
                    return
                normalized = self._landmarks.step(moved.frame, self._usable(moved))
            self._waiting.append((moved, normalized, self._window_came_s))
            for ready in self._windows.push(normalized):
                self._condition(epoch, ready)

    def _usable(self, moved: MovedFrame) -> F32:
        """Returns a frame's landmarks, the last good ones where the networks failed."""
        if moved.failure is not None:
            self._network_failed(moved.failure)
        else:
            self._landmarks_held = moved.landmarks
            for name in [name for name in self._failing if name != self._condition_file]:
                del self._failing[name]
        return self._landmarks_held

    def _network_failed(self, failure: NetworkFailureError) -> None:
        if self._on_network_failure is None:
            raise failure
        self._failing[failure.network] = str(failure)
        self._on_network_failure(failure)

    def _condition(self, epoch: int, window: F32) -> None:
        of, normalized, windowed_s = self._waiting.pop(0)
        index = of.frame
        with self.times.of("condition"):
            try:
                condition = self._condition_engine.run({"window": np.ascontiguousarray(window, np.float32)})
            except NetworkFailureError as failure:
                self._network_failed(failure)
                condition = self._condition_held
            else:
                self._condition_held = condition
                self._failing.pop(self._condition_file, None)
        pose, c2w = self._poses.at(index)
        self._conditions.put(
            _Conditioned(
                epoch=epoch,
                index=index,
                pose=pose,
                blinking=self._landmarks.last_blink >= self._windows.first_of(index),
                c2w=c2w,
                condition=condition,
                sound=of.sound,
                landmarks=self._landmarks.restore(normalized),
                windowed_s=windowed_s,
            )
        )

    def _next_to_draw(self, waiting: Sequence[_Conditioned]) -> int:
        """Returns the index of the oldest frame that can meet its deadline, of the newest where none can."""
        assert self._deadline_s is not None
        done_s = self._now.now_s() + self.handling_s
        if spent_s := list(self._done_after_s):  # at once: another thread adds to it
            done_s += statistics.median(spent_s)
        for place, item in enumerate(waiting):
            if done_s <= self._deadline_s(item.index):
                return place
        return len(waiting) - 1

    def _run_render(self) -> None:
        choose = None if self._deadline_s is None else self._next_to_draw
        while True:
            if choose is not None:
                self._drawings.wait_empty()
            try:
                item = self._conditions.get(choose=choose)
            except Ended:
                return
            if item.epoch != self._epoch:
                continue
            renderer, start_s = self.renderer, self._now.now_s()
            try:
                with self.times.of("render"):
                    drawing = renderer.draw(
                        c2w=item.c2w, condition=item.condition, pose=item.pose, blinking=item.blinking
                    )
            except GpuLostError:
                if not self._outlives_gpu:
                    raise
                continue
            draw_ms = (self._now.now_s() - start_s) * 1000
            self._drawings.put(
                _Drawn(
                    of=item,
                    drawing=drawing,
                    render_px=renderer.render_px,
                    begun_s=start_s,
                    draw_ms=draw_ms,
                )
            )

    def _run_finish(self) -> None:
        while True:
            if self._deadline_s is not None:
                self._frames.wait_empty()
            try:
                drawn = self._drawings.get()
            except Ended:
                return
            item = drawn.of
            if item.epoch != self._epoch:
                continue
            with self.times.of("compose"):
                picture = drawn.drawing.finish()
            frame = Frame(
                index=item.index,
                picture=picture,
                sound=item.sound,
                landmarks=item.landmarks,
                windowed_s=item.windowed_s,
                finished_s=self._now.now_s(),
                draw_ms=drawn.draw_ms,
                render_px=drawn.render_px,
                drawn_px=drawn.drawing.drawn_px,
                drawn_share=drawn.drawing.drawn_share,
            )
            self._done_after_s.append(frame.finished_s - drawn.begun_s)
            self._frames.put((item.epoch, frame))
