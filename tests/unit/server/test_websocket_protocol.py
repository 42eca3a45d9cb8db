"""What a WebSocket connection takes, and how it ends."""

from __future__ import annotations

import asyncio
import logging

import pytest
from uvicorn import Config
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from streaming.server.websocket_protocol import MAX_FRAGMENTS, MAX_FRAMES_PER_S, GuardedWebSocketProtocol

pytestmark = pytest.mark.anyio


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__({"peername": ("192.0.2.7", 4000), "sockname": ("192.0.2.1", 80)})
        self.written, self.closed, self.aborted = b"", False, False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Loop:
    """The running loop, with a clock that stands."""

    def __init__(self):
        self.time_s, self.later = 1000.0, []

    def time(self):
        return self.time_s

    def call_later(self, after_s, do):
        self.later.append(do)
        return asyncio.get_running_loop().call_later(3600, lambda: None)

    def pass_time(self):
        """Does what was to be done later."""
        later, self.later = self.later, []
        for do in later:
            do()

    def create_task(self, coroutine):
        return asyncio.get_running_loop().create_task(coroutine)


class Call:
    """A client of an application that writes down what it hears."""

    def __init__(self):
        self.heard = []
        self.loop = Loop()
        config = Config(self._app, interface="asgi3", ws_per_message_deflate=False, log_config=None)
        self.server = GuardedWebSocketProtocol(config, ServerState(), {}, _loop=self.loop)
        self.transport = Transport()
        self.server.connection_made(self.transport)
        self.client = ClientProtocol(parse_uri("ws://localhost/ws"))

    async def _app(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            came = await receive()
            self.heard.append(came)
            if came["type"] == "websocket.disconnect":
                return

    async def open(self):
        self.client.send_request(self.client.connect())
        await self.exchange()
        assert self.client.handshake_exc is None

    async def exchange(self):
        """Brings bytes both ways until all is said."""
        for data in self.client.data_to_send():
            if data:
                self.server.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)
        written, self.transport.written = self.transport.written, b""
        if written:
            self.client.receive_data(written)
            self.client.events_received()

    async def send(self, opcode, data=b"", *, fin=True):
        self.client.writes.append(Frame(opcode, data, fin).serialize(mask=True))
        await self.exchange()

    @property
    def closed_with(self):
        return self.client.close_rcvd and self.client.close_rcvd.code


@pytest.fixture
async def call():
    it = Call()
    await it.open()
    return it


async def test_messages_come_whole(call):
    await call.send(Opcode.TEXT, "gr\u00fc\u00df".encode())
    await call.send(Opcode.TEXT, "\u00fc".encode()[:1], fin=False)
    await call.send(Opcode.PING, b"in between")
    await call.send(Opcode.CONT, "\u00fc".encode()[1:])
    await call.send(Opcode.BINARY, b"\xff")
    assert call.heard == [
        {"type": "websocket.receive", "text": "gr\u00fc\u00df"},
        {"type": "websocket.receive", "text": "\u00fc"},
        {"type": "websocket.receive", "bytes": b"\xff"},
    ]
    assert not call.transport.closed


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.TEXT, Opcode.BINARY])
async def test_frames_of_every_kind_are_counted(call, opcode, caplog):
    for _ in range(MAX_FRAMES_PER_S):
        await call.send(opcode, b"x")
    assert not call.transport.closed
    for _ in range(100):
        await call.send(opcode, b"x")
    assert call.closed_with == 1008
    call.loop.pass_time()
    assert call.transport.closed
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"WebSocket of 192.0.2.7 closed: more than {MAX_FRAMES_PER_S} frames a second"
    ]
    assert call.heard[-1]["type"] == "websocket.disconnect"
    assert [came["type"] for came in call.heard].count("websocket.disconnect") == 1


async def test_frames_count_anew_each_second(call):
    for _ in range(5):
        call.loop.time_s += 1.0
        for _ in range(MAX_FRAMES_PER_S):
            await call.send(Opcode.PING)
    assert not call.transport.closed


async def test_a_message_comes_in_so_many_fragments(call):
    await call.send(Opcode.TEXT, b"x", fin=False)
    for _ in range(MAX_FRAGMENTS - 2):
        await call.send(Opcode.CONT, b"x", fin=False)
    await call.send(Opcode.CONT, b"x")
    assert call.heard == [{"type": "websocket.receive", "text": "x" * MAX_FRAGMENTS}]
    await call.send(Opcode.TEXT, b"", fin=False)
    for _ in range(MAX_FRAGMENTS):
        await call.send(Opcode.CONT, b"", fin=False)
    assert call.closed_with == 1008
    assert len(call.server.frames) == 0


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(Opcode.TEXT, b"\xc3\x28", True)], 1007),
        ([(Opcode.TEXT, b"\xc3", False), (Opcode.CONT, b"\x28", True)], 1007),
        ([(Opcode.CONT, b"x", True)], 1002),
        ([(Opcode.TEXT, b"x", False), (Opcode.TEXT, b"x", True)], 1002),
        ([(Opcode.CLOSE, b"\x03\xe8\xff", True)], 1007),
    ],
)
async def test_what_breaks_the_protocol_ends_in_one_line(call, frames, code, caplog):
    for opcode, data, fin in [*frames, *frames]:
        await call.send(opcode, data, fin=fin)
    assert call.closed_with == code
    call.loop.pass_time()
    assert call.transport.closed
    assert [came["type"] for came in call.heard] == ["websocket.disconnect"]
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert not said[0].exc_info


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 20_000), b"414"),
        (b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (b"x" * 20_000), b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n", b"4"),
        (b"no request\r\n\r\n", b""),
    ],
)
async def test_a_handshake_that_cannot_be_read_ends_the_connection(head, status):
    it = Call()
    it.server.data_received(head)
    it.server.data_received(b"more")
    await asyncio.sleep(0)
    assert it.transport.closed
    assert it.transport.written.startswith(b"HTTP/1.1 " + status if status else b"")
    assert it.heard == []


async def test_a_peer_that_reads_nothing_does_not_keep_the_connection(call):
    call.server.keepalive_timeout()
    call.loop.pass_time()
    assert call.transport.aborted
