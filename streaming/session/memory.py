"""Memory that a long-running server holds: what a session took is given back when it ends."""

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
    """Lets all threads share two heaps, where the C library is glibc.

    It would give each new thread a heap of its own, up to eight for each core, and keep what ended threads
    left in theirs: two megabytes for each session that comes and goes.
    """
    library = _libc()
    if library is not None and not library.mallopt(_M_ARENA_MAX, _ARENAS):
        log.info("the C library's number of heaps could not be limited; memory may grow by some sessions")


def settle() -> None:
    """Tells the garbage collector that all there is now stays; `reclaim` need not look at it again."""
    gc.collect()
    gc.freeze()


def reclaim() -> None:
    """Frees what an ended session held in cycles, and gives free pages back to the system."""
    gc.collect()
    library = _libc()
    if library is not None:
        library.malloc_trim(0)
