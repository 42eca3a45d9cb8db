"""A speaker ready to speak: networks open, kernels compiled, costs known."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.speaker import Speaker, load_speaker

from ..errors import GpuLostError, InputError
from .clock import CpuClock, MonotonicClock
from .compute_settings import ComputeSettings
from .frame_cost import FrameCostMeter
from .frame_renderer import FrameRenderer
from .gpu_renderer import GpuRaymarcher, GpuRenderer
from .networks import SharedFeatures, SpeakerNetworks, open_networks
from .onnx_engine import CPU
from .plates import PlateMemory, Plates
from .render_size import (
    FRAME_BUDGET_MS,
    HEADROOM,
    MIN_OVER_PLATES_PX,
    MIN_RENDER_PX,
    RENDER_SIZES_PX,
    FrameCost,
    RenderSize,
    choose_render_size,
    pixels_of_a_picture,
)
from .renderers import (
    AnyRaymarcher,
    OpenRaymarcher,
    choose_raymarcher,
    device_of,
    make_renderer,
    open_cpu_raymarcher,
)

log = logging.getLogger(__name__)

_LIVE_SHARE = 0.6  # of a frame's time: the rest is for WebRTC, and for a browser on the same machine


class SpeakerOpening:
    """Opens a speaker step by step; `LoadedSpeaker.of` takes all steps."""

    def __init__(
        self,
        speaker: Speaker,
        compute: ComputeSettings,
        *,
        open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
        gpu: GpuRenderer | None = None,
        shared: SharedFeatures | None = None,
        plate_memory: PlateMemory | None = None,
        say: Callable[[str], None] = log.warning,
        clock: MonotonicClock | None = None,
        cpu: CpuClock | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            speaker: who is opened.
            compute: engine, device and how much of the machine.
            open_raymarcher: opens what draws on the CPU.
            gpu: draws, unless it cannot draw this speaker or is lost; None: the CPU draws.
            shared: feature networks that speakers of this process share.
            plate_memory: plates that speakers of this process have in memory.
            say: told what a person should know of the choices, line by line.
            clock: measures what a GPU does.
            cpu: measures what the CPU does.
        """
        self.speaker = speaker
        self.cores = compute.usable_cores
        self._compute = compute
        self._open_raymarcher = open_raymarcher
        self._gpu, self._shared, self._say = gpu, shared, say
        self._clock, self._cpu = clock, cpu
        self._networks: SpeakerNetworks | None = None
        self._raymarcher: AnyRaymarcher | None = None
        self._plate_memory = plate_memory or PlateMemory(compute.plates_mb)
        self._plates: Plates | None = None

    @property  # a cached_property of Python 3.11 has one lock, at which all speakers would wait for one
    def networks(self) -> SpeakerNetworks:
        """The speaker's networks, opened when they are asked for.

        Raises:
            EngineError: a network does not fit the bundle, or cannot run as asked for.
        """
        if self._networks is None:
            self._networks = open_networks(
                self.speaker, self._compute.engines, say=self._say, shared=self._shared
            )
        return self._networks

    def warm_up(self) -> float:
        """Opens the raymarcher and returns the seconds it took to be ready.

        Raises:
            SceneError: the speaker cannot be drawn.
            InputError: the GPU was asked for and cannot draw this speaker.
            GpuLostError: the GPU failed meanwhile; a second call chooses anew.

        A GPU is ready once it holds the plates, so that a frame's cost is known.
        """
        self._close_raymarcher()
        self._raymarcher = choose_raymarcher(
            self.speaker,
            threads=self._compute.drawing_threads,
            device=self._compute.device,
            gpu=self._gpu,
            say=self._say,
            open_raymarcher=self._open_raymarcher,
        )
        spent_s = self._raymarcher.warm_up()
        if isinstance(self._raymarcher, GpuRaymarcher):
            self._load_plates(self._raymarcher)
        return spent_s

    def _load_plates(self, gpu: GpuRaymarcher) -> None:
        """Gives the GPU the plates; where it does not draw over them, they are let go."""
        from cuda_kernels.cuda_module import CudaError

        if self._compute.render_px not in (None, self.speaker.image_size_px):
            self._close_plates()
        elif self.wait_for_plates() and self._plates is not None:
            try:
                gpu.load_plates(self._plates.pictures, self._plates.masks.whole)
            except CudaError as error:
                self._say(f"{gpu.device} draws {self.speaker.name} without plates: {error}")
                self._close_plates()

    @property
    def raymarcher(self) -> AnyRaymarcher:
        """The raymarcher; after `warm_up`."""
        assert self._raymarcher is not None
        return self._raymarcher

    def open_plates(self, *, say: Callable[[str], None] | None = None) -> None:
        """Begins to read the plates, where there are some and there is room.

        Args:
            say: told in one line why they are left out; None: who is told of the other choices.
        """
        self._close_plates()
        self._plates = self._plate_memory.open(self.speaker, say=say or self._say)

    def wait_for_plates(self) -> bool:
        """Returns whether there are plates to draw over; waits until they are read, or cannot be."""
        return self.plates is not None and self.plates.wait()

    @property
    def plates(self) -> Plates | None:
        """The plates that are drawn over, read or not yet; None where there are none."""
        if self._plates is not None and self._plates.failure:
            self._close_plates()
        return self._plates

    @property
    def is_warm(self) -> bool:
        """Whether there is something that draws."""
        return self._raymarcher is not None

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU draws."""
        return isinstance(self._raymarcher, GpuRaymarcher)

    @property
    def threads(self) -> int:
        """Threads that draw; of a GPU, the one that all share."""
        return 1 if self.on_gpu else self._compute.drawing_threads

    @property
    def device(self) -> str:
        """The rendering device, for display."""
        return device_of(self.raymarcher, threads=self.threads)

    @functools.cached_property
    def _meter(self) -> FrameCostMeter:
        return FrameCostMeter(
            self.speaker,
            self.networks,
            lambda size_px: _measured_renderer(self.speaker, self.raymarcher, size_px, self.plates),
            threads=self._compute.drawing_threads,
            cores=self.cores,
            clock=self._clock,
            cpu=self._cpu,
        )

    @property
    def pixels(self) -> Callable[[int], float]:
        """Says how many pixels are drawn at a size."""
        return _pixels(self.plates)

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The sizes there are to choose from, largest first."""
        largest_px, smallest_px = self.speaker.image_size_px, MIN_RENDER_PX
        if self.plates is not None:
            smallest_px = MIN_OVER_PLATES_PX
        return tuple(size for size in RENDER_SIZES_PX if smallest_px <= size <= largest_px) or (largest_px,)

    @property
    def motion_ms(self) -> float:
        """Time of features and motion network a frame."""
        return self._meter.motion_ms

    @property
    def motion_limit_ms(self) -> float:
        """Limit of that time to speak live.

        A motion that is late once stays late, since its sound waits. Features that the CPU works out take all
        of its cores, so what draws needs as much time again.
        """
        limit_ms = FRAME_BUDGET_MS * _LIVE_SHARE
        features = self.networks.features
        return limit_ms / 2 if features is not None and features.device == CPU else limit_ms

    def measure(self, size_px: int) -> FrameCost:
        """Returns the cost of a frame drawn at a size, measured on a few; after `warm_up`."""
        self._meter.threads = 0 if self.on_gpu else self.threads
        return self._meter.measure(size_px)

    def measure_together(self, size_px: int) -> float:
        """Returns the milliseconds a frame takes of a GPU that draws several at once."""
        assert isinstance(self._raymarcher, GpuRaymarcher)
        return self._raymarcher.frame_ms(
            poses=self.speaker.poses, condition=self._meter.neutral, size_px=size_px
        )

    def make_renderer(self, size_px: int) -> FrameRenderer:
        """Returns a renderer of a size; after `warm_up`."""
        return make_renderer(self.speaker, self.raymarcher, size_px, self.plates)

    def close(self) -> None:
        """Ends the raymarcher's threads and gives the plates back; twice, or unopened, it is safe."""
        self._close_raymarcher()
        self._close_plates()

    def _close_raymarcher(self) -> None:
        raymarcher, self._raymarcher = self._raymarcher, None
        if raymarcher is not None:
            raymarcher.close()

    def _close_plates(self) -> None:
        plates, self._plates = self._plates, None
        if plates is not None:
            plates.close()


@dataclass(frozen=True, kw_only=True)
class LoadedSpeaker:
    """An open speaker that streams share; immutable."""

    speaker: Speaker
    networks: SpeakerNetworks
    raymarcher: AnyRaymarcher
    sizes_px: tuple[int, ...]  # that may be drawn, largest first
    start_px: int
    costs: dict[int, FrameCost]  # measured, by size; the smallest and `start_px` among them where it is live
    threads: int  # that draw; of a GPU, the one that all share
    chosen: RenderSize | None = None  # of a recording: `start_px`, where what frames take chose it
    plates: Plates | None = None  # that are drawn over

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        compute: ComputeSettings,
        open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
        gpu: GpuRenderer | None = None,
        shared: SharedFeatures | None = None,
        plate_memory: PlateMemory | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> LoadedSpeaker:
        """Returns the speaker of a bundle, ready to speak live, after drawing a few frames.

        Args:
            path: of the bundle, see `models.speaker_folders.find_speaker`.
            compute: engine, device and how much of the machine.
            open_raymarcher: opens what draws on the CPU.
            gpu: draws, unless it cannot draw this speaker or is lost; None: the CPU draws.
            shared: feature networks that speakers of this process share.
            plate_memory: plates that speakers of this process have in memory.
            say: told what a person should know of the choices, line by line.

        Raises:
            BundleError, EngineError, SceneError, InputError: the bundle cannot be used.
            InputError: its motion networks are too slow here to speak live.
        """
        speaker = load_speaker(path)
        return cls.of(
            speaker,
            compute=compute,
            open_raymarcher=open_raymarcher,
            gpu=gpu,
            shared=shared,
            plate_memory=plate_memory,
            say=say,
        )

    @classmethod
    def of(
        cls,
        speaker: Speaker,
        *,
        compute: ComputeSettings,
        live: bool = True,
        open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
        gpu: GpuRenderer | None = None,
        shared: SharedFeatures | None = None,
        plate_memory: PlateMemory | None = None,
        say: Callable[[str], None] = log.warning,
        note: Callable[[str], None] = lambda _: None,
    ) -> LoadedSpeaker:
        """Returns a speaker that is read already, ready to speak; see `open`.

        Args:
            speaker: who speaks.
            compute: as of `open`.
            live: False: a recording, which may take longer than it lasts.
            open_raymarcher: as of `open`.
            gpu: as of `open`.
            shared: as of `open`.
            plate_memory: as of `open`.
            say: as of `open`.
            note: told what is got ready next.

        Raises:
            EngineError, SceneError, InputError: as of `open`.
            GpuLostError: the GPU failed before a recording began.
        """
        opening = SpeakerOpening(
            speaker,
            compute,
            open_raymarcher=open_raymarcher,
            gpu=gpu,
            shared=shared,
            plate_memory=plate_memory,
            say=say,
        )
        try:
            opening.open_plates()  # which are read meanwhile
            note("getting the networks ready ...")
            _ = opening.networks
            note("getting the kernels ready (compiled once on this machine) ...")
            while True:
                try:
                    opening.warm_up()
                    return _live(opening, compute) if live else _of_a_recording(opening, compute)
                except GpuLostError:  # a lost GPU is chosen no more
                    if not live:
                        raise
        except BaseException:
            opening.close()
            raise

    @property
    def name(self) -> str:
        """The speaker's name."""
        return self.speaker.name

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU draws."""
        return isinstance(self.raymarcher, GpuRaymarcher)

    @property
    def device(self) -> str:
        """The rendering device, for display."""
        return device_of(self.raymarcher, threads=self.threads)

    @property
    def gpu_ms(self) -> float:
        """Milliseconds of the GPU, and of the thread that waits for it, that a frame takes; 0 on the CPU."""
        return self.costs[self.start_px].render_ms if self.on_gpu else 0.0

    @property
    def frame_latency_ms(self) -> float:
        """Latency of a frame: the sum of its stages at the size it starts with."""
        return _serial_ms(self.costs[self.start_px])

    @property
    def pixels(self) -> Callable[[int], float]:
        """Says how many pixels are drawn at a size."""
        return _pixels(self.plates)

    def core_ms(self, size_px: int) -> float:
        """Returns the core-milliseconds of a frame at a size, by the nearest one that was measured."""
        nearest = min(self.costs, key=lambda known: abs(known - size_px))
        ratio = self.pixels(size_px) / self.pixels(nearest)
        return self.costs[nearest].scaled(ratio).core_ms(threads=self.threads)

    def remeasure_ms(self) -> float:
        """Returns the core-milliseconds of a frame at the smallest size, measured anew by drawing a few."""
        meter = FrameCostMeter(
            self.speaker,
            self.networks,
            lambda size_px: _measured_renderer(self.speaker, self.raymarcher, size_px, self.plates),
            threads=0 if self.on_gpu else self.threads,
            cores=self.threads,
        )
        return meter.measure(self.sizes_px[-1]).core_ms(threads=self.threads)

    def make_renderer(self, size_px: int) -> FrameRenderer:
        """Returns a renderer of its own for one stream."""
        return make_renderer(self.speaker, self.raymarcher, size_px, self.plates)

    def renderers(self) -> Callable[[int], FrameRenderer]:
        """Returns the renderers of one stream by size, each made when it is first asked for."""
        return functools.cache(self.make_renderer)

    def close(self) -> None:
        """Ends the raymarcher's threads and gives the plates back."""
        self.raymarcher.close()
        if self.plates is not None:
            self.plates.close()


def _measured_renderer(
    speaker: Speaker, raymarcher: AnyRaymarcher, size_px: int, plates: Plates | None
) -> FrameRenderer:
    """Returns a renderer to measure with: reading the plates is not waited for."""
    return make_renderer(speaker, raymarcher, size_px, None if plates is None else plates.blank())


def _pixels(plates: Plates | None) -> Callable[[int], float]:
    return pixels_of_a_picture if plates is None else plates.masks.pixels


def _live(opening: SpeakerOpening, compute: ComputeSettings) -> LoadedSpeaker:
    speaker = opening.speaker
    limit_ms = opening.motion_limit_ms
    if opening.motion_ms > limit_ms:
        raise InputError(
            f"{speaker.name}: expected motion networks that take at most {limit_ms:.0f} ms a frame, to speak "
            f"live, got {opening.motion_ms:.0f} ms here ({opening.networks.describe() or 'CPU'}); use an "
            "NVIDIA GPU with --device cuda, or make a causal student of it with `geneface-export distil`"
        )
    while True:
        plates = opening.plates
        sizes_px, start_px, costs = _live_sizes(opening, compute)
        if opening.plates is plates:  # else they turned out to be unreadable
            return LoadedSpeaker(
                speaker=speaker,
                networks=opening.networks,
                raymarcher=opening.raymarcher,
                sizes_px=sizes_px,
                start_px=start_px,
                costs=costs,
                threads=opening.threads,
                plates=plates,
            )


def _live_sizes(
    opening: SpeakerOpening, compute: ComputeSettings
) -> tuple[tuple[int, ...], int, dict[int, FrameCost]]:
    """Returns the sizes that may be drawn, the one to begin with, and what was measured."""
    speaker = opening.speaker
    costs: dict[int, FrameCost] = {}

    def measure(size_px: int) -> FrameCost:
        cost, known = opening.measure(size_px), costs.get(size_px)
        if known is None or _serial_ms(cost) < _serial_ms(known):  # noise only adds
            costs[size_px] = cost
        return cost

    if opening.on_gpu:
        start_px = compute.render_px or speaker.image_size_px
        sizes: tuple[int, ...] = (start_px,)  # smaller ones would gain little
        cost = measure(start_px)
        if start_px == speaker.image_size_px:
            costs[start_px] = dataclasses.replace(cost, render_ms=opening.measure_together(start_px))
    elif compute.render_px is not None:
        start_px, sizes = compute.render_px, (compute.render_px,)
        measure(start_px)
    else:
        sizes = opening.sizes_px
        start_px = choose_render_size(
            measure,
            largest_px=speaker.image_size_px,
            threads=opening.threads,
            cores=opening.cores,
            sizes_px=sizes,
            budget_ms=FRAME_BUDGET_MS * _LIVE_SHARE,
            pixels=opening.pixels,
        ).size_px
        if sizes[-1] not in costs:
            measure(sizes[-1])
    return sizes, start_px, costs


def _of_a_recording(opening: SpeakerOpening, compute: ComputeSettings) -> LoadedSpeaker:
    """The size is chosen for the machine when it is free; the run steps down under load."""
    speaker, chosen = opening.speaker, None
    opening.wait_for_plates()  # the same recording gives the same pictures
    start_px = compute.render_px or speaker.image_size_px
    if compute.render_px is None and not opening.on_gpu:
        chosen = size_that_keeps_up(opening)
        start_px = chosen.size_px
    return LoadedSpeaker(
        speaker=speaker,
        networks=opening.networks,
        raymarcher=opening.raymarcher,
        sizes_px=tuple(size for size in opening.sizes_px if size <= start_px) or (start_px,),
        start_px=start_px,
        costs={} if chosen is None or chosen.cost is None else {start_px: chosen.cost},
        threads=opening.threads,
        chosen=chosen,
        plates=opening.plates,
    )


def size_that_keeps_up(opening: SpeakerOpening) -> RenderSize:
    """Returns the render size for this machine, from drawing, scaling and encoding a few real frames.

    Where the networks alone are slower than the sound, no size keeps up, and the largest is drawn.
    """
    largest_px, threads, cores = opening.speaker.image_size_px, opening.threads, opening.cores
    if opening.motion_ms > FRAME_BUDGET_MS:
        frame_ms = opening.measure(largest_px).frame_ms(threads=threads, cores=cores)
        return RenderSize(size_px=largest_px, frame_ms=frame_ms, keeps_up=False)
    return choose_render_size(
        opening.measure,
        largest_px=largest_px,
        threads=threads,
        cores=cores,
        sizes_px=opening.sizes_px,
        budget_ms=FRAME_BUDGET_MS * HEADROOM,
        pixels=opening.pixels,
    )


def _serial_ms(cost: FrameCost) -> float:
    return cost.render_ms + cost.other_ms + cost.burst_ms
