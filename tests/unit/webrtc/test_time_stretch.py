import numpy as np
import pytest
from packet_patterns import voice

from streaming.webrtc.time_stretch import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    cross_fade,
    find_period,
    is_quiet,
    lengthen,
    shorten,
)

RATE_HZ = 48_000


def buzz(pitch_hz, samples=1680):
    time = np.arange(samples) / RATE_HZ
    return sum(np.cos(2 * np.pi * k * pitch_hz * time + k) / k for k in range(1, 8)).astype(np.float32) * 0.2


@pytest.mark.parametrize("pitch_hz", [70, 100, 150, 240, 380])
def test_a_whole_number_of_periods_is_found(pitch_hz):
    period, alike = find_period(buzz(pitch_hz))
    cycles = period * pitch_hz / RATE_HZ
    assert MIN_SAMPLES <= period <= MAX_SAMPLES
    assert cycles == pytest.approx(round(cycles), abs=0.02)
    assert alike > 0.99


def test_of_equal_periods_the_longest_is_taken():
    assert find_period(buzz(200))[0] == pytest.approx(720, abs=2)  # three periods
    assert find_period(buzz(200), longest=500)[0] == pytest.approx(480, abs=2)


def test_noise_is_not_like_itself():
    noise = np.random.default_rng(0).standard_normal(1680).astype(np.float32)
    assert find_period(noise)[1] < 0.4


@pytest.mark.parametrize(("longest", "samples"), [(119, 1680), (720, 1199)])
def test_sound_too_short_to_search_is_refused(longest, samples):
    with pytest.raises(ValueError, match="expected longest >= 120"):
        find_period(np.zeros(samples, np.float32), longest=longest)


def test_silence_has_a_period():
    period, alike = find_period(np.zeros(1680, np.float32))
    assert MIN_SAMPLES <= period <= MAX_SAMPLES
    assert np.isfinite(alike)


@pytest.mark.parametrize(("change", "sign"), [(shorten, -1), (lengthen, 1)])
@pytest.mark.parametrize("pitch_hz", [100, 200, 300])
def test_a_tone_goes_on_as_if_nothing_had_been_done(change, sign, pitch_hz):
    sound = buzz(pitch_hz)
    period, _ = find_period(sound, longest=480)
    changed = change(sound, period)
    assert len(changed) == len(sound) + sign * period
    assert changed[0] == pytest.approx(sound[0], abs=1e-4)  # joins what was read before
    np.testing.assert_array_equal(changed[-100:], sound[-100:])  # and what comes after
    assert np.abs(np.diff(changed)).max() <= 1.02 * np.abs(np.diff(sound)).max()
    common = min(len(changed), len(sound))
    np.testing.assert_allclose(changed[:common], sound[:common], atol=0.02)  # half a sample of period


def test_speech_is_changed_without_clicks():
    sound = voice(2.0)
    rough = np.abs(np.diff(sound, n=3)).max()
    for start in range(20_000, 80_000, 3_000):
        piece = sound[start : start + 1680]
        period, _ = find_period(piece, longest=480)
        around = sound[start - 10 : start]
        for changed in (shorten(piece, period), lengthen(piece, period)):
            assert np.abs(np.diff(np.concatenate([around, changed]), n=3)).max() <= 1.1 * rough


def test_a_cross_fade_begins_as_one_sound_and_ends_as_the_other():
    faded = cross_fade(np.full(240, -1, np.float32), np.full(240, 1, np.float32))
    assert faded[0] == pytest.approx(-1, abs=1e-3)
    assert faded[-1] == pytest.approx(1, abs=1e-3)
    assert (np.diff(faded) > 0).all()


@pytest.mark.parametrize(("peak", "quiet"), [(0.0, True), (0.004, True), (0.005, False)])
def test_quiet_is_below_minus_50_db(peak, quiet):
    assert is_quiet(np.float32(peak) * np.sin(np.arange(960) * 0.1).astype(np.float32)) is quiet
