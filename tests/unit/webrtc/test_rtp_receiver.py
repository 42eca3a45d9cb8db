"""What comes in by the microphone's stream, and what is reported of it."""

from __future__ import annotations

import asyncio
import logging
import random
from types import SimpleNamespace

import pytest
from aiortc.rtcdtlstransport import RtpRouter
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpReceiveParameters,
)
from aiortc.rtp import (
    RtcpByePacket,
    RtcpPacket,
    RtcpRrPacket,
    RtcpSenderInfo,
    RtcpSrPacket,
    RtpPacket,
)
from manual_clock import ManualClock
from on_loop import on_loop, until

from streaming.webrtc import rtp_receiver
from streaming.webrtc.media_schedule import NTP_EPOCH_S
from streaming.webrtc.neteq import MicrophoneStream
from streaming.webrtc.rtp_receiver import MicrophoneReceiver

OPUS, PCMU, UNKNOWN = 111, 0, 120
SSRC, OTHER = 0x1111_2222, 0x3333_4444
REPORTER = 77


class Wire:
    """A transport that routes as aiortc's does, and keeps what is sent."""

    def __init__(self):
        self.router = RtpRouter()
        self.sent: list[bytes] = []
        self.error: Exception | None = None

    def _register_rtp_receiver(self, receiver, parameters):
        self.router.register_receiver(
            receiver,
            ssrcs=[encoding.ssrc for encoding in parameters.encodings],
            payload_types=[codec.payloadType for codec in parameters.codecs],
            mid=parameters.muxId,
        )

    def _unregister_rtp_receiver(self, receiver):
        self.router.unregister_receiver(receiver)

    async def _send_rtp(self, data):
        if self.error is not None:
            raise self.error
        self.sent.append(data)

    async def bring(self, packet):
        receiver = self.router.route_rtp(packet)
        if receiver is not None:
            await receiver._handle_rtp_packet(packet, arrival_time_ms=0)

    async def bring_control(self, packet):
        for receiver in self.router.route_rtcp(packet):
            await receiver._handle_rtcp_packet(packet)

    @property
    def reports(self):
        found = [packet for data in self.sent for packet in RtcpPacket.parse(data)]
        assert all(isinstance(packet, RtcpRrPacket) for packet in found)
        return found


class Heard:
    """A receiver on a wire, and what it passed on."""

    def __init__(self):
        self.wire, self.clock, self.packets = Wire(), ManualClock(50.0), []
        self.receiver = MicrophoneReceiver(
            self.wire,
            report_ssrc=REPORTER,
            on_packet=lambda *packet: self.packets.append(packet),
            clock=self.clock,
        )

    async def start(self):
        codecs = [
            RTCRtpCodecParameters("audio/opus", 48_000, channels=2, payloadType=OPUS),
            RTCRtpCodecParameters("audio/PCMU", 8000, channels=1, payloadType=PCMU),
        ]
        encodings = [RTCRtpDecodingParameters(ssrc=SSRC, payloadType=OPUS)]
        await self.receiver.receive(RTCRtpReceiveParameters(codecs=codecs, encodings=encodings, muxId="0"))

    async def sound(self, sequence, timestamp=None, *, ssrc=SSRC, payload=b"opus", payload_type=OPUS):
        timestamp = sequence * 960 if timestamp is None else timestamp
        await self.wire.bring(
            RtpPacket(
                payload_type=payload_type,
                sequence_number=sequence % 2**16,
                timestamp=timestamp % 2**32,
                ssrc=ssrc,
                payload=payload,
            )
        )

    async def report(self, timestamp, unix_s, *, ssrc=SSRC, ntp=None):
        if ntp is None:
            ntp = round((unix_s + NTP_EPOCH_S) * 2**16) << 16
        info = RtcpSenderInfo(
            ntp_timestamp=ntp, rtp_timestamp=timestamp % 2**32, packet_count=0, octet_count=0
        )
        await self.wire.bring_control(RtcpSrPacket(ssrc=ssrc, sender_info=info))

    async def next_report(self):
        before = len(self.wire.sent)
        await until(lambda: len(self.wire.sent) > before, what="a receiver report")
        return {info.ssrc: info for info in self.wire.reports[before].reports}


@pytest.fixture
def quick_reports(monkeypatch):
    monkeypatch.setattr(rtp_receiver, "random", SimpleNamespace(random=lambda: -0.49))


@on_loop
async def test_packets_go_on_as_they_come_with_their_time_of_arrival():
    heard = Heard()
    await heard.start()
    for sequence in (65535, 65536, 65538, 65537, 65537):
        heard.clock.time_s += 0.02
        await heard.sound(sequence, payload=b"%d" % sequence)
    await heard.receiver.stop()
    assert [packet[0] for packet in heard.packets] == [65535, 0, 2, 1, 1]
    assert [packet[1] for packet in heard.packets] == [s * 960 for s in (65535, 65536, 65538, 65537, 65537)]
    assert heard.packets[2][2] == b"65538"
    assert [packet[3] for packet in heard.packets] == pytest.approx([50.02, 50.04, 50.06, 50.08, 50.10])


@pytest.mark.parametrize("payload_type", [PCMU, UNKNOWN, OPUS + 1])
@on_loop
async def test_packets_that_are_no_opus_are_not_passed_on(payload_type):
    heard = Heard()
    await heard.start()
    await heard.sound(1, payload_type=payload_type)
    await heard.sound(2, payload_type=payload_type, ssrc=OTHER)
    await heard.receiver.stop()
    assert heard.packets == []


@on_loop
async def test_padding_alone_is_counted_and_carries_no_sound(quick_reports):
    heard = Heard()
    await heard.start()
    await heard.sound(10)
    packet = RtpPacket(payload_type=OPUS, sequence_number=11, ssrc=SSRC)
    packet.padding_size = 20
    await heard.wire.bring(RtpPacket.parse(packet.serialize()))
    await heard.sound(12)
    report = (await heard.next_report())[SSRC]
    await heard.receiver.stop()
    assert [packet[0] for packet in heard.packets] == [10, 12]
    assert (report.packets_lost, report.highest_sequence) == (0, 12)


@on_loop
async def test_a_direction_that_is_off_passes_nothing_on():
    heard = Heard()
    await heard.start()
    heard.receiver._enabled = False
    await heard.sound(1)
    await heard.receiver.stop()
    assert heard.packets == []


@on_loop
async def test_garbage_in_the_payload_goes_through_to_the_player_and_hurts_nobody():
    heard, player = Heard(), MicrophoneStream()
    heard.receiver._on_packet = lambda sequence, timestamp, payload, arrived_s: player.put(
        sequence=sequence, timestamp=timestamp, payload=payload, arrived_s=arrived_s
    )
    await heard.start()
    dice = random.Random(1)
    for _ in range(300):
        heard.clock.time_s += 0.02
        await heard.sound(
            dice.randrange(2**16),
            dice.randrange(2**32),
            payload=dice.randbytes(dice.randrange(40)),
            ssrc=dice.choice((SSRC, OTHER)),
        )
        player.read(heard.clock.time_s)
    await heard.receiver.stop()
    assert len(player.read(heard.clock.time_s).samples) == 960


# Reports ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_report_says_what_was_lost(quick_reports):
    heard = Heard()
    await heard.start()
    for sequence in (0, 1, 2, 4, 5, 7):  # two of eight
        await heard.sound(sequence)
    first = (await heard.next_report())[SSRC]
    later = (await heard.next_report())[SSRC]
    await heard.receiver.stop()
    assert heard.wire.reports[0].ssrc == REPORTER
    assert (first.fraction_lost, first.packets_lost, first.highest_sequence) == (64, 2, 7)
    assert (later.fraction_lost, later.packets_lost) == (0, 2)  # the fraction is of the time between
    assert (first.lsr, first.dlsr) == (0, 0)  # the peer has not reported yet


@on_loop
async def test_the_highest_number_counts_its_wraps(quick_reports):
    heard = Heard()
    await heard.start()
    for sequence in (65534, 65535, 65536, 65537):
        await heard.sound(sequence)
    report = (await heard.next_report())[SSRC]
    await heard.receiver.stop()
    assert (report.highest_sequence, report.packets_lost) == (65537, 0)


@on_loop
async def test_a_report_answers_the_peer_s(quick_reports):
    heard = Heard()
    await heard.start()
    await heard.sound(0)
    await heard.report(0, 0.0, ntp=0x1234_5678_9ABC_DEF0)
    heard.clock.time_s += 1.5
    report = (await heard.next_report())[SSRC]
    heard.clock.time_s += 70_000
    old = (await heard.next_report())[SSRC]
    await heard.receiver.stop()
    assert (report.lsr, report.dlsr) == (0x5678_9ABC, round(1.5 * 65536))
    assert old.dlsr == 0  # does not fit 32 bits


@on_loop
async def test_timestamps_that_leap_do_not_break_the_reports(quick_reports, caplog):
    heard = Heard()
    await heard.start()
    for sequence in range(400):
        await heard.sound(sequence, timestamp=(sequence % 2) * (2**32 - 1))
    report = (await heard.next_report())[SSRC]
    await heard.receiver.stop()
    assert 0 < report.jitter <= 2**32 - 1
    assert caplog.records == []


@on_loop
async def test_no_packets_no_report_and_few_sources_at_most(quick_reports):
    heard = Heard()
    await heard.start()
    await asyncio.sleep(0.05)
    assert heard.wire.sent == []
    for source in range(50):
        await heard.sound(source, ssrc=1000 + source)
        await heard.report(0, 1.7e9, ssrc=1000 + source)
    reports = await heard.next_report()
    await heard.receiver.stop()
    assert 1049 in reports
    assert len(reports) <= 4
    assert len(heard.receiver._reports) <= 4


@on_loop
async def test_a_lost_connection_ends_the_reports_quietly(quick_reports, caplog):
    heard = Heard()
    await heard.start()
    await heard.sound(0)
    heard.wire.error = ConnectionError("gone")
    task = heard.receiver._report_task
    await until(task.done)
    assert task.exception() is None
    assert caplog.records == []
    await heard.receiver.stop()


@on_loop
async def test_one_failed_report_is_logged_and_the_next_one_comes(quick_reports, caplog):
    heard = Heard()
    await heard.start()
    await heard.sound(0)
    heard.wire.error = ZeroDivisionError("bug")
    with caplog.at_level(logging.ERROR):
        await until(lambda: "a receiver report failed" in caplog.text)
    heard.wire.error = None
    assert SSRC in await heard.next_report()
    await heard.receiver.stop()


# When it was captured ---------------------------------------------------------------------------------


@on_loop
async def test_the_peer_s_report_tells_when_a_sound_left_it():
    heard = Heard()
    await heard.start()
    assert heard.receiver.captured_unix_s(0) is None
    await heard.report(0, 1.7e9)  # nothing came yet that it could be about
    assert heard.receiver.captured_unix_s(0) is None
    await heard.sound(0, 480_000)
    assert heard.receiver.captured_unix_s(480_000) is None
    await heard.report(480_000, 1_700_000_000.5)
    captured = heard.receiver.captured_unix_s
    assert captured(480_000) == pytest.approx(1_700_000_000.5, abs=1e-4)
    assert captured(480_000 + 48_000) == pytest.approx(1_700_000_001.5, abs=1e-4)
    assert captured(480_000 - 4800) == pytest.approx(1_700_000_000.4, abs=1e-4)
    await heard.report(528_000, 1_700_000_001.7)  # its clock was set: the newest report counts
    assert captured(528_000) == pytest.approx(1_700_000_001.7, abs=1e-4)
    await heard.receiver.stop()


@on_loop
async def test_timestamps_that_wrapped_since_the_report_are_understood():
    heard = Heard()
    await heard.start()
    await heard.sound(0, 2**32 - 960)
    await heard.report(2**32 - 960, 1.7e9)
    captured = heard.receiver.captured_unix_s
    assert captured(960) == pytest.approx(1.7e9 + 0.04, abs=1e-4)
    assert captured(2**32 + 960) == pytest.approx(1.7e9 + 0.04, abs=1e-4)  # as the player counts them
    await heard.report(480, 1.7e9 + 0.03)
    assert captured(2**32 - 480) == pytest.approx(1.7e9 + 0.01, abs=1e-4)
    await heard.receiver.stop()


@on_loop
async def test_another_source_is_not_dated_by_the_old_one_s_report():
    heard = Heard()
    await heard.start()
    await heard.sound(0, 960)
    await heard.report(960, 1.7e9)
    await heard.sound(9, 5_000_000, ssrc=OTHER)
    assert heard.receiver.captured_unix_s(5_000_000) is None
    await heard.report(1920, 1.7e9 + 1)  # the old one's
    assert heard.receiver.captured_unix_s(5_000_000) is None
    await heard.report(5_000_000, 1.8e9, ssrc=OTHER)
    assert heard.receiver.captured_unix_s(5_000_000) == pytest.approx(1.8e9, abs=1e-4)
    await heard.receiver.stop()


@on_loop
async def test_a_peer_without_a_clock_dates_nothing():
    heard = Heard()
    await heard.start()
    await heard.sound(0, 960)
    await heard.report(960, 0.0, ntp=0)
    assert heard.receiver.captured_unix_s(960) is None
    await heard.receiver.stop()


# Beginning and end ------------------------------------------------------------------------------------


@on_loop
async def test_a_receiver_starts_once_and_stops_for_good():
    heard = Heard()
    await heard.start()
    await heard.start()
    assert heard.wire.router.receivers == {heard.receiver}
    await heard.receiver.stop()
    await heard.receiver.stop()
    assert heard.wire.router.receivers == set()
    await heard.start()
    assert heard.wire.router.receivers == set()


@on_loop
async def test_a_receiver_stopped_unstarted_stays_stopped():
    heard = Heard()
    await heard.receiver.stop()
    await heard.start()
    assert heard.wire.router.receivers == set()


@on_loop
async def test_a_receiver_has_what_aiortc_asks_of_it(quick_reports):
    heard = Heard()
    other = Wire()
    heard.receiver.setTransport(other)
    heard.receiver._set_rtcp_ssrc(5)
    await heard.start()
    heard.wire = other
    await heard.sound(0)
    await heard.next_report()
    assert other.reports[0].ssrc == 5
    heard.receiver._handle_disconnect()
    await other.bring_control(RtcpByePacket(sources=[SSRC]))
    assert dict(await heard.receiver.getStats()) == {}
    await heard.receiver.stop()
