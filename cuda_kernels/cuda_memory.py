"""Reusable memory of launches: device memory, staging buffers, and a pool of pinned output buffers."""

from __future__ import annotations

import contextlib
import ctypes
import threading

import numpy as np

from .arrays import U8
from .cuda_module import CudaDevice, CudaError


def _grown(size: int, least: int) -> int:
    """Returns the next power of two, so that growth reallocates rarely."""
    return 1 << (max(size, least) - 1).bit_length()


class PinnedBuffer:
    """Staging buffer: pinned host memory and as much device memory; grows, never shrinks."""

    def __init__(self, device: CudaDevice, least: int) -> None:
        self._device, self._least = device, least
        self.size = self.pinned = self.address = 0

    def reserve(self, size: int) -> None:
        """Ensures a capacity in bytes; the content is lost if it grows."""
        if size > self.size:
            size = _grown(size, self._least)
            self.free()
            self.pinned = self._device.allocate_pinned(size)
            self.address = self._device.allocate(size)
            self.size = size

    def bytes_at(self, start: int, size: int) -> U8:
        """Returns a view of the pinned bytes."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pinned + start))

    def free(self) -> None:
        """Frees both."""
        if self.pinned:
            self._device.free_pinned(self.pinned)
        if self.address:
            self._device.free(self.address)
        self.size = self.pinned = self.address = 0


class DeviceMemory:
    """Device memory; grows, never shrinks."""

    def __init__(self, device: CudaDevice, least: int) -> None:
        self._device, self._least = device, least
        self.size = self.address = 0

    def reserve(self, size: int) -> None:
        """Ensures a capacity in bytes; the content is lost if it grows."""
        if size > self.size:
            size = _grown(size, self._least)
            self.free()
            self.address = self._device.allocate(size)
            self.size = size

    def free(self) -> None:
        """Frees it."""
        if self.address:
            self._device.free(self.address)
        self.size = self.address = 0


class Lease:
    """Reference-counted pinned buffer of one launch's pictures, returned to the pool by its finaliser."""

    def __init__(self, pool: PinnedPool, address: int, size: int) -> None:
        self._pool, self._address, self.size = pool, address, size
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    @property
    def address(self) -> int:
        """The buffer's host address."""
        return self._address

    def __del__(self) -> None:
        """Returns the buffer to its pool."""
        self._pool.take_back(self._address, self.size)


class PinnedPool:
    """Pool of pinned output buffers; leased ones outlive the renderer while an array refers to them."""

    def __init__(self, device: CudaDevice, least: int) -> None:
        self._device, self._least = device, least
        self._lock = threading.RLock()  # a finaliser may run in any thread, under this lock too
        self._free: list[tuple[int, int]] = []  # (address, size)
        self._leased = self.leased_bytes = 0
        self._closed = False

    def lease(self, size: int) -> Lease:
        """Returns a buffer of at least `size` bytes."""
        with self._lock:
            fitting = [block for block in self._free if block[1] >= size]
            if fitting:
                address, size = min(fitting, key=lambda block: block[1])
                self._free.remove((address, size))
            else:
                while self._free:  # too small, and sizes only grow
                    self._device.free_pinned(self._free.pop()[0])
                size = _grown(size, self._least)
                address = self._device.allocate_pinned(size)
            self._leased += 1
            self.leased_bytes += size
            return Lease(self, address, size)

    def take_back(self, address: int, size: int) -> None:
        """Takes back a leased buffer; the last one of a closed pool closes the device."""
        with self._lock:
            self._leased -= 1
            self.leased_bytes -= size
            self._free.append((address, size))
            if self._closed:
                with contextlib.suppress(CudaError):  # a failed device's memory goes with the process
                    self._end()

    def close(self) -> None:
        """Frees all buffers and closes the device, now or with the last lease."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        self._device.make_current()
        while self._free:
            self._device.free_pinned(self._free.pop()[0])
        if self._leased == 0:
            self._device.close()
