"""The raymarcher's cubins (prebuilt, cached or compiled by NVRTC) and the CUDA device they run on.

Prebuilt cubins lie in `cubins/`, one for each width and architecture (build_cubins.py makes them). Missing or
stale ones are compiled by NVRTC into the user's cache directory. Neither torch nor a compiler is needed:
cuda-bindings calls the driver, and NVRTC comes as a wheel.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import lzma
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .arrays import U8
from .errors import InputError
from .user_cache import user_cache_dir

HERE = Path(__file__).parent
MAIN_SOURCE = "raymarcher.cu"
SOURCES = (MAIN_SOURCE, "raymarcher_scene.cuh", "warp_matrix.cuh")
TRAINING_SOURCE = "training.cu"  # stands alone; compiled where it is used, never prebuilt
CUBINS = HERE / "cubins"
MANIFEST = CUBINS / "SOURCES.sha256"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_SLEEPING, _UNTIMED = 1, 2  # CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING

_SHARED_KIB = {75: 64, 80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227}
_SHARED_KIB_ELSEWHERE = 99
_WEIGHTS_KIB = {32: 11, 64: 41, 96: 80, 128: 130}  # of a head; rounded up
_WARP_KIB = 5  # of a warp's own memory


class CudaUnavailableError(InputError):
    """No usable GPU: what is missing, and the way out."""


class CudaError(RuntimeError):
    """A driver call that failed: which, why."""


# ---------------------------------------------------------------------------------------------- variants
@dataclass(frozen=True, kw_only=True)
class Variant:
    """Compile-time parameters of the kernel for one width and architecture."""

    width: int
    architecture: int  # 90 for sm_90
    warps: int  # of a block, one block to a multiprocessor
    weights_in_shared: bool

    @property
    def defines(self) -> tuple[str, ...]:
        """Compiler options that name the variant."""
        shared = int(self.weights_in_shared)
        return (f"-DWIDTH={self.width}", f"-DWARPS={self.warps}", f"-DWEIGHTS_IN_SHARED={shared}")

    @property
    def file_name(self) -> str:
        """Name of the prebuilt cubin."""
        return f"raymarcher_{self.width}.sm_{self.architecture}.cubin.xz"


def variant_for(width: int, architecture: int) -> Variant:
    """Returns an architecture's variant: weights in shared memory where eight warps fit beside them."""
    shared_kib = _SHARED_KIB.get(architecture, _SHARED_KIB_ELSEWHERE)
    most_warps = {32: 16, 64: 16, 96: 12, 128: 12}[width]
    beside = int(shared_kib - 2 - _WEIGHTS_KIB[width]) // _WARP_KIB  # 2 KiB: the scene's record
    in_shared = beside >= 8
    room = beside if in_shared else int(shared_kib - 2) // _WARP_KIB
    return Variant(
        width=width,
        architecture=architecture,
        warps=min(most_warps, room // 4 * 4),  # a multiprocessor has four schedulers
        weights_in_shared=in_shared,
    )


def sources_digest() -> str:
    """Returns the SHA-256 of the raymarcher's sources."""
    return _digest(SOURCES)


@functools.cache
def _digest(names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _prebuilt(variant: Variant) -> bytes | None:
    """Returns the prebuilt cubin, or None where there is none of these sources."""
    path = CUBINS / variant.file_name
    if not (path.is_file() and MANIFEST.is_file() and MANIFEST.read_text().strip() == sources_digest()):
        return None
    return lzma.decompress(path.read_bytes())


def prebuilt_architecture(architecture: int) -> int | None:
    """Returns the binary-compatible prebuilt architecture: the nearest below of the same major version."""
    fitting = [
        known for known in ARCHITECTURES if known <= architecture and known // 10 == architecture // 10
    ]
    return max(fitting, default=None)


# ---------------------------------------------------------------------------------------------- compiling
def cache_directory() -> Path:
    """Returns the folder of compiled kernels: GENEFACE_KERNEL_CACHE, or the user's cache directory."""
    named = os.environ.get("GENEFACE_KERNEL_CACHE")
    return Path(named) if named else user_cache_dir() / "kernels"


def import_extra(name: str) -> ModuleType:
    """Returns a module of the extra [cuda].

    Raises:
        CudaUnavailableError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CudaUnavailableError(
            f"{name}: expected to be installed to compute on a GPU, got {error}; "
            "install the extra: pip install -e '.[cuda]'"
        ) from error


def compile_with_nvrtc(variant: Variant) -> bytes:
    """Returns the variant's cubin, compiled by NVRTC.

    Raises:
        CudaUnavailableError: no NVRTC, or one that does not know the architecture.
    """
    return compile_sources(SOURCES, variant.architecture, variant.defines, instead="draw on the CPU")


def compile_sources(
    sources: tuple[str, ...], architecture: int, options: tuple[str, ...] = (), *, instead: str
) -> bytes:
    """Returns a cubin for an architecture, compiled by NVRTC from a source and its headers.

    Args:
        sources: file names beside this one, the main source first.
        architecture: 90 for sm_90.
        options: of the compiler.
        instead: the way out where it cannot be compiled.

    Raises:
        CudaUnavailableError: no NVRTC, or one that does not know the architecture.
    """
    nvrtc = import_extra("cuda.bindings.nvrtc")

    def call(name: str, *arguments: object) -> Any:  # noqa: ANN401 -- the bindings ship no types
        try:
            status, *results = getattr(nvrtc, name)(*arguments)
        except RuntimeError as error:  # the library was not found
            raise CudaUnavailableError(
                f"NVRTC: expected the wheel nvidia-cuda-nvrtc, got {error}; "
                "install the extra: pip install -e '.[cuda]'"
            ) from error
        if int(status) != 0:
            raise CudaUnavailableError(
                f"{name} for sm_{architecture}: expected success, got {status.name}; update the "
                f"package nvidia-cuda-nvrtc, or {instead}"
            )
        return results[0] if len(results) == 1 else None

    main, *headers = sources
    program = call(
        "nvrtcCreateProgram",
        (HERE / main).read_bytes(),
        main.encode(),
        len(headers),
        [(HERE / name).read_bytes() for name in headers],
        [name.encode() for name in headers],
    )
    arguments = [f"-arch=sm_{architecture}", "-std=c++17", *options]
    call("nvrtcCompileProgram", program, len(arguments), [argument.encode() for argument in arguments])
    code = b" " * int(call("nvrtcGetCUBINSize", program))
    call("nvrtcGetCUBIN", program, code)
    call("nvrtcDestroyProgram", program)
    return code


def _cached(variant: Variant) -> bytes:
    """Returns the variant's cubin from the user's cache, compiled by NVRTC if missing."""
    return _kept((sources_digest(), variant), lambda: compile_with_nvrtc(variant))


def training_code(architecture: int) -> bytes:
    """Returns the training kernels' cubin for an architecture, cached or compiled now.

    Raises:
        CudaUnavailableError: NVRTC cannot compile them.
    """
    return _kept(
        (_digest((TRAINING_SOURCE,)), architecture),
        lambda: compile_sources((TRAINING_SOURCE,), architecture, instead="train with the torch kernels"),
    )


def _kept(identity: object, make: Callable[[], bytes]) -> bytes:
    """Returns the cubin of that identity from the user's cache, made and cached if missing."""
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    path = cache_directory() / f"{key}.cubin"
    if path.is_file():
        return path.read_bytes()
    code = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # this thread's own
            part = Path(folder) / path.name
            part.write_bytes(code)
            part.replace(path)  # atomic
    except OSError:
        return code  # no cache: compiled in each process
    return code


def machine_code(width: int, architecture: int) -> tuple[Variant, bytes]:
    """Returns the cubin for a width and architecture: prebuilt, cached, or compiled now.

    Raises:
        CudaUnavailableError: it is not prebuilt, and NVRTC cannot compile it.
    """
    near = prebuilt_architecture(architecture)
    if near is not None:
        variant = variant_for(width, near)
        code = _prebuilt(variant)
        if code is not None:
            return variant, code
    variant = variant_for(width, architecture)
    return variant, _cached(variant)


# ---------------------------------------------------------------------------------------------- device
@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel loaded on a device, and its launch configuration."""

    function: Any
    threads: int  # of a block
    shared_bytes: int  # of a block


class CudaDevice:
    """One GPU's primary context, a stream for uploads, and the kernels loaded so far.

    Not thread-safe, except `make_current` and `wait`. The primary context is the one that
    torch and ONNX Runtime use too.
    """

    def __init__(self, number: int = 0) -> None:
        """Opens the GPU of that number.

        Raises:
            CudaUnavailableError: no driver, or no such GPU.
        """
        self._driver = import_extra("cuda.bindings.driver")
        try:
            self.call("cuInit", 0)
            count = self.call("cuDeviceGetCount")
        except (CudaError, RuntimeError) as error:  # RuntimeError: the driver's library was not found
            raise CudaUnavailableError(
                f"the NVIDIA driver: expected one that starts, got {error}; install it, or draw on the CPU"
            ) from error
        if not 0 <= number < count:
            raise CudaUnavailableError(
                f"GPU {number}: expected a number below {count}, the GPUs here; "
                "choose one, or draw on the CPU"
            )
        self._device = self.call("cuDeviceGet", number)
        self.name = self.call("cuDeviceGetName", 96, self._device).split(b"\0")[0].decode()
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self.make_current()
        attribute = self._driver.CUdevice_attribute
        major = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.architecture = 10 * major + minor
        self.multiprocessors = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.clock_hz = 1e3 * self._attribute(attribute.CU_DEVICE_ATTRIBUTE_CLOCK_RATE)
        self.stream = self.create_stream()
        self._kernels: dict[int, Kernel] = {}
        self._modules: list[Any] = []

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 -- the bindings ship no types
        """Returns a driver call's result.

        Raises:
            CudaError: the call failed.
        """
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status) != 0:
            raise CudaError(f"{name}: expected success, got {status.name}")
        return results[0] if len(results) == 1 else tuple(results)

    def _attribute(self, attribute: object) -> int:
        return int(self.call("cuDeviceGetAttribute", attribute, self._device))

    def make_current(self) -> None:
        """Makes the context current to the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def kernel(self, width: int) -> Kernel:
        """Returns the kernel of a width, loaded at the first call."""
        found = self._kernels.get(width)
        if found is None:
            _, code = machine_code(width, self.architecture)
            module = self.call("cuModuleLoadData", code)
            self._modules.append(module)
            function = self.call("cuModuleGetFunction", module, b"raymarch")
            address, size = self.call("cuModuleGetGlobal", module, b"raymarch_block")
            block = np.zeros(2, np.uint32)
            self.call("cuMemcpyDtoH", block.ctypes.data, address, size)
            attribute = self._driver.CUfunction_attribute
            self.call(
                "cuFuncSetAttribute",
                function,
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                int(block[1]),
            )
            found = Kernel(function=function, threads=int(block[0]), shared_bytes=int(block[1]))
            self._kernels[width] = found
        return found

    def allocate(self, size: int) -> int:
        """Returns the address of newly allocated device memory."""
        return int(self.call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Frees device memory."""
        self.call("cuMemFree", address)

    def allocate_pinned(self, size: int) -> int:
        """Returns the address of newly allocated pinned host memory."""
        return int(self.call("cuMemHostAlloc", size, 0))

    def free_pinned(self, address: int) -> None:
        """Frees pinned memory."""
        self.call("cuMemFreeHost", address)

    def create_stream(self) -> Any:  # noqa: ANN401 -- the bindings ship no types
        """Returns a non-blocking stream: not synchronised with the default stream."""
        return self.call("cuStreamCreate", _NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Destroys a stream."""
        self.call("cuStreamDestroy", stream)

    def create_event(self, *, timed: bool) -> Any:  # noqa: ANN401
        """Returns an event: timed for `elapsed_ms`, or one that `wait` blocks on without spinning."""
        return self.call("cuEventCreate", 0 if timed else _SLEEPING | _UNTIMED)

    def destroy_event(self, event: Any) -> None:  # noqa: ANN401
        """Destroys an event."""
        self.call("cuEventDestroy", event)

    def upload(self, data: U8) -> int:
        """Returns the device address of a synchronous copy of the bytes."""
        address = self.allocate(max(16, data.nbytes))
        # On its own stream: a plain copy would synchronise with the default stream.
        try:
            self.copy_in(address, data.ctypes.data, data.nbytes, self.stream)
            self.synchronize(self.stream)
        except CudaError:
            self.free(address)
            raise
        return address

    def clear(self, address: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Enqueues zeroing of `size` bytes, a multiple of four."""
        self.call("cuMemsetD32Async", address, 0, size // 4, stream)

    def copy_in(self, address: int, source: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Enqueues a host-to-device copy."""
        self.call("cuMemcpyHtoDAsync", address, source, size, stream)

    def copy_out(self, target: int, address: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Enqueues a device-to-host copy into pinned memory."""
        self.call("cuMemcpyDtoHAsync", target, address, size, stream)

    def launch(self, kernel: Kernel, blocks: int, argument: U8, stream: Any) -> None:  # noqa: ANN401
        """Enqueues a kernel whose one argument is a record of these bytes."""
        pointers = np.array([argument.ctypes.data], np.uint64)
        self.call(
            "cuLaunchKernel",
            kernel.function,
            *(blocks, 1, 1, kernel.threads, 1, 1, kernel.shared_bytes),
            stream,
            pointers.ctypes.data,
            0,
        )

    def mark(self, event: Any, stream: Any) -> None:  # noqa: ANN401
        """Records an event on a stream."""
        self.call("cuEventRecord", event, stream)

    def elapsed_ms(self, begin: Any, end: Any) -> float:  # noqa: ANN401
        """Returns the milliseconds between two completed events; negative if `end` was first."""
        return float(self.call("cuEventElapsedTime", begin, end))

    def wait(self, event: Any) -> None:  # noqa: ANN401
        """Blocks until an event has completed, with the GIL released."""
        self.call("cuEventSynchronize", event)

    def synchronize(self, stream: Any) -> None:  # noqa: ANN401
        """Blocks until a stream is idle."""
        self.call("cuStreamSynchronize", stream)

    def close(self) -> None:
        """Unloads the kernels and releases the primary context."""
        self.make_current()
        for module in self._modules:
            self.call("cuModuleUnload", module)
        self.destroy_stream(self.stream)
        self.call("cuDevicePrimaryCtxRelease", self._device)
