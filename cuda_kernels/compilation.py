"""Numba compilation with a checked cache on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

log = logging.getLogger(__name__)


class _CheckedFile(caching.IndexDataCacheFile):
    """Numba's cache files with a SHA-256 before the machine code: a flipped bit would be executed."""

    def _save_data(self, name: str, data: Any) -> None:  # noqa: ANN401 - numba's own
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:  # noqa: ANN401 - numba's own
        content = Path(self._data_path(name)).read_bytes()
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("the hash does not fit")
        return pickle.loads(content)


class DisposableCache(caching.FunctionCache):
    """Numba's cache of one function; damaged files are deleted, and failures to write ignored.

    Numba's own raises at each start until the damaged file is deleted by hand.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Finds the cache folder; RuntimeError where there is none."""
        super().__init__(function)
        self._cache_file = _CheckedFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401 - numba's own
        """Returns the compiled overload of a signature, None where it must be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 - unpickling raises whatever the bytes say
            log.warning("the cache of compiled kernels is damaged (%s): compiling anew", _reason(error))
            self._delete()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401 - numba's own
        """Saves a compiled overload for the next start, where there is room."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # noqa: BLE001 - of the file system, and of an index that is damaged meanwhile
            log.warning("compiled kernels could not be kept for the next start: %s", _reason(error))
            self._delete()
            self.disable()

    def _delete(self) -> None:
        folder = Path(self._cache_path)
        for file in folder.glob(f"{self._impl.filename_base}.*nb[ic]"):
            with contextlib.suppress(OSError):
                file.unlink()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:100] or type(error).__name__


@functools.cache
def compiled(function: Callable[..., Any], *, fast_maths: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """Returns the function compiled at its first call, or read from the cache on disk.

    Numba keeps its cache beside the source or, where that is read-only, in the user's cache directory
    (`NUMBA_CACHE_DIR` moves it); with neither writable it compiles anew in each process.
    """
    result: Any = numba.njit(nogil=True, fastmath=set(fast_maths), error_model="numpy")(function)
    try:
        result._cache = DisposableCache(function)
    except (RuntimeError, OSError):  # no locator available
        log.info("there is no place for compiled kernels: they are compiled at each start")
    compiled_function: Callable[..., Any] = result
    return compiled_function
