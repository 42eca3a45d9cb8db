from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx.graphs import GraphError, strip_metadata, to_float16_weights


def linear(weight, name="weight"):
    node = helper.make_node("MatMul", ["x", name], ["y"], doc_string="made in /somebody")
    entry = node.metadata_props.add()
    entry.key, entry.value = "trace", "/somebody/net.py"
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[1]])],
        [numpy_helper.from_array(weight, name)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture
def weight():
    return np.random.default_rng(0).normal(0, 0.05, (40, 50)).astype(np.float32)


def run(content, x):
    return onnxruntime.InferenceSession(content).run(None, {"x": x})[0]


def test_a_graph_without_metadata_gives_the_same_numbers(weight):
    content = linear(weight)
    bare = strip_metadata(content)
    assert b"somebody" in content
    assert b"somebody" not in bare
    x = np.ones((1, 40), np.float32)
    np.testing.assert_array_equal(run(bare, x), run(content, x))


def test_float16_weights_halve_a_graph_and_give_nearly_the_same_numbers(weight):
    content = linear(weight)
    x = np.random.default_rng(1).normal(size=(1, 40)).astype(np.float32)
    small = to_float16_weights(content, [{"x": x}])
    assert len(small.content) < 0.6 * len(content)
    difference = np.abs(run(small.content, x) - run(content, x)).max()
    assert 0 < difference <= small.rounding < 1e-3


def test_tables_of_the_front_end_are_not_rounded(weight):
    content = linear(weight, name="features.cosine")
    x = np.ones((1, 40), np.float32)
    small = to_float16_weights(content, [{"x": x}])
    assert small.rounding == 0
    kinds = {w.name: w.data_type for w in onnx.load_from_string(small.content).graph.initializer}
    assert kinds == {"features.cosine": TensorProto.FLOAT}


@pytest.mark.parametrize(("scale", "said"), [(1e6, "expected weights within float16"), (2e4, "at most 0.02")])
def test_weights_too_large_to_round_are_refused(weight, scale, said):
    with pytest.raises(GraphError, match=said):
        to_float16_weights(linear(weight * np.float32(scale)), [{"x": np.ones((1, 40), np.float32)}])
