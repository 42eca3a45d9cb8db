"""A network of the bundle that runs: one array in, one array out, names and shapes checked at start."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

F32 = npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs one network; ONNX Runtime is one kind, other runtimes can stand in its place."""

    def run(self, values: F32) -> F32:
        """Returns the network's output, float32 of the shape it was opened with."""


class EngineError(ValueError):
    """A network does not have the inputs and outputs that the bundle promises."""


class OnnxEngine:
    """An ONNX file on the CPU, on one thread: the raymarcher needs the cores more."""

    def __init__(
        self,
        model: Path,
        *,
        input_name: str,
        input_shape: tuple[int, ...],
        output_name: str,
        output_shape: tuple[int, ...],
        threads: int = 1,
    ) -> None:
        """Loads the file and runs it once on zeros.

        Raises:
            EngineError: another name, shape or type than asked for, or a file that is no network.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - the runtime's own errors share no base but Exception
            reason = str(error).splitlines()[0]
            raise EngineError(f"{model}: expected an ONNX network, got: {reason}; export it again") from None
        _check(model, "input", self._session.get_inputs(), input_name, input_shape)
        _check(model, "output", self._session.get_outputs(), output_name, output_shape)
        self._input_name = input_name
        self._output_names = [output_name]
        got = self.run(np.zeros(input_shape, np.float32))
        if got.shape != output_shape or got.dtype != np.float32:
            raise EngineError(
                f"{model}: {output_name}: expected float32 {list(output_shape)}, "
                f"got {got.dtype} {list(got.shape)}; export it again"
            )

    def run(self, values: F32) -> F32:
        """Returns the network's output for one input."""
        output: F32 = self._session.run(self._output_names, {self._input_name: values})[0]
        return output


def _check(
    model: Path,
    role: str,
    found: list[onnxruntime.NodeArg],
    name: str,
    shape: tuple[int, ...],
) -> None:
    by_name = {node.name: node for node in found}
    if name not in by_name:
        raise EngineError(
            f"{model}: expected an {role} named {name!r}, got {', '.join(by_name) or 'none'}; export it again"
        )
    if role == "input" and len(by_name) > 1:
        raise EngineError(f"{model}: expected one input, got {', '.join(by_name)}; export it again")
    node = by_name[name]
    # A symbolic axis (its name, or None) takes any length; a fixed one must be ours.
    fits = len(node.shape) == len(shape) and all(
        not isinstance(got, int) or got == expected for got, expected in zip(node.shape, shape, strict=True)
    )
    if not fits or node.type != "tensor(float)":
        raise EngineError(
            f"{model}: {role} {name!r}: expected float32 {list(shape)}, got {node.type} {node.shape}; "
            "export it again"
        )
