"""Candidates as a server needs them, against servers of our own on the loopback."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import random
import socket
import struct

import pytest
from aioice import ice as aioice_ice
from aioice import stun, turn
from aioice.candidate import Candidate
from aiortc import RTCPeerConnection
from aiortc.rtcconfiguration import RTCConfiguration
from on_loop import on_loop, until

from streaming.errors import InputError
from streaming.webrtc import ice
from streaming.webrtc.ice import (
    LOOPBACK,
    MAX_CHECKS_PER_ADDRESS,
    IceConnection,
    IceServer,
    replace_connection,
)

SEEN_FROM_OUTSIDE = ("203.0.113.5", 40_000)
RELAY = ("198.51.100.9", 50_000)
USER, PASSWORD, REALM = "user", "hunter2", "here"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """No address but the loopback's, on any machine."""
    monkeypatch.setattr(aioice_ice, "get_host_addresses", lambda **_: [])


class StandInServer(asyncio.DatagramProtocol):
    """A STUN and TURN server that says what it was told to, and keeps what it was asked."""

    def __init__(self, *, silent=False):
        self.silent = silent
        self.asked: list[stun.Message] = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        request = stun.parse_message(data)
        self.asked.append(request)
        if self.silent:
            return
        response = stun.Message(
            message_method=request.message_method,
            message_class=stun.Class.RESPONSE,
            transaction_id=request.transaction_id,
        )
        if request.message_method == stun.Method.BINDING:
            response.attributes["XOR-MAPPED-ADDRESS"] = SEEN_FROM_OUTSIDE
        elif "USERNAME" not in request.attributes:
            response.message_class = stun.Class.ERROR
            response.attributes |= {"ERROR-CODE": (401, "Unauthorized"), "NONCE": b"n", "REALM": REALM}
        else:
            lifetime = request.attributes.get("LIFETIME", 600)
            response.attributes |= {
                "XOR-MAPPED-ADDRESS": addr,
                "XOR-RELAYED-ADDRESS": RELAY,
                "LIFETIME": lifetime,
            }
            response.add_message_integrity(turn.make_integrity_key(USER, REALM, PASSWORD))
        self.transport.sendto(bytes(response), addr)

    @property
    def port(self):
        return self.transport.get_extra_info("sockname")[1]

    @property
    def methods(self):
        return [request.message_method for request in self.asked]


@contextlib.asynccontextmanager
async def server(**options):
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: StandInServer(**options), local_addr=(LOOPBACK, 0)
    )
    try:
        yield protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def connection(*texts, port_range=None):
    made = IceConnection(servers=tuple(map(IceServer.parse, texts)), port_range=port_range)
    try:
        yield made
    finally:
        await made.close()


def free_ports(count):
    """Returns the first of `count` UDP ports in a row that are free now."""
    for first in range(random.randrange(20_000, 50_000), 60_000, count):
        with contextlib.ExitStack() as opened:
            try:
                for port in range(first, first + count):
                    opened.enter_context(bound(port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def bound(port):
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        taken.bind((LOOPBACK, port))
    except OSError:
        taken.close()
        raise
    return taken


# Servers by text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "username", "password"),
    [
        ("stun:stun.example", "stun:stun.example", None, None),
        ("stun:192.0.2.1:19302", "stun:192.0.2.1:19302", None, None),
        ("turn:u:p@turn.example", "turn:turn.example", "u", "p"),
        ("turn:u:p@turn.example:80?transport=tcp", "turn:turn.example:80?transport=tcp", "u", "p"),
        ("turn:u:p@turn.example?transport=udp", "turn:turn.example?transport=udp", "u", "p"),
        ("turns:u:p@turn.example:443", "turns:turn.example:443", "u", "p"),
        ("turn:1700000000:a/b+c=:@d@turn.example", "turn:turn.example", "1700000000", "a/b+c=:@d"),
    ],
)
def test_ice_servers_are_read(text, url, username, password):
    assert IceServer.parse(text) == IceServer(url=url, username=username, password=password)


SECRET = "s3cr3t"
BAD = (
    "",
    "stun",
    "stun:",
    "http://stun.example",
    "stun:a.example:port",
    "stun:a.example:0",
    "stun:a.example:70000",
    "stun:a.example?transport=udp",
    "stun:two words",
    "stuns:a.example",
    "turn:turn.example",
    f"stun:u:{SECRET}@a.example",
    f"turn:{SECRET}@turn.example",
    f"turn::{SECRET}@turn.example",
    "turn:u:@turn.example",
    f"turn:u:{SECRET}@",
    f"turn:u:{SECRET}",
    f"turn:u:x@{SECRET}:y",
    f"turn:u:{SECRET}@turn.example:99999",
    f"turn:u:{SECRET}@turn.example?transport=tls",
    f"turns:u:{SECRET}@turn.example?transport=udp",
    f"turn:u:{SECRET}\nmore@turn.example:x",
    f"turn:u:{SECRET}@turn.example\n",
    f"turnip:u:{SECRET}@turn.example",
    f"u:{SECRET}@turn.example",
    f"{SECRET}:x",
    SECRET,
)


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_server_is_refused_in_one_line_without_its_password(text):
    with pytest.raises(InputError) as caught:
        IceServer.parse(text)
    message = str(caught.value)
    assert message.startswith("--ice-server: expected stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT]")
    assert len(message.splitlines()) == 1
    assert SECRET not in message


def test_a_browser_is_given_what_it_needs():
    assert IceServer.parse("stun:a.example").for_browser() == {"urls": "stun:a.example"}
    assert IceServer.parse("turns:u:p@b.example").for_browser() == {
        "urls": "turns:b.example",
        "username": "u",
        "credential": "p",
    }


# Ports ------------------------------------------------------------------------------------------------


@on_loop
async def test_without_a_range_any_port_will_do():
    async with connection() as made:
        await made.gather_candidates()
        (candidate,) = made.local_candidates
        assert (candidate.type, candidate.host, candidate.transport) == ("host", LOOPBACK, "udp")
        assert candidate.port > 1023


@on_loop
async def test_every_port_of_the_range_is_used_and_no_other():
    first = free_ports(4)
    async with contextlib.AsyncExitStack() as opened:
        ports = set()
        for _ in range(4):
            made = await opened.enter_async_context(connection(port_range=(first, first + 3)))
            await made.gather_candidates()
            ports |= {candidate.port for candidate in made.local_candidates}
        assert ports == set(range(first, first + 4))


@on_loop
async def test_a_range_that_is_used_up_gives_no_candidate_and_says_so(caplog):
    first = free_ports(2)
    with (
        contextlib.closing(bound(first)),
        contextlib.closing(bound(first + 1)),
        caplog.at_level(logging.WARNING),
    ):
        async with connection(port_range=(first, first + 1)) as made:
            await made.gather_candidates()
            assert made.local_candidates == []
    assert "no UDP port could be opened on 127.0.0.1" in caplog.text


@on_loop
async def test_ports_are_free_again_after_the_end():
    first = free_ports(1)
    for _ in range(3):
        async with connection(port_range=(first, first)) as made:
            await made.gather_candidates()
            assert [candidate.port for candidate in made.local_candidates] == [first]
    bound(first).close()


@on_loop
async def test_sockets_hold_a_burst_of_packets():
    async with connection() as made:
        await made.gather_candidates()
        sock = made._protocols[0].transport.get_extra_info("socket")
        small = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.closing(small):
            default_bytes = small.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= default_bytes


# STUN and TURN ----------------------------------------------------------------------------------------


@on_loop
async def test_no_server_is_asked_that_was_not_named(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "gethostbyname", lambda host: asked.append(host) or LOOPBACK)
    monkeypatch.setattr(
        aioice_ice.StunProtocol, "send_stun", lambda self, message, addr: asked.append((message, addr))
    )
    async with connection() as made:
        await made.gather_candidates()
        assert [candidate.type for candidate in made.local_candidates] == ["host"]
    assert asked == []


@on_loop
async def test_a_stun_server_tells_the_address_outside():
    async with server() as helper, connection(f"stun:{LOOPBACK}:{helper.port}") as made:
        await made.gather_candidates()
        host, outside = made.local_candidates
        assert helper.methods == [stun.Method.BINDING]
    assert (outside.type, outside.host, outside.port) == ("srflx", *SEEN_FROM_OUTSIDE)
    assert (outside.related_address, outside.related_port) == (host.host, host.port)
    assert outside.priority < host.priority


@on_loop
async def test_several_servers_are_all_asked_and_what_they_say_twice_is_one():
    async with server() as one, server() as two:
        async with connection(f"stun:{LOOPBACK}:{one.port}", f"stun:localhost:{two.port}") as made:
            await made.gather_candidates()
            assert [candidate.type for candidate in made.local_candidates] == ["host", "srflx"]
        assert one.asked
        assert two.asked


@on_loop
async def test_a_turn_server_relays_and_is_told_the_end():
    async with server() as helper, connection(f"turn:{USER}:{PASSWORD}@{LOOPBACK}:{helper.port}") as made:
        await made.gather_candidates()
        host, relay = made.local_candidates
        assert (relay.type, relay.host, relay.port) == ("relay", *RELAY)
        assert (relay.related_address, host.type) == (LOOPBACK, "host")
        await made.close()
        assert helper.methods[:2] == [stun.Method.ALLOCATE] * 2
        assert helper.methods[-1] == stun.Method.REFRESH
        assert helper.asked[-1].attributes["LIFETIME"] == 0


@on_loop
async def test_a_wrong_password_costs_the_relay_only_and_is_not_logged(monkeypatch, caplog):
    monkeypatch.setattr(ice, "_GATHER_S", 0.1)
    caplog.set_level(logging.DEBUG, logger="streaming")
    text = f"turn:{USER}:wr0ng-{SECRET}@{LOOPBACK}"
    # The server signs with the right password: by ours its answers are somebody else's.
    async with server() as helper, connection(f"{text}:{helper.port}") as made:
        await made.gather_candidates()
        assert [candidate.type for candidate in made.local_candidates] == ["host"]
    assert "did not answer" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("text", ["stun:{}:{}", f"turn:{USER}:{PASSWORD}@{{}}:{{}}"])
@on_loop
async def test_dead_servers_hold_the_answer_back_no_longer_than_the_bound(text, monkeypatch, caplog):
    monkeypatch.setattr(ice, "_GATHER_S", 1.0)
    async with server(silent=True) as dead, server() as alive:
        texts = text.format(LOOPBACK, dead.port), f"stun:{LOOPBACK}:{alive.port}"
        async with connection(*texts) as made:
            async with asyncio.timeout(20):  # by itself aioice would go on asking for half a minute
                await made.gather_candidates()
            assert [candidate.type for candidate in made.local_candidates] == ["host", "srflx"]
            assert dead.asked
            assert asyncio.all_tasks() == {asyncio.current_task()}
    assert "did not answer within" in caplog.text


def test_gathering_is_bounded_by_what_a_person_waits():
    assert ice._GATHER_S <= 3


@on_loop
async def test_a_server_that_has_no_address_costs_its_candidate_only(monkeypatch, caplog):
    def resolve(host):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", resolve)
    async with connection("stun:nowhere.invalid") as made:
        await made.gather_candidates()
        assert [candidate.type for candidate in made.local_candidates] == ["host"]
    assert "gave no candidate: [Errno -2]" in caplog.text


@on_loop
async def test_a_turn_server_that_refuses_tcp_costs_its_candidate_only(caplog):
    listener = socket.socket()
    with contextlib.closing(listener):
        listener.bind((LOOPBACK, 0))  # bound, and not listening: refused at once
        port = listener.getsockname()[1]
        async with connection(f"turn:u:p@{LOOPBACK}:{port}?transport=tcp") as made:
            await made.gather_candidates()
            assert [candidate.type for candidate in made.local_candidates] == ["host"]
    assert "gave no candidate" in caplog.text


# Called off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["stun:{}:{}", f"turn:{USER}:{PASSWORD}@{{}}:{{}}"])
@on_loop
async def test_an_answer_that_is_called_off_leaves_nothing_behind(text):
    first = free_ports(1)
    async with server(silent=True) as dead:
        made = IceConnection(
            servers=(IceServer.parse(text.format(LOOPBACK, dead.port)),), port_range=(first, first)
        )
        gathering = asyncio.create_task(made.gather_candidates())
        await until(lambda: dead.asked)
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)
        await made.close()
    bound(first).close()


@on_loop
async def test_gathering_that_is_closed_stops_at_once(monkeypatch):
    monkeypatch.setattr(ice, "_GATHER_S", 3600.0)
    first = free_ports(1)
    async with server(silent=True) as dead:
        made = IceConnection(
            servers=(IceServer.parse(f"stun:{LOOPBACK}:{dead.port}"),), port_range=(first, first)
        )
        gathering = asyncio.create_task(made.gather_candidates())
        await until(lambda: dead.asked)
        await made.close()
        await gathering
        assert made.local_candidates == []
    bound(first).close()


@on_loop
async def test_gathering_after_the_end_opens_nothing():
    first = free_ports(1)
    async with server() as helper:
        made = IceConnection(
            servers=(IceServer.parse(f"stun:{LOOPBACK}:{helper.port}"),), port_range=(first, first)
        )
        await made.close()
        await made.gather_candidates()
        assert made.local_candidates == []
        assert helper.asked == []
    bound(first).close()


@on_loop
async def test_an_ice_connection_closes_twice_and_unstarted():
    async with connection() as made:
        await made.close()
    async with connection() as made:
        await made.gather_candidates()
        await made.close()


# What strangers send ----------------------------------------------------------------------------------


def garbage():
    """Datagrams of all kinds, some of them nearly STUN."""
    dice = random.Random(3)
    yield from (b"", b"\x00", b"\x80", b"\xff" * 1500, os.urandom(20))
    for _ in range(200):
        body = b""
        for _ in range(dice.randrange(1, 4)):
            value = dice.randbytes(dice.randrange(12))
            kind = dice.choice(sorted(stun.ATTRIBUTES_BY_TYPE))
            body += struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)
        yield struct.pack("!HHI12s", 1, len(body), 0x2112A442, dice.randbytes(12)) + body


@on_loop
async def test_garbage_is_dropped_and_what_waits_is_bounded():
    loop = asyncio.get_running_loop()
    faults = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    async with connection() as made:
        await made.gather_candidates()
        (protocol,) = made._protocols
        made._proved[LOOPBACK, 9] = None
        for data in garbage():
            protocol.datagram_received(data, (LOOPBACK, 9))
            protocol.datagram_received(b"a stranger's " + data, (LOOPBACK, 10))
        waiting = [made._queue.get_nowait()[0] for _ in range(made._queue.qsize())]
        assert b"\x80" in waiting  # may be media: who reads it decides
        assert b"" not in waiting
        assert not any(b"stranger" in data for data in waiting)
        for number in range(5000):
            protocol.datagram_received(b"%d" % number, (LOOPBACK, 9))
        assert made._queue.qsize() == ice._MAX_WAITING
        assert made._queue.get_nowait() == (b"0", 1)
    assert faults == []


# Whom a peer may have checked -------------------------------------------------------------------------


def remote(host, port, *, kind="host", priority=1):
    return Candidate(
        foundation="1", component=1, transport="udp", priority=priority, host=host, port=port, type=kind
    )


def check(made, *, addr, protocol, priority=True, username="them"):
    """Has a connection take a check of its peer that came from an address, which may be forged."""
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    request.attributes["USERNAME"] = f"{made.local_username}:{username}"
    request.attributes["ICE-CONTROLLING"] = 1
    if priority:
        request.attributes["PRIORITY"] = 1
    request.add_message_integrity(made.local_password.encode())
    protocol.datagram_received(bytes(request), addr)


@contextlib.asynccontextmanager
async def checking(monkeypatch, *candidates, addresses=()):
    """A connection that looks for its peer, and the checks that it sent: (address, port)."""
    monkeypatch.setattr(aioice_ice, "get_host_addresses", lambda **_: list(addresses))
    monkeypatch.setattr(stun, "RETRY_RTO", 0.001)
    sent = []
    send = aioice_ice.StunProtocol.send_stun

    def count(self, message, addr):
        if message.message_class == stun.Class.REQUEST:
            sent.append(addr)
        else:
            send(self, message, addr)

    monkeypatch.setattr(aioice_ice.StunProtocol, "send_stun", count)
    async with connection() as made:
        for candidate in candidates:
            await made.add_remote_candidate(candidate)
        await made.gather_candidates()
        made.remote_username, made.remote_password = "them", "p" * 22
        connecting = asyncio.create_task(made.connect())
        await until(lambda: made._early_checks_done)
        yield made, sent
        await made.close()
        await asyncio.gather(connecting, return_exceptions=True)


def rested(made):
    """Whether every check of a connection is over."""
    return made._check_list and all(
        pair.state == aioice_ice.CandidatePair.State.FAILED for pair in made._check_list
    )


@on_loop
async def test_an_address_that_never_answers_gets_a_few_checks_from_all_sockets_together(monkeypatch):
    candidates = [remote("127.0.0.7", 5000 + number) for number in range(3)]
    for addresses in ([LOOPBACK], [LOOPBACK, "127.0.0.2", "127.0.0.3"]):
        async with checking(monkeypatch, *candidates, addresses=addresses) as (made, sent):
            await until(lambda made=made: rested(made))
            assert len(made._check_list) == 3 * len(addresses)
            counts = collections.Counter(sent)
        assert counts == {("127.0.0.7", 5000 + number): MAX_CHECKS_PER_ADDRESS for number in range(3)}


@on_loop
async def test_a_check_from_an_address_gives_it_one_more(monkeypatch):
    async with checking(monkeypatch, remote("127.0.0.7", 5000)) as (made, sent):
        await until(lambda: rested(made))
        for number in range(1, 4):
            check(made, addr=("127.0.0.7", 5000), protocol=made._protocols[0])
            await until(lambda: rested(made) and len(sent) >= MAX_CHECKS_PER_ADDRESS + 1)
            assert len(sent) == MAX_CHECKS_PER_ADDRESS + number


@on_loop
async def test_a_check_renews_the_one_under_way_that_may_not_be_repeated(monkeypatch):
    async with checking(monkeypatch, remote("127.0.0.7", 5000)) as (made, sent):
        monkeypatch.setattr(stun, "RETRY_RTO", 3600.0)
        await until(lambda: rested(made))
        for number in range(1, 4):  # each at once, whatever the one before waits for
            check(made, addr=("127.0.0.7", 5000), protocol=made._protocols[0])
            await until(lambda number=number: len(sent) == MAX_CHECKS_PER_ADDRESS + number)


@on_loop
async def test_forged_checks_cost_one_each_and_are_forgotten(monkeypatch):
    async with checking(monkeypatch) as (made, sent):
        for number in range(200):
            check(made, addr=("127.0.0.9", 2000 + number), protocol=made._protocols[0])
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: rested(made))
        assert len(sent) <= 200
        assert max(collections.Counter(sent).values()) == 1
        assert (
            len(made._remote_candidates) == len(made._check_list) == len(made._checks_left) == ice._MAX_LEARNT
        )


@on_loop
async def test_a_check_without_a_priority_is_no_check(monkeypatch):
    async with checking(monkeypatch) as (made, _):
        check(made, addr=("127.0.0.9", 2000), protocol=made._protocols[0], priority=False)
        check(made, addr=("127.0.0.9", 2000), protocol=made._protocols[0], username="else")
        assert made.checks_received == 0
        assert made._check_list == []


@on_loop
async def test_loopback_is_asked_from_loopback_only(monkeypatch):
    """A machine with another address shows that one; who is on it checks us, and is known by that."""
    asked = {}
    for shown in (LOOPBACK, "192.0.2.1"):
        listen = IceConnection._listen

        async def show(self, component, address, shown=shown, listen=listen):
            protocol = await listen(self, component, address)
            protocol.local_candidate.host = protocol.local_candidate._network_host = shown
            return protocol

        with monkeypatch.context() as patch:
            patch.setattr(IceConnection, "_listen", show)
            candidates = [remote("127.0.0.7", 5000), remote("192.0.2.5", 5001)]
            async with checking(patch, *candidates) as (made, sent):
                await until(lambda made=made: rested(made))
                asked[shown] = set(sent)
                check(made, addr=("127.0.0.7", 5000), protocol=made._protocols[0])
                await until(lambda sent=sent: ("127.0.0.7", 5000) in sent)
    assert asked == {
        LOOPBACK: {("127.0.0.7", 5000), ("192.0.2.5", 5001)},
        "192.0.2.1": {("192.0.2.5", 5001)},
    }


@on_loop
async def test_no_check_can_be_broadcast():
    async with connection() as made:
        await made.gather_candidates()
        sock = made._protocols[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 0


@on_loop
async def test_our_ice_connection_takes_the_place_of_aiortcs():
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transport = peer.addTransceiver("audio").receiver.transport.transport
    theirs, ours = transport._connection, IceConnection()
    replace_connection(transport, ours)
    assert transport.iceGatherer.getLocalParameters().usernameFragment == ours.local_username
    await transport.iceGatherer.gather()
    assert len(transport.iceGatherer.getLocalCandidates()) == 1
    assert theirs.local_candidates == []
    assert (transport._send, transport._recv) == (ours.send, ours.recv)
    await peer.close()
    assert ours._closed
