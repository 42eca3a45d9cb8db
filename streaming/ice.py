"""ICE as a server needs it: ports of a given range, several STUN and TURN servers, nobody asked unasked."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from aioice import ice
from aioice.candidate import Candidate, candidate_foundation, candidate_priority
from aiortc.rtcicetransport import RTCIceTransport, parse_stun_turn_uri

from .errors import InputError

log = logging.getLogger(__name__)

_RECEIVE_BUFFER_BYTES = 1 << 20  # a burst of packets must survive a moment in which the loop is busy
_GATHER_S = 3.0  # a STUN or TURN server that does not answer holds the answer back no longer
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class IceServer:
    """One STUN or TURN server, `stun:host:port` or `turn:user:password@host:port?transport=udp`."""

    url: str  # without user and password
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str) -> IceServer:
        """Returns a server from its text.

        Raises:
            InputError: not of that form.
        """
        scheme, _, rest = text.partition(":")
        credentials, at, host = rest.rpartition("@")
        username, colon, password = credentials.partition(":")
        url = f"{scheme}:{host}"
        try:
            parse_stun_turn_uri(url)
            valid = bool(username and colon and password) if scheme.startswith("turn") else not at
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                "--ice-server: expected stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT], perhaps with "
                f"?transport=tcp, got {scheme}:{'...@' if at else ''}{host}"
            )
        return cls(url=url, username=username or None, password=password or None)

    def for_browser(self) -> dict[str, str]:
        """Returns the server as `RTCIceServer` of a browser."""
        described = {"urls": self.url}
        if self.username and self.password:
            described |= {"username": self.username, "credential": self.password}
        return described


class IceConnection(ice.Connection):
    """aioice's connection, but for how local candidates come about."""

    def __init__(
        self, *, servers: tuple[IceServer, ...] = (), port_range: tuple[int, int] | None = None
    ) -> None:
        """Prepares a connection that answers.

        Args:
            servers: asked for candidates, all at once.
            port_range: first and last UDP port to listen on; None: any.
        """
        super().__init__(ice_controlling=False)
        self._servers = servers
        self._port_range = port_range

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 5
    ) -> list[Candidate]:
        """Returns host candidates within the port range, then what the servers say in time."""
        hosts = [
            protocol
            for address in addresses or [LOOPBACK]
            if (protocol := await self._listen(component, address)) is not None
        ]
        self._protocols += hosts
        candidates = [protocol.local_candidate for protocol in hosts]
        asked = [asyncio.ensure_future(work) for work in self._ask_servers(component, hosts)]
        if asked:
            done, pending = await asyncio.wait(asked, timeout=_GATHER_S)
            for task in pending:
                task.cancel()
            for task in done:
                if (error := task.exception()) is not None:
                    log.warning("an ICE server gave no candidate: %s", error or type(error).__name__)
                    continue
                candidate, relay = task.result()
                candidates.append(candidate)
                if relay is not None:
                    self._protocols.append(relay)
            if pending:
                log.warning("%d ICE servers did not answer within %.0f s", len(pending), _GATHER_S)
        return candidates

    def _ports(self) -> Iterator[int]:
        if self._port_range is None:
            yield 0
            return
        first, last = self._port_range
        count = last - first + 1
        offset = random.randrange(count)  # sessions that come at once do not race for the same port
        for step in range(count):
            yield first + (offset + step) % count

    async def _listen(self, component: int, address: str) -> ice.StunProtocol | None:
        loop = asyncio.get_running_loop()
        for port in self._ports():
            try:
                transport, protocol = await loop.create_datagram_endpoint(
                    lambda: ice.StunProtocol(self), local_addr=(address, port)
                )
            except OSError as error:
                reason = error
                continue
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            host, bound_port = transport.get_extra_info("sockname")[:2]
            protocol.local_candidate = Candidate(
                foundation=candidate_foundation("host", "udp", host),
                component=component,
                transport="udp",
                priority=candidate_priority(component, "host"),
                host=host,
                port=bound_port,
                type="host",
            )
            return protocol
        log.warning("no UDP port could be opened on %s: %s", address, reason)
        return None

    def _ask_servers(
        self, component: int, hosts: list[ice.StunProtocol]
    ) -> Iterator[Coroutine[Any, Any, tuple[Candidate, ice.StunProtocol | None]]]:
        for server in self._servers:
            where = parse_stun_turn_uri(server.url)
            address = (where["host"], where["port"])
            if where["scheme"] == "stun":
                for protocol in hosts:
                    if ipaddress.ip_address(protocol.local_candidate.host).version == 4:
                        yield ice.server_reflexive_candidate(protocol, address)
            else:
                yield ice.relayed_candidate(
                    component=component,
                    hide_related_address=False,
                    protocol_factory=lambda: ice.StunProtocol(self),
                    turn_server=address,
                    turn_username=server.username,
                    turn_password=server.password,
                    turn_ssl=where["scheme"] == "turns",
                    turn_transport=where["transport"],
                )


def replace_connection(transport: RTCIceTransport, connection: IceConnection) -> None:
    """Lets a transport of aiortc that has not started use another connection."""
    transport.iceGatherer._connection = connection
    transport._connection = connection
    transport._recv, transport._send = connection.recv, connection.send
