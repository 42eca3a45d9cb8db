"""Names of files and folders that are not whole yet, and what to do with those that killed programs left.

What is written whole or not at all is written beside its place under such a name, then renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
_NAME = re.compile(r"\..*\.([A-Za-z0-9-]{1,40})-(\d{1,10})\.(part|old)(?:\.\w+)?")
_ABANDONED_S = 86_400.0


def partial_path(path: Path) -> Path:
    """Returns a name beside `path` for what is not whole yet; its suffix stays, which some writers go by."""
    return path.with_name(f".{path.stem}.{_HOST}-{os.getpid()}.part{path.suffix}")


def aside_path(path: Path) -> Path:
    """Returns a name beside `path` for what was there, while something else takes its place."""
    return path.with_name(f".{path.stem}.{_HOST}-{os.getpid()}.old{path.suffix}")


def sweep_abandoned(folder: Path) -> None:
    """Removes what killed programs left in a folder: what is not whole, and whose process has ended.

    Another host's, on a shared disk, are removed once nobody has written to them for a day.
    """
    for path in _abandoned(folder, "part"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def restore_aside(path: Path) -> None:
    """Brings back what stepped aside for a program that was killed before anything took its place."""
    for aside in _abandoned(path.parent, "old"):
        if aside.name.startswith(f".{path.stem}.") and aside.suffix in (".old", path.suffix):
            with contextlib.suppress(OSError):
                if path.exists():
                    shutil.rmtree(aside)
                else:
                    aside.rename(path)


def _abandoned(folder: Path, kind: str) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*.{kind}*"):
            match = _NAME.fullmatch(path.name)
            if match is None or match[3] != kind:
                continue
            with contextlib.suppress(OSError):
                idle_s = time.time() - path.stat(follow_symlinks=False).st_mtime
                if (match[1] == _HOST and not _is_running(int(match[2]))) or idle_s > _ABANDONED_S:
                    found.append(path)
    return found


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # there, a file that is open cannot be removed
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
