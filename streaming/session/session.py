"""A session: one peer's microphone in, delayed sound and pictures out, by one media clock.

    packets -> `uplink` -> pipeline -> `downlink` -> packets
                  | delayed sound -> packets

The event loop moves packets and nothing else; what computes has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from models.time_base import FRAME_S

from ..pipeline.clock import MonotonicClock, SystemClock
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.pipeline import Pipeline, QueueBounds
from ..pipeline.queues import Overflow
from ..pipeline.stage_times import Work
from ..webrtc.media_schedule import MediaSchedule
from ..webrtc.peer import Peer, PeerSettings
from ..webrtc.sdp_offer import Offer
from .background import call_on_loop, in_background
from .downlink import Downlink
from .liveness import Liveness
from .metrics import Metrics
from .playout_delay import PlayoutDelay
from .telemetry import Telemetry
from .threads import SessionThreads
from .uplink import Uplink

log = logging.getLogger(__name__)

# What waits is late: two frames are enough to keep every stage busy.
LIVE_BOUNDS = QueueBounds(audio_ms=400, conditions_ms=80, drawings_ms=80, frames_ms=80)


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings of every session of a server."""

    peer: PeerSettings
    bitrate: int  # of the video, bit/s, at most


class _SessionLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"session {(self.extra or {})['session']}: {msg}", kwargs


class Session:
    """Life of one session: it opens, watches and ends what serves a peer. For the event loop."""

    def __init__(
        self,
        session_id: str,
        loaded: LoadedSpeaker,
        settings: SessionSettings,
        metrics: Metrics,
        *,
        on_end: Callable[[Session, str], None],
        clock: MonotonicClock | None = None,
        open_peer: Callable[..., Peer] = Peer,
    ) -> None:
        """Prepares a session; `answer` starts it.

        Args:
            session_id: unguessable: knowing it is the permission to watch the session.
            loaded: the speaker.
            settings: what every session is made with.
            metrics: where figures go.
            on_end: told once, on the event loop, that the session wants to end, and why; must call `aclose`.
            clock: paces everything.
            open_peer: makes the connection.
        """
        self.id = session_id
        self.loaded = loaded
        self.label = self.id[:6]  # for logs and metrics: the id itself is a permission
        self.ended = ""  # why, once it has
        self._metrics, self._on_end = metrics, on_end
        self._clock = clock or SystemClock()
        self._log = _SessionLog(log, {"session": self.label})
        self._call_on_loop = functools.partial(call_on_loop, asyncio.get_running_loop())
        self.liveness = Liveness(self._clock)
        playout_delay = PlayoutDelay.at_start(loaded.frame_latency_ms)
        self.schedule = MediaSchedule(
            start_s=self._clock.now_s(),
            start_unix_s=time.time(),
            lookahead_frames=loaded.speaker.lookahead_frames,
            playout_delay_ticks=playout_delay.ticks,
        )
        self.uplink = Uplink(
            self.schedule,
            push_audio=lambda pcm: self.pipeline.push_audio(pcm),
            sender=lambda: self.peer.sound,
            on_loop=self._call_on_loop,
            clock=self._clock,
        )
        self.downlink = Downlink(
            loaded,
            self.schedule,
            playout_delay,
            bitrate=settings.bitrate,
            ticks=self.uplink.ticks,
            sender=lambda: self.peer.video,
            on_loop=self._call_on_loop,
            metrics=metrics,
            log=self._log,
            clock=self._clock,
        )
        self.telemetry = Telemetry(
            loaded,
            self.schedule,
            self.uplink,
            self.downlink,
            session_id=session_id,
            label=self.label,
            metrics=metrics,
            log=self._log,
            clock=self._clock,
        )
        self.pipeline = self.downlink.pipeline = self.telemetry.pipeline = Pipeline(
            loaded.speaker,
            self.downlink.renderer(loaded.start_px),
            networks=loaded.networks,
            overflow=Overflow.DROP_OLDEST,
            bounds=LIVE_BOUNDS,
            seed=secrets.randbits(32),
            clock=self._clock,
            outlives_gpu=True,
            # Half of the frame that is tolerated is left for a drawing that takes longer than predicted.
            deadline_s=lambda frame: self.schedule.frame_due_s(frame) + FRAME_S / 2,
            on_network_failure=self.telemetry.network_failed,
        )
        self.peer = self.telemetry.peer = open_peer(
            settings.peer,
            self.schedule,
            on_packet=self.uplink.take_packet,
            on_keyframe_wanted=self.downlink.want_keyframe,
            on_bandwidth=self.downlink.limit_bitrate,
            on_state=self._peer_state,
            on_malformed=self.telemetry.packet_malformed,
        )
        self._threads = SessionThreads(self.label, on_failure=self._thread_failed, log=self._log)
        self._over = asyncio.Event()
        self._end_asked = False
        self._closing: asyncio.Task[None] | None = None

    async def answer(self, offer: Offer) -> str:
        """Starts the session and returns the answer's SDP.

        Raises:
            OfferError: the offer cannot be answered; close the session.
            OSError: no port.
        """
        self._threads.start("media", self.uplink.run)
        self.pipeline.start()
        sdp = await self.peer.answer(offer)
        if self.ended:
            return sdp
        self._threads.start("video", lambda stopping: self.downlink.run(stopping, self.peer.codec))
        self._log.info(
            "%s for a new peer, %s, %d px, delay %.0f ms",
            self.loaded.name,
            self.peer.codec.name,
            self.render_px,
            self.schedule.delay_ms,
        )
        return sdp

    def check(self, now_s: float) -> str | None:
        """Returns why the session is over, None while its peer shows signs of life.

        Args:
            now_s: on the session's clock; to be asked about twice a second.
        """
        return self.liveness.end_reason(now_s, packets=self.peer.packets_received)

    def move_to(self, loaded: LoadedSpeaker) -> None:
        """Goes on with the same speaker drawn by the CPU, at its smallest size."""
        self.loaded = self.telemetry.loaded = loaded
        self.downlink.move_to(loaded)
        self._log.info("drawn by %s from now on, %d px", loaded.device, self.render_px)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Returns whether the session is over; waits for that, but no longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        return self._over.is_set()

    @property
    def render_px(self) -> int:
        """The render size of the moment."""
        return self.downlink.resolution.size_px

    def work(self) -> Work:
        """Returns frames and CPU time of its stages so far."""
        return self.pipeline.times.work()

    async def aclose(self, reason: str) -> None:
        """Ends the session and waits until its threads and its connection have; safe twice and unstarted.

        The caller may be cancelled: it is ended all the same.
        """
        if self._closing is None:
            self.ended = reason
            self._over.set()
            self._threads.stopping.set()
            self._closing = asyncio.create_task(self._close(reason), name=f"close-{self.label}")
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        try:
            await self.peer.aclose()
        except Exception:  # noqa: BLE001 - its threads must end, whatever became of its connection
            self._log.exception("the connection did not close well")
        try:
            # `Pipeline.close` waits for a frame that is being drawn.
            await in_background(f"close-{self.label}", self._join)
        finally:
            self._metrics.forget(self.label)
        downlink = self.downlink
        self._log.info("ended: %s (%d frames, dropped %s)", reason, downlink.rendered, downlink.dropped)

    def _join(self) -> None:
        self.pipeline.close()
        self._threads.join()
        self.uplink.close()

    def _peer_state(self, state: str) -> None:
        self._log.debug("connection %s", state)
        if state == "connected":
            self.liveness.connected()
        elif state in ("failed", "closed"):
            self._ask_end("the connection failed" if state == "failed" else "the peer left")

    def _thread_failed(self, name: str) -> None:
        self._call_on_loop(self._ask_end, f"the {name} thread failed")

    def _ask_end(self, reason: str) -> None:
        if not self._end_asked and not self.ended:
            self._end_asked = True
            self._on_end(self, reason)
