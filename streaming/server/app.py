"""The HTTP API: page, offers (also WHIP), telemetry and control by WebSocket, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources
from typing import Any, TypeGuard

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from models.speaker_folders import UnknownSpeakerError

from ..addresses import TrustedProxies
from ..errors import InputError
from ..pipeline.onnx_engine import EngineTimeoutError
from ..session.metrics import CONTENT_TYPE, Metrics
from ..session.registry import EndedError, FullError, Sessions
from ..session.session import Session
from ..webrtc.ice import IceServer
from ..webrtc.sdp_offer import MAX_OFFER_BYTES, NotAcceptableError, Offer, OfferError
from .access import WRONG_TOKENS_BURST, WRONG_TOKENS_PER_S, Access, Denial, RateLimit

log = logging.getLogger(__name__)

TELEMETRY_S = 0.2
MAX_SOCKETS_PER_SESSION = 4
_MAX_MESSAGES_PER_S = 20  # of a WebSocket; a page sends about one
_MAX_MESSAGE_BYTES = 16 * 1024
_BODY_S = 10.0  # timeout of a request's body
_SEND_TIMEOUT_S = 5.0  # of a WebSocket message
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
# The page needs nothing from elsewhere; blob: is for what a page shows of its own streams.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Problem(Exception):  # noqa: N818 - what RFC 9457 calls it
    """An HTTP error as problem+json: status and one line of detail."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Keeps status, detail and further headers."""
        self.status, self.detail, self.headers = status, detail, headers or {}
        super().__init__(detail)

    def response(self) -> Response:
        """Returns it as RFC 9457 writes it."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        headers = {"WWW-Authenticate": "Bearer", **self.headers} if self.status == 401 else self.headers
        return JSONResponse(content, self.status, headers=headers, media_type="application/problem+json")


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Settings of the HTTP API."""

    access: Access
    ice_servers: tuple[IceServer, ...] = ()
    proxies: TrustedProxies = field(default_factory=TrustedProxies)


class AvatarApp:
    """The routes and their shared state."""

    def __init__(self, sessions: Sessions, metrics: Metrics, settings: AppSettings) -> None:
        self.sessions = sessions
        self.metrics = metrics
        self._settings = settings
        self._access = settings.access
        self._offers = RateLimit()
        self._wrong_tokens = RateLimit(burst=WRONG_TOKENS_BURST, rate_per_s=WRONG_TOKENS_PER_S)

    def asgi(self) -> ASGIApp:
        """Returns the application."""
        endpoints: list[tuple[str, Callable[..., Awaitable[Response]], list[str]]] = [
            ("/client/{name}", self._public(self._client_file), ["GET"]),
            ("/favicon.ico", self._public(self._no_icon), ["GET"]),
            ("/healthz", self._public(self._health), ["GET"]),
            ("/readyz", self._public(self._ready), ["GET"]),
            ("/speakers", self._guarded(self._speakers), ["GET"]),
            ("/ice", self._guarded(self._ice), ["GET"]),
            ("/metrics", self._guarded(self._metrics_text), ["GET"]),
            ("/offer", self._guarded(self._offer), ["POST"]),
            ("/whip/{speaker}", self._whip_endpoint(), ["POST", "OPTIONS"]),
            ("/sessions/{session_id}", self._guarded(self._delete), ["DELETE"]),
        ]
        routes: list[BaseRoute] = [
            Route("/", self._public(self._page)),
            # With a slash at its end it is the same: a redirect would leave the prefix of a proxy.
            *(
                Route(path + end, endpoint, methods=methods)
                for path, endpoint, methods in endpoints
                for end in ("", "/")
            ),
            WebSocketRoute("/ws/{session_id}", self._socket),
        ]
        middleware = [
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(self._access.origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["Location", "ETag", "Retry-After"],
                allow_private_network=True,
            )
        ]
        app = Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_route, Exception: _fault},
        )
        app.router.redirect_slashes = False
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.sessions.start()
        try:
            yield
        finally:
            await self.sessions.aclose()

    # Guards -------------------------------------------------------------------------------------------

    def _public(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[..., Awaitable[Response]]:
        """An endpoint that needs no token."""

        async def answered(request: Request) -> Response:
            try:
                self._refuse(self._access.check_host(request.headers.get("host", "")))
                return await endpoint(request)
            except Problem as problem:
                if request.method == "POST":
                    self.metrics.refused.labels(str(problem.status)).inc()
                return problem.response()

        return answered

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[..., Awaitable[Response]]:
        """An endpoint for pages of allowed origins that know the token."""

        async def checked(request: Request) -> Response:
            self._refuse(self._check_origin(request))
            self._check_token(request)
            return await endpoint(request)

        return self._public(checked)

    def _check_origin(self, connection: HTTPConnection) -> Denial | None:
        headers = connection.headers
        return self._access.check_origin(headers.get("origin"), headers.get("host", ""))

    def _check_token(self, request: Request) -> None:
        given, client = request.headers.get("authorization"), self._client(request)
        if given is not None and (wait_s := self._wrong_tokens.wait_s(client)) > 0:
            seconds = math.ceil(wait_s)
            raise Problem(
                429,
                f"tokens: too many wrong ones from one address; try in {seconds} s",
                {"Retry-After": str(seconds)},
            )
        denial = self._access.check_token(given)
        if denial is not None and given is not None:
            self._wrong_tokens.take(client)
        self._refuse(denial)

    def _client(self, request: Request) -> str:
        """Returns the key of the request's client in a rate limit."""
        peer = request.client.host if request.client else ""
        return self._settings.proxies.client_key(peer, request.headers.getlist("x-forwarded-for"))

    @staticmethod
    def _refuse(denial: Denial | None) -> None:
        if denial is not None:
            raise Problem(denial.status, denial.detail)

    # The page -----------------------------------------------------------------------------------------

    async def _page(self, _: Request) -> Response:
        return _file("index.html")

    async def _client_file(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    async def _no_icon(self, _: Request) -> Response:
        return Response(status_code=204)

    async def _speakers(self, _: Request) -> Response:
        speakers = [dataclasses.asdict(entry) for entry in await self.sessions.speakers()]
        return JSONResponse({"speakers": speakers, "default": self.sessions.default_speaker})

    async def _ice(self, _: Request) -> Response:
        servers = [server.for_browser() for server in self._settings.ice_servers]
        return JSONResponse({"iceServers": servers}, headers={"Cache-Control": "no-store"})

    # Sessions -----------------------------------------------------------------------------------------

    async def _offer(self, request: Request) -> Response:
        self._enforce_rate_limit(request)
        text = await _body(request)
        try:
            given = json.loads(text)
            sdp, kind = given["sdp"], given["type"]
            speaker = given.get("speaker") or self.sessions.default_speaker
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Problem(
                400, 'body: expected JSON {"sdp", "type", "speaker"?}, got something else'
            ) from None
        if kind != "offer" or not _is_text(sdp) or not _is_text(speaker):
            raise Problem(400, 'body: expected "type": "offer" and texts for "sdp" and "speaker"')
        session, answer = await self._open_session(request, speaker, sdp)
        return JSONResponse({"sdp": answer, "type": "answer", "session_id": session.id})

    async def _whip(self, request: Request) -> Response:
        self._enforce_rate_limit(request)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/sdp":
            raise Problem(
                415,
                f"Content-Type: expected application/sdp, got {content_type[:60] or 'none'}",
                {"Accept-Post": "application/sdp"},
            )
        sdp = await _body(request)
        session, answer = await self._open_session(request, request.path_params["speaker"], sdp)
        headers = {
            "Location": _beside(request, f"sessions/{session.id}"),
            "ETag": f'"{session.label}"',
            **self._ice_links(),
        }
        return Response(answer, 201, headers=headers, media_type="application/sdp")

    async def _whip_options(self, request: Request) -> Response:
        # The links may hold a password: they need the token.
        known = True
        try:
            self._check_token(request)
        except Problem as problem:
            if problem.status == 429:
                raise
            known = False
        links = self._ice_links() if known else {}
        return Response(status_code=204, headers={"Accept-Post": "application/sdp", **links})

    def _whip_endpoint(self) -> Callable[..., Awaitable[Response]]:
        post, options = self._guarded(self._whip), self._public(self._whip_options)

        async def endpoint(request: Request) -> Response:
            return await (options if request.method == "OPTIONS" else post)(request)

        return endpoint

    def _ice_links(self) -> dict[str, str]:
        links = []
        for server in self._settings.ice_servers:
            link = f'<{server.url}>; rel="ice-server"'
            if server.username and server.password:
                link += f"; username={_quoted(server.username)}; credential={_quoted(server.password)}"
                link += '; credential-type="password"'
            if link.isascii():  # what else a password may hold, no header can carry; /ice can
                links.append(link)
        return {"Link": ", ".join(links)} if links else {}

    async def _delete(self, request: Request) -> Response:
        if not await self.sessions.end(request.path_params["session_id"], "ended by the peer"):
            raise Problem(404, "session: expected one that runs, got an unknown or ended one")
        return Response(status_code=200)

    def _enforce_rate_limit(self, request: Request) -> None:
        wait_s = self._offers.take(self._client(request))
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise Problem(
                429, f"offers: too many from one address; try in {seconds} s", {"Retry-After": str(seconds)}
            )

    async def _open_session(self, request: Request, speaker: str, sdp: str) -> tuple[Session, str]:
        try:
            offer = Offer.parse(sdp)
            session, answer = await self.sessions.open(speaker, offer)
        except NotAcceptableError as error:
            raise Problem(406, str(error)) from None
        except OfferError as error:
            raise Problem(422, str(error)) from None
        except FullError as error:
            refusal = error.refusal
            raise Problem(503, refusal.reason, {"Retry-After": str(refusal.retry_after_s)}) from None
        except UnknownSpeakerError as error:
            raise Problem(404, f"speaker: {error}") from None
        except EndedError as error:
            raise Problem(500, f"session: {error}; the server's log says why") from None
        except EngineTimeoutError as error:
            log.warning("speaker %s cannot be used: %s", speaker, error)
            raise Problem(504, f"speaker {speaker}: a network of its bundle never answers") from None
        except InputError as error:
            log.warning("speaker %s cannot be used: %s", speaker, error)
            raise Problem(
                500, f"speaker {speaker}: its bundle cannot be used; the server's log says why"
            ) from None
        except (OSError, TimeoutError) as error:
            log.warning("an offer found no way out: %s", str(error) or "no answer in time")
            raise Problem(
                503, f"network: {str(error) or 'no answer in time'}", {"Retry-After": "10"}
            ) from None
        if await request.is_disconnected():  # without the answer the client cannot end its session
            self.sessions.end_soon(session, "the peer left")
        return session, answer

    # WebSocket ----------------------------------------------------------------------------------------

    async def _socket(self, socket: WebSocket) -> None:
        session = self.sessions.get(socket.path_params["session_id"])
        denial = self._access.check_host(socket.headers.get("host", "")) or self._check_origin(socket)
        if denial is not None:
            await socket.close(1008, denial.detail[:100])
            return
        if session is None:
            await socket.close(1008, "no such session")
            return
        if session.liveness.sockets >= MAX_SOCKETS_PER_SESSION:
            await socket.close(1008, "too many sockets of this session")
            return
        try:
            await socket.accept()
        except (RuntimeError, OSError):
            return  # it has gone meanwhile
        session.liveness.socket_opened()
        telemetry = asyncio.create_task(
            self._send_telemetry(socket, session), name=f"telemetry-{session.label}"
        )
        control = asyncio.create_task(self._receive_control(socket, session), name=f"control-{session.label}")
        try:
            await asyncio.wait({telemetry, control}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            session.liveness.socket_closed()
            for task in (telemetry, control):
                task.cancel()
            code = 1000
            for result in await asyncio.gather(telemetry, control, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                    code = 1011
                    log.error("session %s: its socket failed", session.label, exc_info=result)
            with contextlib.suppress(WebSocketDisconnect):
                await _close(socket, code, session.ended)

    async def _send_telemetry(self, socket: WebSocket, session: Session) -> None:
        await _say(socket, session.telemetry.hello())
        last = -1
        while not await session.wait_ended(TELEMETRY_S):
            message, last = session.telemetry.message(last)
            await _say(socket, message)
        await _say(socket, {"type": "ended", "reason": session.ended})

    async def _receive_control(self, socket: WebSocket, session: Session) -> None:
        loop = asyncio.get_running_loop()
        second, messages = loop.time(), 0
        while True:
            came = await socket.receive()
            if came["type"] != "websocket.receive":
                return
            text = came.get("text")
            if loop.time() - second >= 1:
                second, messages = loop.time(), 0
            messages += 1
            if messages > _MAX_MESSAGES_PER_S or len(text or "") > _MAX_MESSAGE_BYTES:
                await _close(socket, 1008, "too many or too long messages")
                return
            try:
                message = json.loads(text or "")
                kind = message["type"]
            except (ValueError, KeyError, TypeError, RecursionError):
                await _close(socket, 1003, "expected JSON text with a type")
                return
            session.liveness.heard()
            if kind == "ping":
                number = message.get("id")
                await _say(
                    socket,
                    {
                        "type": "pong",
                        "id": number if _is_number(number) else None,
                        "server_ms": session.telemetry.now_unix_ms(),
                    },
                )
            elif kind == "report":
                self._report(message)
            elif kind == "end":
                self.sessions.end_soon(session, "ended by the peer")

    def _report(self, message: dict[str, Any]) -> None:
        """Observes a browser's own figures in the metrics, as far as they are plausible."""
        delay = message.get("mic_to_glass_ms")
        median_ms = delay.get("p50") if isinstance(delay, dict) else None
        if _is_number(median_ms) and 0 < median_ms < 60_000:
            self.metrics.mic_to_glass.observe(median_ms / 1000)
        offset_ms = message.get("av_offset_ms")
        if _is_number(offset_ms) and abs(offset_ms) < 60_000:
            self.metrics.av_skew.observe(offset_ms / 1000)

    # Health -------------------------------------------------------------------------------------------

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "up"})

    async def _ready(self, _: Request) -> Response:
        # The default speaker drew its first frames before the server began to answer.
        if self.sessions.closed:
            raise Problem(503, "the server is stopping", {"Retry-After": "30"})
        if self.sessions.falling_back:
            raise Problem(
                503, "the GPU failed, and the CPU is being made ready to draw", {"Retry-After": "10"}
            )
        if not self.sessions.drawable:
            raise Problem(503, "the GPU failed, and the CPU cannot draw; start the server anew")
        content = {
            "status": "ready",
            "speaker": self.sessions.default_speaker,
            "device": self.sessions.device,
        }
        if self.sessions.gpu_failure:
            content["gpu_failure"] = self.sessions.gpu_failure
        return JSONResponse(content)

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _beside(request: Request, path: str) -> str:
    """Returns a reference to a path of this server, relative to the request's: true behind any prefix."""
    asked: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (asked.partition(b"?")[0].count(b"/") - 1) + path


def _file(name: str) -> Response:
    """Returns a file of the client, no other."""
    suffix = name[name.rfind(".") :] if "." in name else ""
    # By what the folder lists: a name that leads elsewhere, on any system, is not in it.
    file = next((entry for entry in resources.files("web_client").iterdir() if entry.name == name), None)
    if file is None or suffix not in _MEDIA_TYPES:
        raise Problem(404, "no such file")
    return Response(file.read_bytes(), headers=_PAGE_HEADERS, media_type=_MEDIA_TYPES[suffix])


async def _body(request: Request) -> str:
    """Returns the body's text, at most `MAX_OFFER_BYTES` of UTF-8 that came within `_BODY_S`."""
    too_large = Problem(413, f"body: expected at most {MAX_OFFER_BYTES} bytes, got more")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_OFFER_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_OFFER_BYTES:
                    raise too_large
        return body.decode()
    except UnicodeDecodeError:
        raise Problem(400, "body: expected UTF-8 text, got other bytes") from None
    except ClientDisconnect:
        raise Problem(400, "body: expected all of it, got a part") from None
    except TimeoutError:
        raise Problem(408, f"body: expected all of it within {_BODY_S:.0f} s, got a part") from None


def _quoted(text: str) -> str:
    """Returns a quoted string of RFC 9110, section 5.6.4."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string that UTF-8 can encode; JSON may hold lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


async def _say(socket: WebSocket, message: dict[str, Any]) -> None:
    await _with_send_timeout(socket.send_json(message))


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    await _with_send_timeout(socket.close(code, reason))


async def _with_send_timeout(sending: Awaitable[None]) -> None:
    """Awaits sending with a timeout.

    Raises:
        WebSocketDisconnect: it does not, it has gone, or the socket is closed already.
    """
    try:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await sending
    except (RuntimeError, OSError) as error:  # a TimeoutError is an OSError
        raise WebSocketDisconnect(1006, str(error)) from None


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"not by {request.method}" if error.status_code == 405 else "no such route"
    path = request.url.path[:80]
    return Problem(error.status_code, f"{path}: {what}", dict(error.headers or {})).response()


async def _fault(request: Request, error: Exception) -> Response:
    return Problem(500, "the request met a fault of the server; its log has the traceback").response()
