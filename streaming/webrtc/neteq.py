"""NetEQ for the microphone: jitter buffer, packet loss concealment and time stretching, 20 ms a tick.

Playout is driven by time. A packet that is missing at its tick is concealed and its time is over: loss and
stalls of the network never lengthen the delay. It follows the target delay alone, in steps of whole ticks
(less would protect no more packets, because they are read by the tick), by accelerate and expand: pitch
periods are removed or repeated.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from cuda_kernels.arrays import F32

from .jitter_buffer import AudioPacket, JitterBuffer, read_offset_s
from .opus import BLOCK_SAMPLES, OPUS_RATE_HZ, OpusDecoder, OpusError
from .time_stretch import (
    COMPARED_SAMPLES,
    MAX_SAMPLES,
    MIN_SAMPLES,
    SEAM_SAMPLES,
    cross_fade,
    find_period,
    is_quiet,
    lengthen,
    shorten,
)

log = logging.getLogger(__name__)

TICK_S = BLOCK_SAMPLES / OPUS_RATE_HZ

_HOLD_SAMPLES = 4_800  # 100 ms of concealment at full loudness, then a fade-out as long
_SILENT_SAMPLES = 9_600
_IDLE_SAMPLES = 48_000  # after a second without sound the stream starts anew with its next packet
_HYSTERESIS_S = 0.005
_STEADY_TICKS = 10  # for which the delay must be too long before it is shortened
_PATIENCE_TICKS = 25  # for which a place of high correlation is waited for
_ALIKE = 0.5
_JUMP_DOWN_S = 0.250  # further from the target delay than this, playout jumps
_JUMP_UP_S = 0.130


@dataclass(frozen=True, kw_only=True)
class MicrophoneBlock:
    """The sound of one tick."""

    samples: F32  # (960,) 48 kHz mono, [-1, 1]
    # RTP timestamp (48 kHz) of the first sample, unwrapped; None where nothing is known.
    timestamp: int | None
    arrived_s: float | None  # when the last sample's packet arrived, on the caller's clock; None if concealed
    concealed: bool  # whether any of it is


@dataclass(slots=True)
class _Run:
    """Decoded samples of one origin."""

    samples: int
    arrived_s: float | None  # None: concealed


class MicrophoneStream:
    """An endless stream of 20 ms blocks from RTP packets; one thread puts, another reads."""

    def __init__(self, *, decoder: OpusDecoder | None = None) -> None:
        self._decoder = decoder or OpusDecoder()
        self._lock = threading.Lock()  # held around the buffer, never while decoding
        self._buffer = JitterBuffer()
        self._closed = False
        # From here on: the reader's alone.
        self._restart_logged = False
        self._generation = 0
        self._waiting = np.zeros(0, np.float32)  # decoded, not read
        self._runs: deque[_Run] = deque()  # where `_waiting` comes from
        self._position: int | None = None  # timestamp of what is decoded next; None while nothing plays
        self._packet_samples = BLOCK_SAMPLES
        self._cut = True  # the next packet does not continue what was decoded last
        self._concealed_run = _SILENT_SAMPLES
        self._missing_samples = 0  # to expand by
        self._surplus_samples = 0  # to accelerate by
        self._surplus_ticks = 0
        self._depth_s = 0.0
        self._unclassified_samples = 0  # concealed; the next packet tells whether of a loss or of a pause
        self._concealed_samples = 0
        self._shortened_samples = 0
        self._lengthened_samples = 0
        self._fec_packets = 0

    @property
    def depth_ms(self) -> float:
        """The delay of a packet of least one-way delay from its arrival to its playout."""
        return self._depth_s * 1000

    @property
    def target_ms(self) -> float:
        """The target delay of the jitter buffer."""
        return self._buffer.transit.target_s * 1000

    @property
    def packets_lost(self) -> int:
        """Packets that were missing at playout or not decodable; one that came late is in both counts."""
        return self._buffer.lost

    @property
    def packets_late(self) -> int:
        """Packets that came after their playout time."""
        return self._buffer.late

    @property
    def fec_packets(self) -> int:
        """Lost packets that were recovered by in-band FEC (LBRR) of their successors."""
        return self._fec_packets

    @property
    def concealed_ms(self) -> float:
        """Sound synthesised by packet loss concealment, a sender's pauses (DTX) left out."""
        return self._concealed_samples * 1000 / OPUS_RATE_HZ

    @property
    def shortened_ms(self) -> float:
        """Sound removed by accelerate."""
        return self._shortened_samples * 1000 / OPUS_RATE_HZ

    @property
    def lengthened_ms(self) -> float:
        """Sound added by expand."""
        return self._lengthened_samples * 1000 / OPUS_RATE_HZ

    def put(self, *, sequence: int, timestamp: int, payload: bytes, arrived_s: float) -> None:
        """Puts an RTP packet into the jitter buffer.

        Args:
            sequence: RTP sequence number, 16 bits.
            timestamp: RTP timestamp, 32 bits, 48 kHz.
            payload: one Opus packet; anything else is counted as lost.
            arrived_s: on the clock that `read` is given.
        """
        with self._lock:
            if not self._closed:
                self._buffer.put(sequence=sequence, timestamp=timestamp, payload=payload, arrived_s=arrived_s)

    def read(self, now_s: float) -> MicrophoneBlock:
        """Returns the next 20 ms; never blocks, never raises for what came from the network.

        Args:
            now_s: when the tick was due, not when the machine got to it.
        """
        with self._lock:
            if self._closed:
                return _silence()
            if self._generation != self._buffer.generation:
                self._generation = self._buffer.generation
                level = (
                    logging.DEBUG if self._restart_logged else logging.INFO
                )  # two at once would fill the log
                log.log(level, "the microphone's sender began anew")
                self._restart_logged = True
                self._stop()
                self._unclassified_samples = 0
            self._update_target_delay(now_s)
            if self._position is None:
                self._start(now_s)
        timestamp = None if self._position is None else self._position - len(self._waiting)
        while len(self._waiting) < BLOCK_SAMPLES:
            self._decode_more()
        if self._surplus_samples:
            self._accelerate()
        elif self._missing_samples:
            self._expand()
        return self._give(timestamp)

    def close(self) -> None:
        """Empties the jitter buffer; from then on `read` gives silence. Safe twice."""
        with self._lock:
            self._closed = True
            self._buffer.clear()

    # Delay --------------------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        return self._buffer.transit.wait_s + read_offset_s(self._packet_samples)

    def _update_target_delay(self, now_s: float) -> None:
        """Sets by how much to accelerate or expand; the lock is held."""
        self._surplus_samples = self._missing_samples = 0
        transit = self._buffer.transit
        if self._position is None or not transit.known:
            return
        lag_s = now_s - (self._position - len(self._waiting)) / OPUS_RATE_HZ
        self._depth_s = lag_s - transit.base_s
        # Packets are read by the tick: of the samples that wait, what is no whole tick protects none of them.
        loose_samples = len(self._waiting) % BLOCK_SAMPLES
        spare_s = lag_s - loose_samples / OPUS_RATE_HZ - self._wait_s()
        if spare_s < 0:
            self._surplus_ticks = 0
            ticks = int(np.ceil(-spare_s / TICK_S))
            self._missing_samples = ticks * BLOCK_SAMPLES - loose_samples
            if spare_s < -_JUMP_UP_S:
                self._stop()
            return
        ticks = max(int((spare_s - _HYSTERESIS_S) / TICK_S), 0)
        self._surplus_ticks = self._surplus_ticks + 1 if ticks else 0
        if ticks * TICK_S > _JUMP_DOWN_S:
            self._stop()
        elif ticks == 0 or self._surplus_ticks > _STEADY_TICKS:
            self._surplus_samples = ticks * BLOCK_SAMPLES + loose_samples

    def _stop(self) -> None:
        self._position = None
        self._cut = True
        self._surplus_samples = self._missing_samples = self._surplus_ticks = 0

    def _start(self, now_s: float) -> None:
        """Begins playout once the oldest packet has waited for the target delay; the lock is held."""
        first = self._buffer.peek()
        if first is None:
            return
        self._packet_samples = first.samples
        newest_start_s = now_s - self._wait_s()
        self._count_concealed(
            self._buffer.drop_stale(before=int((newest_start_s - TICK_S) * OPUS_RATE_HZ) + 1)
        )
        first = self._buffer.peek()
        if first is not None and first.timestamp <= newest_start_s * OPUS_RATE_HZ:
            self._count_concealed(self._buffer.missing * first.samples)
            self._unclassified_samples = 0
            self._position = first.timestamp

    # Sound --------------------------------------------------------------------------------------------

    def _decode_more(self) -> None:
        """Adds a packet's worth of samples, concealed where there is no packet."""
        position = self._position
        if position is None:
            self._append(self._conceal(BLOCK_SAMPLES), None)
            return
        with self._lock:
            if self._generation != self._buffer.generation:
                packet, missing = None, 0  # of another stream: the next tick is its first
            else:
                self._count_concealed(self._buffer.drop_before(position))
                packet = self._buffer.peek()
                missing = self._buffer.missing
                if packet is not None and packet.timestamp <= position:
                    self._buffer.take()
        if packet is None:
            self._decode_nothing(position)
            return
        self._count_concealed(missing * packet.samples + position - packet.timestamp)
        self._unclassified_samples = 0
        if packet.timestamp <= position:
            self._decode_packet(packet, position)
        else:
            self._decode_gap(packet, packet.timestamp - position, missing=missing)

    def _count_concealed(self, samples: int) -> None:
        """Counts concealed samples as loss, once a later packet shows that there were packets."""
        samples = min(max(samples, 0), self._unclassified_samples)
        self._unclassified_samples -= samples
        self._concealed_samples += samples

    def _decode_nothing(self, position: int) -> None:
        if self._concealed_run >= _IDLE_SAMPLES:
            self._stop()
            return
        samples = min(self._packet_samples, BLOCK_SAMPLES)
        if self._missing_samples > 0:  # packets are steadily late: wait for this one instead of giving it up
            self._missing_samples = max(self._missing_samples - samples, 0)
            self._lengthened_samples += samples
        else:
            self._position = position + samples
            self._unclassified_samples += samples
        self._append(self._conceal(samples), None)

    def _decode_gap(self, packet: AudioPacket, gap_samples: int, *, missing: int) -> None:
        assert self._position is not None
        pause_samples = gap_samples - missing * packet.samples
        if pause_samples > 0:
            samples = min(pause_samples, BLOCK_SAMPLES)
            self._position += samples
            self._append(self._conceal(samples), packet.arrived_s)  # libopus' comfort noise, then silence
            return
        if gap_samples > packet.samples:
            gap_samples -= packet.samples  # the rest may be recovered
        else:
            tail = self._tail()
            recovered = self._decoder.recover(packet.payload, packet.samples)
            if recovered is not None:
                self._fec_packets += 1
                self._position += gap_samples
                self._append(self._join(tail, recovered[-gap_samples:]), packet.arrived_s)
                return
        samples = min(gap_samples, BLOCK_SAMPLES)
        self._position += samples
        self._append(self._conceal(samples), None)
        self._concealed_samples += samples

    def _decode_packet(self, packet: AudioPacket, position: int) -> None:
        if packet.timestamp < position:  # its beginning was concealed
            self._cut = True
        tail = self._tail()
        if self._cut and self._concealed_run >= _SILENT_SAMPLES:
            self._decoder.reset()
        try:
            decoded = self._decoder.decode(packet.payload)
        except OpusError:
            with self._lock:
                self._buffer.lost += 1
            self._position = packet.end
            self._append(self._conceal(packet.end - position), None)
            self._concealed_samples += packet.end - position
            return
        self._packet_samples = packet.samples
        self._position = packet.end
        self._append(self._join(tail, decoded[position - packet.timestamp :]), packet.arrived_s)
        self._cut = False

    def _tail(self) -> F32 | None:
        """Returns concealment to cross-fade from into a packet that does not continue the sound so far."""
        if not self._cut and self._concealed_run <= _HOLD_SAMPLES:
            return None  # the decoder joins by itself
        return self._conceal(SEAM_SAMPLES)

    def _join(self, tail: F32 | None, samples: F32) -> F32:
        self._concealed_run = 0
        if tail is None:
            return samples
        seam = min(len(tail), len(samples))
        return np.concatenate([cross_fade(tail[:seam], samples[:seam]), samples[seam:]])

    def _conceal(self, samples: int) -> F32:
        """Returns (samples,) of packet loss concealment, faded to silence 200 ms after the last packet."""
        first = self._concealed_run
        self._concealed_run = min(first + samples, _IDLE_SAMPLES)
        if first >= _SILENT_SAMPLES:
            return np.zeros(samples, np.float32)
        sound = self._decoder.conceal(samples)
        if first + samples <= _HOLD_SAMPLES:
            return sound
        at = np.arange(first, first + samples, dtype=np.float32)
        gain = np.clip((_SILENT_SAMPLES - at) / (_SILENT_SAMPLES - _HOLD_SAMPLES), 0, 1)
        return np.asarray(sound * gain, np.float32)

    # Time scale ---------------------------------------------------------------------------------------

    def _accelerate(self) -> None:
        longest = min(self._surplus_samples, MAX_SAMPLES)
        if longest < MIN_SAMPLES or not self._reach(BLOCK_SAMPLES + longest):
            return
        if is_quiet(self._waiting[: 2 * longest]):
            period = longest
        else:
            period, alike = find_period(self._waiting, longest=longest)
            if alike < _ALIKE and self._surplus_ticks < _PATIENCE_TICKS:
                return
        self._waiting = shorten(self._waiting, period)
        self._shortened_samples += period
        while period:
            taken = min(period, self._runs[0].samples)
            self._runs[0].samples -= taken
            period -= taken
            if not self._runs[0].samples:
                self._runs.popleft()

    def _expand(self) -> None:
        longest = min(self._missing_samples, COMPARED_SAMPLES, MAX_SAMPLES)
        if longest < MIN_SAMPLES:
            longest = MIN_SAMPLES
        if is_quiet(self._waiting[: 2 * longest]):
            period = longest
        else:
            period, _ = find_period(self._waiting, longest=longest)
        self._waiting = lengthen(self._waiting, period)
        self._lengthened_samples += period
        self._runs[0].samples += period

    def _reach(self, samples: int) -> bool:
        """Returns whether so many samples are decoded, after decoding what has arrived; conceals nothing."""
        while len(self._waiting) < max(samples, 2 * MAX_SAMPLES):
            with self._lock:
                packet = self._buffer.peek()
                here = packet is not None and packet.timestamp == self._position
            if not here or self._generation != self._buffer.generation:
                return False
            self._decode_more()
        return True

    # Out ----------------------------------------------------------------------------------------------

    def _append(self, samples: F32, arrived_s: float | None) -> None:
        if not len(samples):
            return
        self._waiting = np.concatenate([self._waiting, samples])
        if self._runs and self._runs[-1].arrived_s == arrived_s:
            self._runs[-1].samples += len(samples)
        else:
            self._runs.append(_Run(len(samples), arrived_s))

    def _give(self, timestamp: int | None) -> MicrophoneBlock:
        samples, self._waiting = self._waiting[:BLOCK_SAMPLES], self._waiting[BLOCK_SAMPLES:]
        left, concealed, arrived_s = BLOCK_SAMPLES, False, None
        while left:
            run = self._runs[0]
            taken = min(left, run.samples)
            run.samples -= taken
            left -= taken
            arrived_s = run.arrived_s
            concealed = concealed or arrived_s is None
            if not run.samples:
                self._runs.popleft()
        return MicrophoneBlock(samples=samples, timestamp=timestamp, arrived_s=arrived_s, concealed=concealed)


def _silence() -> MicrophoneBlock:
    return MicrophoneBlock(
        samples=np.zeros(BLOCK_SAMPLES, np.float32), timestamp=None, arrived_s=None, concealed=True
    )
