"""A TFLite graph in ONNX operators: those of MediaPipe's face detector and face mesh.

Pictures and maps are (n, H, W, C) in TFLite and (n, C, H, W) here; all else has the same axes in both. The
number n is free. Weights that are float16 in the file stay so, each behind a Cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .tflite_reader import Graph, Operator, TfliteError, read_tflite

OPSET = 17
IR_VERSION = 8  # of that opset
_CHANNELS_FIRST, _CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_ACTIVATIONS = {0: "", 1: "Relu"}
_SAME = 0  # padding


class OnnxGraph:
    """An ONNX graph as it grows: each node's outputs are named by a number."""

    def __init__(self) -> None:
        """Starts with nothing in it."""
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Returns the name of a constant, one for all of equal content."""
        array = np.ascontiguousarray(np.asarray(values, dtype))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"c{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:  # noqa: ANN401
        """Adds a node with one output and returns the output's name: `name`, or a number."""
        output = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def content(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        """Returns the model's bytes, the same for the same graph.

        Args:
            name: of the graph.
            inputs: their ONNX value infos.
            outputs: likewise.
        """
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = model.producer_version = ""
        whole: bytes = model.SerializeToString(deterministic=True)
        return whole


def add_tflite(onnx: OnnxGraph, content: bytes, picture: str) -> dict[str, str]:
    """Adds a TFLite graph's operators to `onnx` and returns its outputs by their name in the file.

    Args:
        onnx: where they go.
        content: of the TFLite file; it has one input.
        picture: name of that input there, (n, C, H, W).

    Raises:
        TfliteError: the file, or an operator in it, is not known here.
    """
    return _Rewriting(onnx, read_tflite(content), picture).outputs()


class _Rewriting:
    """A TFLite graph on its way into an ONNX graph."""

    def __init__(self, onnx: OnnxGraph, graph: Graph, picture: str) -> None:
        self._onnx = onnx
        self._graph = graph
        self._values: dict[int, str] = {graph.inputs[0]: picture}
        self._weights = {
            number: tensor.content
            for number, tensor in enumerate(graph.tensors)
            if tensor.content is not None
        }
        kinds: dict[str, Callable[[Operator], str]] = {
            "ADD": self._add,
            "CONCATENATION": self._concatenation,
            "CONV_2D": self._convolution,
            "DEPTHWISE_CONV_2D": self._depthwise_convolution,
            "MAX_POOL_2D": self._max_pool,
            "MUL": self._mul,
            "PAD": self._pad,
            "PRELU": self._prelu,
            "RELU": lambda operator: self._onnx.node("Relu", self._value(operator.inputs[0])),
            "RESHAPE": self._reshape,
            "STRIDED_SLICE": self._strided_slice,
            "Landmarks2TransformMatrix": self._landmarks_to_matrix,
            "TransformLandmarks": self._transform_landmarks,
            "TransformTensorBilinear": self._sample,
        }
        for operator in graph.operators:
            if operator.kind == "DEQUANTIZE":
                self._weights[operator.outputs[0]] = self._weight(operator.inputs[0])
            elif operator.kind in kinds:
                self._values[operator.outputs[0]] = kinds[operator.kind](operator)
            else:
                raise TfliteError(f"operators of {', '.join(kinds)}", operator.kind)

    def outputs(self) -> dict[str, str]:
        return {self._graph.tensors[number].name: self._value(number) for number in self._graph.outputs}

    def _shape(self, number: int) -> tuple[int, ...]:
        return self._graph.tensors[number].shape

    def _weight(self, number: int) -> npt.NDArray[Any]:
        if number not in self._weights:
            raise TfliteError("weights in the file", f"computed ones ({self._graph.tensors[number].name})")
        return self._weights[number]

    def _float32(self, values: npt.NDArray[Any]) -> str:
        """Returns the name of weights as float32, kept as they are in the file."""
        name = self._onnx.constant(values, values.dtype)
        return name if values.dtype == np.float32 else self._onnx.node("Cast", name, to=TensorProto.FLOAT)

    def _value(self, number: int) -> str:
        if number not in self._values:
            self._values[number] = self._float32(self._weight(number))
        return self._values[number]

    def _activated(self, value: str, code: int) -> str:
        if code not in _ACTIVATIONS:
            raise TfliteError("no activation or ReLU", f"activation {code}")
        return self._onnx.node(_ACTIVATIONS[code], value) if code else value

    def _pads(self, operator: Operator, kernel: tuple[int, int], strides: list[int]) -> list[int]:
        """Returns the pads of both axes' begins, then ends; those of SAME put the odd one last."""
        if operator.options.byte(0) != _SAME:
            return [0] * 4
        begins, ends = [], []
        sizes = zip(self._shape(operator.inputs[0])[1:3], kernel, strides, strict=True)
        for size, reach, stride in sizes:
            whole = max((-(-size // stride) - 1) * stride + reach - size, 0)
            begins.append(whole // 2)
            ends.append(whole - whole // 2)
        return begins + ends

    def _strides(self, operator: Operator) -> list[int]:
        return [
            operator.options.number(2, 1),
            operator.options.number(1, 1),
        ]  # the file has the width's first

    def _convolution(self, operator: Operator) -> str:
        weight = self._weight(operator.inputs[1]).transpose(0, 3, 1, 2)
        return self._conv(operator, weight, groups=1, activation=operator.options.byte(3), dilation=4)

    def _depthwise_convolution(self, operator: Operator) -> str:
        weight = self._weight(operator.inputs[1]).transpose(3, 0, 1, 2)  # of 1, H, W, C
        groups = self._shape(operator.inputs[0])[3]
        return self._conv(operator, weight, groups=groups, activation=operator.options.byte(4), dilation=5)

    def _conv(
        self, operator: Operator, weight: npt.NDArray[Any], *, groups: int, activation: int, dilation: int
    ) -> str:
        if {operator.options.number(dilation, 1), operator.options.number(dilation + 1, 1)} != {1}:
            raise TfliteError("a convolution without dilation", "one with it")
        kernel, strides = weight.shape[2:], self._strides(operator)
        value = self._onnx.node(
            "Conv",
            self._value(operator.inputs[0]),
            self._float32(weight),
            self._float32(self._weight(operator.inputs[2])),
            group=groups,
            kernel_shape=list(kernel),
            pads=self._pads(operator, kernel, strides),
            strides=strides,
        )
        return self._activated(value, activation)

    def _max_pool(self, operator: Operator) -> str:
        kernel, strides = (operator.options.number(4), operator.options.number(3)), self._strides(operator)
        pads = self._pads(operator, kernel, strides)
        value = self._value(operator.inputs[0])
        pooled = self._onnx.node("MaxPool", value, kernel_shape=list(kernel), pads=pads, strides=strides)
        return self._activated(pooled, operator.options.byte(5))

    def _add(self, operator: Operator) -> str:
        return self._activated(
            self._onnx.node("Add", *map(self._value, operator.inputs)), operator.options.byte(0)
        )

    def _mul(self, operator: Operator) -> str:
        return self._activated(
            self._onnx.node("Mul", *map(self._value, operator.inputs)), operator.options.byte(0)
        )

    def _pad(self, operator: Operator) -> str:
        before, after = self._weight(operator.inputs[1])[list(_CHANNELS_FIRST)].T
        pads = self._onnx.constant([*before, *after], np.int64)
        return self._onnx.node("Pad", self._value(operator.inputs[0]), pads)

    def _prelu(self, operator: Operator) -> str:
        """Returns (1 - slope) relu(x) + slope x, both factors as convolutions of one pixel.

        ONNX Runtime's PRelu leaves its blocked layout and takes half of the graph's time.
        """
        onnx, value = self._onnx, self._value(operator.inputs[0])
        slope = self._float32(self._weight(operator.inputs[1]).reshape(-1, 1, 1, 1))
        rest = onnx.node("Sub", onnx.constant(1), slope)
        groups = self._shape(operator.inputs[0])[3]
        above = onnx.node("Conv", onnx.node("Relu", value), rest, group=groups, kernel_shape=[1, 1])
        return onnx.node("Add", above, onnx.node("Conv", value, slope, group=groups, kernel_shape=[1, 1]))

    def _concatenation(self, operator: Operator) -> str:
        axis = operator.options.number(0)
        if len(self._shape(operator.outputs[0])) == 4:
            axis = _CHANNELS_FIRST.index(axis)
        joined = self._onnx.node("Concat", *map(self._value, operator.inputs), axis=axis)
        return self._activated(joined, operator.options.byte(1))

    def _reshape(self, operator: Operator) -> str:
        value, shape = self._value(operator.inputs[0]), self._shape(operator.outputs[0])
        if len(self._shape(operator.inputs[0])) == 4:
            value = self._onnx.node("Transpose", value, perm=_CHANNELS_LAST)
        value = self._onnx.node("Reshape", value, self._onnx.constant([0, *shape[1:]], np.int64))
        return self._onnx.node("Transpose", value, perm=_CHANNELS_FIRST) if len(shape) == 4 else value

    def _strided_slice(self, operator: Operator) -> str:
        if self._shape(operator.inputs[0]) != self._shape(operator.outputs[0]):
            raise TfliteError("a slice that takes all", "one that does not")
        return self._value(operator.inputs[0])

    def _landmarks_to_matrix(self, operator: Operator) -> str:
        """Returns the matrix (n, 4, 4) from a map of the output's size to the upright box of some points.

        The box is that of the points turned until the direction from one of them to another is level.
        """
        onnx, custom = self._onnx, operator.options.custom
        if custom["target_rotation_radians"]:
            raise TfliteError("a level target", f"{custom['target_rotation_radians']} radians")
        size = np.array([custom["output_width"], custom["output_height"]], np.float32)
        scale = np.array([custom["scale_x"], custom["scale_y"]], np.float32)
        plane = onnx.constant([0, 1], np.int64)
        points = onnx.node("Gather", self._value(operator.inputs[0]), plane, axis=2)  # (n, 468, 2)
        left, right = (
            onnx.node("Gather", points, onnx.constant([custom[f"{side}_rotation_idx"]], np.int64), axis=1)
            for side in ("left", "right")
        )
        along = onnx.node("Sub", right, left)
        unit = onnx.node("Div", along, onnx.node("ReduceL2", along, axes=[2]))  # (n, 1, 2): cosine and sine
        terms = onnx.node("MatMul", unit, onnx.constant([[1, 0, 0, 1], [0, -1, 1, 0]]))
        turn = onnx.node("Reshape", terms, onnx.constant([0, 2, 2], np.int64))  # columns onto the direction
        subset = onnx.node("Gather", points, onnx.constant(custom["subset_idxs"], np.int64), axis=1)
        level = onnx.node("MatMul", subset, turn)  # of rows: turned back
        low, high = (onnx.node(kind, level, axes=[1]) for kind in ("ReduceMin", "ReduceMax"))
        middle = onnx.node("Mul", onnx.node("Add", low, high), onnx.constant(0.5))
        centre = onnx.node("MatMul", turn, onnx.node("Transpose", middle, perm=[0, 2, 1]))  # (n, 2, 1)
        pixel = onnx.node("Mul", onnx.node("Sub", high, low), onnx.constant(scale / size))
        linear = onnx.node("Mul", turn, pixel)  # (n, 2, 2)
        corner = onnx.node("Sub", centre, onnx.node("MatMul", linear, onnx.constant(size[:, None] / 2)))
        nothing = onnx.node("Mul", corner, onnx.constant(0))
        upper = onnx.node("Concat", linear, nothing, corner, axis=2)  # (n, 2, 4)
        padded = onnx.node("Pad", upper, onnx.constant([0, 0, 0, 0, 2, 0], np.int64))
        return onnx.node("Add", padded, onnx.constant(np.diag([0, 0, 1, 1])[None]))

    def _sample(self, operator: Operator) -> str:
        """Returns a map (n, C, H, W) sampled where a matrix takes the output's pixels; outside it is 0."""
        onnx, custom = self._onnx, operator.options.custom
        height, width = custom["output_height"], custom["output_width"]
        rows, columns = np.mgrid[:height, :width] + 0.5
        pixels = np.stack([columns, rows, 0 * rows, 0 * rows + 1]).reshape(4, -1)
        matrix = onnx.node("Gather", self._value(operator.inputs[1]), onnx.constant([0, 1], np.int64), axis=1)
        places = onnx.node("MatMul", matrix, onnx.constant(pixels))  # (n, 2, H W)
        _, high, wide, _ = self._shape(operator.inputs[0])
        factor = np.array([2 / (wide - 1), 2 / (high - 1)])[:, None]
        places = onnx.node("Mul", places, onnx.constant(factor))
        places = onnx.node("Sub", places, onnx.constant(0.5 * factor + 1))  # -1 and 1: the outermost pixels
        beyond = onnx.node("Greater", onnx.node("Abs", places), onnx.constant(1))
        places = onnx.node(
            "Where", beyond, onnx.constant(9), places
        )  # or half of an edge's pixel would count
        places = onnx.node("Transpose", places, perm=[0, 2, 1])
        grid = onnx.node("Reshape", places, onnx.constant([0, height, width, 2], np.int64))
        value = self._value(operator.inputs[0])
        return onnx.node("GridSample", value, grid, align_corners=1, mode="bilinear", padding_mode="zeros")

    def _transform_landmarks(self, operator: Operator) -> str:
        """Returns points (n, k, 2) moved by a matrix (n, 4, 4)."""
        onnx = self._onnx
        if self._shape(operator.inputs[0])[2] != 2:
            raise TfliteError("points of the plane", f"{self._shape(operator.inputs[0])}")
        points, matrix = map(self._value, operator.inputs)
        columns = onnx.node("Transpose", matrix, perm=[0, 2, 1])
        linear, shift = (
            onnx.node(
                "Slice",
                columns,
                onnx.constant([begin, 0], np.int64),
                onnx.constant([end, 2], np.int64),
                onnx.constant([1, 2], np.int64),
            )
            for begin, end in ((0, 2), (3, 4))
        )
        return onnx.node("Add", onnx.node("MatMul", points, linear), shift)
