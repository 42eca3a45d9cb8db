import gc
import subprocess
import sys
import weakref

import pytest

from streaming.session import memory

glibc = pytest.mark.skipif(memory._libc() is None, reason="the C library is not glibc")


class Cycle:
    def __init__(self):
        self.itself = self


def test_what_an_ended_session_held_in_cycles_is_freed():
    gc.disable()
    try:
        gone = weakref.ref(Cycle())
        assert gone() is not None
        memory.reclaim()
        assert gone() is None
    finally:
        gc.enable()


def test_what_was_there_at_the_start_is_not_looked_at_again():
    before = gc.get_freeze_count()
    kept = [Cycle() for _ in range(1000)]
    try:
        memory.settle()
        assert gc.get_freeze_count() >= before + len(kept)
        assert not any(isinstance(found, Cycle) for found in gc.get_objects())
    finally:
        gc.unfreeze()


HEAPS = """
import ctypes, re, threading
from streaming.session import memory
memory.keep_few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
here, leave = threading.Barrier(13), threading.Event()
def work():
    libc.malloc(1000)
    here.wait()
    leave.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
here.wait()
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fopen.restype = ctypes.c_void_p
libc.fclose.argtypes = [ctypes.c_void_p]
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, file)
libc.fclose(file)
leave.set()
"""


@glibc
def test_threads_share_two_heaps():
    done = subprocess.run([sys.executable, "-c", HEAPS], capture_output=True, text=True, check=True)
    assert 1 <= done.stdout.count("<heap nr=") <= 2
