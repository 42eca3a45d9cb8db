"""ONNX files that refer to what no hash covers are refused before a runtime sees them."""

from __future__ import annotations

import bundle_factory
import feature_bundle
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import onnx_graph
from models.onnx_graph import OnnxGraphError, check_graph


def outside(name="w"):
    weights = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=".w")
    return weights


def model(*nodes, initializers=(), sparse=(), **more):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("a", "b")]
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["a"], ["b"])],
        "g",
        values[:1],
        values[1:],
        initializers,
        sparse_initializer=sparse,
    )
    return helper.make_model(graph, **more)


def with_subgraph(nodes=(), initializers=(), depth=1):
    body = helper.make_graph(list(nodes), "body", [], [], list(initializers))
    for _ in range(depth - 1):
        body = helper.make_graph(
            [helper.make_node("If", ["c"], ["d"], then_branch=body)],
            "body",
            [],
            [],  # a second would double
        )
    return model(helper.make_node("If", ["c"], ["b"], then_branch=body, else_branch=body))


def sparse(tensor):
    made = onnx.SparseTensorProto(dims=[4])
    made.values.CopyFrom(tensor)
    made.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1], np.int64)))
    return made


def listed(tensor):
    node = helper.make_node("Identity", ["a"], ["b"])
    node.attribute.add(name="x", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    return node


def located(tensor):
    """External by its location alone, or by its entries alone."""
    one, other = TensorProto(), TensorProto()
    one.CopyFrom(tensor)
    other.CopyFrom(tensor)
    del one.external_data[:]
    other.data_location = TensorProto.DEFAULT
    return one, other


OUTSIDE = {
    "initializer": lambda: model(initializers=[outside()]),
    "by location alone": lambda: model(initializers=[located(outside())[0]]),
    "by entries alone": lambda: model(initializers=[located(outside())[1]]),
    "constant": lambda: model(helper.make_node("Constant", [], ["b"], value=outside())),
    "list of tensors": lambda: model(listed(outside())),
    "sparse initializer": lambda: model(sparse=[sparse(outside())]),
    "sparse constant": lambda: model(helper.make_node("Constant", [], ["b"], sparse_value=sparse(outside()))),
    "initializer of a subgraph": lambda: with_subgraph(initializers=[outside()]),
    "constant of a subgraph in a subgraph": lambda: with_subgraph(
        [helper.make_node("Constant", [], ["b"], value=outside())], depth=3
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_numbers_that_lie_elsewhere_are_refused_wherever_they_stand(kind):
    with pytest.raises(OnnxGraphError) as caught:
        check_graph(OUTSIDE[kind]().SerializeToString())
    assert caught.value.field == "tensor 'w'"
    assert caught.value.expected == "numbers in the file itself"
    assert caught.value.got.startswith("external data")


def compiled_elsewhere():
    node = helper.make_node("EPContext", ["a"], ["b"], domain="com.microsoft", embed_mode=0)
    node.attribute.append(helper.make_attribute("ep_cache_context", "../../model.bin"))
    return node


@pytest.mark.parametrize(
    ("made", "field", "got"),
    [
        (lambda: model(compiled_elsewhere()), "node", "'EPContext' of 'com.microsoft'"),
        (lambda: with_subgraph([compiled_elsewhere()]), "node", "'EPContext' of 'com.microsoft'"),
        (
            lambda: model(
                functions=[
                    helper.make_function(
                        "own", "F", ["x"], ["y"], [compiled_elsewhere()], [helper.make_opsetid("", 17)]
                    )
                ]
            ),
            "functions",
            "a model with functions",
        ),
        (lambda: with_subgraph(depth=onnx_graph.MAX_NESTING + 1), "graph", "more"),
    ],
)
def test_operators_of_others_and_depths_without_end_are_refused(made, field, got):
    with pytest.raises(OnnxGraphError) as caught:
        check_graph(made().SerializeToString())
    assert (caught.value.field, caught.value.got) == (field, got)


def test_a_domain_is_not_hidden_by_a_second_one():
    node = compiled_elsewhere().SerializeToString() + b"\x3a\x00"  # the domain again, now empty
    graph = b"\x0a" + onnx_varint(len(node)) + node
    content = b"\x3a" + onnx_varint(len(graph)) + graph
    assert onnx.load_from_string(content).graph.node[0].domain == ""
    with pytest.raises(OnnxGraphError, match="EPContext"):
        check_graph(content)


def onnx_varint(value):
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80, value >> 7])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no network",
        b"\x18\x00\x00\x00ORTM",  # ONNX Runtime's own format
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3a\x05ab",
        b"\x3b\x3c",
        b"\x38\x01",
        model().SerializeToString()[:-3],
    ],
)
def test_what_is_no_network_is_refused(content):
    with pytest.raises(OnnxGraphError) as caught:
        check_graph(content)
    assert (caught.value.field, caught.value.expected) == ("content", "an ONNX network")


def test_a_file_of_nothing_but_fields_is_given_up(monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_FIELDS", 1000)
    with pytest.raises(OnnxGraphError, match="at most 1000 fields"):
        check_graph(b"\x08\x01" * 1001)


def test_networks_of_bundles_pass():
    parts = [bundle_factory.tiny_parts(), feature_bundle.feature_parts(hears_pitch=True)]
    for part in parts:
        check_graph(part.motion_onnx)
        check_graph(part.condition_onnx)
    check_graph(memoryview(parts[1].features_onnx))
    check_graph(with_subgraph(depth=onnx_graph.MAX_NESTING).SerializeToString())


def test_weights_are_skipped_whatever_their_bytes_are():
    weights = numpy_helper.from_array(np.frombuffer(outside().SerializeToString(), np.uint8), "w")
    check_graph(model(initializers=[weights]).SerializeToString())


def varint(value):
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("field", [7, 14, 20, 25])
def test_a_field_number_that_protobuf_would_cut_off_is_refused(field):
    whole = model().SerializeToString()
    hidden = varint((field << 3) + (1 << 32)) + varint(1)
    with pytest.raises(OnnxGraphError, match="expected an ONNX network, got something else"):
        check_graph(whole + hidden)
