"""Who is in: sessions opened, watched and ended; speakers opened when first asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from models.speaker import FoundSpeaker, list_speakers

from .admission import Admission, Refusal
from .clock import MonotonicClock, SystemClock
from .metrics import Metrics
from .offer import Offer
from .session import Session, SessionSettings
from .speaker_host import SpeakerHost

log = logging.getLogger(__name__)

_WATCH_S = 0.5
_CLOSE_S = 3.5  # of all sessions together: a stopped server is gone within five seconds


class FullError(Exception):
    """No room for one more session now."""

    def __init__(self, refusal: Refusal) -> None:
        """Keeps the refusal."""
        self.refusal = refusal
        super().__init__(refusal.reason)


@dataclass(kw_only=True)
class _Load:
    """What the process takes, to weigh the sessions by."""

    cpu_s: float = field(default_factory=time.process_time)
    at_s: float = 0.0


class Sessions:
    """Every session of a server. Lives on the event loop."""

    def __init__(
        self,
        open_host: Callable[[str], SpeakerHost],
        default_speaker: SpeakerHost,
        settings: SessionSettings,
        admission: Admission,
        metrics: Metrics,
        *,
        find: Callable[[], list[FoundSpeaker]] = list_speakers,
        clock: MonotonicClock | None = None,
    ) -> None:
        """Begins with nobody; `start` begins to watch.

        Args:
            open_host: opens a speaker by name; called in a thread.
            default_speaker: open already.
            settings: what every session is made with.
            admission: decides who may come in.
            metrics: where figures go.
            find: the speakers there are.
            clock: tells when a peer has been silent for long.
        """
        self.default_speaker = default_speaker.name
        self.metrics = metrics
        self._open_host = open_host
        self._hosts = {default_speaker.name: default_speaker}
        self._host_lock = asyncio.Lock()
        self._settings = settings
        self._admission = admission
        self._find = find
        self._clock = clock or SystemClock()
        self._sessions: dict[str, Session] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False
        self._load = _Load(at_s=self._clock.now_s())

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._sessions)

    def start(self) -> None:
        """Begins to watch the sessions."""
        self._watcher = asyncio.create_task(self._watch(), name="sessions")

    def speakers(self) -> list[FoundSpeaker]:
        """Returns the speakers that can be asked for."""
        return self._find()

    async def open(self, speaker: str, offer: Offer) -> tuple[Session, str]:
        """Returns a new session and its answer's SDP.

        Raises:
            FullError: no room.
            UnknownSpeakerError: no such speaker.
            BundleError, EngineError, SceneError, InputError: a broken one.
            OfferError, OSError: see `Session.answer`.
        """
        if self._closed:
            raise FullError(Refusal(reason="the server is stopping", retry_after_s=30))
        host = await self._host(speaker)
        session = Session(host, self._settings, self.metrics, on_end=self._end_soon, clock=self._clock)
        refusal = self._admission.admit(session=session.id, floor_ms=host.core_ms(host.sizes_px[-1]))
        if refusal is not None:
            await session.aclose("no room")
            raise FullError(refusal)
        self._sessions[session.id] = session
        self.metrics.sessions_active.set(len(self))
        try:
            return session, await session.answer(offer)
        except BaseException:
            await self.end(session.id, "the offer failed")
            raise

    def get(self, session_id: str) -> Session | None:
        """Returns a session, None if there is none of that id."""
        return self._sessions.get(session_id)

    async def end(self, session_id: str, reason: str) -> bool:
        """Ends a session; returns whether there was one of that id."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return False
        self.metrics.sessions_active.set(len(self))
        self.metrics.sessions.labels(reason).inc()
        try:
            await session.aclose(reason)
        finally:
            # Its threads drew until now: only now is there room for another.
            self._admission.leave(session_id)
        return True

    async def aclose(self) -> None:
        """Ends all sessions and the speakers; a second time, or unstarted, it is safe."""
        self._closed = True
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(
                    *(self.end(session_id, "server stopping") for session_id in list(self._sessions)),
                    *self._ending,
                    return_exceptions=True,
                )
        hosts, self._hosts = list(self._hosts.values()), {}
        for host in hosts:
            host.close()

    async def _host(self, name: str) -> SpeakerHost:
        if name not in self._hosts:
            async with self._host_lock:  # one at a time: opening one takes the cores
                if name not in self._hosts:
                    loop = asyncio.get_running_loop()
                    host = await loop.run_in_executor(None, self._open_host, name)
                    self._hosts[name] = host
                    log.info("speaker %s is ready, %d px to begin with", name, host.start_px)
        return self._hosts[name]

    def _end_soon(self, session: Session, reason: str) -> None:
        task = asyncio.create_task(self._end_task(session.id, reason), name=f"end-{session.label}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_task(self, session_id: str, reason: str) -> None:
        try:
            await self.end(session_id, reason)
        except Exception:  # a task's outermost frame
            log.exception("a session did not end well")

    async def _watch(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                rounds += 1
                for session in list(self._sessions.values()):
                    reason = session.check(self._clock.now_s())
                    if reason is not None:
                        self._end_soon(session, reason)
                    elif rounds % 2 == 0:
                        session.update_metrics()
                if rounds % 2 == 0:
                    self._weigh()
            except Exception:  # a task's outermost frame: the next round may do better
                log.exception("watching the sessions failed")

    def _weigh(self) -> None:
        """Shares out what the process took in the last second, by what each session should have taken."""
        now_s, cpu_s = self._clock.now_s(), time.process_time()
        frames = (now_s - self._load.at_s) * 25
        spent_ms = (cpu_s - self._load.cpu_s) * 1000 / max(frames, 1.0)
        self._load = _Load(cpu_s=cpu_s, at_s=now_s)
        expected_ms = {session_id: s.core_ms() for session_id, s in self._sessions.items()}
        total_ms = sum(expected_ms.values())
        for session_id, ms in expected_ms.items():
            session = self._sessions[session_id]
            core_ms = spent_ms * ms / total_ms
            smaller_ms = ms - session.host.core_ms(session.host.sizes_px[-1])
            self._admission.measured(session_id, core_ms=core_ms, at_floor_ms=max(core_ms - smaller_ms, 0.0))
