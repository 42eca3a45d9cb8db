"""What is sent, seen from the other end of an in-memory transport."""

from __future__ import annotations

import asyncio
import itertools
import logging
from types import SimpleNamespace

import pytest
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpByePacket,
    RtcpPacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSrPacket,
    RtpPacket,
    is_rtcp,
    pack_remb_fci,
    unpack_header_extensions,
    unwrap_rtx,
)
from on_loop import on_loop, until

from streaming.webrtc import rtp_sender
from streaming.webrtc.media_schedule import MediaSchedule
from streaming.webrtc.rtp_extensions import PLAYOUT_DELAY_URI
from streaming.webrtc.rtp_sender import MAX_RESENT_PER_S, MIN_RESEND_S, MediaSender

MID, SEND_TIME, LEVEL, PLAYOUT = 3, 4, 5, 6
URIS = {
    MID: "urn:ietf:params:rtp-hdrext:sdes:mid",
    SEND_TIME: "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
    LEVEL: "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
    PLAYOUT: PLAYOUT_DELAY_URI,
}
VIDEO, RTX, OPUS = 97, 98, 111
RATES = {"audio": 48_000, "video": 90_000}
FRAME_MS = 40.0


class Wire:
    """A transport that keeps what it is given, and can break."""

    def __init__(self):
        self.sent: list[bytes] = []
        self.senders = []
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.extensions = HeaderExtensionsMap()

    def _register_rtp_sender(self, sender, parameters):
        self.senders.append(sender)
        self.extensions.configure(parameters)

    def _unregister_rtp_sender(self, sender):
        self.senders.remove(sender)

    async def _send_rtp(self, data):
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(data)

    @property
    def packets(self):
        return [RtpPacket.parse(data, self.extensions) for data in self.sent if not is_rtcp(data)]

    @property
    def control(self):
        return [packet for data in self.sent if is_rtcp(data) for packet in RtcpPacket.parse(data)]

    @property
    def reports(self):
        return [packet for packet in self.control if isinstance(packet, RtcpSrPacket)]


def parameters(kind="video", *, rtx=True, extensions=(MID, SEND_TIME, LEVEL, PLAYOUT)):
    if kind == "audio":
        codecs = [RTCRtpCodecParameters("audio/opus", 48_000, channels=2, payloadType=OPUS)]
    else:
        codecs = [RTCRtpCodecParameters("video/VP8", 90_000, payloadType=VIDEO)]
    if rtx and kind == "video":
        codecs.append(RTCRtpCodecParameters("video/rtx", 90_000, payloadType=RTX, parameters={"apt": VIDEO}))
    return RTCRtpSendParameters(
        codecs=codecs,
        headerExtensions=[RTCRtpHeaderExtensionParameters(id=i, uri=URIS[i]) for i in extensions],
        muxId="1",
        rtcp=RTCRtcpParameters(cname="face"),
    )


def sender_of(kind="video", **options):
    options = {"stream_id": "s", "clock_rate_hz": RATES[kind], "ntp_at": lambda _: 0} | options
    return MediaSender(kind, Wire(), **options)


async def settled(rounds=5):
    for _ in range(rounds):
        await asyncio.sleep(0)


def report(sender, *, lsr=0, dlsr=0, fraction_lost=0, packets_lost=0, ssrc=None):
    info = RtcpReceiverInfo(
        ssrc=sender._ssrc if ssrc is None else ssrc,
        fraction_lost=fraction_lost,
        packets_lost=packets_lost,
        highest_sequence=0,
        jitter=0,
        lsr=lsr,
        dlsr=dlsr,
    )
    return RtcpRrPacket(ssrc=1, reports=[info])


def nack(sender, *lost):
    return RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=sender._ssrc, lost=list(lost))


@pytest.fixture
def quick_reports(monkeypatch):
    """Sender reports every few milliseconds, and a clock for round trips that stands still."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(rtp_sender, "random", SimpleNamespace(random=lambda: -0.49))
    monkeypatch.setattr(rtp_sender, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


# Packets ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_picture_becomes_packets_of_one_timestamp_with_a_marker_on_the_last():
    sender = sender_of()
    await sender.send(parameters())
    sender.push([b"a", b"b", b"c"], 0, FRAME_MS)
    sender.push([b"d"], 3600, FRAME_MS)
    await settled()
    packets = sender.transport.packets
    await sender.stop()
    assert [p.payload for p in packets] == [b"a", b"b", b"c", b"d"]
    assert [p.marker for p in packets] == [0, 0, 1, 1]
    assert {p.payload_type for p in packets} == {VIDEO}
    assert {p.ssrc for p in packets} == {sender._ssrc}
    first = packets[0]
    assert [p.sequence_number for p in packets] == [first.sequence_number + i for i in range(4)]
    assert first.sequence_number < 32768  # a wrap within the first packets can break SRTP
    assert [p.timestamp for p in packets] == [sender.wire_timestamp(t) for t in (0, 0, 0, 3600)]
    assert {p.extensions.mid for p in packets} == {"1"}


@on_loop
async def test_sound_has_its_level_and_no_marker():
    sender = sender_of("audio")
    await sender.send(parameters("audio"))
    for number, level_db in enumerate((-12.4, -100.0, -300.0, 3.0, None)):
        sender.push([b"sound"], 960 * number, 20.0, level_db)
    await settled()
    packets = sender.transport.packets
    await sender.stop()
    assert [p.marker for p in packets] == [0] * 5
    assert [p.extensions.audio_level for p in packets[:4]] == [(False, level) for level in (12, 100, 127, 0)]
    assert packets[4].extensions.audio_level is None
    assert {p.payload_type for p in packets} == {OPUS}


@on_loop
async def test_timestamps_and_numbers_wrap():
    sender = sender_of()
    sender._sequence, sender._origin = 65534, 2**32 - 3600
    await sender.send(parameters())
    for frame in (0, 1, 2, 2**32 // 3600 + 3):
        sender.push([b"x"], frame * 3600, FRAME_MS)
    await settled()
    packets = sender.transport.packets
    await sender.stop()
    assert [p.sequence_number for p in packets] == [65534, 65535, 0, 1]
    timestamps = [p.timestamp for p in packets]
    assert timestamps[:3] == [2**32 - 3600, 0, 3600]
    assert timestamps[3] == ((2**32 // 3600 + 3) * 3600 - 3600) % 2**32


@pytest.mark.parametrize("agreed", [True, False])
@on_loop
async def test_playout_delay_is_there_only_if_agreed_on(agreed):
    sender = sender_of()
    await sender.send(parameters(extensions=(MID, PLAYOUT) if agreed else (MID,)))
    sender.push([b"x"], 0, FRAME_MS)
    await settled()
    (data,) = sender.transport.sent
    await sender.stop()
    length = int.from_bytes(data[14:16], "big") * 4
    found = dict(unpack_header_extensions(int.from_bytes(data[12:14], "big"), data[16 : 16 + length]))
    assert found.pop(MID) == b"1"
    assert found == ({PLAYOUT: bytes([0, 0, rtp_sender.MAX_PLAYOUT_DELAY_MS // 10])} if agreed else {})


@on_loop
async def test_what_is_pushed_before_the_connection_is_up_is_not_sent_later():
    sender = sender_of()
    sender.push([b"early"], 0, FRAME_MS)
    await sender.send(parameters())
    await settled()
    sender.push([b"in time"], 3600, FRAME_MS)
    await settled()
    packets = sender.transport.packets
    await sender.stop()
    assert [p.payload for p in packets] == [b"in time"]


@on_loop
async def test_nothing_is_sent_in_a_direction_that_is_off():
    sender = sender_of()
    await sender.send(parameters())
    sender._enabled = False
    sender.push([b"x"], 0, FRAME_MS)
    await settled()
    assert sender.transport.packets == []
    await sender.stop()


# The queue --------------------------------------------------------------------------------------------


@on_loop
async def test_a_full_queue_loses_its_oldest_visibly_and_asks_for_a_keyframe():
    wanted = []
    sender = sender_of(bound_ms=160.0, on_keyframe_wanted=lambda: wanted.append(1))
    await sender.send(parameters())
    wanted.clear()
    for frame in range(10):  # at once, as after a moment in which the loop was busy
        sender.push([b"%d" % frame, b"more"], 3600 * frame, FRAME_MS)
    await settled(10)
    packets = sender.transport.packets
    await sender.stop()
    assert [p.payload for p in packets[::2]] == [b"6", b"7", b"8", b"9"]
    assert sender.dropped == 6
    assert len(wanted) == 6
    # The receiver has to know that something is missing: pictures lean on those before them.
    assert packets[0].sequence_number == (packets[-1].sequence_number - 7)
    sender_start = packets[0].sequence_number - 12
    assert await retransmitted(sender, sender_start) == []


async def retransmitted(sender, *sequences):
    before = len(sender.transport.sent)
    await sender._handle_rtcp_packet(nack(sender, *sequences))
    return sender.transport.packets[before:] if sender.transport.sent[before:] else []


@on_loop
async def test_the_bound_is_in_time_not_in_frames():
    sender = sender_of("audio", bound_ms=100.0)
    await sender.send(parameters("audio"))
    for block in range(9):
        sender.push([b"%d" % block], 960 * block, 20.0)
    sender.push([b"long"], 960 * 9, 60.0)
    await settled(10)
    payloads = [p.payload for p in sender.transport.packets]
    await sender.stop()
    assert payloads == [b"7", b"8", b"long"]


@on_loop
async def test_one_frame_longer_than_the_bound_is_sent_all_the_same():
    sender = sender_of(bound_ms=10.0)
    await sender.send(parameters())
    sender.push([b"x"], 0, FRAME_MS)
    await settled()
    assert len(sender.transport.packets) == 1
    assert sender.dropped == 0
    await sender.stop()


@on_loop
async def test_frames_under_way_are_not_torn_by_a_full_queue():
    sender = sender_of(bound_ms=80.0)
    sender.transport.open.clear()
    await sender.send(parameters())
    sender.push([b"a0", b"a1"], 0, FRAME_MS)
    await settled()  # taken from the queue, and stuck half way
    for frame in range(1, 6):
        sender.push([b"b"], 3600 * frame, FRAME_MS)
    sender.transport.open.set()
    await settled(10)
    packets = sender.transport.packets
    await sender.stop()
    assert [p.payload for p in packets] == [b"a0", b"a1", b"b", b"b"]
    start = packets[0].sequence_number
    assert [p.sequence_number - start for p in packets] == [0, 1, 5, 6]


# Feedback ---------------------------------------------------------------------------------------------


@on_loop
async def test_a_lost_packet_is_sent_again_in_the_stream_for_repairs(monkeypatch):
    sender = sender_of()
    await sender.send(parameters())
    sender.push([b"a", b"b", b"c"], 0, FRAME_MS)
    await settled()
    original = sender.transport.packets[1]
    monkeypatch.setattr(rtp_sender, "_abs_send_time", lambda: 0x123456)
    first, second = await retransmitted(sender, original.sequence_number, original.sequence_number + 1)
    await sender.stop()
    assert (first.payload_type, first.ssrc) == (RTX, sender._rtx_ssrc)
    assert second.sequence_number == first.sequence_number + 1
    assert first.extensions.abs_send_time == 0x123456  # its own: else the line looks slow
    back = unwrap_rtx(first, VIDEO, sender._ssrc)
    assert (back.sequence_number, back.payload) == (original.sequence_number, b"b")
    assert (back.timestamp, back.marker) == (original.timestamp, original.marker)


@on_loop
async def test_without_a_stream_for_repairs_the_very_same_bytes_are_sent_again(monkeypatch):
    sender = sender_of()
    await sender.send(parameters(rtx=False))
    sender.push([b"a"], 0, FRAME_MS)
    await settled()
    monkeypatch.setattr(rtp_sender, "_abs_send_time", lambda: 0x123456)
    await sender._handle_rtcp_packet(nack(sender, sender.transport.packets[0].sequence_number))
    first, again = sender.transport.sent
    await sender.stop()
    assert again == first  # other bytes under the same number would reuse a nonce


@on_loop
async def test_packets_that_were_never_sent_or_long_ago_are_not_sent_again():
    sender = sender_of()
    sender._sequence = 100
    await sender.send(parameters())
    for frame in range(200):
        sender.push([b"%d" % frame], 3600 * frame, FRAME_MS)
        await settled(2)
    assert await retransmitted(sender, 100, 171, 300, 299 + 128) == []
    kept = await retransmitted(sender, 172, 299)
    await sender.stop()
    assert [p.payload[2:] for p in kept] == [b"72", b"199"]


@on_loop
async def test_a_packet_is_sent_again_once_a_round_trip_however_often_it_is_asked_for(monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(rtp_sender.time, "monotonic", lambda: now_s[0])
    sender = sender_of()
    sender._sequence = 100
    await sender.send(parameters())
    for frame in range(17):
        sender.push([b"%d" % frame], 3600 * frame, FRAME_MS)
        await settled(2)
    everything = [*range(100, 117)] * 330
    assert len(await retransmitted(sender, *everything)) == 17
    assert await retransmitted(sender, *everything) == []
    now_s[0] += 1.01 * MIN_RESEND_S
    assert len(await retransmitted(sender, *everything)) == 17
    sender.round_trip_s = 0.3
    now_s[0] += 0.2
    assert await retransmitted(sender, *everything) == []
    now_s[0] += 0.11
    assert len(await retransmitted(sender, *everything)) == 17
    await sender.stop()


@on_loop
async def test_repairs_are_bounded_in_packets_a_second(monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(rtp_sender.time, "monotonic", lambda: now_s[0])
    sender = sender_of()
    sent = 0
    for number in range(3 * MAX_RESENT_PER_S):
        now_s[0] += 0.5 / (3 * MAX_RESENT_PER_S)
        sent += sender._may_resend(number)
    assert sent == MAX_RESENT_PER_S
    now_s[0] += 1.0
    assert sender._may_resend(1)


@on_loop
async def test_numbers_that_the_parser_counted_past_the_wrap_are_found():
    sender = sender_of()
    sender._sequence = 65535
    await sender.send(parameters())
    for frame in range(3):
        sender.push([b"%d" % frame], 3600 * frame, FRAME_MS)
    await settled()
    (packet,) = RtcpPacket.parse(bytes(nack(sender, 65535, 65536, 65537)))
    assert packet.lost == [65535, 65536, 65537]
    again = await retransmitted(sender, *packet.lost)
    await sender.stop()
    assert [p.payload[2:] for p in again] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("fmt", [RTCP_PSFB_PLI, RTCP_PSFB_FIR])
@on_loop
async def test_a_lost_picture_asks_for_a_keyframe(fmt):
    wanted = []
    sender = sender_of(on_keyframe_wanted=lambda: wanted.append(1))
    assert wanted == []
    await sender.send(parameters())
    assert wanted == [1]  # the first picture that anyone sees
    await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=fmt, ssrc=1, media_ssrc=sender._ssrc))
    await sender.stop()
    assert wanted == [1, 1]


@on_loop
async def test_the_receiver_s_estimate_reaches_the_encoder_if_it_is_about_this_stream():
    told = []
    sender = sender_of(on_bandwidth=told.append)

    async def hear(fci):
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci))

    await hear(pack_remb_fci(400_000, [sender._ssrc]))
    await hear(pack_remb_fci(300_000, [sender._ssrc ^ 1, sender._ssrc]))
    await hear(pack_remb_fci(200_000, [sender._ssrc ^ 1]))
    await hear(b"GOOGanything")
    await hear(b"REMB")
    await hear(pack_remb_fci(100_000, [sender._ssrc])[:-2])  # cut short
    assert told == [400_000, 300_000]


@on_loop
async def test_losses_are_taken_from_reports_about_this_stream_only():
    sender = sender_of()
    await sender._handle_rtcp_packet(report(sender, fraction_lost=64, packets_lost=7))
    await sender._handle_rtcp_packet(
        report(sender, fraction_lost=255, packets_lost=99, ssrc=sender._ssrc ^ 1)
    )
    assert (sender.fraction_lost, sender.packets_lost) == (0.25, 7)
    assert sender.round_trip_s is None


# Sender reports ---------------------------------------------------------------------------------------


@on_loop
async def test_reports_say_media_time_however_late_a_frame_was_pushed(quick_reports):
    plan = MediaSchedule(start_s=0.0, start_unix_s=1.7e9, lookahead_frames=4, playout_delay_ticks=3)
    sound = sender_of("audio", ntp_at=plan.ntp_at)
    video = sender_of(ntp_at=plan.ntp_at)
    await sound.send(parameters("audio"))
    await video.send(parameters())
    sound.push([b"x"], 960 * 50, 20.0)
    await until(lambda: sound.transport.reports, what="a report of the sound")
    quick_reports.s += 5  # the picture of that moment comes five seconds late
    video.push([b"x"], 3600 * 25, FRAME_MS)
    await until(lambda: len(video.transport.reports) >= 2, what="reports of the pictures")
    heard, (seen, again) = sound.transport.reports[-1], video.transport.reports[:2]
    await sound.stop()
    await video.stop()
    assert heard.sender_info.ntp_timestamp == seen.sender_info.ntp_timestamp == plan.ntp_at(1.0)
    assert again.sender_info.ntp_timestamp == seen.sender_info.ntp_timestamp
    assert heard.sender_info.rtp_timestamp == sound.wire_timestamp(960 * 50)
    assert seen.sender_info.rtp_timestamp == video.wire_timestamp(3600 * 25)


@on_loop
async def test_a_report_counts_and_names_its_sender(quick_reports):
    sender = sender_of()
    await sender.send(parameters())
    await asyncio.sleep(0.02)
    assert sender.transport.control == []  # nothing was sent: nothing to report
    sender.push([b"12", b"345"], 0, FRAME_MS)
    await until(lambda: sender.transport.reports)
    first, name = sender.transport.control[:2]
    await sender.stop()
    assert (first.ssrc, first.sender_info.packet_count, first.sender_info.octet_count) == (sender._ssrc, 2, 5)
    assert isinstance(name, RtcpSdesPacket)
    assert (name.chunks[0].ssrc, name.chunks[0].items) == (sender._ssrc, [(1, b"face")])


async def one_report(sender):
    """Returns the middle of the NTP time of the one report that was sent."""
    await sender.send(parameters())
    sender.push([b"x"], 0, FRAME_MS)
    await until(lambda: sender.transport.reports)
    sender._tasks[1].cancel()
    return (sender.transport.reports[-1].sender_info.ntp_timestamp >> 16) & 0xFFFFFFFF


@on_loop
async def test_a_receiver_s_answer_tells_the_round_trip(quick_reports):
    sender = sender_of(ntp_at=lambda _: 0x1234_5678_9ABC_DEF0)
    key = await one_report(sender)
    assert key == 0x5678_9ABC
    quick_reports.s += 0.350
    await sender._handle_rtcp_packet(report(sender, lsr=key, dlsr=round(0.25 * 65536)))
    assert sender.round_trip_s == pytest.approx(0.1, abs=1e-4)
    quick_reports.s += 0.2
    await sender._handle_rtcp_packet(report(sender, lsr=key, dlsr=round(0.25 * 65536)))
    assert 0.1 < sender.round_trip_s < 0.3  # smoothed
    await sender.stop()


@on_loop
async def test_answers_to_other_reports_tell_no_round_trip(quick_reports):
    sender = sender_of(ntp_at=lambda _: 0x1234_5678_9ABC_DEF0)
    key = await one_report(sender)
    quick_reports.s += 0.05
    for lsr, dlsr in ((0, 0), (key, 0), (key ^ 1, 1000), (key, 65536)):  # the last: before it was sent
        await sender._handle_rtcp_packet(report(sender, lsr=lsr, dlsr=dlsr))
    assert sender.round_trip_s is None
    await sender.stop()


# Beginning and end ------------------------------------------------------------------------------------


@on_loop
async def test_a_sender_starts_once_and_says_goodbye_once():
    sender = sender_of()
    await sender.send(parameters())
    await sender.send(parameters())
    assert sender.transport.senders == [sender]
    assert sender.connected
    await sender.stop()
    await sender.stop()
    assert sender.transport.senders == []
    assert not sender.connected
    (bye,) = sender.transport.control
    assert isinstance(bye, RtcpByePacket)
    assert bye.sources == [sender._ssrc]
    sender.push([b"late"], 0, FRAME_MS)
    assert sender.transport.packets == []


@on_loop
async def test_a_sender_stopped_unstarted_stays_stopped():
    sender = sender_of()
    await sender.stop()
    await sender.send(parameters())  # a connection that came about while it was being closed
    assert not sender.connected
    assert sender.transport.senders == []
    assert sender.transport.sent == []


@on_loop
async def test_a_lost_connection_ends_a_sender_quietly(caplog):
    sender = sender_of(bound_ms=80.0)
    await sender.send(parameters())
    sender.transport.error = ConnectionError("gone")
    sender.push([b"x"], 0, FRAME_MS)
    await until(lambda: not sender.connected)
    for frame in range(100):
        sender.push([b"x"], 3600 * frame, FRAME_MS)
    assert sender.dropped == 0  # not even queued
    assert caplog.records == []
    await sender.stop()
    assert sender.transport.senders == []


@on_loop
async def test_a_fault_of_ours_is_logged_and_told(caplog):
    failed = []
    sender = sender_of(on_failure=lambda: failed.append(1))
    await sender.send(parameters())
    sender.transport.error = ZeroDivisionError("bug")
    with caplog.at_level(logging.ERROR):
        sender.push([b"x"], 0, FRAME_MS)
        await until(lambda: failed)
    assert not sender.connected
    assert "the video sender failed" in caplog.text
    sender.transport.error = None
    await sender.stop()
    assert failed == [1]


@on_loop
async def test_a_sender_has_what_aiortc_asks_of_it():
    sender = sender_of()
    other = Wire()
    sender.setTransport(other)
    await sender.send(parameters())
    assert other.senders == [sender]
    assert dict(await sender.getStats()) == {}
    await sender.stop()
    ids = [sender_of() for _ in range(20)]
    for one, another in itertools.combinations(ids, 2):
        assert one._ssrc != another._ssrc
        assert one._track_id != another._track_id
    assert {one._stream_id for one in ids} == {"s"}
