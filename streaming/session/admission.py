"""Admission control: a session is refused where its frames would make those of the others late."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..pipeline.render_size import FRAME_BUDGET_MS

RETRY_AFTER_S = 10
MAX_SESSIONS = 8  # the default: one process, which the GIL limits to about one core


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a session is refused now: HTTP 503 with `Retry-After`."""

    reason: str
    retry_after_s: int


@dataclass(frozen=True, kw_only=True)
class _Cost:
    core_ms: float
    floor_ms: float
    gpu_ms: float


class Admission:
    """The budget of core and GPU time that all sessions share; for one thread, the event loop's.

    Sessions share by drawing smaller: what counts is the cost of each at the smallest size. What a GPU draws
    counts against the GPU's time, too. A machine that is too slow for even one session serves that one, with
    frames dropped.
    """

    def __init__(
        self, *, cores: float, max_sessions: int | None = None, share: float = 0.85, gpu_share: float = 0.9
    ) -> None:
        """Begins without a session.

        Args:
            cores: that this process may use; a CPU quota may leave a fraction of one.
            max_sessions: a limit on top of the measured one.
            share: of the cores' time that is admitted; the rest is headroom for busier moments.
            gpu_share: the same of the GPU's time; beyond it frames queue before they are late.
        """
        if not cores > 0 or not 0 < share <= 1 or not 0 < gpu_share <= 1:
            raise ValueError(
                "admission: expected cores > 0 and 0 < share <= 1 of either, "
                f"got {cores}, {share}, {gpu_share}"
            )
        if max_sessions is not None and max_sessions < 1:
            raise ValueError(f"admission: expected max_sessions >= 1, got {max_sessions}")
        self.room_ms = share * cores * FRAME_BUDGET_MS
        """Core-milliseconds that all sessions together may take for one frame each."""
        self.gpu_room_ms = gpu_share * FRAME_BUDGET_MS
        """The same of the GPU's time."""
        self._max_sessions = max_sessions
        self._costs: dict[str, _Cost] = {}

    @property
    def sessions(self) -> int:
        """How many are admitted."""
        return len(self._costs)

    @property
    def core_ms(self) -> float:
        """Core-milliseconds that one frame of every session takes now."""
        return sum(cost.core_ms for cost in self._costs.values())

    @property
    def floor_ms(self) -> float:
        """Core-milliseconds that one frame of every session would take at the smallest size."""
        return sum(cost.floor_ms for cost in self._costs.values())

    def admit(self, *, session: str, floor_ms: float, gpu_ms: float = 0.0) -> Refusal | None:
        """Returns None and admits a session, or returns why it is refused.

        Args:
            session: its id; one that is admitted already is measured against the others alone.
            floor_ms: core-milliseconds that a frame of its speaker takes at the smallest size, all stages.
            gpu_ms: milliseconds of the GPU that a frame takes; 0 where the CPU draws.
        """
        if not all(math.isfinite(ms) and ms >= 0 for ms in (floor_ms, gpu_ms)):
            raise ValueError(f"admission: expected floor_ms and gpu_ms >= 0, got {floor_ms}, {gpu_ms}")
        others = [cost for name, cost in self._costs.items() if name != session]
        inside = f"{len(others)} session{'s' if len(others) != 1 else ''}"
        leave = "leave" if len(others) != 1 else "leaves"
        if self._max_sessions is not None and len(others) >= self._max_sessions:
            return Refusal(
                reason=f"full: {inside}, and no more are allowed here; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        left_ms = self.room_ms - sum(cost.floor_ms for cost in others)
        if others and floor_ms > left_ms:
            return Refusal(
                reason=f"full: {inside} {leave} {max(left_ms, 0):.0f} of {self.room_ms:.0f} "
                f"core-milliseconds a frame, one more takes {floor_ms:.0f}; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        gpu_left_ms = self.gpu_room_ms - sum(cost.gpu_ms for cost in others)
        if others and gpu_ms > gpu_left_ms:
            return Refusal(
                reason=f"full: {inside} {leave} {max(gpu_left_ms, 0):.1f} of {self.gpu_room_ms:.0f} "
                f"milliseconds of the GPU a frame, one more takes {gpu_ms:.1f}; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._costs[session] = _Cost(core_ms=floor_ms, floor_ms=floor_ms, gpu_ms=gpu_ms)
        return None

    def measured(self, session: str, *, core_ms: float, at_floor_ms: float) -> None:
        """Takes a session's running measurement; one that has left is ignored.

        Args:
            session: its id.
            core_ms: core-milliseconds that a frame of it takes now.
            at_floor_ms: what it would take at the smallest size.
        """
        if session in self._costs:
            gpu_ms = self._costs[session].gpu_ms
            self._costs[session] = _Cost(core_ms=core_ms, floor_ms=at_floor_ms, gpu_ms=gpu_ms)

    def leave(self, session: str) -> None:
        """Gives a session's share back; a second time it does nothing."""
        self._costs.pop(session, None)
