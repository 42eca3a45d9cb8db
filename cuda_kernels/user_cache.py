"""The program's cache folder for compiled kernels and engines."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache_dir() -> Path:
    """Returns the program's folder in the user's cache on this platform; it need not exist."""
    return Path(platformdirs.user_cache_dir("geneface-stream", appauthor=False, opinion=False))
