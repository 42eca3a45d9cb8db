"""Terminal output: control characters are escaped, and a closed stream does not end the run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from .settings import escaped


class VisibleFormatter(logging.Formatter):
    """Log records with every character visible; only a traceback has more than one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Returns the record's line."""
        return escaped(super().formatMessage(record))

    def formatException(  # noqa: N802 -- logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """Returns the traceback's lines."""
        return "\n".join(map(escaped, super().formatException(ei).split("\n")))


def log_to_stderr(level: int, line: str) -> None:
    """Sets logging up for a command line.

    Args:
        level: from which on records are shown.
        line: how, in logging's `%` style.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])


def with_safe_streams(program: str, run: Callable[[], int]) -> int:
    """Returns the exit code of `run`, whatever stdout and stderr are: closed, full, in a narrow encoding.

    What does not fit the encoding is written as escapes. What cannot be written is dropped; for stdout the
    exit code is then 1 where it would be 0, and stderr says so. Ctrl-C ends it with one line and exit code 1.
    """
    _fill_descriptors()
    with contextlib.ExitStack() as opened:
        streams = [
            _Stream(stream or opened.enter_context(Path(os.devnull).open("w")))
            for stream in (sys.stdout, sys.stderr)
        ]
        out, err = streams
        opened.enter_context(contextlib.redirect_stdout(typing.cast(TextIO, out)))
        opened.enter_context(contextlib.redirect_stderr(typing.cast(TextIO, err)))
        try:
            code = run()
        except KeyboardInterrupt:
            err.write(f"{program}: stopped by SIGINT\n")
            code = 1
        except SystemExit as ended:  # argparse's
            out.flush()
            if out.lost is None:
                raise
            code = ended.code if isinstance(ended.code, int) else 1
        out.flush()
        err.flush()
        if out.lost is not None:
            reason = (out.lost.strerror or str(out.lost)).lower()
            err.write(f"{program}: could not write to standard output ({reason}); what it says is lost\n")
        return code or (1 if out.lost is not None else 0)


class _Stream:
    """A standard stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None  # why it writes no more
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._unless_lost(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._unless_lost(self._stream.flush)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _unless_lost(self, act: Callable[..., object], *given: str) -> None:
        if self.lost is not None:
            return
        try:
            act(*given)
        except OSError as error:
            self.lost = error
            # What is left in its buffer goes nowhere, or the interpreter fails on it at its end.
            with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def _fill_descriptors() -> None:
    """Opens the closed ones of 0, 1 and 2: a file with such a number would get a library's messages."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
