"""How many connections there may be, which one goes for another, and what is said of it."""

from __future__ import annotations

import logging

import pytest

from streaming.addresses import TrustedProxies
from streaming.server.http_protocol import MAX_CONNECTIONS, ConnectionTable, Sparingly


class Connection:
    def __init__(self, *, waiting=True):
        self.is_waiting, self.is_over, self.aborted = waiting, False, False

    def abort(self):
        self.aborted = self.is_over = True


def table(descriptors=1024, proxies=(), **limits):
    return ConnectionTable(descriptors=descriptors, proxies=TrustedProxies(proxies), **limits)


def test_the_connection_that_waited_longest_goes_for_a_new_one():
    it, connections = table(max_per_address=3), [Connection() for _ in range(4)]
    assert all(it.admit(connection, "192.0.2.1") for connection in connections)
    assert [connection.aborted for connection in connections] == [True, False, False, False]
    assert len(it) == 3


def test_no_connection_that_is_being_answered_goes_for_a_new_one():
    it = table(max_per_address=2)
    busy = [Connection(waiting=False) for _ in range(2)]
    assert all(it.admit(connection, "192.0.2.1") for connection in busy)
    assert not it.admit(Connection(), "192.0.2.1")
    assert it.admit(Connection(), "192.0.2.2")
    assert not any(connection.aborted for connection in busy)


def test_connections_leave_half_of_the_descriptors():
    it = table(descriptors=20)
    connections = [Connection() for _ in range(30)]
    for number, connection in enumerate(connections):
        assert it.admit(connection, f"192.0.2.{number}")
    assert len(it) == it.max_connections == 10
    assert sum(connection.aborted for connection in connections) == 20
    assert table(descriptors=1 << 20).max_connections == MAX_CONNECTIONS


def test_many_people_come_through_one_proxy():
    it = table(proxies=["192.0.2.0/24"], max_per_address=2)
    assert all(it.admit(Connection(waiting=False), "192.0.2.1") for _ in range(50))


def test_an_ipv6_subscriber_is_one_address():
    it = table(max_per_address=2)
    first = Connection()
    assert it.admit(first, "2001:db8::1")
    assert all(it.admit(Connection(), f"2001:db8::{number:x}") for number in (2, 3))
    assert first.aborted


@pytest.mark.parametrize("forget", [lambda it, one: it.remove(one), lambda _, one: one.abort()])
def test_a_connection_that_has_ended_takes_no_place(forget):
    it, busy = table(max_per_address=1), Connection(waiting=False)
    assert it.admit(busy, "192.0.2.1")
    forget(it, busy)
    assert it.admit(Connection(), "192.0.2.1")
    it.remove(busy)


def test_sockets_that_are_in_no_table_yet_count():
    it = table(descriptors=40, max_per_address=4, proxies=["192.0.2.9"])
    assert it.max_connections == 20
    assert it.has_room("192.0.2.1", ["192.0.2.1"] * 5)
    assert not it.has_room("192.0.2.1", ["192.0.2.1"] * 6)
    assert it.has_room("192.0.2.2", ["192.0.2.1"] * 6)
    assert it.has_room("192.0.2.9", ["192.0.2.9"] * 29)
    assert not it.has_room("192.0.2.9", ["192.0.2.9"] * 30)


def test_a_connection_that_closes_goes_before_one_that_waits():
    it, connections = table(max_per_address=2), [Connection(), Connection(waiting=False)]
    assert all(it.admit(connection, "192.0.2.1") for connection in connections)
    connections[1].is_over = True  # what it sent last is not read
    third = Connection()
    assert it.admit(third, "192.0.2.1")
    assert [connection.aborted for connection in connections] == [False, True]
    assert len(it) == 2


def test_a_log_line_that_repeats_is_written_once_in_a_while():
    spare = Sparingly(("out of",), every_s=10.0)

    def said(text, at_s):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), (None, None, None))
        record.created = at_s
        return record if spare.filter(record) else None

    first = said("out of descriptors\nsocket: <...>", 100.0)
    assert first.getMessage() == "out of descriptors"
    assert first.exc_info is None
    assert [said("out of descriptors", at_s) is None for at_s in (100.1, 109.9, 110.1)] == [True, True, False]
    assert said("something else", 100.0).exc_info is not None
