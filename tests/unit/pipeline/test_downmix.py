import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_patterns import voice

from streaming.pipeline.downmix import Downmix

RATE_HZ = 48_000
SPOKEN = voice(3.0)
OTHER = voice(3.0, seed=5)[::-1].copy()
NOISE = np.random.default_rng(3).standard_normal((2, len(SPOKEN))).astype(np.float32)


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def sides(*channels):
    return np.stack(channels).astype(np.float32)


def stepped(block, *cuts, rate_hz=RATE_HZ):
    downmix = Downmix(rate_hz)
    return np.concatenate([downmix.step(piece) for piece in np.split(block, cuts, axis=1)])


ORDINARY = {
    "the same": sides(SPOKEN, SPOKEN),
    "a dead side": sides(0 * SPOKEN, SPOKEN),
    "a side with some of the other, inverted": sides(SPOKEN, -0.2 * SPOKEN),
    "two voices": sides(SPOKEN, OTHER),
    "noise": 0.1 * NOISE,
    "a voice and noise": sides(SPOKEN, SPOKEN) + 0.01 * NOISE,
    "one microphone 40 cm further away": sides(SPOKEN, 0.7 * np.roll(SPOKEN, 56)),
    "silence": sides(0 * SPOKEN, 0 * SPOKEN),
    "three channels, two of them dead": sides(SPOKEN, 0 * SPOKEN, 0 * SPOKEN),
    "five channels, three of them dead": sides(SPOKEN, OTHER, *(0 * SPOKEN,) * 3),
}
CANCELLING = {
    "opposite": sides(SPOKEN, -SPOKEN),
    "opposite, the right one quieter": sides(SPOKEN, -0.7 * SPOKEN),
    "opposite, the left one quieter": sides(-0.7 * SPOKEN, SPOKEN),
    "opposite, with noise of each side's own": sides(SPOKEN, -SPOKEN) + 0.003 * NOISE,
    "opposite, with an offset in common": sides(SPOKEN, -SPOKEN) + 0.3,
    "opposite, with hum in common": sides(SPOKEN, -SPOKEN)
    + np.float32(0.2) * np.sin(2 * np.pi * 50 * np.arange(len(SPOKEN)) / RATE_HZ).astype(np.float32),
    "opposite, one sample apart": sides(SPOKEN, -np.roll(SPOKEN, 1)),
    "opposite, and two dead channels": sides(SPOKEN, 0 * SPOKEN, -SPOKEN, 0 * SPOKEN),
    "quiet": 0.02 * sides(SPOKEN, -SPOKEN),
}


@pytest.mark.parametrize("block", ORDINARY.values(), ids=ORDINARY)
def test_sides_that_do_not_cancel_are_mixed_to_their_mean(block):
    np.testing.assert_array_equal(stepped(block), block.mean(axis=0, dtype=np.float32))


@pytest.mark.parametrize("channels", [1, 2])
def test_one_channel_or_two_equal_ones_are_that_channel(channels):
    np.testing.assert_array_equal(stepped(np.tile(SPOKEN, (channels, 1)), 7, 2000), SPOKEN)


@pytest.mark.parametrize("block", CANCELLING.values(), ids=CANCELLING)
def test_of_sides_that_cancel_the_louder_is_heard(block):
    heard = stepped(block)[round(0.3 * RATE_HZ) :]  # the voice begins after 100 ms
    sounds = block[:, round(0.3 * RATE_HZ) :]
    taken = [side for side in sounds if np.array_equal(side, heard)]
    assert len(taken) == 1
    assert np.std(taken[0]) >= 0.99 * sounds.std(axis=1).max()


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_at_every_rate_the_louder_side_is_found_within_two_hops(rate_hz):
    time_s = np.arange(rate_hz) / rate_hz
    tone = (0.3 * np.sin(2 * np.pi * 500 * time_s)).astype(np.float32)
    heard = stepped(sides(0.5 * tone, -tone), rate_hz=rate_hz)
    np.testing.assert_array_equal(heard[rate_hz // 20 :], -tone[rate_hz // 20 :])


@settings(deadline=None)
@given(st.lists(st.integers(0, len(SPOKEN)), max_size=12).map(sorted))
def test_where_the_sound_is_cut_changes_nothing(cuts):
    block = np.concatenate([CANCELLING["opposite"], ORDINARY["two voices"]], axis=1)
    np.testing.assert_array_equal(stepped(block, *cuts), stepped(block))


def test_a_change_is_followed_within_a_second_and_without_a_click():
    """A voice in phase, then inverted, then in phase again."""
    sound = voice(9.0)
    sign = np.repeat([1, -1, 1], len(sound) // 3)
    heard = stepped(sides(sound, sign * sound))
    for begin_s, end_s in ((0.0, 3.0), (4.0, 6.0), (7.0, 9.0)):
        here = slice(round(begin_s * RATE_HZ), round(end_s * RATE_HZ))
        np.testing.assert_array_equal(heard[here], sound[here])
    assert np.abs(np.diff(heard, n=3)).max() <= np.abs(np.diff(sound, n=3)).max()


def test_a_pause_leaves_the_chosen_side_as_it_is():
    pause = np.zeros(RATE_HZ, np.float32)
    spoken = np.concatenate([SPOKEN, pause, SPOKEN[RATE_HZ // 2 :]])
    heard = stepped(sides(spoken, -spoken))
    again = slice(len(SPOKEN), None)
    np.testing.assert_array_equal(heard[again], spoken[again])


def test_noise_of_a_pause_costs_at_most_a_hop_of_the_next_word():
    """Between the words each side has its own noise, which does not cancel."""
    word = (0.3 * np.sin(2 * np.pi * 400 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    spoken = np.concatenate([word, np.zeros(5 * RATE_HZ, np.float32), word])
    downmix = Downmix(RATE_HZ)
    heard = downmix.step(sides(spoken, -spoken) + 0.003 * np.tile(NOISE, 3)[:, : len(spoken)])
    again = slice(6 * RATE_HZ + 2 * 960, None)
    assert rms(heard[again]) == pytest.approx(rms(word), rel=0.05)


def test_a_side_that_falls_silent_for_good_hands_over_to_the_other():
    later = np.concatenate([0 * SPOKEN, SPOKEN])
    heard = stepped(sides(np.concatenate([SPOKEN, 0.0 * SPOKEN]), -np.concatenate([0.9 * SPOKEN, SPOKEN])))
    last = slice(-RATE_HZ, None)
    assert rms(heard[last]) >= 0.5 * rms(later[last])


def test_sides_that_are_near_the_limit_do_not_flutter():
    """What cancels now and then, 4 times a second: at most a change in half a second."""
    time_s = np.arange(len(SPOKEN)) / RATE_HZ
    factor = -0.45 + 0.15 * np.sin(2 * np.pi * 4 * time_s)
    downmix = Downmix(RATE_HZ)
    chosen = []
    for at in range(0, len(SPOKEN), 960):
        downmix.step(sides(SPOKEN, factor * SPOKEN)[:, at : at + 960])
        chosen.append(downmix.channel)
    assert sum(a != b for a, b in itertools.pairwise(chosen)) <= 6


def test_a_sample_that_is_no_number_leaves_no_trace_in_later_sound():
    block = CANCELLING["opposite"].copy()
    block[0, 5_000:6_000] = np.nan
    heard = stepped(block)
    assert rms(heard[RATE_HZ:]) == pytest.approx(rms(SPOKEN[RATE_HZ:]), rel=0.01)


def test_sound_of_another_number_of_channels_begins_anew():
    downmix = Downmix(RATE_HZ)
    downmix.step(CANCELLING["opposite"])
    assert downmix.channel is not None
    np.testing.assert_array_equal(downmix.step(SPOKEN[None]), SPOKEN)
    assert downmix.channel is None
    block = ORDINARY["the same"]
    np.testing.assert_array_equal(downmix.step(block), block[0])


def test_no_samples_give_no_samples():
    assert Downmix(RATE_HZ).step(np.zeros((2, 0), np.float32)).shape == (0,)


@pytest.mark.parametrize("shape", [(960,), (0, 960)])
def test_sound_without_channels_is_refused(shape):
    with pytest.raises(ValueError, match="expected \\(channels, n\\)"):
        Downmix(RATE_HZ).step(np.zeros(shape, np.float32))


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        Downmix(0)
