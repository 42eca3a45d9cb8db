"""Memory of a long-running server: few malloc arenas, and trimming after a session ends."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # malloc.h of glibc
_ARENAS = 2


def _libc() -> ctypes.CDLL | None:
    """Returns glibc, None where the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep_few_arenas() -> None:
    """Limits glibc's malloc to two arenas for all threads.

    It would give each new thread an arena of its own, up to eight for each core, and keep what ended threads
    left in theirs: two megabytes for each session that comes and goes.
    """
    library = _libc()
    if library is not None and not library.mallopt(_M_ARENA_MAX, _ARENAS):
        log.info("the C library's number of heaps could not be limited; memory may grow by some sessions")


def settle() -> None:
    """Freezes the garbage collector's present objects: `reclaim` need not traverse them again."""
    gc.collect()
    gc.freeze()


def reclaim() -> None:
    """Collects reference cycles of ended sessions, and returns free pages to the system (malloc_trim)."""
    gc.collect()
    library = _libc()
    if library is not None:
        library.malloc_trim(0)
