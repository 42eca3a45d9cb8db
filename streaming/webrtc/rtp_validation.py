"""Validation of incoming RTP and RTCP: malformed packets are dropped, on which aiortc ends the connection.

So are packets of more SSRCs than a peer has, since libsrtp keeps the state of each; and all of SCTP.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

from aiortc import rtp
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import AnyRtcpPacket, RtcpPacket, RtcpPsfbPacket, RtpPacket, is_rtcp

log = logging.getLogger(__name__)

MAX_DATAGRAM_BYTES = 1500  # libsrtp's buffer at aiortc
MAX_STREAMS = 16  # SSRCs of one peer: microphone, perhaps camera, their retransmissions, each restarted
_REMB = b"REMB"
# What aiortc's parsers and the unpacking in them raise: UnicodeDecodeError is a ValueError.
_PARSE_ERRORS = (ValueError, IndexError, struct.error)

OnMalformed = Callable[[str, str], None]


def drop_malformed(transport: RTCDtlsTransport, on_malformed: OnMalformed) -> None:
    """Makes a transport of aiortc, before it starts, drop malformed packets.

    Args:
        transport: of the peer's packets.
        on_malformed: told the kind, "datagram" (no packet at all), "rtp" or "rtcp", and what is wrong.
    """
    router, ice_transport = transport._rtp_router, transport.transport
    receive = ice_transport._recv

    streams: set[bytes] = set()

    async def receive_bounded() -> bytes:
        while True:
            data: bytes = await receive()
            if not 0 < len(data) <= MAX_DATAGRAM_BYTES:
                on_malformed("datagram", f"expected 1 to {MAX_DATAGRAM_BYTES} bytes, got {len(data)}")
            elif (ssrc := _ssrc_of(data)) is None or ssrc in streams:
                return data
            elif len(streams) < MAX_STREAMS:
                streams.add(ssrc)
                return data
            else:
                on_malformed("rtp", f"expected at most {MAX_STREAMS} streams, got another")

    async def handle_rtp_data(data: bytes, arrival_time_ms: int) -> None:
        try:
            packet = RtpPacket.parse(data, transport._rtp_header_extensions_map)
        except _PARSE_ERRORS as error:
            on_malformed("rtp", str(error))
            return
        receiver = router.route_rtp(packet)
        if receiver is not None:
            try:
                await receiver._handle_rtp_packet(packet, arrival_time_ms=arrival_time_ms)
            except ConnectionError:
                raise
            except Exception as error:  # aiortc's outermost frame, where it ends the connection
                log.debug("an RTP packet could not be taken", exc_info=True)
                on_malformed("rtp", f"{type(error).__name__}: {error}")

    async def handle_rtcp_data(data: bytes) -> None:
        try:
            packets = RtcpPacket.parse(data)
            for packet in packets:
                _check_remb(packet)
        except _PARSE_ERRORS as error:
            on_malformed("rtcp", str(error))
            return
        for packet in packets:
            for recipient in router.route_rtcp(packet):
                try:
                    await recipient._handle_rtcp_packet(packet)
                except ConnectionError:
                    raise
                except Exception as error:  # as above
                    log.debug("an RTCP packet could not be taken", exc_info=True)
                    on_malformed("rtcp", f"{type(error).__name__}: {error}")

    ice_transport._recv = receive_bounded
    # Data channels are not used: aiortc's SCTP, which raises on much and takes any amount, gets no packet.
    transport._register_data_receiver = lambda receiver: None  # type: ignore[method-assign]
    transport._handle_rtp_data = handle_rtp_data  # type: ignore[method-assign]
    transport._handle_rtcp_data = handle_rtcp_data  # type: ignore[method-assign]


def _ssrc_of(data: bytes) -> bytes | None:
    """Returns the SSRC of an SRTP or SRTCP packet, which is not encrypted; None of any other datagram."""
    if len(data) < 12 or not 127 < data[0] < 192:
        return None
    return data[4:8] if is_rtcp(data) else data[8:12]


def _check_remb(packet: AnyRtcpPacket) -> None:
    if isinstance(packet, RtcpPsfbPacket) and packet.fmt == rtp.RTCP_PSFB_APP and packet.fci[:4] == _REMB:
        rtp.unpack_remb_fci(packet.fci)
