"""A bundle whose network never returns, beside good ones: it alone is refused; the server ends in order."""

from __future__ import annotations

import dataclasses
import signal
import threading

import bundle_factory
import httpx
import pytest
from aiortc_client import offer_of_a_peer
from onnx import TensorProto, helper
from patience import PATIENCE_S
from quick_server import OWN_PLATES, QuickServer

from export.bundle.writer import write_bundle

LIMIT = (
    OWN_PLATES
    + """
from streaming.pipeline import onnx_engine
onnx_engine.MAX_FIRST_RUN_S = {limit_s}
run = onnx_engine.OnnxEngine.run
def told(self, inputs):
    if "Endless" in self._name:
        print("opening Endless", flush=True)
    return run(self, inputs)
onnx_engine.OnnxEngine.run = told
"""
)


def endless_motion(samples: int) -> bytes:
    info, node = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"]), node("Identity", ["v"], ["vo"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, [1, 1]),
        ],
        [info("co", TensorProto.BOOL, []), info("vo", TensorProto.FLOAT, [1, 1])],
    )
    graph = helper.make_graph(
        [
            node("ReduceSum", ["pcm"], ["s"], keepdims=1),
            node("Loop", ["", "true", "s"], ["l"], body=body),
            node("Expand", ["l", "shape"], ["landmarks"]),
        ],
        "endless",
        [info("pcm", TensorProto.FLOAT, [1, samples])],
        [info("landmarks", TensorProto.FLOAT, [1, 204])],
        [
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
            helper.make_tensor("shape", TensorProto.INT64, [2], [1, 204]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    for name in ("Tiny", "Other"):
        bundle_factory.write_tiny_bundle(folder / name, name=name, image_size_px=128)
    parts = bundle_factory.tiny_parts(name="Endless", image_size_px=128)
    endless = dataclasses.replace(parts, motion_onnx=endless_motion(parts.motion.window_samples))
    write_bundle(folder / "Endless", endless)
    return folder


def offer_to(server, speaker):
    body = {"sdp": offer_of_a_peer(), "type": "offer", "speaker": speaker}
    return httpx.post(f"{server.url}offer", json=body, timeout=PATIENCE_S, trust_env=False)


def test_an_offer_for_a_network_that_never_returns_is_answered_with_504(speakers, tmp_path):
    with QuickServer(tmp_path / "log.txt", speakers, prepare=LIMIT.format(limit_s=1.0)) as server:
        answer = offer_to(server, "Endless")
        assert answer.status_code == 504
        assert answer.headers["content-type"] == "application/problem+json"
        assert "Endless" in answer.json()["detail"]
        assert offer_to(server, "Other").status_code == 200
    assert "Traceback" not in server.log()


def test_other_speakers_open_beside_a_network_that_never_returns_and_a_signal_ends_it(speakers, tmp_path):
    with QuickServer(tmp_path / "log.txt", speakers, prepare=LIMIT.format(limit_s=3600.0)) as server:
        waiting = threading.Thread(target=lambda: offer_to(server, "Endless"), daemon=True)
        waiting.start()
        server.wait_said("opening Endless")
        assert offer_to(server, "Other").status_code == 200
        assert waiting.is_alive()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        waiting.join(PATIENCE_S)
    assert "Traceback" not in server.log()
