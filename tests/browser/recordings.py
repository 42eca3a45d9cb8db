"""What a browser's fake microphone hears."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import av
import numpy as np

RATE_HZ = 48000  # what Chromium's fake microphone plays as it is
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
