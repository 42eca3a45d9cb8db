"""From pose and condition to a picture of the bundle's size, drawn smaller where the machine needs it."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from .mouth import feathered_mask

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]


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
        """Gets the kernels ready; returns the seconds it took."""


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
    ) -> None:
        """Keeps what does not change from frame to frame.

        Args:
            raymarcher: draws.
            output_px: side of the finished picture, the bundle's.
            render_px: side of what the raymarcher draws, at most `output_px`.
            mouth_boxes: (P, 4) box of the mouth for each pose, all of one size; None: the whole is scaled.
            feather_px: width over which the mouth fades into the picture.
        """
        self._raymarcher = raymarcher
        self.output_px = output_px
        self.render_px = render_px
        self._boxes = mouth_boxes if render_px < output_px else None
        if self._boxes is not None:
            x0, y0, x1, y1 = self._boxes[0]
            self._mouth_weight = feathered_mask(int(x1 - x0), int(y1 - y0), feather_px)
            self._whole_weight = np.float32(1) - self._mouth_weight

    @property
    def draws_mouth_apart(self) -> bool:
        """Whether the mouth is drawn at full resolution, apart from the rest."""
        return self._boxes is not None

    def draw_whole(self, *, c2w: F32, condition: F32) -> U8:
        """Returns the picture at `render_px`."""
        return self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.render_px)

    def draw_mouth(self, *, c2w: F32, condition: F32, pose: int) -> tuple[U8 | None, tuple[int, ...]]:
        """Returns the mouth at full resolution and its box; None where it is not drawn apart."""
        if self._boxes is None:
            return None, (0, 0, 0, 0)
        x0, y0, x1, y1 = (int(edge) for edge in self._boxes[pose])
        box = (x0, y0, x1, y1)
        mouth = self._raymarcher.render(c2w=c2w, condition=condition, size_px=self.output_px, region_px=box)
        return mouth, box

    def finish(self, whole: U8, mouth: U8 | None, box: tuple[int, ...]) -> U8:
        """Returns (output, output, 3) uint8 RGB: the whole scaled up, the mouth set into it."""
        if self.render_px == self.output_px:
            return whole
        # On May's video Lanczos is 0.1 dB closer to the full size than cubic, and takes ten times as long.
        shape = (self.output_px, self.output_px)
        picture = cv2.resize(whole, shape, interpolation=cv2.INTER_CUBIC)
        if mouth is not None:
            x0, y0, x1, y1 = box
            part = np.ascontiguousarray(picture[y0:y1, x0:x1])
            picture[y0:y1, x0:x1] = cv2.blendLinear(mouth, part, self._mouth_weight, self._whole_weight)
        return picture.astype(np.uint8, copy=False)
