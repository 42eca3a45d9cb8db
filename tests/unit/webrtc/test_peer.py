"""A connection between our peer and aiortc's, over real sockets on the loopback."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import re
import socket

import numpy as np
import offers
import pytest
from aioice import ice as aioice_ice
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCRtpSender, RTCRtpTransceiver
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.rtcconfiguration import RTCBundlePolicy, RTCConfiguration
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.sdp import SessionDescription
from on_loop import on_loop, until
from webrtc_client import (
    BLOCK_SAMPLES,
    PICTURE_PX,
    SOUND_RATE_HZ,
    Ours,
    connect,
    ends,
    picture,
    threads,
    tone,
    use_loopback,
)

from streaming.webrtc.ice import LOOPBACK, IceServer
from streaming.webrtc.opus import OpusEncoder
from streaming.webrtc.peer import Peer, PeerSettings
from streaming.webrtc.rtp_extensions import PLAYOUT_DELAY_URI
from streaming.webrtc.sdp_offer import NotAcceptableError, Offer, OfferError
from streaming.webrtc.video_encoder import CODECS

H264, VP8 = CODECS
# Of this machine's addresses alone: no connectivity check leaves it.
BROWSERS = {name: text.replace("192.0.2.", "127.0.2.") for name, text in offers.BROWSERS.items()}
CHROME, FIREFOX, SAFARI = (BROWSERS[name] for name in ("Chrome", "Firefox", "Safari"))


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    use_loopback(monkeypatch)


def sections(sdp):
    return {section.kind: section for section in SessionDescription.parse(sdp).media}


def codec_names(sdp, kind="video"):
    return [codec.name for codec in sections(sdp)[kind].rtp.codecs]


async def answered(text, settings=None):
    """Returns the answer to an offer that nobody follows up."""
    ours = Ours(settings)
    try:
        return await ours.answer(text), ours
    finally:
        await ours.peer.aclose()
        await asyncio.sleep(0)  # what aiortc had begun just before sees that it is over


# Both ways --------------------------------------------------------------------------------------------


@on_loop
async def test_the_microphone_s_packets_arrive_in_order_and_are_timed():
    async with ends() as (ours, theirs):
        await connect(ours, theirs)
        await until(lambda: len(ours.packets) >= 25, what="half a second of sound")
        assert ours.states[:2] == ["connecting", "connected"]
        assert ours.peer.packets_received >= 25
    sequences, timestamps, payloads, arrived_s = zip(*ours.packets, strict=True)
    assert set(np.diff(sequences) % 2**16) == {1}
    assert set(np.diff(timestamps) % 2**32) == {BLOCK_SAMPLES}
    assert min(map(len, payloads)) > 10
    assert list(arrived_s) == sorted(arrived_s)
    assert ours.schedule.start_s < arrived_s[0]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@on_loop
async def test_pictures_and_sound_arrive_as_they_were_sent(codec):
    async with ends(codecs=[codec.name]) as (ours, theirs):
        await connect(ours, theirs)
        assert ours.peer.codec is codec
        assert ours.keyframes_wanted >= 1  # the first picture that anyone sees
        encoder = codec.open(size_px=PICTURE_PX, bitrate=2_000_000)
        sound = OpusEncoder()
        for number in range(20):
            payloads = encoder.encode(picture(number), number)
            ours.peer.video.push(payloads, 3600 * number, 40.0)
            for block in (2 * number, 2 * number + 1):
                samples = tone(block * BLOCK_SAMPLES, BLOCK_SAMPLES)
                ours.peer.sound.push([sound.encode(samples)], block * BLOCK_SAMPLES, 20.0, -13.0)
            await asyncio.sleep(0.01)
        # The last picture comes out when the next one begins, the last sounds stay in aiortc's buffer.
        await until(lambda: len(theirs.pictures) >= 19 and len(theirs.sounds) >= 20, what="all of them")
        frames = [frame for _, frame in theirs.pictures[:19]]
        heard = [frame for _, frame in theirs.sounds]
    begin = frames[0].pts
    assert [frame.pts - begin for frame in frames] == [3600 * number for number in range(19)]
    for number, frame in enumerate(frames):
        luma, sent = frame.to_ndarray()[:PICTURE_PX], picture(number)[:PICTURE_PX]
        assert np.abs(luma.astype(int) - sent).mean() < 6, number
    stereo = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in heard[5:]])
    spectrum = np.abs(np.fft.rfft(stereo[:, 0].astype(float)))
    loudest_hz = spectrum.argmax() * SOUND_RATE_HZ / len(stereo)
    assert loudest_hz == pytest.approx(440, abs=5)


@on_loop
async def test_without_a_microphone_the_face_is_seen_all_the_same():
    async with ends(microphone=False, codecs=["VP8"]) as (ours, theirs):
        answer = await connect(ours, theirs)
        assert sections(answer)["audio"].direction == "sendonly"
        encoder = VP8.open(size_px=PICTURE_PX, bitrate=1_000_000)
        for number in range(3):
            ours.peer.video.push(encoder.encode(picture(number), number), 3600 * number, 40.0)
        await until(lambda: len(theirs.pictures) >= 2)
        assert ours.packets == []


# What is agreed on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferred", "offered", "agreed"),
    [
        ((H264, VP8), ["VP8", "H264"], H264),  # ours counts, whatever theirs is
        ((VP8, H264), ["H264", "VP8"], VP8),
        ((H264, VP8), ["VP8"], VP8),
        ((VP8, H264), ["H264"], H264),
        ((VP8,), ["H264", "VP8"], VP8),
    ],
)
@on_loop
async def test_the_first_of_our_codecs_that_they_know_is_taken(preferred, offered, agreed):
    async with ends(codecs=offered, settings=PeerSettings(codecs=preferred)) as (ours, theirs):
        answer = await ours.answer(await theirs.offer())
        assert ours.peer.codec is agreed
        assert codec_names(answer)[:2] == [agreed.name, "rtx"]


@pytest.mark.parametrize(
    ("text", "name", "payload_type"),
    [(CHROME, "H264", 103), (FIREFOX, "H264", 126), (SAFARI, "H264", 98)],
    ids=BROWSERS,
)
@on_loop
async def test_browsers_are_answered_by_their_own_numbers(text, name, payload_type):
    answer, ours = await answered(text)
    seen = sections(answer)
    assert list(seen) == list(sections(text))
    first = seen["video"].rtp.codecs[0]
    assert (first.name, first.payloadType, ours.peer.codec.name) == (name, payload_type, name)
    assert seen["video"].rtp.codecs[1].parameters == {"apt": payload_type}
    assert seen["video"].direction == "sendonly"
    assert seen["audio"].rtp.codecs[0].parameters == {"minptime": 10, "useinbandfec": 1}
    assert [codec.name for codec in seen["audio"].rtp.codecs] == ["opus"]


@on_loop
async def test_playout_delay_is_agreed_on_where_it_is_offered():
    for text, number in ((CHROME, 5), (FIREFOX, 8), (SAFARI, None)):
        answer, _ = await answered(text)
        agreed = {e.uri: e.id for e in sections(answer)["video"].rtp.headerExtensions}
        assert agreed.get(PLAYOUT_DELAY_URI) == number
        sound = {e.uri for e in sections(answer)["audio"].rtp.headerExtensions}
        assert PLAYOUT_DELAY_URI not in sound


@on_loop
async def test_sound_and_pictures_belong_together():
    answer, ours = await answered(CHROME)
    seen = sections(answer)
    stream_of = {kind: section.msid.split()[0] for kind, section in seen.items()}
    track_of = {kind: section.msid.split()[1] for kind, section in seen.items()}
    assert stream_of["audio"] == stream_of["video"]
    assert track_of["audio"] != track_of["video"]
    assert {source.cname for section in seen.values() for source in section.ssrc} == {
        seen["audio"].ssrc[0].cname
    }
    assert seen["video"].ssrc[0].ssrc == ours.peer.video._ssrc
    other, _ = await answered(CHROME)
    assert sections(other)["audio"].msid.split()[0] != stream_of["audio"]


@on_loop
async def test_the_answer_has_our_own_addresses_only(monkeypatch):
    def asked(self, message, addr):
        raise AssertionError(f"{addr} was asked")

    monkeypatch.setattr(aioice_ice.StunProtocol, "send_stun", asked)
    answer, _ = await answered(without_candidates(CHROME))
    candidates = [candidate for section in sections(answer).values() for candidate in section.ice_candidates]
    assert {(candidate.type, candidate.ip) for candidate in candidates} == {("host", LOOPBACK)}


def without_candidates(text):
    return re.sub(r"(?m)^a=candidate.*\r?\n", "", text)


@pytest.mark.parametrize(
    "change",
    [
        lambda sdp: sdp.replace("VP8/90000", "VP9/90000").replace("H264/90000", "AV1/90000"),
        lambda sdp: sdp.replace("packetization-mode=1", "packetization-mode=0").replace(
            "VP8/90000", "VP9/90000"
        ),
        lambda sdp: sdp.replace("opus/48000/2", "speex/48000/2"),
        lambda sdp: sdp.replace("opus/48000/2", "opus/24000/2"),
    ],
    ids=["VP9 and AV1", "H264 in another mode", "no Opus", "Opus at another rate"],
)
@pytest.mark.parametrize("text", [CHROME, FIREFOX], ids=["Chrome", "Firefox"])
@on_loop
async def test_an_offer_with_nothing_in_common_is_refused(text, change):
    with pytest.raises(
        NotAcceptableError, match=r"^sdp: expected (audio as opus/48000/2|video as H264 .* or VP8), got .+"
    ) as caught:
        await answered(change(text))
    assert len(str(caught.value).splitlines()) == 1


# Sections that are rejected ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(
    "added",
    [
        [("video", "recvonly")],
        [("video", "inactive"), ("audio", "inactive")],
        [("audio", "sendrecv"), ("video", "sendrecv"), ("audio", "recvonly")],
    ],
)
@on_loop
async def test_further_sections_are_answered_as_rejected_and_the_call_goes_on(added, data):
    async with ends(data=data) as (ours, theirs):
        for kind, direction in added:
            theirs.connection.addTransceiver(kind, direction)
        offer = await theirs.offer()
        answer = await ours.answer(offer)
        offered, found = (SessionDescription.parse(sdp).media for sdp in (offer, answer))
        assert [(s.kind, s.rtp.muxId) for s in found] == [(s.kind, s.rtp.muxId) for s in offered]
        taken = ["audio", "video", *(["application"] if data else [])]
        assert [s.kind for s in found if s.port] == taken
        assert [(s.port, s.direction) for s in found if s.kind != "application" and not s.port] == [
            (0, "inactive")
        ] * len(added)
        (group,) = SessionDescription.parse(answer).group
        assert group.items == [s.rtp.muxId for s in found if s.port]
        await theirs.accept(answer)
        await until(lambda: theirs.connection.connectionState == "connected" and ours.peer.video.connected)
        await until(lambda: len(ours.packets) > 5)
        encoder = ours.peer.codec.open(size_px=PICTURE_PX, bitrate=1_000_000)
        for number in range(3):
            ours.peer.video.push(encoder.encode(picture(number), number), 3600 * number, 40.0)
        await until(lambda: len(theirs.pictures) >= 2)


@on_loop
async def test_sections_of_other_kinds_are_rejected_in_their_place():
    other = "m=message 2855 TCP/MSRP *\r\na=mid:msrp\r\nm=text 0 RTP/AVP 98 99\r\na=rtpmap:98 t140/1000\r\n"
    answer, _ = await answered(CHROME.replace("m=video", f"{other}m=video").replace("0 1", "0 msrp 1"))
    lines = answer.splitlines()
    media = [line for line in lines if line.startswith("m=")]
    assert media[0].startswith("m=audio ")
    assert media[1:3] == ["m=message 0 TCP/MSRP *", "m=text 0 RTP/AVP 98 99"]
    assert media[3].startswith("m=video ")
    assert "a=group:BUNDLE 0 1" in lines
    at = lines.index("m=message 0 TCP/MSRP *")
    assert lines[at + 1 : at + 6] == [
        "c=IN IP4 0.0.0.0",
        "a=inactive",
        "a=mid:msrp",
        media[2],
        "c=IN IP4 0.0.0.0",
    ]


@on_loop
async def test_the_answer_is_by_the_protocol_of_the_offer():
    """RFC 9429, 5.3.1; and no group where there was none, RFC 8843, 7.3."""
    answer, _ = await answered(CHROME.replace("UDP/TLS/RTP/SAVPF", "RTP/SAVPF"))
    assert {s.profile for s in SessionDescription.parse(answer).media} == {"RTP/SAVPF"}
    answer, _ = await answered(FIREFOX.replace("UDP/DTLS/SCTP", "TCP/DTLS/SCTP"))
    assert sections(answer)["application"].profile == "TCP/DTLS/SCTP"
    head, _, video = CHROME.partition("m=video")
    alone = re.sub("(?m)^(a=group|a=mid).*\n", "", head[: head.index("m=audio")] + "m=video" + video)
    answer, _ = await answered(alone)
    assert list(sections(answer)) == ["video"]
    assert "a=group" not in answer
    assert "a=mid" not in answer


@on_loop
async def test_header_extensions_are_answered_in_the_other_direction():
    """RFC 8285, 6."""
    answer, _ = await answered(FIREFOX)
    assert f"a=extmap:8/sendonly {PLAYOUT_DELAY_URI}" in answer
    assert "a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid" in answer
    answer, _ = await answered(CHROME.replace("a=extmap:5 ", "a=extmap:5/sendonly "))
    assert PLAYOUT_DELAY_URI not in answer


@on_loop
async def test_an_unwanted_section_whose_transport_all_use_is_inactive_in_the_answer():
    async with ends() as (ours, theirs):
        theirs.connection.getTransceivers()[0].direction = "inactive"
        answer = await ours.answer(await theirs.offer())
        sound, video = SessionDescription.parse(answer).media
        assert (sound.direction, video.direction) == ("inactive", "sendonly")
        assert sound.port == video.port != 0
        assert sound.ice == video.ice
        assert sound.ice_candidates == video.ice_candidates
        assert SessionDescription.parse(answer).group[0].items == ["0", "1"]
        await theirs.accept(answer)
        await until(lambda: theirs.connection.connectionState == "connected" and ours.peer.video.connected)


@on_loop
async def test_the_bundle_s_order_is_kept():
    answer, _ = await answered(CHROME.replace("BUNDLE 0 1", "BUNDLE 1 0"))
    assert "a=group:BUNDLE 1 0\r\n" in answer
    assert list(sections(answer)) == ["audio", "video"]


@on_loop
async def test_what_aiortc_cannot_apply_is_an_offer_error(monkeypatch, caplog):
    async def refuse(self, description):
        raise ValueError("two\nlines")

    monkeypatch.setattr(RTCPeerConnection, "setRemoteDescription", refuse)
    with pytest.raises(
        OfferError, match=r"^sdp: expected an offer that can be applied, got another; "
    ) as caught:
        await answered(CHROME)
    assert "ValueError" not in str(caught.value)
    assert "an offer could not be applied: 'ValueError: two'" in caplog.text


# Ways of connecting -----------------------------------------------------------------------------------


@on_loop
async def test_an_offer_of_local_names_only_connects_without_asking_for_them(monkeypatch):
    async def resolve(subscriber):
        raise AssertionError("a .local name was asked for")

    monkeypatch.setattr(aioice_ice, "get_or_create_mdns_protocol", resolve)

    def hide(sdp):
        hidden = re.sub(r"(a=candidate:\S+ \d udp \d+) 127\.0\.0\.1", r"\1 0a1b2c3d.local", sdp)
        assert hidden.count(".local") >= 2
        return hidden

    async with ends() as (ours, theirs):
        await connect(ours, theirs, change=hide)
        await until(lambda: ours.packets)


@pytest.mark.parametrize("change", [without_candidates, lambda sdp: sdp.replace("\r\n", "\n")])
@on_loop
async def test_an_offer_without_candidates_or_with_bare_line_ends_connects(change):
    async with ends() as (ours, theirs):
        await connect(ours, theirs, change=change)
        await until(lambda: ours.packets)


@on_loop
async def test_the_candidates_of_the_first_section_of_the_bundle_are_tried():
    """As TURN needs it: a relay lets through only those that were tried."""
    async with ends(data=True) as (ours, theirs):
        offer = await theirs.offer()
        ports = {kind: section.ice_candidates[0].port for kind, section in sections(offer).items()}
        assert len(set(ports.values())) == 3
        await ours.answer(offer)
        transport = ours.peer.sound.transport.transport
        assert [candidate.port for candidate in transport.getRemoteCandidates()] == [ports["audio"]]


@pytest.mark.parametrize("data", [True, False])
@on_loop
async def test_a_bundle_that_begins_with_another_section_connects(data):
    """aiortc would stop the transport that all share."""

    def turn(sdp):
        turned = sdp.replace("BUNDLE 0 1 2", "BUNDLE 2 1 0").replace("BUNDLE 0 1\r", "BUNDLE 1 0\r")
        assert turned != sdp
        return turned

    async with ends(data=data) as (ours, theirs):
        answer = await ours.answer(turn(await theirs.offer()))
        assert "a=candidate" in answer
        assert ours.peer.state != "closed"
        assert ours.peer.sound.transport.transport.state != "closed"


@on_loop
async def test_data_is_accepted_and_nobody_hears_it():
    async with ends(data=True) as (ours, theirs):
        answer = await connect(ours, theirs)
        assert list(sections(answer)) == ["audio", "video", "application"]
        await until(lambda: ours.packets)
        await theirs.connection.sctp.transport._send_data(b"no SCTP")
        before = len(ours.packets)
        await until(lambda: len(ours.packets) > before + 10, what="sound after that")
        assert ours.peer.sound.transport._data_receiver is None
        assert theirs.connection.sctp.state == "connecting"
        assert ours.peer.state == "connected"


@on_loop
async def test_ports_come_from_the_range():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    settings = PeerSettings(port_range=(port, port))
    async with ends(settings=settings) as (ours, theirs):
        answer = await connect(ours, theirs)
        assert {c.port for section in sections(answer).values() for c in section.ice_candidates} == {port}
        with pytest.raises(OSError, match="--udp-port-range"):
            await answered(CHROME, settings)
    answer, _ = await answered(CHROME, settings)  # free again
    assert f" {port} typ host" in answer


@on_loop
async def test_without_a_range_nobody_is_told_to_widen_it(monkeypatch):
    monkeypatch.setattr(aioice_ice, "get_host_addresses", lambda **_: ["192.0.2.1"])  # nobody's
    with pytest.raises(OSError, match="no UDP port could be opened"):
        await answered(CHROME)


@on_loop
async def test_strangers_at_the_port_do_no_harm():
    loop = asyncio.get_running_loop()
    faults = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    async with ends() as (ours, theirs):
        answer = await connect(ours, theirs)
        port = sections(answer)["audio"].ice_candidates[0].port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for data in (
                b"",
                b"\x00",
                b"\x16",
                b"\x80",
                b"\x80" * 40,
                b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12),
            ):
                stranger.sendto(data, (LOOPBACK, port))
        before = len(ours.packets)
        await until(lambda: len(ours.packets) > before + 10, what="sound after that")
        assert ours.peer.state == "connected"
    assert faults == []


ALERT = b"\x15\xfe\xfd" + bytes(8) + b"\x00\x02\x02\x28"  # DTLS: a fatal handshake failure


@pytest.mark.parametrize(
    "data", [ALERT, b"\x16\xfe\xfd" + b"\xff" * 12, b"\x80" * 40], ids=["alert", "hello", "rtp"]
)
@on_loop
async def test_strangers_do_not_end_a_connection_that_comes_about(data):
    async with ends() as (ours, theirs):
        answer = await ours.answer(await theirs.offer())
        port = sections(answer)["audio"].ice_candidates[0].port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((LOOPBACK, 0))
            await theirs.accept(answer)
            while ours.peer.state not in ("connected", "failed", "closed"):
                stranger.sendto(data, (LOOPBACK, port))
                await asyncio.sleep(0)
        assert ours.peer.state == "connected"
        await until(lambda: ours.packets, what="sound")


# The end ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_peer_that_leaves_is_noticed_and_closing_is_safe_then():
    before = threads()
    async with ends() as (ours, theirs):
        await connect(ours, theirs)
        await theirs.aclose()
        await until(lambda: ours.states[-1] in ("closed", "failed"), what="its end")
        await ours.peer.aclose()
    assert threads() == before


@on_loop
async def test_a_peer_closed_twice_leaves_no_thread_no_task_and_no_port():
    before = threads()
    async with ends(data=True) as (ours, theirs):
        answer = await connect(ours, theirs)
        await asyncio.gather(ours.peer.aclose(), ours.peer.aclose())
        await ours.peer.aclose()
        assert ours.peer.state == "closed"
        assert ours.states[-1] == "closed"
        assert not ours.peer.video.connected
        ours.peer.video.push([b"late"], 0, 40.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind((LOOPBACK, sections(answer)["audio"].ice_candidates[0].port))
    assert threads() == before


@on_loop
async def test_a_peer_closes_before_the_answer():
    ours = Ours()
    await ours.peer.aclose()
    await ours.peer.aclose()
    assert ours.peer.state == "closed"
    assert ours.peer.packets_received == 0


@on_loop
async def test_a_peer_closes_while_nobody_comes():
    ours = Ours()
    await ours.answer(CHROME)
    await until(lambda: ours.peer.state == "connecting")
    await ours.peer.aclose()
    assert ours.peer.state == "closed"


def connecting():
    """Returns the tasks of aiortc and aioice that work on a connection."""
    return [task for task in asyncio.all_tasks() if "connect" in str(task.get_coro())]


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 10, 20, 40])
@on_loop
async def test_a_peer_closes_in_mid_connection(rounds):
    before, faults = threads(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with ends() as (ours, theirs):
        await theirs.accept(await ours.answer(await theirs.offer()))
        for _ in range(rounds):
            await asyncio.sleep(0.002)
        await ours.peer.aclose()
        await theirs.aclose()
        await until(lambda: not connecting(), what="the end of what had begun")
        assert not ours.peer.video.connected
    gc.collect()  # what failed unheard is told when it goes
    assert faults == []
    assert threads() == before


@on_loop
async def test_a_peer_closes_while_it_gathers():
    loop = asyncio.get_running_loop()
    silent, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOOPBACK, 0))
    port = silent.get_extra_info("sockname")[1]
    ours = Ours(ice_servers=(IceServer.parse(f"stun:{LOOPBACK}:{port}"),))
    answering = asyncio.create_task(ours.answer(CHROME))
    await until(
        lambda: ours.peer.sound is not None and ours.peer.sound.transport.transport._connection._asked
    )
    await ours.peer.aclose()
    with pytest.raises(OSError, match="closed before it was answered"):
        await answering
    silent.close()


@on_loop
async def test_a_sender_that_failed_ends_the_connection(caplog):
    async with ends() as (ours, theirs):
        await connect(ours, theirs)
        with caplog.at_level(logging.ERROR):
            ours.peer.video.push(["no bytes"], 0, 40.0)
            await until(lambda: ours.states[-1] == "failed")
    assert "the video sender failed" in caplog.text


@on_loop
async def test_a_peer_gives_up_a_close_that_hangs(monkeypatch):
    ours = Ours()

    async def hang():
        await asyncio.Event().wait()

    close = ours.peer._connection.close
    monkeypatch.setattr(ours.peer._connection, "close", hang)
    monkeypatch.setattr("streaming.webrtc.peer._CLOSE_S", 0.05)
    await ours.peer.aclose()
    await close()
    assert ours.peer.state == "closed"


# What we replace of aiortc ----------------------------------------------------------------------------


def test_the_private_parts_of_aiortc_that_we_replace_are_there():
    """Fails first when an update moved one of them: docs/decisions/0003-what-we-own-of-webrtc.md."""

    async def look():
        connection = RTCPeerConnection(
            RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        sound, video = connection.addTransceiver("audio"), connection.addTransceiver("video")
        held = vars(sound)
        assert isinstance(held["_RTCRtpTransceiver__sender"], RTCRtpSender)
        assert isinstance(held["_RTCRtpTransceiver__receiver"], RTCRtpReceiver)
        assert {"_bundled", "_codecs", "_headerExtensions", "_offerDirection"} <= set(held)
        assert video.receiver.transport is sound.receiver.transport
        dtls = sound.receiver.transport
        assert {"packetsReceived"} <= set(vars(next(iter(dtls._get_stats().values()))))
        transport = dtls.transport
        assert transport.iceGatherer._connection is transport._connection
        assert {"_recv", "_send", "_role_set"} <= set(vars(transport))
        assert "_RTCPeerConnection__certificates" in vars(connection)
        assert "_ssl" in vars(dtls)
        assert {"_protocols", "_queue", "_closing", "_local_candidates"} <= set(vars(transport._connection))
        # What aiortc uses of a sender and of a receiver, ours have.
        ours = Ours()
        await ours.answer(CHROME)
        for name in (
            "_ssrc",
            "_rtx_ssrc",
            "_stream_id",
            "_track_id",
            "_enabled",
            "transport",
            "track",
            "kind",
        ):
            assert hasattr(sound.sender, name)
            assert hasattr(ours.peer.video, name)
        for name in ("_enabled", "_track", "track", "transport"):
            assert hasattr(sound.receiver, name)
            assert hasattr(ours.peer.microphone, name)
        for theirs, own in ((RTCRtpSender, ours.peer.video), (RTCRtpReceiver, ours.peer.microphone)):
            for name in ("send", "receive", "stop", "setTransport", "getStats", "_handle_rtcp_packet"):
                assert hasattr(own, name) == hasattr(theirs, name)
                if hasattr(theirs, name):
                    expected = list(inspect.signature(getattr(theirs, name)).parameters)[1:]
                    assert list(inspect.signature(getattr(own, name)).parameters) == expected, name
        await ours.peer.aclose()
        await connection.close()

    asyncio.run(look())


@pytest.mark.parametrize(
    ("owner", "name", "arguments"),
    [
        (RTCDtlsTransport, "_send_rtp", ["data"]),
        (RTCDtlsTransport, "_register_rtp_sender", ["sender", "parameters"]),
        (RTCDtlsTransport, "_unregister_rtp_sender", ["sender"]),
        (RTCDtlsTransport, "_register_rtp_receiver", ["receiver", "parameters"]),
        (RTCDtlsTransport, "_unregister_rtp_receiver", ["receiver"]),
        (RTCRtpReceiver, "_handle_rtp_packet", ["packet", "arrival_time_ms"]),
        (RTCRtpReceiver, "_handle_rtcp_packet", ["packet"]),
        (RTCRtpReceiver, "_handle_disconnect", []),
        (RTCRtpReceiver, "_set_rtcp_ssrc", ["ssrc"]),
        (RTCRtpSender, "_handle_rtcp_packet", ["packet"]),
        (RTCRtpTransceiver, "setCodecPreferences", ["codecs"]),
        (RTCIceTransport, "addRemoteCandidate", ["candidate"]),
        (RTCDtlsTransport, "_validate_peer_identity", ["remoteParameters"]),
        (RTCCertificate, "_create_ssl_context", ["srtp_profiles"]),
        (aioice_ice.StunProtocol, "send_stun", ["message", "addr"]),
        (aioice_ice.Connection, "_pair_remote_candidate", ["remote_candidate"]),
        (aioice_ice.Connection, "check_incoming", ["message", "addr", "protocol"]),
        (aioice_ice.Connection, "get_component_candidates", ["component", "addresses", "timeout"]),
        (aioice_ice.Connection, "data_received", ["data", "component"]),
        (aioice_ice.StunProtocol, "datagram_received", ["data", "addr"]),
        (H264Encoder, "_packetize", ["packages"]),
        (H264Encoder, "_split_bitstream", ["buf"]),
        (Vp8Encoder, "_packetize", ["buffer", "picture_id"]),
        (StreamStatistics, "add", ["packet"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_methods_of_aiortc_that_we_call_or_stand_for_take_what_we_think(owner, name, arguments):
    parameters = [p for p in inspect.signature(getattr(owner, name)).parameters if p not in ("self", "cls")]
    assert parameters == arguments


def test_the_seam_is_offer_in_and_answer_out():
    assert list(inspect.signature(Peer.answer).parameters) == ["self", "offer"]
    assert Offer.parse(CHROME).kinds
