"""A peer of the server on aiortc: speaks a tone, keeps what it hears and sees.

`AiortcPeer` knows offers and answers; `LiveClient` brings them to a server over HTTP and opens its WebSocket.
As a program it connects to the address it is given, says so, and stays: `python aiortc_client.py URL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import json
import sys

import httpx
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from on_loop import until
from patience import PATIENCE_S
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

RATE_HZ = 48_000
BLOCK_SAMPLES = 960


class ToneTrack(MediaStreamTrack):
    """A microphone that hears one tone."""

    kind = "audio"

    def __init__(self, tone_hz):
        super().__init__()
        self._tone_hz = tone_hz
        self._blocks = 0
        self._start_s = None

    async def recv(self):
        loop = asyncio.get_running_loop()
        self._start_s = loop.time() if self._start_s is None else self._start_s
        await asyncio.sleep(max(0.0, self._start_s + self._blocks * 0.02 - loop.time()))
        at = np.arange(self._blocks * BLOCK_SAMPLES, (self._blocks + 1) * BLOCK_SAMPLES)
        samples = np.round(8000 * np.sin(2 * np.pi * self._tone_hz * at / RATE_HZ)).astype(np.int16)
        frame = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, self._blocks * BLOCK_SAMPLES
        frame.time_base = fractions.Fraction(1, RATE_HZ)
        self._blocks += 1
        return frame


class AiortcPeer:
    """One side of a connection; close it."""

    def __init__(self, *, tone_hz=440.0):
        configuration = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self.connection = RTCPeerConnection(configuration)
        self.sounds = []  # (n,) float64, 48 kHz mono, in [-1, 1]
        self.pictures = []  # (H, W, 3) uint8
        self._microphone = ToneTrack(tone_hz)
        self._tasks = []
        self.connection.on("track", self._take)

    async def offer(self):
        """Returns the SDP of an offer: a microphone up, sound and pictures down."""
        self.connection.addTrack(self._microphone)
        self.connection.addTransceiver("video", direction="recvonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def accept(self, sdp):
        """Takes the answer and returns once the connection stands."""
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="answer"))
        await until(lambda: self.connection.connectionState == "connected")

    async def close(self):
        """Ends the connection; the other side is told."""
        await self.connection.close()
        self._microphone.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def heard(self, seconds=0.5):
        """Returns the last (n,) of the sound."""
        samples = np.concatenate(self.sounds) if self.sounds else np.zeros(0)
        return samples[-round(seconds * RATE_HZ) :]

    def _take(self, track):
        self._tasks.append(
            asyncio.ensure_future(self._hear(track) if track.kind == "audio" else self._see(track))
        )

    async def _hear(self, track):
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
                self.sounds.append(samples.mean(axis=1) / 32768)

    async def _see(self, track):
        with contextlib.suppress(MediaStreamError):
            while True:
                self.pictures.append((await track.recv()).to_ndarray(format="rgb24"))


def offer_of_a_peer():
    """Returns the SDP of a peer that will not come."""

    async def make():
        peer = AiortcPeer()
        try:
            return await peer.offer()
        finally:
            await peer.close()

    return asyncio.run(make())


class LiveClient:
    """A page without a browser: offer, answer, WebSocket."""

    def __init__(self, url, *, speaker=None, tone_hz=440.0):
        self.url = url
        self.peer = AiortcPeer(tone_hz=tone_hz)
        self.session_id = ""
        self.told = []  # messages of the WebSocket
        self.closed = None  # code and reason, once the server closed it
        self._speaker = speaker
        self._socket = None
        self._listening = None

    async def __aenter__(self):
        offer = {"sdp": await self.peer.offer(), "type": "offer"}
        if self._speaker is not None:
            offer["speaker"] = self._speaker
        async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as http:
            response = await http.post(f"{self.url}offer", json=offer)
        try:
            assert response.status_code == 200, response.text
            answer = response.json()
            self.session_id = answer["session_id"]
            await self.peer.accept(answer["sdp"])
            await self.listen()
        except BaseException:
            await self.peer.close()
            raise
        return self

    async def __aexit__(self, *_):
        await self.stop_listening()
        await self.peer.close()

    async def listen(self):
        """Opens the WebSocket; a second one takes its place."""
        url = self.url.replace("http", "ws", 1) + f"ws/{self.session_id}"
        self._socket = await connect(url, proxy=None)
        self.closed = None
        self._listening = asyncio.create_task(self._take_messages(self._socket))

    async def stop_listening(self):
        """Closes the WebSocket."""
        if self._socket is not None:
            await self._socket.close()
            await self._listening

    async def say(self, message):
        """Sends a message: what JSON can say, or a text or bytes as they are."""
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def of(self, kind):
        """Returns the messages of a type so far."""
        return [message for message in self.told if message["type"] == kind]

    async def goes_on(self, *, frames=5):
        """Returns once that many more pictures, and sound and telemetry with them, have come."""
        peer = self.peer
        before = len(peer.pictures), len(peer.sounds), len(self.of("telemetry"))
        await until(
            lambda: (
                len(peer.pictures) >= before[0] + frames
                and len(peer.sounds) >= before[1] + 2 * frames
                and len(self.of("telemetry")) > before[2]
            ),
            what=f"{frames} more pictures with their sound",
        )

    async def _take_messages(self, socket):
        try:
            async for text in socket:
                self.told.append(json.loads(text))
        except ConnectionClosed:
            pass
        self.closed = socket.close_code, socket.close_reason


async def _stay(url):
    async with LiveClient(url) as client:
        await client.goes_on()
        print(f"connected {client.session_id}", flush=True)  # noqa: T201 - what the test waits for
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(_stay(sys.argv[1]))
