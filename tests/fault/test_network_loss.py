"""A line that loses, delays and for a while swallows packets, between a session and what a browser does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque

import av
import pytest
from aiortc.codecs import depayload
from aiortc.rtp import (
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPsfbPacket,
    RtcpRtpfbPacket,
    unwrap_rtx,
)
from aiortc_client import AiortcPeer
from bundle_factory import write_tiny_bundle
from on_loop import on_loop, until
from stand_ins import StandInRaymarcher
from webrtc_client import use_loopback

from models.speaker import load_speaker
from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.pipeline.networks import open_networks
from streaming.pipeline.render_size import FrameCost
from streaming.session.metrics import Metrics
from streaming.session.session import Session, SessionSettings
from streaming.webrtc.jitter_buffer import unwrap
from streaming.webrtc.peer import PeerSettings
from streaming.webrtc.sdp_offer import Offer
from streaming.webrtc.video_encoder import CODECS

H264, VP8 = CODECS
JITTER_S = 0.030
SHARE = 0.8
DEPTH_MS = 150.0  # most that sound may wait before it is used; aiortc's: 280 after the first loss, for good
IMAGE_PX = 128
PICTURES, SOUNDS = 25, 50  # a second's


class Line:
    """What a session sends and gets, by way of queues that lose some and hold the rest back a little."""

    def __init__(self, session, *, seed):
        self.loss, self.jitter_s, self.broken = 0.0, 0.0, False
        self.lost = {"up": 0, "down": 0}
        self._dice = random.Random(seed)
        self._last_s = {}
        connection = session.peer._ice
        transport = session.peer.sound.transport.transport
        send, take = transport._send, connection.data_received
        self._loop = asyncio.get_running_loop()

        async def slow_send(data):
            self._carry("down", lambda: asyncio.ensure_future(self._quietly(send, data)))

        transport._send = slow_send
        connection.data_received = lambda data, component: self._carry("up", lambda: take(data, component))

    def _carry(self, way, deliver):
        if self.broken or self._dice.random() < self.loss:
            self.lost[way] += 1
            return
        delay_s = self._dice.uniform(0, self.jitter_s)
        # Held back, never overtaken: as in the queue of a radio link.
        self._last_s[way] = max(self._last_s.get(way, 0.0), self._loop.time() + delay_s)
        self._loop.call_at(self._last_s[way], deliver)

    async def _quietly(self, send, data):
        with contextlib.suppress(ConnectionError):  # closed meanwhile
            await send(data)


class Screen:
    """What a browser does with the pictures' packets, put in the place of aiortc's receiver.

    It asks for what is missing again and again, gives up after a while and asks for a keyframe, and shows
    what decodes. aiortc's own asks once, and then waits until 128 packets have come.
    """

    GIVE_UP_S, ASK_AGAIN_S = 2.0, 0.06  # of this process's own time, however little it gets

    def __init__(self, transceiver):
        self.transport = transceiver.receiver.transport
        self._track = None  # aiortc sets it; nothing is ever put into it
        self._enabled = True
        self.shown = {}  # RTP timestamp: luma (H, W)
        self.plis = self.repaired = self.holes = 0
        self._packets = {}
        self.missing = {}  # number: (since when, last asked)
        self._next = self._newest = None
        self.frozen = False
        self._task = None
        transceiver._RTCRtpTransceiver__receiver = self

    @property
    def track(self):
        return self._track

    def setTransport(self, transport):  # noqa: N802 - aiortc's name
        self.transport = transport

    def _set_rtcp_ssrc(self, ssrc):
        self._ssrc = ssrc

    def _handle_disconnect(self):
        pass

    async def _handle_rtcp_packet(self, packet):
        pass

    async def receive(self, parameters):
        self.codec = parameters.codecs[0]
        self._rtx = {c.payloadType for c in parameters.codecs if c.name.lower() == "rtx"}
        self._decoder = av.CodecContext.create({"H264": "h264", "VP8": "vp8"}[self.codec.name], "r")
        self._loop = asyncio.get_running_loop()
        self.transport._register_rtp_receiver(self, parameters)
        self._media_ssrc = parameters.encodings[0].ssrc
        self._task = asyncio.create_task(self._ask())

    async def stop(self):
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _handle_rtp_packet(self, packet, arrival_time_ms):
        if packet.payload_type in self._rtx:
            packet = unwrap_rtx(packet, self.codec.payloadType, self._media_ssrc)
            self.repaired += 1
        if self._next is None:
            self._next = packet.sequence_number
            self._newest = self._next - 1
        number = unwrap(packet.sequence_number, near=self._newest, bits=16)
        for gap in range(self._newest + 1, number):
            self.missing[gap] = (self._loop.time(), -1.0)
        self._newest = max(self._newest, number)
        self.missing.pop(number, None)
        if number >= self._next:
            self._packets[number] = packet
        self._show()

    def _show(self):
        """Decodes the pictures that are whole, in their order."""
        while True:
            number = self._next
            while number in self._packets and not self._packets[number].marker:
                number += 1
            if number not in self._packets:
                return
            packets = [self._packets.pop(n) for n in range(self._next, number + 1)]
            self._next = number + 1
            data = b"".join(depayload(self.codec, packet.payload) for packet in packets)
            keyframe = b"\x00\x00\x01\x65" in data if self.codec.name == "H264" else not data[0] & 1
            if self.frozen and not keyframe:
                continue  # it leans on what never came
            self.frozen = False
            for frame in self._decoder.decode(av.Packet(data)):
                self.shown[packets[0].timestamp] = frame.to_ndarray()[:IMAGE_PX]

    async def _ask(self):
        while True:
            await asyncio.sleep(0.01)
            now_s = self._loop.time()
            late = [n for n, (since_s, _) in self.missing.items() if now_s - since_s > self.GIVE_UP_S]
            if late:
                # From the first picture that begins after the hole; until a keyframe nothing is shown.
                self.holes += 1
                self.frozen = True
                begin = max(late) + 1
                self.missing = {n: asked for n, asked in self.missing.items() if n >= begin}
                self._packets = {n: packet for n, packet in self._packets.items() if n >= begin}
                while begin in self._packets and not self._packets[begin].marker:
                    del self._packets[begin]
                    begin += 1
                self._packets.pop(begin, None)
                self._next = begin + 1
                self._show()
            wanted = [n for n, (_, asked_s) in self.missing.items() if now_s - asked_s > self.ASK_AGAIN_S]
            for number in wanted:
                self.missing[number] = (self.missing[number][0], now_s)
            try:
                if wanted:
                    lost = [number % 2**16 for number in sorted(wanted)]
                    await self._say(RtcpRtpfbPacket(RTCP_RTPFB_NACK, self._ssrc, self._media_ssrc, lost))
                if self.frozen:
                    self.plis += 1
                    await self._say(RtcpPsfbPacket(RTCP_PSFB_PLI, self._ssrc, self._media_ssrc))
            except ConnectionError:
                return

    async def _say(self, packet):
        await self.transport._send_rtp(bytes(packet))


class Call:
    """A session, a line and a browser's part of it."""

    def __init__(self, host, *, codec=H264, seed=1):
        settings = SessionSettings(peer=PeerSettings(codecs=(codec,)), bitrate=500_000)
        self.ends = []
        self.session = Session(
            "test-session", host, settings, Metrics(), on_end=lambda _, reason: self.ends.append(reason)
        )
        self.client = AiortcPeer()
        self.screen = self.line = None
        self.sounds = deque()  # when each packet of sound reached the browser
        self._seed = seed

    async def __aenter__(self):
        try:
            await self._connect()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _connect(self):
        self.loop = asyncio.get_running_loop()
        offer = await self.client.offer()
        sound, video = self.client.connection.getTransceivers()
        ssrc = video.sender._ssrc
        self.screen = Screen(video)
        self.screen._set_rtcp_ssrc(ssrc)
        take = sound.receiver._handle_rtp_packet

        async def heard(packet, arrival_time_ms):
            self.sounds.append(self.loop.time())
            await take(packet, arrival_time_ms)

        sound.receiver._handle_rtp_packet = heard
        answer = await self.session.answer(Offer.parse(offer))
        self.line = Line(self.session, seed=self._seed)
        await self.client.accept(answer)
        await until(lambda: len(self.screen.shown) > 5 and len(self.sounds) > 10, what="a call under way")

    async def __aexit__(self, *_):
        await self.client.close()
        await self.session.aclose("over")

    def newest(self):
        """Returns the number of the last frame that left."""
        return self.session.downlink.frames.after(-1)[-1].index

    def sent_after(self, frame):
        """Returns the timestamps of the pictures that left after a frame."""
        return {record.rtp for record in self.session.downlink.frames.after(frame)}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny", image_size_px=IMAGE_PX)
    speaker = load_speaker(folder)
    return LoadedSpeaker(
        speaker=speaker,
        networks=open_networks(speaker),
        raymarcher=StandInRaymarcher(),
        sizes_px=(IMAGE_PX, 96),
        start_px=IMAGE_PX,
        costs={size: FrameCost(render_ms=2.0, other_ms=5.0) for size in (IMAGE_PX, 96)},
        threads=1,
    )


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    use_loopback(monkeypatch)


async def goes_on(call):
    """Both ways, from now on, as good as without a fault: by what comes, not by the time that it takes."""
    frame, heard = call.newest(), len(call.sounds)
    await until(lambda: len(call.sent_after(frame)) >= PICTURES, what="pictures that leave")
    sent = call.sent_after(frame)
    await until(lambda: len(sent & set(call.screen.shown)) >= SHARE * len(sent), what="most of them shown")
    await until(lambda: len(call.sounds) >= heard + SOUNDS, what="sound")
    await until(lambda: call.session.uplink.microphone.depth_ms < DEPTH_MS, what="no delay of the microphone")
    assert not call.ends


@pytest.mark.parametrize(
    ("loss", "codec"),
    [(0.01, H264), (0.05, VP8), (0.10, H264), (0.10, VP8)],
    ids=lambda value: getattr(value, "name", value),
)
@on_loop
async def test_a_call_survives_loss_and_jitter_both_ways(host, loss, codec):
    async with Call(host, codec=codec) as call:
        call.line.loss, call.line.jitter_s = loss, JITTER_S
        await until(lambda: all(call.line.lost.values()), what="packets lost both ways")
        await goes_on(call)


@on_loop
async def test_a_call_goes_on_after_a_hole_of_half_a_second(host):
    async with Call(host) as call:
        call.line.jitter_s = JITTER_S
        call.line.broken = True
        await until(lambda: sum(call.line.lost.values()) >= PICTURES, what="a hole in all that comes")
        call.line.broken = False
        await goes_on(call)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@on_loop
async def test_pictures_that_cannot_be_repaired_are_drawn_anew(host, codec, monkeypatch):
    async with Call(host, codec=codec) as call:
        monkeypatch.setattr(Screen, "ASK_AGAIN_S", float("inf"))  # asks for no packet again
        monkeypatch.setattr(Screen, "GIVE_UP_S", 0.1)
        call.line.broken = True
        await until(lambda: call.line.lost["down"] > 6, what="a hole in the pictures")
        call.line.broken = False
        await until(lambda: call.screen.plis > 0, what="a frozen picture")
        await until(lambda: not call.screen.frozen, what="a keyframe")
        asked = call.screen.plis
        await goes_on(call)
        assert call.screen.plis == asked
        assert call.screen.repaired == 0


@on_loop
async def test_a_loop_that_stood_still_loses_pictures_visibly_and_draws_anew(host):
    async with Call(host) as call:
        time.sleep(0.8)  # the fault itself: twice what may wait to be sent
        sender = call.session.peer.video
        await until(lambda: sender.dropped > 0, what="pictures that had no place")
        await until(lambda: call.screen.holes > 0, what="the hole where they were")
        await until(lambda: not call.screen.frozen and not call.screen.missing, what="a keyframe")
        await goes_on(call)
