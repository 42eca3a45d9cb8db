"""Choice of the render size: the largest whose frames keep real time on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.time_base import FRAME_MS

MIN_RENDER_PX = 96
RENDER_SIZES_PX = (512, 384, 256, 224, 192, 160, 128)
MIN_OVER_PLATES_PX = 192  # below, teeth and lips are jagged, and next to nothing is saved
FRAME_BUDGET_MS = float(FRAME_MS)
HEADROOM = 0.85  # share of a frame's time that is planned for
_PROBE_PX = 192


@dataclass(frozen=True, kw_only=True)
class FrameCost:
    """Cost of a frame by stage, as wall time and as CPU time.

    The first decides how soon a frame is there, the second how many frames a machine can draw.
    """

    render_ms: float  # wall time of the raymarcher on its threads, where they have the cores to themselves
    other_ms: float  # the same of all other stages, each beside the raymarcher
    burst_ms: float = 0.0  # that a frame waits besides, where the networks move several frames at once
    render_core_ms: float | None = None  # CPU time of the raymarcher; None: each thread works all the time
    other_core_ms: float | None = None  # CPU time of the other stages; None: `other_ms`, on one thread

    def core_ms(self, *, threads: int) -> float:
        """Returns the CPU time of all stages, with `threads` threads that draw."""
        render_ms, other_ms = self.render_core_ms, self.other_core_ms
        return (self.render_ms * threads if render_ms is None else render_ms) + (
            self.other_ms if other_ms is None else other_ms
        )

    def frame_ms(self, *, threads: int, cores: int) -> float:
        """Returns the time from one frame to the next when the stages overlap on `cores` cores."""
        return max(self.render_ms, self.core_ms(threads=min(threads, cores)) / cores)

    def scaled(self, ratio: float) -> FrameCost:
        """Returns the cost of a frame with `ratio` times the pixels."""
        core_ms = self.render_core_ms
        return dataclasses.replace(
            self,
            render_ms=self.render_ms * ratio,
            render_core_ms=None if core_ms is None else core_ms * ratio,
        )


@dataclass(frozen=True, kw_only=True)
class RenderSize:
    """A render size and its cost on this machine."""

    size_px: int
    frame_ms: float
    keeps_up: bool
    cost: FrameCost | None = None  # None: not measured, as the networks alone are too slow


def pixels_of_a_picture(size_px: int) -> float:
    """Returns how many there are."""
    return float(size_px**2)


def choose_render_size(
    measure: Callable[[int], FrameCost],
    *,
    largest_px: int,
    threads: int,
    cores: int,
    sizes_px: Sequence[int] = RENDER_SIZES_PX,
    budget_ms: float = FRAME_BUDGET_MS * HEADROOM,
    pixels: Callable[[int], float] = pixels_of_a_picture,
) -> RenderSize:
    """Returns the largest size whose frames fit the budget, else the smallest.

    One size is timed, the others are predicted by their pixels from the nearest one that was, and the one
    chosen is timed before it is believed; so slow sizes are never drawn, and one busy moment costs no size.

    Args:
        measure: draws a few frames at a size and says what they take.
        largest_px: the bundle's image size; nothing larger is drawn.
        threads: threads of the raymarcher.
        cores: cores that this process may use.
        sizes_px: what to choose from, largest first.
        budget_ms: time a frame may take.
        pixels: that are drawn at a size.
    """
    sizes = [size for size in sizes_px if size <= largest_px] or [largest_px]
    probe = min(sizes, key=lambda size: abs(size - _PROBE_PX))

    def quieter_of_two(size: int) -> FrameCost:  # noise only adds
        return min(measure(size), measure(size), key=lambda cost: cost.frame_ms(threads=threads, cores=cores))

    timed = {probe: quieter_of_two(probe)}

    def predicted_ms(size: int) -> float:
        nearest = min(timed, key=lambda other: abs(other - size))
        cost = timed[nearest].scaled(pixels(size) / pixels(nearest))
        return cost.frame_ms(threads=threads, cores=cores)

    while True:
        for size in sizes:
            last = size == sizes[-1]
            if size in timed:
                frame_ms = predicted_ms(size)  # its own
                if frame_ms <= budget_ms or last:
                    return RenderSize(
                        size_px=size,
                        frame_ms=frame_ms,
                        keeps_up=frame_ms <= FRAME_BUDGET_MS,
                        cost=timed[size],
                    )
            elif last or predicted_ms(size) <= budget_ms * 1.15:  # predicted a little over, it is measured
                timed[size] = quieter_of_two(size)
                break  # the new measurement may predict larger ones better
