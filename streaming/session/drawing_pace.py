"""The drawing frame rate, and the note to a page where it is too low."""

from __future__ import annotations

from collections import deque

from models.time_base import FRAME_RATE_HZ

WINDOW_S = 4.0  # of the moving average
SLOW_FPS, EASY_FPS = 20.0, 23.0  # hysteresis: slow below one, until at the other again
_MAX_TIMES = round(2 * WINDOW_S * FRAME_RATE_HZ)


class DrawingPace:
    """A moving average of the drawing frame rate; one thread writes, another reads."""

    def __init__(self) -> None:
        """Begins without a picture."""
        self._first_s: float | None = None
        self._times_s: deque[float] = deque(maxlen=_MAX_TIMES)
        self._is_slow = False

    def picture_drawn(self, now_s: float) -> None:
        """Takes that a picture was drawn."""
        if self._first_s is None:
            self._first_s = now_s
        self._times_s.append(now_s)

    def slow_fps(self, now_s: float) -> float | None:
        """Returns the frame rate where it is too low; None where it is not, or while unknown.

        Args:
            now_s: on the clock of the pictures; to be asked about once a second at least.
        """
        if self._first_s is None or now_s - self._first_s < WINDOW_S:
            return None
        fps = sum(at_s > now_s - WINDOW_S for at_s in list(self._times_s)) / WINDOW_S
        self._is_slow = fps < (EASY_FPS if self._is_slow else SLOW_FPS)
        return fps if self._is_slow else None


def slow_note(fps: float, *, on_gpu: bool, can_draw_smaller: bool) -> str:
    """Returns the note to a page about a machine that draws too slowly, with the ways out.

    Args:
        fps: pictures drawn a second.
        on_gpu: whether a GPU draws.
        can_draw_smaller: whether smaller pictures could be asked for.
    """
    whole = int(fps + 0.5)
    pace = f"about {whole} picture{'s' if whole > 1 else ''}" if whole else "less than one picture"
    ways = ["Close what else runs there", "let fewer sessions in (--max-sessions)"]
    if can_draw_smaller:
        ways.append("draw smaller (--render-size auto)" if not on_gpu else "draw smaller (--render-size)")
    ways.append("serve from a faster machine" + ("" if on_gpu else ", best one with an NVIDIA GPU"))
    return (
        f"The server's machine draws {pace} a second, not {FRAME_RATE_HZ}; the sound goes on. "
        f"{', '.join(ways[:-1])}, or {ways[-1]}."
    )
