"""Loading and launching of the training kernels in torch's CUDA context and current stream."""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any, Protocol

import torch

from .cuda_module import CudaError, CudaUnavailableError, import_extra, training_code

logger = logging.getLogger(__name__)

THREADS = 128  # of a block


class Launcher(Protocol):
    """Launches kernels on a device."""

    def launch(self, name: str, arguments: ctypes.Structure, items: int, groups: int = 1) -> None:
        """Enqueues a kernel over `items` threads, in `groups` rows of blocks."""


class _GpuLauncher:
    """The kernels loaded in a GPU's primary context, which is torch's."""

    def __init__(self, number: int) -> None:
        """Loads the kernels.

        Raises:
            CudaUnavailableError: they cannot be compiled for this GPU.
            CudaError: the driver cannot load them.
        """
        self._driver = import_extra("cuda.bindings.driver")
        self._number = number
        major, minor = torch.cuda.get_device_capability(number)
        code = training_code(10 * major + minor)
        try:
            self._call("cuInit", 0)
            self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", number))
            with torch.cuda.device(number):
                self._call("cuCtxSetCurrent", self._context)
                self._module = self._call("cuModuleLoadData", code)
        except RuntimeError as error:  # the driver's library was not found, or a call was refused
            raise CudaUnavailableError(
                f"GPU {number}: expected to load the training kernels, got {error}"
            ) from error
        self._functions: dict[str, Any] = {}

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 -- the bindings ship no types
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status) != 0:
            raise CudaError(f"{name}: expected success, got {status.name}")
        return results[0] if len(results) == 1 else None

    def launch(self, name: str, arguments: ctypes.Structure, items: int, groups: int = 1) -> None:
        """Enqueues a kernel on torch's current stream."""
        if items == 0:
            return
        with torch.cuda.device(self._number):
            # A thread new to CUDA, such as autograd's, has no current context.
            self._call("cuCtxSetCurrent", self._context)
            function = self._functions.get(name)
            if function is None:
                function = self._call("cuModuleGetFunction", self._module, name.encode())
                self._functions[name] = function
            pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
            self._call(
                "cuLaunchKernel",
                function,
                *(-(-items // THREADS) * groups, 1, 1, THREADS, 1, 1, 0),
                self._driver.CUstream(torch.cuda.current_stream(self._number).cuda_stream),
                ctypes.addressof(pointers),
                0,
            )


_launchers: dict[torch.device, Launcher | str] = {}  # or why there is none
_loading = threading.Lock()


def _launcher_or_reason(device: torch.device) -> Launcher | str:
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    found = _launchers.get(device)
    if found is None:
        with _loading:
            found = _launchers.get(device)
            if found is None:
                found = _load(device)
                _launchers[device] = found
    return found


def _load(device: torch.device) -> Launcher | str:
    if device.type != "cuda":
        return f"{device}: expected a CUDA device"
    try:
        return _GpuLauncher(device.index)
    except (CudaUnavailableError, CudaError) as error:
        logger.warning("the training kernels cannot run on %s: %s", device, error)
        return str(error)


def launcher_of(device: torch.device) -> Launcher:
    """Returns the device's launcher; CudaUnavailableError where the kernels cannot run."""
    found = _launcher_or_reason(device)
    if isinstance(found, str):
        raise CudaUnavailableError(f"training kernels: {found}; train with the torch kernels")
    return found


def usable(device: torch.device) -> bool:
    """Returns whether the kernels run on the device; logs once for each CUDA device why not."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return False
    return not isinstance(_launcher_or_reason(device), str)
