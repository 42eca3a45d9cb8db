"""Stand-ins for the packages `tensorrt` and `cuda.bindings`: `install` them, then look at what was called.

They hold callers to what is documented: enumerations, `None` and `False` instead of exceptions, inputs within
the optimization profile, addresses of device memory that was allocated and is large enough, copies in the
right direction, a logger that lives. A plan is the ONNX file and the profile; running one runs ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import enum
import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime


class Machine:
    """What the stand-ins share: what goes wrong on it, what was called, the memory of its GPU."""

    def __init__(self) -> None:
        self.version = "10.13.3"
        self.parse_error = ""  # what the parser finds wrong
        self.build_error = ""  # what the builder finds wrong
        self.phases = [("Building", None, 2), ("Tactics", "Building", 10)]
        self.noise: dict[str, float] = {"fp16": 0.0, "fp32": 0.0}  # of the output, by precision
        self.cuda_error = ""  # a function that fails
        self.builds: list[SimpleNamespace] = []
        self.loads = 0
        self.memory: dict[int, ctypes.Array] = {}
        self.freed: list[int] = []
        self.streams: set[int] = set()
        self.streams_made = 0
        self.copies: list[str] = []

    def install(self, monkeypatch) -> None:
        """Puts the packages where imports find them."""
        bindings = ModuleType("cuda.bindings")
        runtime = cuda_runtime(self)
        bindings.runtime = runtime
        for name, module in {
            "tensorrt": tensorrt(self),
            "cuda": ModuleType("cuda"),
            "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class LayerType(enum.Enum):
    MATRIX_MULTIPLY = 0
    CAST = 1
    OTHER = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 0


class Logger:
    Severity: ClassVar = Severity

    def __init__(self) -> None:
        self.initialised = True


class ProgressMonitor:
    def __init__(self) -> None:
        self.initialised = True


class Tensor:
    def __init__(self, name, dtype, shape=()) -> None:
        self.name, self.dtype, self.shape = name, dtype, tuple(shape)


class Layer:
    def __init__(self, kind, inputs, outputs, to=None) -> None:
        self.type, self.inputs, self.outputs, self.to = kind, inputs, outputs, to

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, number):
        return self.inputs[number]

    def set_input(self, number, tensor):
        assert isinstance(tensor, Tensor)
        self.inputs[number] = tensor
        if self.type is LayerType.MATRIX_MULTIPLY:  # strongly typed: the product is what the factors are
            self.outputs[0].dtype = tensor.dtype

    def get_output(self, number):
        return self.outputs[number]


class Definition:
    """A network, strongly typed: types follow from the inputs, and disagreement is no network."""

    def __init__(self) -> None:
        self.layers, self.inputs, self.outputs, self.content = [], [], [], b""

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, number):
        return self.layers[number]

    def get_input(self, number):
        return self.inputs[number]

    def get_output(self, number):
        return self.outputs[number]

    def add_cast(self, tensor, to_type):
        name = f"(Unnamed Layer* {len(self.layers)}) [Cast]_output"
        layer = Layer(LayerType.CAST, [tensor], [Tensor(name, to_type, tensor.shape)], to_type)
        self.layers.append(layer)
        return layer

    def mark_output(self, tensor):
        self.outputs.append(tensor)

    def unmark_output(self, tensor):
        self.outputs.remove(tensor)

    def disagreement(self) -> str:
        """Returns what is wrong with the types: nothing but a product may be half, and no output is."""
        for layer in self.layers:
            dtypes = {tensor.dtype for tensor in layer.inputs if tensor is not None}
            if layer.type is LayerType.MATRIX_MULTIPLY and len(dtypes) > 1:
                return "factors of two types"
            if layer.type is LayerType.OTHER and DataType.HALF in dtypes:
                return f"{layer.outputs[0].name} is made of halves"
        if any(tensor.dtype is DataType.HALF for tensor in self.outputs):
            return "an output of halves"
        return ""

    @property
    def precision(self) -> str:
        products = [layer for layer in self.layers if layer.type is LayerType.MATRIX_MULTIPLY]
        half = [layer for layer in products if layer.outputs[0].dtype is DataType.HALF]
        assert half in ([], products)
        return "fp16" if half else "fp32"


def tensorrt(machine: Machine) -> ModuleType:
    """Returns a module like TensorRT 10 and 11, of what both have."""

    class OnnxParser:
        def __init__(self, definition, logger) -> None:
            assert logger.initialised
            self._definition = definition

        num_errors = property(lambda self: int(bool(machine.parse_error)))

        def get_error(self, number):
            return SimpleNamespace(desc=lambda: machine.parse_error)

        def parse(self, content) -> bool:
            assert isinstance(content, bytes)
            if machine.parse_error:
                return False
            model = onnx.load_model_from_string(content)
            definition, known = self._definition, {}

            def tensor(name, shape=()):
                return known.setdefault(name, Tensor(name, DataType.FLOAT, shape))

            def io(values):
                return [
                    tensor(
                        value.name,
                        [d.dim_value or -1 for d in value.type.tensor_type.shape.dim],
                    )
                    for value in values
                ]

            definition.inputs, definition.outputs = io(model.graph.input), io(model.graph.output)
            definition.content = model.SerializeToString()
            for node in model.graph.node:
                product = node.op_type in ("MatMul", "Gemm")
                inputs = [tensor(name) if name else None for name in node.input]
                definition.layers.append(
                    Layer(
                        LayerType.MATRIX_MULTIPLY if product else LayerType.OTHER,
                        inputs,
                        [tensor(name) for name in node.output],
                    )
                )
            return True

    class Profile:
        def __init__(self) -> None:
            self.shapes = {}

        def set_shape(self, name, least, usual, most):
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
            self.shapes[name] = (least, usual, most)

    class TimingCache:
        def __init__(self, content) -> None:
            self.content = content

        def serialize(self):
            return memoryview(self.content + b"timed;")

    class Config:
        def __init__(self) -> None:
            self.profiles, self.flags, self.progress_monitor = [], {BuilderFlag.TF32}, None
            self.timing_cache = None

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def create_timing_cache(self, content):
            return TimingCache(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            self.timing_cache = cache
            return True

        def get_timing_cache(self):
            return self.timing_cache

    class Builder:
        def __init__(self, logger) -> None:
            assert logger.initialised
            self._logger = logger

        def create_network(self, flags):
            assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return Definition()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, definition, config):
            build = SimpleNamespace(
                precision=definition.precision,
                tf32=BuilderFlag.TF32 in config.flags,
                profile=config.profiles[0].shapes if config.profiles else None,
                timings=config.timing_cache.content,
                definition=definition,
            )
            machine.builds.append(build)
            monitor = config.progress_monitor
            assert monitor.initialised
            if not self._progress(monitor):
                return None
            free = any(-1 in tensor.shape for tensor in definition.inputs)
            problem = machine.build_error or definition.disagreement()
            if not problem and free != (build.profile is not None):
                problem = "a free axis without an optimization profile"
            if problem:
                self._logger.log(Severity.ERROR, problem)
                return None
            return memoryview(pickle.dumps((definition.content, build.profile, build.precision)))

        def _progress(self, monitor) -> bool:
            (outer, _, outer_steps), (inner, _, inner_steps) = machine.phases
            monitor.phase_start(outer, None, outer_steps)
            for step in range(outer_steps):
                monitor.phase_start(inner, outer, inner_steps)
                for inner_step in range(inner_steps):
                    if not monitor.step_complete(inner, inner_step):
                        return False
                monitor.phase_finish(inner)
                if not monitor.step_complete(outer, step):
                    return False
            monitor.phase_finish(outer)
            return True

    class Runtime:
        def __init__(self, logger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan):
            machine.loads += 1
            try:
                return Engine(*pickle.loads(plan))
            except pickle.UnpicklingError:
                self._logger.log(Severity.ERROR, "magic tag does not match")
                return None

    class Engine:
        def __init__(self, content, profile, precision) -> None:
            self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            self.profile, self.precision = profile, precision
            self.names = {node.name: TensorIOMode.INPUT for node in self.session.get_inputs()}
            self.names |= {node.name: TensorIOMode.OUTPUT for node in self.session.get_outputs()}

        num_io_tensors = property(lambda self: len(self.names))

        def get_tensor_name(self, number):
            return list(self.names)[number]

        def get_tensor_mode(self, name):
            return self.names[name]

        def create_execution_context(self):
            return Context(self)

    class Context:
        def __init__(self, engine) -> None:
            self._engine, self._shapes, self._addresses = engine, {}, {}

        def set_input_shape(self, name, shape) -> bool:
            node = next(node for node in self._engine.session.get_inputs() if node.name == name)
            if self._engine.profile is None:
                fits = tuple(shape) == tuple(node.shape)
            else:
                least, _, most = self._engine.profile[name]
                fits = all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))
            self._shapes[name] = tuple(shape)
            return fits

        def get_tensor_shape(self, name):
            return self._compute()[name].shape

        def set_tensor_address(self, name, address) -> bool:
            assert address in machine.memory
            self._addresses[name] = address
            return True

        def _compute(self):
            session, feed = self._engine.session, {}
            for node in session.get_inputs():
                shape = self._shapes[node.name]
                array = np.frombuffer(
                    machine.memory[self._addresses[node.name]], np.float32, count=int(np.prod(shape))
                )
                feed[node.name] = array.reshape(shape)
            names = [node.name for node in session.get_outputs()]
            return dict(zip(names, session.run(names, feed), strict=True))

        def execute_async_v3(self, stream) -> bool:
            assert stream in machine.streams
            for name, values in self._compute().items():
                noisy = values + np.float32(machine.noise[self._engine.precision] * np.abs(values).mean())
                target = machine.memory[self._addresses[name]]
                ctypes.memmove(target, np.ascontiguousarray(noisy).ctypes.data, noisy.nbytes)
            return True

    module = ModuleType("tensorrt")
    module.__version__ = machine.version
    module.float32, module.float16 = DataType.FLOAT, DataType.HALF
    for part in (LayerType, TensorIOMode, NetworkDefinitionCreationFlag, BuilderFlag):
        setattr(module, part.__name__, part)
    for part in (OnnxParser, Builder, Runtime):
        setattr(module, part.__name__, part)
    module.ILogger, module.IProgressMonitor = Logger, ProgressMonitor
    return module


CudaError = enum.IntEnum("CudaError", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})
MemcpyKind = enum.IntEnum("MemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})


class Stream:
    """A stream as cuda.bindings hands it out: no number, but one can be made of it."""

    def __init__(self, number) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


def cuda_runtime(machine: Machine) -> ModuleType:
    """Returns a module like `cuda.bindings.runtime`: each function gives a tuple, the error first."""
    module = ModuleType("cuda.bindings.runtime")
    module.cudaError_t, module.cudaMemcpyKind, module.cudaStreamNonBlocking = CudaError, MemcpyKind, 1

    def function(call):
        def wrapped(*arguments):
            if machine.cuda_error == call.__name__:
                return (CudaError.cudaErrorMemoryAllocation,)
            value = call(*arguments)
            return (CudaError.cudaSuccess,) if value is None else (CudaError.cudaSuccess, value)

        setattr(module, call.__name__, wrapped)

    @function
    def cudaMalloc(size):  # noqa: N802 - the runtime's own name
        memory = ctypes.create_string_buffer(size)
        machine.memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    @function
    def cudaFree(address):  # noqa: N802 - the runtime's own name
        del machine.memory[address]
        machine.freed.append(address)

    @function
    def cudaStreamCreateWithFlags(flags):  # noqa: N802 - the runtime's own name
        assert flags == module.cudaStreamNonBlocking
        machine.streams_made += 1
        machine.streams.add(machine.streams_made)
        return Stream(machine.streams_made)

    @function
    def cudaStreamDestroy(stream):  # noqa: N802 - the runtime's own name
        machine.streams.remove(int(stream))

    @function
    def cudaStreamSynchronize(stream):  # noqa: N802 - the runtime's own name
        assert int(stream) in machine.streams

    @function
    def cudaMemcpyAsync(to, source, count, kind, stream):  # noqa: N802 - the runtime's own name
        assert int(stream) in machine.streams
        on_gpu = to if kind is MemcpyKind.cudaMemcpyHostToDevice else source
        assert len(machine.memory[on_gpu]) >= count
        ctypes.memmove(to, source, count)
        machine.copies.append(kind.name)

    return module
