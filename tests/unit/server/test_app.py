"""The HTTP contract, statuses and headers, on the application itself: no socket, no session behind it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from urllib.parse import urljoin

import httpx
import pytest
from manual_clock import ManualClock
from on_loop import on_loop, until
from patience import PATIENCE_S

from cuda_kernels.folding import SceneError
from models.bundle_files import BundleError
from models.speaker_folders import UnknownSpeakerError
from streaming.addresses import TrustedProxies
from streaming.errors import InputError
from streaming.pipeline.onnx_engine import EngineError
from streaming.server import app
from streaming.server.access import Access, RateLimit
from streaming.server.app import AppSettings, AvatarApp
from streaming.session.admission import Refusal
from streaming.session.liveness import Liveness
from streaming.session.metrics import Metrics
from streaming.session.registry import EndedError, FullError
from streaming.session.speaker_list import SpeakerEntry
from streaming.webrtc.ice import IceServer
from streaming.webrtc.sdp_offer import MAX_OFFER_BYTES, NotAcceptableError, OfferError

TOKEN = "correct-horse-battery"
SITE = "https://good.example"
HOST = "localhost:8010"
OFFER = {"sdp": "v=0", "type": "offer"}
ICE = (IceServer.parse("stun:a.example"), IceServer.parse('turn:me:p"w@b.example?transport=tcp'))


class CountingLiveness(Liveness):
    """Counts what pages say."""

    told = 0

    def heard(self):
        self.told += 1


class StandInSession:
    id = "unguessable-id"
    label = "unguess"

    def __init__(self):
        self.ended = ""
        self.over = asyncio.Event()
        self.telemetry = self
        self.liveness = CountingLiveness(ManualClock())
        self.fails = False

    def hello(self):
        return {"type": "hello", "session_id": self.id}

    def message(self, after_frame):
        if self.fails:
            raise ZeroDivisionError
        return {"type": "telemetry", "after": after_frame}, after_frame + 1

    def now_unix_ms(self):
        return 1e12

    async def wait_ended(self, timeout_s):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), timeout_s)
        return self.over.is_set()

    def end(self, reason):
        self.ended = reason
        self.over.set()


class StandInSessions:
    default_speaker = "Tiny"

    def __init__(self):
        self.closed = self.falling_back = False
        self.drawable, self.device, self.gpu_failure = True, "NVIDIA H100", ""
        self.session = StandInSession()
        self.failure = None
        self.opened = []
        self.life = []

    def start(self):
        self.life.append("started")

    async def aclose(self):
        self.life.append("closed")

    async def speakers(self):
        return [
            SpeakerEntry(name="Tiny", synthetic=True, image_size_px=512),
            SpeakerEntry(name="Ada", synthetic=False, image_size_px=256),
        ]

    async def open(self, speaker, offer):
        self.opened.append((speaker, offer))
        if self.failure is not None:
            raise self.failure
        return self.session, "the answer"

    def get(self, session_id):
        return self.session if session_id == self.session.id and not self.session.ended else None

    async def end(self, session_id, reason):
        session = self.get(session_id)
        if session is not None:
            session.end(reason)
        return session is not None

    def end_soon(self, session, reason):
        session.end(reason)


class Setup:
    """An application with everything around it replaced, and a client that talks to it."""

    def __init__(self, monkeypatch, *, offers=1000, proxies=(), **access):
        # What is an offer is tested with `Offer` itself.
        monkeypatch.setattr(app.Offer, "parse", self._parse)
        monkeypatch.setattr(app, "RateLimit", lambda **_: RateLimit(burst=offers))
        given = {"token": None, "origins": frozenset({SITE}), "loopback_only": True} | access
        self.sessions = StandInSessions()
        self.metrics = Metrics()
        avatar = AvatarApp(
            self.sessions,
            self.metrics,
            AppSettings(access=Access(**given), ice_servers=ICE, proxies=TrustedProxies(proxies)),
        )
        self.asgi = avatar.asgi()
        transport = httpx.ASGITransport(self.asgi, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}")

    @staticmethod
    def _parse(sdp):
        if sdp == "garbage":
            raise OfferError("sdp: expected a session description")
        return sdp

    def refusals(self, status):
        return self.metrics.registry.get_sample_value(
            "geneface_offers_refused_total", {"status": str(status)}
        )


@pytest.fixture
def setup(monkeypatch):
    return lambda **changes: Setup(monkeypatch, **changes)


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content.keys() == {"type", "title", "status", "detail"}
    assert content["status"] == status
    assert "\n" not in content["detail"]
    return content["detail"]


# The page ---------------------------------------------------------------------------------------------


@on_loop
async def test_the_page_and_its_files(setup):
    http = setup().http
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/client/geneface-avatar.js", "text/javascript; charset=utf-8"),
        ("/client/style.css", "text/css; charset=utf-8"),
    ):
        response = await http.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == kind
        assert response.headers["x-content-type-options"] == "nosniff"
        assert len(response.content) > 100


@on_loop
async def test_the_page_may_load_nothing_from_elsewhere(setup):
    response = await setup().http.get("/")
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "microphone=(self)" in response.headers["permissions-policy"]
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/client/__init__.py",
        "/client/",
        "/client/nothing.js",
        "/client/..%2f__init__.py",
        "/client/..%2fstreaming%2fapp.py",
        "/client/..%5cindex.html",
        "/client/%2e%2e",
        "/client/%2fetc%2fpasswd",
        "/client/c%3aindex.html",
        "/client/index.html%00.js",
        "/client/__pycache__",
        "/client/a/b.js",
        "/__init__.py",
        "/nothing",
    ],
)
@on_loop
async def test_nothing_else_is_a_file(setup, path):
    problem(await setup().http.get(path), 404)


@on_loop
async def test_no_icon_is_no_error(setup):
    assert (await setup().http.get("/favicon.ico")).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/offer", {"POST"}),
        ("PUT", "/whip/Tiny", {"POST", "OPTIONS"}),
        ("GET", "/sessions/x", {"DELETE"}),
        ("PATCH", "/sessions/x", {"DELETE"}),
        ("POST", "/speakers", {"GET", "HEAD"}),
        ("DELETE", "/", {"GET", "HEAD"}),
    ],
)
@on_loop
async def test_another_method_is_405_with_those_there_are(setup, method, path, allowed):
    response = await setup().http.request(method, path)
    problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == allowed


# Who may ----------------------------------------------------------------------------------------------

GUARDED = [
    ("POST", "/offer"),
    ("POST", "/whip/Tiny"),
    ("GET", "/speakers"),
    ("GET", "/ice"),
    ("GET", "/metrics"),
    ("DELETE", "/sessions/unguessable-id"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@on_loop
async def test_with_a_token_who_does_not_know_it_gets_401(setup, method, path):
    it = setup(token=TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong-horse"}):
        response = await it.http.request(method, path, headers=headers)
        problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert it.sessions.opened == []
    known = await it.http.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert known.status_code != 401


@pytest.mark.parametrize("path", ["/", "/client/page.js", "/healthz", "/readyz"])
@on_loop
async def test_page_and_health_need_no_token(setup, path):
    assert (await setup(token=TOKEN).http.get(path)).status_code == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@on_loop
async def test_pages_of_other_sites_get_403(setup, method, path):
    it = setup()
    for origin in ("https://evil.example", "null", "http://["):
        detail = problem(await it.http.request(method, path, headers={"Origin": origin}), 403)
        assert detail.startswith("Origin: expected")
    assert it.sessions.opened == []
    assert not it.sessions.session.ended


@pytest.mark.parametrize(("method", "path"), [*GUARDED, ("GET", "/"), ("GET", "/healthz")])
@on_loop
async def test_a_name_that_somebody_pointed_here_gets_403(setup, method, path):
    headers = {"Host": "evil.example:8010", "Origin": "http://evil.example:8010"}
    assert problem(await setup().http.request(method, path, headers=headers), 403).startswith(
        "Host: expected"
    )


@on_loop
async def test_a_server_for_others_takes_any_name(setup):
    http = setup(loopback_only=False).http
    headers = {"Host": "avatar.example", "Origin": "https://avatar.example"}
    assert (await http.post("/offer", json=OFFER, headers=headers)).status_code == 200


@on_loop
async def test_an_allowed_site_may_fetch_the_client_and_ask(setup):
    it = setup(token=TOKEN)
    client = await it.http.get("/client/geneface-avatar.js", headers={"Origin": SITE})
    assert client.headers["access-control-allow-origin"] == SITE
    preflight = await it.http.options(
        "/offer",
        headers={
            "Origin": SITE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == SITE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    asked = await it.http.post(
        "/offer", json=OFFER, headers={"Origin": SITE, "Authorization": f"Bearer {TOKEN}"}
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SITE
    assert "Retry-After" in asked.headers["access-control-expose-headers"]
    assert "Location" in asked.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/offer", b"{", 400), ("/offer", b"x" * (MAX_OFFER_BYTES + 1), 413), ("/nothing", b"", 404)],
)
@on_loop
async def test_an_allowed_site_can_read_why_it_was_refused(setup, path, body, status):
    response = await setup().http.post(path, content=body, headers={"Origin": SITE})
    problem(response, status)
    assert response.headers["access-control-allow-origin"] == SITE


@on_loop
async def test_another_site_may_not_even_read_the_client(setup):
    it = setup()
    client = await it.http.get("/client/geneface-avatar.js", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in client.headers
    preflight = await it.http.options(
        "/offer", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers


# Lists ------------------------------------------------------------------------------------------------


@on_loop
async def test_speakers(setup):
    response = await setup().http.get("/speakers")
    assert response.json() == {
        "speakers": [
            {"name": "Tiny", "synthetic": True, "image_size_px": 512},
            {"name": "Ada", "synthetic": False, "image_size_px": 256},
        ],
        "default": "Tiny",
    }


@on_loop
async def test_ice_servers_as_a_browser_takes_them_and_keeps_them_to_itself(setup):
    response = await setup().http.get("/ice")
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "iceServers": [
            {"urls": "stun:a.example"},
            {"urls": "turn:b.example?transport=tcp", "username": "me", "credential": 'p"w'},
        ]
    }


@on_loop
async def test_health(setup):
    it = setup()
    assert (await it.http.get("/healthz")).json() == {"status": "up"}
    ready = {"status": "ready", "speaker": "Tiny", "device": "NVIDIA H100"}
    assert (await it.http.get("/readyz")).json() == ready
    it.sessions.closed = True
    stopping = await it.http.get("/readyz")
    problem(stopping, 503)
    assert stopping.headers["retry-after"].isdigit()
    assert (await it.http.get("/healthz")).status_code == 200


@on_loop
async def test_ready_again_when_the_cpu_draws_what_a_gpu_drew(setup):
    it = setup()
    it.sessions.falling_back, it.sessions.gpu_failure = True, "it gave no picture within 2 s"
    waiting = await it.http.get("/readyz")
    assert problem(waiting, 503) == "the GPU failed, and the CPU is being made ready to draw"
    assert waiting.headers["retry-after"] == "10"
    it.sessions.falling_back, it.sessions.device = False, "CPU, 2 threads"
    ready = (await it.http.get("/readyz")).json()
    assert (ready["device"], ready["gpu_failure"]) == ("CPU, 2 threads", "it gave no picture within 2 s")
    it.sessions.drawable = False
    assert problem(await it.http.get("/readyz"), 503).startswith("the GPU failed, and the CPU cannot draw")
    assert (await it.http.get("/healthz")).status_code == 200


@on_loop
async def test_metrics(setup):
    response = await setup().http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "geneface_sessions_active 0.0" in response.text


# Offers -----------------------------------------------------------------------------------------------


@on_loop
async def test_an_offer_is_answered(setup):
    it = setup()
    response = await it.http.post("/offer", json=OFFER)
    assert response.status_code == 200
    assert response.json() == {"sdp": "the answer", "type": "answer", "session_id": "unguessable-id"}
    await it.http.post("/offer", json=OFFER | {"speaker": "Ada"})
    await it.http.post("/offer", json=OFFER | {"speaker": None})
    assert it.sessions.opened == [("Tiny", "v=0"), ("Ada", "v=0"), ("Tiny", "v=0")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"offer"',
        b"null",
        b"{}",
        b'{"sdp": "v=0"}',
        b'{"sdp": 1, "type": "offer"}',
        b'{"sdp": "v=0", "type": "answer"}',
        b'{"sdp": "v=0", "type": "offer", "speaker": 7}',
        b'{"sdp": "v=0", "type": "offer", "speaker": "\\ud800"}',
        b'{"sdp": "\\udfff", "type": "offer"}',
        b'{"sdp": "\xff", "type": "offer"}',
        b"[" * 20_000,
    ],
)
@on_loop
async def test_what_is_no_offer_is_400(setup, body):
    it = setup()
    problem(await it.http.post("/offer", content=body), 400)
    assert it.sessions.opened == []
    assert it.refusals(400) == 1


@pytest.mark.parametrize("path", ["/offer", "/whip/Tiny"])
@on_loop
async def test_too_large_a_body_is_413_by_its_length_and_by_what_comes(setup, path):
    it = setup()
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 8192
            yield b"x" * 8192

    headers = {"Content-Type": "application/sdp"}
    problem(await it.http.post(path, content=b"x" * 10_000_000, headers=headers), 413)
    problem(await it.http.post(path, content=endless(), headers=headers), 413)
    assert read <= MAX_OFFER_BYTES + 16384
    assert it.sessions.opened == []
    assert it.refusals(413) == 2


@on_loop
async def test_the_largest_offer_is_taken(setup):
    it = setup()
    text = json.dumps(OFFER | {"sdp": ""})
    sdp = "x" * (MAX_OFFER_BYTES - len(text))
    assert (await it.http.post("/offer", content=text.replace('""', f'"{sdp}"'))).status_code == 200


@on_loop
async def test_a_body_that_does_not_come_is_408(setup, monkeypatch):
    monkeypatch.setattr(app, "_BODY_S", 0.05)
    it = setup()
    gate = asyncio.Event()

    async def stuck():
        yield b'{"sdp"'
        await gate.wait()

    problem(await it.http.post("/offer", content=stuck()), 408)
    assert it.sessions.opened == []


@on_loop
async def test_a_peer_that_leaves_while_it_sends_is_no_fault(setup):
    it = setup()
    sent = []
    parts = [
        {"type": "http.request", "body": b'{"sdp"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/offer",
        "raw_path": b"/offer",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8010),
    }
    await it.asgi(scope, receive, send)
    assert sent[0]["status"] == 400
    assert it.sessions.opened == []


FAILURES = [
    (NotAcceptableError("sdp: no codec in common"), 406, "sdp: no codec in common"),
    (OfferError("sdp: expected rtcp-mux"), 422, "sdp: expected rtcp-mux"),
    (UnknownSpeakerError("expected one of Tiny, got 'x'"), 404, "speaker: expected one of Tiny, got 'x'"),
    (FullError(Refusal(reason="full: no room", retry_after_s=7)), 503, "full: no room"),
    (EndedError("the video thread failed"), 500, "session: the video thread failed"),
    (OSError("no UDP port is left"), 503, "network: no UDP port is left"),
    (TimeoutError(), 503, "network: no answer in time"),
    (BundleError("/secret/place", "x", "y", "z"), 500, "its bundle cannot be used"),
    (EngineError("/secret/place: no network"), 500, "its bundle cannot be used"),
    (SceneError("/secret/place: no scene"), 500, "its bundle cannot be used"),
    (InputError("/secret/place: odd size"), 500, "its bundle cannot be used"),
    (ZeroDivisionError("/secret/place"), 500, "a fault of the server"),
]


@pytest.mark.parametrize(("failure", "status", "said"), FAILURES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("way", ["offer", "whip"])
@on_loop
async def test_each_failure_has_its_status(setup, way, failure, status, said):
    it = setup()
    it.sessions.failure = failure
    if way == "offer":
        response = await it.http.post("/offer", json=OFFER)
    else:
        response = await it.http.post(
            "/whip/Tiny", content="v=0", headers={"Content-Type": "application/sdp"}
        )
    assert said in problem(response, status)
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


@on_loop
async def test_a_full_server_says_when_to_come_again(setup):
    it = setup()
    it.sessions.failure = FullError(Refusal(reason="full", retry_after_s=7))
    assert (await it.http.post("/offer", json=OFFER)).headers["retry-after"] == "7"
    assert it.refusals(503) == 1


@on_loop
async def test_an_sdp_that_does_not_parse_is_422(setup):
    it = setup()
    problem(await it.http.post("/offer", json=OFFER | {"sdp": "garbage"}), 422)
    assert it.sessions.opened == []


@on_loop
async def test_too_many_offers_are_429(setup):
    it = setup(offers=2)
    statuses = [(await it.http.post("/offer", json=OFFER)).status_code for _ in range(2)]
    assert statuses == [200, 200]
    response = await it.http.post("/whip/Tiny")
    problem(response, 429)
    assert 1 <= int(response.headers["retry-after"]) <= 10
    assert len(it.sessions.opened) == 2


@on_loop
async def test_who_is_refused_before_uses_up_no_offers(setup):
    it = setup(offers=1, token=TOKEN)
    for _ in range(5):
        problem(await it.http.post("/offer", json=OFFER), 401)
    response = await it.http.post("/offer", json=OFFER, headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200


# WHIP -------------------------------------------------------------------------------------------------


@on_loop
async def test_whip(setup):
    it = setup()
    response = await it.http.post(
        "/whip/Ada", content="v=0", headers={"Content-Type": "application/sdp; charset=utf-8"}
    )
    assert response.status_code == 201
    assert response.headers["content-type"].startswith("application/sdp")
    assert response.text == "the answer"
    assert response.headers["location"] == "../sessions/unguessable-id"
    assert response.headers["etag"] == '"unguess"'
    assert it.sessions.opened == [("Ada", "v=0")]
    assert response.headers["link"] == (
        '<stun:a.example>; rel="ice-server", <turn:b.example?transport=tcp>; rel="ice-server"; '
        'username="me"; credential="p\\"w"; credential-type="password"'
    )
    location = response.url.join(response.headers["location"])
    ended = await it.http.delete(location)
    assert ended.status_code == 200
    assert it.sessions.session.ended == "ended by the peer"
    problem(await it.http.delete(location), 404)


@pytest.mark.parametrize("path", ["/whip/Ada", "/whip/Ada/", "/whip/%41da", "/whip/Ada?a=/b/c"])
@on_loop
async def test_the_location_is_right_behind_any_prefix(setup, path):
    response = await setup().http.post(path, content="v=0", headers={"Content-Type": "application/sdp"})
    assert response.status_code == 201
    seen = f"https://example.org/call/avatar{path}"
    found = urljoin(seen, response.headers["location"])
    assert found == "https://example.org/call/avatar/sessions/unguessable-id"


@pytest.mark.parametrize(("origin", "allowed"), [(SITE, True), ("https://evil.example", False)])
@on_loop
async def test_a_page_of_an_allowed_origin_may_come_from_another_network(setup, origin, allowed):
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    response = await setup().http.options("/offer", headers=asked)
    assert (response.status_code == 200) == allowed
    assert (response.headers.get("access-control-allow-origin") == origin) == allowed
    if allowed:
        assert response.headers["access-control-allow-private-network"] == "true"


@on_loop
async def test_wrong_tokens_are_limited_and_none_is_compared_meanwhile(setup):
    it = setup(offers=3, token=TOKEN)
    wrong = {"Authorization": "Bearer a-guess-of-a-token"}
    for path in ("/speakers", "/metrics", "/offer"):
        method = it.http.post if path == "/offer" else it.http.get
        problem(await method(path, headers=wrong), 401)
    response = await it.http.get("/speakers", headers=wrong)
    problem(response, 429)
    assert int(response.headers["retry-after"]) >= 1
    problem(await it.http.get("/speakers", headers={"Authorization": f"Bearer {TOKEN}"}), 429)
    assert (await it.http.options("/whip/Tiny", headers=wrong)).status_code == 429
    problem(await it.http.get("/speakers"), 401)  # who guesses nothing is told what is missing


@pytest.mark.parametrize(("proxies", "limited"), [((), True), (("127.0.0.1",), False)])
@on_loop
async def test_x_forwarded_for_is_believed_of_known_proxies_only(setup, proxies, limited):
    it = setup(offers=1, proxies=proxies)
    statuses = []
    for number in (1, 2):
        headers = {"X-Forwarded-For": f"192.0.2.{number}"}
        statuses.append((await it.http.post("/offer", json=OFFER, headers=headers)).status_code)
    assert statuses == [200, 429 if limited else 200]


@on_loop
async def test_a_password_that_no_header_can_carry_ends_no_offer(setup, monkeypatch):
    monkeypatch.setitem(globals(), "ICE", (IceServer.parse("turn:me:gehe\xefm\u2713@b.example"), ICE[0]))
    response = await setup().http.post(
        "/whip/Ada", content="v=0", headers={"Content-Type": "application/sdp"}
    )
    assert response.status_code == 201
    assert response.headers["link"] == '<stun:a.example>; rel="ice-server"'


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "application/sdpx"])
@on_loop
async def test_whip_takes_nothing_but_sdp(setup, kind):
    it = setup()
    response = await it.http.post("/whip/Tiny", content="v=0", headers={"Content-Type": kind})
    problem(response, 415)
    assert response.headers["accept-post"] == "application/sdp"
    assert it.sessions.opened == []


@on_loop
async def test_whip_says_what_it_takes_but_passwords_to_none_that_lacks_the_token(setup):
    it = setup(token=TOKEN)
    response = await it.http.options("/whip/Tiny")
    assert response.status_code == 204
    assert response.headers["accept-post"] == "application/sdp"
    assert "link" not in response.headers
    known = await it.http.options("/whip/Tiny", headers={"Authorization": f"Bearer {TOKEN}"})
    assert known.headers["link"].count('rel="ice-server"') == 2


# The WebSocket ----------------------------------------------------------------------------------------


class Socket:
    """A WebSocket to the application, without a network."""

    def __init__(self, asgi, path, *, origin=None, host=HOST):
        headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
        self._scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "ws",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8010),
            "subprotocols": [],
        }
        self._asgi = asgi
        self._up = asyncio.Queue()
        self.accepted = False
        self.closed = None  # code, reason
        self.came = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.broken = None

    async def __aenter__(self):
        self._up.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(self._asgi(self._scope, self._up.get, self._take))
        await until(lambda: self.accepted or self.task.done())
        return self

    async def __aexit__(self, *_):
        self.leave()
        await asyncio.wait_for(self.task, PATIENCE_S)

    async def _take(self, message):
        await self.writable.wait()
        if self.broken is not None:
            raise self.broken
        if message["type"] == "websocket.accept":
            self.accepted = True
        elif message["type"] == "websocket.close":
            assert self.closed is None, "closed twice"
            self.closed = message.get("code", 1000), message.get("reason")
        else:
            assert self.closed is None, "a message after the close"
            self.came.append(json.loads(message["text"]))

    def say(self, message):
        text = message if isinstance(message, str) else json.dumps(message)
        self._up.put_nowait({"type": "websocket.receive", "text": text})

    def say_bytes(self, data):
        self._up.put_nowait({"type": "websocket.receive", "bytes": data})

    def leave(self):
        self._up.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def next(self, kind):
        await until(lambda: any(message["type"] == kind for message in self.came), what=kind)
        return next(message for message in self.came if message["type"] == kind)


PATH = "/ws/unguessable-id"


@pytest.fixture
def quick_telemetry(monkeypatch):
    monkeypatch.setattr(app, "TELEMETRY_S", 0.01)


@on_loop
async def test_a_page_is_greeted_then_told_what_is_new(setup, quick_telemetry):
    it = setup()
    async with Socket(it.asgi, PATH, origin=f"http://{HOST}") as socket:
        assert it.sessions.session.liveness.sockets == 1
        await until(lambda: len(socket.came) > 3)
        assert [message["type"] for message in socket.came[:4]] == ["hello", *["telemetry"] * 3]
        assert [message["after"] for message in socket.came[1:4]] == [-1, 0, 1]
    assert it.sessions.session.liveness.sockets == 0
    assert not it.sessions.session.ended  # another page may open, and the heartbeat decides


@on_loop
async def test_a_ping_is_answered_and_is_a_sign_of_life(setup):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say({"type": "ping", "id": 7})
        assert await socket.next("pong") == {"type": "pong", "id": 7, "server_ms": 1e12}
    assert it.sessions.session.liveness.told == 1


@pytest.mark.parametrize("number", ['"\\ud800"', "NaN", "1e999", "1" + "0" * 400, "true", "[1]", "null"])
@on_loop
async def test_a_strange_ping_breaks_nothing(setup, number):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say(f'{{"type": "ping", "id": {number}}}')
        assert (await socket.next("pong"))["id"] is None


@on_loop
async def test_a_page_is_told_at_once_why_it_is_over(setup, monkeypatch):
    monkeypatch.setattr(app, "TELEMETRY_S", 30)
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        await socket.next("hello")
        it.sessions.session.end("server stopping")
        assert await socket.next("ended") == {"type": "ended", "reason": "server stopping"}
        await until(lambda: socket.closed)
        assert socket.closed == (1000, "server stopping")


@on_loop
async def test_a_page_can_end_it(setup):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say({"type": "end"})
        assert (await socket.next("ended"))["reason"] == "ended by the peer"
        await until(lambda: socket.closed)
    assert it.sessions.session.ended == "ended by the peer"


@on_loop
async def test_reports_go_to_the_metrics_as_far_as_they_can_be_true(setup):
    it = setup()
    sample = it.metrics.registry.get_sample_value
    async with Socket(it.asgi, PATH) as socket:
        socket.say({"type": "report", "mic_to_glass_ms": {"p50": 340, "p95": 400}, "av_offset_ms": -12.5})
        for glass, skew in (
            ({"p50": -1}, "far"),
            ({"p50": 1e9}, 1e9),
            ({"p50": True}, False),
            ({"p50": "340"}, None),
            ("340", [1]),
            (None, {}),
        ):
            socket.say({"type": "report", "mic_to_glass_ms": glass, "av_offset_ms": skew})
        socket.say('{"type": "report", "mic_to_glass_ms": {"p50": NaN}, "av_offset_ms": -Infinity}')
        socket.say({"type": "ping", "id": 1})
        await socket.next("pong")
    assert sample("geneface_mic_to_glass_seconds_count") == 1
    assert sample("geneface_mic_to_glass_seconds_sum") == pytest.approx(0.34)
    assert sample("geneface_av_skew_seconds_count") == 1
    buckets = [sample("geneface_av_skew_seconds_bucket", {"le": le}) for le in ("-0.02", "0.0")]
    assert buckets == [0, 1]


@on_loop
async def test_messages_of_later_versions_are_left_alone(setup):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say({"type": "wave", "to": "everybody"})
        socket.say({"type": ["ping"]})
        socket.say({"type": "ping", "id": 1})
        await socket.next("pong")
        assert socket.closed is None


@pytest.mark.parametrize(
    "text", ["", "{", "null", "7", '"ping"', "[]", "{}", "[" * 10_000, '{"type"', "1" * 10_000]
)
@on_loop
async def test_garbage_closes_the_socket_but_not_the_session(setup, text):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say(text)
        await until(lambda: socket.closed)
        assert socket.closed[0] == 1003
    assert not it.sessions.session.ended
    assert it.sessions.session.liveness.told == 0


@on_loop
async def test_bytes_close_the_socket(setup, caplog):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say_bytes(b'{"type": "ping"}')
        await until(lambda: socket.closed)
        assert socket.closed[0] == 1003
    assert not caplog.records


@on_loop
async def test_a_flood_closes_the_socket_but_not_the_session(setup):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        for number in range(100):
            socket.say({"type": "ping", "id": number})
        await until(lambda: socket.closed)
        assert socket.closed[0] == 1008
        assert sum(message["type"] == "pong" for message in socket.came) == 20
    assert not it.sessions.session.ended


@on_loop
async def test_a_message_that_is_too_long_closes_the_socket(setup):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        socket.say({"type": "ping", "id": "x" * 20_000})
        await until(lambda: socket.closed)
        assert socket.closed[0] == 1008


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/ws/another-id", {}),
        ("/ws/unguess", {}),
        (PATH, {"origin": "https://evil.example"}),
        (PATH, {"origin": "null"}),
        (PATH, {"host": "evil.example", "origin": "http://evil.example"}),
    ],
)
@on_loop
async def test_a_socket_for_nobody_is_refused_before_it_opens(setup, path, given):
    it = setup()
    async with Socket(it.asgi, path, **given) as socket:
        assert not socket.accepted
        assert socket.closed[0] == 1008
    assert it.sessions.session.liveness.sockets == 0


@on_loop
async def test_pages_of_an_allowed_site_may_listen(setup):
    async with Socket(setup(token=TOKEN).asgi, PATH, origin=SITE) as socket:
        assert socket.accepted


@on_loop
async def test_a_page_that_takes_nothing_holds_nothing(setup, quick_telemetry, monkeypatch):
    monkeypatch.setattr(app, "_SEND_TIMEOUT_S", 0.05)
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        await socket.next("hello")
        socket.writable.clear()
        await until(socket.task.done)
        assert it.sessions.session.liveness.sockets == 0


@pytest.mark.parametrize("broken", [OSError("reset"), RuntimeError("closed")])
@on_loop
async def test_a_page_that_is_gone_is_no_fault(setup, quick_telemetry, caplog, broken):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        await socket.next("hello")
        socket.broken = broken
        await until(socket.task.done)
    assert it.sessions.session.liveness.sockets == 0
    assert not caplog.records


@on_loop
async def test_a_fault_of_ours_is_logged_and_closes_the_socket(setup, quick_telemetry, caplog):
    it = setup()
    async with Socket(it.asgi, PATH) as socket:
        await socket.next("hello")
        it.sessions.session.fails = True
        await until(lambda: socket.closed)
        assert socket.closed[0] == 1011
    [record] = caplog.records
    assert record.exc_info[0] is ZeroDivisionError
    assert it.sessions.session.label in record.message
    assert it.sessions.session.id not in record.message


@on_loop
async def test_two_pages_can_listen_and_one_can_leave(setup, quick_telemetry):
    it = setup()
    async with Socket(it.asgi, PATH) as stays:
        async with Socket(it.asgi, PATH) as leaves:
            await leaves.next("hello")
            assert it.sessions.session.liveness.sockets == 2
        assert it.sessions.session.liveness.sockets == 1
        told = len(stays.came)
        await until(lambda: len(stays.came) > told)


@on_loop
async def test_a_socket_that_is_cancelled_leaves_nothing(setup):
    it = setup()
    socket = Socket(it.asgi, PATH)
    async with socket:
        await socket.next("hello")
        socket.task.cancel()
        await asyncio.gather(socket.task, return_exceptions=True)
        assert it.sessions.session.liveness.sockets == 0
        socket.task = asyncio.create_task(asyncio.sleep(0))


# Life -------------------------------------------------------------------------------------------------


@on_loop
async def test_the_sessions_live_as_long_as_the_application(setup):
    it = setup()
    up, down = asyncio.Queue(), asyncio.Queue()
    life = asyncio.create_task(it.asgi({"type": "lifespan"}, up.get, down.put))
    up.put_nowait({"type": "lifespan.startup"})
    assert (await down.get())["type"] == "lifespan.startup.complete"
    assert it.sessions.life == ["started"]
    up.put_nowait({"type": "lifespan.shutdown"})
    assert (await down.get())["type"] == "lifespan.shutdown.complete"
    assert it.sessions.life == ["started", "closed"]
    await life


def test_settings_are_frozen():
    settings = AppSettings(access=Access(token=None, origins=frozenset(), loopback_only=True))
    assert settings.ice_servers == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.ice_servers = ICE
