"""Requests that never become whole, held by one address while others want to be served."""

from __future__ import annotations

import contextlib
import http.client
import socket
from urllib.parse import urlsplit

import bundle_factory
import httpx
import pytest
from patience import PATIENCE_S, until
from quick_server import OWN_PLATES, QuickServer

FEW_DESCRIPTORS = f"""
{OWN_PLATES}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from streaming.server import http_protocol
http_protocol.MAX_HEAD_S = 2.0
http_protocol.MAX_LINGER_S = 0.5
http_protocol.MAX_UNREAD_S = 2.0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    bundle_factory.write_tiny_bundle(folder / "Tiny", image_size_px=128)
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with QuickServer(log, folder, prepare=FEW_DESCRIPTORS) as running:
        yield running
    assert "Traceback" not in running.log()
    assert running.log().count("\n") < 30


def connection_to(server):
    where = urlsplit(server.url)
    return socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)


def is_ended(connection):
    """Whether the other end closes a connection, whatever it says before."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def status_of(connection):
    """Returns the status of the next response, which is taken whole."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def is_refused(sender):
    """Whether bytes that are sent on and on are taken no longer."""
    try:
        sender.sendall(b"x" * 10_000)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    "part", [b"", b"GET / HTTP/1.1\r\nX: ", b"\r\n", b"GET /ws/x HTTP/1.1\r\nUpgrade: websocket\r\n"]
)
def test_more_half_requests_than_descriptors_hold_nobody_up(server, part):
    held = []
    try:
        for _ in range(300):
            held.append(connection_to(server))
            held[-1].sendall(part)
        assert httpx.get(f"{server.url}healthz", trust_env=False, timeout=PATIENCE_S).status_code == 200
        assert is_ended(held[-1])  # the newest is the last to go
    finally:
        for connection in held:
            connection.close()
    assert httpx.get(f"{server.url}speakers", trust_env=False, timeout=PATIENCE_S).status_code == 200


def test_a_connection_that_says_nothing_after_an_answer_is_closed(server):
    with connection_to(server) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        idle.sendall(b"\r\n")
        assert is_ended(idle)


def test_a_body_that_goes_on_after_its_refusal_ends_the_connection(server):
    with connection_to(server) as sender:
        sender.sendall(b"POST /offer HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000000\r\n\r\n")
        assert sender.recv(65536).startswith(b"HTTP/1.1 403 ")
        until(lambda: is_refused(sender), what="an end to what is taken")


def test_answers_that_nobody_reads_do_not_keep_a_connection(server):
    request = b"GET /client/geneface-avatar.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        where = urlsplit(server.url)
        deaf.connect((where.hostname, where.port))
        deaf.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.sendall(request)
        until(lambda: server.connections() == 0, what="no connection")


def test_a_second_request_at_once_has_its_own_time(server):
    with connection_to(server) as sender:
        sender.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            b"POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
        )
        assert status_of(sender) == 200
        with connection_to(server) as later:
            assert is_ended(later)  # what began later has had its time
        sender.sendall(b"{}")
        assert status_of(sender) == 400


def test_a_request_after_a_short_body_is_answered_on_the_same_connection(server):
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=PATIENCE_S)
    connection.connect()
    first = connection.sock
    try:
        for _ in range(3):
            connection.request("POST", "/offer", b"{}")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 400
            assert connection.sock is first
    finally:
        connection.close()


def test_handshakes_that_never_come_hold_nobody_up(tmp_path):
    bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=128)
    flags = ("--tls-self-signed",)
    with QuickServer(tmp_path / "log.txt", tmp_path, *flags, prepare=FEW_DESCRIPTORS) as server:
        where, held = urlsplit(server.url), []
        try:
            for _ in range(300):
                with contextlib.suppress(ConnectionError):
                    held.append(socket.create_connection((where.hostname, where.port), 5, ("127.0.0.2", 0)))
            url = f"{server.url}healthz"
            assert httpx.get(url, trust_env=False, timeout=PATIENCE_S, verify=False).status_code == 200
            until(lambda: server.connections() <= 1, what="no handshake")  # httpx may not have let go yet
        finally:
            for connection in held:
                connection.close()
    assert "Traceback" not in server.log()
