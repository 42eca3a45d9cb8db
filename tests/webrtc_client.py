"""A browser's part, played by aiortc: a microphone up, pictures and sound down: `import webrtc_client`."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
from aioice import ice as aioice_ice
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcconfiguration import RTCConfiguration
from aiortc_client import ToneTrack
from on_loop import until

from streaming.pipeline.clock import SystemClock
from streaming.webrtc.ice import IceConnection, replace_connection
from streaming.webrtc.media_schedule import MediaSchedule
from streaming.webrtc.peer import Peer, PeerSettings
from streaming.webrtc.sdp_offer import Offer

BLOCK_SAMPLES, SOUND_RATE_HZ = 960, 48_000
PICTURE_PX = 128


def use_loopback(monkeypatch):
    """Leaves both ends no address but the loopback's."""
    monkeypatch.setattr(aioice_ice, "get_host_addresses", lambda **_: ["127.0.0.1"])


def tone(first_sample, samples, *, hz=440.0):
    """Returns (samples,) float32 of a tone that goes on from one call to the next."""
    time = (first_sample + np.arange(samples)) / SOUND_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def picture(number, *, size_px=PICTURE_PX):
    """Returns an I420 picture whose brightness goes up and down with its number, under a bar that moves."""
    found = np.full((size_px * 3 // 2, size_px), 128, np.uint8)
    found[:size_px] = 60 + 8 * (number % 16)
    left = 4 * number % (size_px - 16)
    found[:size_px, left : left + 16] = 220
    return found


class Client:
    """The page's side of a session."""

    def __init__(self, *, codecs=None, microphone=True, data=False):
        """Prepares an offer; `codecs` narrows what it can decode, in its order."""
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pictures = []  # (time on the loop's clock, av.VideoFrame)
        self.sounds = []
        self._listening = []
        self.connection.on("track", self._listen)
        sound = self.connection.addTransceiver(ToneTrack(440.0) if microphone else "audio", "sendrecv")
        if not microphone:
            sound.direction = "recvonly"
        self.video = self.connection.addTransceiver("video", "recvonly")
        if codecs is not None:
            known = RTCRtpReceiver.getCapabilities("video").codecs
            names = [f"video/{name}".lower() for name in (*codecs, "rtx")]
            self.video.setCodecPreferences(
                [codec for name in names for codec in known if codec.mimeType.lower() == name]
            )
        transports = {sound.receiver.transport, self.video.receiver.transport}
        if data:
            self.connection.createDataChannel("telemetry")
            transports.add(self.connection.sctp.transport)
        for transport in transports:  # aioice's own may go on for ever when it is closed in mid connection
            replace_connection(transport.transport, IceConnection())

    async def offer(self):
        """Returns the offer's SDP, with candidates."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def accept(self, sdp):
        """Takes the answer."""
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="answer"))

    async def aclose(self):
        await self.connection.close()
        for task in self._listening:  # a track that never began would be waited for without end
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    def _listen(self, track):
        found = self.pictures if track.kind == "video" else self.sounds
        self._listening.append(asyncio.create_task(self._take(track, found)))

    async def _take(self, track, found):
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                found.append((asyncio.get_running_loop().time(), frame))


class Ours:
    """Our end, and what it was told."""

    def __init__(self, settings=None, **changes):
        self.packets, self.states, self.bandwidths = [], [], []
        self.keyframes_wanted = 0
        clock = SystemClock()
        self.schedule = MediaSchedule(
            start_s=clock.now_s(), start_unix_s=1.7e9, lookahead_frames=4, playout_delay_ticks=3
        )
        self.peer = Peer(
            settings or PeerSettings(**changes),
            self.schedule,
            on_packet=lambda *packet: self.packets.append(packet),
            on_keyframe_wanted=self._want_keyframe,
            on_bandwidth=self.bandwidths.append,
            on_state=self.states.append,
        )

    async def answer(self, sdp):
        return await self.peer.answer(Offer.parse(sdp))

    def _want_keyframe(self):
        self.keyframes_wanted += 1


@contextlib.asynccontextmanager
async def ends(*, settings=None, **client):
    """Both ends, not connected yet; closed when left."""
    ours, theirs = Ours(settings), Client(**client)
    try:
        yield ours, theirs
    finally:
        await theirs.aclose()
        await ours.peer.aclose()


async def connect(ours, theirs, *, change=lambda sdp: sdp):
    """Returns the answer, once both ends are connected; `change` may alter the offer."""
    answer = await ours.answer(change(await theirs.offer()))
    await theirs.accept(answer)
    await until(
        lambda: ours.peer.state == theirs.connection.connectionState == "connected", what="a connection"
    )
    await until(lambda: ours.peer.video.connected, what="a way out")
    return answer


def threads():
    """Returns the threads there are, less those of pools that outlive every session."""
    return {t for t in threading.enumerate() if not t.name.startswith(("asyncio_", "ThreadPoolExecutor"))}
