"""Opens a speaker's raymarcher, on the CPU or a GPU, and frame renderers on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from models.speaker import Speaker

from ..errors import GpuLostError, InputError
from .engine_choice import DeviceName
from .frame_renderer import CompositeRenderer, FrameRenderer, MaskRaymarcher, PlateRenderer, WholeRenderer
from .gpu_renderer import GpuRaymarcher, GpuRenderer
from .mouth import FEATHER_SHARE, mouth_boxes
from .plates import PlateSource
from .render_size import FRAME_BUDGET_MS, RENDER_SIZES_PX, RenderSize

AnyRaymarcher = MaskRaymarcher | GpuRaymarcher


class OpenRaymarcher(Protocol):
    """Opens a speaker's CPU raymarcher."""

    def __call__(self, speaker: Speaker, *, threads: int) -> MaskRaymarcher:
        """Returns a raymarcher that is not warmed up yet."""


def open_cpu_raymarcher(speaker: Speaker, *, threads: int) -> MaskRaymarcher:
    """Returns the CPU raymarcher of a speaker, not warmed up yet."""
    from cuda_kernels.cpu_raymarcher import CpuRaymarcher

    return CpuRaymarcher(speaker.scene, threads=threads)


def choose_raymarcher(
    speaker: Speaker,
    *,
    threads: int,
    device: DeviceName,
    gpu: GpuRenderer | None,
    say: Callable[[str], None],
    open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
) -> AnyRaymarcher:
    """Returns a raymarcher of a speaker on the GPU, or on the CPU; not warmed up yet.

    Args:
        speaker: who is drawn.
        threads: of the CPU raymarcher.
        device: `cuda`: on the GPU or not at all.
        gpu: what draws there, None: the CPU draws.
        say: told in one line why the GPU does not draw this speaker.
        open_raymarcher: opens the CPU's.

    Raises:
        SceneError: the speaker cannot be drawn.
        InputError: the GPU was asked for and cannot draw this speaker.
    """
    if gpu is not None:
        from cuda_kernels.cuda_module import CudaError

        try:
            return GpuRaymarcher(gpu, speaker.scene)
        except (InputError, CudaError, GpuLostError) as error:
            if device == "cuda":
                raise InputError(
                    f"--device cuda: {speaker.name} cannot be drawn on {gpu.name}: {error}; "
                    "leave --device out"
                ) from None
            say(f"the CPU draws {speaker.name}, not {gpu.name}: {error}")
    return open_raymarcher(speaker, threads=threads)


def device_of(raymarcher: AnyRaymarcher, *, threads: int) -> str:
    """Returns the rendering device, for display: the GPU's name, or the CPU with its threads."""
    if isinstance(raymarcher, GpuRaymarcher):
        return raymarcher.device
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def make_renderer(
    speaker: Speaker, raymarcher: AnyRaymarcher, render_px: int, plates: PlateSource | None = None
) -> FrameRenderer:
    """Returns a renderer that draws at `render_px` and finishes at the bundle's size.

    Args:
        speaker: who is drawn.
        raymarcher: draws.
        render_px: side of the picture that is drawn, the whole or what speech changes of it.
        plates: to draw over; a GPU holds them already. None: the whole of each picture is drawn.

    Raises:
        InputError: `render_px` is larger than the bundle's pictures, or they are of an odd size.
    """
    output_px = speaker.image_size_px
    if output_px % 2:
        raise InputError(
            f"{speaker.name}: expected pictures of an even size, got {output_px} px; export it anew"
        )
    if render_px > output_px:
        raise InputError(
            f"--render-size: expected at most {output_px}, the size of {speaker.name}'s pictures, "
            f"got {render_px}; give a smaller one, or auto"
        )
    if plates is None:
        return _whole_renderer(speaker, raymarcher, render_px)
    if isinstance(raymarcher, GpuRaymarcher):
        if render_px < output_px:
            return _whole_renderer(speaker, raymarcher, render_px)
        return CompositeRenderer(raymarcher, plates, output_px=output_px)
    # Whole pictures take as long where they have as many pixels as are drawn over plates.
    pixels = plates.masks.pixels(render_px)
    smaller = next((size for size in RENDER_SIZES_PX if size**2 <= pixels), RENDER_SIZES_PX[-1])
    return PlateRenderer(
        raymarcher,
        plates,
        output_px=output_px,
        render_px=render_px,
        without=partial(_whole_renderer, speaker, raymarcher, min(smaller, render_px)),
    )


def _whole_renderer(speaker: Speaker, raymarcher: AnyRaymarcher, render_px: int) -> WholeRenderer:
    output_px = speaker.image_size_px
    feather_px = max(2, round(output_px * FEATHER_SHARE))
    boxes = mouth_boxes(
        speaker.motion,
        speaker.scene.camera,
        speaker.poses,
        image_size_px=output_px,
        feather_px=feather_px,
    )
    return WholeRenderer(
        raymarcher,
        output_px=output_px,
        render_px=render_px,
        mouth_boxes=boxes,
        feather_px=feather_px,
        finished=raymarcher if isinstance(raymarcher, GpuRaymarcher) else None,
    )


def describe(renderer: FrameRenderer, pace: RenderSize | None) -> str:
    """Returns the render size in words, and whether it keeps real time if it was chosen here."""
    drawn = renderer.describe()
    if pace is None:
        return drawn
    smallest = pace.size_px <= RENDER_SIZES_PX[-1]
    slow = "but the smallest size there is" if smallest else "as the networks alone are"
    verdict = "keeps up" if pace.keeps_up else f"slower than the sound, {slow}"
    return f"{drawn}: {pace.frame_ms:.0f} ms of {FRAME_BUDGET_MS:.0f} a frame, {verdict}"
