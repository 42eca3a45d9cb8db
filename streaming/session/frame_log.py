"""Stage timestamps of the last ticks and frames, for telemetry and metrics."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from models.time_base import FRAME_RATE_HZ

_KEPT_TICKS = 256
_KEPT_FRAMES = 2 * FRAME_RATE_HZ  # telemetry takes them five times a second


@dataclass(frozen=True, kw_only=True)
class TickRecord:
    """Origin of one tick's sound; seconds of the monotonic clock."""

    timestamp: int | None  # RTP timestamp of its first sample
    arrived_s: float | None
    buffered_s: float  # when it left the jitter buffer


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """When one frame passed each stage; seconds of the monotonic clock."""

    index: int
    rtp: int  # the timestamp it has on the wire
    sound_timestamp: int | None  # RTP timestamp of its first sound, as the peer sent it
    arrived_s: float | None
    buffered_s: float
    windowed_s: float
    finished_s: float
    encoded_s: float
    sent_s: float


class TickLog:
    """The last ticks; written by one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[TickRecord] = deque(maxlen=_KEPT_TICKS)
        self._next = 0

    def add(self, record: TickRecord) -> None:
        """Takes the next tick's record."""
        with self._lock:
            self._records.append(record)
            self._next += 1

    def at(self, tick: int) -> TickRecord | None:
        """Returns a tick's record, None if it is too old or not there yet."""
        with self._lock:
            place = tick - self._next + len(self._records)
            return self._records[place] if 0 <= place < len(self._records) else None


class FrameLog:
    """The last frames; written by one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[FrameRecord] = deque(maxlen=_KEPT_FRAMES)

    def add(self, record: FrameRecord) -> None:
        """Takes the next frame's record."""
        with self._lock:
            self._records.append(record)

    def after(self, index: int) -> list[FrameRecord]:
        """Returns the records of frames after `index`, oldest first."""
        with self._lock:
            return [record for record in self._records if record.index > index]
