"""Waiting for what must come: `import patience`.

The bound ends a test that hangs. It is far beyond what a busy machine takes, so that load decides nothing.
"""

from __future__ import annotations

import time

PATIENCE_S = 180.0


def until(check, *, what="", pause=time.sleep):
    """Returns what `check` gives, once it is true; it is asked every 50 ms.

    Raises:
        AssertionError: it did not become true in `PATIENCE_S`.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := check()):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S} s: {what or check} is {value!r}"
        pause(0.05)
    return value
