"""A watchdog of network runs: terminates them at their deadline, and when the program ends.

A network comes with a bundle and may hold an endless loop. ONNX Runtime checks between two operators whether
a run is to be terminated; loops are made of operators.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

_LOOK_S = 0.1


class RunOptions(Protocol):
    """The part of ONNX Runtime's `RunOptions` that is used here."""

    terminate: bool


class RunWatch:
    """Terminates runs at their deadlines; thread-safe, with one watchdog thread."""

    def __init__(self) -> None:
        """Begins without a run; the watchdog thread starts with the first and is never stopped."""
        self._lock = threading.Lock()
        self._running: dict[int, tuple[RunOptions, float]] = {}  # with the watched time of its end
        self._watched_s = 0.0  # this program's own time: while it is stopped, nothing runs late
        self._began = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def bounded(self, options: RunOptions, limit_s: float) -> Iterator[None]:
        """Terminates a run with `options` in the block after `limit_s`."""
        with self._lock:
            self._running[id(options)] = (options, self._watched_s + limit_s)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="run-watch", daemon=True)
                self._watcher.start()
        self._began.set()
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(options)]

    def terminate_all(self) -> None:
        """Terminates every run there is now; later ones may run."""
        with self._lock:
            for options, _ in self._running.values():
                options.terminate = True

    def _watch(self) -> None:
        while True:
            self._began.wait()
            before_s = time.monotonic()
            time.sleep(_LOOK_S)
            with self._lock:
                self._watched_s += min(time.monotonic() - before_s, 2 * _LOOK_S)
                for options, end_s in self._running.values():
                    if self._watched_s > end_s:
                        options.terminate = True
                if not self._running:
                    self._began.clear()


RUN_WATCH = RunWatch()
"""Of all networks of this process."""
