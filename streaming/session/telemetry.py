"""A session's telemetry messages, metrics and notes."""

from __future__ import annotations

import logging
from typing import Any

from prometheus_client import Counter

from models.time_base import FRAME_RATE_HZ

from ..errors import NetworkFailureError
from ..pipeline.clock import MonotonicClock
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.pipeline import Pipeline
from ..pipeline.render_size import MIN_RENDER_PX
from ..webrtc.media_schedule import MediaSchedule
from ..webrtc.peer import Peer
from .downlink import Downlink
from .drawing_pace import slow_note
from .frame_log import FrameRecord
from .metrics import Metrics
from .uplink import Uplink


class Telemetry:
    """Reports of one session: to its page, to Prometheus, to the log."""

    def __init__(
        self,
        loaded: LoadedSpeaker,
        schedule: MediaSchedule,
        uplink: Uplink,
        downlink: Downlink,
        *,
        session_id: str,
        label: str,
        metrics: Metrics,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        clock: MonotonicClock,
    ) -> None:
        """Prepares it; `pipeline` and `peer` are to be set before it is asked.

        Args:
            loaded: the speaker; changes when the GPU fails.
            schedule: of the session.
            uplink: of the session.
            downlink: of the session.
            session_id: that a page is told.
            label: of the session in metrics.
            metrics: where figures go.
            log: of the session.
            clock: of the session.
        """
        self.loaded = loaded
        self.pipeline: Pipeline
        self.peer: Peer
        self._schedule, self._uplink, self._downlink = schedule, uplink, downlink
        self._id, self._label, self._clock = session_id, label, clock
        self._metrics, self._log = metrics, log
        self._was_slow = False
        self._networks_told: set[str] = set()  # whose failure is logged
        self._malformed_told = False
        self._counted: dict[Counter, float] = {}  # what of the microphone's figures the metrics have

    def hello(self) -> dict[str, Any]:
        """Returns the first message to a page."""
        return {
            "type": "hello",
            "session_id": self._id,
            "speaker": self.loaded.name,
            "server_ms": self.now_unix_ms(),
            "fps": FRAME_RATE_HZ,
            "image_size_px": self.loaded.speaker.image_size_px,
            "render_px": self._downlink.resolution.size_px,
            "render_sizes_px": list(self.loaded.sizes_px),
            "lookahead_ms": self.loaded.speaker.lookahead_frames * 1000 / FRAME_RATE_HZ,
            "delay_ms": self._schedule.delay_ms,
            "codec": self.peer.codec.name,
        }

    def message(self, after_frame: int) -> tuple[dict[str, Any], int]:
        """Returns the telemetry message, sent five times a second, and the number of its last frame."""
        now_s = self._clock.now_s()
        downlink, microphone = self._downlink, self._uplink.microphone
        records = downlink.frames.after(after_frame)
        message = {
            "type": "telemetry",
            "server_ms": self._unix_ms(now_s),
            "fps": round(downlink.sent_fps(now_s), 2),
            "render_px": downlink.drawn_px,
            "drawn_share": round(downlink.drawn_share, 3),
            "render_note": downlink.resolution.note,
            "delay_ms": self._schedule.delay_ms,
            "notes": self.notes(now_s),
            "frames_rendered": downlink.rendered,
            "frames_dropped": dict(downlink.dropped),
            "microphone": {
                "depth_ms": round(microphone.depth_ms, 1),
                "target_ms": round(microphone.target_ms, 1),
                "lost": microphone.packets_lost,
                "concealed_ms": round(microphone.concealed_ms),
                "level_db": round(self._uplink.level_db, 1),
            },
            "frames": [self._described(record) for record in records],
        }
        return message, records[-1].index if records else after_frame

    def now_unix_ms(self) -> float:
        """Returns the wall time in ms by the session's clock, as all times in messages."""
        return self._unix_ms(self._clock.now_s())

    def notes(self, now_s: float) -> list[str]:
        """Returns the warnings that a page shows, and logs each when it begins and ends."""
        notes = []
        size_px, slow_fps = self._downlink.resolution.size_px, self._downlink.pace.slow_fps(now_s)
        if (slow_fps is not None) != self._was_slow:
            self._was_slow = slow_fps is not None
            if slow_fps is not None:
                self._log.warning(
                    "draws %.1f pictures a second of %d, at %d px; the sound goes on",
                    slow_fps,
                    FRAME_RATE_HZ,
                    size_px,
                )
            else:
                self._log.info("draws every picture again, at %d px", size_px)
        if slow_fps is not None:
            smallest = size_px <= MIN_RENDER_PX or len(self.loaded.sizes_px) > 1
            notes.append(slow_note(slow_fps, on_gpu=self.loaded.on_gpu, can_draw_smaller=not smallest))
        if self.pipeline.network_failures:
            files = " and ".join(sorted(self.pipeline.network_failures))
            notes.append(f"{self.loaded.name}'s {files} fails; the last face that it gave is held.")
        return notes

    def network_failed(self, failure: NetworkFailureError) -> None:
        """Counts a failed run of a network and logs the first; for the motion thread."""
        self._metrics.network_failures.labels(self.loaded.name, failure.network).inc()
        if failure.network not in self._networks_told:
            self._networks_told.add(failure.network)
            self._log.error("%s; the last good face holds, the sound goes on", failure)

    def packet_malformed(self, kind: str, what: str) -> None:
        """Counts a dropped packet of the peer and logs the first."""
        self._metrics.malformed_packets.labels(kind).inc()
        if not self._malformed_told:
            self._malformed_told = True
            self._log.warning(
                "a malformed packet was dropped (%s: %s); more are only counted", kind, what[:100]
            )

    def update_metrics(self) -> None:
        """Updates gauges and counters; to be called about once a second."""
        metrics, microphone = self._metrics, self._uplink.microphone
        self.notes(self._clock.now_s())
        metrics.render_size_px.labels(self._label).set(self._downlink.drawn_px)
        metrics.drawn_ratio.labels(self._label).set(self._downlink.drawn_share)
        metrics.microphone_depth.labels(self._label).set(microphone.depth_ms / 1000)
        if self.peer.video is not None and self.peer.video.round_trip_s is not None:
            metrics.round_trip.labels(self._label).set(self.peer.video.round_trip_s)
        for counter, counted in (
            (metrics.microphone_lost, microphone.packets_lost),
            (metrics.microphone_late, microphone.packets_late),
            (metrics.microphone_recovered, microphone.fec_packets),
            (metrics.microphone_concealed, microphone.concealed_ms / 1000),
            (metrics.microphone_accelerated, microphone.shortened_ms / 1000),
            (metrics.microphone_expanded, microphone.lengthened_ms / 1000),
        ):
            # A late packet was not lost after all: that figure falls.
            counter.inc(max(counted - self._counted.get(counter, 0), 0))
            self._counted[counter] = counted

    def _described(self, record: FrameRecord) -> dict[str, Any]:
        def unix_ms(at_s: float | None) -> float | None:
            return None if at_s is None else round(self._unix_ms(at_s), 2)

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

    def _unix_ms(self, at_s: float) -> float:
        return self._schedule.unix_s(at_s) * 1000
