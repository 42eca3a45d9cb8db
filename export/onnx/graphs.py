"""ONNX graphs: inference sessions, float16 initialisers, exporter metadata stripped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from models.onnx_runtime import load_onnxruntime

if TYPE_CHECKING:
    import onnxruntime


FRONT_END = "features."
"""The front end's tables keep float32: rounded, they would leak loud tones into quiet bands."""
MIN_NUMBERS = 256  # smaller weights cost little and are mostly biases and shapes
MAX_ROUNDING = 2e-2
"""Of a graph's outputs by rounding its weights: 2e-4 of the range of a landmark is 2 um of a lip."""


class GraphError(InputError):
    """A graph whose outputs change too much once its initialisers are rounded to float16."""


@dataclass(frozen=True, kw_only=True)
class SmallGraph:
    """A graph with float16 initialisers."""

    content: bytes
    rounding: float  # largest change of an output over the tried inputs, in the output's unit


def strip_metadata(content: bytes) -> bytes:
    """Returns the graph without its exporter's metadata: source files, stack traces, doc strings."""
    model = onnx.load_from_string(content)
    for holder in (model, model.graph):
        holder.doc_string = ""
        holder.ClearField("metadata_props")
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        *model.graph.value_info,
    ):
        part.doc_string = ""
        if part.DESCRIPTOR.fields_by_name.get("metadata_props") is not None:
            part.ClearField("metadata_props")
    kept: bytes = model.SerializeToString(deterministic=True)
    return kept


def to_float16_weights(
    content: bytes, feeds: list[dict[str, F32]], *, largest_rounding: float = MAX_ROUNDING
) -> SmallGraph:
    """Returns the graph with its initialisers as float16, cast to float32 once at load.

    Args:
        content: a graph without metadata.
        feeds: inputs to compare on, before and after.
        largest_rounding: what an output may change by, in its unit.

    Raises:
        GraphError: an output changes by more than `largest_rounding`.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    casts, halved = [], []
    for weight in graph.initializer:
        numbers = int(np.prod(weight.dims))
        rounds = weight.data_type == TensorProto.FLOAT and numbers >= MIN_NUMBERS
        if not rounds or weight.name.startswith(FRONT_END):
            halved.append(weight)
            continue
        values = numpy_helper.to_array(weight)
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise GraphError(
                f"{weight.name}: expected weights within float16, got {np.abs(values).max():.3g}; "
                "the training has diverged"
            )
        halved.append(numpy_helper.from_array(values.astype(np.float16), f"{weight.name}.float16"))
        casts.append(
            helper.make_node("Cast", [f"{weight.name}.float16"], [weight.name], to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(halved)
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    small: bytes = model.SerializeToString(deterministic=True)
    before, after = open_graph(content), open_graph(small)
    rounding = []
    for feed in feeds:
        for one, other in zip(before.run(None, feed), after.run(None, feed), strict=True):
            rounding.append(np.abs(one - other).max())
    largest = float(np.max(rounding))
    if not largest <= largest_rounding:  # also refuses NaN
        raise GraphError(
            f"graph: expected float16 weights to change outputs by at most {largest_rounding:g}, got "
            f"{largest:.3g}; keep float32 with --float32-networks"
        )
    return SmallGraph(content=small, rounding=largest)


def open_graph(
    graph: bytes | Path,
    *,
    silent: bool = False,
    all_cores: bool = False,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> onnxruntime.InferenceSession:
    """Returns a session that runs a graph, on one core of the CPU unless said otherwise.

    Args:
        graph: its content or its file.
        silent: errors are raised, not also printed.
        all_cores: for a large graph.
        providers: ONNX Runtime's names of what may run it, the best first.
    """
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    if not all_cores:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    if silent:
        options.log_severity_level = 4
    content = graph if isinstance(graph, bytes) else graph.read_bytes()
    return runtime.InferenceSession(content, options, providers=list(providers))
