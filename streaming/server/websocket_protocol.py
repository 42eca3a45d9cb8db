"""WebSocket connections with a limit of frames, closed with a code and reason instead of a traceback.

uvicorn answers every ping and joins every fragment before the application can count messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

log = logging.getLogger(__name__)

MAX_FRAMES_PER_S = 60
"""Frames of all kinds, pings and fragments too; a page sends a few."""
MAX_FRAGMENTS = 32
"""Of a message."""
_LINGER_S = 1.0
MAX_CLOSE_S = 12.0
"""Timeout of flushing what is left to send; the closing handshake has ten seconds."""


class GuardedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket connection, its frames counted and its end bounded."""

    def __init__(self, *of_uvicorn: Any, **named: Any) -> None:  # noqa: ANN401 - handed on
        """Prepares a connection from what uvicorn gives."""
        super().__init__(*of_uvicorn, **named)
        self._refused = False
        self._when_lost: Callable[[], None] = lambda: None
        self._second_s = self.loop.time()
        self._frames_in_second = 0

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Has `tell` called once the connection is gone."""
        self._when_lost = tell

    def connection_lost(self, exc: Exception | None) -> None:
        """Calls what `when_lost` was given."""
        self._when_lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes; drops those of a connection that was refused."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refused = True
            self.transport.write(b"".join(self.conn.data_to_send()))  # a status, where there is one
            self.transport.close()

    def handle_text(self, event: Frame) -> None:
        """Takes a message of text, or its first fragment."""
        if self._counts():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Takes a message of bytes, or its first fragment."""
        if self._counts():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Takes a further fragment of a message."""
        if not self._counts():
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self._refuse(CloseCode.POLICY_VIOLATION, f"more than {MAX_FRAGMENTS} fragments of a message")
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answers a ping."""
        if self._counts():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Takes an answer to a ping."""
        if self._counts():
            super().handle_pong(event)

    def send_receive_event_to_app(self) -> None:
        """Hands a whole message on; text that is not UTF-8 ends the connection."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._refuse(CloseCode.INVALID_DATA, "text that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Sends the close reason to peer and log, and ends the connection once it was flushed."""
        self._refused = True
        closed = self.conn.close_sent
        log.warning(
            "WebSocket of %s closed: %s",
            self.client[0] if self.client else "an unknown address",
            (closed.reason if closed else "") or "it breaks the protocol",
        )
        if closed is None:
            self.transport.close()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:  # closed with bytes unread, TCP would reset and lose what was just sent
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def keepalive_timeout(self) -> None:
        """Ends a connection whose peer answers no ping, unread bytes or not."""
        super().keepalive_timeout()
        self._abort_later()

    async def run_asgi(self) -> None:
        """Runs the application for this connection, then ends it even where the peer reads nothing."""
        await super().run_asgi()
        self._abort_later()

    def _abort_later(self) -> None:
        self.loop.call_later(MAX_CLOSE_S, self.transport.abort)

    def _counts(self) -> bool:
        """Counts a frame; returns whether it is still to be taken."""
        if self._refused or self.close_sent:
            return not self._refused  # its closing handshake goes on until the timeout
        now_s = self.loop.time()
        if now_s - self._second_s >= 1:
            self._second_s, self._frames_in_second = now_s, 0
        self._frames_in_second += 1
        if self._frames_in_second > MAX_FRAMES_PER_S:
            self._refuse(CloseCode.POLICY_VIOLATION, f"more than {MAX_FRAMES_PER_S} frames a second")
            return False
        return True

    def _refuse(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        self.conn.fail(code, reason)
        self.handle_parser_exception()
