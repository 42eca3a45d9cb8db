import pytest

from models.time_base import FRAME_SAMPLES
from streaming.pipeline.clock import MediaClock, SystemClock, first_sample, frames_covering, samples_to_ms


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (640, 1), (641, 2), (16000, 25)])
def test_every_sample_has_a_frame(samples, frames):
    assert frames_covering(samples) == frames


def test_frame_and_samples_agree():
    assert first_sample(25) == 16000
    assert samples_to_ms(FRAME_SAMPLES) == 40


def test_the_clock_numbers_samples_in_the_order_they_come():
    clock = MediaClock()
    assert [clock.advance(n) for n in (320, 321, 0, 5)] == [0, 320, 641, 641]
    assert (clock.samples, clock.frames) == (646, 2)


def test_the_clock_never_goes_back():
    with pytest.raises(ValueError, match="never goes back"):
        MediaClock().advance(-1)


def test_the_system_clock_never_goes_back():
    clock = SystemClock()
    times = [clock.now_s() for _ in range(100)]
    assert times == sorted(times)
