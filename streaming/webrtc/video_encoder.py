"""Video encoders: I420 frames to RTP payloads of H.264 or VP8, with rate control for a face at 25 fps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.video.frame import PictureType

from cuda_kernels.arrays import U8
from models.time_base import FRAME_RATE_HZ

from ..pipeline.i420 import BT601, LIMITED_RANGE, video_frame

KEYFRAME_FLOOR_FRAMES = 8  # 320 ms, between keyframes: a lossy network asks for more than help
_NO_KEYFRAME_BY_ITSELF = FRAME_RATE_HZ * 3600
_BITRATE_STEP = 0.15  # a smaller change of the receiver's estimate is noise
MIN_BITRATE = 150_000
MAX_BURST_S = 0.5  # of the bandwidth: sent ahead before frames are dropped
MAX_BACKLOG_S = 2.0  # of the bandwidth: older excess is forgotten
MAX_GAP_FRAMES = FRAME_RATE_HZ  # a frame a second is sent at any bandwidth
_FALLEN = 0.9  # an estimate below this share of what was sent shows a bottleneck
_SENT_FRAMES = FRAME_RATE_HZ  # window of the sent bitrate
_UNRAISED_FRAMES = 2 * FRAME_RATE_HZ  # a receiver reports each second: one that takes more has said so
_VP8_TICKS = 1000  # of libvpx's clock in a frame
_VP8_HEADROOM = 0.95  # it overshoots its target a little


class VideoEncoder(Protocol):
    """Encodes one session's frames in one thread; any thread may ask for keyframes."""

    name: str

    def encode(self, picture: U8, number: int) -> list[bytes]:
        """Returns the RTP payloads of a picture (size * 3 / 2, size) uint8 I420; none if it was dropped.

        The numbers rise, 25 a second: they are the encoder's clock.
        """

    def want_keyframe(self) -> None:
        """Requests a keyframe, no sooner than `KEYFRAME_FLOOR_FRAMES` after the last."""

    def limit_bitrate(self, bitrate: int) -> None:
        """Takes the receiver's bandwidth estimate (REMB), bit/s."""


class BandwidthLimit:
    """Bandwidth limit from the receiver's estimate (REMB) and the bitrate that was sent.

    The estimate follows the received bitrate: up to half as much again in libwebrtc, a little more each
    second. While a sender is limited by its content it says nothing, and a bitrate in proportion to it would
    shrink both for good. It shows a bottleneck where it falls below what was sent lately, or is not raised
    although more is sent; from then on it is the limit, until it allows for the whole bitrate.
    """

    def __init__(self, bitrate: int) -> None:
        """Begins without a bottleneck.

        Args:
            bitrate: what is sent at most, bit/s.
        """
        self._bitrate = bitrate
        self._least = min(MIN_BITRATE, bitrate)
        self._told: int | None = None  # the newest estimate, from any thread
        self._estimate: int | None = None
        self._is_bottleneck = False
        self._exceeded_since: int | None = None
        self._sent: deque[tuple[int, int]] = deque()  # number and bits of each picture
        self._backlog_bits = 0.0
        self._number: int | None = None

    def tell(self, estimate: int) -> None:
        """Takes the receiver's estimate, bit/s."""
        self._told = estimate

    @property
    def bitrate(self) -> int:
        """The target bitrate, bit/s."""
        if not self._is_bottleneck or self._estimate is None:
            return self._bitrate
        return min(max(self._estimate, self._least), self._bitrate)

    def admits(self, number: int) -> bool:
        """Returns whether frame `number` may be sent; otherwise it has to be dropped."""
        since_frames, self._number = number - (self._number if self._number is not None else number), number
        self._judge(number)
        if not self._is_bottleneck:
            self._backlog_bits = 0.0
            return True
        per_frame = self.bitrate / FRAME_RATE_HZ
        backlog_bits = min(self._backlog_bits, MAX_BACKLOG_S * self.bitrate) - since_frames * per_frame
        self._backlog_bits = max(backlog_bits, 0.0)
        starved = not self._sent or number - self._sent[-1][0] >= MAX_GAP_FRAMES
        return starved or self._backlog_bits <= MAX_BURST_S * self.bitrate

    def add(self, number: int, bits: int) -> None:
        """Notes that frame `number` was sent."""
        self._sent.append((number, bits))
        self._backlog_bits += bits

    def _judge(self, number: int) -> None:
        while len(self._sent) > 1 and number - self._sent[0][0] > _SENT_FRAMES:
            self._sent.popleft()
        told, before = self._told, self._estimate
        if told is None:
            return
        sent_bits = sum(bits for at, bits in self._sent if number - at <= _SENT_FRAMES)
        self._estimate = told
        if before is None:
            self._is_bottleneck = not self._sent or told < _FALLEN * sent_bits
        elif told < before and told < _FALLEN * sent_bits:
            self._is_bottleneck = True
        if sent_bits <= told or (before is not None and told > before):
            self._exceeded_since = None
        elif self._exceeded_since is None:
            self._exceeded_since = number
        elif number - self._exceeded_since >= _UNRAISED_FRAMES:
            self._is_bottleneck = True
        if told >= self._bitrate:
            self._is_bottleneck = False


class _Encoder:
    """What both codecs share: one context for the session's life, a floor between keyframes, rate control.

    Less bandwidth than the bitrate first lowers the quality. Only where even the lowest is too much are
    frames dropped.
    """

    name = ""
    _codec = ""

    def __init__(self, *, size_px: int, bitrate: int) -> None:
        """Opens the codec.

        Args:
            size_px: side of the pictures.
            bitrate: at most this many bit/s.
        """
        self._bitrate = bitrate
        self._bandwidth = BandwidthLimit(bitrate)
        self._dropped = 0
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

    def _pts(self, frame: int) -> int:
        """Returns a frame's PTS, and sets the codec's bitrate."""
        raise NotImplementedError

    def _packetize(self, data: bytes) -> list[bytes]:
        raise NotImplementedError

    def encode(self, picture: U8, number: int) -> list[bytes]:
        """Returns the RTP payloads of a frame; none if even the lowest quality exceeds the bandwidth."""
        if not self._bandwidth.admits(number):
            self._dropped += 1
            return []
        # In the codec's time there were no dropped frames: it would spend their bits on the next one.
        frame = video_frame(picture, self._pts(number - self._dropped))
        frame.time_base = self._context.time_base
        if self._keyframe_due(number):
            self._keyframe_wanted = False
            self._last_keyframe = number
            frame.pict_type = PictureType.I
        data = b"".join(bytes(packet) for packet in self._context.encode(frame))
        payloads = self._packetize(data)
        self._bandwidth.add(number, 8 * sum(map(len, payloads)))
        return payloads

    def want_keyframe(self) -> None:
        """Requests a keyframe, no sooner than `KEYFRAME_FLOOR_FRAMES` after the last."""
        self._keyframe_wanted = True

    def limit_bitrate(self, bitrate: int) -> None:
        """Takes the receiver's bandwidth estimate (REMB), bit/s."""
        self._bandwidth.tell(bitrate)

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
            "bufsize": str(bitrate // 4),  # 250 ms: no frame fills the network's queue
            "forced-idr": "1",
            "sc_threshold": "0",  # no keyframe by itself at a cut, either
        }

    def _pts(self, frame: int) -> int:
        wanted, given = self._bandwidth.bitrate, self._context.bit_rate or 0
        if abs(wanted - given) > _BITRATE_STEP * given:
            self._context.bit_rate = wanted  # ffmpeg's wrapper reconfigures x264 by itself
        return frame

    def _packetize(self, data: bytes) -> list[bytes]:
        # RFC 6184, packetization mode 1.
        payloads: list[bytes] = H264Encoder._packetize(H264Encoder._split_bitstream(data))
        return payloads


class Vp8VideoEncoder(_Encoder):
    """libvpx in real-time mode, without denoiser: rendered frames have no noise.

    ffmpeg's wrapper cannot change the bitrate of a running encoder, and a new one would begin with a keyframe
    just when bandwidth is short. But libvpx budgets its bits by timestamps: told that half the time has
    passed, it spends half the bits.
    """

    name = "VP8"
    _codec = "libvpx"

    def __init__(self, *, size_px: int, bitrate: int) -> None:
        """Opens the codec; see the base class."""
        super().__init__(size_px=size_px, bitrate=bitrate)
        self._picture_id = 0
        self._last_frame: int | None = None
        self._last_pts = 0

    def _set_up(self, context: av.VideoCodecContext, bitrate: int) -> None:
        context.time_base = Fraction(1, FRAME_RATE_HZ * _VP8_TICKS)
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
            "max-intra-rate": "500",  # of a picture's share: a keyframe takes a fifth of a second
        }

    def _pts(self, frame: int) -> int:
        wanted = self._bandwidth.bitrate
        share = _VP8_HEADROOM * wanted / self._bitrate if wanted < self._bitrate else 1.0
        if self._last_frame is not None:
            self._last_pts += max(round(share * _VP8_TICKS * (frame - self._last_frame)), 1)
        self._last_frame = frame
        return self._last_pts

    def _packetize(self, data: bytes) -> list[bytes]:
        # RFC 7741.
        payloads: list[bytes] = Vp8Encoder._packetize(data, self._picture_id)
        self._picture_id = (self._picture_id + 1) % (1 << 15)
        return payloads


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """A codec that can be negotiated."""

    name: str  # as SDP writes it
    open: Callable[..., VideoEncoder]


# The first that both sides have is negotiated. Measured at 512 x 512 on May (docs/benchmarks.md): x264 takes
# two thirds of libvpx's time and its picture is 1 dB better at the same bitrate.
CODECS = (
    VideoCodec(name="H264", open=H264VideoEncoder),
    VideoCodec(name="VP8", open=Vp8VideoEncoder),
)
