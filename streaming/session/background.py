"""Blocking work off the event loop, in daemon threads that delay no shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call_on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    """Calls a function on an event loop, from any thread; drops the call if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def in_background(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Returns a future of what `work` returns or raises in a thread of its own.

    Not the event loop's executor: loop and interpreter wait for its threads at exit, however long they take.

    Args:
        name: of the thread, after `geneface-`.
        work: called there. If the future is cancelled meanwhile, what it returns is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        call_on_loop(loop, lambda: None if future.done() else settle())

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - a thread's outermost frame: raised to the awaiting task
            failure = error
            tell(lambda: future.set_exception(failure))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=run, name=f"geneface-{name}", daemon=True).start()
    return future
