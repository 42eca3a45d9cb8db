"""Renders a frame from pose and condition: what speech changes over a plate, or the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from cuda_kernels.arrays import F32, I32, U8
from cuda_kernels.compositing import compose_i420
from cuda_kernels.masks import BlockMask

from .i420 import I420Converter, PatchBlender
from .mouth import feathered_mask
from .plates import PlateSource


class Raymarcher(Protocol):
    """Draws head, torso and background of one speaker; on the CPU or on another device."""

    def render(
        self,
        *,
        c2w: F32,
        condition: F32,
        size_px: int,
        region_px: tuple[int, int, int, int] | None = None,
        out: U8 | None = None,
    ) -> U8:
        """Returns (size, size, 3) uint8 RGB, or the part x0 y0 x1 y1 of that picture."""

    def warm_up(self) -> float:
        """Compiles or loads the kernels; returns the seconds it took."""

    def close(self) -> None:
        """Ends its threads; drawing is over."""


class MaskRaymarcher(Raymarcher, Protocol):
    """A raymarcher that can leave out what a mask does not cover."""

    def render(
        self,
        *,
        c2w: F32,
        condition: F32,
        size_px: int,
        region_px: tuple[int, int, int, int] | None = None,
        mask: BlockMask | None = None,
        out: U8 | None = None,
    ) -> U8:
        """Returns as `Raymarcher` does, or only the blocks of a mask of that size."""


class CompositeDrawing(Protocol):
    """Draws over plates that it holds."""

    def render_composite(self, *, c2w: F32, condition: F32, number: int) -> U8:
        """Returns (size * 3 / 2, size) uint8 planar I420, BT.601, limited range: a mask over its plate."""


class FinishedDrawing(Protocol):
    """Draws I420 pictures, without conversion on the CPU."""

    def render_i420(self, *, c2w: F32, condition: F32, size_px: int) -> U8:
        """Returns (size * 3 / 2, size) uint8 planar I420, BT.601, limited range; the size is even."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A frame that the raymarcher is done with."""

    finish: Callable[[], U8]
    """Returns the picture (output * 3 / 2, output) uint8 I420; for one thread at a time."""
    drawn_px: int  # side of what the raymarcher drew
    drawn_share: float = 1.0  # of the picture, that it drew


class FrameRenderer(Protocol):
    """Draws frames of a speaker; one thread draws, another finishes what was drawn."""

    @property
    def output_px(self) -> int:
        """Side of the finished picture, the bundle's."""

    @property
    def render_px(self) -> int:
        """Render size that was asked for."""

    def draw(self, *, c2w: F32, condition: F32, pose: int, blinking: bool) -> Drawing:
        """Returns a frame, drawn.

        Args:
            c2w: (4, 4) the pose.
            condition: (C,).
            pose: the number of `c2w` in the head's path.
            blinking: whether a blink is in the landmarks that the condition was made of.
        """

    def describe(self) -> str:
        """Returns what is drawn, in words."""


class WholeRenderer:
    """Draws the whole of each frame at `render_px`; where that is smaller, the mouth at full size on top."""

    def __init__(
        self,
        raymarcher: Raymarcher,
        *,
        output_px: int,
        render_px: int,
        mouth_boxes: I32 | None,
        feather_px: int,
        finished: FinishedDrawing | None = None,
    ) -> None:
        """Prepares conversion and blending.

        Args:
            raymarcher: draws.
            output_px: side of the finished picture, the bundle's; even.
            render_px: side of what the raymarcher draws, at most `output_px`.
            mouth_boxes: (P, 4) box of the mouth for each pose, all of one size; None: the whole is scaled.
            feather_px: width over which the mouth fades into the picture.
            finished: draws I420 instead, where `render_px` is `output_px`.
        """
        self._raymarcher = raymarcher
        self.output_px = output_px
        self.render_px = render_px
        self._converter = I420Converter(width_px=output_px, height_px=output_px)
        self._finished = finished if render_px == output_px else None
        self._boxes = mouth_boxes if render_px < output_px else None
        if self._boxes is not None:
            x0, y0, x1, y1 = self._boxes[0]
            width, height = int(x1 - x0), int(y1 - y0)
            self._mouth_converter = I420Converter(width_px=width, height_px=height)
            self._mouth_blender = PatchBlender(feathered_mask(width, height, feather_px))

    def draw(self, *, c2w: F32, condition: F32, pose: int, blinking: bool) -> Drawing:
        """Returns the frame, drawn; see `FrameRenderer.draw`."""
        if self._finished is not None:
            picture = self._finished.render_i420(c2w=c2w, condition=condition, size_px=self.output_px)
            return Drawing(finish=lambda: picture, drawn_px=self.render_px)
        whole = self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.render_px)
        if self._boxes is None:
            return Drawing(finish=partial(self._converter.convert, whole), drawn_px=self.render_px)
        x0, y0, x1, y1 = (int(edge) for edge in self._boxes[pose])
        box = (x0, y0, x1, y1)
        mouth = self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.output_px, region_px=box)

        def finish() -> U8:
            picture = self._converter.convert(whole)
            self._mouth_blender.blend(picture, self._mouth_converter.convert(mouth), box)
            return picture

        return Drawing(finish=finish, drawn_px=self.render_px)

    def describe(self) -> str:
        """Returns what is drawn, in words."""
        drawn = f"draws {self.render_px} x {self.render_px}"
        if self.render_px == self.output_px:
            return drawn
        mouth = ", the mouth at full size" if self._boxes is not None else ""
        return f"{drawn} scaled up to {self.output_px} x {self.output_px}{mouth}"


class PlateRenderer:
    """Draws what speech changes at `render_px` and lays it over the plate of the pose, at the bundle's size.

    While the plates are not there it draws as another renderer does.
    """

    def __init__(
        self,
        raymarcher: MaskRaymarcher,
        plates: PlateSource,
        *,
        output_px: int,
        render_px: int,
        without: Callable[[], FrameRenderer],
    ) -> None:
        """Keeps its parts.

        Args:
            raymarcher: draws.
            plates: of the speaker.
            output_px: side of the plates and of the finished picture.
            render_px: side of the picture of which the raymarcher draws what is in the mask.
            without: gives what draws while there are no plates, once it is needed.
        """
        self._raymarcher, self._plates = raymarcher, plates
        self.output_px, self.render_px = output_px, render_px
        self._make_without = without

    @cached_property
    def _without(self) -> FrameRenderer:
        return self._make_without()

    def draw(self, *, c2w: F32, condition: F32, pose: int, blinking: bool) -> Drawing:
        """Returns the frame, drawn; see `FrameRenderer.draw`."""
        plate = self._plates.picture(pose)
        if plate is None:
            return self._without.draw(c2w=c2w, condition=condition, pose=pose, blinking=blinking)
        masks = self._plates.masks
        number = masks.number(pose, blinking)
        mask, whole = masks.at(number, self.render_px), masks.at(number, self.output_px)
        drawn = self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.render_px, mask=mask)
        return Drawing(
            finish=partial(compose_i420, plate, drawn, whole), drawn_px=self.render_px, drawn_share=mask.share
        )

    def describe(self) -> str:
        """Returns what is drawn, in words."""
        return _over_plates(self._plates, self.render_px, self.output_px)


class CompositeRenderer:
    """Draws what speech changes over plates that what draws holds itself, as a GPU does."""

    def __init__(self, composite: CompositeDrawing, plates: PlateSource, *, output_px: int) -> None:
        """Keeps its parts; `plates` are those that `composite` holds."""
        self._composite, self._plates = composite, plates
        self.output_px = self.render_px = output_px

    def draw(self, *, c2w: F32, condition: F32, pose: int, blinking: bool) -> Drawing:
        """Returns the frame, drawn; see `FrameRenderer.draw`."""
        number = self._plates.masks.number(pose, blinking)
        picture = self._composite.render_composite(c2w=c2w, condition=condition, number=number)
        share = self._plates.masks.whole[number].share
        return Drawing(finish=lambda: picture, drawn_px=self.output_px, drawn_share=share)

    def describe(self) -> str:
        """Returns what is drawn, in words."""
        return _over_plates(self._plates, self.render_px, self.output_px)


def _over_plates(plates: PlateSource, render_px: int, output_px: int) -> str:
    of = "" if render_px == output_px else f" of {output_px} x {output_px}"
    return f"draws {plates.masks.share:.0%} of {render_px} x {render_px} over plates{of}".replace("%", " %")
