"""Packets that no honest peer sends: dropped and told, and the next one is taken."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace

import pytest
from aiortc.rtcdtlstransport import RtpRouter
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    RtpPacket,
    pack_header_extensions,
    pack_remb_fci,
    pack_rtcp_packet,
)
from on_loop import on_loop

from streaming.webrtc.rtp_receiver import MicrophoneReceiver
from streaming.webrtc.rtp_sender import MediaSender
from streaming.webrtc.rtp_validation import MAX_DATAGRAM_BYTES, MAX_STREAMS, drop_malformed

OPUS, SSRC = 111, 7
URIS = (
    "urn:ietf:params:rtp-hdrext:sdes:mid",
    "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
    "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
    "urn:ietf:params:rtp-hdrext:toffset",
    "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
)


class Transport:
    """What of a DTLS transport handles decrypted packets, with a receiver and a sender of ours behind it."""

    def __init__(self):
        self._rtp_router = RtpRouter()
        self._rtp_header_extensions_map = HeaderExtensionsMap()
        self.datagrams, self.told, self.heard, self.estimates = [], [], [], []
        self.keyframes = 0
        self.transport = SimpleNamespace(_recv=self._next)
        self.receiver = MicrophoneReceiver(
            self, report_ssrc=1, on_packet=lambda *packet: self.heard.append(packet)
        )
        self.sender = MediaSender(
            "video",
            self,
            stream_id="s",
            clock_rate_hz=90_000,
            ntp_at=lambda _: 0,
            on_keyframe_wanted=self._want_keyframe,
            on_bandwidth=self.estimates.append,
        )
        self._rtp_router.register_sender(self.sender, ssrc=self.sender._ssrc)
        drop_malformed(self, lambda kind, what: self.told.append((kind, what)))

    async def start(self):
        extensions = [
            RTCRtpHeaderExtensionParameters(id=number, uri=uri) for number, uri in enumerate(URIS, 1)
        ]
        await self.receiver.receive(
            RTCRtpReceiveParameters(
                codecs=[RTCRtpCodecParameters("audio/opus", 48_000, channels=2, payloadType=OPUS)],
                encodings=[RTCRtpDecodingParameters(ssrc=SSRC, payloadType=OPUS)],
                headerExtensions=extensions,
                muxId="0",
            )
        )

    async def rtp(self, data):
        await self._handle_rtp_data(data, arrival_time_ms=0)

    async def rtcp(self, data):
        await self._handle_rtcp_data(data)

    async def still_works(self):
        """Asserts that good packets get through."""
        heard, estimates = len(self.heard), len(self.estimates)
        await self.rtp(rtp_packet())
        await self.rtcp(bytes(remb(self.sender._ssrc)))
        assert len(self.heard) == heard + 1
        assert self.estimates[estimates:] == [300_000]

    async def _next(self):
        return self.datagrams.pop(0)

    def _want_keyframe(self):
        self.keyframes += 1

    def _register_rtp_receiver(self, receiver, parameters):
        self._rtp_header_extensions_map.configure(parameters)
        self._rtp_router.register_receiver(receiver, ssrcs=[SSRC], payload_types=[OPUS], mid="0")

    def _unregister_rtp_receiver(self, receiver):
        self._rtp_router.unregister_receiver(receiver)

    async def _send_rtp(self, data):
        pass


def rtp_packet(extensions=(), *, sequence=1):
    data = RtpPacket(
        payload_type=OPUS, sequence_number=sequence, timestamp=960, ssrc=SSRC, payload=b"opus"
    ).serialize()
    if not extensions:
        return data
    profile, value = pack_header_extensions(list(extensions))
    return with_extension(data, profile, value)


def with_extension(data, profile, value):
    head = bytes([data[0] | 0x10]) + data[1:12]
    return head + struct.pack("!HH", profile, len(value) // 4) + value + data[12:]


def remb(*ssrcs, bitrate=300_000):
    return RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(bitrate, list(ssrcs)))


def report(ssrc):
    return RtcpReceiverInfo(
        ssrc=ssrc, fraction_lost=0, packets_lost=0, highest_sequence=0, jitter=0, lsr=0, dlsr=0
    )


def valid_rtcp(ssrc):
    info = RtcpSenderInfo(ntp_timestamp=1 << 40, rtp_timestamp=960, packet_count=1, octet_count=1)
    return [
        bytes(packet)
        for packet in (
            RtcpSrPacket(ssrc=SSRC, sender_info=info, reports=[report(ssrc)]),
            RtcpRrPacket(ssrc=SSRC, reports=[report(ssrc)]),
            RtcpSdesPacket(chunks=[RtcpSourceInfo(ssrc=SSRC, items=[(1, b"name")])]),
            RtcpByePacket(sources=[SSRC]),
            RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=ssrc, lost=[3, 4, 9]),
            RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=ssrc),
            remb(ssrc),
        )
    ]


MALFORMED_RTP = {
    "too short": b"\x80\x6f\x00",
    "no CSRC where one is announced": bytes([0x8F]) + rtp_packet()[1:],
    "extension longer than the packet": with_extension(rtp_packet(), 0xBEDE, bytes(4))[:14] + b"\xff\xff",
    "one-byte value truncated": with_extension(rtp_packet(), 0xBEDE, b"\x1f\x00\x00\x00"),
    "two-byte value truncated": with_extension(rtp_packet(), 0x1000, b"\x01\xff\x00\x00"),
    "mid is no UTF-8": rtp_packet([(1, b"\xff\xfe")]),
    "stream ids are no ASCII": rtp_packet([(2, b"\xff")]),
    "send time of two bytes": rtp_packet([(4, b"\x01\x02")]),
    "send time of four bytes": rtp_packet([(4, b"\x01\x02\x03\x04")]),
    "offset of one byte": rtp_packet([(5, b"\x01")]),
    "level of two bytes": rtp_packet([(6, b"\x01\x02")]),
    "transport number of one byte": rtp_packet([(7, b"\x01")]),
    "more padding than packet": bytes([rtp_packet()[0] | 0x20]) + rtp_packet()[1:-1] + b"\xff",
}
MALFORMED_RTCP = {
    "REMB of three sources that names one": pack_rtcp_packet(
        206, RTCP_PSFB_APP, struct.pack("!LL", 1, 0) + b"REMB\x03\x04\x93\xe0" + struct.pack("!L", 5)
    ),
    "REMB without an estimate": pack_rtcp_packet(206, RTCP_PSFB_APP, struct.pack("!LL", 1, 0) + b"REMB"),
    "half a header": b"\x80\xc9",
    "longer than the datagram": b"\x80\xc9\x00\xff",
    "report without its blocks": pack_rtcp_packet(201, 3, bytes(4)),
    "sender report without its times": pack_rtcp_packet(200, 0, bytes(4)),
    "feedback without sources": pack_rtcp_packet(206, 1, bytes(4)),
    "NACK without sources": pack_rtcp_packet(205, 1, bytes(4)),
    "BYE of more than it names": pack_rtcp_packet(203, 4, bytes(4)),
    "description beyond the end": pack_rtcp_packet(202, 1, bytes(4) + b"\x01\xff\x00\x00"),
    "a good one, then garbage": bytes(remb(5)) + b"\x00\x01\x02\x03",
    "padding of nothing": bytes([0xA0 | 1]) + pack_rtcp_packet(203, 1, bytes(4))[1:],
}


@pytest.mark.parametrize(
    ("kind", "data"),
    [("rtp", data) for data in MALFORMED_RTP.values()] + [("rtcp", data) for data in MALFORMED_RTCP.values()],
    ids=[*MALFORMED_RTP, *MALFORMED_RTCP],
)
@on_loop
async def test_a_malformed_packet_is_dropped_and_told(kind, data):
    transport = Transport()
    await transport.start()
    await getattr(transport, kind)(data)
    assert [told for told, _ in transport.told] == [kind]
    assert transport.heard == transport.estimates == []
    await transport.still_works()
    await transport.receiver.stop()


@on_loop
async def test_good_packets_are_told_as_nothing():
    transport = Transport()
    await transport.start()
    for data in valid_rtcp(transport.sender._ssrc):
        await transport.rtcp(data)
    await transport.rtcp(pack_rtcp_packet(206, RTCP_PSFB_APP, bytes(8) + b"OTHERAPP"))
    for extensions in ([], [(1, b"0")], [(4, b"\x01\x02\x03"), (6, b"\x80")], [(14, b"unknown")]):
        await transport.rtp(rtp_packet(extensions))
    assert transport.told == []
    assert len(transport.heard) == 4
    assert (transport.estimates, transport.keyframes) == ([300_000], 1)
    await transport.receiver.stop()


def mutated(data, dice):
    """Returns a packet with bits turned, bytes put in or cut off."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed)) if changed else 0
        match dice.randrange(4):
            case 0 if changed:
                changed[at] ^= 1 << dice.randrange(8)
            case 1 if changed:
                changed[at] = dice.choice((0, 1, 3, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = dice.randbytes(dice.randint(1, 5))
    return bytes(changed)


@on_loop
async def test_no_mutation_of_a_packet_gets_out_of_the_handlers():
    transport, dice = Transport(), random.Random(11)
    await transport.start()
    control = valid_rtcp(transport.sender._ssrc)
    control.append(b"".join(control))
    sounds = [
        rtp_packet(),
        rtp_packet([(1, b"0"), (4, b"\x01\x02\x03"), (6, b"\x80"), (7, b"\x00\x01")]),
        rtp_packet([(2, b"r"), (3, b"s"), (5, b"\x01\x02\x03"), (20, b"two-byte")]),
    ]
    for _ in range(4000):
        await transport.rtcp(mutated(dice.choice(control), dice))
        await transport.rtp(mutated(dice.choice(sounds), dice))
    assert {kind for kind, _ in transport.told} == {"rtp", "rtcp"}
    assert transport.heard  # some mutations are harmless
    await transport.still_works()
    await transport.receiver.stop()


@on_loop
async def test_datagrams_of_no_possible_length_are_not_handed_on():
    transport = Transport()
    good = bytes(MAX_DATAGRAM_BYTES)
    transport.datagrams = [b"", bytes(MAX_DATAGRAM_BYTES + 1), bytes(65_000), good]
    assert await transport.transport._recv() == good
    assert [kind for kind, _ in transport.told] == ["datagram"] * 3


@on_loop
async def test_a_lost_connection_is_no_malformed_packet():
    transport = Transport()
    await transport.start()

    async def gone(*_, **__):
        raise ConnectionError

    transport.receiver._handle_rtp_packet = transport.sender._handle_rtcp_packet = gone
    with pytest.raises(ConnectionError):
        await transport.rtp(rtp_packet())
    with pytest.raises(ConnectionError):
        await transport.rtcp(bytes(remb(transport.sender._ssrc)))
    assert transport.told == []
    await transport.receiver.stop()


@on_loop
async def test_a_packet_that_a_handler_fails_on_is_dropped():
    transport = Transport()
    await transport.start()

    def fails(*_):
        raise ZeroDivisionError("bug")

    transport.receiver._on_packet = transport.sender._on_bandwidth = fails
    await transport.rtp(rtp_packet())
    await transport.rtcp(bytes(remb(transport.sender._ssrc)))
    assert [kind for kind, _ in transport.told] == ["rtp", "rtcp"]
    await transport.receiver.stop()


@on_loop
async def test_a_peer_has_so_many_streams_and_no_more():
    transport = Transport()
    packets = [
        RtpPacket(payload_type=OPUS, ssrc=ssrc, payload=b"x").serialize() for ssrc in range(MAX_STREAMS + 3)
    ]
    reports = [
        pack_rtcp_packet(201, 0, struct.pack("!L", ssrc) + bytes(4))
        for ssrc in range(MAX_STREAMS, MAX_STREAMS + 2)
    ]
    transport.datagrams += [*packets, *reports, packets[0], b"\x16DTLS"]
    taken = [await transport.transport._recv() for _ in range(MAX_STREAMS + 2)]
    assert taken == [*packets[:MAX_STREAMS], packets[0], b"\x16DTLS"]
    assert transport.told == [("rtp", f"expected at most {MAX_STREAMS} streams, got another")] * 5
