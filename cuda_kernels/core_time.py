"""CPU time of a thread and of its worker threads."""

from __future__ import annotations

import threading
import time


class _Helped(threading.local):
    by_s = 0.0


_helped = _Helped()


def core_time_s() -> float:
    """Returns CPU seconds of the calling thread and of its workers, since an arbitrary epoch.

    Only differences within one thread are meaningful; waiting and other threads do not count.
    """
    return time.thread_time() + _helped.by_s


def add_helpers_time(spent_s: float) -> None:
    """Adds CPU seconds that a worker spent for the calling thread."""
    _helped.by_s += spent_s
