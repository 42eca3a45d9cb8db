"""The program as a process of its own, and what it says of itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from patience import PATIENCE_S, until

ROOT = Path(__file__).resolve().parents[2]


class LiveServer:
    """`geneface-stream` on a free port of this machine."""

    def __init__(self, log: Path, *flags: str, token: str = "") -> None:
        """Starts it and waits until it listens."""
        self._token, self._log = token, log
        if token:
            flags = (*flags, "--token", token)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GENEFACE_")}
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streaming.cli", "--port", "0", *flags],
                cwd=ROOT,
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            until(lambda: self._greeting() or self._process.poll() is not None)
            greeting = self._greeting()
            assert greeting, f"the server did not start:\n{self.log()}"
            self.url = greeting[1]
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _greeting(self) -> re.Match[str] | None:
        return re.search(r"Open (http://\S+?/)(#\S*)? in a browser", self.log())

    def log(self) -> str:
        """Returns what it has written so far."""
        return self._log.read_text()

    def metric(self, name: str) -> float:
        """Returns a metric, summed over its labels; 0 of one that is not there."""
        request = Request(f"{self.url}metrics", headers={"Authorization": f"Bearer {self._token}"})
        with urlopen(request, timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def sessions(self) -> int:
        """Returns how many sessions it has now."""
        return round(self.metric("geneface_sessions_active"))

    def until_sessions(self, count: int) -> None:
        """Waits for a number of sessions."""
        until(lambda: self.sessions() == count, what=f"{count} sessions")

    def stop(self) -> None:
        """Ends it as Ctrl+C does, once; what went wrong while it ran is a failure."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE_S)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        log = self.log()
        faults = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception|Disconnect\w*)\b.*$", log, re.MULTILINE)
        assert "Traceback" not in log, f"{log.count('Traceback')} tracebacks in {self._log}: {set(faults)}"
        assert log.endswith("geneface-stream: ended\n"), log
