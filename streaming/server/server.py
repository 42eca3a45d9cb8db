"""The live server: opens the speaker, listens, serves until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import uvicorn

from models.speaker_folders import find_speaker, list_speakers

from ..addresses import TrustedProxies
from ..errors import InputError, Stopped
from ..pipeline.cores import core_share
from ..pipeline.gpu_renderer import GpuRenderer, open_gpu
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.networks import SharedFeatures
from ..pipeline.plates import PlateMemory
from ..pipeline.renderers import OpenRaymarcher, describe, open_cpu_raymarcher
from ..session import memory
from ..session.admission import MAX_SESSIONS, Admission
from ..session.metrics import Metrics
from ..session.registry import Sessions
from ..session.session import SessionSettings
from ..session.speaker_list import SpeakerList
from ..settings import StreamSettings
from ..webrtc.ice import IceServer
from ..webrtc.opus import load_libopus
from ..webrtc.peer import PeerSettings
from ..webrtc.video_encoder import CODECS
from . import websocket_protocol
from .access import Access
from .app import AppSettings, AvatarApp
from .http_protocol import (
    MAX_HEAD_S,
    MAX_LINGER_S,
    ConnectionTable,
    GuardedHttpProtocol,
    GuardedListener,
    Sparingly,
    raise_descriptor_limit,
)
from .tls import CertifiedContext, server_ssl_context

log = logging.getLogger(__name__)

_BACKLOG = 128


def serve(
    settings: StreamSettings,
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
    open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
) -> None:
    """Serves until SIGINT or SIGTERM, which the caller handles before and after.

    Args:
        settings: of the run.
        say: told what a person wants to read, line by line.
        stopped: whether one of the signals came while the speaker was opened.
        open_raymarcher: opens what draws on the CPU.

    Raises:
        InputError: what was given cannot be used.
        Stopped: one of the signals came.
    """
    memory.keep_few_arenas()
    ice_servers = tuple(IceServer.parse(text) for text in settings.ice_server)
    tls = server_ssl_context(settings.tls_cert, settings.tls_key, settings.tls_self_signed, settings.host)
    load_libopus()  # may ask another program: not on the event loop, when the first session begins
    listener = _listen(settings)  # before the slow part: a port in use is said at once
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        compute, share = settings.compute, core_share(settings.cores)
        metrics = Metrics()
        gpu = open_gpu(settings.device, say=say, observe=metrics.gpu_drew)
        if gpu is not None:
            stack.callback(gpu.close)
        plate_memory = PlateMemory(compute.plates_mb)
        metrics.plates_bytes.set_function(lambda: plate_memory.size_bytes)
        opening = functools.partial(
            LoadedSpeaker.open,
            compute=compute,
            open_raymarcher=open_raymarcher,
            plate_memory=plate_memory,
            say=say,
        )
        shared, shared_on_cpu = SharedFeatures(), SharedFeatures()

        def open_bundle(path: str) -> LoadedSpeaker:
            if gpu is not None and gpu.lost:  # --device cuda is no reason to refuse now: the server lives on
                return opening(Path(path), shared=shared_on_cpu)
            return opening(Path(path), shared=shared, gpu=gpu)

        def on_cpu(lost: LoadedSpeaker) -> LoadedSpeaker:
            # Networks that ran on the GPU are opened anew, too: no features are shared with the old ones.
            return LoadedSpeaker.of(
                lost.speaker,
                compute=dataclasses.replace(compute, render_px=None),  # it was meant for the GPU
                open_raymarcher=open_raymarcher,
                say=say,
                shared=shared_on_cpu,
                plate_memory=plate_memory,
            )

        bundle = find_speaker(settings.speaker, speakers_dir=settings.speakers_dir)
        loaded = opening(bundle, shared=shared, gpu=gpu)
        memory.settle()
        if stopped():  # the exception that it raised may have been swallowed
            raise Stopped
        metrics.gpu_draws.set(loaded.on_gpu)
        admission = Admission(cores=share, max_sessions=settings.max_sessions or MAX_SESSIONS)
        codecs = tuple(codec for codec in CODECS if settings.codec in ("auto", codec.name))
        port = listener.getsockname()[1]
        app_settings = AppSettings(
            access=Access(
                token=settings.token,
                origins=frozenset(settings.allow_origin),
                loopback_only=not settings.listens_beyond_this_machine,
            ),
            ice_servers=ice_servers,
            proxies=TrustedProxies(settings.forwarded_allow_ips),
        )

        async def run() -> None:
            sessions = Sessions(
                open_bundle,
                loaded,
                SessionSettings(
                    peer=PeerSettings(
                        ice_servers=ice_servers, port_range=settings.udp_port_range, codecs=codecs
                    ),
                    bitrate=settings.bitrate_kbps * 1000,
                ),
                admission,
                metrics,
                speakers=SpeakerList(functools.partial(list_speakers, speakers_dir=settings.speakers_dir)),
                on_cpu=on_cpu,
            )
            if gpu is not None:
                on_loop_when_lost(gpu, sessions)
            app = AvatarApp(sessions, metrics, app_settings).asgi()
            config = uvicorn.Config(
                app,
                ws=websocket_protocol.GuardedWebSocketProtocol,
                ws_max_size=64 * 1024,
                ws_per_message_deflate=False,  # small messages; what unpacks costs memory for each socket
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # AppSettings.proxies believes them, or not
                timeout_graceful_shutdown=1,
                backlog=_BACKLOG,
            )
            config.load()
            table = ConnectionTable(descriptors=raise_descriptor_limit(), proxies=app_settings.proxies)
            listener.guard(table)
            config.http_protocol_class = functools.partial(  # type: ignore[assignment]
                GuardedHttpProtocol, table=table
            )
            if tls is not None:
                config.ssl = tls
                loop = asyncio.get_running_loop()
                loop.create_server = functools.partial(  # type: ignore[method-assign]
                    loop.create_server, ssl_handshake_timeout=MAX_HEAD_S, ssl_shutdown_timeout=MAX_LINGER_S
                )
            await _Server(config, sessions).serve(sockets=[listener])

        out_of_descriptors = "socket.accept() out of system resource"
        logging.getLogger("asyncio").addFilter(Sparingly((out_of_descriptors,)))
        logging.getLogger("uvicorn.error").addFilter(Sparingly(("Invalid HTTP", "Unsupported upgrade")))
        logging.getLogger(websocket_protocol.__name__).addFilter(Sparingly(("WebSocket of",)))
        say(counts_on(share, admission, loaded))
        for line in _greeting(settings, loaded, port, tls):
            say(line)
        asyncio.run(run())


def on_loop_when_lost(gpu: GpuRenderer, sessions: Sessions) -> None:
    """Calls the sessions on the running event loop when the GPU is lost."""
    loop = asyncio.get_running_loop()

    def tell(reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
            loop.call_soon_threadsafe(sessions.gpu_lost, reason)

    gpu.when_lost(tell)


class _Server(uvicorn.Server):
    """uvicorn's server; ends the sessions first, so that their pages get the reason."""

    def __init__(self, config: uvicorn.Config, sessions: Sessions) -> None:
        super().__init__(config)
        self._sessions = sessions

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the sessions, then the connections."""
        await self._sessions.aclose()
        await super().shutdown(sockets)


def _listen(settings: StreamSettings) -> GuardedListener:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = GuardedListener(family, kind, protocol)
    except OSError as error:
        raise InputError(
            f"--host {settings.host}: expected an address of this machine, got: {error.strerror or error}"
        ) from None
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # two that only bind could share a port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {settings.host}: expected an address of this machine, got another's; "
                "127.0.0.1 is for this machine alone, 0.0.0.0 for all its addresses"
            ) from None
        privileged = error.errno == errno.EACCES
        way_out = (
            "give a --port above 1023" if privileged else "end what listens there, or give another --port"
        )
        raise InputError(
            f"--port {settings.port}: could not listen on {settings.host}:{settings.port} "
            f"({(error.strerror or str(error)).lower()}); {way_out}"
        ) from None
    listener.setblocking(False)
    return listener


def counts_on(share: float, admission: Admission, loaded: LoadedSpeaker) -> str:
    """Returns the CPU budget of admission and the cost of one session, in one line."""
    return (
        f"Counts on {share:.3g} core{'s' if share != 1 else ''}: {admission.room_ms:.0f} core-milliseconds "
        f"for a frame of all sessions; one takes {loaded.core_ms(loaded.sizes_px[-1]):.1f} at "
        f"{loaded.sizes_px[-1]} px. --cores N counts on fewer."
    )


def _greeting(
    settings: StreamSettings, loaded: LoadedSpeaker, port: int, tls: CertifiedContext | None
) -> list[str]:
    shown = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"{'https' if tls else 'http'}://{shown}:{port}/"
    show_token = sys.stderr.isatty()  # a journal is read by more people than a terminal
    if settings.token and show_token:
        address += f"#token={quote(settings.token, safe='')}"
    renderer = loaded.make_renderer(loaded.start_px)
    devices = loaded.networks.describe()
    networks = f"; {devices}" if devices else ""
    plates = "; its bundle has no plates" if loaded.speaker.plates is None else ""
    lines = [
        f"{loaded.name} on {loaded.device}, {describe(renderer, None)}{plates}{networks}",
        f"Open {address} in a browser and speak. Ctrl+C ends the server.",
    ]
    if settings.token and not show_token:
        lines.append("The token is shown on a terminal only; the page takes it as ADDRESS#token=TOKEN.")
    if tls is not None and settings.tls_self_signed:
        lines.append("The certificate was made for this run: the browser will warn once. Its SHA-256 is")
        lines.append(tls.fingerprint_sha256)
    return lines
