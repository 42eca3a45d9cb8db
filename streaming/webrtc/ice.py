"""ICE for a server: a UDP port range, several STUN and TURN servers, bounded connectivity checks."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from aioice import ice, stun
from aioice.candidate import Candidate, candidate_foundation, candidate_priority
from aiortc.rtcicetransport import RTCIceParameters, RTCIceTransport, parse_stun_turn_uri

from ..errors import InputError

log = logging.getLogger(__name__)

_RECEIVE_BUFFER_BYTES = 1 << 20  # a burst of packets must survive a moment in which the loop is busy
_MAX_WAITING = 1024  # datagrams in the receive queue, seconds of a call; later ones are dropped
_GATHER_S = 3.0  # timeout of STUN and TURN servers while candidates are gathered
LOOPBACK = "127.0.0.1"
MAX_CHECKS_PER_ADDRESS = 5
"""Connectivity checks sent to an address that has neither answered one nor sent one of its own."""
_MAX_LEARNT = 16  # peer-reflexive candidates


def is_reachable(host: str) -> bool:
    """Returns whether a remote candidate's address may be one peer's, and not none's, many hosts' or a name.

    Loopback is: `IceConnection` leaves it out where the machine has another address. A subnet's own broadcast
    address cannot be told from here; the kernel sends nothing there from sockets without SO_BROADCAST.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not (
            address.is_multicast
            or address.is_link_local
            or address.is_reserved  # 240/4, the broadcast address among it
            or address in _THIS_NETWORK
        )
    embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
    if embedded is None and any(address in network for network in _EMBEDDING):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_loopback:
        embedded = None
    return not (
        address.ipv4_mapped  # RFC 8445, 5.1.1.1, as site-local ones
        or address.is_site_local
        or address.is_unspecified
        or address.is_multicast
        or address.is_link_local
        or address.scope_id
        or (embedded is not None and (embedded.is_loopback or not is_reachable(str(embedded))))
    )


_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))  # RFC 6052, RFC 4291


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
        username, _, password = credentials.partition(":")
        url = f"{scheme}:{host}"
        try:
            valid = _is_supported(url) and (bool(username and password) if scheme != "stun" else not at)
        except ValueError:
            valid = False
        if not valid:
            # What does not parse is not shown beyond its scheme: any part of it may be the password.
            known = scheme if scheme in ("stun", "stuns", "turn", "turns") else ""
            raise InputError(
                "--ice-server: expected stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT], turns: likewise, "
                f"perhaps with ?transport=tcp, got {f'{known}: and something else' if known else 'neither'}"
            )
        return cls(url=url, username=username or None, password=password or None)

    def for_browser(self) -> dict[str, str]:
        """Returns the server as `RTCIceServer` of a browser."""
        described = {"urls": self.url}
        if self.username and self.password:
            described |= {"username": self.username, "credential": self.password}
        return described


def _is_supported(url: str) -> bool:
    """Whether aioice can use a server; ValueError: it is not even one."""
    where = parse_stun_turn_uri(url)
    transports = {"stun": (None,), "turn": ("udp", "tcp"), "turns": ("tcp",)}.get(where["scheme"], ())
    return (
        0 < where["port"] < 65536
        and where.get("transport") in transports
        and not any(character.isspace() for character in url)
    )


class _Socket(ice.StunProtocol):
    """One UDP socket; datagrams of strangers are dropped."""

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """Takes a STUN message from anyone, all else from the peer alone.

        DTLS believes the first alert that it reads, whoever sent it.
        """
        connection = self.receiver
        try:
            if isinstance(connection, IceConnection) and not connection.is_peer(addr):
                stun.parse_message(data if isinstance(data, bytes) else b"")  # raises on what is none
            super().datagram_received(data, addr)
        except Exception:  # noqa: BLE001 - aioice's parser meets garbage with whatever comes
            log.debug("a datagram from %s was no STUN message", addr)

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        """Sends a message, unless it is a check of an address that has used up its budget."""
        is_check = message.message_class == stun.Class.REQUEST and "USERNAME" in message.attributes
        connection = self.receiver
        if is_check and isinstance(connection, IceConnection) and not connection.take_check(addr):
            return
        super().send_stun(message, addr)


class IceConnection(ice.Connection):
    """aioice's connection with its own candidate gathering, check budget and bounded receive queue."""

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
        self.checks_received = 0
        """Connectivity checks received from the peer, which repeats them for consent (RFC 7675)."""
        self._asked: list[asyncio.Task[tuple[Candidate, ice.StunProtocol | None]]] = []
        self._checked = asyncio.Event()  # set while no `connect` is under way
        self._checked.set()
        self._checks_left: dict[tuple[str, int], int] = {}  # by remote address
        self._proved: dict[
            tuple[str, int], None
        ] = {}  # addresses that sent an authenticated check, oldest first

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 5
    ) -> list[Candidate]:
        """Returns host candidates within the port range, then the servers' candidates that came in time."""
        hosts = []
        for address in addresses or [LOOPBACK]:
            protocol = await self._listen(component, address)
            if protocol is not None:
                hosts.append(protocol)
                await self._own(protocol)
        if self._closing:
            return []
        candidates = [protocol.local_candidate for protocol in hosts]
        asked = self._asked = [asyncio.create_task(work) for work in self._ask_servers(component, hosts)]
        try:
            if asked:
                await asyncio.wait(asked, timeout=_GATHER_S)
        finally:  # the answer may have been called off, too
            for task in asked:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for answer in answers:
                if not isinstance(answer, BaseException) and answer[1] is not None:
                    await self._own(answer[1])
        if self._closing:
            return []
        for answer in answers:
            if isinstance(answer, asyncio.CancelledError):
                log.warning("an ICE server did not answer within %.0f s", _GATHER_S)
            elif isinstance(answer, BaseException):
                log.warning("an ICE server gave no candidate: %s", str(answer) or type(answer).__name__)
            else:
                candidates.append(answer[0])
        places: dict[tuple[str, int], Candidate] = {}  # redundant ones are left out (RFC 8445, 5.1.3)
        for candidate in candidates:
            places.setdefault((candidate.host, candidate.port), candidate)
        return list(places.values())

    async def connect(self) -> None:
        """Nominates a candidate pair.

        Raises:
            ConnectionError: there is none, or closed meanwhile.
        """
        self._checked.clear()
        try:
            await super().connect()
            if self._closing and self._query_consent_task is not None:
                # Begun after `close` cancelled it, it would never end.
                self._query_consent_task.cancel()
                raise ConnectionError("closed while it connected")
        finally:
            self._checked.set()

    async def close(self) -> None:
        """Closes the connection, stops asking, and waits until no `connect` is under way."""
        for task in self._asked:
            task.cancel()
        await super().close()
        await self._checked.wait()

    def check_incoming(
        self, message: stun.Message, addr: tuple[str, int], protocol: ice.StunProtocol
    ) -> None:
        """Takes an authenticated check of the peer; its source address may be forged."""
        if "PRIORITY" not in message.attributes:
            return  # it has to be there (RFC 8445, 7.1.1)
        self.checks_received += 1
        place = (addr[0], addr[1])  # of IPv6, Python's has four parts
        self._proved.pop(place, None)
        self._proved[place] = None
        if len(self._proved) > _MAX_LEARNT:
            del self._proved[next(iter(self._proved))]
        self._make_room(addr)
        if self._checks_left.get(addr) == 0:  # the check under way would wait for its next repetition
            for pair in self._check_list:
                if pair.remote_addr == addr and pair.protocol is protocol and pair.task is not None:
                    pair.task.cancel()
                    pair.task, pair.state = None, ice.CandidatePair.State.WAITING  # RFC 8445, 7.3.1.4
        self._checks_left[addr] = min(self._checks_left.get(addr, 0) + 1, MAX_CHECKS_PER_ADDRESS)
        super().check_incoming(message, addr, protocol)

    def is_peer(self, addr: tuple[Any, ...]) -> bool:
        """Returns whether an address is one of the peer's: a check of either side proved it."""
        place = (addr[0], addr[1])
        return place in self._proved or self._has_succeeded(place)

    def take_check(self, addr: tuple[str, int]) -> bool:
        """Returns whether another check may be sent to an address, and counts it.

        Addresses come from whoever wrote the offer, and may be a third party's: without an answer each gets
        `MAX_CHECKS_PER_ADDRESS`, from all our sockets together, and one more for each check of its own.
        """
        if self._has_succeeded(addr):
            return True
        left = self._checks_left.get(addr, 0)
        self._checks_left[addr] = max(left - 1, 0)
        return left > 0

    def _has_succeeded(self, addr: tuple[str, int]) -> bool:
        succeeded = ice.CandidatePair.State.SUCCEEDED
        return any(pair.state == succeeded and pair.remote_addr == addr for pair in self._check_list)

    def _make_room(self, addr: tuple[str, int]) -> None:
        """Forgets the oldest peer-reflexive candidate where there are too many, before a new one."""
        if any((c._network_host, c.port) == addr for c in self._remote_candidates):
            return
        in_use = [pair.remote_candidate for pair in self._nominated.values()]
        learnt = [c for c in self._remote_candidates if c.type == "prflx" and c not in in_use]
        for candidate in learnt[: max(0, len(learnt) - _MAX_LEARNT + 1)]:
            self._remote_candidates.remove(candidate)
            self._checks_left.pop((candidate._network_host, candidate.port), None)
            for pair in [pair for pair in self._check_list if pair.remote_candidate is candidate]:
                if pair.task is not None:
                    pair.task.cancel()
                self._check_list.remove(pair)

    def _pair_remote_candidate(self, remote_candidate: Candidate) -> None:
        address = ipaddress.ip_address(remote_candidate._network_host)
        hosts = (ipaddress.ip_address(protocol.local_candidate.host) for protocol in self._protocols)
        if address.is_loopback and not any(host.is_loopback for host in hosts):
            return  # a peer on this machine checks us, which gives its peer-reflexive candidate
        if remote_candidate.type != "prflx":
            place = (remote_candidate._network_host, remote_candidate.port)
            self._checks_left.setdefault(place, MAX_CHECKS_PER_ADDRESS)
        super()._pair_remote_candidate(remote_candidate)

    def data_received(self, data: bytes, component: int) -> None:
        """Queues a datagram that is no STUN message."""
        if not data:
            return  # aiortc looks at the first byte, and would end the connection
        if self._queue.qsize() < _MAX_WAITING:
            super().data_received(data, component)

    async def _own(self, protocol: ice.StunProtocol) -> None:
        """Leaves it to `close` to close `protocol`; closes it at once where that is over."""
        if self._closing:
            await protocol.close()
        else:
            self._protocols.append(protocol)

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
        reason: OSError | None = None
        for port in self._ports():
            try:
                transport, protocol = await loop.create_datagram_endpoint(
                    lambda: _Socket(self), local_addr=(address, port)
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
                    protocol_factory=lambda: _Socket(self),
                    turn_server=address,
                    turn_username=server.username,
                    turn_password=server.password,
                    turn_ssl=where["scheme"] == "turns",
                    turn_transport=where["transport"],
                )


def replace_connection(transport: RTCIceTransport, connection: IceConnection) -> None:
    """Replaces the ICE connection of a transport of aiortc that has not started."""
    transport.iceGatherer._connection = connection
    transport._connection = connection
    transport._recv, transport._send = connection.recv, connection.send
    start = transport.start

    async def start_unless_closed(remote: RTCIceParameters) -> None:
        # Closed in mid connection, aiortc still comes to its next transceiver, and would fail unheard.
        if transport.state != "closed":
            await start(remote)

    transport.start = start_unless_closed  # type: ignore[assignment, method-assign]
