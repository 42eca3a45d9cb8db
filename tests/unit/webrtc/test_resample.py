import numpy as np
import pytest

from streaming.webrtc.resample import DELAY_SAMPLES, Decimator, low_pass

RATE_HZ = 48_000


def tone(frequency_hz, samples=9600):
    return np.sin(2 * np.pi * frequency_hz * np.arange(samples) / RATE_HZ).astype(np.float32)


def decimated(sound, block=960):
    decimator = Decimator()
    return np.concatenate([decimator.step(sound[i : i + block]) for i in range(0, len(sound), block)])


@pytest.mark.parametrize("frequency_hz", [50, 440, 1000, 4000, 7150])
def test_what_speech_is_made_of_passes_with_the_stated_delay(frequency_hz):
    out = decimated(tone(frequency_hz))
    expected = tone(frequency_hz)[::3]
    np.testing.assert_allclose(out[100:], expected[100 - DELAY_SAMPLES // 3 : -DELAY_SAMPLES // 3], atol=2e-3)


@pytest.mark.parametrize("frequency_hz", [8800, 9500, 12_000, 15_000, 23_000])
def test_frequencies_that_would_fold_back_are_filtered_out(frequency_hz):
    assert np.abs(decimated(tone(frequency_hz))[100:]).max() < 10 ** (-60 / 20)


def test_the_response_is_flat_and_then_60_db_down():
    response = np.abs(np.fft.rfft(low_pass().astype(np.float64), RATE_HZ))  # (24001,) one bin per Hz
    assert np.abs(20 * np.log10(response[:7201])).max() < 0.02
    assert 20 * np.log10(response[8800:].max()) < -60


def test_the_filter_is_symmetric_and_not_late():
    taps = low_pass()
    np.testing.assert_array_equal(taps, taps[::-1])
    assert len(taps) // 2 == DELAY_SAMPLES
    assert DELAY_SAMPLES / RATE_HZ <= 0.002


def test_cuts_between_blocks_change_nothing():
    sound = np.random.default_rng(0).standard_normal(9600).astype(np.float32)
    whole = decimated(sound, 9600)
    assert whole.shape == (3200,)
    for block in (3, 48, 960, 1920):
        np.testing.assert_allclose(decimated(sound, block), whole, atol=1e-5)  # sums in another order


def test_a_tick_becomes_320_samples():
    out = Decimator().step(np.zeros(960, np.float32))
    assert (out.shape, out.dtype) == ((320,), np.float32)
    assert Decimator().step(np.zeros(0, np.float32)).shape == (0,)


@pytest.mark.parametrize("shape", [(961,), (2, 960)])
def test_a_block_that_cannot_be_cut_in_three_is_refused(shape):
    with pytest.raises(ValueError, match="multiple of 3"):
        Decimator().step(np.zeros(shape, np.float32))
