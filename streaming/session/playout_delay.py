"""How long a frame may take from its last sound to its leaving: as little as the machine's load allows."""

from __future__ import annotations

import math
from collections import deque

from ..webrtc.media_schedule import MAX_ALLOWANCE_TICKS, MIN_ALLOWANCE_TICKS, TICK_S

LOSSES = 4  # frames lost within a second: the size could not help, or not yet
WITHIN_S = 1.0
EASY_S = 5.0  # every frame of this time would have been ready one tick earlier, too
MAX_EASY_S = 160.0  # asked for where a tick that was given back was soon missed
SPARE_MS = 12.0  # and this much more
SETTLE_S = 0.4  # frames under way are still judged by the old allowance


def allowance_ticks_for(serial_ms: float) -> int:
    """Returns the ticks to allow for a frame whose stages take `serial_ms`, one after the other, undisturbed.

    Half as much again and half a tick, for a machine that others use too.
    """
    ticks = math.ceil((1.5 * serial_ms + TICK_S * 500) / (TICK_S * 1000))
    return min(max(ticks, MIN_ALLOWANCE_TICKS), MAX_ALLOWANCE_TICKS)


class Allowance:
    """Grows by a tick when frames keep coming too late, shrinks by one after a long easy time.

    Without it a busy machine would leave out most frames of a call that began on a quiet one. The sound moves
    along, so lips and sound stay together; the receiver's own buffer smooths the 20 ms.
    """

    def __init__(self, ticks: int) -> None:
        """Begins at what was measured when the speaker was opened."""
        self.ticks = ticks
        """20 ms each."""
        self._losses_s: deque[float] = deque(maxlen=LOSSES)
        self._easy_since_s: float | None = None
        self._easy_s = EASY_S
        self._given_back_s = float("-inf")
        self._settled_s = float("-inf")

    @classmethod
    def at_start(cls, frame_latency_ms: float) -> Allowance:
        """Returns that of a new session: a tick to spare, as connecting takes the cores, too."""
        return cls(min(allowance_ticks_for(frame_latency_ms) + 1, MAX_ALLOWANCE_TICKS))

    def frame_lost(self, *, now_s: float) -> bool:
        """Takes that a frame was too late; returns whether `ticks` changed."""
        if now_s < self._settled_s:
            return False
        self._losses_s.append(now_s)
        self._easy_since_s = None
        often = len(self._losses_s) == LOSSES and now_s - self._losses_s[0] <= WITHIN_S
        if not often:
            return False
        soon = now_s - self._given_back_s < self._easy_s
        self._easy_s = min(2 * self._easy_s, MAX_EASY_S) if soon else EASY_S
        return self._change(+1, now_s)

    def frame_done(self, *, now_s: float, slack_ms: float) -> bool:
        """Takes how long before its time a frame was ready; returns whether `ticks` changed."""
        if now_s < self._settled_s:
            return False
        if self._easy_since_s is None or slack_ms < TICK_S * 1000 + SPARE_MS:
            self._easy_since_s = now_s
        if now_s - self._easy_since_s < self._easy_s:
            return False
        self._given_back_s = now_s
        return self._change(-1, now_s)

    def _change(self, ticks: int, now_s: float) -> bool:
        before = self.ticks
        self.ticks = min(max(before + ticks, MIN_ALLOWANCE_TICKS), MAX_ALLOWANCE_TICKS)
        self._losses_s.clear()
        self._easy_since_s = None
        self._settled_s = now_s + SETTLE_S
        return self.ticks != before
