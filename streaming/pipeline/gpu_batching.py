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

GATHER_S = 0.001  # batching delay: that the first frame waits for others where the GPU is idle
LEAD_S = 0.001  # that a launch is submitted before the GPU is predicted to end the present one
MAX_FLYING = 2  # launches in flight: one that the GPU draws, and one queued
RECENT_S = 0.1  # sessions that asked within it are waited for
MAX_FRAMES = 32  # batch size; more would delay the first ones and gain nothing
_NEWEST = 0.25  # weight of the newest launch in the moving average of frame time


class BatchPolicy:
    """Decides when waiting frames become a batch. Time is the caller's, one thread at a time.

    Where the GPU is idle, the first frame waits for others for the batching delay. Where it draws, frames
    gather until shortly before the launch in flight is predicted to end; the next one is queued behind it.
    Behind that, all wait.
    """

    def __init__(
        self,
        *,
        gather_s: float = GATHER_S,
        max_frames: int = MAX_FRAMES,
        lead_s: float = LEAD_S,
        max_flying: int = MAX_FLYING,
    ) -> None:
        """Begins without a session.

        Args:
            gather_s: batching delay where the GPU is idle, at most.
            max_frames: of a batch.
            lead_s: that a launch is submitted before the one in flight is predicted to end.
            max_flying: launches in flight.
        """
        self.max_frames = max_frames
        self._gather_s, self._lead_s, self._max_flying = gather_s, lead_s, max_flying
        self._asked_s: dict[int, float] = {}  # when each asker asked last
        self._frame_s = 0.0  # of the GPU, as the last launches took
        self._flying: deque[tuple[int, float]] = deque()  # launches in flight: batch size, predicted end
        self._wakes_from: float = 1  # waiting frames from which on a request may change the decision

    def asked(self, asker: int, *, now_s: float) -> None:
        """Takes that a session requested a frame."""
        self._asked_s[asker] = now_s

    def submitted(self, frames: int, *, now_s: float) -> None:
        """Takes that a launch of so many frames was queued."""
        starts_s = max(self._flying[-1][1], now_s) if self._flying else now_s
        self._flying.append((frames, starts_s + frames * self._frame_s))

    def collected(self, kernel_ms: float, *, now_s: float) -> None:
        """Takes that the oldest launch has ended, and the time of its kernels."""
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
        """Returns whether `wait_s` may return another time now that so many frames wait."""
        return waiting >= self._wakes_from

    def wait_s(self, waiting: Sequence[tuple[int, float]], *, now_s: float) -> float | None:
        """Returns how long to wait for others; 0: submit now; None: until something changes.

        Args:
            waiting: session and time of each request, oldest first, no more than a batch.
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
    """A requested frame: a one-shot future."""

    def __init__(self, request: FrameRequest, asker: int, asked_s: float) -> None:
        self.request, self.asker, self.asked_s = request, asker, asked_s
        self.picture: U8 | None = None
        self._kept = False
        self.failure: Callable[[], Exception] | None = None  # each requester raises an exception of its own
        self._settled = False
        self._unsettled = threading.Lock()  # cheaper than an Event, of which each frame would need a new one
        self._unsettled.acquire()

    def settle(
        self,
        *,
        picture: U8 | None = None,
        kept: bool = False,
        failure: Callable[[], Exception] | None = None,
    ) -> None:
        """Sets picture or failure and wakes the requester; only the first time counts. Not thread-safe.

        A picture that is not to be kept is copied by the requester.
        """
        if not self._settled:
            self._settled, self.picture, self._kept, self.failure = True, picture, kept, failure
            self._unsettled.release()

    def wait(self, timeout_s: float) -> bool:
        """Returns whether it was settled within the timeout; for the requester."""
        return self._unsettled.acquire(timeout=timeout_s)

    def take(self) -> U8:
        """Returns the picture or a copy of it, in the request's `out` if it has one."""
        drawn, self.picture = self.picture, None
        assert drawn is not None  # settled without a failure
        if self._kept and self.request.out is None:
            return drawn
        out = self.request.out if self.request.out is not None else np.empty(drawn.shape, np.uint8)
        np.copyto(out, drawn)
        return out
