"""Atomic writes: a file is written beside its place under a temporary name, then renamed.

What killed programs left under such names is swept.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
_NAME = re.compile(
    r"\.(?P<stem>.+)\.geneface-(?P<host>[A-Za-z0-9-]{1,40})-(?P<process>\d{1,10})\.(?P<kind>part|old)"
    r"(?P<suffix>\.\w+)?",
    re.DOTALL,
)
# A process of another container may have this host's name and a number that is not seen here: it writes on.
_IDLE_S = 60.0
_ABANDONED_S = 86_400.0


class PartialFile:
    """A file written under another name beside its place, until it is whole.

    Attributes:
        path: its place.
        part: where it is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = partial_path(path)

    def flush(self) -> None:
        """Flushes the file to disk; some file systems report only now that it is full."""
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Gives the file its name, in place of what has it."""
        self.part.replace(self.path)

    def discard(self) -> None:
        """Removes what is not published."""
        with contextlib.suppress(OSError):
            self.part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Gives the name to write under; what is there at the block's end takes the place of `path`.

    Where the block raises, `path` stays as it was, with nothing beside it. What killed programs left in the
    folder is swept.

    Args:
        path: what is written.
        flush: whether it must outlive a crash of the machine.
    """
    sweep_abandoned(path.parent)
    file = PartialFile(path)
    try:
        yield file.part
        if flush:
            file.flush()
        file.publish()
    finally:
        file.discard()


def partial_path(path: Path) -> Path:
    """Returns a name beside `path` for what is not whole yet; its suffix stays, which some writers go by."""
    return _beside(path, "part")


def aside_path(path: Path) -> Path:
    """Returns a name beside `path` for what was there, while something else takes its place."""
    return _beside(path, "old")


def sweep_abandoned(folder: Path) -> None:
    """Removes what killed programs left in a folder: what is not whole, and whose process has ended.

    What was written to in the last minute stays; another host's, on a shared disk, stays for a day.
    """
    for path, match in _ours(folder, "part"):
        idle_s = time.time() - _written_s(path)
        if idle_s > (_IDLE_S if _has_ended(match) else _ABANDONED_S):
            _remove(path)


def restore_aside(path: Path) -> None:
    """Brings back what stepped aside for a program that was killed before anything took its place."""
    for aside, match in _ours(path.parent, "old"):
        if (match["stem"], match["suffix"] or "") != (path.stem, path.suffix) or not _has_ended(match):
            continue
        if path.exists():
            _remove(aside)
        else:
            with contextlib.suppress(OSError):
                aside.rename(path)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.stem}.geneface-{_HOST}-{os.getpid()}.{kind}{path.suffix}")


def _ours(folder: Path, kind: str) -> list[tuple[Path, re.Match[str]]]:
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None and match["kind"] == kind:
                found.append((path, match))
    return found


def _written_s(path: Path) -> float:
    """Returns when a file, or anything in a folder, was last written to; now where that cannot be seen."""
    try:
        inside = [] if path.is_symlink() or not path.is_dir() else [*path.iterdir()]
        return max(entry.stat(follow_symlinks=False).st_mtime for entry in (path, *inside))
    except OSError:
        return time.time()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _has_ended(match: re.Match[str]) -> bool:
    return match["host"] == _HOST and not _is_running(int(match["process"]))


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
