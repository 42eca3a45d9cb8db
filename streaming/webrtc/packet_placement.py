"""The media time of each Opus packet: by its duration, and by RTP timestamps where those tell more.

The timestamps of Opus count samples at 48 kHz (RFC 7587, section 4.1). Some senders count at the rate of
their encoder, in milliseconds, or not at all, others are a few samples off; the packets tell how long they
are. So a packet whose number is the next one follows without a gap, unless its timestamp says that
the sender paused (discontinuous transmission) and nothing speaks against that. How many ticks of the
timestamps make a sample is learnt where it is not one.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from .opus import OPUS_RATE_HZ

log = logging.getLogger(__name__)

MIN_PAUSE_SAMPLES = 120  # 2.5 ms, the shortest packet: fewer samples are neither a packet nor a pause
MAX_EARLY_S = 0.5  # a timestamp this far ahead of arrival is no pause
MAX_JITTER_SAMPLES = 1920  # of timestamps that are too early and too late by turns
LEARNT_STEPS = 6  # steps in a row that do not fit, before another rate is believed

_TOLERANCE = Fraction(1, 50)
_MAX_LEARNT_NUMBERS = 4  # more than that are missing in between: nothing is learnt
_MAX_REMEMBERED = 128


class Packet(Protocol):
    """What is to be placed; numbers unwrapped."""

    @property
    def sequence(self) -> int: ...  # noqa: D102 - the name says it
    @property
    def timestamp(self) -> int: ...  # noqa: D102 - the name says it
    @property
    def samples(self) -> int: ...  # noqa: D102 - the name says it
    @property
    def arrived_s(self) -> float: ...  # noqa: D102 - the name says it


@dataclass(kw_only=True, slots=True, frozen=True)
class _Placed:
    sequence: int
    timestamp: int
    samples: int
    arrived_s: float
    position: int

    @property
    def end(self) -> int:
        return self.position + self.samples


@dataclass(kw_only=True, slots=True, frozen=True)
class _Step:
    """From one packet to the next one that was newer than all before."""

    ticks: int
    samples: int  # by the packets' length
    arrivals_s: float

    def fits(self, ticks_per_sample: Fraction) -> bool:
        expected = self.samples * ticks_per_sample
        return abs(self.ticks - expected) <= max(expected * _TOLERANCE, 2 * ticks_per_sample)


class PacketPlacement:
    """Finds the media time of a stream's packets as they come, in whatever order."""

    def __init__(self) -> None:
        self._recent: list[_Placed] = []  # by sequence number
        self._steps: deque[_Step] = deque(maxlen=LEARNT_STEPS)
        self._ticks_per_sample: Fraction | None = Fraction(1)  # None: the timestamps mean nothing
        self._ahead_samples = 0  # of what the timestamps say, since one was too early
        self._said = False

    @property
    def ticks_per_sample(self) -> Fraction | None:
        """Timestamp ticks for a sample at 48 kHz, 1 as it should be; None where they mean nothing."""
        return self._ticks_per_sample

    def restart(self) -> None:
        """Forgets the packets: the next one is placed by its timestamp."""
        self._recent.clear()
        self._steps.clear()
        self._ticks_per_sample = Fraction(1)
        self._ahead_samples = 0

    def place(self, packet: Packet) -> int:
        """Returns the media time of the packet's first sample, at 48 kHz.

        Of the first packet it is its timestamp; from there on it counts the sound.
        """
        at = bisect.bisect_left(self._recent, packet.sequence, key=lambda placed: placed.sequence)
        if not self._recent:
            position = packet.timestamp
        elif at == len(self._recent):
            position = self._after(self._recent[-1], packet)
        else:
            position = self._between(self._recent[at - 1] if at else None, packet, self._recent[at])
        placed = _Placed(
            sequence=packet.sequence,
            timestamp=packet.timestamp,
            samples=packet.samples,
            arrived_s=packet.arrived_s,
            position=position,
        )
        self._recent.insert(at, placed)
        del self._recent[:-_MAX_REMEMBERED]
        return position

    def _after(self, before: _Placed, packet: Packet) -> int:
        expected = _by_length(before, packet)
        self._learn(
            _Step(
                ticks=packet.timestamp - before.timestamp,
                samples=expected,
                arrivals_s=packet.arrived_s - before.arrived_s,
            ),
            numbers=packet.sequence - before.sequence,
        )
        excess = self._excess(before, packet)
        if excess >= MIN_PAUSE_SAMPLES:
            made_up_for = min(self._ahead_samples, excess)
            self._ahead_samples -= made_up_for
            excess -= made_up_for
            if excess < MIN_PAUSE_SAMPLES:
                excess = 0
        elif excess < 0 and before.position + expected + excess < before.end:
            self._ahead_samples = min(self._ahead_samples - excess, MAX_JITTER_SAMPLES)
            excess = 0
        return before.position + expected + excess

    def _between(self, before: _Placed | None, packet: Packet, after: _Placed) -> int:
        latest = after.position - packet.samples * (after.sequence - packet.sequence)
        if before is None:
            return latest
        position = before.position + _by_length(before, packet) + max(self._excess(before, packet), 0)
        return max(min(position, latest), before.end)

    def _excess(self, before: _Placed, packet: Packet) -> int:
        """Returns how many samples more the timestamps say than the lengths, 0 if they are not believed."""
        expected = _by_length(before, packet)
        ticks = packet.timestamp - before.timestamp
        if self._ticks_per_sample is None or abs(ticks - expected) < MIN_PAUSE_SAMPLES:
            return 0
        samples = round(ticks / self._ticks_per_sample)
        early_s = samples / OPUS_RATE_HZ - (packet.arrived_s - before.arrived_s)
        if abs(samples - expected) < MIN_PAUSE_SAMPLES or early_s > MAX_EARLY_S:
            return 0
        return samples - expected

    def _learn(self, step: _Step, *, numbers: int) -> None:
        if numbers > _MAX_LEARNT_NUMBERS:
            return
        self._steps.append(step)
        now = self._ticks_per_sample
        if len(self._steps) < LEARNT_STEPS or (
            now is not None and any(known.fits(now) for known in self._steps)
        ):
            return
        samples = sum(known.samples for known in self._steps)
        found = Fraction(sum(known.ticks for known in self._steps), samples)
        if found <= 0 or not all(known.fits(found) for known in self._steps):
            learnt = None
        elif all(known.fits(Fraction(1)) for known in self._steps):
            learnt = Fraction(1)
        else:
            learnt = found
        if learnt == now or (learnt != 1 and now is not None and self._are_pauses(now)):
            return
        self._ticks_per_sample = learnt
        self._ahead_samples = 0
        if learnt != 1 and not self._said:
            self._said = True
            log.warning(
                "the microphone's RTP timestamps step by %d for %d samples: expected a clock of 48 kHz "
                "(RFC 7587); its packets are placed by their length",
                step.ticks,
                step.samples,
            )

    def _are_pauses(self, ticks_per_sample: Fraction) -> bool:
        """Returns whether the last steps were longer than the packets because the sender paused in each."""
        if any(known.ticks < known.samples * ticks_per_sample for known in self._steps):
            return False
        said_s = float(sum(known.ticks for known in self._steps) / ticks_per_sample) / OPUS_RATE_HZ
        sound_s = sum(known.samples for known in self._steps) / OPUS_RATE_HZ
        came_s = sum(known.arrivals_s for known in self._steps)
        return said_s - came_s <= came_s - sound_s


def _by_length(before: _Placed, packet: Packet) -> int:
    """Returns the samples between the beginnings of two packets if none paused; missing ones are as long."""
    return (packet.sequence - before.sequence) * before.samples
