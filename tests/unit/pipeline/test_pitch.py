"""Pitch by autocorrelation: sounds whose pitch is known, and sounds that have none."""

from __future__ import annotations

import numpy as np
import pytest

from models.pitch import f0_hz

TIME_S = np.arange(16000) / 16000


def harmonics(hz, *, seed=0, highest_hz=5000, loudness=0.1):
    random = np.random.default_rng(seed)
    numbers = np.arange(1, max(2, int(highest_hz / np.max(hz)) + 1))
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, TIME_S.shape)) / 16000
    waves = [np.sin(n * phase + random.uniform(0, 6)) / n for n in numbers]
    return (loudness * np.sum(waves, axis=0)).astype(np.float32)


@pytest.mark.parametrize("hz", [82, 100, 123.4, 180, 220, 311, 440, 523, 700])
@pytest.mark.parametrize("loudness", [0.001, 0.3])
def test_a_steady_voice(hz, loudness):
    pitch = f0_hz(harmonics(hz, loudness=loudness))
    assert pitch.dtype == np.float32
    assert np.abs(pitch / hz - 1).max() < 2e-3


def test_a_pure_tone():
    assert f0_hz(0.1 * np.sin(2 * np.pi * 260 * TIME_S).astype(np.float32)) == pytest.approx(260, rel=1e-3)


def test_a_gliding_voice_is_followed_window_by_window():
    hz = 120 + 100 * TIME_S
    pitch = f0_hz(harmonics(hz))
    centres = 320 * np.arange(len(pitch)) + 300
    assert np.abs(pitch / hz[centres] - 1).max() < 0.01


def test_a_missing_fundamental_is_heard_all_the_same():
    sound = sum(np.sin(2 * np.pi * 150 * n * TIME_S) for n in (2, 3, 4, 5)).astype(np.float32)
    assert f0_hz(sound) == pytest.approx(150, rel=2e-3)


def test_noise_on_a_voice_and_noise_alone():
    random = np.random.default_rng(1)
    voice, noise = harmonics(150), random.normal(0, 1, 16000).astype(np.float32)
    noisy = f0_hz(voice + 0.3 * voice.std() * noise)
    assert np.abs(noisy / 150 - 1).max() < 0.02
    assert (f0_hz(0.1 * noise) > 0).mean() < 0.05


def test_pitches_beyond_the_range_have_none_of_their_own():
    low, high = f0_hz(harmonics(60)), f0_hz(harmonics(1000, highest_hz=1000))
    assert set(np.round(low[low > 0] / 60) % 1) <= {0.0}  # at most a harmonic of it
    assert ((low == 0) | (low >= 80)).all()
    assert ((high == 0) | (high <= 750)).all()


def test_a_voice_does_not_jump_an_octave_for_a_moment():
    """Every second period a little weaker: for a moment the octave below is the better candidate."""
    voice = harmonics(200)
    weaker = np.ones(16000)
    for start in range(8000, 8800, 160):
        weaker[start : start + 80] = 0.75
    pitch = f0_hz(voice * weaker.astype(np.float32))
    assert np.abs(pitch / 200 - 1).max() < 0.1


def test_silence_and_what_is_quiet_beside_the_voice():
    assert not f0_hz(np.zeros(16000, np.float32)).any()
    assert not f0_hz(np.full(16000, 0.3, np.float32)).any()
    voice = harmonics(150)
    voice[8000:] *= 0.005
    pitch = f0_hz(voice)
    assert (pitch[:20] > 0).all()
    assert not pitch[28:].any()


@pytest.mark.parametrize(("samples", "values"), [(0, 0), (599, 0), (600, 1), (919, 1), (920, 2), (6400, 19)])
def test_there_is_a_value_for_each_whole_window(samples, values):
    assert f0_hz(harmonics(150)[:samples]).shape == (values,)


def test_what_is_said_elsewhere_does_not_matter():
    voice = harmonics(150, seed=3)
    other = voice.copy()
    start, end = 320 * 20, 320 * 20 + 2200
    other[start:end] = harmonics(233)[start:end]
    pitch, elsewhere = f0_hz(other), f0_hz(voice)
    assert pitch[20:26] == pytest.approx(np.full(6, 233), rel=1e-2)  # windows that lie within
    apart = np.r_[0:18, 28 : len(pitch)]
    assert pitch[apart] == pytest.approx(elsewhere[apart], rel=1e-3)
