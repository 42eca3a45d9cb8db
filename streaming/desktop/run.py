"""Desktop run: this machine's microphone in, a preview window out, by the live pipeline without WebRTC."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cuda_kernels.arrays import U8
from models.speaker_folders import find_speaker
from models.speaker_settings import read_settings
from models.time_base import FRAME_RATE_HZ, FRAME_S

from ..errors import NetworkFailureError
from ..pipeline.clock import MonotonicClock, SystemClock
from ..pipeline.frame_renderer import FrameRenderer
from ..pipeline.gpu_renderer import open_gpu
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.pcm_motion import frames_at_once
from ..pipeline.pipeline import Frame, Pipeline
from ..pipeline.queues import Overflow
from ..pipeline.renderers import OpenRaymarcher, open_cpu_raymarcher
from ..session.playout_delay import playout_delay_ticks_for
from ..session.resolution_controller import ResolutionController
from ..settings import DEFAULT_MICROPHONE, StreamSettings
from ..webrtc.media_schedule import TICK_S
from .microphone import InputDevice, LocalMicrophone, find_device
from .preview import PreviewWindow

log = logging.getLogger(__name__)

_POLL_S = 0.02  # of the window's events, at most
_LAGS = 2 * FRAME_RATE_HZ
_MAX_WAITING = 8  # frames that are ready but not due
_TITLE_EVERY_S = 1.0
_NOT_DRAWINGS = "frames"  # the queue that fills when the window is slow, not the raymarcher


class Frames(Protocol):
    """A source of frames: a `Pipeline`."""

    renderer: FrameRenderer

    @property
    def dropped(self) -> dict[str, int]:
        """Items dropped by each full queue."""

    def next_frame(self, timeout_s: float | None = None) -> Frame | None:
        """Returns the next frame, None at the end; raises TimeoutError, or what a stage failed with."""


class Window(Protocol):
    """A display of frames: a `PreviewWindow`."""

    def set_title(self, title: str) -> None:
        """Changes the title."""

    def show(self, picture: U8) -> None:
        """Shows a picture, I420."""

    def poll(self) -> bool:
        """Returns False once the user closed it."""


class PlayoutClock:
    """Presentation times: evenly spaced, with the least delay that the last two seconds allow.

    Devices give sound in bursts, so frames come in bursts too; shown as they come they would judder.
    """

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=_LAGS)

    def due_s(self, *, index: int, ready_s: float) -> float:
        """Returns when frame `index`, ready at `ready_s`, is to be shown."""
        self._lags_s.append(ready_s - index * FRAME_S)
        return index * FRAME_S + max(self._lags_s)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Counts of frames shown, and of frames skipped for a newer one that was due."""

    frames: int
    stale: int


def show_frames(
    frames: Frames,
    window: Window,
    *,
    name: str,
    resolution: ResolutionController,
    renderer_of: Callable[[int], FrameRenderer],
    playout_delay_s: float,
    stopped: Callable[[], bool],
    clock: MonotonicClock | None = None,
) -> Shown:
    """Shows each frame when it is due until there are no more, the window is closed, or `stopped` says so.

    Args:
        frames: gives them; its renderer is changed as the resolution says.
        window: shows them.
        name: of the speaker, for the title.
        resolution: told what frames took.
        renderer_of: gives what draws at a size.
        playout_delay_s: how long after its look-ahead a frame should be ready.
        stopped: asked at least every 0.02 s.
        clock: of the frames' times.
    """
    clock = clock or SystemClock()
    playout, titles = PlayoutClock(), _Titles(window, name, clock)
    waiting: deque[tuple[float, Frame]] = deque()
    shown = stale = lost = 0
    while not stopped() and window.poll():
        now_s = clock.now_s()
        newest: Frame | None = None
        while waiting and (waiting[0][0] <= now_s or len(waiting) > _MAX_WAITING):
            stale += newest is not None
            newest = waiting.popleft()[1]
        if newest is not None:
            window.show(newest.picture)
            shown += 1
        titles.update(shown, resolution.note)
        try:
            wait_s = min(waiting[0][0] - now_s, _POLL_S) if waiting else _POLL_S
            frame = frames.next_frame(max(wait_s, 0.0))
        except TimeoutError:
            continue
        if frame is None:
            break
        waiting.append((playout.due_s(index=frame.index, ready_s=frame.finished_s), frame))
        lost_before, lost = lost, sum(n for queue, n in frames.dropped.items() if queue != _NOT_DRAWINGS)
        changed = lost > lost_before and resolution.frame_lost(now_s=clock.now_s())
        if frame.render_px == resolution.size_px:
            slack_s = frame.windowed_s + playout_delay_s - frame.finished_s
            changed |= resolution.frame_done(
                now_s=clock.now_s(), draw_ms=frame.draw_ms, slack_ms=slack_s * 1000
            )
        if changed:
            frames.renderer = renderer_of(resolution.size_px)
    return Shown(frames=shown, stale=stale)


class _Titles:
    """Writes speaker and frame rate into the window's title, once a second."""

    def __init__(self, window: Window, name: str, clock: MonotonicClock) -> None:
        self._window, self._name, self._clock = window, name, clock
        self._since_s, self._shown = clock.now_s(), 0

    def update(self, shown: int, note: str) -> None:
        """Updates the title by the count of frames shown and the resolution's note."""
        now_s = self._clock.now_s()
        if now_s - self._since_s < _TITLE_EVERY_S:
            return
        fps = (shown - self._shown) / (now_s - self._since_s)
        self._since_s, self._shown = now_s, shown
        self._window.set_title(f"{self._name} - {fps:.0f} fps{f', {note}' if note else ''}")


class _FirstFailures:
    """Logs the first failure of each network."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def note(self, failure: NetworkFailureError) -> None:
        """Logs a failure, if it is the network's first."""
        if failure.network not in self._told:
            self._told.add(failure.network)
            log.error("%s; the last good face holds", failure)


@dataclass(frozen=True, kw_only=True)
class LiveReport:
    """Counts of a run, for its last line."""

    spent_s: float
    shown: int
    stale: int  # skipped, because a newer one was due
    dropped: dict[str, int]  # by the queue that made room
    overflows: int  # times that PortAudio lost sound
    render_px: int

    def summary(self) -> str:
        """Returns it in one line."""
        fps = self.shown / self.spent_s if self.spent_s > 0 else 0.0
        dropped = ", ".join(f"{count} {name}" for name, count in self.dropped.items() if count)
        parts = [
            f"{self.spent_s:.1f} s: {self.shown} frames shown ({fps:.1f} a second)",
            f"{self.stale} skipped as stale",
            f"dropped to keep up: {dropped or 'none'}",
            f"drawn at {self.render_px} px in the end",
        ]
        if self.overflows:
            parts.insert(3, f"sound lost before it was read {self.overflows} times")
        return ", ".join(parts)


class LiveRun:
    """Everything a local run holds, opened in the order in which it can be refused."""

    def __init__(
        self, settings: StreamSettings, *, open_raymarcher: OpenRaymarcher = open_cpu_raymarcher
    ) -> None:
        """Finds the device, opens the window, gets the speaker ready; the microphone listens only in `run`.

        Args:
            settings: `speaker`, `speakers_dir`, `mic`, `threads`, `cores`, `render_size`, `plates_mb`
                and `seed` are used.
            open_raymarcher: opens what draws on the CPU.

        Raises:
            InputError: no PortAudio, device, pygame or screen.
            UnknownSpeakerError, BundleError, EngineError, SceneError: the speaker cannot be used.
        """
        self._settings = settings
        bundle = find_speaker(settings.speaker, speakers_dir=settings.speakers_dir)
        image_size_px = read_settings(bundle).image_size_px
        self.device: InputDevice = find_device(settings.mic or DEFAULT_MICROPHONE)
        with contextlib.ExitStack() as stack:
            self._window = PreviewWindow(size_px=image_size_px, title=f"{settings.speaker}: getting ready")
            stack.callback(self._window.close)
            gpu = open_gpu(settings.device, say=log.warning)
            if gpu is not None:
                stack.callback(gpu.close)
            self.loaded = LoadedSpeaker.open(
                bundle, compute=settings.compute, open_raymarcher=open_raymarcher, gpu=gpu
            )
            stack.callback(self.loaded.close)
            self._opened = stack.pop_all()

    def describe(self) -> str:
        """Returns speaker, devices and render size in one line."""
        loaded = self.loaded
        placed = loaded.networks.describe()  # empty where the CPU runs them all
        return (
            f"{loaded.name} on {loaded.device}, {loaded.make_renderer(loaded.start_px).describe()}"
            f"{'; ' if placed else ''}{placed}; "
            f"hears {self.device}; Esc, q or Ctrl-C ends it"
        )

    def run(self, *, stopped: Callable[[], bool]) -> LiveReport:
        """Shows the speaker until the user closes the window or `stopped` says so.

        Raises:
            InputError: the device cannot be opened, or was unplugged.
        """
        loaded, clock = self.loaded, SystemClock()
        resolution = ResolutionController(
            sizes_px=loaded.sizes_px, start_px=loaded.start_px, pixels=loaded.pixels
        )
        renderer_of = loaded.renderers()
        pipeline = Pipeline(
            loaded.speaker,
            renderer_of(loaded.start_px),
            networks=loaded.networks,
            overflow=Overflow.DROP_OLDEST,
            seed=self._settings.seed,
            on_network_failure=_FirstFailures().note,
        )

        # Of frames that come at once, each has a frame's time more than the one before it.
        burst_s = FRAME_S * (frames_at_once(loaded.speaker.motion) - 1)
        playout_delay_s = playout_delay_ticks_for(loaded.frame_latency_ms) * TICK_S + burst_s
        microphone = LocalMicrophone(self.device)
        with contextlib.ExitStack() as stack:
            stack.callback(pipeline.close)
            stack.callback(microphone.close)  # first: it wakes the thread that feeds the pipeline
            pipeline.start()
            microphone.start()
            pipeline.start_feed(microphone.blocks())
            start_s = clock.now_s()
            shown = show_frames(
                pipeline,
                self._window,
                name=loaded.name,
                resolution=resolution,
                renderer_of=renderer_of,
                playout_delay_s=playout_delay_s,
                stopped=stopped,
                clock=clock,
            )
            spent_s = clock.now_s() - start_s
        return LiveReport(
            spent_s=spent_s,
            shown=shown.frames,
            stale=shown.stale,
            dropped={"microphone": microphone.dropped} | pipeline.dropped,
            overflows=microphone.overflows,
            render_px=resolution.size_px,
        )

    def close(self) -> None:
        """Closes window and speaker; a second time it does nothing."""
        self._opened.close()

    def __enter__(self) -> LiveRun:
        """Returns it, ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()
