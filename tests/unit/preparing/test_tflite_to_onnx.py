"""TFLite graphs in ONNX: the same numbers as the operators' own arithmetic, written out in NumPy."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_tflite import TinyTflite

from models.onnx_runtime import load_onnxruntime
from preparation.face_mesh.tflite_reader import TfliteError
from preparation.face_mesh.tflite_to_onnx import OnnxGraph, add_tflite

RNG = np.random.default_rng(0)
SUM = {"atol": 1e-5, "rtol": 1e-5}  # float32 sums in another order


def converted(content, *rank):
    """The ONNX model's bytes; the picture has the TFLite input's axes."""
    onnx = OnnxGraph()
    outputs = add_tflite(onnx, content, onnx.node("Transpose", "picture", perm=[0, 3, 1, 2]))
    for name, value in outputs.items():
        onnx.node("Identity", value, name=name)
    given = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", *rank])]
    return onnx.content("tiny", given, [helper.make_empty_tensor_value_info(name) for name in outputs])


def run(graph, picture, *outputs, inputs=(0,)):
    """What the converted graph gives for pictures (n, H, W, C)."""
    model = converted(graph.content(inputs, outputs), *picture.shape[1:])
    runtime = load_onnxruntime()
    return runtime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"picture": picture})


def windows(picture, kernel, stride, fill):
    """(n, rows, columns, kernel, kernel, C) of pictures (n, H, W, C), padded as SAME does."""
    pads = [
        (whole // 2, whole - whole // 2)
        for size in picture.shape[1:3]
        for whole in [max((-(-size // stride) - 1) * stride + kernel - size, 0)]
    ]
    padded = np.pad(picture, [(0, 0), *pads, (0, 0)], constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return seen[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
def test_a_convolution_with_stride_pads_as_tensorflow_does(height, width):
    graph, weights = TinyTflite(), RNG.normal(size=(4, 3, 3, 2)).astype(np.float16)
    bias = RNG.normal(size=4).astype(np.float16)
    picture = RNG.normal(size=(2, height, width, 2)).astype(np.float32)
    given = graph.computed(1, height, width, 2)
    shape = (1, -(-height // 2), -(-width // 2), 4)
    taken = (given, graph.halved(weights), graph.halved(bias))
    value = graph.operator("CONV_2D", *taken, shape=shape, n1=2, n2=2, b3=1)
    end = graph.operator("RESHAPE", value, shape=(1, shape[1] * shape[2], 4), name="end")
    (got,) = run(graph, picture, end)
    sums = np.einsum("nrcijk,oijk->nrco", windows(picture, 3, 2, 0), weights.astype(np.float32)) + bias
    np.testing.assert_allclose(got, np.maximum(sums, 0).reshape(2, -1, 4), **SUM)


def test_depthwise_convolution_pool_padding_and_slopes():
    graph, weights = TinyTflite(), RNG.normal(size=(1, 3, 3, 2)).astype(np.float16)
    bias, slope = RNG.normal(size=2).astype(np.float16), RNG.normal(size=(1, 1, 4)).astype(np.float16)
    picture = RNG.normal(size=(3, 6, 4, 2)).astype(np.float32)
    given = graph.computed(1, 6, 4, 2)
    deep = graph.operator(
        "DEPTHWISE_CONV_2D",
        given,
        graph.halved(weights),
        graph.halved(bias),
        shape=(1, 6, 4, 2),
        n1=1,
        n2=1,
        n3=1,
    )
    total = graph.operator("ADD", deep, given, shape=(1, 6, 4, 2))
    pooled = graph.operator("MAX_POOL_2D", total, shape=(1, 3, 2, 2), n1=2, n2=2, n3=2, n4=2)
    pads = graph.constant(np.array([(0, 0), (0, 0), (0, 0), (0, 2)], np.int32))
    padded = graph.operator("PAD", pooled, pads, shape=(1, 3, 2, 4))
    sloped = graph.operator("PRELU", padded, graph.halved(slope), shape=(1, 3, 2, 4))
    end = graph.operator("RESHAPE", sloped, shape=(1, 24), name="end")
    (got,) = run(graph, picture, end)
    sums = np.einsum("nrcijk,ijk->nrck", windows(picture, 3, 1, 0), weights[0].astype(np.float32)) + bias
    expected = np.pad(windows(sums + picture, 2, 2, -np.inf).max((3, 4)), [(0, 0)] * 3 + [(0, 2)])
    expected = np.where(expected > 0, expected, expected * slope[0].astype(np.float32))
    np.testing.assert_allclose(got, expected.reshape(3, 24), **SUM)


def test_concatenation_of_maps_and_of_rows():
    graph = TinyTflite()
    picture = RNG.normal(size=(2, 2, 3, 2)).astype(np.float32)
    given = graph.computed(1, 2, 3, 2)
    doubled = graph.operator("MUL", given, graph.constant(np.float32([2])), shape=(1, 2, 3, 2))
    deep = graph.operator("CONCATENATION", given, doubled, shape=(1, 2, 3, 4), n0=3)
    rows = graph.operator("RESHAPE", deep, shape=(1, 6, 4))
    other = graph.operator("RESHAPE", deep, shape=(1, 3, 8))
    again = graph.operator("RESHAPE", other, shape=(1, 6, 4))
    end = graph.operator("CONCATENATION", rows, again, shape=(1, 12, 4), n0=1, name="end")
    (got,) = run(graph, picture, end)
    expected = np.concatenate([picture, 2 * picture], axis=3).reshape(2, 6, 4)
    np.testing.assert_array_equal(got, np.concatenate([expected, expected], axis=1))


# The operators of the face mesh's own: a level box of some points, a map sampled there, points moved back.

SUBSET, LEFT, RIGHT, SIZE, SCALE = [0, 2, 3, 4], 2, 4, 4, 1.5
OPTIONS = {
    "left_rotation_idx": LEFT,
    "right_rotation_idx": RIGHT,
    "output_height": SIZE,
    "output_width": SIZE,
    "scale_x": SCALE,
    "scale_y": SCALE,
    "subset_idxs": SUBSET,
    "target_rotation_radians": 0.0,
}


def matrix_of(points):
    """(4, 4) of points (k, 3), with sines and cosines."""
    plane = points[:, :2].astype(np.float64)
    along = plane[RIGHT] - plane[LEFT]
    angle = np.arctan2(along[1], along[0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    level = plane[SUBSET] @ turn
    low, high = level.min(0), level.max(0)
    matrix = np.eye(4)
    matrix[:2, :2] = turn @ np.diag(SCALE * (high - low) / SIZE)
    matrix[:2, 3] = turn @ ((low + high) / 2) - matrix[:2, :2] @ (SIZE / 2, SIZE / 2)
    return matrix


def sampled(picture, matrix):
    """(SIZE, SIZE, C): a map (H, W, C) where the matrix takes each pixel's middle, 0 outside."""
    height, width, _ = picture.shape
    result = np.zeros((SIZE, SIZE, picture.shape[2]))
    for row in range(SIZE):
        for column in range(SIZE):
            x, y = (matrix @ (column + 0.5, row + 0.5, 0, 1))[:2] - 0.5
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                continue
            i, j = min(int(y), height - 2), min(int(x), width - 2)
            down, right = y - i, x - j
            upper = picture[i, j] * (1 - right) + picture[i, j + 1] * right
            lower = picture[i + 1, j] * (1 - right) + picture[i + 1, j + 1] * right
            result[row, column] = upper * (1 - down) + lower * down
    return result


def attention_graph():
    graph = TinyTflite()
    given = graph.computed(1, 8, 9, 5)  # a map of 5 channels; its first 15 numbers are the points too
    flat = graph.operator("RESHAPE", given, shape=(1, 24, 15))
    points = graph.operator("RESHAPE", flat, shape=(1, 120, 3))
    matrix = graph.operator("Landmarks2TransformMatrix", points, shape=(1, 4, 4), name="matrix", **OPTIONS)
    size = {"output_height": SIZE, "output_width": SIZE}
    seen = graph.operator("TransformTensorBilinear", given, matrix, shape=(1, SIZE, SIZE, 5), **size)
    rows = graph.operator("RESHAPE", seen, shape=(1, SIZE * SIZE, 5), name="seen")
    pairs = graph.operator("RESHAPE", given, shape=(1, 180, 2))
    moved = graph.operator("TransformLandmarks", pairs, matrix, shape=(1, 180, 2), name="moved")
    return graph, (matrix, rows, moved)


@pytest.mark.parametrize("angle_deg", [0, 25, 200])
@pytest.mark.parametrize("middle", [(4, 4), (1, 7)], ids=["inside", "over the edge"])
def test_custom_operators_do_what_their_arithmetic_says(angle_deg, middle):
    graph, outputs = attention_graph()
    pictures = RNG.normal(size=(2, 8, 9, 5)).astype(np.float32)
    angle = np.radians(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for picture in pictures:
        places = RNG.uniform(-2.5, 2.5, (5, 2))
        places[[LEFT, RIGHT]] = (-2, 0), (2, 0)
        picture.reshape(-1)[:15] = np.concatenate([places @ turn.T + middle, np.zeros((5, 1))], 1).ravel()
    matrices, seen, moved = run(graph, pictures, *outputs)
    for number, picture in enumerate(pictures):
        matrix = matrix_of(picture.reshape(-1)[:15].reshape(5, 3))
        np.testing.assert_allclose(matrices[number], matrix, **SUM)
        np.testing.assert_allclose(seen[number], sampled(picture, matrix).reshape(-1, 5), atol=1e-4)
        pairs = picture.reshape(-1, 2)
        np.testing.assert_allclose(moved[number], pairs @ matrix[:2, :2].T + matrix[:2, 3], atol=1e-4)


def test_the_same_file_gives_the_same_bytes_with_weights_as_float16():
    graph, weights = TinyTflite(), RNG.normal(size=(64, 1, 1, 64))
    given = graph.computed(1, 2, 2, 64)
    bias = graph.halved(np.zeros(64))
    value = graph.operator("CONV_2D", given, graph.halved(weights), bias, shape=(1, 2, 2, 64), n1=1, n2=1)
    content = graph.content((0,), (graph.operator("RESHAPE", value, shape=(1, 256), name="end"),))
    once, again = converted(content, 2, 2, 64), converted(content, 2, 2, 64)
    assert once == again
    assert len(once) < 64 * 64 * 2 + 2000


def refused(content):
    with pytest.raises(TfliteError) as caught:
        converted(content, 2, 2, 2)
    assert "\n" not in str(caught.value)
    return caught.value.expected, caught.value.got


def test_an_unknown_operator_is_named():
    graph = TinyTflite()
    end = graph.operator("LOGISTIC", graph.computed(1, 2, 2, 2), shape=(1, 2, 2, 2), name="end")
    expected, got = refused(graph.content((0,), (end,)))
    assert "CONV_2D" in expected
    assert got == "number 14"


def test_an_unknown_custom_operator_is_named():
    graph = TinyTflite()
    end = graph.operator("Resampler", graph.computed(1, 2, 2, 2), shape=(1, 2, 2, 2), name="end", k=1)
    assert refused(graph.content((0,), (end,)))[1] == "Resampler"


@pytest.mark.parametrize(
    ("options", "got"),
    [({"b0": 3}, "activation 3"), ({"b0": 1, "n9": 0}, None)],
    ids=["relu6", "relu"],
)
def test_an_activation_is_applied_or_refused(options, got):
    graph = TinyTflite()
    given = graph.computed(1, 2, 2, 2)
    value = graph.operator("ADD", given, given, shape=(1, 2, 2, 2), **options)
    end = graph.operator("RESHAPE", value, shape=(1, 8), name="end")
    if got is not None:
        assert refused(graph.content((0,), (end,)))[1] == got
        return
    picture = RNG.normal(size=(1, 2, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, picture, end)[0], np.maximum(2 * picture, 0).reshape(1, 8))


def test_what_is_no_tflite_file_is_refused():
    assert refused(b"<html>not here</html>") == ("a TFLite file", "one that begins with b'<html>no'")
    assert refused(b"")[0] == "a TFLite file"


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends():
    graph, outputs = attention_graph()
    content = graph.content((0,), outputs)
    for end in range(0, len(content), 7):
        assert refused(content[:end])[0] in ("a TFLite file", "a whole TFLite file", "one graph")
