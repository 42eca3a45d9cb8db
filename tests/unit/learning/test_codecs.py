"""Opus leaves sound where it was."""

import numpy as np
import pytest

from training.codecs import through_opus, through_opus_each


def voice(seconds=2.0, seed=0):
    """A buzz with changing formants, int16."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(16000 * seconds)) / 16000
    pulses = np.sign(np.sin(2 * np.pi * (120 * time_s + 3 * np.sin(2 * np.pi * 0.7 * time_s))))
    loudness = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * time_s + rng.uniform(0, 6))
    noise = 0.3 * rng.normal(size=len(time_s)) * (np.sin(2 * np.pi * 2 * time_s) > 0.6)
    return np.round(6000 * (loudness * pulses + noise)).astype(np.int16)


def delay_samples(before, after):
    """By how many samples `after` is later, to a sixteenth.

    Differences weigh low notes less: the codec's high-pass, which a voice gets, turns their phase.
    """
    before, after = np.diff(before.astype(float)), np.diff(after.astype(float))
    size = 2 * len(before)
    cross = np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size))
    curve = np.fft.irfft(cross, 16 * size)
    best = int(np.argmax(curve))
    return (best if best < 8 * size else best - 16 * size) / 16


@pytest.mark.parametrize("bps", [16_000, 32_000])
@pytest.mark.parametrize("seconds", [2.0, 0.05])
def test_sound_keeps_its_place_and_length(bps, seconds):
    before = voice(seconds)
    after = through_opus(before, bps=bps)
    assert after.shape == before.shape
    assert after.dtype == np.int16
    assert not np.array_equal(after, before)
    assert abs(delay_samples(before, after)) <= 1


def test_each_clip_has_a_codec_of_its_own():
    clips = [voice(0.4), voice(0.2, seed=1)]
    whole = through_opus_each(np.concatenate(clips), [6400, 9600], bps=16_000)
    assert np.array_equal(whole, np.concatenate([through_opus(clip, bps=16_000) for clip in clips]))
