import numpy as np
import pytest

from models.landmark_filter import LandmarkFilter, clamp_limits
from models.speaker import load_speaker
from streaming.pipeline.landmarks import BlinkSchedule, DrawnLandmarks, FrameWindows


def a_filter(**changes):
    values = {
        "mean": np.full((68, 3), 2, np.float32),
        "std": np.full((68, 3), 0.5, np.float32),
        "clamp_std": 2.5,
        "ema": 0.2,
    }
    return LandmarkFilter(**(values | changes))


def test_brows_and_eyes_move_half_as_far_in_x_and_y():
    limits = clamp_limits(2.5)
    assert limits.dtype == np.float32
    assert (limits[17:27, :2] == 1.25).all()
    assert (limits[36:48, :2] == 1.25).all()
    assert (limits[[0, 16, 27, 35, 48, 67]] == 2.5).all()
    assert (limits[:, 2] == 2.5).all()


def test_the_first_frame_is_normalised_and_clamped_only():
    got = a_filter().step(np.full((68, 3), 2.5, np.float32))
    assert np.array_equal(got, np.ones((68, 3)))
    far = a_filter().step(np.full((1, 204), -1000, np.float32))
    assert np.array_equal(far, -clamp_limits(2.5))


def test_later_frames_keep_a_fifth_of_the_one_before():
    smoother = a_filter()
    smoother.step(np.full((68, 3), 2.5, np.float32))
    assert smoother.step(np.full((68, 3), 2.0, np.float32)) == pytest.approx(0.2)
    assert smoother.step(np.full((68, 3), 2.0, np.float32)) == pytest.approx(0.04)


def test_restore_takes_the_normalisation_back():
    landmarks = np.random.default_rng(0).normal(2, 0.2, (68, 3)).astype(np.float32)
    smoother = a_filter()
    assert np.allclose(smoother.restore(smoother.step(landmarks)), landmarks, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(("window", "lookahead"), [(1, 0), (5, 2), (4, 1), (3, 2), (3, 0), (9, 4)])
def test_windows_repeat_the_edge_frame(frames, window, lookahead):
    windows = FrameWindows(window_frames=window, lookahead_frames=lookahead)
    rows = [np.full(204, i, np.float32) for i in range(frames)]
    got = [w[:, 0] for row in rows for w in windows.push(row)] + [w[:, 0] for w in windows.finish()]
    past = window - 1 - lookahead
    expected = [[min(max(i + d, 0), frames - 1) for d in range(-past, lookahead + 1)] for i in range(frames)]
    assert np.array_equal(got, expected)


def test_windows_begin_anew_after_a_reset():
    windows = FrameWindows(window_frames=3, lookahead_frames=1)
    list(windows.push(np.full(204, 7, np.float32)))
    windows.reset()
    assert list(windows.push(np.full(204, 1, np.float32))) == []
    assert [w[:, 0].tolist() for w in windows.push(np.full(204, 2, np.float32))] == [[1, 1, 2]]


def test_a_window_that_does_not_hold_its_frame_is_refused():
    with pytest.raises(ValueError, match="lookahead"):
        FrameWindows(window_frames=2, lookahead_frames=2)


def test_what_is_drawn_is_filtered_and_then_blinks(tiny_bundle):
    speaker = load_speaker(tiny_bundle)
    drawn = DrawnLandmarks(speaker, seed=3)
    motion = speaker.motion
    smoother = LandmarkFilter(
        mean=motion.landmark_mean, std=motion.landmark_std, clamp_std=motion.clamp_std, ema=motion.ema
    )
    blinks = BlinkSchedule(seed=3, blink_frames=len(speaker.blinks))
    random, shown = np.random.default_rng(1), 0
    for frame in range(400):
        landmarks = random.normal(0, 1, (68, 3)).astype(np.float32)
        expected = smoother.restore(smoother.step(landmarks))
        phase = blinks.phase(frame)
        if phase is not None:
            expected, shown = expected + speaker.blinks[phase], shown + 1
        normalized = drawn.step(frame, landmarks.reshape(204))
        assert normalized.dtype == np.float32
        np.testing.assert_allclose(drawn.restore(normalized), expected, atol=1e-5)
    assert shown >= len(speaker.blinks)
