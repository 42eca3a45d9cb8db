"""What a run can end with: bad input, refused in one line, an order from outside, a lost GPU."""

from __future__ import annotations

from cuda_kernels.errors import InputError

__all__ = ["GpuLostError", "InputError", "NetworkFailureError", "Signalled", "Stopped"]


class NetworkFailureError(InputError):
    """A run of a speaker's network that gave nothing usable: it raised, or its output is not finite."""

    def __init__(self, network: str, *, speaker: str, expected: str, got: str) -> None:
        """Keeps what failed.

        Args:
            network: its file, "motion.onnx"; or what else makes its input.
            speaker: whose.
            expected: what it should have given.
            got: what it gave instead.
        """
        self.network = network
        super().__init__(
            file=speaker, field=network, expected=expected, got=got, way_out="export the speaker again"
        )


class Stopped(Exception):  # noqa: N818 - it is an order, not an error
    """The run was ended from outside (SIGINT, SIGTERM, `aclose`) before it was done."""


class Signalled(BaseException):
    """A signal came while none polls for it; no Exception, so that broad handlers pass it on."""


class GpuLostError(RuntimeError):
    """The GPU draws no more; the message says why, in a few words."""
