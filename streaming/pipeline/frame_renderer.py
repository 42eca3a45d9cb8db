"""Renders a frame from pose and condition, upscaled to the bundle's size, with the mouth at full size."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32, U8

from .i420 import Box, I420Converter, PatchBlender
from .mouth import feathered_mask

I32 = npt.NDArray[np.int32]


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


class FinishedDrawing(Protocol):
    """Draws I420 pictures, without conversion on the CPU."""

    def render_i420(self, *, c2w: F32, condition: F32, size_px: int) -> U8:
        """Returns (size * 3 / 2, size) uint8 planar I420, BT.601, limited range; the size is even."""


class FrameRenderer:
    """Draws a frame at `render_px`, and the mouth at full resolution on top when that is smaller."""

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
        """Prepares conversion and blending; one thread draws, another finishes.

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

    @property
    def draws_mouth_apart(self) -> bool:
        """Whether the mouth is drawn at full resolution, apart from the rest."""
        return self._boxes is not None

    def draw_whole(self, *, c2w: F32, condition: F32) -> U8:
        """Returns the picture at `render_px`, RGB; or finished."""
        if self._finished is not None:
            return self._finished.render_i420(c2w=c2w, condition=condition, size_px=self.output_px)
        return self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.render_px)

    def draw_mouth(self, *, c2w: F32, condition: F32, pose: int) -> tuple[U8 | None, Box]:
        """Returns the mouth at full resolution, RGB, and its box; None where it is not drawn apart."""
        if self._boxes is None:
            return None, (0, 0, 0, 0)
        x0, y0, x1, y1 = (int(edge) for edge in self._boxes[pose])
        box = (x0, y0, x1, y1)
        mouth = self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.output_px, region_px=box)
        return mouth, box

    def finish(self, whole: U8, mouth: U8 | None, box: Box) -> U8:
        """Returns (output * 3 / 2, output) uint8 I420: the whole scaled up, the mouth set into it."""
        if self._finished is not None:
            return whole
        picture = self._converter.convert(whole)
        if mouth is not None:
            self._mouth_blender.blend(picture, self._mouth_converter.convert(mouth), box)
        return picture
