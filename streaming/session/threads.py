"""The threads of one session: named after it, stopped together, joined with a deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..errors import Stopped

_JOIN_S = 2.0


class SessionThreads:
    """Runs the session's work off the event loop."""

    def __init__(
        self,
        label: str,
        *,
        on_failure: Callable[[str], None],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """Begins without a thread.

        Args:
            label: of the session, in the threads' names.
            on_failure: told the name of work that raised, from its thread.
            log: of the session; takes the traceback.
        """
        self.stopping = threading.Event()
        """Set by the owner: all work is to return."""
        self._label, self._on_failure, self._log = label, on_failure, log
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[threading.Event], None]) -> None:
        """Runs `work(stopping)` in a thread; `Stopped` ends it as a return does."""

        def guarded() -> None:
            try:
                work(self.stopping)
            except Stopped:
                pass
            except Exception:  # noqa: BLE001 - a thread's outermost frame
                self._log.exception("the %s thread failed", name)
                self._on_failure(name)

        thread = threading.Thread(target=guarded, name=f"geneface-{name}-{self._label}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Waits for each thread for at most two seconds; one that goes on is logged and left."""
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                self._log.error("thread %s did not end within %.0f s", thread.name, _JOIN_S)
        self._threads.clear()
