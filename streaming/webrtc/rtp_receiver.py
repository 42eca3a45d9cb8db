"""RTP receiver of the microphone: packets handed on undecoded, receiver reports sent back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import AnyRtcpPacket, RtcpReceiverInfo, RtcpRrPacket, RtcpSrPacket, RtpPacket
from aiortc.stats import RTCStatsReport

from ..pipeline.clock import MonotonicClock, SystemClock
from .media_schedule import NTP_EPOCH_S, SOUND_RATE_HZ

log = logging.getLogger(__name__)

_MAX_SOURCES = 4  # a peer that keeps changing its SSRC gets no more statistics than this
OnPacket = Callable[[int, int, bytes, float], None]


class MicrophoneReceiver:
    """Replaces aiortc's `RTCRtpReceiver`: packets are handed on undecoded, as they come.

    aiortc's jitter buffer holds 80 ms, and 280 ms after the first lost packet; it has a thread for decoding
    and an unbounded queue behind it. Everything here runs on the event loop.
    """

    def __init__(
        self,
        transport: RTCDtlsTransport,
        *,
        report_ssrc: int,
        on_packet: OnPacket,
        clock: MonotonicClock | None = None,
    ) -> None:
        """Prepares the receiver; aiortc calls `receive` once the transport is up.

        Args:
            transport: what the packets come by.
            report_ssrc: who the reports are from.
            on_packet: told sequence number, timestamp (both as on the wire), payload, time of arrival.
            clock: tells the time of arrival.
        """
        self.transport = transport
        self.track: MediaStreamTrack | None = None
        self._track: MediaStreamTrack | None = None  # aiortc sets it; nothing is ever put into it
        self._enabled = True
        self._on_packet = on_packet
        self._clock = clock or SystemClock()
        self._report_ssrc = report_ssrc
        self._payload_types: frozenset[int] = frozenset()
        self._sources: dict[int, StreamStatistics] = {}
        self._reports: dict[int, tuple[int, float]] = {}  # by SSRC: middle of a report's NTP, arrival
        self._capture: tuple[int, float] | None = None  # an RTP timestamp and its time on the peer's clock
        self._capture_ssrc: int | None = None
        self._report_task: asyncio.Task[None] | None = None
        self._stopped = False

    def captured_unix_s(self, timestamp: int) -> float | None:
        """Returns the capture time of an RTP timestamp by the peer's clock; None if unknown.

        From its last sender report: no clock of ours is in it.
        """
        if self._capture is None:
            return None
        known_timestamp, known_s = self._capture
        ahead = ((timestamp - known_timestamp + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        return known_s + ahead / SOUND_RATE_HZ

    # What aiortc calls --------------------------------------------------------------------------------

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802 - aiortc's name
        """Moves to a bundled transport."""
        self.transport = transport

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Starts taking packets; a second time, or after `stop`, it does nothing."""
        if self._report_task is not None or self._stopped:
            return
        self._payload_types = frozenset(
            codec.payloadType
            for codec in parameters.codecs
            if codec.mimeType.lower() == "audio/opus" and codec.payloadType is not None
        )
        self.transport._register_rtp_receiver(self, parameters)
        self._report_task = asyncio.create_task(self._send_reports(), name="rtcp-microphone")

    async def stop(self) -> None:
        """Takes no more packets, for good; a second time, or unstarted, it is safe."""
        self._stopped = True
        task, self._report_task = self._report_task, None
        if task is not None:
            self.transport._unregister_rtp_receiver(self)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def getStats(self) -> RTCStatsReport:  # noqa: N802 - aiortc's name
        """Returns an empty report: our figures go to the metrics."""
        return RTCStatsReport()

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._report_ssrc = ssrc

    def _handle_disconnect(self) -> None:
        pass  # the session ends by the connection's state

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket) and packet.ssrc in self._sources:
            ntp = packet.sender_info.ntp_timestamp
            self._reports[packet.ssrc] = ((ntp >> 16) & 0xFFFFFFFF, self._clock.now_s())
            if packet.ssrc == self._capture_ssrc and ntp:  # zero: the peer has no clock (RFC 3550, 6.4.1)
                unix_s = (ntp >> 32) - NTP_EPOCH_S + (ntp & 0xFFFFFFFF) / (1 << 32)
                self._capture = (packet.sender_info.rtp_timestamp, unix_s)

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        if not self._enabled or packet.payload_type not in self._payload_types:
            return
        if packet.ssrc not in self._sources:
            if len(self._sources) >= _MAX_SOURCES:
                oldest = next(iter(self._sources))
                del self._sources[oldest]
                self._reports.pop(oldest, None)
            self._sources[packet.ssrc] = StreamStatistics(SOUND_RATE_HZ)
        if packet.ssrc != self._capture_ssrc:
            self._capture, self._capture_ssrc = None, packet.ssrc
        self._sources[packet.ssrc].add(packet)
        if packet.payload:  # padding alone carries no sound
            self._on_packet(packet.sequence_number, packet.timestamp, packet.payload, self._clock.now_s())

    # Ours ---------------------------------------------------------------------------------------------

    async def _send_reports(self) -> None:
        while True:
            await asyncio.sleep(0.5 + random.random())  # RFC 3550, 6.2
            reports = []
            for ssrc, source in self._sources.items():
                key, arrived_s = self._reports.get(ssrc, (0, 0.0))
                since_s = self._clock.now_s() - arrived_s if key else 0.0
                reports.append(
                    RtcpReceiverInfo(
                        ssrc=ssrc,
                        fraction_lost=source.fraction_lost,
                        packets_lost=source.packets_lost,
                        highest_sequence=(source.cycles + (source.max_seq or 0)) & 0xFFFFFFFF,
                        jitter=min(source.jitter, 0xFFFFFFFF),
                        lsr=key,
                        dlsr=int(since_s * 65536) if since_s < 65536 else 0,
                    )
                )
            if reports:
                try:
                    await self.transport._send_rtp(
                        bytes(RtcpRrPacket(ssrc=self._report_ssrc, reports=reports))
                    )
                except ConnectionError:
                    return
                except Exception:  # a task's outermost frame
                    log.exception("a receiver report failed")
