"""Memory that this process may still allocate: of the machine, and of its control group."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_GROUPS = (
    ("", "memory.max", "memory.current"),  # version 2
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
)
"""Folder, limit and use of a control group."""


def free_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Returns the memory that this process may still allocate, None where it is unknown."""
    free = []
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free += [int(found[1]) * 1024] if found else []
    for folder, limit, used in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            left = int((cgroup / folder / limit).read_text()) - int((cgroup / folder / used).read_text())
            # The group is charged with files that were read, and gives them up for what is allocated.
            stat = (cgroup / folder / "memory.stat").read_text()
            cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
            free.append(left + (int(cached[1]) if cached else 0))
    return min(free) if free else None
