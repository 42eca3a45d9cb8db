"""The CUDA device of this machine, by the driver API through ctypes: no package is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """A CUDA device, as far as kernels and engines are built for it."""

    name: str  # "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int]  # (9, 0)


def find_cuda_device(driver: str = _DRIVER) -> CudaDevice | None:
    """Returns the first device that CUDA_VISIBLE_DEVICES leaves, None where no driver answers.

    Source: CUDA Driver API, "Initialization" and "Device Management".
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    capability = ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGetCount(ctypes.byref(count))
        or count.value < 1
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(capability[0]), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(capability[1]), _CAPABILITY_MINOR, device)
    )
    if failed:
        return None
    return CudaDevice(
        name=name.value.decode(errors="replace"), capability=(capability[0].value, capability[1].value)
    )
