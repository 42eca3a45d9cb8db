"""A speaker ready to speak: networks open, kernels compiled, costs known; shared by its sessions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from models.speaker import Speaker, find_speaker, load_speaker

from . import file_run
from .engine import CPU
from .errors import GpuLostError, InputError
from .frame_cost import FrameCostMeter
from .gpu_rendering import GpuRaymarcher, GpuRenderer
from .media_schedule import allowance_ticks_for
from .networks import SharedFeatures, SpeakerNetworks, open_networks
from .render_size import FRAME_BUDGET_MS, RENDER_SIZES_PX, FrameCost, choose_render_size
from .renderer import FrameRenderer, Raymarcher
from .settings import SMALLEST_RENDER_PX, StreamSettings

log = logging.getLogger(__name__)

_LIVE_SHARE = 0.6  # of a frame's time: the rest is for WebRTC, and for a browser on the same machine


@dataclass(frozen=True, kw_only=True)
class SpeakerHost:
    """What the sessions of one speaker share; nothing in it changes."""

    speaker: Speaker
    networks: SpeakerNetworks
    raymarcher: Raymarcher
    sizes_px: tuple[int, ...]  # that may be drawn, largest first
    start_px: int
    costs: dict[int, FrameCost]  # measured, by size; the smallest and `start_px` among them
    threads: int  # that draw; of a GPU, the one that all share

    @classmethod
    def open(
        cls,
        settings: StreamSettings,
        name: str,
        *,
        threads: int,
        cores: int,
        say: Callable[[str], None] = log.warning,
        shared: SharedFeatures | None = None,
        gpu: GpuRenderer | None = None,
    ) -> SpeakerHost:
        """Returns a host of the speaker of that name, after drawing a few frames.

        Args:
            settings: of the run.
            name: of the speaker, or the path of its bundle.
            threads: of the raymarcher.
            cores: that this process may use.
            say: told what a person should know of the networks, line by line.
            shared: feature networks that hosts of this process share.
            gpu: draws, unless it cannot draw this speaker or is lost; None: the CPU draws.

        Raises:
            UnknownSpeakerError: no such speaker.
            BundleError, EngineError, SceneError, InputError: the bundle cannot be used.
            InputError: its motion networks are too slow here to speak live.
        """
        speaker = load_speaker(find_speaker(name, speakers_dir=settings.speakers_dir))
        return cls.of(speaker, settings, threads=threads, cores=cores, say=say, shared=shared, gpu=gpu)

    @classmethod
    def of(
        cls,
        speaker: Speaker,
        settings: StreamSettings,
        *,
        threads: int,
        cores: int,
        say: Callable[[str], None] = log.warning,
        shared: SharedFeatures | None = None,
        gpu: GpuRenderer | None = None,
    ) -> SpeakerHost:
        """Returns a host of a speaker that is loaded; see `open`."""
        networks = open_networks(speaker, settings.engine_settings, say=say, shared=shared)
        while True:
            raymarcher = file_run.choose_raymarcher(
                speaker, threads=threads, device=settings.device, gpu=gpu, say=say
            )
            own_threads = 1 if isinstance(raymarcher, GpuRaymarcher) else threads
            try:
                return cls._measured(
                    settings, speaker, networks, raymarcher, threads=own_threads, cores=cores
                )
            except GpuLostError:  # a lost GPU is chosen no more
                raymarcher.close()
            except BaseException:
                raymarcher.close()
                raise

    @classmethod
    def _measured(
        cls,
        settings: StreamSettings,
        speaker: Speaker,
        networks: SpeakerNetworks,
        raymarcher: Raymarcher,
        *,
        threads: int,
        cores: int,
    ) -> SpeakerHost:
        raymarcher.warm_up()
        meter = FrameCostMeter(
            speaker,
            networks,
            lambda size_px: file_run.make_renderer(speaker, raymarcher, size_px),
            threads=0 if isinstance(raymarcher, GpuRaymarcher) else threads,
            cores=cores,
        )
        limit_ms = motion_limit_ms(networks)
        if meter.motion_ms > limit_ms:
            raise InputError(
                f"{speaker.name}: expected motion networks that take at most {limit_ms:.0f} ms a frame, to "
                f"speak live, got {meter.motion_ms:.0f} ms here ({networks.describe() or 'CPU'}); "
                "use an NVIDIA GPU with --device cuda, or make a causal student of it with "
                "`geneface-export distil`"
            )
        costs: dict[int, FrameCost] = {}

        def measure(size_px: int) -> FrameCost:
            cost, known = meter.measure(size_px), costs.get(size_px)
            if known is None or _serial_ms(cost) < _serial_ms(known):  # a moment's noise is not the machine
                costs[size_px] = cost
            return cost

        if isinstance(raymarcher, GpuRaymarcher):
            start_px = settings.render_size or speaker.image_size_px
            sizes: tuple[int, ...] = (start_px,)  # smaller ones would gain little
            cost = measure(start_px)
            if start_px == speaker.image_size_px:
                together_ms = raymarcher.frame_ms(
                    poses=speaker.poses, condition=meter.neutral, size_px=start_px
                )
                costs[start_px] = dataclasses.replace(cost, render_ms=together_ms)
        elif settings.render_size is not None:
            sizes = (settings.render_size,)
            measure(settings.render_size)
            start_px = settings.render_size
        else:
            sizes = tuple(
                size for size in RENDER_SIZES_PX if SMALLEST_RENDER_PX <= size <= speaker.image_size_px
            ) or (speaker.image_size_px,)
            start_px = choose_render_size(
                measure,
                largest_px=speaker.image_size_px,
                threads=threads,
                cores=cores,
                budget_ms=FRAME_BUDGET_MS * _LIVE_SHARE,
            ).size_px
            if sizes[-1] not in costs:
                measure(sizes[-1])
        return cls(
            speaker=speaker,
            networks=networks,
            raymarcher=raymarcher,
            sizes_px=sizes,
            start_px=start_px,
            costs=costs,
            threads=threads,
        )

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
        """What draws, fit to be shown."""
        return file_run.device_of(self.raymarcher, threads=self.threads)

    @property
    def gpu_ms(self) -> float:
        """Milliseconds of the GPU, and of the thread that waits for it, that a frame takes; 0 on the CPU."""
        return self.costs[self.start_px].render_ms if self.on_gpu else 0.0

    @property
    def allowance_ticks(self) -> int:
        """Ticks between a frame's last look-ahead and its leaving."""
        return allowance_ticks_for(_serial_ms(self.costs[self.start_px]))

    def core_ms(self, size_px: int) -> float:
        """Returns the core-milliseconds of a frame at a size, by the nearest one that was measured."""
        nearest = min(self.costs, key=lambda known: abs(known - size_px))
        return self.costs[nearest].scaled((size_px / nearest) ** 2).core_ms(threads=self.threads)

    def look_again_ms(self) -> float:
        """Returns the core-milliseconds of a frame at the smallest size, measured anew by drawing a few."""
        meter = FrameCostMeter(
            self.speaker,
            self.networks,
            self.make_renderer,
            threads=0 if self.on_gpu else self.threads,
            cores=self.threads,
        )
        return meter.measure(self.sizes_px[-1]).core_ms(threads=self.threads)

    def make_renderer(self, size_px: int) -> FrameRenderer:
        """Returns a renderer of its own for one session."""
        return file_run.make_renderer(self.speaker, self.raymarcher, size_px)

    def close(self) -> None:
        """Ends the raymarcher's threads."""
        self.raymarcher.close()


def motion_limit_ms(networks: SpeakerNetworks) -> float:
    """Returns what features and motion network may take for a frame, to speak live.

    A motion that is late once stays late, since its sound waits. Features that the CPU works out take all of
    its cores, so what draws needs as much time again.
    """
    limit_ms = FRAME_BUDGET_MS * _LIVE_SHARE
    takes_all_cores = networks.features is not None and networks.features.device == CPU
    return limit_ms / 2 if takes_all_cores else limit_ms


def _serial_ms(cost: FrameCost) -> float:
    return cost.render_ms + cost.other_ms + cost.burst_ms
