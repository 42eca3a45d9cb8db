"""A bundle's network in ONNX Runtime: float32 arrays in, one out; names and shapes checked when opened."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from models.bundle_files import FileRecord, read_network
from models.onnx_runtime import load_onnxruntime

from .cores import usable_cores
from .cuda_device import CudaDevice
from .run_watch import RUN_WATCH

T = TypeVar("T")

LARGE_BYTES = 20_000_000
"""A file of more than this is a network that a GPU runs much faster: HuBERT, GeneFace's Audio2Motion."""
MAX_FIRST_RUN_S = 20.0
"""Timeout of a network's first runs, when it is opened."""
MAX_BUILD_S = 600.0
"""Timeout where TensorRT builds an engine for this GPU."""
MAX_RUN_S = 5.0
"""Timeout of a later run."""
_MIN_OPENED_BYTES_PER_S = 10e6  # a slow disk, and the runtime's graph optimisation
_GRACE_S = 2.0
_LOOK_S = 0.2
CPU = "CPU"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_CPU_PROVIDER = "CPUExecutionProvider"


class EngineError(InputError):
    """A network does not have the inputs and outputs that the bundle promises."""


class EngineUnavailableError(EngineError):
    """A runtime or a device cannot run a network here."""


class EngineTimeoutError(EngineError):
    """A run of a network exceeded its timeout."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Specification of a bundle's network: file, inputs by name with their shapes, and one output.

    An axis that the file leaves free takes the length given here; other lengths may be run later.
    """

    model: Path
    inputs: Mapping[str, tuple[int, ...]]
    output: str
    output_shape: tuple[int, ...]
    record: FileRecord | None = None
    """What the bundle says of the file's content: what runs is what was hashed."""

    @property
    def is_large(self) -> bool:
        """Whether `auto` runs it on a GPU."""
        try:
            return self.model.stat().st_size > LARGE_BYTES
        except OSError:  # opening it raises the error
            return False

    def zeros(self) -> dict[str, F32]:
        """Returns inputs of its shapes, all 0: silence."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.inputs.items()}

    def noise(self) -> dict[str, F32]:
        """Returns inputs of its shapes, the same at each call: uniform in [-1, 1], a pitch 80 to 300 Hz."""
        random = np.random.default_rng(0)
        ranges = {name: (80, 300) if name == "f0_hz" else (-1, 1) for name in self.inputs}
        return {
            name: random.uniform(*ranges[name], size=shape).astype(np.float32)
            for name, shape in self.inputs.items()
        }


class Engine(Protocol):
    """Runs one network."""

    device: str
    """What runs it, for display: "CPU", "NVIDIA H100 (ONNX Runtime, TensorRT)"."""

    def run(self, inputs: Mapping[str, F32]) -> F32:
        """Returns the network's output for its inputs, by name; a new array."""


class OnnxEngine:
    """An ONNX file in ONNX Runtime.

    On the CPU a small network has one thread, since the raymarcher needs the cores more; a large one has all.
    """

    def __init__(
        self,
        network: NetworkSpec,
        *,
        gpu: CudaDevice | None = None,
        tensorrt: Mapping[str, str] | None = None,
        cores: int = 0,
    ) -> None:
        """Loads the file and runs it once on zeros; on the CPU without a `gpu`.

        Args:
            network: which, and of what shape.
            gpu: runs it.
            tensorrt: options of ONNX Runtime's provider for TensorRT; None: CUDA runs it.
            cores: that a large network may use on the CPU, at most; 0: all there are.

        Raises:
            EngineError: another name, shape or type than asked for, or a file that is no network.
            EngineTimeoutError: it does not return.
            EngineUnavailableError: CUDA was asked for and cannot be used.
            BundleError: the file is not the one that the bundle tells of, or leans on others.
        """
        onnxruntime = load_onnxruntime()
        model = network.model
        content = read_network(model, network.record)
        self._name = str(model)
        self._make_run_options = onnxruntime.RunOptions
        self._max_run_s = MAX_FIRST_RUN_S if tensorrt is None else MAX_BUILD_S
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores(cores) if gpu is None and network.is_large else 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised; no log line a run
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # the format that was checked
        providers: list[Any] = [_CPU_PROVIDER]
        if gpu is not None:
            if CUDA_PROVIDER not in onnxruntime.get_available_providers():
                raise EngineUnavailableError(
                    f"ONNX Runtime {onnxruntime.__version__}: expected a build for CUDA, got one without; "
                    "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
                )
            if hasattr(onnxruntime, "preload_dlls"):  # finds cuDNN and cuBLAS among installed packages
                onnxruntime.preload_dlls()
            # The default tries out every algorithm at each new length: seconds, in the middle of a stream.
            providers.insert(0, (CUDA_PROVIDER, {"cudnn_conv_algo_search": "HEURISTIC"}))
        if tensorrt is not None:
            providers.insert(0, (TENSORRT_PROVIDER, dict(tensorrt)))
        try:
            self._session = self._within(
                self._max_run_s + len(content) / _MIN_OPENED_BYTES_PER_S,
                lambda: onnxruntime.InferenceSession(
                    content,
                    sess_options=options,
                    providers=providers,
                    enable_fallback=0,  # it would print what it does instead
                ),
            )
        except EngineTimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - the runtime's own errors share no base but Exception
            if tensorrt is not None and "TensorRT libraries" in str(error):
                raise _no_tensorrt(onnxruntime.__version__) from None
            raise EngineError(
                f"{model}: expected an ONNX network, got: {_first_line(error)}; export it again"
            ) from None
        # It falls back to the CPU by itself where the driver or a library of CUDA is missing.
        if gpu is not None and CUDA_PROVIDER not in self._session.get_providers():
            raise EngineUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__}: expected CUDA and cuDNN as it was built for, got "
                "others or none; pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        if tensorrt is not None and TENSORRT_PROVIDER not in self._session.get_providers():
            raise _no_tensorrt(onnxruntime.__version__)
        self.device = CPU if gpu is None else f"{gpu.name} (ONNX Runtime{', TensorRT' if tensorrt else ''})"
        self._outputs = [network.output]
        check_tensors(
            network,
            inputs={node.name: (node.type, node.shape) for node in self._session.get_inputs()},
            outputs={node.name: (node.type, node.shape) for node in self._session.get_outputs()},
        )
        # Two runs, each ended by its own deadline, unless one operator alone takes longer.
        self._within(
            2 * self._max_run_s + _GRACE_S, lambda: probe(self, network, must_be_finite=tensorrt is None)
        )
        self._max_run_s = MAX_RUN_S

    @property
    def input_shapes(self) -> dict[str, list[Any]]:
        """The inputs' shapes by name; an axis that the file leaves free is no number."""
        return {node.name: list(node.shape) for node in self._session.get_inputs()}

    def _within(self, limit_s: float, work: Callable[[], T]) -> T:
        """Returns what `work` returns in a thread of its own, which is abandoned at the timeout.

        Raises:
            EngineTimeoutError: it did not return in time.
        """
        done: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((work(), None))
            except Exception as error:  # noqa: BLE001 - raised again by the caller
                done.put((None, error))

        threading.Thread(target=run, name="open-network", daemon=True).start()
        waited_s = 0.0
        while waited_s < limit_s:
            try:
                result, error = done.get(timeout=_LOOK_S)  # signals are handled between two waits
            except queue.Empty:
                waited_s += _LOOK_S
                continue
            if error is not None:
                raise error
            return cast(T, result)
        raise EngineTimeoutError(
            f"{self._name}: expected an answer within {limit_s:.0f} s, got none; export it again"
        )

    def run(self, inputs: Mapping[str, F32]) -> F32:
        """Returns the network's output for its inputs, by name.

        Raises:
            EngineTimeoutError: it took too long, or the program ends.
        """
        options = self._make_run_options()
        options.log_severity_level = 4
        try:
            with RUN_WATCH.bounded(options, self._max_run_s):
                output: F32 = self._session.run(self._outputs, dict(inputs), options)[0]
        except Exception:
            if options.terminate:
                raise EngineTimeoutError(
                    f"{self._name}: expected an answer within {self._max_run_s:.0f} s, got none; "
                    "export it again"
                ) from None
            raise
        return output


FoundTensors = Mapping[str, tuple[str, Sequence[Any]]]
"""Type (`tensor(float)`) and shape by name; a free axis is no number there."""


def check_tensors(network: NetworkSpec, *, inputs: FoundTensors, outputs: FoundTensors) -> None:
    """Refuses a file whose inputs are others than the bundle promises, or that lacks the output.

    Raises:
        EngineError: with the first name that is missing, too many, or of another shape or type.
    """
    model = network.model
    _check_role(model, "input", inputs, network.inputs)
    if len(inputs) > len(network.inputs):
        raise EngineError(
            f"{model}: expected the inputs {', '.join(network.inputs)}, got {', '.join(inputs)}; "
            "export it again"
        )
    _check_role(model, "output", outputs, {network.output: network.output_shape})


def _check_role(model: Path, role: str, found: FoundTensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise EngineError(
                f"{model}: expected an {role} named {name!r}, got {', '.join(found) or 'none'}; "
                "export it again"
            )
        got_type, got_shape = found[name]
        fits = len(got_shape) == len(shape) and all(
            not isinstance(got, int) or got == wanted for got, wanted in zip(got_shape, shape, strict=True)
        )
        if not fits or got_type != "tensor(float)":
            raise EngineError(
                f"{model}: {role} {name!r}: expected float32 {list(shape)}, got {got_type} "
                f"{list(got_shape)}; export it again"
            )


def probe(engine: Engine, network: NetworkSpec, *, must_be_finite: bool = True) -> None:
    """Runs a network once on zeros and once on noise.

    Args:
        engine: runs it.
        network: what it has to be.
        must_be_finite: that its numbers are; False where a runtime may be to blame.

    Raises:
        EngineError: it does not run, or its output is not what the bundle promises.
    """
    for content, inputs in (("silence", network.zeros()), ("noise", network.noise())):
        try:
            got = engine.run(inputs)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - the runtimes' own errors share no base but Exception
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in network.inputs.items())
            raise EngineError(
                f"{network.model}: expected it to run on {shapes}, got: {_first_line(error)}; export it again"
            ) from None
        if got.shape != network.output_shape or got.dtype != np.float32:
            raise EngineError(
                f"{network.model}: {network.output}: expected float32 {list(network.output_shape)}, "
                f"got {got.dtype} {list(got.shape)}; export it again"
            )
        unusable = got.size - int(np.isfinite(got).sum())
        if unusable and must_be_finite:
            raise EngineError(
                f"{network.model}: {network.output}: expected finite numbers, got {unusable} of {got.size} "
                f"that are none, of {content}; export it again"
            )


def _no_tensorrt(version: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"ONNX Runtime {version}: expected TensorRT's libraries, got none that it can load; "
        "pip install tensorrt"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
