import numpy as np
import pytest

from streaming.pipeline.landmarks import BlinkSchedule

HOUR = 25 * 3600
BLINK = 8


def starts_of(seed, frames=HOUR):
    schedule = BlinkSchedule(seed=seed, blink_frames=BLINK)
    return np.array([i for i in range(frames) if schedule.phase(i) == 0])


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_people_blink_twelve_to_twenty_times_a_minute(seed):
    assert 12 <= len(starts_of(seed)) / 60 <= 20


def test_no_interval_is_shorter_or_longer_than_people_have():
    intervals_s = np.diff(starts_of(3)) / 25
    assert intervals_s.min() >= 1.2 - 0.02  # rounded to a frame
    assert intervals_s.max() <= 7.0 + 0.02
    assert intervals_s.std() > 0.8  # not like clockwork


def test_a_blink_is_shown_whole_and_in_order():
    schedule = BlinkSchedule(seed=5, blink_frames=BLINK)
    phases = [schedule.phase(i) for i in range(2000)]
    shown = [phase for phase in phases if phase is not None]
    assert shown[: BLINK * 5] == list(range(BLINK)) * 5


def test_equal_seeds_give_equal_blinks():
    assert np.array_equal(starts_of(7, 5000), starts_of(7, 5000))
    assert not np.array_equal(starts_of(7, 5000), starts_of(8, 5000))


def test_skipped_frames_do_not_shift_a_blink():
    whole, skipping = (BlinkSchedule(seed=1, blink_frames=BLINK) for _ in range(2))
    phases = {i: whole.phase(i) for i in range(3000)}
    assert all(skipping.phase(i) == phases[i] for i in range(0, 3000, 7))


def test_a_bundle_without_a_blink_never_blinks():
    schedule = BlinkSchedule(seed=0, blink_frames=0)
    assert {schedule.phase(i) for i in range(1000)} == {None}
