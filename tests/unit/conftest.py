"""Unit tests without a network. Loopback is none: ICE, peers and the server's sockets are tested over it."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator

import pytest

ADDRESS_AT = {  # of the arguments of an audit event
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
refused: list[str] = []
watches = False


def asks_network(event: str, host: object) -> bool:
    """Returns whether this machine's own network stack cannot answer; a number needs no name server."""
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name == "localhost":
        return False
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return True
    return not (number.is_loopback or event.startswith("socket.get"))


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Raises OSError where a unit test reaches for another machine; AF_UNIX has no hosts.

    An audit hook sees what every library does, in every thread; it cannot be taken back, but be idle.
    """
    if not watches or event not in ADDRESS_AT:
        return
    address = arguments[ADDRESS_AT[event]]
    if not event.startswith("socket.get"):
        if not isinstance(address, tuple):
            return
        address = address[0]
    if asks_network(event, address):
        refused.append(f"{event} {address}")
        raise OSError(f"{event}: expected loopback in a unit test, got {address}")


sys.addaudithook(refuse_network)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[list[str]]:
    """Fails a test that reached for another machine, whoever caught the refusal; gives what is refused."""
    global watches
    watches = True
    yield refused
    watches = False
    reached, refused[:] = refused[:], []
    assert not reached
