"""ONNX export of the condition networks: a window of normalised landmarks to the condition vector.

The graph is built from the weights, not traced. A window's frames are convolved one by one over a time axis
of length 1, so only the centre taps of those kernels matter and the convolutions become products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cuda_kernels.errors import InputError
from models.condition import ConditionConfig, FramePrenet, WindowAttention, encode_windows

from ..onnx.graphs import open_graph

OPSET = 17
IR_VERSION = 8
MAX_ERROR = 1e-5
"""Conditions are of the order of 1; two orders of summing some hundred float32 products differ by 1e-6."""


class ConditionExportError(InputError):
    """A graph that disagrees with the torch modules."""


@dataclass(frozen=True, kw_only=True)
class ConditionExport:
    """The exported graph and its error."""

    content: bytes
    largest_error: float  # to torch, over all tried windows


class _Graph:
    """Nodes and initialisers in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, value: Tensor | npt.NDArray[np.int64]) -> str:
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(
        self,
        kind: str,
        *inputs: str,
        output: str | None = None,
        **attributes: Any,  # noqa: ANN401 -- as onnx takes them: of many types
    ) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def export_condition(
    config: ConditionConfig, prenet: FramePrenet, attention: WindowAttention | None
) -> ConditionExport:
    """Returns condition.onnx and its largest error against torch.

    The graph takes `window` (window_frames, inputs) float32 and gives `condition` (outputs,).

    Raises:
        ConditionExportError: the graph differs from its source by more than `MAX_ERROR`.
    """
    graph = _Graph()
    frames = _prenet(graph, prenet)  # (W, C)
    if attention is not None:
        frames = _attention(graph, attention, frames, config.window_frames)  # (1, C)
    shape = graph.weight(np.array([config.outputs], np.int64))
    graph.add("Reshape", frames, shape, output="condition")  # (C,)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "condition",
            [
                helper.make_tensor_value_info(
                    "window", TensorProto.FLOAT, [config.window_frames, config.inputs]
                )
            ],
            [helper.make_tensor_value_info("condition", TensorProto.FLOAT, [config.outputs])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    error = condition_error(content, config, prenet, attention)
    if not error <= MAX_ERROR:  # also refuses NaN
        raise ConditionExportError(
            f"condition.onnx: expected the graph within {MAX_ERROR:g} of torch, got {error:.3g}; "
            "are the weights finite?"
        )
    return ConditionExport(content=content, largest_error=error)


def condition_error(
    content: bytes, config: ConditionConfig, prenet: FramePrenet, attention: WindowAttention | None
) -> float:
    """Returns the largest difference between the graph and torch over windows small to large."""
    session = open_graph(content)
    random = np.random.default_rng(0)
    errors = []
    for scale in (0.0, 0.3, 1.0, 2.5):
        for _ in range(8):
            window = (scale * random.normal(size=(config.window_frames, config.inputs))).astype(np.float32)
            got = session.run(None, {"window": window})[0]
            with torch.no_grad():
                expected = encode_windows(torch.from_numpy(window)[None], prenet, attention)[0]
            errors.append(np.abs(got - expected.numpy()).max())
    return float(np.max(errors))  # NaN stays NaN


def _prenet(graph: _Graph, prenet: FramePrenet) -> str:
    x = "window"  # (W, inputs)
    for layer in (*prenet.encoder_conv, *prenet.encoder_fc1):
        if isinstance(layer, nn.LeakyReLU):
            x = graph.add("LeakyRelu", x, alpha=layer.negative_slope)
            continue
        assert isinstance(layer, (nn.Conv1d, nn.Linear))
        weight = layer.weight[:, :, 1] if isinstance(layer, nn.Conv1d) else layer.weight
        assert layer.bias is not None
        x = graph.add("Gemm", x, graph.weight(weight), graph.weight(layer.bias), transB=1)
    return x


def _attention(graph: _Graph, attention: WindowAttention, frames: str, window_frames: int) -> str:
    channels_first = graph.add("Transpose", frames, perm=[1, 0])  # (C, W)
    x = graph.add("Unsqueeze", channels_first, graph.weight(np.array([0], np.int64)))  # (1, C, W)
    for layer in attention.attentionConvNet:
        if isinstance(layer, nn.LeakyReLU):
            x = graph.add("LeakyRelu", x, alpha=layer.negative_slope)
            continue
        assert isinstance(layer, nn.Conv1d)
        assert layer.bias is not None
        x = graph.add("Conv", x, graph.weight(layer.weight), graph.weight(layer.bias), pads=[1, 1])
    row = graph.add("Reshape", x, graph.weight(np.array([1, window_frames], np.int64)))  # (1, W)
    linear = attention.attentionNet[0]
    assert isinstance(linear, nn.Linear)
    scores = graph.add("Gemm", row, graph.weight(linear.weight), graph.weight(linear.bias), transB=1)
    shares = graph.add("Softmax", scores, axis=1)  # (1, W)
    return graph.add("MatMul", shares, frames)  # (1, C)
