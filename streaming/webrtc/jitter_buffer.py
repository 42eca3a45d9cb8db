"""Jitter buffer of RTP audio: packets reordered, losses counted, target delay estimated.

The target delay is the 95th percentile of relative one-way delay over two seconds. A packet's one-way delay
is its time of arrival less its media time, relative to the least of the window. Sequence numbers and
timestamps are unwrapped (RFC 3550, appendix A.1); media time is what `packet_placement` finds.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from .opus import BLOCK_SAMPLES, MAX_PACKET_SAMPLES, OPUS_RATE_HZ, packet_samples
from .packet_placement import PacketPlacement

START_TARGET_S = 0.040  # until enough packets were seen
MIN_TARGET_S = 0.010
MAX_TARGET_S = 0.120
BOUND_S = 2.0  # media in the buffer, at most; then the oldest is dropped

_WINDOW_S = 2.0
_MIN_EVENTS = 10  # of an estimate
_IN_TIME = 0.95  # the percentile of delay that is waited for
_MARGIN_S = 0.003
_BURST = 0.75  # packets at shorter intervals than this share of their duration belong to one stall
_PAUSE_S = 1.0
_FALLING_S = 0.060
_MAX_AHEAD = 3000  # RFC 3550's MAX_DROPOUT and MAX_MISORDER, in packets
_MAX_BEHIND = 100
_SAME_CLOCK_S = 1.0
_MAX_REMEMBERED_LOSSES = 512


def unwrap(wire: int, *, near: int, bits: int) -> int:
    """Returns the number nearest to `near` whose last `bits` bits are `wire`."""
    half = 1 << (bits - 1)
    return near + (wire - near + half) % (1 << bits) - half


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioPacket:
    """One packet of Opus."""

    sequence: int  # unwrapped
    timestamp: int  # unwrapped, 48 kHz, of the first sample; once placed: its media time
    payload: bytes
    samples: int  # at 48 kHz, as the payload's head says
    arrived_s: float

    @property
    def end(self) -> int:
        """The timestamp after its last sample."""
        return self.timestamp + self.samples

    @property
    def transit_s(self) -> float:
        """One-way delay: arrival less media time; only differences mean something."""
        return self.arrived_s - self.timestamp / OPUS_RATE_HZ


@dataclass(kw_only=True, slots=True)
class _Event:
    min_s: float
    max_s: float
    arrived_s: float


class TransitWindow:
    """One-way delays of the last two seconds, and the target delay that they ask for.

    Packets that come in a burst after a stall count as one event, so that a single stall of the network,
    however many packets it held up, does not raise the target delay.
    """

    def __init__(self) -> None:
        self.target_s = START_TARGET_S
        self._events: deque[_Event] = deque()
        self._last: AudioPacket | None = None
        self._base_s = 0.0

    @property
    def known(self) -> bool:
        """Whether any packet was seen since the beginning or the last `forget`."""
        return bool(self._events)

    @property
    def base_s(self) -> float:
        """The least one-way delay: the network at rest."""
        return self._base_s

    @property
    def wait_s(self) -> float:
        """The one-way delay that playout allows for."""
        return self._base_s + self.target_s

    def forget(self) -> None:
        """Forgets all delays, as after a pause; the target delay stays until there are enough new ones."""
        self._events.clear()
        self._last = None

    def add(self, packet: AudioPacket) -> None:
        """Takes one arrival."""
        transit_s = packet.transit_s
        last, self._last = self._last, packet
        if last is not None and packet.arrived_s - last.arrived_s > _PAUSE_S:
            self._events.clear()  # clocks drift and routes change; a pause may also stop the sender's clock
        if self._events and last is not None and _same_stall(last, packet):
            event = self._events[-1]
            event.min_s = min(event.min_s, transit_s)
            event.max_s = max(event.max_s, transit_s)
        else:
            self._events.append(_Event(min_s=transit_s, max_s=transit_s, arrived_s=packet.arrived_s))
            self._follow_shift()
        oldest_s = packet.arrived_s - _WINDOW_S
        while len(self._events) > _MIN_EVENTS and self._events[0].arrived_s < oldest_s:
            self._events.popleft()
        self._base_s = min(event.min_s for event in self._events)
        if len(self._events) >= _MIN_EVENTS:
            ordered = sorted(event.max_s for event in self._events)
            late_s = ordered[int(_IN_TIME * (len(ordered) - 1))] - self._base_s + _MARGIN_S
            self.target_s = min(max(late_s, MIN_TARGET_S), MAX_TARGET_S)

    def _follow_shift(self) -> None:
        # A route that became longer than any target: without this nothing would be in time until the window
        # has moved on. A queue that empties looks the same at first, but its transits fall.
        if len(self._events) <= _MIN_EVENTS:
            return
        newest = list(self._events)[-_MIN_EVENTS:]
        if (
            min(event.min_s for event in newest) > self._base_s + MAX_TARGET_S
            and newest[-1].min_s > newest[0].min_s - _FALLING_S
        ):
            self._events = deque(newest)


def _same_stall(last: AudioPacket, packet: AudioPacket) -> bool:
    played_s = (packet.timestamp - last.timestamp) / OPUS_RATE_HZ
    return played_s > 0 and packet.arrived_s - last.arrived_s < _BURST * played_s


class JitterBuffer:
    """Packets by sequence number, at most two seconds of them: then the oldest is dropped.

    Not thread-safe: its owner holds a lock around each call.
    """

    def __init__(self) -> None:
        self.transit = TransitWindow()
        self.generation = 0  # counts restarts of the sender with other sequence numbers
        self.lost = 0  # given up when later ones were played, or not decodable; never decreases
        self.late = 0  # came after their playout time, given up before or not
        self._packets: list[AudioPacket] = []
        self._placement = PacketPlacement()
        self._newest: AudioPacket | None = None  # by sequence; as it came, not placed
        self._stray: AudioPacket | None = None
        self._next_sequence: int | None = None  # what is older than this was played or given up
        self._missing: OrderedDict[int, None] = OrderedDict()  # given up, and may still come late

    @property
    def missing(self) -> int:
        """Sequence numbers missing between the packet taken last and the oldest in the buffer."""
        if self._next_sequence is None or not self._packets:
            return 0
        return max(self._packets[0].sequence - self._next_sequence, 0)

    def put(self, *, sequence: int, timestamp: int, payload: bytes, arrived_s: float) -> None:
        """Inserts a packet as it came: `sequence` of 16 bits, `timestamp` of 32. What is no Opus is lost."""
        samples = packet_samples(payload)
        if not samples:
            return

        def packet(near: AudioPacket | None) -> AudioPacket:
            return AudioPacket(
                sequence=sequence if near is None else unwrap(sequence, near=near.sequence, bits=16),
                timestamp=timestamp if near is None else unwrap(timestamp, near=near.timestamp, bits=32),
                payload=payload,
                samples=samples,
                arrived_s=arrived_s,
            )

        arrived = packet(self._newest)
        if self._newest is None or _belongs(self._newest, arrived):
            self._accept(arrived)
        elif self._stray is not None and _follows(self._stray, follower := packet(self._stray)):
            self._restart(self._stray, follower)
        else:
            self._stray = arrived  # believed when a second one follows it (RFC 3550, appendix A.1)

    def peek(self) -> AudioPacket | None:
        """Returns the oldest packet and leaves it."""
        return self._packets[0] if self._packets else None

    def take(self) -> AudioPacket:
        """Returns the oldest packet and removes it; numbers skipped on the way are lost."""
        packet = self._packets.pop(0)
        self._pass(packet.sequence)
        return packet

    def drop_before(self, position: int) -> int:
        """Drops packets that end at or before the timestamp `position`, late ones; returns their samples."""
        samples = 0
        while self._packets and self._packets[0].end <= position:
            samples += self.take().samples
            self.late += 1
        return samples

    def drop_stale(self, *, before: int) -> int:
        """Drops packets that begin before the timestamp `before` (a newer start); returns their samples."""
        samples = 0
        while self._packets and self._packets[0].timestamp < before:
            samples += self.take().samples
            self.late += 1
        return samples

    def clear(self) -> None:
        """Empties the buffer."""
        self._packets.clear()

    def _accept(self, packet: AudioPacket) -> None:
        self._stray = None
        if self._next_sequence is not None and packet.sequence < self._next_sequence:
            if packet.sequence in self._missing:
                del self._missing[packet.sequence]
                self.late += 1
                self.transit.add(self._placed(packet))
            return  # else a duplicate of what was played
        at = bisect.bisect_left(self._packets, packet.sequence, key=lambda waiting: waiting.sequence)
        if at < len(self._packets) and self._packets[at].sequence == packet.sequence:
            return
        placed = self._placed(packet)
        self._packets.insert(at, placed)
        self.transit.add(placed)
        if self._newest is None or packet.sequence > self._newest.sequence:
            self._newest = packet
        while sum(waiting.samples for waiting in self._packets) > BOUND_S * OPUS_RATE_HZ:
            self.take()
            self.late += 1

    def _placed(self, packet: AudioPacket) -> AudioPacket:
        return replace(packet, timestamp=self._placement.place(packet))

    def _restart(self, *packets: AudioPacket) -> None:
        self.generation += 1
        self._packets.clear()
        self._missing.clear()
        self._newest = None
        self._next_sequence = None
        self._placement.restart()
        self.transit.forget()
        for packet in packets:
            self._accept(packet)

    def _pass(self, sequence: int) -> None:
        if self._next_sequence is not None and sequence > self._next_sequence:
            self.lost += sequence - self._next_sequence
            for missing in range(max(self._next_sequence, sequence - _MAX_REMEMBERED_LOSSES), sequence):
                self._missing[missing] = None
            while len(self._missing) > _MAX_REMEMBERED_LOSSES:
                self._missing.popitem(last=False)
        self._next_sequence = sequence + 1


def _belongs(known: AudioPacket, packet: AudioPacket) -> bool:
    steps = packet.sequence - known.sequence
    if not -_MAX_BEHIND <= steps <= _MAX_AHEAD:
        return False
    if abs(steps) <= _MAX_BEHIND:
        return True  # numbers go on: of some senders the timestamps mean nothing
    # A network that held packets back moves the clock, not the numbers; a sender that paused, the reverse.
    by_numbers = abs(packet.timestamp - known.timestamp) <= (abs(steps) + 1) * MAX_PACKET_SAMPLES
    return by_numbers or abs(packet.transit_s - known.transit_s) <= _SAME_CLOCK_S


def _follows(stray: AudioPacket, packet: AudioPacket) -> bool:
    return packet.sequence > stray.sequence and _belongs(stray, packet)


def read_offset_s(packet_length_samples: int) -> float:
    """Returns how much earlier than a block's own deadline its last packet begins, for short packets."""
    return max(0, BLOCK_SAMPLES - packet_length_samples) / OPUS_RATE_HZ
