"""Figures of motion and sync on made-up arrays."""

import numpy as np
import pytest

from preparation.sounds import Sound
from training.measures import (
    MotionTrack,
    aperture_mm,
    area_under_curve,
    best_lag_ms,
    compare_motion,
    measure_motion,
    measure_sync,
    pearson,
    width_mm,
)


def test_distances_are_in_millimetres():
    mean_face = np.zeros((68, 3), np.float32)
    mean_face[62, 1], mean_face[66, 1] = 0.02, -0.03  # dm
    mean_face[48, 0], mean_face[54, 0] = -0.25, 0.25
    landmarks = np.zeros((2, 68, 3), np.float32)
    landmarks[1, 66, 1] = -0.4  # ten times dm: 4 mm
    landmarks = landmarks.reshape(2, 204)
    assert aperture_mm(landmarks, mean_face) == pytest.approx([5.0, 9.0], abs=1e-4)
    assert width_mm(landmarks, mean_face) == pytest.approx([50.0, 50.0], abs=1e-4)


def test_lips_pressed_past_each_other_are_more_shut_than_lips_that_touch():
    landmarks = np.zeros((2, 68, 3), np.float32)
    landmarks[1, 62, 1] = -0.2
    touching, pressed = aperture_mm(landmarks.reshape(2, 204), np.zeros(204, np.float32))
    assert pressed == pytest.approx(touching - 2)


def test_pearson_is_that_of_numpy_and_zero_for_a_still_series():
    x, y = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert pearson(x, np.ones(50, np.float32)) == 0


def test_area_under_curve_counts_pairs_and_halves_ties():
    scores = np.array([3, 2, 2, 1], np.float32)
    assert area_under_curve(scores, np.array([True, True, False, False])) == pytest.approx(3.5 / 4)
    assert area_under_curve(scores, np.array([False, False, True, True])) == pytest.approx(0.5 / 4)
    assert np.isnan(area_under_curve(scores, np.ones(4, bool)))


def smooth_series(frames=60, seed=0, *, later_frames=0.0):
    """A sum of slow waves, (frames,), so many frames later."""
    rng = np.random.default_rng(seed)
    hz, phase = rng.uniform(0.5, 4, 6), rng.uniform(0, 6, 6)
    time_s = (np.arange(frames)[:, None] - later_frames) / 25
    return np.sin(2 * np.pi * hz * time_s + phase).sum(axis=1).astype(np.float32)


@pytest.mark.parametrize("frames", [-3.0, -0.5, 0.0, 2.0, 2.25])
def test_lag_is_positive_for_a_late_motion_and_finer_than_a_frame(frames):
    pairs = [(smooth_series(seed=seed, later_frames=frames), smooth_series(seed=seed)) for seed in range(4)]
    assert best_lag_ms(pairs) == pytest.approx(40 * frames, abs=6)


def test_lag_stops_at_the_last_that_is_tried_and_is_unknown_for_clips_too_short():
    found = best_lag_ms([(smooth_series(later_frames=8), smooth_series())])
    assert found == 6 * 40
    assert np.isnan(best_lag_ms([(smooth_series(13), smooth_series(13))]))


def track(predicted, true, sounds):
    predicted, true = np.asarray(predicted, np.float32), np.asarray(true, np.float32)
    return MotionTrack(
        predicted_aperture_mm=predicted,
        predicted_width_mm=-predicted,
        true_aperture_mm=true,
        true_width_mm=true,
        sounds=np.asarray(sounds, np.uint8),
    )


def test_motion_is_pooled_over_the_tracks():
    closed, open_, rest, pause = Sound.BILABIAL, Sound.OTHER, Sound.REST, Sound.PAUSE
    found = measure_motion(
        [
            track([0.2, 6, 0.1, 9], [0.1, 5, 0.0, 4], [closed, open_, rest, pause]),
            track([0.4, 8, 2.0], [0.3, 9, 0.0], [closed, open_, rest]),
        ]
    )
    assert found.frames == 7
    assert found.closure_auc == 1.0
    assert found.bilabial_gap_mm == pytest.approx(0.3)
    assert found.silence_closed == 0.5
    assert found.width_r == pytest.approx(-found.aperture_r)
    assert found.aperture_error_mm == pytest.approx((0.1 + 1 + 0.1 + 5 + 0.1 + 1 + 2) / 7, abs=1e-5)


def test_a_track_is_relative_to_each_face_at_rest():
    mean_face = np.zeros((68, 3), np.float32)
    mean_face[66, 1] = -0.02
    lower = np.zeros((68, 3), np.float32)
    lower[66, 1] = -0.1
    predicted = np.stack([lower.ravel(), 3 * lower.ravel()])
    found = compare_motion(
        predicted,
        np.zeros_like(predicted),
        sounds=np.zeros(2, np.uint8),
        mean_face=mean_face,
        predicted_rest=lower.ravel(),
        true_rest=np.zeros(204, np.float32),
    )
    assert found.predicted_aperture_mm == pytest.approx([0, 2], abs=1e-4)
    assert found.true_aperture_mm == pytest.approx([0, 0])


def embeddings(frames=140, seed=0):
    found = np.random.default_rng(seed).normal(size=(frames, 64)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_mouth_in_step_wins_every_window():
    audio = embeddings()
    found = measure_sync([(audio, audio)])
    assert found.windows == 3  # (140 - 30 - 46) // 25 + 1
    assert found.true_wins == 1
    assert found.confidence == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("shift", "near"), [(1, 1.0), (3, 0.0)])
def test_a_mouth_out_of_step_wins_none(shift, near):
    audio = embeddings()
    found = measure_sync([(audio, np.roll(audio, shift, axis=0))])
    assert found.true_wins == 0
    assert found.near_wins == near


def test_a_window_with_a_tie_is_not_won():
    still = np.tile(embeddings(1), (140, 1))
    assert measure_sync([(still, still)]).true_wins == 0


def test_clips_too_short_for_all_offsets_are_left_out():
    assert measure_sync([(embeddings(60), embeddings(60))]).windows == 0
