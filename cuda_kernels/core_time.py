"""CPU time of a thread, with that of the threads that worked for it."""

from __future__ import annotations

import threading
import time


class _Helped(threading.local):
    by_s = 0.0


_helped = _Helped()


def core_time_s() -> float:
    """CPU seconds of the calling thread, and of those that worked for it, since some moment of its own.

    Only differences within one thread mean something. What others do on the same cores does not count, nor
    does waiting.
    """
    return time.thread_time() + _helped.by_s


def add_helpers_time(spent_s: float) -> None:
    """Counts CPU seconds that another thread spent for the calling one."""
    _helped.by_s += spent_s
