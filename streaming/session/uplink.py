"""A peer's microphone to the pipeline, and its sound, delayed by as much as the pictures, back to the peer.

```
packets -> jitter buffer -> [media thread, every 20 ms] -> pipeline
                                  | sound, kept until its frame is due -> Opus -> packets
```
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from cuda_kernels.arrays import F32

from ..pipeline.clock import MonotonicClock
from ..webrtc.media_schedule import SOUND_RATE_HZ, TICK_S, MediaSchedule, slew_towards
from ..webrtc.neteq import MicrophoneStream
from ..webrtc.opus import OpusEncoder
from ..webrtc.resample import Decimator
from ..webrtc.rtp_sender import MediaSender
from .frame_log import TickLog, TickRecord

_TICK_SOUND_SAMPLES = round(SOUND_RATE_HZ * TICK_S)
_QUIETEST_DB = -100.0
_LEVEL_TICKS = 10  # of the loudness meter: as many as between two telemetry messages


class Uplink:
    """Reads the jitter buffer, feeds the pipeline and sends delayed sound, at each 20 ms tick."""

    def __init__(
        self,
        schedule: MediaSchedule,
        *,
        push_audio: Callable[[F32], object],
        sender: Callable[[], MediaSender | None],
        on_loop: Callable[..., None],
        clock: MonotonicClock,
    ) -> None:
        """Prepares it at tick 0.

        Args:
            schedule: of the ticks and of the sound's delay.
            push_audio: takes (320,) float32 at 16 kHz for the pipeline.
            sender: of the sound; None while there is none.
            on_loop: calls a function with arguments on the event loop.
            clock: of the schedule.
        """
        self.microphone = MicrophoneStream()
        self.ticks = TickLog()
        self._schedule, self._clock = schedule, clock
        self._push_audio, self._sender, self._on_loop = push_audio, sender, on_loop
        self._decimator, self._encoder = Decimator(), OpusEncoder()
        self._waiting: deque[F32] = deque()  # sound until it is due: `sound_delay_ticks` of it
        self._levels_db: deque[float] = deque(maxlen=_LEVEL_TICKS)

    def run(self, stopping: threading.Event) -> None:
        """Takes each tick when it is due, until `stopping` is set."""
        tick = 0
        while True:
            due_s = self._schedule.tick_s(tick)
            if stopping.wait(max(0.0, due_s - self._clock.now_s())):
                return
            self.take_tick(tick, due_s)
            tick += 1

    def take_packet(self, sequence: int, timestamp: int, payload: bytes, arrived_s: float) -> None:
        """Puts an RTP packet of the microphone into the jitter buffer; for the event loop."""
        self.microphone.put(sequence=sequence, timestamp=timestamp, payload=payload, arrived_s=arrived_s)

    def take_tick(self, tick: int, due_s: float) -> None:
        """Takes a tick's 20 ms out of the jitter buffer, and sends the block whose delay is over."""
        block = self.microphone.read(due_s)
        self.ticks.add(
            TickRecord(timestamp=block.timestamp, arrived_s=block.arrived_s, buffered_s=self._clock.now_s())
        )
        if block.timestamp is not None:
            self._schedule.slew(slew_towards(self.microphone.depth_ms - self.microphone.target_ms))
        self._push_audio(self._decimator.step(block.samples))
        self._levels_db.append(_level_db(block.samples))
        self._waiting.append(block.samples)
        # One block a tick, but none or two where the playout delay has just changed.
        while len(self._waiting) > self._schedule.sound_delay_ticks:
            taken_tick = tick + 1 - len(self._waiting)
            self._send(self._waiting.popleft(), taken_tick)

    @property
    def level_db(self) -> float:
        """Peak loudness of the last ticks, dBFS; -100 for silence."""
        return max(list(self._levels_db), default=_QUIETEST_DB)

    def close(self) -> None:
        """Frees the decoder; its thread must have ended."""
        self.microphone.close()

    def _send(self, sound: F32, tick: int) -> None:
        sender = self._sender()
        if sender is not None and sender.connected:
            payloads, timestamp = [self._encoder.encode(sound)], tick * _TICK_SOUND_SAMPLES
            self._on_loop(sender.push, payloads, timestamp, TICK_S * 1000, _level_db(sound))


def _level_db(samples: F32) -> float:
    """Returns the loudness of samples in dBFS, -100 for silence."""
    mean_square = float(np.dot(samples, samples)) / max(len(samples), 1)
    return max(10 * float(np.log10(mean_square)), _QUIETEST_DB) if mean_square > 1e-10 else _QUIETEST_DB
