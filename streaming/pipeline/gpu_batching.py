"""Dynamic batching of the frames that all sessions ask one GPU for."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cuda_kernels.arrays import U8

if TYPE_CHECKING:
    from cuda_kernels.cuda_raymarcher import FrameRequest

GATHER_S = 0.001  # that the first frame of a launch waits for others where the GPU draws nothing
LEAD_S = 0.001  # that a launch is submitted before the GPU is expected to end the one at hand
MAX_FLYING = 2  # launches: one that the GPU draws, and one behind it
RECENT_S = 0.1  # who asked within the last two frames is waited for
MAX_FRAMES = 32  # of a launch: more would make the first ones wait, and gain nothing
_NEWEST = 0.25  # weight of the newest launch in what a frame is expected to take


class BatchPolicy:
    """Decides when the frames that were asked for are submitted. Time is the caller's, one thread at a time.

    Where the GPU draws nothing, the first frame waits a moment for others. Where it draws, frames gather
    until shortly before it is expected to end; a launch behind the one at hand keeps it busy. Behind that,
    all wait.
    """

    def __init__(
        self,
        *,
        gather_s: float = GATHER_S,
        max_frames: int = MAX_FRAMES,
        lead_s: float = LEAD_S,
        max_flying: int = MAX_FLYING,
    ) -> None:
        """Knows nobody yet.

        Args:
            gather_s: that a frame waits for others where the GPU draws nothing, at most.
            max_frames: so many are not waited beyond.
            lead_s: that a launch is submitted before the one at hand is expected to end.
            max_flying: launches that are submitted and not collected.
        """
        self.max_frames = max_frames
        self._gather_s, self._lead_s, self._max_flying = gather_s, lead_s, max_flying
        self._asked_s: dict[int, float] = {}  # when each asker asked last
        self._frame_s = 0.0  # of the GPU, as the last launches took
        self._flying: deque[tuple[int, float]] = deque()  # of launches: frames, and when they are expected
        self._wakes_from: float = 1  # from so many waiting on, who asks may change what was decided

    def asked(self, asker: int, *, now_s: float) -> None:
        """Takes that someone asked for a frame."""
        self._asked_s[asker] = now_s

    def submitted(self, frames: int, *, now_s: float) -> None:
        """Takes that a launch of so many frames is behind those under way."""
        starts_s = max(self._flying[-1][1], now_s) if self._flying else now_s
        self._flying.append((frames, starts_s + frames * self._frame_s))

    def collected(self, kernel_ms: float, *, now_s: float) -> None:
        """Takes that the oldest launch has ended, and what its kernels took."""
        frames, _ = self._flying.popleft()
        if kernel_ms > 0:  # else it failed
            frame_s = kernel_ms / 1000 / frames
            known = self._frame_s > 0
            self._frame_s = _NEWEST * frame_s + (1 - _NEWEST) * self._frame_s if known else frame_s
        ends_s = now_s
        for place, (others, _) in enumerate(self._flying):
            ends_s += others * self._frame_s
            self._flying[place] = (others, ends_s)

    def should_wake(self, waiting: int) -> bool:
        """Returns whether `wait_s` may say something else now that so many frames wait."""
        return waiting >= self._wakes_from

    def wait_s(self, waiting: Sequence[tuple[int, float]], *, now_s: float) -> float | None:
        """Returns how long to wait for others; 0: submit now. None: nothing is to be submitted for now.

        Args:
            waiting: who asked and when, oldest first.
            now_s: the time.
        """
        if len(self._flying) >= self._max_flying:
            self._wakes_from = math.inf
            return None
        if not waiting:
            self._wakes_from = 1
            return None
        self._asked_s = {who: at_s for who, at_s in self._asked_s.items() if now_s - at_s <= RECENT_S}
        self._wakes_from = min(self.max_frames, len(self._asked_s))
        if len(waiting) >= self.max_frames or self._asked_s.keys() <= {who for who, _ in waiting}:
            return 0.0
        until_s = self._flying[0][1] - self._lead_s if self._flying else waiting[0][1] + self._gather_s
        return max(until_s - now_s, 0.0)


class PendingFrame:
    """A frame that was asked for."""

    def __init__(self, request: FrameRequest, asker: int, asked_s: float) -> None:
        self.request, self.asker, self.asked_s = request, asker, asked_s
        self.picture: U8 | None = None
        self.failure: Callable[[], Exception] | None = None  # each who waits raises one of its own
        self._settled = False
        self._unsettled = threading.Lock()  # cheaper than an Event, of which each frame would need a new one
        self._unsettled.acquire()

    def settle(self, *, picture: U8 | None = None, failure: Callable[[], Exception] | None = None) -> None:
        """Lets who waits go on; only the first time counts. Not for two threads at once."""
        if not self._settled:
            self._settled, self.picture, self.failure = True, picture, failure
            self._unsettled.release()

    def wait(self, timeout_s: float) -> bool:
        """Returns whether it is settled, after at most so long; for one thread, until it is."""
        return self._unsettled.acquire(timeout=timeout_s)

    def take(self) -> U8:
        """Returns a copy of the picture, in the request's `out` if it has one; the other is let go."""
        drawn, self.picture = self.picture, None
        assert drawn is not None  # settled without a failure
        out = self.request.out if self.request.out is not None else np.empty(drawn.shape, np.uint8)
        np.copyto(out, drawn)
        return out
