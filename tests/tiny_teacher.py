"""Tones to learn from and a teacher whose mouth follows their loudness: `import tiny_teacher`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundle_factory import open_mouth
from tiny_corpus import sound_of, write_wav

DELAY_FRAMES = 2
FRAMES = 200
RECORDINGS = 4


def write_speech(
    folder: Path, *, recordings: int = RECORDINGS, frames: int = FRAMES, voices: int = RECORDINGS
) -> Path:
    """Returns the folder of recordings by so many voices; each begins in silence."""
    folder.mkdir(parents=True)
    for number in range(recordings):
        write_wav(folder / f"{number}.wav", sound_of(syllables(number, frames), 150 + 30 * (number % voices)))
    return folder


def syllables(seed: int, frames: int) -> np.ndarray:
    """Returns how loud each frame is, 0 to 1: 0.8 s of silence, then syllables of 0.12 to 0.28 s."""
    random = np.random.default_rng(seed)
    loudness = np.zeros(frames)
    first = 20
    while first < frames:
        last = first + int(random.integers(3, 8))
        loudness[first:last] = random.uniform(0.4, 1)
        first = last + int(random.integers(3, 8))
    return loudness


class LoudnessTeacher:
    """Shows what is `DELAY_FRAMES` past: the louder, the wider open, the closer the corners."""

    def __init__(self) -> None:
        self.said = 0
        self.temperatures: list[float | None] = []

    def landmarks(self, pcm: np.ndarray, *, temperature: float | None = None) -> np.ndarray:
        self.said += 1
        self.temperatures.append(temperature)
        frames = len(pcm) // 640
        level = np.sqrt(np.square(pcm[: 640 * frames].reshape(frames, 640)).mean(axis=1))
        opening = np.concatenate([np.zeros(DELAY_FRAMES), np.clip(level / 0.15, 0, 1)])[:frames]
        pout = np.zeros((68, 3))
        pout[48, 0], pout[54, 0] = 0.3, -0.3
        return (opening[:, None, None] * (open_mouth() + pout)).astype(np.float32)
