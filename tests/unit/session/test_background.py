from __future__ import annotations

import asyncio
import threading

import pytest
from on_loop import on_loop, until

from streaming.session.background import in_background


@on_loop
async def test_background_work_runs_in_a_thread_of_its_name_and_returns():
    def work():
        thread = threading.current_thread()
        return thread.name, thread.daemon

    assert await in_background("work", work) == ("geneface-work", True)


@on_loop
async def test_what_background_work_raises_is_raised_to_who_awaits():
    def work():
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        await in_background("work", work)


@on_loop
async def test_the_loop_goes_on_while_background_work_runs():
    gate = threading.Event()
    waiting = in_background("work", lambda: gate.wait(10))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    assert await waiting


@on_loop
async def test_who_gave_up_on_background_work_is_told_nothing():
    gate, done = threading.Event(), threading.Event()

    def work():
        gate.wait(10)
        done.set()
        raise ValueError("too late")

    future = in_background("work", work)
    future.cancel()
    gate.set()
    await until(done.is_set)
    await until(lambda: not any(t.name == "geneface-work" for t in threading.enumerate()))
    assert future.cancelled()


def test_neither_loop_nor_background_thread_waits_for_the_other_to_end():
    gate = threading.Event()
    threads = []

    def work():
        threads.append(threading.current_thread())
        gate.wait(10)

    async def leave():
        in_background("work", work)
        await until(lambda: threads)

    asyncio.run(leave())
    assert threads[0].is_alive()
    gate.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
