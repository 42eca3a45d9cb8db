"""Tests that are coroutines: `@on_loop`."""

from __future__ import annotations

import asyncio
import functools

from patience import PATIENCE_S

MAX_S = 5 * PATIENCE_S  # a test waits more than once


def on_loop(test):
    """Runs a test coroutine on a loop of its own; it may leave no task behind."""

    @functools.wraps(test)
    def run(*arguments, **named):
        async def watched():
            async with asyncio.timeout(MAX_S):
                await test(*arguments, **named)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if ending := {task for task in left if task.cancelling()}:  # one that is on its way is not left
                left -= (await asyncio.wait(ending, timeout=PATIENCE_S))[0]
            assert not left, f"tasks left behind: {left}"

        asyncio.run(watched())

    return run


async def until(check, *, what=""):
    """Returns once `check()` holds; it is asked every 10 ms."""
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while not check():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {PATIENCE_S} s: {what or check}"
        await asyncio.sleep(0.01)
