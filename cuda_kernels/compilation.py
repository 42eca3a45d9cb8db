"""Python functions compiled by Numba, cached on disk where there is a place for that."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba


@functools.cache
def compiled(function: Callable[..., Any], *, fast_maths: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """The function, compiled at its first call or read from the cache on disk.

    Numba keeps its cache beside the source or, where that is read-only, in the user's cache directory
    (`NUMBA_CACHE_DIR` moves it); with neither writable it compiles anew in each process.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fast_maths), "error_model": "numpy"}
    try:
        result: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no locator available: nowhere to write
        result = numba.njit(**options)(function)
    return result
