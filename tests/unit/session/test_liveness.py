"""Signs of life of a peer: its packets, its pings, the sockets of its page."""

import pytest
from manual_clock import ManualClock

from streaming.session.liveness import CONNECT_TIMEOUT_S, PAGE_LEFT_TIMEOUT_S, PEER_TIMEOUT_S, Liveness

START_S = 1000.0


@pytest.fixture
def clock():
    return ManualClock(START_S)


@pytest.fixture
def liveness(clock):
    return Liveness(clock)


def test_a_peer_that_sends_but_does_not_connect_ends_after_the_connect_timeout(liveness):
    at_timeout_s = START_S + CONNECT_TIMEOUT_S
    assert liveness.end_reason(at_timeout_s, packets=5) is None  # of the handshake
    assert liveness.end_reason(at_timeout_s + 0.1, packets=5) == "no connection came about"


def test_a_peer_that_sends_nothing_before_it_connects_ends_after_the_peer_timeout(liveness):
    assert liveness.end_reason(START_S + PEER_TIMEOUT_S, packets=0) is None
    assert liveness.end_reason(START_S + PEER_TIMEOUT_S + 0.1, packets=0) == "no connection came about"


def test_a_connected_peer_that_falls_silent_times_out(liveness, clock):
    clock.time_s += 10.0
    liveness.connected()
    assert liveness.end_reason(clock.time_s + PEER_TIMEOUT_S, packets=0) is None
    assert liveness.end_reason(clock.time_s + PEER_TIMEOUT_S + 0.1, packets=0) == "timed out"


def test_each_packet_is_a_sign_of_life(liveness):
    liveness.connected()
    for packets in range(1, 20):
        assert liveness.end_reason(START_S + 3.0 * packets, packets=packets) is None
    assert liveness.end_reason(START_S + 57.0 + PEER_TIMEOUT_S + 0.1, packets=19) == "timed out"


def test_each_ping_of_the_page_is_a_sign_of_life(liveness, clock):
    liveness.connected()
    liveness.socket_opened()
    for _ in range(10):
        clock.time_s += 3.0
        liveness.heard()
        assert liveness.end_reason(clock.time_s, packets=0) is None
    assert liveness.end_reason(clock.time_s + PEER_TIMEOUT_S + 0.1, packets=0) == "timed out"


def test_a_peer_whose_page_left_times_out_sooner_unless_packets_still_come(liveness):
    liveness.connected()
    liveness.socket_opened()
    liveness.socket_closed()
    assert liveness.end_reason(START_S + PAGE_LEFT_TIMEOUT_S, packets=0) is None
    assert liveness.end_reason(START_S + PAGE_LEFT_TIMEOUT_S + 0.1, packets=0) == "the peer left"
    liveness.socket_opened()  # a reload of the socket alone
    assert liveness.end_reason(START_S + PAGE_LEFT_TIMEOUT_S + 0.1, packets=0) is None
    liveness.socket_closed()
    assert liveness.end_reason(START_S + 3.0, packets=1) is None


def test_one_of_two_pages_may_leave(liveness):
    liveness.connected()
    liveness.socket_opened()
    liveness.socket_opened()
    liveness.socket_closed()
    assert liveness.end_reason(START_S + PAGE_LEFT_TIMEOUT_S + 0.1, packets=0) is None
