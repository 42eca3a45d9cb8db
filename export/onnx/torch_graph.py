"""Torch modules exported to ONNX and compared with the graph's outputs."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError

from .graphs import open_graph

OPSET = 21
"""The newest operator set that every onnxruntime we allow (>= 1.20) runs; nothing here needs a newer one."""


class ExportError(InputError):
    """An exported graph that disagrees with its source, or sources that do not fit together."""


def write_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic_shapes: tuple[Mapping[int, Any], ...] | None = None,
) -> None:
    """Writes the ONNX graph `path`, one file with its initialisers inside, and checks it.

    Args:
        module: In evaluation mode.
        example: What it is traced on.
        path: Where the graph goes.
        inputs, outputs: Names, in order.
        dynamic_shapes: For each input its free axes as `torch.export.Dim`; none is free if absent.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # and that torchvision, unused, is absent
        program = torch.onnx.export(
            module,
            example,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


class Comparison(NamedTuple):
    """A graph's largest error against its module, and the largest output, over all inputs."""

    largest_error: float
    largest_output: float


def compare(graph: bytes | Path, module: nn.Module, feeds: Sequence[Mapping[str, F32]]) -> Comparison:
    """Returns the largest difference between graph and module on any of `feeds`; NaN in either stays NaN."""
    session = open_graph(graph)
    errors, outputs = [], []
    for feed in feeds:
        with torch.no_grad():
            expected = module(*(torch.from_numpy(array) for array in feed.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for got, truth in zip(session.run(None, dict(feed)), expected, strict=True):
            errors.append(np.abs(got - truth.numpy()).max())
            outputs.append(np.abs(truth.numpy()).max())
    return Comparison(float(np.max(errors)), float(np.max(outputs)))


def refuse_if_wrong(path: Path, error: float, largest: float) -> None:
    """Raises ExportError and removes the graph unless `error` is at most `largest`."""
    if not error <= largest:  # also refuses NaN
        path.unlink(missing_ok=True)
        raise ExportError(
            f"{path}: expected the graph within {largest:g} of torch, got {error:.3g}; nothing was kept"
        )


def ms_per_call(graph: bytes | Path, feed: Mapping[str, F32]) -> float:
    """Returns the median time of a call on this machine, on one thread."""
    session = open_graph(graph)
    taken = []
    for _ in range(100):
        start = time.perf_counter()
        session.run(None, dict(feed))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken) * 1000)
