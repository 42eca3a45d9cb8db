"""CPU budget of this process: affinity, cgroup quota, and the user's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAX_DRAWING_THREADS = 8
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_V1_CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # one hierarchy, mounted by any of these names


def usable_cores(limit: int = 0, *, cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Returns the cores this process may run on, at least one; see `core_share`."""
    return max(1, round(core_share(limit, cgroup=cgroup, membership=membership)))


def core_share(limit: int = 0, *, cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """Returns the CPU time in cores that this process may take; a quota may be a fraction of one.

    Args:
        limit: the most that the user allows it, beside other programs on the host; 0: no limit.
        cgroup: where control groups are mounted.
        membership: says which of them this process is in.
    """
    affine = hasattr(os, "sched_getaffinity")
    cores = float(len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1)
    return min([cores, *([limit] if limit else []), *_quotas(cgroup, membership)])


def drawing_threads(threads: int, *, cores: int) -> int:
    """Returns the number of raymarcher threads on the CPU; for `threads` 0: one a core, within reason."""
    return threads or min(cores, MAX_DRAWING_THREADS)


def _quotas(cgroup: Path, membership: Path) -> Iterator[float]:
    """Yields the cores that each CPU quota amounts to: of the process's own group and of those around it."""
    in_v2, in_v1 = _groups(membership)
    for folder in _upwards(cgroup, in_v2):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2:
            yield from _cores(*words)
    for name in _V1_CONTROLLERS:
        for folder in _upwards(cgroup / name, in_v1):
            yield from _cores(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _groups(membership: Path) -> tuple[str, str]:
    """Returns the paths of the process's groups of version 2 and of version 1's `cpu` (cgroups(7))."""
    in_v2 = in_v1 = ""
    for line in _read(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            in_v2 = path
        elif "cpu" in controllers.split(","):
            in_v1 = path
    return in_v2, in_v1


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yields the folder of a group and those of the groups around it.

    In a container the path may be the host's, of which only the root is there.
    """
    inner = PurePosixPath(path.lstrip("/"))
    if ".." in inner.parts:
        inner = PurePosixPath()
    for group in (inner, *inner.parents):
        yield root / group


def _cores(quota: str, period: str) -> Iterator[float]:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file: no quota
        return
    if cores > 0:
        yield cores


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
