"""All sessions of a server: admitted, watched, ended; speakers opened on first request."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.speaker_folders import UnknownSpeakerError
from models.time_base import FRAME_RATE_HZ

from ..pipeline.clock import CpuClock, MonotonicClock, SystemClock, SystemCpuClock
from ..pipeline.frame_cost import MEAN_OVER_FRAMES, RunningCost
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.onnx_engine import EngineTimeoutError
from ..pipeline.run_watch import RUN_WATCH
from ..pipeline.stage_times import Work
from ..webrtc.sdp_offer import Offer
from . import memory
from .admission import Admission, Refusal
from .background import in_background
from .metrics import Metrics
from .session import Session, SessionSettings
from .speaker_list import SpeakerEntry, SpeakerList

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 60.0  # between two measurements or openings of a speaker that was refused
_WATCH_S = 0.5
MAX_OPENING = 3  # speakers at once: one that hangs blocks no other, and many would take the cores
# A stopped server is gone within five seconds; one more is the HTTP server's.
_CLOSE_S = 3.0  # of all sessions together
_CLOSE_SPEAKERS_S = 0.5
_STOPPING = Refusal(reason="the server is stopping", retry_after_s=30)


class FullError(Exception):
    """Admission refused a session."""

    def __init__(self, refusal: Refusal) -> None:
        """Keeps the refusal."""
        self.refusal = refusal
        super().__init__(refusal.reason)


class EndedError(Exception):
    """A session ended before its offer was answered; the log says why."""


def _close_all(speakers: Sequence[LoadedSpeaker]) -> None:
    for loaded in speakers:
        loaded.close()


@dataclass(frozen=True, kw_only=True)
class _Load:
    """CPU time of the process and of its sessions up to a moment."""

    at_s: float
    process_s: float  # CPU time
    work: dict[str, tuple[int, Work]]  # by session: its render size, and what its stages did


class Sessions:
    """Every session of a server. Lives on the event loop."""

    def __init__(
        self,
        open_bundle: Callable[[str], LoadedSpeaker],
        default_speaker: LoadedSpeaker,
        settings: SessionSettings,
        admission: Admission,
        metrics: Metrics,
        *,
        speakers: SpeakerList | None = None,
        clock: MonotonicClock | None = None,
        cpu: CpuClock | None = None,
        on_cpu: Callable[[LoadedSpeaker], LoadedSpeaker] | None = None,
    ) -> None:
        """Begins without a session; `start` begins to watch.

        Args:
            open_bundle: opens a speaker by the path of its bundle; called in a thread.
            default_speaker: open already.
            settings: what every session is made with.
            admission: control of CPU and GPU time.
            metrics: where figures go.
            speakers: those that can be asked for.
            clock: of the peers' timeouts.
            cpu: of the process's CPU time.
            on_cpu: opens a speaker anew that the CPU draws; called in a thread, where the GPU failed;
                None: its sessions end.
        """
        self.default_speaker = default_speaker.name
        self._default = default_speaker
        self.metrics = metrics
        self._open_bundle = open_bundle
        self._loaded = {default_speaker.name: default_speaker}
        self._opening_places = asyncio.Semaphore(MAX_OPENING)
        self._opening: dict[str, asyncio.Task[LoadedSpeaker]] = {}
        self._settings = settings
        self._admission = admission
        self._speakers = speakers or SpeakerList()
        self._clock = clock or SystemClock()
        self._sessions: dict[str, Session] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False
        self._on_cpu = on_cpu
        self._falling_back: asyncio.Task[None] | None = None
        self.gpu_failure = ""
        """Why the GPU draws no more; empty while it does, or where there is none."""
        self._reclaim = False  # whether a session ended since memory was reclaimed
        self._cpu = cpu or SystemCpuClock()
        self._running: dict[tuple[str, str], RunningCost] = {}  # by speaker and what draws it
        self._opened_since = False  # whether a speaker was opened since CPU time was last apportioned
        self._remeasured_s: dict[tuple[str, str], float] = {}  # when a speaker was measured anew
        self._endless: dict[str, tuple[EngineTimeoutError, float]] = {}  # until when it is not tried
        self._remeasuring: set[asyncio.Task[None]] = set()
        self._overhead_ms: float | None = None  # CPU time outside the stages, for each session's frame
        self._load = _Load(at_s=self._clock.now_s(), process_s=self._cpu.process_s(), work={})
        metrics.room_core_s.set(admission.room_ms / 1000)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._sessions)

    @property
    def closed(self) -> bool:
        """Whether no session is admitted any more."""
        return self._closed

    @property
    def falling_back(self) -> bool:
        """Whether the CPU is being made ready because the GPU failed."""
        return self._falling_back is not None and not self._falling_back.done()

    @property
    def drawable(self) -> bool:
        """Whether the default speaker can be drawn; no more where the GPU failed and the CPU cannot."""
        return self.default_speaker in self._loaded

    @property
    def device(self) -> str:
        """The rendering device of the default speaker, for display."""
        return self._loaded.get(self.default_speaker, self._default).device

    def start(self) -> None:
        """Begins to watch the sessions."""
        self._watcher = asyncio.create_task(self._watch(), name="sessions")

    async def speakers(self) -> list[SpeakerEntry]:
        """Returns the speakers that can be asked for, the default one first."""
        speaker = self._default.speaker
        default = SpeakerEntry(
            name=speaker.name, synthetic=speaker.synthetic, image_size_px=speaker.image_size_px
        )
        found = await in_background("speakers", self._speakers.entries)
        return [default, *(entry for entry in found if entry.name != default.name)]

    async def open(self, speaker: str, offer: Offer) -> tuple[Session, str]:
        """Returns a new session and its answer's SDP.

        Raises:
            FullError: no room.
            UnknownSpeakerError: no such speaker.
            BundleError, EngineError, SceneError, InputError: a broken one.
            EndedError: it was over as it began.
            OfferError, OSError: see `Session.answer`.
        """
        loaded = await self._loaded_speaker(speaker)
        if self._closed:
            raise FullError(_STOPPING)
        session = self._admit(loaded)
        try:
            answer = await session.answer(offer)
        except BaseException as failure:
            await self.end(session.id, "the offer failed")
            if self._closed and isinstance(failure, Exception):
                raise FullError(_STOPPING) from None
            raise
        if session.ended:
            raise FullError(_STOPPING) if self._closed else EndedError(session.ended)
        return session, answer

    def get(self, session_id: str) -> Session | None:
        """Returns a session, None if there is none of that id."""
        return self._sessions.get(session_id)

    async def end(self, session_id: str, reason: str) -> bool:
        """Ends a session and waits for that; returns whether there was one of that id.

        Who waits may be cancelled: it is ended all the same.
        """
        ending = self._begin_end(session_id, reason)
        if ending is None:
            return False
        await asyncio.shield(ending)
        return True

    def end_soon(self, session: Session, reason: str) -> None:
        """Begins to end a session."""
        self._begin_end(session.id, reason)

    async def aclose(self) -> None:
        """Ends all sessions and the speakers; a second time, or unstarted, it is safe."""
        self._closed = True
        RUN_WATCH.terminate_all()
        watcher, self._watcher = self._watcher, None
        opening = [
            *self._opening.values(),
            *self._remeasuring,
            *([self._falling_back] if self._falling_back else []),
        ]
        for task in [*opening, *([watcher] if watcher is not None else [])]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for session_id in list(self._sessions):
            self._begin_end(session_id, "server stopping")
        if self._ending:
            _, late = await asyncio.wait(self._ending, timeout=_CLOSE_S)
            if late:
                log.error("%d sessions did not end within %.0f s", len(late), _CLOSE_S)
        speakers, self._loaded = list(self._loaded.values()), {}
        if speakers:
            closing = in_background("close-speakers", lambda: _close_all(speakers))
            await asyncio.wait([closing], timeout=_CLOSE_SPEAKERS_S)

    # Speakers -----------------------------------------------------------------------------------------

    async def _loaded_speaker(self, name: str) -> LoadedSpeaker:
        if self._falling_back is not None:
            await asyncio.wait([self._falling_back])
        if self._closed:
            raise FullError(_STOPPING)
        if name in self._loaded:
            return self._loaded[name]
        error, until_s = self._endless.get(name, (None, 0.0))
        if error is not None and self._clock.now_s() < until_s:  # it took a core, and would again
            raise error.with_traceback(None)
        if name not in self._opening:
            task = asyncio.create_task(self._open_speaker(name), name="open-speaker")
            self._opening[name] = task
            task.add_done_callback(lambda _: self._opening.pop(name, None))
        # A caller may be cancelled; the others still await the speaker.
        loaded = await asyncio.shield(self._opening[name])
        return self._loaded.get(name, loaded)  # the CPU may draw it by now

    async def _open_speaker(self, name: str) -> LoadedSpeaker:
        try:
            path = await in_background("speakers", lambda: self._speakers.path_of(name))
            if path is None:
                raise await self._unknown(name)
            async with self._opening_places:
                self._opened_since = True
                loaded = await in_background("open-speaker", lambda: self._open_bundle(str(path)))
        except asyncio.CancelledError:  # by `aclose` alone
            raise FullError(_STOPPING) from None
        except EngineTimeoutError as error:
            self._endless[name] = (error, self._clock.now_s() + LOOK_AGAIN_S)
            raise
        self._loaded[name] = loaded
        log.info("speaker %s is ready, %d px to begin with", name, loaded.start_px)
        if loaded.on_gpu and self.gpu_failure:  # meanwhile
            self.gpu_lost(self.gpu_failure)
        return loaded

    async def _unknown(self, name: str) -> UnknownSpeakerError:
        names = ", ".join(entry.name for entry in await self.speakers())
        return UnknownSpeakerError(f"expected one of {names}, got {name[:80]!r}; /speakers lists them")

    # Without the GPU ----------------------------------------------------------------------------------

    def gpu_lost(self, reason: str) -> None:
        """Begins to move sessions from the GPU to the CPU; frames are dropped meanwhile.

        Sessions go on at the smallest size while the CPU has room for them, the oldest first; the others end.
        """
        self.gpu_failure = reason
        self.metrics.gpu_draws.set(0)
        if not self.falling_back and not self._closed:
            self._falling_back = asyncio.create_task(self._fall_back(), name="fall-back")

    async def _fall_back(self) -> None:
        while lost := next((item for item in self._loaded.items() if item[1].on_gpu), None):
            name, old = lost
            try:
                async with self._opening_places:
                    self._opened_since = True
                    new = await in_background(f"cpu-{name}", functools.partial(self._open_on_cpu, old))
            except Exception:  # whatever it is, the other speakers and the server live on
                log.exception("the GPU failed, and the CPU cannot draw %s", name)
                del self._loaded[name]
                self._move(old, None)
            else:
                self._loaded[name] = new
                self._move(old, new)
            await in_background(f"close-{name}", old.close)

    def _open_on_cpu(self, loaded: LoadedSpeaker) -> LoadedSpeaker:
        if self._on_cpu is None:
            raise RuntimeError("no way to draw on the CPU was given")
        return self._on_cpu(loaded)

    def _move(self, old: LoadedSpeaker, new: LoadedSpeaker | None) -> None:
        for session in [session for session in self._sessions.values() if session.loaded is old]:
            if new is None:
                self.end_soon(session, "the GPU failed, and the CPU cannot draw this speaker")
                continue
            refusal = self._admission.admit(session=session.id, floor_ms=self._floor_ms(new))
            if refusal is None:
                session.move_to(new)
            else:
                self.end_soon(session, "the GPU failed, and the CPU has no room for this session")

    # Sessions -----------------------------------------------------------------------------------------

    def _admit(self, loaded: LoadedSpeaker) -> Session:
        session_id = secrets.token_urlsafe(18)
        refusal = self._admission.admit(
            session=session_id, floor_ms=self._floor_ms(loaded), gpu_ms=loaded.gpu_ms
        )
        if refusal is not None:
            self._remeasure(loaded)
            raise FullError(refusal)
        try:
            session = Session(
                session_id, loaded, self._settings, self.metrics, on_end=self.end_soon, clock=self._clock
            )
        except BaseException:
            self._admission.leave(session_id)
            raise
        self._sessions[session_id] = session
        self.metrics.sessions_active.set(len(self))
        return session

    def _begin_end(self, session_id: str, reason: str) -> asyncio.Task[None] | None:
        session = self._sessions.pop(session_id, None)
        if session is None:
            return None
        self.metrics.sessions_active.set(len(self))
        self.metrics.sessions.labels(reason).inc()
        task = asyncio.create_task(self._finish(session, reason), name=f"end-{session.label}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _finish(self, session: Session, reason: str) -> None:
        try:
            await session.aclose(reason)
        except Exception:  # a task's outermost frame
            log.exception("session %s did not end well", session.label)
        finally:
            # Its threads drew until now: only now is there room for another.
            self._admission.leave(session.id)
            self._reclaim = True

    async def _watch(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            rounds += 1
            try:
                self.reap_and_measure(apportion_cpu=rounds % 2 == 0)
                if self._reclaim:
                    self._reclaim = False
                    await in_background("reclaim", memory.reclaim)
            except Exception:  # a task's outermost frame: the next round may do better
                log.exception("watching the sessions failed")

    def reap_and_measure(self, *, apportion_cpu: bool) -> None:
        """Ends sessions that have lost their peers.

        Args:
            apportion_cpu: also update metrics, and apportion CPU time to sessions.
        """
        for session in list(self._sessions.values()):
            try:
                reason = session.check(self._clock.now_s())
                if reason is None and apportion_cpu:
                    session.telemetry.update_metrics()
            except Exception:  # the others are to be watched all the same
                log.exception("watching session %s failed", session.label)
                reason = "it could not be watched"
            if reason is not None:
                self.end_soon(session, reason)
        if apportion_cpu:
            self._apportion_cpu()

    def _apportion_cpu(self) -> None:
        """Tells admission the cost of each session: the mean of its stages, and a share of the overhead.

        The stages count by frame, the overhead (WebRTC, encoding, sound) by time: a session that drops frames
        does not look cheaper than it is.
        """
        before, self._load = self._load, self._load_now()
        now = self._load
        spent_s = now.process_s - before.process_s
        media_frames = (now.at_s - before.at_s) * FRAME_RATE_HZ
        for session_id, (size_px, work) in now.work.items():
            size_before, work_before = before.work.get(session_id, (size_px, Work()))
            core_s, frames = work.core_s - work_before.core_s, work.frames - work_before.frames
            spent_s -= core_s
            if frames > 0 and size_before == size_px:
                loaded = self._sessions[session_id].loaded
                self._running_cost(loaded).add(size_px, frames=frames, core_ms=core_s * 1000 / frames)
        # Speakers that were opened, and sessions that came or went meanwhile, are not overhead of the others.
        if now.work and now.work.keys() == before.work.keys() and media_frames > 0 and not self._opened_since:
            overhead_ms = max(spent_s, 0.0) * 1000 / (media_frames * len(now.work))
            mean_ms = overhead_ms if self._overhead_ms is None else self._overhead_ms
            self._overhead_ms = mean_ms + (overhead_ms - mean_ms) * min(media_frames / MEAN_OVER_FRAMES, 1.0)
        self._opened_since = bool(self._opening or self._remeasuring or self.falling_back)
        for session_id, (size_px, _) in now.work.items():
            loaded = self._sessions[session_id].loaded
            self._admission.measured(
                session_id, core_ms=self._core_ms(loaded, size_px), at_floor_ms=self._floor_ms(loaded)
            )
        self.metrics.taken_core_s.set(self._admission.floor_ms / 1000)

    def _remeasure(self, loaded: LoadedSpeaker) -> None:
        """Begins to measure anew a speaker that was refused and never ran: the first measurement may err."""
        key = (loaded.name, loaded.device)
        last_s = self._remeasured_s.get(key, float("-inf"))
        if self._running_cost(loaded).known or self._closed or self._clock.now_s() - last_s < LOOK_AGAIN_S:
            return
        self._remeasured_s[key] = self._clock.now_s()
        task = asyncio.create_task(self._measure_anew(loaded), name=f"measure-{loaded.name}")
        self._remeasuring.add(task)
        task.add_done_callback(self._remeasuring.discard)

    async def _measure_anew(self, loaded: LoadedSpeaker) -> None:
        try:
            async with self._opening_places:  # it takes the cores, too
                self._opened_since = True
                core_ms = await in_background(f"measure-{loaded.name}", loaded.remeasure_ms)
        except Exception:  # a task's outermost frame: the first measurement stands
            log.exception("measuring %s anew failed", loaded.name)
            return
        floor_px = loaded.sizes_px[-1]
        if self._running_cost(loaded).known:  # it has run meanwhile, which is more accurate
            return
        if core_ms < loaded.core_ms(floor_px):  # a disturbed measurement is larger, never smaller
            self._running_cost(loaded).add(floor_px, frames=1, core_ms=core_ms)

    def _load_now(self) -> _Load:
        return _Load(
            at_s=self._clock.now_s(),
            process_s=self._cpu.process_s(),
            work={session_id: (s.render_px, s.work()) for session_id, s in self._sessions.items()},
        )

    def _running_cost(self, loaded: LoadedSpeaker) -> RunningCost:
        return self._running.setdefault((loaded.name, loaded.device), RunningCost())

    def _core_ms(self, loaded: LoadedSpeaker, size_px: int) -> float:
        """Returns the core-milliseconds of a session's frame: as it ran lately, else as measured."""
        return self._running_cost(loaded).core_ms(size_px, loaded.core_ms) + (self._overhead_ms or 0.0)

    def _floor_ms(self, loaded: LoadedSpeaker) -> float:
        return self._core_ms(loaded, loaded.sizes_px[-1])
