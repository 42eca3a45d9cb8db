"""Regular files opened without blocking (pipes and devices are refused), and paths with links resolved."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from cuda_kernels.errors import InputError


def open_regular(path: Path) -> BinaryIO:
    """Returns a file opened for reading; never waits.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe, a socket or a device.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - handed on
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file, but a pipe or a device")
    return file


def real_path(name: str, path: Path) -> Path:
    """Returns the path with its links resolved; one in a circle stays.

    Raises:
        InputError: it is relative and the working folder is gone.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise InputError(
            f"{name}: expected a path that can be followed, got {got}; give a whole one"
        ) from None
