"""Audio and video latency by content: cross-correlation with the microphone, no time stamps of the stream.

The yardstick is the microphone's track as it leaves the page. The received sound's loudness is correlated
with the microphone's; the lips' opening on the screen, with that of the lips that the file pipeline draws for
the microphone's sound. The shift of the best correlation is the lag. Times are those at which a frame or a
sample begins, so that lips and sound in sync have the same lag, as in a video file.

So the offset of lips and sound is what the way through the call adds: 0 is a recording's sync. By nature lips
move before the sound that they make, and motion learnt from people does so too. That lead is in the file's
lips as in those on the screen, and so in no lag; `natural_lead` tells it apart, from the bundle alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, F64, I32, I64, U8
from models.speaker import Speaker
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES
from preparation.media import read_pcm
from streaming.pipeline.cores import drawing_threads, usable_cores
from streaming.pipeline.mouth import mouth_boxes
from streaming.pipeline.pipeline import Pipeline
from streaming.pipeline.render_size import MIN_RENDER_PX
from streaming.pipeline.renderers import make_renderer, open_cpu_raymarcher
from streaming.webrtc.resample import DELAY_SAMPLES, Decimator

from .lip_agreement import Lead, lead_of
from .lip_track import lips_of_motion
from .live_motion import LiveMotion

Box = tuple[int, int, int, int]  # x, y, width, height

SOUND_RATE_HZ = 48_000
PEAK_AT_LEAST = 0.5  # below it a lag is meaningless
MAX_LAG_S = 2.0
WINDOW_S = 8.0
_GRID_S = 0.001
_COARSE_S = 0.010  # finer than a syllable's attack
_STEADY_S = 1.0  # slower changes are filtered out: the head's sway, gain control
_HOP_SAMPLES = 240
_LANCZOS = 4  # lobes: reaches that many moments to either side
_GAP_S = 0.015  # a recorded track that is farther off its own clock has lost a piece


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A quantity at moments, in rising order."""

    times_s: F64  # (n,)
    values: F64  # (n,)

    def __len__(self) -> int:
        """Returns the number of moments."""
        return len(self.times_s)

    def between(self, start_s: float, end_s: float) -> Signal:
        """Returns the part in [start_s, end_s)."""
        first, last = np.searchsorted(self.times_s, (start_s, end_s))
        return Signal(times_s=self.times_s[first:last], values=self.values[first:last])

    def steady(self) -> Signal:
        """Returns the signal high-pass filtered: minus its mean over the second around."""
        first = np.searchsorted(self.times_s, self.times_s - _STEADY_S / 2)
        last = np.searchsorted(self.times_s, self.times_s + _STEADY_S / 2, side="right")
        sums = np.concatenate(([0.0], np.cumsum(self.values)))
        means = (sums[last] - sums[first]) / (last - first)
        return Signal(times_s=self.times_s, values=self.values - means)


@dataclass(frozen=True, kw_only=True)
class Lag:
    """A signal's lag behind the yardstick, and the correlation there."""

    lag_s: float  # [0, MAX_LAG_S]
    peak: float  # normalised cross-correlation, -1 to 1


class Yardstick:
    """An evenly sampled, interpolated signal that others are correlated with."""

    def __init__(self, start_s: float, hop_s: float, values: F64) -> None:
        """Takes the signal.

        Args:
            start_s: the first moment.
            hop_s: between two moments, a multiple of a millisecond.
            values: (n,).

        Raises:
            ValueError: it is shorter than the longest lag and a window's half.
        """
        times_s: F64 = start_s + hop_s * np.arange(len(values), dtype=np.float64)
        if len(values) * hop_s < MAX_LAG_S + WINDOW_S / 2:
            raise ValueError(
                f"yardstick: expected at least {MAX_LAG_S + WINDOW_S / 2:.0f} s, "
                f"got {len(values) * hop_s:.1f} s"
            )
        self.start_s = start_s
        self.end_s = float(times_s[-1])
        self._grid = _finer(Signal(times_s=times_s, values=values).steady().values, round(hop_s / _GRID_S))

    def lag_of(self, signal: Signal) -> Lag:
        """Returns the lag of a signal.

        Args:
            signal: within [start_s + MAX_LAG_S, end_s].

        Raises:
            ValueError: it has fewer than three moments, or never changes.
        """
        values = signal.steady().values
        if len(values) >= 3:
            values = values - values.mean()
        norm = float(np.sqrt(values @ values))
        if len(values) < 3 or norm <= 1e-9 * float(np.abs(signal.values).max()):
            raise ValueError(f"signal: expected one that changes, got {len(signal)} moments that do not")
        values = values / norm
        at = np.round((signal.times_s - self.start_s) / _GRID_S).astype(np.int64)
        steps, longest = round(_COARSE_S / _GRID_S), round(MAX_LAG_S / _GRID_S)
        coarse = np.arange(0, longest + 1, steps)
        near = coarse[np.argmax(self._agreement(at, values, coarse))]
        fine = np.arange(max(near - steps, 0), min(near + steps, longest) + 1)
        agreement = self._agreement(at, values, fine)
        best = int(np.argmax(agreement))
        top = _vertex(*agreement[best - 1 : best + 2]) if 0 < best < len(fine) - 1 else 0.0
        return Lag(lag_s=float(fine[best] + top) * _GRID_S, peak=float(agreement[best]))

    def _agreement(self, at: I64, values: F64, lags: I64) -> F64:
        """Returns the correlation (lags,) with the yardstick that much earlier."""
        found = np.zeros(len(lags))
        for number, lag in enumerate(lags):
            expected = self._grid[np.clip(at - lag, 0, len(self._grid) - 1)]
            expected = expected - expected.mean()
            norm = float(np.sqrt(expected @ expected))
            if norm > 0:
                found[number] = values @ expected / norm
        return found


@dataclass(frozen=True, kw_only=True)
class HeardSound:
    """Sound recorded from a track, with its time stamps."""

    samples: F32  # (n,) 48 kHz mono in [-1, 1]
    lengths: I64  # (pieces,) samples of each piece, one after the other
    times_s: F64  # (pieces,) when each piece begins

    def later(self, delay_s: float) -> HeardSound:
        """Returns the same, delayed."""
        return HeardSound(samples=self.samples, lengths=self.lengths, times_s=self.times_s + delay_s)

    def start_s(self) -> float:
        """Returns when it begins, the median over all pieces.

        Raises:
            ValueError: pieces are missing, or the track did not keep time.
        """
        starts = np.concatenate(([0], np.cumsum(self.lengths[:-1])))
        guesses = self.times_s - starts / SOUND_RATE_HZ
        start = float(np.median(guesses)) if len(guesses) else float("nan")
        worst_s = float(np.abs(guesses - start).max()) if len(guesses) else float("inf")
        if worst_s > _GAP_S:
            raise ValueError(
                f"track: expected pieces without a gap, got one that is {worst_s * 1000:.0f} ms off"
            )
        return start

    def loudness(self) -> Signal:
        """Returns the loudness of each hop of 5 ms: the root of its root mean square.

        The second root compresses the dynamic range.
        """
        hops = len(self.samples) // _HOP_SAMPLES
        levels = self.samples[: hops * _HOP_SAMPLES].reshape(hops, _HOP_SAMPLES).astype(np.float64)
        starts = np.concatenate(([0], np.cumsum(self.lengths)))
        at = np.arange(hops) * _HOP_SAMPLES
        piece = np.searchsorted(starts, at, side="right") - 1
        times_s = self.times_s[piece] + (at - starts[piece]) / SOUND_RATE_HZ
        return Signal(
            times_s=np.maximum.accumulate(times_s), values=np.sqrt(np.sqrt(np.mean(levels**2, axis=1)))
        )

    def yardstick(self) -> Yardstick:
        """Returns the loudness as a yardstick.

        Raises:
            ValueError: it is too short, or has gaps.
        """
        return Yardstick(self.start_s(), _HOP_SAMPLES / SOUND_RATE_HZ, self.loudness().values)


@dataclass(frozen=True, kw_only=True)
class Offset:
    """How far lips, received sound and microphone are apart in one window."""

    microphone_to_glass_ms: float
    microphone_to_ear_ms: float
    lips_peak: float
    sound_peak: float

    @property
    def lips_behind_sound_ms(self) -> float:
        """Negative where the lips lead."""
        return self.microphone_to_glass_ms - self.microphone_to_ear_ms

    @property
    def sure(self) -> bool:
        """Whether both signals agree with their yardsticks."""
        return min(self.lips_peak, self.sound_peak) >= PEAK_AT_LEAST


def offsets(
    *, lips: Signal, sound: Signal, lips_yardstick: Yardstick, sound_yardstick: Yardstick
) -> list[Offset]:
    """Returns the offsets in equal, disjoint windows of about `WINDOW_S`.

    Windows in which nothing moves or nothing sounds have peaks of zero.
    """
    start_s = max(lips_yardstick.start_s, sound_yardstick.start_s) + MAX_LAG_S
    ends = [
        lips_yardstick.end_s,
        sound_yardstick.end_s,
        *(float(s.times_s[-1]) for s in (lips, sound) if len(s)),
    ]
    windows = max(1, int((min(ends) - start_s) / WINDOW_S))
    edges = np.linspace(start_s, min(ends), windows + 1)
    found = []
    for first_s, last_s in itertools.pairwise(edges):
        glass = _lag_or_none(lips_yardstick, lips.between(first_s, last_s))
        ear = _lag_or_none(sound_yardstick, sound.between(first_s, last_s))
        found.append(
            Offset(
                microphone_to_glass_ms=glass.lag_s * 1000,
                microphone_to_ear_ms=ear.lag_s * 1000,
                lips_peak=glass.peak,
                sound_peak=ear.peak,
            )
        )
    return found


class LipsByFile:
    """The lips that the file pipeline draws for a sound."""

    def __init__(self, speaker: Speaker) -> None:
        """Opens the speaker's raymarcher.

        Raises:
            ValueError: the bundle does not say where the mouth is.
        """
        boxes = mouth_boxes(
            speaker.motion,
            speaker.scene.camera,
            speaker.poses,
            image_size_px=speaker.image_size_px,
            feather_px=0,
        )
        if boxes is None:
            raise ValueError(f"{speaker.name}: its bundle does not say where the mouth is (motion.mean_face)")
        self.box = box_around(boxes)
        self.rows_apart = rows_apart(speaker.image_size_px)
        self._speaker = speaker
        self._raymarcher = open_cpu_raymarcher(speaker, threads=drawing_threads(0, cores=usable_cores()))

    def follow(self, microphone: HeardSound) -> Iterator[float]:
        """Yields the lips' opening of each frame of a sound."""
        samples = np.concatenate([microphone.samples[DELAY_SAMPLES:], np.zeros(DELAY_SAMPLES, np.float32)])
        speech = Decimator().step(samples[: len(samples) // 3 * 3])
        speech = speech[: len(speech) // FRAME_SAMPLES * FRAME_SAMPLES]
        renderer = make_renderer(
            self._speaker, self._raymarcher, min(MIN_RENDER_PX, self._speaker.image_size_px)
        )
        x, y, width, height = self.box
        with Pipeline(self._speaker, renderer) as pipeline:
            pipeline.start_feed([speech])
            for frame in pipeline:
                yield opening(frame.picture[y : y + height, x : x + width], self.rows_apart)

    def close(self) -> None:
        """Ends the raymarcher's threads."""
        self._raymarcher.close()


def natural_lead(speaker: Speaker, audio: Path) -> Lead:
    """Returns how far a speaker's lips lead the sound of a recording, however it is played.

    Raises:
        ValueError: the recording has no sound, or the bundle does not say where the lips are.
    """
    pcm = read_pcm(audio)
    pcm = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES]
    motion = LiveMotion(speaker)(np.multiply(pcm, 1 / 32768, dtype=np.float32))
    return lead_of(lips_of_motion(motion, speaker.motion.mean_face), pcm)


def lips_yardstick(microphone: HeardSound, openings: F64) -> Yardstick:
    """Returns the lip openings (frames,) of a sound as a yardstick.

    Raises:
        ValueError: the sound is too short, or has gaps.
    """
    return Yardstick(microphone.start_s(), 1 / FRAME_RATE_HZ, openings)


def opening(box: U8, rows_apart: int) -> float:
    """Returns how far the lips in a box (height, width) of luma open, on a scale of its own.

    The mean difference between rows that lie `rows_apart` apart: teeth, lips and the dark between them make
    edges across, skin makes none, and where in the box the mouth lies does not matter.
    """
    rows = box.astype(np.int16)
    return float(np.abs(rows[rows_apart:] - rows[:-rows_apart]).mean())


def rows_apart(image_size_px: int) -> int:
    """Returns the distance of the rows that `opening` compares: about that of a lip from the teeth."""
    return max(1, image_size_px // 128)


def box_around(boxes: I32) -> Box:
    """Returns the smallest box around boxes (n, 4) of x0 y0 x1 y1."""
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    return int(x0), int(y0), int(x1 - x0), int(y1 - y0)


def _lag_or_none(yardstick: Yardstick, signal: Signal) -> Lag:
    try:
        return yardstick.lag_of(signal)
    except ValueError:
        return Lag(lag_s=0.0, peak=0.0)


def _finer(values: F64, times: int) -> F64:
    """Returns values (n,) at n * times moments, between them by Lanczos' kernel; the edges are repeated."""
    at = np.arange(-_LANCZOS * times, _LANCZOS * times + 1) / times
    kernel = np.sinc(at) * np.sinc(at / _LANCZOS)
    padded = np.pad(values, _LANCZOS, mode="edge")
    spread = np.zeros(len(padded) * times)
    spread[::times] = padded
    finer: F64 = np.convolve(spread, kernel, mode="same")[_LANCZOS * times :][: len(values) * times]
    return finer


def _vertex(before: float, at: float, after: float) -> float:
    """Returns where the parabola through three neighbours has its top: -0.5 to 0.5 from the middle one."""
    curvature = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5)) if curvature < 0 else 0.0
