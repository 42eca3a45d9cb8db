"""Where this program keeps what it compiled for a machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache_dir() -> Path:
    """Returns the program's folder in the user's cache on this platform; it need not exist."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        stated = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG base directory specification: a relative path is to be ignored.
        base = Path(stated) if stated and Path(stated).is_absolute() else home / ".cache"
    return base / "geneface-stream"
