"""HTTP connections with timeouts and limits, against slow clients (slowloris).

uvicorn waits for a request's head without end and accepts any number of connections. Half-sent requests would
take every file descriptor of the process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import weakref
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..addresses import TrustedProxies, address_key
from .websocket_protocol import GuardedWebSocketProtocol

log = logging.getLogger(__name__)

MAX_HEAD_S = 10.0
"""Timeout of a request's head, from the connection's begin or its last response."""
MAX_LINGER_S = 2.0
"""Timeout of draining an unwanted body: a sender that is cut off may never see the response."""
MAX_UNREAD_S = 20.0
"""Timeout of a peer that reads nothing of its response."""
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_ADDRESS = 64
_LOOK_S = 1.0
MIN_DESCRIPTORS_LEFT = 0.5
"""Share of the process's file descriptors that connections leave to sessions, files and all else."""


def raise_descriptor_limit() -> int:
    """Returns the limit of file descriptors, raised to the hard limit."""
    if sys.platform == "win32":
        return 2 * MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems take no "unlimited" here
            log.debug("the limit of descriptors stays at %d", soft)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class ConnectionTable:
    """The open connections; beyond the limits, the longest idle one is closed."""

    def __init__(
        self,
        *,
        descriptors: int,
        proxies: TrustedProxies,
        max_per_address: int = MAX_CONNECTIONS_PER_ADDRESS,
    ) -> None:
        """Begins empty.

        Args:
            descriptors: that the process may have.
            proxies: any number of connections may come from one of these.
            max_per_address: of all others.
        """
        self.max_connections = min(MAX_CONNECTIONS, int(descriptors * (1 - MIN_DESCRIPTORS_LEFT)))
        self._max_per_address = max_per_address
        self._proxies = proxies
        self._connections: dict[GuardedHttpProtocol, str] = {}  # oldest first

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._connections)

    def admit(self, connection: GuardedHttpProtocol, address: str) -> bool:
        """Returns whether a new connection may stay; another may have gone for it."""
        key = address_key(address)
        if address not in self._proxies:
            same = [known for known, of in self._connections.items() if of == key]
            if len(same) >= self._max_per_address and not self._make_room(same):
                return False
        if len(self._connections) >= self.max_connections and not self._make_room(list(self._connections)):
            return False
        self._connections[connection] = key
        return True

    def has_room(self, address: str, open_now: list[str]) -> bool:
        """Returns whether a socket may be taken, of which no request is known yet.

        Args:
            address: of the new one.
            open_now: keys of the addresses of those that are open, known here or still in their handshake.
        """
        if len(open_now) >= 1.5 * self.max_connections:
            return False
        return address in self._proxies or open_now.count(address_key(address)) < 1.5 * self._max_per_address

    def remove(self, connection: GuardedHttpProtocol) -> None:
        """Forgets a connection; one that is unknown, too."""
        self._connections.pop(connection, None)

    def _make_room(self, candidates: list[GuardedHttpProtocol]) -> bool:
        for known in sorted(candidates, key=lambda known: not known.is_over):  # oldest first of each kind
            if known.is_over or known.is_waiting:
                del self._connections[known]
                known.abort()
                return True
        return False


class GuardedHttpProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with timeouts, counted in a table."""

    def __init__(self, *, table: ConnectionTable, **of_uvicorn: Any) -> None:  # noqa: ANN401 - handed on
        """Prepares a connection.

        Args:
            table: that it counts in.
            of_uvicorn: what uvicorn makes its own with.
        """
        super().__init__(**of_uvicorn)
        self._table = table
        self._deadline: asyncio.TimerHandle | None = None
        self._upgraded = False
        self._unread_s = 0.0  # that nothing was read of what waits to be sent
        self._unread_bytes = 0
        self._looking: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is closing: unsent data keeps it until the peer reads that."""
        return self.transport.is_closing()

    @property
    def is_waiting(self) -> bool:
        """Whether no request of it is being answered, or its peer takes no answer."""
        answered = self.cycle is None or self.cycle.response_complete
        return (not self._upgraded and answered) or self._unread_s > 0

    def abort(self) -> None:
        """Ends it at once."""
        self._set_deadline(None)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or ends it where there are too many."""
        super().connection_made(transport)
        if not self._table.admit(self, self.client[0] if self.client else ""):
            transport.abort()
            return
        self._set_deadline(MAX_HEAD_S)
        self._looking = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self.lost()
        super().connection_lost(exc)

    def lost(self) -> None:
        """Forgets it; called by the WebSocket that it became."""
        self._set_deadline(None)
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._table.remove(self)

    def _look(self) -> None:
        """Ends a connection whose peer reads nothing of its response, closing or not."""
        unread = self.transport.get_write_buffer_size()
        stands = unread > 0 and unread >= self._unread_bytes > 0
        self._unread_s = self._unread_s + _LOOK_S if stands else 0.0
        self._unread_bytes = unread
        if self._unread_s >= (MAX_LINGER_S if self.is_over else MAX_UNREAD_S):
            self.abort()
        else:
            self._looking = self.loop.call_later(_LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:
        """Takes bytes; drops those of a connection that is closing."""
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what cannot be answered any more
            self.abort()

    def handle_events(self) -> None:
        """Handles parsed events; a request's head ends its timeout."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._set_deadline(None)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hands the connection on to a WebSocket; it counts until that closes."""
        self._set_deadline(None)
        self._upgraded = True
        super().handle_websocket_upgrade(event)
        protocol = self.transport.get_protocol()
        if isinstance(protocol, GuardedWebSocketProtocol):
            protocol.when_lost(self.lost)

    def on_response_complete(self) -> None:
        """Awaits the next request, or drains this one's body and closes."""
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            return  # the next request was there already
        if self.conn.their_state is h11.SEND_BODY:
            self._set_deadline(MAX_LINGER_S)
        else:
            self._set_deadline(MAX_HEAD_S)

    def _set_deadline(self, after_s: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if after_s is not None:
            self._deadline = self.loop.call_later(after_s, self.abort)


class GuardedListener(socket.socket):
    """A listening socket with a limit of connections, those in their TLS handshake included."""

    def guard(self, table: ConnectionTable) -> None:
        """Begins to count, with room for a table's connections and as many handshakes."""
        self._table = table
        self._taken: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()

    def accept(self) -> tuple[socket.socket, Any]:
        """Takes a connection.

        Raises:
            ConnectionAbortedError: there are too many, in all or of its address; it is closed.
        """
        connection, address = super().accept()
        table: ConnectionTable | None = getattr(self, "_table", None)
        if table is not None:
            key = address[0] if isinstance(address, tuple) else ""
            open_now = [of for taken, of in self._taken.items() if taken.fileno() != -1]
            if not table.has_room(key, open_now):
                connection.close()
                raise ConnectionAbortedError
            self._taken[connection] = address_key(key)
        return connection, address


class Sparingly(logging.Filter):
    """Rate-limits log records of a kind."""

    def __init__(self, starts: tuple[str, ...], *, every_s: float = 10.0) -> None:
        """Takes how the records begin that are held back, and says each line without its traceback."""
        super().__init__()
        self._starts, self._every_s = starts, every_s
        self._said_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is said."""
        start = next((start for start in self._starts if record.getMessage().startswith(start)), None)
        if start is None:
            return True
        if record.created - self._said_s.get(start, float("-inf")) < self._every_s:
            return False
        self._said_s[start] = record.created
        record.msg, record.args = record.getMessage().splitlines()[0], ()
        record.exc_info = record.exc_text = None
        return True
