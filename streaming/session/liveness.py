"""When a session has lost its peer: timeouts of connecting, of packets and pings, of its page's socket."""

from __future__ import annotations

from ..pipeline.clock import MonotonicClock

CONNECT_TIMEOUT_S = 15.0  # close a session whose ICE or DTLS has not completed; in silence PEER_TIMEOUT_S
PEER_TIMEOUT_S = 4.0  # close it after so long without RTP, RTCP or ping
PAGE_LEFT_TIMEOUT_S = 1.5  # the same once its page's WebSocket has closed


class Liveness:
    """The keepalive state of one peer."""

    def __init__(self, clock: MonotonicClock) -> None:
        """Begins to wait for a connection."""
        self.sockets = 0
        """How many WebSockets of pages are open."""
        self._clock = clock
        self._created_s = self._last_sign_s = clock.now_s()
        self._packets_seen = 0
        self._had_socket = False
        self._was_connected = False

    def connected(self) -> None:
        """Takes that ICE and DTLS completed."""
        self._was_connected = True
        self.heard()

    def heard(self) -> None:
        """Takes that a message or ping of the page came."""
        self._last_sign_s = self._clock.now_s()

    def socket_opened(self) -> None:
        """Takes that a page opened its WebSocket."""
        self.sockets += 1
        self._had_socket = True

    def socket_closed(self) -> None:
        """Takes that a page's WebSocket closed."""
        self.sockets -= 1

    def end_reason(self, now_s: float, *, packets: int) -> str | None:
        """Returns why the session is to be closed, None while no timeout has passed.

        Args:
            now_s: to be asked about twice a second.
            packets: received so far.
        """
        if packets != self._packets_seen:
            self._packets_seen, self._last_sign_s = packets, now_s
        silent_s = now_s - self._last_sign_s
        if not self._was_connected:
            given_up = now_s - self._created_s > CONNECT_TIMEOUT_S or silent_s > PEER_TIMEOUT_S
            return "no connection came about" if given_up else None
        page_left = self._had_socket and not self.sockets
        if silent_s > (PAGE_LEFT_TIMEOUT_S if page_left else PEER_TIMEOUT_S):
            return "the peer left" if page_left else "timed out"
        return None
