"""What stands in for CUDA's driver in tests: `import stand_in_driver`.

Work waits on its stream until something waits for it, as late as a device may do it: memory that is given
back, written or read too soon shows. The kernel paints each frame's record instead of a picture.
"""
# ruff: noqa: N802 - the functions are named as the driver's

from __future__ import annotations

import ctypes
import enum
import threading
import zlib
from types import SimpleNamespace

import numpy as np

from cuda_kernels.cuda_records import CHUNK_BYTES, FRAME, LAUNCH, WORK

POISON = 171
SHOWN = ("pose", "focal_px", "x0", "y0", "width", "height", "ambient_bias", "deform_bias", "canonical_bias")
KERNEL_MS = 2.0


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


def bytes_at(address, size):
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))


class Stream:
    def __init__(self):
        self.pending, self.alive = [], True


class Event:
    def __init__(self):
        self.at_ms, self.stream, self.alive = None, None, True


def picture_of(frame):
    """(bytes,) what the kernel paints for a FRAME record."""
    size = int(frame["width"]) * int(frame["height"]) * (3 if frame["i420"] else 6) // 2
    seed = zlib.crc32(b"".join(frame[name].tobytes() for name in SHOWN))
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


class StandInDriver:
    """The functions of cuda.bindings.driver that `CudaDevice` calls."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=4,
        CU_DEVICE_ATTRIBUTE_CLOCK_RATE=1000,
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self):
        self.memory = {}  # of the device and pinned, by address
        self.freed = []  # kept, so that no address comes twice
        self.pinned = set()
        self.streams, self.events = [], []
        self.modules = 0
        self.contexts = 0
        self.kernels = 0
        self.now_ms = 0.0
        self.broken = False
        self.refused = set()  # names of functions that fail
        self.may_wait = threading.Event()
        self.may_wait.set()
        self.block = np.array([64, 0], np.uint32)
        self._lock = threading.RLock()

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return found

        def call(*arguments):
            if name == "cuEventSynchronize":
                assert self.may_wait.wait(20)
            with self._lock:
                if name in self.refused or (self.broken and name != "cuCtxSetCurrent"):
                    return (Status.CUDA_ERROR_ILLEGAL_ADDRESS,)
                result = found(*arguments)
            if isinstance(result, Status):
                return (result,)
            return (Status.CUDA_SUCCESS, *(result if isinstance(result, tuple) else (result,)))

        return call

    # Context, modules ---------------------------------------------------------------------------------
    def cuInit(self, flags):
        return ()

    def cuDeviceGetCount(self):
        return 1

    def cuDeviceGet(self, number):
        return number

    def cuDeviceGetName(self, length, device):
        return b"Stand-in\0\0"

    def cuDeviceGetAttribute(self, attribute, device):
        return attribute

    def cuDevicePrimaryCtxRetain(self, device):
        self.contexts += 1
        return 1

    def cuDevicePrimaryCtxRelease(self, device):
        self.contexts -= 1
        return ()

    def cuCtxSetCurrent(self, context):
        return ()

    def cuModuleLoadData(self, code):
        self.modules += 1
        return 1

    def cuModuleUnload(self, module):
        self.modules -= 1
        return ()

    def cuModuleGetFunction(self, module, name):
        return 1

    def cuModuleGetGlobal(self, module, name):
        return self.block.ctypes.data, self.block.nbytes

    def cuFuncSetAttribute(self, function, attribute, value):
        return ()

    def cuMemcpyDtoH(self, target, source, size):
        bytes_at(target, size)[:] = bytes_at(source, size)
        return ()

    # Memory -------------------------------------------------------------------------------------------
    def cuMemAlloc(self, size):
        array = np.full(size, POISON, np.uint8)
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def cuMemFree(self, address):
        array = self.memory.pop(address)
        array[:] = POISON
        self.freed.append(array)
        return ()

    def cuMemHostAlloc(self, size, flags):
        address = self.cuMemAlloc(size)[1]
        self.pinned.add(address)
        return address

    def cuMemFreeHost(self, address):
        self.pinned.remove(address)
        return self.cuMemFree(address)[1:]

    def held(self, address, size):
        """The bytes, which must lie in memory that was not given back."""
        for start, array in self.memory.items():
            if start <= address and address + size <= start + array.nbytes:
                return bytes_at(address, size)
        raise AssertionError(f"{size} bytes at {address:#x} are nobody's")

    # Streams ------------------------------------------------------------------------------------------
    def cuStreamCreate(self, flags):
        self.streams.append(Stream())
        return self.streams[-1]

    def cuStreamDestroy(self, stream):
        assert stream.alive
        assert not stream.pending
        stream.alive = False
        return ()

    def cuEventCreate(self, flags):
        self.events.append(Event())
        return self.events[-1]

    def cuEventDestroy(self, event):
        assert event.alive
        event.alive = False
        return ()

    def cuEventRecord(self, event, stream):
        event.at_ms, event.stream = None, stream

        def pass_it():
            event.at_ms = self.now_ms

        stream.pending.append(pass_it)
        return ()

    def cuEventElapsedTime(self, begin, end):
        if begin.at_ms is None or end.at_ms is None:
            return Status.CUDA_ERROR_NOT_READY
        return end.at_ms - begin.at_ms

    def cuEventSynchronize(self, event):
        assert event.alive
        while event.at_ms is None:
            event.stream.pending.pop(0)()
        return ()

    def cuStreamSynchronize(self, stream):
        assert stream.alive
        while stream.pending:
            stream.pending.pop(0)()
        return ()

    def cuMemsetD32Async(self, address, value, count, stream):
        def clear():
            self.held(address, 4 * count)[:] = 0

        assert value == 0
        stream.pending.append(clear)
        return ()

    def cuMemcpyHtoDAsync(self, address, source, size, stream):
        stream.pending.append(lambda: np.copyto(self.held(address, size), bytes_at(source, size)))
        return ()

    def cuMemcpyDtoHAsync(self, target, address, size, stream):
        stream.pending.append(lambda: np.copyto(self.held(target, size), self.held(address, size)))
        return ()

    def cuLaunchKernel(self, function, *arguments):
        stream, pointers = arguments[7:9]
        pointer = int(bytes_at(pointers, 8).view(np.uint64)[0])
        launch = bytes_at(pointer, LAUNCH.itemsize).copy().view(LAUNCH)[0]  # arguments are taken at once
        stream.pending.append(lambda: self.draw(launch))
        return ()

    def draw(self, launch):
        self.kernels += 1
        self.now_ms += KERNEL_MS
        counts = self.held(int(launch["counts"]), 8).view(np.uint32)
        works = self.held(int(launch["works"]), int(launch["work_count"]) * WORK.itemsize).view(WORK)
        for work in works:
            first, count = int(work["first_frame"]), int(work["frames"])
            self.held(int(work["scene"]), 16)
            start = int(launch["frames"]) + first * FRAME.itemsize
            frames = self.held(start, count * FRAME.itemsize).view(FRAME)
            taken = self.held(int(launch["taken_chunks"]) + 4 * first, 4 * count)
            assert not taken.any()
            chunks = 0
            for frame in frames:
                assert frame["first_chunk"] == chunks
                chunks += int(frame["chunks"])
                done = self.held(int(frame["done"]), 4 * (int(frame["chunks"]) + 1))
                assert not done.any()
                done[:] = 1
                self.held(int(frame["pixels"]), CHUNK_BYTES * int(frame["chunks"]))[:] = 2
                self.held(int(frame["background"]), 8 * int(frame["size_px"]) ** 2)
                picture = picture_of(frame)
                if frame["plate"]:
                    blocks = self.held(int(frame["blocks"]), 4 * int(frame["block_count"]))
                    plate = self.held(int(frame["plate"]), picture.size)
                    picture = plate ^ (zlib.crc32(blocks.tobytes()) % 251)
                self.held(int(frame["out"]), picture.size)[:] = picture
                counts[0] += 1
            assert work["chunks"] == chunks
        counts[1] += 7

    def left(self):
        """What was not given back."""
        alive = [one for one in (*self.streams, *self.events) if one.alive]
        return len(self.memory), len(alive), self.modules, self.contexts
