"""What a frame takes on this machine, measured on a few real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.landmark_filter import POINTS, LandmarkFilter
from models.speaker import Speaker

from .clock import MonotonicClock, SystemClock
from .motion import frames_at_once
from .networks import SpeakerNetworks, network_specs
from .performance import PoseLoop
from .render_size import FrameCost
from .renderer import FrameRenderer
from .video_output import encode_ms

F32 = npt.NDArray[np.float32]

_PROBES = 3  # frames drawn at each size that is timed


class FrameCostMeter:
    """Draws, finishes and encodes frames of silence, and says what each part took."""

    def __init__(
        self,
        speaker: Speaker,
        networks: SpeakerNetworks,
        make_renderer: Callable[[int], FrameRenderer],
        *,
        clock: MonotonicClock | None = None,
    ) -> None:
        """Runs the networks.

        Args:
            speaker: who is drawn.
            networks: the speaker's.
            make_renderer: gives what draws at a size.
            clock: measures.
        """
        self._clock = clock or SystemClock()
        self._make_renderer = make_renderer
        specs = network_specs(speaker)
        settle = LandmarkFilter(
            mean=speaker.motion.landmark_mean,
            std=speaker.motion.landmark_std,
            clamp_std=speaker.motion.clamp_std,
            ema=0.0,
        )
        self._poses = PoseLoop(speaker.poses)

        def landmarks_of_silence() -> F32:
            if networks.features is not None and specs.features is not None:
                networks.features.run(specs.features.zeros())
            rows: F32 = networks.motion.run(specs.motion.zeros()).reshape(-1, 3 * POINTS)
            return rows[-1:]

        row = settle.step(landmarks_of_silence()).reshape(1, -1)  # (1, 204)
        window = np.repeat(row, speaker.condition.window_frames, axis=0)

        def condition_of_silence() -> F32:
            return networks.condition.run({"window": window})

        hop_ms = min(self._timed_ms(landmarks_of_silence) for _ in range(_PROBES))
        condition_ms = min(self._timed_ms(condition_of_silence) for _ in range(_PROBES))
        self.motion_ms = hop_ms / frames_at_once(speaker.motion)
        """What features and motion network take for a frame: a hop's share where one call moves several."""
        self._hop_ms = hop_ms
        self._nets_ms = self.motion_ms + condition_ms
        self.neutral = condition_of_silence()
        """(C,) float32: the condition of silence."""
        self._encoder_ms: float | None = None

    def measure(self, size_px: int) -> FrameCost:
        """Returns what a frame drawn at `size_px` takes."""
        renderer, clock = self._make_renderer(size_px), self._clock
        draw_ms, finish_ms, pictures = [], [], []
        for number in range(_PROBES):
            pose, c2w = self._poses.at(len(self._poses) * number // _PROBES)
            costs = []
            for _ in range(2):  # the faster counts: a moment's noise is not the machine
                start_s = clock.now_s()
                whole = renderer.draw_whole(c2w=c2w, condition=self.neutral)
                mouth, box = renderer.draw_mouth(c2w=c2w, condition=self.neutral, pose=pose)
                drawn_s = clock.now_s()
                picture = renderer.finish(whole, mouth, box)
                costs.append((drawn_s - start_s, clock.now_s() - drawn_s))
            pictures.append(picture)
            draw_ms.append(min(cost[0] for cost in costs) * 1000)
            finish_ms.append(min(cost[1] for cost in costs) * 1000)
        if self._encoder_ms is None:
            self._encoder_ms = encode_ms(pictures, clock)
        return FrameCost(
            render_ms=float(np.median(draw_ms)),
            other_ms=self._nets_ms + float(np.median(finish_ms)) + self._encoder_ms,
            burst_ms=self._hop_ms - self.motion_ms,
        )

    def _timed_ms(self, work: Callable[[], object]) -> float:
        start_s = self._clock.now_s()
        work()
        return (self._clock.now_s() - start_s) * 1000
