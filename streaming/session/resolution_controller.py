"""Adaptive render resolution: stepped down before frames are dropped, stepped up with hysteresis."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.time_base import FRAME_MS

from ..pipeline.render_size import pixels_of_a_picture

RECENT_S = 1.0  # window of stepping down
EASY_S = 5.0  # window of stepping up: all of it without overload
SETTLE_S = 0.6  # after a change the pipeline still gives out frames of the old size
FIRST_HOLD_S, MAX_HOLD_S = 10.0, 160.0  # exponential backoff before a size that failed is tried again
LONG_SUCCESS_S = 120.0  # a size that held this long begins with the first backoff again

FULL_SHARE = 0.85  # of the budget: frames that take more leave no room for a busier moment
TARGET_SHARE = 0.70  # where a step down means to land
BACK_SHARE = 0.75  # where a step back up to the wanted size must land, as predicted
BEYOND_SHARE = 0.60  # where a step beyond it must
EXPENSIVE_SHARE = 0.60  # below it, a frame that was lost was hardly lost to drawing

TIGHT_MS, EASY_MS = 4.0, 10.0  # slack before the deadline
_TIGHT_FRAMES = 5
_ENOUGH_FRAMES = 8
_LOSS_GAP_S = 0.5  # frames lost closer together than this went in one moment
_LOSSES, _LOSSES_WITHIN_S = 3, 10.0  # moments of loss that cost size even where drawing is cheap
_MAX_MEASURED = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    at_s: float
    draw_ms: float
    slack_ms: float


class ResolutionController:
    """Chooses the render size from frame times. For one thread; time is the caller's.

    The cost model of a frame is a fixed part and a part proportional to its pixels. Their ratio is estimated
    from the sizes seen, so that a deep overload is left in one step and a larger size is tried only where it
    is predicted to fit. Hysteresis between the shares for going down and up, and exponential backoff before a
    size that failed is tried again, keep it from oscillating.
    """

    def __init__(
        self,
        *,
        sizes_px: Sequence[int],
        start_px: int,
        budget_ms: float = FRAME_MS,
        pixels: Callable[[int], float] = pixels_of_a_picture,
    ) -> None:
        """Begins at a size.

        Args:
            sizes_px: the sizes there are; `start_px` is one of them, named or not.
            start_px: the size wanted.
            budget_ms: time from one frame to the next.
            pixels: that are drawn at a size.
        """
        self.size_px = start_px
        self.note = ""
        """Why the size is smaller than wanted; empty when it is not."""
        self._reason = ""
        self._start_px = start_px
        self._sizes_px = sorted({*sizes_px, start_px})  # smallest first
        self._budget_ms = budget_ms
        self._pixels = pixels
        self._frames: deque[_Measured] = deque(maxlen=_MAX_MEASURED)  # of this size, in the last EASY_S
        self._losses_s: deque[float] = deque(maxlen=_LOSSES)  # when frames were lost, a moment once
        self._settled_s = float("-inf")
        self._since_s: float | None = None  # when the first frame of this size came
        self._hold_s: dict[int, float] = {}
        self._held_until_s: dict[int, float] = {}
        self._fixed_pixels = 0.0  # the fixed part of a frame's cost, in pixels that cost as much
        self._before: tuple[int, float] | None = None  # the last size and its median frame time

    def frame_done(self, *, now_s: float, draw_ms: float, slack_ms: float) -> bool:
        """Takes a frame's times and returns whether `size_px` changed.

        Args:
            now_s: monotonic time.
            draw_ms: wall time of drawing it at the current size.
            slack_ms: how long before its deadline it was ready; negative when it was late.
        """
        self._begin(now_s)
        if now_s < self._settled_s:
            return False
        self._frames.append(_Measured(at_s=now_s, draw_ms=draw_ms, slack_ms=slack_ms))
        while self._frames[0].at_s < now_s - EASY_S:
            self._frames.popleft()
        self._learn()
        return self._step_down_if_overloaded(now_s, slack_ms) or self._enlarge_if_easy(now_s)

    def frame_lost(self, *, now_s: float) -> bool:
        """Takes that a frame was late or skipped; returns whether `size_px` changed."""
        self._begin(now_s)
        if now_s < self._settled_s:
            return False
        if not self._losses_s or now_s - self._losses_s[-1] >= _LOSS_GAP_S:
            self._losses_s.append(now_s)
        recent = self._recent(now_s)
        expensive = bool(recent) and _quantile(_draws(recent), 0.5) >= EXPENSIVE_SHARE * self._budget_ms
        moments = sum(at_s > now_s - _LOSSES_WITHIN_S for at_s in self._losses_s)
        if expensive or moments >= _LOSSES:  # a hiccup of the machine would cost a frame at any size
            return self._shrink(now_s, recent, "frames were lost")
        return False

    def _begin(self, now_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s

    def _recent(self, now_s: float) -> list[_Measured]:
        return [frame for frame in self._frames if frame.at_s > now_s - RECENT_S]

    def _step_down_if_overloaded(self, now_s: float, slack_ms: float) -> bool:
        recent = self._recent(now_s)
        if len(recent) >= _ENOUGH_FRAMES:
            draw_ms = _quantile(_draws(recent), 0.9)
            if draw_ms > FULL_SHARE * self._budget_ms:
                return self._shrink(now_s, recent, f"frames took {draw_ms:.0f} of {self._budget_ms:.0f} ms")
        # After a stall frames catch up; only while they are still tight is it the size.
        if slack_ms < TIGHT_MS and sum(frame.slack_ms < TIGHT_MS for frame in recent) >= _TIGHT_FRAMES:
            return self._shrink(now_s, recent, "frames were ready too late")
        return False

    def _shrink(self, now_s: float, recent: list[_Measured], reason: str) -> bool:
        smaller = [size for size in self._sizes_px if size < self.size_px]
        if not smaller:
            return False
        draw_ms = _quantile(_draws(recent), 0.9) if recent else 0.0
        fitting = [
            size for size in smaller if self._predicted_ms(draw_ms, size) <= TARGET_SHARE * self._budget_ms
        ]
        self._hold(now_s)
        self._change(now_s, fitting[-1] if fitting else smaller[0])
        self._reason = reason
        self._say()
        return True

    def _hold(self, now_s: float) -> None:
        assert self._since_s is not None
        last_s = self._hold_s.get(self.size_px)
        first_time = last_s is None or now_s - self._since_s >= LONG_SUCCESS_S
        hold_s = FIRST_HOLD_S if first_time or last_s is None else min(2 * last_s, MAX_HOLD_S)
        self._hold_s[self.size_px] = hold_s
        self._held_until_s[self.size_px] = now_s + hold_s

    def _enlarge_if_easy(self, now_s: float) -> bool:
        larger = next((size for size in self._sizes_px if size > self.size_px), None)
        assert self._since_s is not None
        if larger is None or now_s < self._held_until_s.get(larger, now_s):
            return False
        if now_s - max(self._settled_s, self._since_s) < EASY_S or len(self._frames) < _ENOUGH_FRAMES:
            return False
        if self._losses_s and now_s - self._losses_s[-1] < EASY_S:
            return False
        if _quantile([frame.slack_ms for frame in self._frames], 0.1) < EASY_MS:
            return False
        draw_ms = _quantile(_draws(self._frames), 0.9)
        share = BACK_SHARE if larger <= self._start_px else BEYOND_SHARE
        if self._predicted_ms(draw_ms, larger) > share * self._budget_ms:
            return False
        self._change(now_s, larger)
        self._say()
        return True

    def _change(self, now_s: float, size_px: int) -> None:
        recent = self._recent(now_s)
        enough = len(recent) >= _ENOUGH_FRAMES
        self._before = (self.size_px, _quantile(_draws(recent), 0.5)) if enough else None
        self.size_px = size_px
        self._frames.clear()
        self._losses_s.clear()
        self._since_s = now_s
        self._settled_s = now_s + SETTLE_S

    def _say(self) -> None:
        self.note = f"smaller: {self._reason}" if self.size_px < self._start_px else ""

    # The cost of a frame: b (fixed pixels + pixels), with b from the frames of the moment ----------------

    def _predicted_ms(self, draw_ms: float, size_px: int) -> float:
        fixed = self._fixed_pixels
        return draw_ms * (fixed + self._pixels(size_px)) / (fixed + self._pixels(self.size_px))

    def _learn(self) -> None:
        """Sets the fixed pixels from the frames before and after a change, once there are enough after it."""
        if self._before is None or len(self._frames) < _ENOUGH_FRAMES:
            return
        (before_px, before_ms), self._before = self._before, None
        pairs = sorted([(before_px, before_ms), (self.size_px, _quantile(_draws(self._frames), 0.5))])
        (small_px, small_ms), (large_px, large_ms) = pairs
        if not 0 < small_ms < large_ms:
            return  # the machine changed more than the size did
        ratio = small_ms / large_ms
        fixed = (ratio * self._pixels(large_px) - self._pixels(small_px)) / (1 - ratio)
        fixed = min(max(fixed, 0.0), self._pixels(self._sizes_px[-1]))
        self._fixed_pixels = (self._fixed_pixels + fixed) / 2


def _draws(frames: Sequence[_Measured] | deque[_Measured]) -> list[float]:
    return [frame.draw_ms for frame in frames]


def _quantile(values: Sequence[float], share: float) -> float:
    """Returns the value that `share` of the values stay below; at least one value."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
