"""Pictures into RTP payloads: H.264 or VP8, made for a face at a true 25 frames a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.video.frame import PictureType

from .clock import FRAME_RATE_HZ
from .i420 import BT601, LIMITED_RANGE, video_frame

U8 = npt.NDArray[np.uint8]

KEYFRAME_FLOOR_FRAMES = 8  # 320 ms: a lossy line asks for keyframes faster than they help
_NO_KEYFRAME_BY_ITSELF = 25 * 3600
_BITRATE_STEP = 0.15  # a smaller change of the receiver's estimate is noise
LEAST_BITRATE = 150_000


class VideoEncoder(Protocol):
    """Encodes one session's pictures; used by one thread, asked for keyframes by any."""

    name: str

    def encode(self, picture: U8, number: int) -> list[bytes]:
        """Returns the RTP payloads of a picture (size * 3 / 2, size) uint8 I420; none if it was left out."""

    def want_keyframe(self) -> None:
        """Asks that a picture soon stands on its own."""

    def limit_bitrate(self, bitrate: int) -> None:
        """Tells what the receiver can take, bit/s."""


class _Encoder:
    """What both codecs share: one context for the session's life, and keyframes with a floor between them."""

    name = ""
    _codec = ""

    def __init__(self, *, size_px: int, bitrate: int) -> None:
        """Opens the codec.

        Args:
            size_px: side of the pictures.
            bitrate: at most this many bit/s.
        """
        self._bitrate = self._wanted_bitrate = bitrate
        self._largest_bitrate = bitrate
        self._keyframe_wanted = True
        self._last_keyframe: int | None = None
        context = av.CodecContext.create(self._codec, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width = context.height = size_px
        context.pix_fmt = "yuv420p"
        context.bit_rate = bitrate
        context.gop_size = _NO_KEYFRAME_BY_ITSELF
        context.time_base = Fraction(1, FRAME_RATE_HZ)
        context.framerate = Fraction(FRAME_RATE_HZ)
        context.thread_count = 1  # the raymarcher has the cores
        context.color_range = LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT601
        self._set_up(context, bitrate)
        context.open()
        self._context = context

    def _set_up(self, context: av.VideoCodecContext, bitrate: int) -> None:
        raise NotImplementedError

    def want_keyframe(self) -> None:
        """Asks that a picture soon stands on its own."""
        self._keyframe_wanted = True

    def limit_bitrate(self, bitrate: int) -> None:
        """Tells what the receiver can take, bit/s."""
        self._wanted_bitrate = min(max(bitrate, LEAST_BITRATE), self._largest_bitrate)

    def _encoded(self, picture: U8, number: int, *, time: int) -> bytes:
        frame = video_frame(picture, time)
        if self._keyframe_due(number):
            self._keyframe_wanted = False
            self._last_keyframe = number
            frame.pict_type = PictureType.I
        return b"".join(bytes(packet) for packet in self._context.encode(frame))

    def _keyframe_due(self, number: int) -> bool:
        last = self._last_keyframe
        return self._keyframe_wanted and (last is None or number - last >= KEYFRAME_FLOOR_FRAMES)


class H264VideoEncoder(_Encoder):
    """x264, superfast and without delay; a new bitrate takes neither a new encoder nor a keyframe."""

    name = "H264"
    _codec = "libx264"

    def _set_up(self, context: av.VideoCodecContext, bitrate: int) -> None:
        context.profile = "Baseline"
        context.options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "level": "31",
            "maxrate": str(bitrate),
            "bufsize": str(bitrate // 4),  # a quarter of a second: no picture blocks the line for long
            "forced-idr": "1",
            "sc_threshold": "0",  # no keyframe by itself at a cut, either
        }

    def encode(self, picture: U8, number: int) -> list[bytes]:
        """Returns the RTP payloads of a picture, RFC 6184, packetization mode 1."""
        wanted = self._wanted_bitrate
        if abs(wanted - self._bitrate) > _BITRATE_STEP * self._bitrate:
            self._context.bit_rate = self._bitrate = wanted  # ffmpeg's wrapper reconfigures x264 by itself
        data = self._encoded(picture, number, time=number)
        payloads: list[bytes] = H264Encoder._packetize(H264Encoder._split_bitstream(data))
        return payloads


class Vp8VideoEncoder(_Encoder):
    """libvpx in real time, its denoiser off: there is no noise in what is drawn.

    ffmpeg's wrapper cannot change the bitrate of a running encoder, and a new one would begin with a keyframe
    just when the line is narrow: pictures are left out instead.
    """

    name = "VP8"
    _codec = "libvpx"

    def __init__(self, *, size_px: int, bitrate: int) -> None:
        """Opens the codec; see the base class."""
        super().__init__(size_px=size_px, bitrate=bitrate)
        self._picture_id = 0
        self._credit = 0.0
        self._left_out = 0

    def _set_up(self, context: av.VideoCodecContext, bitrate: int) -> None:
        context.qmin, context.qmax = 2, 56
        context.options = {
            "deadline": "realtime",
            "cpu-used": "-6",
            "lag-in-frames": "0",
            "noise-sensitivity": "0",
            "static-thresh": "1",
            "minrate": str(bitrate),  # all three the same: constant bitrate
            "maxrate": str(bitrate),
            "bufsize": str(bitrate // 2),
            "undershoot-pct": "100",
            "overshoot-pct": "15",
        }

    def encode(self, picture: U8, number: int) -> list[bytes]:
        """Returns the RTP payloads of a picture, RFC 7741; none if the line is too narrow for this one."""
        self._credit += self._wanted_bitrate / self._largest_bitrate
        if self._credit < 1.0 - 1e-6 and not self._keyframe_due(number):
            self._left_out += 1
            return []
        self._credit -= 1.0
        # In libvpx's time nothing was left out: it would spend what was saved on the next picture.
        data = self._encoded(picture, number, time=number - self._left_out)
        payloads: list[bytes] = Vp8Encoder._packetize(data, self._picture_id)
        self._picture_id = (self._picture_id + 1) % (1 << 15)
        return payloads


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """A codec that can be agreed on."""

    name: str  # as SDP writes it
    open: Callable[..., VideoEncoder]


# The first that both sides know is taken. Measured at 512 x 512 on May (docs/benchmarks.md): x264 takes two
# thirds of libvpx's time and its picture is 1 dB better at the same bitrate.
CODECS = (
    VideoCodec(name="H264", open=H264VideoEncoder),
    VideoCodec(name="VP8", open=Vp8VideoEncoder),
)
