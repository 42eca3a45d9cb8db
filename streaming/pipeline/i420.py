"""I420 pictures, BT.601, limited range: conversion and scaling by ffmpeg's swscale, and blending."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from cuda_kernels.arrays import F32, U8, U16
from models.time_base import FRAME_RATE_HZ

Box = tuple[int, int, int, int]  # x0 y0 x1 y1

# As AVColorRange and, for primaries, transfer and matrix alike, ITU-T H.273 number them.
LIMITED_RANGE = 1
_FULL_RANGE = 2
BT601 = 6  # SMPTE 170M

# Accurate rounding lands on the exact values of BT.601; bit exact is the same on every processor.
_CUBIC = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)


class I420Converter:
    """Converts RGB pictures of any size to I420 of one size, with bicubic scaling; for one thread."""

    def __init__(self, *, width_px: int, height_px: int) -> None:
        """Takes the size of what comes out; both sides even."""
        self._width_px, self._height_px = width_px, height_px
        self._reformatter = VideoReformatter()  # keeps its filters as long as the sizes stay

    def convert(self, rgb: U8) -> U8:
        """Returns (height * 3 / 2, width) uint8 planar I420 of an (h, w, 3) uint8 RGB picture."""
        planar = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(rgb, format="rgb24"),
            width=self._width_px,
            height=self._height_px,
            format="yuv420p",
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=_FULL_RANGE,
            dst_color_range=LIMITED_RANGE,
            interpolation=_CUBIC,
            threads=1,  # the raymarcher has the cores
        )
        return planar.to_ndarray().astype(np.uint8, copy=False)


def to_rgb(picture: U8) -> U8:
    """Returns (size, size, 3) uint8 RGB of a picture (size * 3 / 2, size) I420."""
    rgb = VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(picture, format="yuv420p"),
        format="rgb24",
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        src_color_range=LIMITED_RANGE,
        dst_color_range=_FULL_RANGE,
        interpolation=_CUBIC,
        threads=1,
    )
    return rgb.to_ndarray().astype(np.uint8, copy=False)


def video_frame(picture: U8, number: int) -> av.VideoFrame:
    """Returns frame `number` of a video, tagged with its colours, from (size * 3 / 2, size) uint8 I420."""
    frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
    frame.color_range = LIMITED_RANGE
    frame.colorspace = frame.color_primaries = frame.color_trc = BT601
    frame.pts = number
    frame.time_base = Fraction(1, FRAME_RATE_HZ)
    return frame


class PatchBlender:
    """Alpha-blends a patch into a picture, plane by plane, in steps of 1/256."""

    def __init__(self, mask: F32) -> None:
        """Takes the alpha mask (height, width) float32 in [0, 1]; both sides even."""
        height, width = mask.shape
        halved = mask.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        self._luma = np.rint(mask * 256).astype(np.uint16)
        self._chroma = np.rint(halved * 256).astype(np.uint16)

    def blend(self, picture: U8, patch: U8, box: Box) -> None:
        """Writes `patch` into `picture`, both I420, at a box whose corners are even."""
        x0, y0, x1, y1 = box
        _mix(picture[: picture.shape[1]][y0:y1, x0:x1], patch[: y1 - y0], self._luma)
        inside = np.s_[:, y0 // 2 : y1 // 2, x0 // 2 : x1 // 2]
        size, height, width = picture.shape[1], y1 - y0, x1 - x0
        chroma = picture[size:].reshape(2, size // 2, size // 2)  # U, V
        _mix(chroma[inside], patch[height:].reshape(2, height // 2, width // 2), self._chroma)


def _mix(under: U8, over: U8, weights: U16) -> None:
    # 255 * 256 + 128 still fits 16 bits.
    under[:] = (over * weights + under * (256 - weights) + 128) >> 8
