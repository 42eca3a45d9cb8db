"""The live server as a subprocess."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_READY_S = 180.0  # kernels may have to be compiled
_STOP_S = 10.0
_POLL_S = 0.01


class ServerError(Exception):
    """The server did not start, or ended by itself; the message has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A process's resources and CPU time so far."""

    cpu_s: float
    rss_mb: float
    threads: int
    open_files: int  # descriptors; sockets are among them


class ServerProcess:
    """`geneface-stream` on a free port of this machine; a context that ends it."""

    def __init__(self, flags: Sequence[str], log: Path) -> None:
        """Takes the settings; entering the context starts it.

        Args:
            flags: of `geneface-stream`, but for the port.
            log: where its output goes.
        """
        self._flags = tuple(flags)
        self._log = log
        self._process: psutil.Popen | None = None
        self.port = 0
        self.ready_s = 0.0  # from the start of the process to its first word that it is ready

    def __enter__(self) -> ServerProcess:
        """Starts the server and waits until it is ready.

        Raises:
            ServerError: it does not get ready.
        """
        self.port = _free_port()
        start_s = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-m", "streaming.cli", "--port", str(self.port), *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).resolve().parents[1],
            )
        try:
            self._wait_until_ready(start_s + _READY_S)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.perf_counter() - start_s
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the server."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def origin(self) -> str:
        """Its address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def usage(self) -> Usage:
        """Returns the server's resources and CPU time so far.

        Raises:
            ServerError: it exited by itself.
        """
        process = self._running()
        with process.oneshot():
            times = process.cpu_times()
            return Usage(
                cpu_s=times.user + times.system,
                rss_mb=process.memory_info().rss / 1e6,
                threads=process.num_threads(),
                open_files=process.num_handles() if psutil.WINDOWS else process.num_fds(),
            )

    def get(self, path: str) -> str:
        """Returns the text at a path.

        Raises:
            ServerError: it exited by itself.
            OSError: it does not answer.
        """
        self._running()
        with urllib.request.urlopen(self.origin + path, timeout=_STOP_S) as answer:
            return str(answer.read().decode())

    def faults(self) -> int:
        """Returns how many tracebacks its log holds."""
        return self._log.read_text(errors="replace").count("Traceback (most recent call last)")

    def stop(self) -> None:
        """Ends the server; a second time, or unstarted, it does nothing."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, deadline_s: float) -> None:
        while True:
            try:
                self.get("/readyz")
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                pass
            else:
                return
            if time.perf_counter() > deadline_s:
                raise ServerError(f"the server was not ready within {_READY_S:.0f} s: {self._last_words()}")
            time.sleep(_POLL_S)

    def _running(self) -> psutil.Popen:
        process = self._process
        if process is None:
            raise ServerError("the server was not started")
        code = process.poll()
        if code is not None:
            raise ServerError(f"the server ended by itself, exit code {code}: {self._last_words()}")
        return process

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
