"""GStreamer calls: a certificate of RSA, the DTLS server's part, SDP that no browser writes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE_S
from quick_server import QuickServer

PYTHON = "/usr/bin/python3"  # the system's, where the bindings are
CLIENT = Path(__file__).resolve().parent.parent / "gstreamer_client.py"
PACKAGES = (
    "python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-nice "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
)


def run(*arguments):
    """Returns what the client says, and what came beside."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [PYTHON, str(CLIENT), *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.fixture(scope="module")
def gstreamer():
    """GStreamer with everything that a call takes, or the reason why not."""
    way_out = f"apt-get install --no-install-recommends {PACKAGES}"
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not there; {way_out}")
    found = run("check")
    if found.returncode != 0:
        pytest.skip(f"GStreamer's bindings do not load; {way_out}")
    if missing := json.loads(found.stdout):
        pytest.skip(f"GStreamer lacks {', '.join(missing)}; {way_out}")


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_bundle):
    with QuickServer(tmp_path_factory.mktemp("gstreamer") / "log", tiny_bundle.parent) as running:
        yield running


@pytest.mark.parametrize(
    "arguments", [("VP8", "max-bundle", "vad"), ("H264", "max-compat")], ids=["VP8, vad=on", "H264"]
)
def test_webrtcbin_is_heard_seen_and_answered(gstreamer, server, arguments):
    done = run(f"{server.url}whip/Tiny", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["errors"] == []
    assert result["status"] == 201
    assert "connected" in result["states"]
    assert result["pictures"] >= 25
    # The face says what it hears: its tone has come there and back.
    assert result["loudest_db"] > -40
    server.until_sessions(0)
