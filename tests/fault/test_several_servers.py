"""Servers that share a host: each counts on the cores that it was given."""

from __future__ import annotations

import contextlib
import re

import bundle_factory
import httpx
import pytest
from patience import PATIENCE_S
from quick_server import QuickServer


@pytest.fixture
def speakers(tmp_path):
    bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=128)
    return tmp_path


def test_two_servers_side_by_side_share_the_cores(speakers, tmp_path):
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(QuickServer(tmp_path / f"{name}.log", speakers, "--cores", "1"))
            for name in ("one", "two")
        ]
        for server in servers:
            server.wait_said(r"Counts on (1 core: 34|0\.\d+ cores: \d+) core-milliseconds")
            server.wait_said("Tiny on CPU, 1 thread, ")
            metrics = httpx.get(f"{server.url}metrics", trust_env=False, timeout=PATIENCE_S).text
            room = re.search(r"^geneface_admission_room_core_seconds (\S+)$", metrics, re.MULTILINE)
            assert 0 < float(room[1]) <= 0.034 + 1e-9
