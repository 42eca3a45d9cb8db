"""A clock that goes on when a test says so."""

from __future__ import annotations


class ManualClock:
    """Stands for the machine's monotonic clock and, with `cpu_s`, for its CPU clock."""

    def __init__(self, time_s=0.0):
        self.time_s = time_s
        self.cpu_s = 0.0

    def now_s(self):
        return self.time_s

    def thread_s(self):
        return self.cpu_s

    def process_s(self):
        return self.cpu_s
