"""Frames of the pipeline to the encoder and, when due, to the RTP sender; lateness sets size and delay."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from models.time_base import FRAME_RATE_HZ, FRAME_S

from ..pipeline.clock import MonotonicClock
from ..pipeline.frame_renderer import FrameRenderer
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.pipeline import Frame, Pipeline
from ..webrtc.media_schedule import TICKS_PER_FRAME, MediaSchedule, video_timestamp
from ..webrtc.rtp_sender import MediaSender
from ..webrtc.video_encoder import VideoCodec, VideoEncoder
from .drawing_pace import DrawingPace
from .frame_log import FrameLog, FrameRecord, TickLog
from .metrics import Metrics
from .playout_delay import PlayoutDelay
from .resolution_controller import ResolutionController

_POLL_S = 0.2
# A picture that is late by more than a frame is dropped, unless the last one has been shown for so long: then
# a late one is better than none. It keeps its media time, by which receivers align lips and sound.
MAX_PICTURE_GAP_S = 2 * FRAME_S


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    frame: Frame
    payloads: list[bytes]
    encoded_s: float
    due_s: float
    sender: MediaSender


class Downlink:
    """Encodes and sends pictures; chooses render size and playout delay."""

    def __init__(
        self,
        loaded: LoadedSpeaker,
        schedule: MediaSchedule,
        playout_delay: PlayoutDelay,
        *,
        bitrate: int,
        ticks: TickLog,
        sender: Callable[[], MediaSender | None],
        on_loop: Callable[..., None],
        metrics: Metrics,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        clock: MonotonicClock,
    ) -> None:
        """Prepares it; `pipeline` is to be set before it runs.

        Args:
            loaded: the speaker.
            schedule: says when frames are due.
            playout_delay: that the schedule begins with.
            bitrate: of the video, bit/s, at most.
            ticks: where the sound of frames came from.
            sender: of the pictures; None while there is none.
            on_loop: calls a function with arguments on the event loop.
            metrics: where figures go.
            log: of the session.
            clock: of the schedule.
        """
        self.pipeline: Pipeline
        self.playout_delay = playout_delay
        self.resolution = ResolutionController(
            sizes_px=loaded.sizes_px, start_px=loaded.start_px, pixels=loaded.pixels
        )
        self.renderer: Callable[[int], FrameRenderer] = loaded.renderers()
        self.pace = DrawingPace()
        self.frames = FrameLog()
        self.rendered = 0
        self.drawn_share = 1.0
        """Share of the last picture that was drawn."""
        self._smaller_px: int | None = None  # that it was drawn at, where plates are not there
        self.dropped = {"skipped": 0, "late": 0, "bandwidth": 0}
        self._schedule, self._clock = schedule, clock
        self._size_px, self._bitrate = loaded.speaker.image_size_px, bitrate
        self._name, self._ticks, self._metrics, self._log = loaded.name, ticks, metrics, log
        self._sender, self._on_loop = sender, on_loop
        self._encoder: VideoEncoder | None = None
        self._last: int | None = None
        self._shown_s = float("-inf")  # when the last picture left, or will
        self._sent_times_s: deque[float] = deque(maxlen=4 * FRAME_RATE_HZ)

    @property
    def drawn_px(self) -> int:
        """Side of what the raymarcher draws."""
        return self._smaller_px or self.resolution.size_px

    def move_to(self, loaded: LoadedSpeaker) -> None:
        """Goes on with the same speaker drawn by the CPU, at its smallest size."""
        self.playout_delay = PlayoutDelay.at_start(loaded.frame_latency_ms)
        self._schedule.playout_delay_ticks = self.playout_delay.ticks
        self.resolution = ResolutionController(
            sizes_px=loaded.sizes_px, start_px=loaded.sizes_px[-1], pixels=loaded.pixels
        )
        self.resolution.note = "the GPU failed, the CPU draws"
        self.renderer = loaded.renderers()
        self.pipeline.renderer = self.renderer(self.resolution.size_px)

    def want_keyframe(self) -> None:
        """Requests a keyframe, if an encoder is open."""
        if self._encoder is not None:
            self._encoder.want_keyframe()

    def limit_bitrate(self, bitrate: int) -> None:
        """Passes the receiver's bandwidth estimate (REMB), bit/s, to the encoder."""
        if self._encoder is not None:
            self._encoder.limit_bitrate(bitrate)

    def sent_fps(self, now_s: float) -> float:
        """Returns the frame rate sent over the last two seconds; 0 while there are too few frames."""
        recent = [at_s for at_s in list(self._sent_times_s) if now_s - at_s <= 2.0]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 2 else 0.0

    def run(self, stopping: threading.Event, codec: VideoCodec) -> None:
        """Encodes and sends frames until `stopping` is set or the pipeline ends."""
        encoder = self._encoder = codec.open(size_px=self._size_px, bitrate=self._bitrate)
        waiting: deque[_Encoded] = deque()  # until they are due
        try:
            while not stopping.is_set():
                while waiting and waiting[0].due_s <= self._clock.now_s():
                    self._send(waiting.popleft())
                until_due_s = waiting[0].due_s - self._clock.now_s() if waiting else _POLL_S
                try:
                    frame = self.pipeline.next_frame(max(until_due_s, 0.0))
                except TimeoutError:
                    continue
                if frame is None:
                    return
                if (encoded := self._encode(frame, encoder)) is not None:
                    waiting.append(encoded)
        finally:
            self._encoder = None

    def _encode(self, frame: Frame, encoder: VideoEncoder) -> _Encoded | None:
        taken_s = self._clock.now_s()
        self.pace.picture_drawn(taken_s)
        self.drawn_share = frame.drawn_share
        self._smaller_px = frame.drawn_px if frame.drawn_px < frame.render_px else None
        sender = self._sender()
        if sender is None or not sender.connected:
            return None  # not connected yet: nothing is lost
        last, self._last = self._last, frame.index
        if last is not None and frame.index > last + 1:
            self._skipped(frame.index - last - 1, before=frame, now_s=taken_s)
        due_s = self._schedule.frame_due_s(frame.index)
        if taken_s > due_s + FRAME_S:
            self._too_slow(taken_s, waiting_helps=True)
            if taken_s - self._shown_s < MAX_PICTURE_GAP_S:
                self._count_dropped(1, "late")
                return None
        payloads = encoder.encode(frame.picture, frame.index)
        encoded_s = self._clock.now_s()
        self.pipeline.handling_s = encoded_s - taken_s
        self._shown_s = max(due_s, encoded_s)
        self._judge(frame, now_s=encoded_s, slack_ms=(due_s - encoded_s) * 1000)
        return _Encoded(frame=frame, payloads=payloads, encoded_s=encoded_s, due_s=due_s, sender=sender)

    def _send(self, encoded: _Encoded) -> None:
        if not encoded.payloads:
            self._count_dropped(1, "bandwidth")
            return
        sent_s = self._clock.now_s()
        timestamp = video_timestamp(encoded.frame.index)
        self._on_loop(encoded.sender.push, encoded.payloads, timestamp, FRAME_S * 1000)
        self.rendered += 1
        self._sent_times_s.append(sent_s)
        self._metrics.frames_rendered.labels(self._name).inc()
        self._note(encoded.frame, encoded.sender.wire_timestamp(timestamp), encoded.encoded_s, sent_s)

    def _judge(self, frame: Frame, *, now_s: float, slack_ms: float) -> None:
        if self.playout_delay.frame_done(now_s=now_s, slack_ms=slack_ms):
            self._change_playout_delay()
        if frame.render_px != self.resolution.size_px:
            return  # drawn before the last change
        if self.resolution.frame_done(now_s=now_s, draw_ms=frame.draw_ms, slack_ms=slack_ms):
            self._change_size()

    def _note(self, frame: Frame, rtp: int, encoded_s: float, sent_s: float) -> None:
        tick = self._ticks.at(frame.index * TICKS_PER_FRAME)
        if tick is None:
            return
        self.frames.add(
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
        """Takes that the pipeline skipped frames before it drew `before`."""
        self._count_dropped(frames, "skipped")
        # A longer delay absorbs a busy moment, not drawings that each take longer than a frame lasts.
        self._too_slow(now_s, waiting_helps=before.draw_ms <= FRAME_S * 1000)

    def _too_slow(self, now_s: float, *, waiting_helps: bool) -> None:
        if self.resolution.frame_lost(now_s=now_s):
            self._change_size()
        elif waiting_helps and self.playout_delay.frame_lost(now_s=now_s):
            self._change_playout_delay()

    def _count_dropped(self, frames: int, reason: str) -> None:
        self.dropped[reason] += frames
        self._metrics.frames_dropped.labels(self._name, reason).inc(frames)

    def _change_playout_delay(self) -> None:
        self._schedule.playout_delay_ticks = self.playout_delay.ticks
        self._log.info("delay %.0f ms from now on", self._schedule.delay_ms)

    def _change_size(self) -> None:
        before_px, size_px = self.pipeline.renderer.render_px, self.resolution.size_px
        self._metrics.render_size_changes.labels("down" if size_px < before_px else "up").inc()
        self._log.info(
            "draws %d px, %d before (%s)", size_px, before_px, self.resolution.note or "room again"
        )
        self.pipeline.renderer = self.renderer(size_px)
