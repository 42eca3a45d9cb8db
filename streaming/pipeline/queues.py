"""A queue between two stages, bounded in milliseconds of media, with a drop rule."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Overflow(enum.Enum):
    """The drop rule of a full queue."""

    BLOCK = "block"  # files: the producer waits, nothing is lost
    DROP_OLDEST = "drop oldest"  # live: the newest matters


class Ended(Exception):  # noqa: N818 - the normal end of a stream, like StopIteration
    """The producer is done and everything it put was taken."""


class Aborted(Exception):  # noqa: N818 - an order, not an error
    """The run ended early; nothing more goes in or out."""


class BoundedQueue(Generic[T]):
    """First in, first out, at most `bound_ms` of media (a single longer item still passes)."""

    def __init__(
        self, *, name: str, bound_ms: float, overflow: Overflow, duration_ms: Callable[[T], float]
    ) -> None:
        self.name = name
        self.bound_ms = bound_ms
        self.overflow = overflow
        self.dropped = 0  # items that made room, or were passed over; read by metrics
        self._duration_ms = duration_ms
        self._items: deque[tuple[T, float]] = deque()
        self._waiting_ms = 0.0
        self._ended = False
        self._aborted = False
        self._changed = threading.Condition()

    @property
    def waiting_ms(self) -> float:
        """Milliseconds of media in the queue."""
        with self._changed:
            return self._waiting_ms

    def put(self, item: T) -> None:
        """Adds an item by the queue's overflow rule.

        Raises:
            Aborted: the queue was aborted, before or while waiting for room.
        """
        duration_ms = self._duration_ms(item)
        with self._changed:
            if self._ended:
                raise RuntimeError(f"queue {self.name}: put after the end")
            while self._items and self._waiting_ms + duration_ms > self.bound_ms and not self._aborted:
                if self.overflow is Overflow.BLOCK:
                    self._changed.wait()
                else:
                    self._waiting_ms -= self._items.popleft()[1]
                    self.dropped += 1
            if self._aborted:
                raise Aborted(self.name)
            self._items.append((item, duration_ms))
            self._waiting_ms += duration_ms
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None, *, choose: Callable[[Sequence[T]], int] | None = None) -> T:
        """Returns the oldest item, waiting for one.

        Args:
            timeout_s: how long to wait; None: for ever.
            choose: says which of the items there are to return, by its place among them, the oldest first;
                those before it are dropped.

        Raises:
            Ended: the producer is done and the queue is empty.
            Aborted: the queue was aborted.
            TimeoutError: nothing came within `timeout_s`.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._aborted:
                    raise Aborted(self.name)
                if self._items:
                    for _ in range(choose([item for item, _ in self._items]) if choose else 0):
                        self._waiting_ms -= self._items.popleft()[1]
                        self.dropped += 1
                    item, duration_ms = self._items.popleft()
                    self._waiting_ms = self._waiting_ms - duration_ms if self._items else 0.0
                    self._changed.notify_all()
                    return item
                if self._ended:
                    raise Ended(self.name)
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise TimeoutError(f"queue {self.name}: nothing came within {timeout_s} s")
                self._changed.wait(left_s)

    def wait_empty(self) -> None:
        """Returns once the queue is empty: its consumer is ready for more.

        Raises:
            Aborted: the queue was aborted.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or not self._items)
            if self._aborted:
                raise Aborted(self.name)

    def clear(self) -> None:
        """Empties the queue; it stays in use."""
        with self._changed:
            self._items.clear()
            self._waiting_ms = 0.0
            self._changed.notify_all()

    def end(self) -> None:
        """Ends the stream; `get` gives out the rest, then raises `Ended`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Wakes producers and consumers with `Aborted` and empties the queue."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._waiting_ms = 0.0
            self._changed.notify_all()
