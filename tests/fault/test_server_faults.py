"""A server process against bad requests, peers that vanish and signals; and what it leaves on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from aiortc_client import LiveClient, offer_of_a_peer
from on_loop import on_loop, until
from patience import PATIENCE_S
from quick_server import OWN_PLATES, QuickServer, client_process
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

# Bodies that do not come are waited for less long; and all tests come from one address.
IMPATIENT = f"""
{OWN_PLATES}
app._BODY_S = 0.5
limit = app.RateLimit
app.RateLimit = lambda **_: limit(burst=1000)
"""
# `Other` takes longer to open than any test waits.
SLOW_OTHER = """
import time, quick_server
def open_raymarcher(speaker, threads):
    if speaker.name == "Other":
        print("opening Other", flush=True)
        time.sleep(3600)
    return quick_server.PlateRaymarcher(speaker)
"""
# Nothing opens at all.
SLOW_TINY = """
import time
def open_raymarcher(speaker, threads):
    print("opening Tiny", flush=True)
    time.sleep(3600)
"""
# Says of each file that it opens for writing.
TELLS_WRITES = f"""
{OWN_PLATES}
import os
def tell_writes(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print("opened for writing:", arguments[0], flush=True)
sys.addaudithook(tell_writes)
"""


@pytest.fixture(scope="module")
def server(speakers, tmp_path_factory):
    with QuickServer(tmp_path_factory.mktemp("server") / "log.txt", speakers, prepare=IMPATIENT) as running:
        yield running
    assert "Traceback" not in running.log()


@pytest.fixture(autouse=True)
def no_session_is_left(request):
    """Every test that used the shared server leaves it empty, and well."""
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        running.until_sessions(0)
        assert httpx.get(f"{running.url}readyz", trust_env=False, timeout=PATIENCE_S).status_code == 200


def post(server, path, **given):
    return httpx.post(f"{server.url}{path}", timeout=PATIENCE_S, trust_env=False, **given)


def raw(server, request, *, part=b""):
    """Returns what comes back for bytes as they are, until the server is silent or closes."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        if part:
            connection.sendall(part)
        return connection.recv(65536)


# Requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (json.dumps({"sdp": "garbage", "type": "offer"}), 422),
        (json.dumps({"sdp": "", "type": "offer"}), 422),
        (json.dumps({"sdp": "v=0\r\n" * 1000, "type": "offer"}), 422),
        (json.dumps({"sdp": "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n", "type": "offer"}), 406),
        (b"x" * 10_000_000, 413),
    ],
)
def test_an_offer_of_garbage_is_refused(server, body, status):
    response = post(server, "offer", content=body)
    assert response.status_code == status
    assert response.json()["status"] == status


def test_a_huge_body_without_a_length_is_refused(server):
    def parts():
        for _ in range(100):
            yield b"x" * 100_000

    assert (
        post(server, "whip/Tiny", content=parts(), headers={"Content-Type": "application/sdp"}).status_code
        == 413
    )


def test_a_body_that_dribbles_is_given_up(server):
    head = b"POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    assert raw(server, head, part=b'{"sdp"').startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS where none is spoken
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET /client/..%2f..%2fpyproject.toml HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /client/../../pyproject.toml HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_bytes_of_another_kind_are_refused(server, request_):
    assert raw(server, request_ + b"\r\n" * 50)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404")


def test_a_speaker_is_no_path(server, speakers):
    response = post(
        server, "offer", json={"sdp": offer_of_a_peer(), "type": "offer", "speaker": str(speakers / "Other")}
    )
    assert response.status_code == 404
    assert response.json()["detail"].startswith("speaker: expected one of Tiny, ")


def test_a_codec_that_nobody_shares(server):
    sdp = offer_of_a_peer().replace(" VP8/", " AV9/").replace(" H264/", " H299/")
    response = post(server, "offer", json={"sdp": sdp, "type": "offer"})
    assert response.status_code == 406
    detail = response.json()["detail"]
    assert "expected video as H264" in detail
    assert detail.endswith("got AV9, H299")


def test_an_offer_without_pictures(server):
    sdp = offer_of_a_peer().replace("a=recvonly", "a=inactive")
    assert post(server, "offer", json={"sdp": sdp, "type": "offer"}).status_code == 406


def test_a_whip_session_is_created_and_deleted_once(server):
    created = post(
        server, "whip/Tiny", content=offer_of_a_peer(), headers={"Content-Type": "application/sdp"}
    )
    assert created.status_code == 201
    assert created.text.startswith("v=0")
    location = created.url.join(created.headers["location"])
    assert server.metric("sessions_active") == 1
    assert httpx.delete(location, trust_env=False, timeout=PATIENCE_S).status_code == 200
    assert httpx.delete(location, trust_env=False, timeout=PATIENCE_S).status_code == 404


# WebSockets -------------------------------------------------------------------------------------------


@on_loop
async def test_a_flood_closes_the_socket_and_the_session_lives(server):
    async with LiveClient(server.url) as client:
        await client.goes_on()
        for number in range(200):
            await client.say({"type": "ping", "id": number})
        await until(lambda: client.closed)
        assert client.closed[0] == 1008
        await client.listen()
        await client.goes_on()


@pytest.mark.parametrize(
    ("garbage", "code"),
    [("{", 1003), (b"\x00\x01", 1003), ("x" * 20_000, 1008), ("x" * 100_000, 1009), ("[" * 9000, 1003)],
    ids=["half", "bytes", "long", "huge", "deep"],
)
@on_loop
async def test_garbage_closes_the_socket_and_the_session_lives(server, garbage, code):
    async with LiveClient(server.url) as client:
        await until(lambda: client.of("hello"))
        await client.say(garbage)
        await until(lambda: client.closed)
        assert client.closed[0] == code
        await client.listen()
        await client.goes_on(frames=2)


@on_loop
async def test_a_socket_without_a_session_is_refused(server):
    for session_id in ("nobody", "..", "%00"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url.replace("http", "ws", 1) + f"ws/{session_id}", proxy=None)
        assert refused.value.response.status_code == 403


@on_loop
async def test_a_socket_of_another_site_is_refused(server):
    async with LiveClient(server.url) as client:
        url = server.url.replace("http", "ws", 1) + f"ws/{client.session_id}"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        await client.goes_on(frames=2)


@on_loop
async def test_a_page_that_reads_nothing_does_not_hold_up_the_end(server):
    async with LiveClient(server.url) as client:
        url = server.url.replace("http", "ws", 1) + f"ws/{client.session_id}"
        async with connect(url, proxy=None, max_queue=1) as deaf:
            deaf.transport.pause_reading()
            await client.goes_on()
            await client.say({"type": "end"})
            await until(lambda: client.closed)
            assert client.closed == (1000, "ended by the peer")
            deaf.transport.resume_reading()
            assert [json.loads(text)["type"] async for text in deaf][-1] == "ended"


# Peers that go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["vanishes", "hangs"])
def test_a_peer_that_vanishes_or_hangs_frees_its_place(server, how):
    client = client_process(server.url)
    try:
        assert server.metric("sessions_active") == 1
        if how == "vanishes":
            client.kill()
        else:
            client.send_signal(signal.SIGSTOP)  # its connections stand, and nothing comes
        server.until_sessions(0)
        if how == "hangs":
            server.wait_said("ended: timed out")  # said once all of it is over
    finally:
        client.kill()
        client.communicate()


@on_loop
async def test_a_page_that_reloads_has_its_place_back(server):
    for _ in range(3):
        async with LiveClient(server.url) as client:
            await client.goes_on(frames=2)


# The end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)],
    ids=lambda signals: "-".join(number.name for number in signals),
)
@on_loop
async def test_a_signal_in_a_call_ends_it_in_order(speakers, tmp_path, signals):
    with QuickServer(tmp_path / "log.txt", speakers) as server:
        async with LiveClient(server.url) as client:
            await client.goes_on()
            for number in signals:
                server.signal(number)
                await asyncio.sleep(0)
            code = await asyncio.to_thread(server.wait)
            await until(lambda: client.closed)
            assert client.of("ended") == [{"type": "ended", "reason": "server stopping"}]
            assert client.closed == (1000, "server stopping")
            await until(lambda: client.peer.connection.connectionState == "closed")
    assert code == 0
    assert "Traceback" not in server.log()
    assert server.log().endswith("geneface-stream: ended\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_while_the_speaker_loads(speakers, tmp_path, number):
    server = QuickServer(tmp_path / "log.txt", speakers, prepare=SLOW_TINY)
    try:
        server.wait_said("opening Tiny")
        server.signal(number)
        assert server.wait() == 0
    finally:
        server.kill()
    assert server.log() == "opening Tiny\ngeneface-stream: ended\n"


def test_a_signal_while_another_speaker_loads(speakers, tmp_path):
    body = {"sdp": offer_of_a_peer(), "type": "offer", "speaker": "Other"}
    with QuickServer(tmp_path / "log.txt", speakers, prepare=SLOW_OTHER) as server:
        where = urlsplit(server.url)
        text = json.dumps(body).encode()
        head = f"POST /offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as waiting:
            waiting.sendall(head + text)
            server.wait_said("opening Other")
            server.signal(signal.SIGTERM)
            assert waiting.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert server.wait() == 0
    assert server.log().endswith("geneface-stream: ended\n")
    assert "Traceback" not in server.log()


def test_a_second_server_on_the_same_port(server, speakers, tmp_path):
    port = str(urlsplit(server.url).port)
    second = QuickServer(tmp_path / "log.txt", speakers, "--port", port, prepare=SLOW_TINY)
    try:
        assert second.wait() == 2
    finally:
        second.kill()
    assert second.log().startswith("geneface-stream: --port ")
    assert second.log().count("\n") == 1


def test_a_server_for_others_speaks_tls_and_asks_for_the_token(speakers, tmp_path):
    token = "correct+horse+battery"
    server = QuickServer(
        tmp_path / "log.txt", speakers, "--host", "0.0.0.0", "--tls-self-signed", "--token", token
    )
    try:
        server.wait_said(r"Open https://localhost:\d+/ in a browser")
        server.wait_said("The certificate was made for this run")
        assert token not in server.log()
        url = f"https://127.0.0.1:{re.search(r'localhost:([0-9]+)/', server.log())[1]}"
        with httpx.Client(base_url=url, verify=False, trust_env=False, timeout=PATIENCE_S) as http:
            assert http.get("/readyz").status_code == 200
            assert http.get("/speakers").status_code == 401
            known = http.get("/speakers", headers={"Authorization": f"Bearer {token}"})
            assert {"Tiny", "Other"} <= {speaker["name"] for speaker in known.json()["speakers"]}
            body = {"sdp": offer_of_a_peer(), "type": "offer"}
            assert http.post("/offer", json=body).status_code == 401
            assert http.post("/offer", json=body, headers={"Authorization": f"Bearer {token}"}).is_success
        server.signal(signal.SIGTERM)  # with a session that has no connection yet
        assert server.wait() == 0
    finally:
        server.kill()
    assert "Traceback" not in server.log()


# The disk ---------------------------------------------------------------------------------------------


def files_below(*folders):
    return sorted(path for folder in folders for path in folder.rglob("*") if not path.is_dir())


def files_open_for_writing(process):
    """Returns what regular files a process holds open for writing, but for where its output goes."""
    found = []
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target, number = entry.readlink(), int(entry.name)
            flags = Path(f"/proc/{process.pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
            regular = stat.S_ISREG(entry.stat().st_mode)
        except FileNotFoundError:
            continue  # closed meanwhile
        if number > 2 and regular and int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            found.append(target)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@on_loop
async def test_no_sound_is_ever_written_to_disk(speakers, tmp_path):
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    for folder in folders.values():
        folder.mkdir()
    environment = {name: str(folder) for name, folder in folders.items()}
    before = files_below(speakers)
    with QuickServer(
        tmp_path / "log.txt", speakers, prepare=TELLS_WRITES, PYTHONDONTWRITEBYTECODE="1", **environment
    ) as server:
        log_before = server.log()
        async with LiveClient(server.url, tone_hz=1000.0) as client:
            await client.goes_on(frames=25)
            assert files_open_for_writing(server.process) == []
            assert files_below(*folders.values()) == []
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    assert files_below(*folders.values()) == []
    assert files_below(speakers) == before
    during = server.log().removeprefix(log_before)
    assert "ended: " in during  # it is the whole log of the session
    assert "opened for writing" not in during
