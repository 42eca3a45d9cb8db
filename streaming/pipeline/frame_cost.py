"""Frame cost on this machine: calibrated at start, then averaged over running sessions.

CPU time counts: other programs on the same cores stretch the wall time of a stage, not its CPU time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import av
import numpy as np

from cuda_kernels.arrays import F32, U8
from models.landmark_filter import POINTS, LandmarkFilter
from models.speaker import Speaker
from models.time_base import FRAME_RATE_HZ

from .checked_networks import checked
from .clock import CpuClock, MonotonicClock, SystemClock, SystemCpuClock
from .frame_renderer import FrameRenderer
from .head_poses import PoseLoop
from .i420 import video_frame
from .networks import SpeakerNetworks, network_specs
from .onnx_engine import CPU, Engine, NetworkSpec
from .pcm_motion import frames_at_once
from .render_size import FrameCost

T = TypeVar("T")

X264_PRESET = "veryfast"  # of a recording's video
_PROBES = 3  # frames drawn at each size that is timed
# Wall time of several threads on free cores over an even share of their CPU time, at most.
_MAX_SHARING_LOSS = 1.15
MEAN_OVER_FRAMES = 125  # of running sessions: five seconds of one


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """Cost of one piece of work."""

    ms: float  # wall time, had nothing else run on the machine
    core_ms: float  # CPU time of all threads


_Judge = Callable[["_Took"], _Spent]


class FrameCostMeter:
    """Times the stages on frames of silence."""

    def __init__(
        self,
        speaker: Speaker,
        networks: SpeakerNetworks,
        make_renderer: Callable[[int], FrameRenderer],
        *,
        threads: int,
        cores: int,
        clock: MonotonicClock | None = None,
        cpu: CpuClock | None = None,
    ) -> None:
        """Runs the networks.

        Args:
            speaker: who is drawn.
            networks: the speaker's.
            make_renderer: gives what draws at a size.
            threads: of the CPU, that draw; 0: a GPU does.
            cores: that this process may use.
            clock: measures what a GPU does.
            cpu: measures what the CPU does.
        """
        self._clock = clock or SystemClock()
        self._cpu = cpu or SystemCpuClock()
        self.threads = threads
        self._cores = cores
        self._make_renderer = make_renderer
        specs, networks = network_specs(speaker), checked(speaker, networks)
        settle = LandmarkFilter(
            mean=speaker.motion.landmark_mean,
            std=speaker.motion.landmark_std,
            clamp_std=speaker.motion.clamp_std,
            ema=0.0,
        )
        self._poses = PoseLoop(speaker.poses)

        def landmarks_of_silence() -> F32:
            if networks.features is not None and specs.features is not None:
                networks.features.run(specs.features.zeros())
            rows: F32 = networks.motion.run(specs.motion.zeros()).reshape(-1, 3 * POINTS)
            return rows[-1:]

        row = settle.step(landmarks_of_silence()).reshape(1, -1)  # (1, 204)
        window = np.repeat(row, speaker.condition.window_frames, axis=0)

        def condition_of_silence() -> F32:
            return networks.condition.run({"window": window})

        engines = [(networks.motion, specs.motion)]
        if networks.features is not None and specs.features is not None:
            engines.append((networks.features, specs.features))
        hop = self._min_spent(landmarks_of_silence, engines)
        condition = self._min_spent(condition_of_silence, [(networks.condition, specs.condition)])
        at_once = frames_at_once(speaker.motion)
        self.motion_ms = hop.ms / at_once
        """Time of features and motion network a frame: a hop's share where one run moves several."""
        self._hop_ms = hop.ms
        self._nets_ms = self.motion_ms + condition.ms
        self._nets_core_ms = hop.core_ms / at_once + condition.core_ms
        self.neutral = condition_of_silence()
        """(C,) float32: the condition of silence."""
        self._encoder_ms: float | None = None

    def measure(self, size_px: int) -> FrameCost:
        """Returns the cost of a frame drawn at `size_px`."""
        renderer = self._make_renderer(size_px)
        draws, finishes, pictures = [], [], []

        for number in range(_PROBES):
            pose, c2w = self._poses.at(len(self._poses) * number // _PROBES)
            runs = []
            for _ in range(2):  # the faster counts: noise only adds
                draw = functools.partial(
                    renderer.draw, c2w=c2w, condition=self.neutral, pose=pose, blinking=False
                )
                drawn, draw_took = self._timed(draw, self._drawing)
                picture, finish_took = self._timed(drawn.finish, _on_one_thread)
                runs.append((draw_took, finish_took))
            pictures.append(picture)
            draws.append(_quicker(run[0] for run in runs))
            finishes.append(_quicker(run[1] for run in runs))
        if self._encoder_ms is None:
            self._encoder_ms = encode_ms(pictures, self._cpu)
        finish_ms = float(np.median([spent.ms for spent in finishes]))
        return FrameCost(
            render_ms=float(np.median([spent.ms for spent in draws])),
            other_ms=self._nets_ms + finish_ms + self._encoder_ms,
            burst_ms=self._hop_ms - self.motion_ms,
            render_core_ms=float(np.median([spent.core_ms for spent in draws])),
            other_core_ms=self._nets_core_ms + finish_ms + self._encoder_ms,
        )

    def _min_spent(self, work: Callable[[], object], parts: Sequence[tuple[Engine, NetworkSpec]]) -> _Spent:
        """Returns the cost of networks, the least of some runs."""
        judge: _Judge = _on_one_thread
        if any(engine.device != CPU for engine, _ in parts):
            judge = _on_a_device
        elif self._cores > 1 and any(network.is_large for _, network in parts):  # it has all cores
            judge = functools.partial(_on_a_runtime_s_threads, self._cores)
        return _quicker(self._timed(work, judge)[1] for _ in range(_PROBES))

    def _drawing(self, took: _Took) -> _Spent:
        if not self.threads:
            return _on_a_device(took)
        return _on_threads(min(self.threads, self._cores), took.wall_ms, took.thread_ms)

    def _timed(self, work: Callable[[], T], judge: _Judge) -> tuple[T, _Spent]:
        clock, cpu = self._clock, self._cpu
        start_s, thread_s, process_s = clock.now_s(), cpu.thread_s(), cpu.process_s()
        result = work()
        took = _Took(
            wall_ms=(clock.now_s() - start_s) * 1000,
            thread_ms=(cpu.thread_s() - thread_s) * 1000,
            process_ms=(cpu.process_s() - process_s) * 1000,
        )
        return result, judge(took)


@dataclass(frozen=True, kw_only=True)
class _Took:
    """Readings of the clocks over one piece of work."""

    wall_ms: float
    thread_ms: float  # CPU time of the caller, and of the raymarcher's threads for it
    process_ms: float  # of all threads of the process, whatever they did


def _on_one_thread(took: _Took) -> _Spent:
    return _Spent(ms=took.thread_ms, core_ms=took.thread_ms)


def _on_a_device(took: _Took) -> _Spent:
    """Work on a GPU counts by wall time; of the CPU, at most the waiting thread is busy."""
    return _Spent(ms=took.wall_ms, core_ms=max(took.thread_ms, min(took.process_ms, took.wall_ms)))


def _on_a_runtime_s_threads(threads: int, took: _Took) -> _Spent:
    """Threads of a runtime count by process CPU time, at most all that they can have used."""
    core_ms = max(took.thread_ms, min(took.process_ms, threads * took.wall_ms))
    return _on_threads(threads, took.wall_ms, core_ms)


def _on_threads(threads: int, wall_ms: float, core_ms: float) -> _Spent:
    """Wall time beyond an even share of the CPU time is contention with other programs."""
    shared_ms = core_ms * (_MAX_SHARING_LOSS if threads > 1 else 1.0) / threads
    return _Spent(ms=min(wall_ms, shared_ms), core_ms=core_ms)


def _quicker(runs: Iterable[_Spent]) -> _Spent:
    found = list(runs)
    return _Spent(ms=min(spent.ms for spent in found), core_ms=min(spent.core_ms for spent in found))


def encode_ms(pictures: list[U8], cpu: CpuClock) -> float:
    """Returns the CPU time that encoding one of these I420 pictures takes, start and end left out."""
    size_px = pictures[0].shape[1]
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width = context.height = size_px
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, FRAME_RATE_HZ)
    context.framerate = Fraction(FRAME_RATE_HZ)
    context.thread_count = 1
    context.options = {"preset": X264_PRESET}
    context.open()
    repeats = 3
    start_s = cpu.thread_s()  # with one thread, x264 works in the caller's
    for number, picture in enumerate(pictures * repeats):
        context.encode(video_frame(picture, number))
    context.encode(None)
    return (cpu.thread_s() - start_s) * 1000 / (len(pictures) * repeats)


class RunningCost:
    """Moving average of the CPU time of a speaker's frames in running sessions, by size. For one thread."""

    def __init__(self) -> None:
        """Begins without a session."""
        self._mean_ms: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    @property
    def known(self) -> bool:
        """Whether anything ran."""
        return bool(self._mean_ms)

    def add(self, size_px: int, *, frames: int, core_ms: float) -> None:
        """Adds `frames` frames drawn at `size_px` that took `core_ms` of CPU time each."""
        seen = min(self._seen.get(size_px, 0) + frames, MEAN_OVER_FRAMES)
        mean_ms = self._mean_ms.get(size_px, core_ms)
        self._mean_ms[size_px] = mean_ms + (core_ms - mean_ms) * min(frames / seen, 1.0)
        self._seen[size_px] = seen

    def core_ms(self, size_px: int, expected_ms: Callable[[int], float]) -> float:
        """Returns the CPU time that a frame of a size takes.

        By the nearest size that ran, scaled as was measured at the start; no more than any larger size took.

        Args:
            size_px: the size.
            expected_ms: what was measured at the start, by size; counts alone where nothing ran yet.
        """
        if not self._mean_ms:
            return expected_ms(size_px)
        nearest = min(self._mean_ms, key=lambda known: abs(known - size_px))
        scale = expected_ms(size_px) / expected_ms(nearest) if expected_ms(nearest) > 0 else 1.0
        larger = (mean_ms for known, mean_ms in self._mean_ms.items() if known >= size_px)
        return min([self._mean_ms[nearest] * scale, *larger])
