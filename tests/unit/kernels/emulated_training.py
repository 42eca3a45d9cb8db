"""The training kernels compiled as plain C++ and run on the CPU, for tests without a GPU."""

from __future__ import annotations

import ctypes
import subprocess

from emulated_raymarcher import COMPILER, HERE, KERNELS

THREADS = 32  # of a block: one warp


class EmulatedTraining:
    """Runs the kernels on tensors of the CPU, and keeps the names of those it ran."""

    def __init__(self, folder):
        library = folder / "training.so"
        subprocess.run(
            [
                COMPILER,
                *("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas"),
                *("-I", str(KERNELS), "-I", str(HERE)),
                *(str(HERE / "emulated_training.cpp"), "-o", str(library)),
            ],
            check=True,
        )
        self.library = ctypes.CDLL(str(library))
        self.library.launch.restype = ctypes.c_bool
        self.library.launch.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
        self.names = []

    def launch(self, name, arguments, items, groups=1):
        self.names.append(name)
        blocks = -(-items // THREADS) * groups
        size = ctypes.sizeof(arguments)
        assert self.library.launch(name.encode(), ctypes.addressof(arguments), size, blocks), name
