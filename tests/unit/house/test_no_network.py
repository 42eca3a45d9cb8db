"""That no unit test reaches another machine, and that this one's own sockets are free to use."""

from __future__ import annotations

import socket

import pytest

ELSEWHERE = ("192.0.2.1", 9)  # RFC 5737: nobody's


@pytest.mark.parametrize(
    ("reach", "what"),
    [
        (lambda one: one.connect(ELSEWHERE), "socket.connect 192.0.2.1"),
        (lambda one: one.connect_ex(ELSEWHERE), "socket.connect 192.0.2.1"),
        (lambda one: one.sendto(b"x", ELSEWHERE), "socket.sendto 192.0.2.1"),
        (lambda one: one.sendmsg([b"x"], (), 0, ELSEWHERE), "socket.sendmsg 192.0.2.1"),
        (lambda _: socket.getaddrinfo("example.invalid", 9), "socket.getaddrinfo example.invalid"),
    ],
)
def test_another_machine_is_not_reached(no_network, reach, what):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        pytest.raises(OSError, match="expected loopback"),
    ):
        reach(one)
    assert no_network == [what]
    no_network.clear()


def test_loopback_is_reached(no_network):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as giver:
            giver.sendto(b"x", ("localhost", taker.getsockname()[1]))
        assert taker.recv(1) == b"x"
    assert not no_network
