"""What bad input is refused with: one line that says what, where, expected, got and the way out."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line fit to be shown as it is."""


class Stopped(Exception):  # noqa: N818 - it is an order, not an error
    """The run was ended from outside (SIGINT, SIGTERM, `aclose`) before it was done."""


class GpuLostError(RuntimeError):
    """The GPU draws no more; the message says why, in a few words."""
