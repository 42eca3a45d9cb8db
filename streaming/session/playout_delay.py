"""Playout delay: time budgeted between a frame's last look-ahead sample and its send deadline."""

from __future__ import annotations

import math
from collections import deque

from ..webrtc.media_schedule import MAX_PLAYOUT_DELAY_TICKS, MIN_PLAYOUT_DELAY_TICKS, TICK_S

LOSSES = 4  # frames lost within a second: a smaller size could not help, or not yet
WITHIN_S = 1.0
EASY_S = 5.0  # for which every frame would have been ready one tick earlier, too
MAX_EASY_S = 160.0  # the same after ticks that were given back were soon missed
SPARE_MS = 12.0  # by which they would have been ready beyond that
SETTLE_S = 0.4  # frames under way were begun with the old delay


def playout_delay_ticks_for(serial_ms: float) -> int:
    """Returns the playout delay in ticks for a frame whose stages take `serial_ms` in all, undisturbed.

    Half as much again and half a tick, for a machine that others use too.
    """
    ticks = math.ceil((1.5 * serial_ms + TICK_S * 500) / (TICK_S * 1000))
    return min(max(ticks, MIN_PLAYOUT_DELAY_TICKS), MAX_PLAYOUT_DELAY_TICKS)


class PlayoutDelay:
    """A session's playout delay: one tick longer when frames keep missing it, one shorter when all beat it.

    A constant one would drop most frames of a call whose machine has become busy. The sound moves along, so
    lips and sound stay together; the receiver's own jitter buffer smooths the 20 ms.
    """

    def __init__(self, ticks: int) -> None:
        """Begins at a number of ticks."""
        self.ticks = ticks
        """20 ms each."""
        self._losses_s: deque[float] = deque(maxlen=LOSSES)
        self._easy_since_s: float | None = None
        self._easy_s = EASY_S
        self._given_back_s = float("-inf")
        self._settled_s = float("-inf")

    @classmethod
    def at_start(cls, frame_latency_ms: float) -> PlayoutDelay:
        """Returns the playout delay of a new session: one tick more, as connecting takes the cores, too."""
        return cls(min(playout_delay_ticks_for(frame_latency_ms) + 1, MAX_PLAYOUT_DELAY_TICKS))

    def frame_lost(self, *, now_s: float) -> bool:
        """Takes that a frame missed its deadline; returns whether `ticks` changed."""
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
        """Takes a frame's slack before its deadline; returns whether `ticks` changed."""
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
        self.ticks = min(max(before + ticks, MIN_PLAYOUT_DELAY_TICKS), MAX_PLAYOUT_DELAY_TICKS)
        self._losses_s.clear()
        self._easy_since_s = None
        self._settled_s = now_s + SETTLE_S
        return self.ticks != before
