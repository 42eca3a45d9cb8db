"""The live server as a process of its own, with a raymarcher that costs next to nothing."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import psutil
import stand_ins
from patience import PATIENCE_S, until

# `prepare` runs once the program does: as for a user, nothing heavy is imported before.
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from streaming import cli
serve = cli._serve
def prepared(*given):
    import stand_ins
    from streaming.server import app
    from streaming.pipeline import gpu_renderer
    gpu_renderer.find_cuda_device = lambda: None
    names = dict(sys=sys, stand_ins=stand_ins, app=app)
    exec({prepare!r}, names)
    return serve(*given[:2], names.get("open_raymarcher"))
cli._serve = prepared
sys.exit(cli.main(sys.argv[1:]))
"""
# Draws the plate of the bundle that it is asked for: whose picture it is can be seen.
OWN_PLATES = """
import quick_server
open_raymarcher = lambda speaker, threads: quick_server.PlateRaymarcher(speaker)
"""


class PlateRaymarcher(stand_ins.StandInRaymarcher):
    """Draws the mean colour of the speaker's own plate."""

    def __init__(self, speaker):
        super().__init__()
        self._colour = speaker.scene.background.mean(axis=(0, 1)).astype(np.uint8)

    def render(self, *, c2w, condition, size_px, region_px=None, out=None):
        x0, y0, x1, y1 = region_px or (0, 0, size_px, size_px)
        return np.broadcast_to(self._colour, (y1 - y0, x1 - x0, 3)).copy()


class QuickServer:
    """`geneface-stream` with a stand-in raymarcher on a free port; stop it, or let the context do so."""

    def __init__(self, log: Path, speakers: Path, *flags: str, prepare: str = OWN_PLATES, **environment: str):
        """Starts it; `wait_ready` waits.

        Args:
            log: where its output goes.
            speakers: a folder of bundles, `Tiny` among them.
            flags: further ones.
            prepare: Python that changes `app` and others before they are used, and names `open_raymarcher`.
            environment: variables on top.
        """
        self._log = log
        given = ["--speaker", "Tiny", "--speakers-dir", str(speakers), "--render-size", "128", "--port", "0"]
        # Under CI some libraries behave better than anywhere else.
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GENEFACE_", "ORT_")) and name != "CI"
        }
        tests = Path(__file__).resolve().parent
        program = PROGRAM.format(path=[str(tests), str(tests.parent)], prepare=prepare)
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *given, *flags],
                env=clean | environment,
                cwd=environment.get("HOME"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.url = ""

    def __enter__(self) -> QuickServer:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, failure, *_) -> None:
        if failure is not None or self.process.poll() is not None:
            self.kill()
            return
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log()

    def wait_ready(self) -> None:
        """Waits until it says where it is and that it is ready."""
        self.wait_said(r"Open (https?://\S+?/)(#\S*)? in a browser")
        self.url = re.search(r"Open (\S+?/)(#\S*)? in", self.log())[1]
        until(lambda: self._status("readyz") == 200, what="ready")

    def wait_said(self, pattern: str) -> None:
        """Waits until its output matches."""
        until(lambda: re.search(pattern, self.log()) or self.process.poll() is not None, what=pattern)
        assert re.search(pattern, self.log()), f"it ended with {self.process.poll()}:\n{self.log()}"

    def log(self) -> str:
        """Returns what it has written so far."""
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Returns its exit code; it has to end in time."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()

    def connections(self) -> int:
        """Returns how many connections to its port are established or closing."""
        port = urlsplit(self.url).port
        return sum(
            connection.laddr.port == port and connection.status != psutil.CONN_LISTEN
            for connection in psutil.Process(self.process.pid).net_connections("tcp")
        )

    def metric(self, name: str) -> float:
        """Returns a metric, summed over its labels."""
        with urlopen(f"{self.url}metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^geneface_{name}(?:{{.*}})? (\S+)$", text, re.M))

    def until_sessions(self, count: int) -> None:
        """Waits for a number of sessions."""
        until(lambda: self.metric("sessions_active") == count, what=f"{count} sessions")

    def until_metric(self, name: str, *, above: float) -> None:
        """Waits for a metric to exceed a value."""
        until(lambda: self.metric(name) > above, what=f"{name} above {above:g}")

    def _status(self, path: str) -> int:
        try:
            # Its certificate may be one that it made itself.
            anybody = ssl._create_unverified_context()
            with urlopen(Request(f"{self.url}{path}"), timeout=PATIENCE_S, context=anybody) as answer:
                return answer.status
        except HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0


def client_process(url: str) -> subprocess.Popen:
    """Returns a client in a process of its own, once it is connected."""
    program = Path(__file__).resolve().parent / "aiortc_client.py"
    process = subprocess.Popen([sys.executable, str(program), url], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line.startswith("connected "):
        process.kill()
        process.communicate()
    assert line.startswith("connected "), "the client did not connect; above is why"
    return process
