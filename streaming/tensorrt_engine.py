"""A network in TensorRT: built once for this GPU, proven against ONNX Runtime, kept in a cache folder.

Written for TensorRT 10 and 11 by their documentation. Networks are strongly typed, the only kind that 11 has:
for fp16, each matrix product is put between casts, and all else (layer norms, softmax, sums, convolutions)
stays float32, with TF32 where the GPU has it. If that is further from ONNX Runtime than `LARGEST_ERROR`, the
network is built once more in plain float32.

The tests run this module against stand-ins for the packages `tensorrt` and `cuda.bindings` that record the
calls and compute with ONNX Runtime. Not run yet: TensorRT itself, on any GPU.

Source: TensorRT documentation, "Python API" (Builder, OnnxParser, IOptimizationProfile, ITimingCache,
IProgressMonitor, ICudaEngine, IExecutionContext) and "Migrating from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuda_kernels.user_cache import user_cache_dir
from models.speaker import read_network

from .cuda_device import CudaDevice
from .engine import EngineError, EngineUnavailableError, NetworkSpec, OnnxEngine, check_tensors, probe
from .errors import Stopped

F32 = npt.NDArray[np.float32]
Say = Callable[[str], None]
Foreign = Any
"""What belongs to tensorrt or cuda.bindings: neither is there where types are checked."""

PRECISIONS = ("fp16", "fp32")
LARGEST_ERROR = 1e-2
"""Root mean square of the difference from ONNX Runtime, of that of its output: a hundredth of a motion."""
INSTALL = "pip install -e '.[tensorrt]'"
_MAGIC = b"geneface-stream engine 1\n"  # a new number wherever a network is built in another way
_DIGEST_BYTES = 32

log = logging.getLogger(__name__)


def open_tensorrt_engine(
    network: NetworkSpec, gpu: CudaDevice, *, cache_dir: Path | None = None, say: Say = log.warning
) -> TensorRtEngine:
    """Returns a network ready to run on a GPU, built now or at an earlier start.

    Args:
        network: which, and of what shape; free axes take half to twice the lengths given there.
        gpu: what it is built for.
        cache_dir: where built engines are kept; None: `engines` in `user_cache_dir`.
        say: takes a line when a build begins, and at each tenth of it.

    Raises:
        EngineError: the network is another than the bundle promises.
        EngineUnavailableError: TensorRT is not there, or cannot run this network here.
    """
    trt, cudart = _import("tensorrt"), _import("cuda.bindings.runtime")
    try:
        return _open(trt, cudart, network, gpu, cache_dir or user_cache_dir() / "engines", say)
    except (EngineError, Stopped):
        raise
    except Exception as error:  # whatever its bindings raise, another runtime may still do it
        log.debug("TensorRT", exc_info=True)
        raise _unavailable(trt, network, f"{type(error).__name__}: {error}") from None


def _import(name: str) -> Foreign:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and package in (error.name or "")
        got = "none" if absent else f"one that cannot be imported ({_one_line(error)})"
        raise EngineUnavailableError(f"TensorRT: expected the package {name}, got {got}; {INSTALL}") from None


def _unavailable(trt: Foreign, network: NetworkSpec, got: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"TensorRT {trt.__version__}: {network.model.name}: expected an engine that runs as ONNX Runtime "
        f"does, got {_one_line(got)}; --engine onnx does without it"
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _open(
    trt: Foreign,
    cudart: Foreign,
    network: NetworkSpec,
    gpu: CudaDevice,
    cache_dir: Path,
    say: Say,
) -> TensorRtEngine:
    messages = _messages(trt)
    built_for = f"{trt.__version__} {gpu.name} {gpu.capability}"
    key = _key(network, built_for)
    kept = {name: cache_dir / f"{network.model.stem}-{key}-{name}.engine" for name in PRECISIONS}
    refused = cache_dir / f"{network.model.stem}-{key}.refused"

    def opened(plan: bytes, precision: str) -> TensorRtEngine:
        device = f"{gpu.name} (TensorRT {precision})"
        return TensorRtEngine(network, plan, device=device, trt=trt, cudart=cudart, messages=messages)

    for precision, path in kept.items():
        plan = _read_kept(path)
        if plan is not None:
            try:
                return opened(plan, precision)
            except EngineUnavailableError:
                log.debug("%s: built anew", path, exc_info=True)
    refusal = _read_kept(refused)
    if refusal is not None:
        raise _unavailable(trt, network, f"{refusal.decode()} (found at an earlier start, see {refused})")
    timings = cache_dir / f"timings-{hashlib.sha256(built_for.encode()).hexdigest()[:16]}.cache"
    found, built = [], 0
    for precision, path in kept.items():
        say(
            f"building {network.model.name} for {gpu.name}: TensorRT {trt.__version__}, {precision} "
            "(once on this GPU; minutes) ..."
        )
        try:
            plan = _build(trt, network, precision, timings, messages, say)
            engine = opened(plan, precision)
        except EngineUnavailableError as missing:
            found.append(f"{missing} in {precision}")
            continue
        built += 1
        error = _error_of(engine, network)
        if error <= LARGEST_ERROR:
            _keep(path, plan, say)
            return engine
        found.append(f"an error of {error:.2g} of the output in {precision}, above {LARGEST_ERROR:g}")
    reason = ", ".join(found)
    if built == len(PRECISIONS):  # it would be the same again, after minutes; what does not build may yet
        _keep(refused, reason.encode(), say)
    raise _unavailable(trt, network, reason)


def _error_of(engine: TensorRtEngine, network: NetworkSpec) -> float:
    """Returns the difference from ONNX Runtime on random inputs: root mean square, of its output's."""
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in network.inputs.items()}
    expected = OnnxEngine(network).run(inputs).astype(np.float64)
    difference = engine.run(inputs) - expected
    error = math.sqrt(float(np.mean(difference**2)) / max(float(np.mean(expected**2)), 1e-12))
    return error if math.isfinite(error) else math.inf


class TensorRtEngine:
    """A built engine on the first CUDA device; calls from several threads take turns."""

    def __init__(
        self,
        network: NetworkSpec,
        plan: bytes,
        *,
        device: str,
        trt: Foreign,
        cudart: Foreign,
        messages: Foreign,
    ) -> None:
        """Loads the engine and runs it once on zeros.

        Args:
            network: what it is of.
            plan: the engine, as it was built.
            device: what runs it, fit to be shown.
            trt: the package `tensorrt`.
            cudart: the module `cuda.bindings.runtime`.
            messages: takes what TensorRT says.

        Raises:
            EngineError: its output is not what the bundle promises.
            EngineUnavailableError: it does not load or run here.
        """
        self.device = device
        self._network = network
        self._cudart = cudart
        self._lock = threading.Lock()
        # TensorRT wants the logger and the runtime to live as long as the engine.
        self._messages = messages
        self._runtime = trt.Runtime(messages)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        context = None if self._engine is None else self._engine.create_execution_context()
        if context is None:
            raise EngineUnavailableError(f"an engine that does not load ({messages.last or 'no reason'})")
        self._context: Foreign = context
        self._outputs = [
            name
            for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors))
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        ]
        self._stream = self._cuda("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking)
        self._buffers: dict[str, tuple[int, int]] = {}  # address and size in bytes, by tensor
        release = weakref.finalize(self, _release, cudart, self._buffers, self._stream)
        release.atexit = False  # the driver frees all then, and may be gone already
        probe(self, network, must_be_finite=False)

    def run(self, inputs: Mapping[str, F32]) -> F32:
        """Returns the network's output for its inputs, by name.

        Raises:
            EngineError: an input has a length beyond what the engine was built for.
            EngineUnavailableError: the GPU does not do it.
        """
        with self._lock:
            kind = self._cudart.cudaMemcpyKind
            held = []  # until the stream is through with them
            for name, values in inputs.items():
                array = np.ascontiguousarray(values, np.float32)
                held.append(array)
                if not self._context.set_input_shape(name, array.shape):
                    raise EngineError(
                        f"{self._network.model}: input {name!r}: expected half to twice "
                        f"{list(self._network.inputs[name])} on free axes, got {list(array.shape)}; "
                        "--engine onnx takes any"
                    )
                address = self._bound(name, array.nbytes)
                self._copy(address, array.ctypes.data, array.nbytes, kind.cudaMemcpyHostToDevice)
            results: dict[str, F32] = {}
            for name in self._outputs:
                results[name] = np.empty(tuple(self._context.get_tensor_shape(name)), np.float32)
                self._bound(name, results[name].nbytes)
            if not self._context.execute_async_v3(int(self._stream)):
                raise EngineUnavailableError(f"a run that is refused ({self._messages.last or 'no reason'})")
            output = results[self._network.output]
            address, _ = self._buffers[self._network.output]
            self._copy(output.ctypes.data, address, output.nbytes, kind.cudaMemcpyDeviceToHost)
            self._cuda("cudaStreamSynchronize", self._stream)
            return output

    def _bound(self, name: str, size_bytes: int) -> int:
        """Returns the address of a tensor's memory on the GPU, which grows with what it must hold."""
        address, there_bytes = self._buffers.get(name, (0, 0))
        if there_bytes < size_bytes:
            if address:
                self._cuda("cudaFree", address)
                del self._buffers[name]
            address = self._cuda("cudaMalloc", size_bytes)
            self._buffers[name] = (address, size_bytes)
            self._context.set_tensor_address(name, address)
        return address

    def _copy(self, to: int, source: int, size_bytes: int, kind: Foreign) -> None:
        self._cuda("cudaMemcpyAsync", to, source, size_bytes, kind, self._stream)

    def _cuda(self, function: str, *arguments: Foreign) -> Foreign:
        error, *values = getattr(self._cudart, function)(*arguments)
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise EngineUnavailableError(f"{error.name} of {function}")
        return values[0] if values else None


def _release(cudart: Foreign, buffers: dict[str, tuple[int, int]], stream: Foreign) -> None:
    for address, _ in buffers.values():
        cudart.cudaFree(address)
    cudart.cudaStreamDestroy(stream)


# Building -------------------------------------------------------------------------------------------


def _build(
    trt: Foreign,
    network: NetworkSpec,
    precision: str,
    timings: Path,
    messages: Foreign,
    say: Say,
) -> bytes:
    """Returns a serialized engine.

    Raises:
        EngineError: the file's inputs and outputs are others than the bundle promises.
        EngineUnavailableError: TensorRT cannot read the network, or build it.
    """
    messages.last = ""
    builder = trt.Builder(messages)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, messages)
    if not parser.parse(read_network(network.model, network.record)):  # what was hashed
        reason = parser.get_error(0).desc() if parser.num_errors else messages.last
        raise EngineUnavailableError(f"a network that it cannot read ({_one_line(reason)})")
    inputs = [definition.get_input(number) for number in range(definition.num_inputs)]
    outputs = [definition.get_output(number) for number in range(definition.num_outputs)]
    found = [
        {
            tensor.name: (
                "tensor(float)" if tensor.dtype == trt.float32 else str(tensor.dtype),
                ["any" if size < 0 else int(size) for size in tensor.shape],
            )
            for tensor in tensors
        }
        for tensors in (inputs, outputs)
    ]
    check_tensors(network, inputs=found[0], outputs=found[1])

    config = builder.create_builder_config()
    free = {tensor.name: [size < 0 for size in tensor.shape] for tensor in inputs}
    if any(map(any, free.values())):
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in _lengths(network.inputs, free).items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    if precision == "fp16":
        _narrow_matrix_products(trt, definition)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    timing_cache = config.create_timing_cache(_read_kept(timings) or b"")
    if timing_cache is not None:
        config.set_timing_cache(timing_cache, ignore_mismatch=False)
    progress = _progress(trt, f"building {network.model.name}", say)
    config.progress_monitor = progress
    plan = builder.build_serialized_network(definition, config)
    if progress.stopped_by is not None:
        raise progress.stopped_by
    if plan is None:
        raise EngineUnavailableError(f"no engine ({messages.last or 'no reason'})")
    if timing_cache is not None:
        _keep(timings, bytes(config.get_timing_cache().serialize()), say)
    return bytes(plan)


def _lengths(
    shapes: Mapping[str, tuple[int, ...]], free: Mapping[str, list[bool]]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Returns the least, usual and greatest shape of each input: half, one and two of its free axes.

    Axes of one network hang together (two features to a frame, four frames to a latent step), so all change
    by the same share, of which none is cut short.
    """
    step = math.gcd(
        *(
            size
            for name, shape in shapes.items()
            for size, is_free in zip(shape, free[name], strict=True)
            if is_free
        )
    )

    def scaled(name: str, steps: int) -> tuple[int, ...]:
        return tuple(
            size // step * steps if is_free else size
            for size, is_free in zip(shapes[name], free[name], strict=True)
        )

    return {name: (scaled(name, (step + 1) // 2), shapes[name], scaled(name, 2 * step)) for name in shapes}


def _narrow_matrix_products(trt: Foreign, definition: Foreign) -> None:
    """Puts each matrix product of float32 between casts to float16 and back."""
    layers = [definition.get_layer(number) for number in range(definition.num_layers)]
    readers: dict[str, list[tuple[Foreign, int]]] = {}
    for layer in layers:
        for number in range(layer.num_inputs):
            tensor = layer.get_input(number)
            if tensor is not None:  # an optional input that is not there
                readers.setdefault(tensor.name, []).append((layer, number))
    outputs = {definition.get_output(number).name for number in range(definition.num_outputs)}
    for layer in layers:
        product = layer.get_output(0)
        if layer.type != trt.LayerType.MATRIX_MULTIPLY or product.dtype != trt.float32:
            continue
        for number in range(layer.num_inputs):
            narrowed = definition.add_cast(layer.get_input(number), trt.float16)
            layer.set_input(number, narrowed.get_output(0))
        widened = definition.add_cast(product, trt.float32).get_output(0)
        for reader, number in readers.get(product.name, []):
            reader.set_input(number, widened)
        if product.name in outputs:
            definition.unmark_output(product)
            name, product.name = product.name, f"{product.name}.float16"
            widened.name = name
            definition.mark_output(widened)


def _messages(trt: Foreign) -> Foreign:
    """Returns a logger for TensorRT that holds the last error as `last`."""

    class Messages(trt.ILogger):  # type: ignore[misc]  # its type is not known
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Foreign, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last = _one_line(message)
            log.debug("TensorRT: %s", message)

    return Messages()


def _progress(trt: Foreign, title: str, say: Say) -> Foreign:
    """Returns a monitor that says each tenth of a build, and holds what stopped it as `stopped_by`."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # its type is not known
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
            self._said = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                parent, steps, _ = self._phases[phase_name]
                self._phases[phase_name] = (parent, steps, min(step + 1, steps))
                tenth = int(10 * self._share(None))
                if self._said < tenth < 10:
                    self._said = tenth
                    say(f"{title}: {10 * tenth} %")
            except BaseException as error:  # noqa: BLE001 - a signal's; none may pass through TensorRT
                self.stopped_by = error
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _share(self, parent: str | None) -> float:
            inside = (
                (done + self._share(name)) / steps
                for name, (above, steps, done) in self._phases.items()
                if above == parent
            )
            return min(1.0, max(inside, default=0.0))

    return Progress()


# The cache ------------------------------------------------------------------------------------------


def _key(network: NetworkSpec, built_for: str) -> str:
    """Returns a text that changes with whatever an engine depends on, but its precision."""
    content = hashlib.sha256(read_network(network.model, network.record)).hexdigest()
    depends_on = json.dumps([content, built_for, dict(network.inputs)])
    return hashlib.sha256(depends_on.encode()).hexdigest()[:32]


def _read_kept(path: Path) -> bytes | None:
    """Returns what was kept under a name, None if nothing was, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, kept = content[len(_MAGIC) :][:_DIGEST_BYTES], content[len(_MAGIC) + _DIGEST_BYTES :]
    return kept if content.startswith(_MAGIC) and hashlib.sha256(kept).digest() == digest else None


def _keep(path: Path, content: bytes, say: Say) -> None:
    """Writes a file whole or not at all."""
    written: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
            written = Path(file.name)
            file.write(_MAGIC + hashlib.sha256(content).digest())
            file.write(content)
        written.replace(path)
    except OSError as error:
        say(f"{path}: cannot be kept ({error.strerror or error}); it is built again at the next start")
    finally:
        if written is not None:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
