"""What a browser's fake microphone hears, and how alike two sounds are."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import av
import numpy as np

RATE_HZ = 48000  # what Chromium's fake microphone plays as it is
GRID_MS = 10
HELLO = Path(__file__).resolve().parents[2] / "examples" / "hello.wav"


def speech() -> np.ndarray:
    """Returns (n,) int16 at 48 kHz: somebody says hello."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(HELLO)) as container:
        frames = itertools.chain(container.decode(audio=0), [None])
        blocks = [block.to_ndarray()[0] for frame in frames for block in resampler.resample(frame)]
    return np.concatenate(blocks)


def words_and_pauses(pause_s: float, *, periods: int = 8) -> np.ndarray:
    """Returns (n,) int16 at 48 kHz: so long speech, so long silence, in turns."""
    voice, length = speech(), round(pause_s * RATE_HZ)
    level = np.convolve(np.abs(voice.astype(float)), np.ones(4800) / 4800, "same")
    loud = voice[level > 500]  # no pauses of its own
    starts = [i * length % (len(loud) - length) for i in range(periods)]
    quiet = np.zeros(length, np.int16)
    return np.concatenate([part for start in starts for part in (loud[start : start + length], quiet)])


def voice_within(low_hz: float, high_hz: float) -> np.ndarray:
    """Returns (n,) int16 at 48 kHz: somebody says hello, as far as it lies between two frequencies."""
    spectrum = np.fft.rfft(speech().astype(float))
    at_hz = np.fft.rfftfreq(len(speech()), 1 / RATE_HZ)
    voice = np.fft.irfft(np.where((at_hz >= low_hz) & (at_hz < high_hz), spectrum, 0))
    return np.round(voice * (16_000 / np.abs(voice).max())).astype(np.int16)


def write_recording(path: Path, samples: np.ndarray) -> Path:
    """Writes 16-bit mono at 48 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def envelope_of(levels: list[list[float]], start_ms: float, end_ms: float) -> np.ndarray:
    """Returns the loudness on a grid of 10 ms, over 50 ms each, from `[when_ms, root mean square]` pairs."""
    at_ms, level = np.array(levels).T
    grid = np.interp(np.arange(start_ms, end_ms, GRID_MS), at_ms, level)
    return np.convolve(grid, np.ones(5) / 5, "same")


def alikeness(
    said: list[list[float]], heard: list[list[float]], *, shortest_ms: float = 100, longest_ms: float = 1000
) -> tuple[float, float]:
    """Returns how well what was heard follows what was said (correlation), and by how many ms at best."""
    start_ms = max(said[0][0], heard[0][0] - shortest_ms)
    end_ms = min(said[-1][0], heard[-1][0] - longest_ms)
    before = envelope_of(said, start_ms, end_ms)
    best = (-1.0, 0.0)
    for lag_ms in np.arange(shortest_ms, longest_ms + 1, GRID_MS):
        after = envelope_of(heard, start_ms + lag_ms, end_ms + lag_ms)
        if before.std() > 0 and after.std() > 0:
            best = max(best, (float(np.corrcoef(before, after)[0, 1]), float(lag_ms)))
    return best
