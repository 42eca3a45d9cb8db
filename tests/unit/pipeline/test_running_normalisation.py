"""What stands in for a whole recording's mean and deviation while it is still being said."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.pipeline.input_normalisation import PRIOR_DEVIATION, RunningNormalisation

HOP = 2560


def voice(seconds, *, deviation=0.05, mean=0.0, seed=0):
    random = np.random.default_rng(seed)
    return (mean + deviation * random.standard_normal(int(seconds * 16000))).astype(np.float32)


def after(*sounds):
    level = RunningNormalisation()
    for sound in sounds:
        for at in range(0, len(sound), HOP):
            level.update(sound[at : at + HOP])
    return level


def db(level, deviation):
    return 20 * np.log10(level.deviation / deviation)


def test_before_any_sound_the_prior_stands():
    level = RunningNormalisation()
    assert (level.mean, level.deviation) == (0.0, pytest.approx(PRIOR_DEVIATION))
    level.update(np.zeros(0, np.float32))
    assert level.deviation == pytest.approx(PRIOR_DEVIATION)


@pytest.mark.parametrize("deviation", [0.01, 0.05, 0.3])
def test_the_level_comes_to_that_of_the_voice(deviation):
    level = after(voice(10, deviation=deviation, mean=0.002))
    assert abs(db(level, deviation)) < 1.5  # the prior still has its share
    assert level.mean == pytest.approx(0.002, rel=0.1)


@pytest.mark.parametrize("quiet", [0.0, 1e-5])
def test_a_muted_microphone_does_not_change_the_level(quiet):
    said = voice(5)
    level, muted = after(said), after(said, voice(300, deviation=quiet, seed=1))
    assert muted.deviation == pytest.approx(level.deviation, rel=1e-3)


def test_the_noise_of_a_room_takes_little_away():
    said = voice(20)
    level = after(said)
    listened = after(said, voice(60, deviation=level.deviation * 10 ** (-40 / 20), seed=1))
    assert -1 < db(listened, level.deviation) < 0


def test_silence_before_the_first_word_is_no_voice():
    level = after(voice(60, deviation=0.0005), voice(1, deviation=0.1))
    assert abs(db(level, 0.1)) < 3


@pytest.mark.parametrize(("gain_db", "within_s"), [(20, 25), (6, 20), (-6, 40), (-20, 110)])
def test_the_level_follows_a_voice_at_another_distance(gain_db, within_s):
    near = voice(30)
    far = voice(within_s, deviation=0.05 * 10 ** (gain_db / 20), seed=1)
    assert abs(db(after(near), 0.05)) < 0.5
    assert abs(db(after(near, far), 0.05 * 10 ** (gain_db / 20))) < 2


def test_the_level_forgets_old_sound_but_not_at_once():
    assert db(after(voice(30), voice(2, deviation=0.025, seed=1)), 0.05) > -1


def test_a_reset_brings_the_prior_back():
    level = after(voice(10, deviation=0.3))
    level.reset()
    assert level.deviation == pytest.approx(PRIOR_DEVIATION)


def test_normalisation_applies_the_processor_s_rule():
    level = after(voice(10, deviation=0.08, mean=0.01))
    pcm = voice(1, deviation=0.08, mean=0.01, seed=2)
    got = level.apply(pcm)
    assert got.dtype == np.float32
    assert got == pytest.approx((pcm - level.mean) / np.sqrt(level.deviation**2 + 1e-7), abs=1e-5)
    assert abs(got.std() - 1) < 0.05
    assert np.isfinite(RunningNormalisation().apply(np.zeros(10, np.float32))).all()
