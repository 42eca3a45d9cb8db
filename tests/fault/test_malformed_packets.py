"""A peer that has the keys and sends packets that cannot be parsed: its call goes on."""

from __future__ import annotations

import socket
import struct

import pytest
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, pack_remb_fci, pack_rtcp_packet
from on_loop import on_loop, until
from webrtc_client import connect, ends, use_loopback


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    use_loopback(monkeypatch)


@on_loop
async def test_a_call_outlives_malformed_packets_and_oversized_datagrams():
    async with ends() as (ours, theirs):
        told = []
        ours.peer._on_malformed = lambda kind, what: told.append(kind)
        await connect(ours, theirs)
        transport = theirs.video.receiver.transport
        ids = {1: b"\xff\xfe", 2: b"\x01\x02", 3: b"\x01"}
        for number, value in ids.items():
            extension = bytes([number << 4 | (len(value) - 1)]) + value
            extension += bytes(-len(extension) % 4)
            head = struct.pack("!BBHLL", 0x90, 96, number, 0, 99)
            await transport._send_rtp(
                head + struct.pack("!HH", 0xBEDE, len(extension) // 4) + extension + b"opus"
            )
        truncated = b"REMB\x05\x04\x93\xe0"
        await transport._send_rtp(pack_rtcp_packet(206, RTCP_PSFB_APP, struct.pack("!LL", 1, 0) + truncated))
        pair = ours.peer._ice._nominated[1]
        host, port = pair.protocol.transport.get_extra_info("sockname")[:2]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"\x80" * 4000, (host, port))  # not heard at all
        await transport.transport._send(b"\x80" * 4000)
        fci = pack_remb_fci(300_000, [ours.peer.video._ssrc])
        await transport._send_rtp(bytes(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci)))
        await until(lambda: ours.bandwidths and "datagram" in told, what="the good packet")
        assert 300_000 in ours.bandwidths
        assert {"rtp", "rtcp", "datagram"} <= set(told)
        assert told.count("datagram") == 1
        assert ours.peer.state == "connected"
