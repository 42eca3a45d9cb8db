"""RTP sender: encoded frames in, packets, retransmissions and sender reports of media time out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

from aiortc import clock, rtp
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RTP_HISTORY_SIZE,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    RtpPacket,
)
from aiortc.stats import RTCStatsReport
from aiortc.utils import random16, random32, uint16_add, uint32_add

from .rtp_extensions import ExtensionsMap

log = logging.getLogger(__name__)

MAX_PLAYOUT_DELAY_MS = 200
_RTT_WEIGHT = 0.15
MIN_RESEND_S = 0.02  # between two retransmissions of a packet; a round trip, where that is longer
MAX_RESENT_PER_S = 400  # packets: more than a whole stream of ours has


@dataclass(frozen=True)
class _Frame:
    payloads: list[bytes]
    sequence: int  # of the first of them
    timestamp: int
    duration_ms: float
    level_db: float | None


class MediaSender:
    """Replaces aiortc's `RTCRtpSender`: frames are pushed when they are due instead of pulled from a track.

    Its sender reports say when media is due by the media clock, whatever the encoder or the event loop did;
    aiortc's say when the last packet was sent. Everything here runs on the event loop.
    """

    def __init__(
        self,
        kind: str,
        transport: RTCDtlsTransport,
        *,
        stream_id: str,
        clock_rate_hz: int,
        ntp_at: Callable[[float], int],
        bound_ms: float = 400.0,
        on_keyframe_wanted: Callable[[], None] = lambda: None,
        on_bandwidth: Callable[[int], None] = lambda _: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares the stream; aiortc calls `send` once the transport is up.

        Args:
            kind: "audio" or "video".
            transport: what carries the packets.
            stream_id: the same for sound and pictures that belong together.
            clock_rate_hz: of the RTP timestamps.
            ntp_at: the NTP time at which media of a time in seconds is due.
            bound_ms: of media in the send queue; the oldest is dropped, and counts as lost on the network.
            on_keyframe_wanted: the receiver asks for a keyframe (PLI, FIR), or will need one.
            on_bandwidth: told the receiver's bandwidth estimate (REMB), bit/s.
            on_failure: nothing more will be sent, for a fault of ours that the log tells.
        """
        self.kind = kind
        self.track: MediaStreamTrack | None = None  # aiortc reads it; nothing is pulled from here
        self.transport = transport
        self.connected = False
        self.dropped = 0
        self.round_trip_s: float | None = None
        self.fraction_lost = 0.0  # of the last report, 0 to 1
        self.packets_lost = 0
        self._enabled = True
        self._ssrc = random32()
        self._rtx_ssrc = random32()
        self._stream_id = stream_id
        self._track_id = str(uuid.uuid4())
        self._clock_rate_hz = clock_rate_hz
        self._ntp_at = ntp_at
        self._bound_ms = bound_ms
        self._on_keyframe_wanted = on_keyframe_wanted
        self._on_bandwidth = on_bandwidth
        self._on_failure = on_failure
        self._extensions = ExtensionsMap(max_delay_ms=MAX_PLAYOUT_DELAY_MS)
        self._mid = ""
        self._cname = ""
        self._rtx_payload_type: int | None = None
        # The lower half only: a wrap within the first packets can break SRTP (RFC 3711, 3.3.1).
        self._sequence = random16() % 32768
        self._rtx_sequence = random16() % 32768
        self._origin = random32()
        self._last_timestamp: int | None = None
        self._history: dict[int, RtpPacket] = {}
        self._resent_s: dict[int, float] = {}  # when a sequence number was sent again last, oldest first
        self._packets = 0
        self._octets = 0
        self._report_key = 0
        self._report_sent_s = 0.0
        self._waiting: deque[_Frame] = deque()
        self._waiting_ms = 0.0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    def push(
        self, payloads: list[bytes], timestamp: int, duration_ms: float, level_db: float | None = None
    ) -> None:
        """Queues a frame or block of sound for sending; before the connection is up it is dropped.

        Args:
            payloads: what goes into one RTP packet each.
            timestamp: media time in the RTP clock, from zero, unwrapped.
            duration_ms: how long it plays.
            level_db: loudness of sound, dBFS.
        """
        if not (self.connected and self._enabled):
            return
        # Numbered before anything is dropped: the receiver sees the gap, and shows nothing that leans on it.
        frame = _Frame(payloads, self._sequence, timestamp, duration_ms, level_db)
        self._sequence = uint16_add(self._sequence, len(payloads))
        before = self.dropped
        while self._waiting and self._waiting_ms + frame.duration_ms > self._bound_ms:
            self._waiting_ms -= self._waiting.popleft().duration_ms
            self.dropped += 1
        if self.dropped > before:
            self._on_keyframe_wanted()
        self._waiting.append(frame)
        self._waiting_ms += frame.duration_ms
        self._wake.set()

    def wire_timestamp(self, timestamp: int) -> int:
        """Returns the 32-bit RTP timestamp of media time `timestamp`."""
        wire: int = uint32_add(self._origin, timestamp & 0xFFFFFFFF)
        return wire

    # What aiortc calls --------------------------------------------------------------------------------

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802 - aiortc's name
        """Moves to a bundled transport."""
        self.transport = transport

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """Starts sending; a second time, or after `stop`, it does nothing."""
        if self._tasks or self._stopped:
            return
        codec = parameters.codecs[0]
        self._cname, self._mid = parameters.rtcp.cname or "", parameters.muxId
        self.transport._register_rtp_sender(self, parameters)
        self._extensions.configure(parameters)
        for other in parameters.codecs:
            if is_rtx(other) and other.parameters["apt"] == codec.payloadType:
                self._rtx_payload_type = other.payloadType
                break
        self._tasks = [
            asyncio.create_task(self._guard(lambda: self._send_frames(codec)), name=f"rtp-{self.kind}"),
            asyncio.create_task(self._guard(self._send_reports), name=f"rtcp-{self.kind}"),
        ]
        self.connected = True
        self._on_keyframe_wanted()

    async def stop(self) -> None:
        """Ends the stream for good; a second time, or unstarted, it is safe."""
        self._stopped, self.connected = True, False
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.clear()
        self._waiting_ms = 0.0
        if tasks:
            self.transport._unregister_rtp_sender(self)
            await self._send_rtcp([RtcpByePacket(sources=[self._ssrc])])

    async def getStats(self) -> RTCStatsReport:  # noqa: N802 - aiortc's name
        """Returns an empty report: our figures go to the metrics."""
        return RTCStatsReport()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self.fraction_lost = report.fraction_lost / 256
                    self.packets_lost = report.packets_lost
                    if report.dlsr and report.lsr and report.lsr == self._report_key:
                        round_trip_s = time.monotonic() - self._report_sent_s - report.dlsr / 65536
                        known_s = self.round_trip_s if self.round_trip_s is not None else round_trip_s
                        if round_trip_s >= 0:  # less: it answers an earlier report of the same media time
                            self.round_trip_s = known_s + _RTT_WEIGHT * (round_trip_s - known_s)
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            # aiortc's parser counts on past the wrap; a packet may name a number hundreds of times.
            for sequence in dict.fromkeys(number & 0xFFFF for number in packet.lost):
                await self._retransmit(sequence)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt in (RTCP_PSFB_FIR, RTCP_PSFB_PLI):
            self._on_keyframe_wanted()
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, ssrcs = rtp.unpack_remb_fci(packet.fci)
            except (ValueError, struct.error):
                return  # another application's message
            if self._ssrc in ssrcs:
                self._on_bandwidth(bitrate)

    # Ours ---------------------------------------------------------------------------------------------

    async def _guard(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except ConnectionError:
            pass  # the peer is gone; its session notices by itself
        except Exception:  # a task's outermost frame
            log.exception("the %s sender failed", self.kind)
            self._on_failure()
        finally:
            self.connected = False

    async def _send_frames(self, codec: RTCRtpCodecParameters) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            frame = self._waiting.popleft()
            self._waiting_ms -= frame.duration_ms
            last = len(frame.payloads) - 1
            for number, payload in enumerate(frame.payloads):
                packet = RtpPacket(
                    payload_type=codec.payloadType or 0,
                    sequence_number=uint16_add(frame.sequence, number),
                    timestamp=self.wire_timestamp(frame.timestamp),
                )
                packet.ssrc = self._ssrc
                packet.payload = payload
                packet.marker = int(number == last and self.kind == "video")
                packet.extensions.abs_send_time = _abs_send_time()
                packet.extensions.mid = self._mid
                if frame.level_db is not None:  # RFC 6464: dB below full scale, 0 to 127
                    packet.extensions.audio_level = (False, min(max(round(-frame.level_db), 0), 127))
                self._history[packet.sequence_number % RTP_HISTORY_SIZE] = packet
                await self.transport._send_rtp(packet.serialize(self._extensions))
                self._packets += 1
                self._octets += len(payload)
            self._last_timestamp = frame.timestamp

    async def _retransmit(self, sequence: int) -> None:
        packet = self._history.get(sequence % RTP_HISTORY_SIZE)
        if packet is None or packet.sequence_number != sequence:
            return
        if not self._may_resend(sequence):
            return
        if self._rtx_payload_type is not None:
            packet = rtp.wrap_rtx(
                packet,
                payload_type=self._rtx_payload_type,
                sequence_number=self._rtx_sequence,
                ssrc=self._rtx_ssrc,
            )
            # Its own time: by the old one the bandwidth estimate would fall. Only here: the same packet sent
            # again with other bytes would reuse a nonce of AES-GCM.
            packet.extensions = replace(packet.extensions, abs_send_time=_abs_send_time())
            self._rtx_sequence = uint16_add(self._rtx_sequence, 1)
        await self.transport._send_rtp(packet.serialize(self._extensions))

    def _may_resend(self, sequence: int) -> bool:
        """Returns whether a packet that was NACKed may be retransmitted now, and counts it."""
        now_s = time.monotonic()
        again_s = max(self.round_trip_s or 0.0, MIN_RESEND_S)  # sooner, the last one is still on its way
        if now_s - self._resent_s.get(sequence, float("-inf")) < again_s:
            return False
        while len(self._resent_s) >= MAX_RESENT_PER_S:
            oldest = next(iter(self._resent_s))
            if now_s - self._resent_s[oldest] < 1:
                return False
            del self._resent_s[oldest]
        self._resent_s.pop(sequence, None)
        self._resent_s[sequence] = now_s
        return True

    async def _send_reports(self) -> None:
        while True:
            # RFC 3550, 6.2: the interval varies, so that many senders do not fall into step. The first
            # reports come soon: without them the receiver cannot align sound and pictures.
            await asyncio.sleep((0.5 + random.random()) * (1.0 if self._packets > 100 else 0.3))
            if self._last_timestamp is None:
                continue
            timestamp = self._last_timestamp
            ntp = self._ntp_at(timestamp / self._clock_rate_hz)
            info = RtcpSenderInfo(
                ntp_timestamp=ntp,
                rtp_timestamp=self.wire_timestamp(timestamp),
                packet_count=self._packets & 0xFFFFFFFF,
                octet_count=self._octets & 0xFFFFFFFF,
            )
            name = RtcpSourceInfo(ssrc=self._ssrc, items=[(1, self._cname.encode())])
            self._report_key = (ntp >> 16) & 0xFFFFFFFF
            self._report_sent_s = time.monotonic()
            await self._send_rtcp(
                [RtcpSrPacket(ssrc=self._ssrc, sender_info=info), RtcpSdesPacket(chunks=[name])]
            )

    async def _send_rtcp(self, packets: list[AnyRtcpPacket]) -> None:
        with contextlib.suppress(ConnectionError):  # closed meanwhile
            await self.transport._send_rtp(b"".join(bytes(packet) for packet in packets))


def _abs_send_time() -> int:
    """Returns the present time as of the header extension abs-send-time: 24 bits, 6 of them whole seconds."""
    return (int(clock.current_ntp_time()) >> 14) & 0x00FFFFFF
