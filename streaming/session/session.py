"""One peer's stay: its microphone in, its speaker's sound and pictures out, all by one media clock.

    packets -> jitter buffer -> [media thread, every 20 ms] -> pipeline -> [video thread] -> packets
                                      | sound, kept until its frame is due -> Opus -> packets

The event loop moves packets and nothing else; what computes has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkFailureError, Stopped
from ..pipeline.clock import FRAME_RATE_HZ, MonotonicClock, SystemClock
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.pipeline import Frame, Pipeline, QueueBounds
from ..pipeline.queues import Overflow
from ..pipeline.render_size import SMALLEST_RENDER_PX
from ..pipeline.stage_times import Work
from ..webrtc.media_schedule import (
    SOUND_RATE_HZ,
    TICK_S,
    TICKS_PER_FRAME,
    MediaSchedule,
    slew_towards,
    video_timestamp,
)
from ..webrtc.neteq import MicrophoneStream
from ..webrtc.opus import OpusEncoder
from ..webrtc.peer import Peer, PeerSettings
from ..webrtc.resample import Decimator
from ..webrtc.rtp_sender import MediaSender
from ..webrtc.sdp_offer import Offer
from ..webrtc.video_encoder import VideoEncoder
from .background import in_background
from .drawing_pace import DrawingPace, slow_note
from .frame_log import FrameLog, FrameRecord, TickLog, TickRecord
from .metrics import Metrics
from .playout_delay import Allowance
from .resolution_controller import Governor

F32 = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

CONNECT_S = 15.0  # an offer that leads to no connection holds its place no longer; in silence, SILENT_S
SILENT_S = 4.0  # without a packet or a word: a peer sends sound and reports, its page pings
LEFT_S = 1.5  # the same once its page has gone
_FRAME_S = 1 / FRAME_RATE_HZ
_TICK_SOUND_SAMPLES = round(SOUND_RATE_HZ * TICK_S)
_JOIN_S = 2.0
_POLL_S = 0.2
# What waits is late: two frames are enough to keep every stage busy.
LIVE_BOUNDS = QueueBounds(audio_ms=400, conditions_ms=80, drawings_ms=80, frames_ms=80)
# A picture that is later than its own length is left out, unless the last one has been seen for so long:
# then a late picture is better than none. It keeps its media time, by which receivers align lips and sound.
MAX_PICTURE_GAP_S = 2 * _FRAME_S
_QUIETEST_DB = -100.0
_LEVEL_TICKS = 10  # of sound whose loudest is told: as much as passes between two telemetries


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What every session of a server is made with."""

    peer: PeerSettings
    bitrate: int  # of the video, bit/s, at most


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    frame: Frame
    payloads: list[bytes]
    encoded_s: float
    due_s: float
    sender: MediaSender


class _SessionLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"session {(self.extra or {})['session']}: {msg}", kwargs


class Session:
    """One peer and everything that serves it. Its methods belong to the event loop."""

    def __init__(
        self,
        session_id: str,
        host: LoadedSpeaker,
        settings: SessionSettings,
        metrics: Metrics,
        *,
        on_end: Callable[[Session, str], None],
        clock: MonotonicClock | None = None,
    ) -> None:
        """Prepares a session; `answer` starts it.

        Args:
            session_id: unguessable: knowing it is the permission to watch the session.
            host: who speaks.
            settings: what every session is made with.
            metrics: where figures go.
            on_end: told once, on the event loop, that the session wants to end, and why; must call `aclose`.
            clock: paces everything.
        """
        self.id = session_id
        self.host = host
        self.label = self.id[:6]  # for logs and metrics: the id itself is a permission
        self.ended = ""  # why, once it has
        self._settings = settings
        self._metrics = metrics
        self._on_end = on_end
        self._clock = clock or SystemClock()
        self._log = _SessionLog(log, {"session": self.label})
        self._loop = asyncio.get_running_loop()
        self.allowance = Allowance.at_start(host.frame_latency_ms)
        self.schedule = MediaSchedule(
            start_s=self._clock.now_s(),
            start_unix_s=time.time(),
            lookahead_frames=host.speaker.lookahead_frames,
            allowance_ticks=self.allowance.ticks,
        )
        self.microphone = MicrophoneStream()
        self.governor = Governor(sizes_px=host.sizes_px, start_px=host.start_px)
        self._renderer = host.renderers()
        self.pipeline = Pipeline(
            host.speaker,
            self._renderer(host.start_px),
            networks=host.networks,
            overflow=Overflow.DROP_OLDEST,
            bounds=LIVE_BOUNDS,
            seed=secrets.randbits(32),
            clock=self._clock,
            outlives_gpu=True,
            # Half of what makes a frame late is left for a drawing that takes longer than foretold.
            deadline_s=lambda frame: self.schedule.frame_due_s(frame) + _FRAME_S / 2,
            on_network_failure=self._note_network_failure,
        )
        self.peer = Peer(
            settings.peer,
            self.schedule,
            on_packet=self._take_packet,
            on_keyframe_wanted=self._want_keyframe,
            on_bandwidth=self._limit_bitrate,
            on_state=self._peer_state,
            on_malformed=self._count_malformed,
        )
        self._encoder: VideoEncoder | None = None
        self._ticks = TickLog()
        self._frames = FrameLog()
        self._levels_db: deque[float] = deque(maxlen=_LEVEL_TICKS)
        self._rendered = 0
        self._dropped = {"skipped": 0, "late": 0, "bandwidth": 0}
        self._pace = DrawingPace()
        self._was_slow = False
        self._networks_told: set[str] = set()  # whose failure the log has
        self._shown_s = float("-inf")  # when the last picture left, or will
        self._sent_times_s: deque[float] = deque(maxlen=4 * FRAME_RATE_HZ)
        self._stopping = threading.Event()  # for the threads; the event loop waits for `_over`
        self._over = asyncio.Event()
        self._threads: list[threading.Thread] = []
        self._created_s = self._heard_s = self._clock.now_s()
        self._packets_seen = 0
        self._sockets = 0
        self._had_socket = False
        self._was_connected = False
        self._end_asked = False
        self._malformed_told = False
        self._closing: asyncio.Task[None] | None = None
        self._lost_told = 0
        self._concealed_told_ms = 0.0

    # The event loop's side ----------------------------------------------------------------------------

    async def answer(self, offer: Offer) -> str:
        """Starts the session and returns the answer's SDP.

        Raises:
            OfferError: the offer cannot be answered; close the session.
            OSError: no port.
        """
        self._spawn("media", self._run_media)
        self.pipeline.start()
        sdp = await self.peer.answer(offer)
        if self.ended:
            return sdp
        self._spawn("video", self._run_video)
        self._log.info(
            "%s for a new peer, %s, %d px, delay %.0f ms",
            self.host.name,
            self.peer.codec.name,
            self.governor.size_px,
            self.schedule.delay_ms,
        )
        return sdp

    def check(self, now_s: float) -> str | None:
        """Returns why the session is over, None while its peer shows signs of life.

        Args:
            now_s: on the session's clock; to be asked about twice a second.
        """
        packets = self.peer.packets_received
        if packets != self._packets_seen:
            self._packets_seen, self._heard_s = packets, now_s
        if not self._was_connected:
            given_up = now_s - self._created_s > CONNECT_S or now_s - self._heard_s > SILENT_S
            return "no connection came about" if given_up else None
        page_left = self._had_socket and not self._sockets
        if now_s - self._heard_s > (LEFT_S if page_left else SILENT_S):
            return "the peer left" if page_left else "timed out"
        return None

    def move_to(self, host: LoadedSpeaker) -> None:
        """Goes on with a host of the same speaker that the CPU draws, at its smallest size."""
        self.host = host
        self.allowance = Allowance.at_start(host.frame_latency_ms)
        self.schedule.allowance_ticks = self.allowance.ticks
        self.governor = Governor(sizes_px=host.sizes_px, start_px=host.sizes_px[-1])
        self.governor.note = "the GPU failed, the CPU draws"
        self._renderer = host.renderers()
        self.pipeline.renderer = self._renderer(self.governor.size_px)
        self._log.info("drawn by %s from now on, %d px", host.device, self.governor.size_px)

    @property
    def sockets(self) -> int:
        """How many pages listen."""
        return self._sockets

    def socket_opened(self) -> None:
        """Notes that the peer's page listens."""
        self._sockets += 1
        self._had_socket = True

    def socket_heard(self) -> None:
        """Notes that it said something."""
        self._heard_s = self._clock.now_s()

    def socket_closed(self) -> None:
        """Notes that it listens no longer."""
        self._sockets -= 1

    async def wait_ended(self, timeout_s: float) -> bool:
        """Returns whether the session is over; waits for that, but no longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        return self._over.is_set()

    def hello(self) -> dict[str, Any]:
        """Returns what a page is told first."""
        return {
            "type": "hello",
            "session_id": self.id,
            "speaker": self.host.name,
            "server_ms": self.now_unix_ms(),
            "fps": FRAME_RATE_HZ,
            "image_size_px": self.host.speaker.image_size_px,
            "render_px": self.governor.size_px,
            "render_sizes_px": list(self.host.sizes_px),
            "lookahead_ms": self.host.speaker.lookahead_frames * 1000 / FRAME_RATE_HZ,
            "delay_ms": self.schedule.delay_ms,
            "codec": self.peer.codec.name,
        }

    def telemetry(self, after_frame: int) -> tuple[dict[str, Any], int]:
        """Returns what a page is told five times a second, and the last frame in it."""
        records = self._frames.after(after_frame)
        now_s = self._clock.now_s()
        recent = [at_s for at_s in list(self._sent_times_s) if now_s - at_s <= 2.0]
        microphone = self.microphone
        levels_db = list(self._levels_db)
        message = {
            "type": "telemetry",
            "server_ms": self.now_unix_ms(),
            "fps": round((len(recent) - 1) / (recent[-1] - recent[0]), 2) if len(recent) > 2 else 0.0,
            "render_px": self.governor.size_px,
            "render_note": self.governor.note,
            "delay_ms": self.schedule.delay_ms,
            "notes": self._notes(now_s),
            "frames_rendered": self._rendered,
            "frames_dropped": dict(self._dropped),
            "microphone": {
                "depth_ms": round(microphone.depth_ms, 1),
                "target_ms": round(microphone.target_ms, 1),
                "lost": microphone.packets_lost,
                "concealed_ms": round(microphone.concealed_ms),
                "level_db": round(max(levels_db, default=_QUIETEST_DB), 1),
            },
            "frames": [self._described(record) for record in records],
        }
        return message, records[-1].index if records else after_frame

    def now_unix_ms(self) -> float:
        """Returns the wall time by the session's clock, which all its times are told by."""
        return self.schedule.unix_s(self._clock.now_s()) * 1000

    @property
    def render_px(self) -> int:
        """Side of what the raymarcher draws now."""
        return self.governor.size_px

    def work(self) -> Work:
        """Returns what the stages of its frames did so far."""
        return self.pipeline.times.work()

    def update_metrics(self) -> None:
        """Brings gauges and counters up to date; ask about once a second."""
        metrics, microphone = self._metrics, self.microphone
        self._notes(self._clock.now_s())
        metrics.render_size_px.labels(self.label).set(self.governor.size_px)
        metrics.microphone_depth.labels(self.label).set(microphone.depth_ms / 1000)
        if self.peer.video is not None and self.peer.video.round_trip_s is not None:
            metrics.round_trip.labels(self.label).set(self.peer.video.round_trip_s)
        lost, concealed_ms = microphone.packets_lost, microphone.concealed_ms
        metrics.microphone_lost.inc(max(lost - self._lost_told, 0))  # a late packet was not lost after all
        metrics.microphone_concealed.inc(max(concealed_ms - self._concealed_told_ms, 0) / 1000)
        self._lost_told, self._concealed_told_ms = lost, concealed_ms

    async def aclose(self, reason: str) -> None:
        """Ends the session and waits until nothing of it is left; a second time, or unstarted, it is safe.

        Who waits may be cancelled: it is ended all the same.
        """
        if self._closing is None:
            self.ended = reason
            self._over.set()
            self._stopping.set()
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
            self._encoder = None
            self._metrics.forget(self.label)
        self._log.info("ended: %s (%d frames, dropped %s)", reason, self._rendered, self._dropped)

    def _join(self) -> None:
        self.pipeline.close()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                self._log.error("thread %s did not end within %.0f s", thread.name, _JOIN_S)
        self._threads.clear()
        self.microphone.close()

    def _peer_state(self, state: str) -> None:
        self._log.debug("connection %s", state)
        if state == "connected":
            self._was_connected, self._heard_s = True, self._clock.now_s()
        elif state in ("failed", "closed"):
            self._ask_end("the connection failed" if state == "failed" else "the peer left")

    def _ask_end(self, reason: str) -> None:
        if not self._end_asked and not self.ended:
            self._end_asked = True
            self._on_end(self, reason)

    def _take_packet(self, sequence: int, timestamp: int, payload: bytes, arrived_s: float) -> None:
        self.microphone.put(sequence=sequence, timestamp=timestamp, payload=payload, arrived_s=arrived_s)

    def _count_malformed(self, kind: str, what: str) -> None:
        self._metrics.malformed_packets.labels(kind).inc()
        if not self._malformed_told:
            self._malformed_told = True
            self._log.warning(
                "a malformed packet was dropped (%s: %s); more are only counted", kind, what[:100]
            )

    def _want_keyframe(self) -> None:
        if self._encoder is not None:
            self._encoder.want_keyframe()

    def _limit_bitrate(self, bitrate: int) -> None:
        if self._encoder is not None:
            self._encoder.limit_bitrate(bitrate)

    def _notes(self, now_s: float) -> list[str]:
        """Returns what a page tells of a session that is not as it should be; the log has it, too."""
        notes = []
        slow_fps = self._pace.slow_fps(now_s)
        if (slow_fps is not None) != self._was_slow:
            self._was_slow = slow_fps is not None
            if slow_fps is not None:
                self._log.warning(
                    "draws %.1f pictures a second of %d, at %d px; the sound goes on",
                    slow_fps,
                    FRAME_RATE_HZ,
                    self.governor.size_px,
                )
            else:
                self._log.info("draws every picture again, at %d px", self.governor.size_px)
        if slow_fps is not None:
            smallest = self.governor.size_px <= SMALLEST_RENDER_PX or len(self.host.sizes_px) > 1
            notes.append(slow_note(slow_fps, on_gpu=self.host.on_gpu, can_draw_smaller=not smallest))
        if self.pipeline.network_failures:
            files = " and ".join(sorted(self.pipeline.network_failures))
            notes.append(f"{self.host.name}'s {files} fails; the last face that it gave is held.")
        return notes

    def _note_network_failure(self, failure: NetworkFailureError) -> None:
        """Counts it; for the motion thread."""
        self._metrics.network_failures.labels(self.host.name, failure.network).inc()
        if failure.network not in self._networks_told:
            self._networks_told.add(failure.network)
            self._log.error("%s; the last good face holds, the sound goes on", failure)

    def _described(self, record: FrameRecord) -> dict[str, Any]:
        def unix_ms(at_s: float | None) -> float | None:
            return None if at_s is None else round(self.schedule.unix_s(at_s) * 1000, 2)

        captured_s = None
        if record.sound_timestamp is not None and self.peer.microphone is not None:
            captured_s = self.peer.microphone.captured_unix_s(record.sound_timestamp)
        return {
            "rtp": record.rtp,
            "captured_ms": None if captured_s is None else round(captured_s * 1000, 2),
            "arrived_ms": unix_ms(record.arrived_s),
            "buffered_ms": unix_ms(record.buffered_s),
            "windowed_ms": unix_ms(record.windowed_s),
            "rendered_ms": unix_ms(record.finished_s),
            "encoded_ms": unix_ms(record.encoded_s),
            "sent_ms": unix_ms(record.sent_s),
        }

    # The threads' side --------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Stopped:
                pass
            except Exception:  # noqa: BLE001 - a thread's outermost frame
                self._log.exception("the %s thread failed", name)
                self._on_loop(self._ask_end, f"the {name} thread failed")

        thread = threading.Thread(target=guarded, name=f"geneface-{name}-{self.label}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
            self._loop.call_soon_threadsafe(call, *arguments)

    def _run_media(self) -> None:
        decimator, encoder = Decimator(), OpusEncoder()
        waiting: deque[F32] = deque()  # sound until it is due: `sound_delay_ticks` of it
        tick = 0
        while True:
            due_s = self.schedule.tick_s(tick)
            if self._stopping.wait(max(0.0, due_s - self._clock.now_s())):
                return
            self._take_tick(tick, due_s, decimator, encoder, waiting)
            tick += 1

    def _take_tick(
        self, tick: int, due_s: float, decimator: Decimator, encoder: OpusEncoder, waiting: deque[F32]
    ) -> None:
        block = self.microphone.read(due_s)
        self._ticks.add(
            TickRecord(timestamp=block.timestamp, arrived_s=block.arrived_s, buffered_s=self._clock.now_s())
        )
        if block.timestamp is not None:
            self.schedule.slew(slew_towards(self.microphone.depth_ms - self.microphone.target_ms))
        self.pipeline.push_audio(decimator.step(block.samples))
        self._levels_db.append(_level_db(block.samples))
        waiting.append(block.samples)
        # One block a tick, but none or two where the allowance has just changed.
        while len(waiting) > self.schedule.sound_delay_ticks:
            taken_tick = tick + 1 - len(waiting)
            self._send_sound(waiting.popleft(), taken_tick, encoder)

    def _send_sound(self, sound: F32, tick: int, encoder: OpusEncoder) -> None:
        sender = self.peer.sound
        if sender is not None and sender.connected:
            timestamp = tick * _TICK_SOUND_SAMPLES
            self._on_loop(sender.push, [encoder.encode(sound)], timestamp, TICK_S * 1000, _level_db(sound))

    def _run_video(self) -> None:
        encoder = self._encoder = self.peer.codec.open(
            size_px=self.host.speaker.image_size_px, bitrate=self._settings.bitrate
        )
        last: int | None = None
        waiting: deque[_Encoded] = deque()  # until they are due
        while not self._stopping.is_set():
            while waiting and waiting[0].due_s <= self._clock.now_s():
                self._send(waiting.popleft())
            until_due_s = waiting[0].due_s - self._clock.now_s() if waiting else _POLL_S
            try:
                frame = self.pipeline.next_frame(max(until_due_s, 0.0))
            except TimeoutError:
                continue
            if frame is None:
                return
            taken_s = self._clock.now_s()
            self._pace.picture_drawn(taken_s)
            sender = self.peer.video
            if sender is None or not sender.connected:
                continue  # nobody looks yet: nothing is lost
            if last is not None and frame.index > last + 1:
                self._skipped(frame.index - last - 1, before=frame, now_s=taken_s)
            last = frame.index
            due_s = self.schedule.frame_due_s(frame.index)
            if taken_s > due_s + _FRAME_S:
                self._too_slow(taken_s, waiting_helps=True)
                if taken_s - self._shown_s < MAX_PICTURE_GAP_S:
                    self._count_dropped(1, "late")
                    continue
            payloads = encoder.encode(frame.picture, frame.index)
            encoded_s = self._clock.now_s()
            self.pipeline.handling_s = encoded_s - taken_s
            self._shown_s = max(due_s, encoded_s)
            waiting.append(
                _Encoded(frame=frame, payloads=payloads, encoded_s=encoded_s, due_s=due_s, sender=sender)
            )
            self._judge(frame, now_s=encoded_s, slack_ms=(due_s - encoded_s) * 1000)

    def _send(self, encoded: _Encoded) -> None:
        if not encoded.payloads:
            self._count_dropped(1, "bandwidth")
            return
        sent_s = self._clock.now_s()
        timestamp = video_timestamp(encoded.frame.index)
        self._on_loop(encoded.sender.push, encoded.payloads, timestamp, _FRAME_S * 1000)
        self._rendered += 1
        self._sent_times_s.append(sent_s)
        self._metrics.frames_rendered.labels(self.host.name).inc()
        self._note(encoded.frame, encoded.sender.wire_timestamp(timestamp), encoded.encoded_s, sent_s)

    def _judge(self, frame: Frame, *, now_s: float, slack_ms: float) -> None:
        if self.allowance.frame_done(now_s=now_s, slack_ms=slack_ms):
            self._change_allowance()
        if frame.render_px != self.governor.size_px:
            return  # drawn before the last change
        if self.governor.frame_done(now_s=now_s, draw_ms=frame.draw_ms, slack_ms=slack_ms):
            self._change_size()

    def _note(self, frame: Frame, rtp: int, encoded_s: float, sent_s: float) -> None:
        tick = self._ticks.at(frame.index * TICKS_PER_FRAME)
        if tick is None:
            return
        self._frames.add(
            FrameRecord(
                index=frame.index,
                rtp=rtp,
                sound_timestamp=tick.timestamp,
                arrived_s=tick.arrived_s,
                buffered_s=tick.buffered_s,
                windowed_s=frame.windowed_s,
                finished_s=frame.finished_s,
                encoded_s=encoded_s,
                sent_s=sent_s,
            )
        )
        stage = self._metrics.stage
        if tick.arrived_s is not None:
            stage.labels("jitter_buffer").observe(tick.buffered_s - tick.arrived_s)
        stage.labels("lookahead").observe(frame.windowed_s - tick.buffered_s)
        stage.labels("render").observe(frame.finished_s - frame.windowed_s)
        stage.labels("encode").observe(encoded_s - frame.finished_s)
        stage.labels("wait").observe(sent_s - encoded_s)

    def _skipped(self, frames: int, *, before: Frame, now_s: float) -> None:
        """Takes that frames were passed over before `before` was drawn."""
        self._count_dropped(frames, "skipped")
        # More time helps where a moment was busy, not where each drawing takes longer than a frame lasts.
        self._too_slow(now_s, waiting_helps=before.draw_ms <= _FRAME_S * 1000)

    def _too_slow(self, now_s: float, *, waiting_helps: bool) -> None:
        if self.governor.frame_lost(now_s=now_s):
            self._change_size()
        elif waiting_helps and self.allowance.frame_lost(now_s=now_s):
            self._change_allowance()

    def _count_dropped(self, frames: int, reason: str) -> None:
        self._dropped[reason] += frames
        self._metrics.frames_dropped.labels(self.host.name, reason).inc(frames)

    def _change_allowance(self) -> None:
        self.schedule.allowance_ticks = self.allowance.ticks
        self._log.info("delay %.0f ms from now on", self.schedule.delay_ms)

    def _change_size(self) -> None:
        before_px, size_px = self.pipeline.renderer.render_px, self.governor.size_px
        self._metrics.render_size_changes.labels("down" if size_px < before_px else "up").inc()
        self._log.info("draws %d px, %d before (%s)", size_px, before_px, self.governor.note or "room again")
        self.pipeline.renderer = self._renderer(size_px)


def _level_db(samples: F32) -> float:
    """Returns the loudness of samples in dBFS, -100 for silence."""
    mean_square = float(np.dot(samples, samples)) / max(len(samples), 1)
    return max(10 * float(np.log10(mean_square)), _QUIETEST_DB) if mean_square > 1e-10 else _QUIETEST_DB
