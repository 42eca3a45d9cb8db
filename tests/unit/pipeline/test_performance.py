from __future__ import annotations

import bundle_factory
import numpy as np
import pytest

from export.bundle.pose_loop import (
    LoopSettings,
    PerformanceError,
    blink_peaks,
    mean_blink,
    pose_loop,
    rotation_vectors,
    rotations_of,
    seam_measure,
)


def wandering_poses(frames, seed=0):
    """A head that looks about with slow noise, as heads do: (frames, 4, 4) c2w."""
    random = np.random.default_rng(seed)
    times = np.arange(frames) / 25
    motion = np.zeros((frames, 6))
    for axis, size in enumerate((0.05, 0.08, 0.03, 0.05, 0.05, 0.05)):
        for hz in (0.05, 0.11, 0.19, 0.31, 0.47):
            motion[:, axis] += size * random.normal() * np.sin(2 * np.pi * (hz * times + random.random()))
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, :3, :3] = rotations_of(motion[:, :3])
    w2c[:, :3, 3] = motion[:, 3:] + [0, 0, -13]
    return np.linalg.inv(w2c).astype(np.float32)


@pytest.fixture(scope="module")
def may_truth(shared_folder):
    with np.load(shared_folder / "may" / "speaker" / "truth.npz") as truth:
        return {name: truth[name] for name in ("c2w", "landmarks", "blink_peak_frame")}


def check_loop(loop, source, settings):
    assert settings.shortest_s * 25 <= len(loop.poses) <= settings.longest_s * 25
    rotations = loop.poses[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (len(rotations), 1, 1)), atol=1e-5
    )
    assert loop.seam_step <= 1
    assert loop.seam_acceleration <= 1

    # Measured anew, over the whole faded part and not only where last and first frame meet.
    turned = np.roll(loop.poses, -loop.seam_frame + 3, axis=0)[: loop.blend_frames + 6]
    steps, changes = motion_of(turned)
    all_steps, all_changes = motion_of(source)
    assert steps.max() <= np.percentile(all_steps, 95) * 1.001
    assert changes.max() <= np.percentile(all_changes, 95) * 1.01  # float32 poses
    measure = seam_measure(loop.poses, source)
    assert measure.step <= 1
    assert measure.acceleration <= 1


def motion_of(c2w):
    """Sizes of the steps and of their changes; a turn counts where the face is, 1 dm from the origin."""
    w2c = np.linalg.inv(c2w.astype(np.float64))
    turn = rotation_vectors(w2c[:, :3, :3] @ w2c[0, :3, :3].T)
    path = np.concatenate([turn, w2c[:, :3, 3]], axis=1)
    return tuple(np.linalg.norm(np.diff(path, order, axis=0), axis=1) for order in (1, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_made_up_path_loops_without_a_seam(seed):
    source = wandering_poses(3000, seed)
    settings = LoopSettings(shortest_s=20, longest_s=40)
    check_loop(pose_loop(source, settings), source, settings)


def test_mays_own_poses_loop_without_a_seam(may_truth):
    source = may_truth["c2w"][:7500]
    loop = pose_loop(source)
    check_loop(loop, source, LoopSettings())
    # Calm: it wanders less than the video does.
    assert loop.poses[:, :3, 3].std(axis=0).sum() < source[:, :3, 3].std(axis=0).sum()


def test_the_loop_is_the_video_but_for_the_faded_part():
    source = wandering_poses(2000)
    loop = pose_loop(source, LoopSettings(shortest_s=20, longest_s=30))
    from_start = np.roll(loop.poses, -(loop.seam_frame + loop.blend_frames), axis=0)
    own = len(loop.poses) - loop.blend_frames
    np.testing.assert_allclose(from_start[:own], source[loop.first_frame : loop.first_frame + own], atol=1e-5)


def test_a_path_that_never_comes_back_is_refused():
    poses = np.tile(np.eye(4, dtype=np.float32), (600, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 5, 600) ** 2
    with pytest.raises(PerformanceError, match=r"c2w: expected a stretch of 10 to 14 s"):
        pose_loop(poses, LoopSettings(shortest_s=10, longest_s=14))


def test_too_short_a_path_is_refused():
    with pytest.raises(PerformanceError, match=r"c2w: expected at least 617 poses, got 100"):
        pose_loop(wandering_poses(100))


def test_a_head_that_keeps_still_loops():
    poses = np.tile(np.eye(4, dtype=np.float32), (1000, 1, 1))
    loop = pose_loop(poses, LoopSettings(shortest_s=10, longest_s=20))
    np.testing.assert_array_equal(loop.poses, poses[: len(loop.poses)])


def test_rotation_vectors_survive_the_way_to_matrices_and_back():
    vectors = np.random.default_rng(0).normal(0, 0.6, (50, 3))
    vectors[0] = 0
    np.testing.assert_allclose(rotation_vectors(rotations_of(vectors)), vectors, atol=1e-9)


def blinking_face(frames, peaks, brow=0.0):
    """Landmarks of a face whose upper lids come down at `peaks`, while the lids drift slowly."""
    landmarks = np.tile(bundle_factory.schematic_face(), (frames, 1, 1)).astype(np.float64)
    course = np.array([0, 0.4, 1.0, 0.8, 0.5, 0.2, 0.05, 0])  # peak at index 2
    gap = landmarks[0, 37, 1] - landmarks[0, 41, 1]
    for peak in peaks:
        span = slice(peak - 2, peak + 6)
        for lid in (37, 38, 43, 44):
            landmarks[span, lid, 1] -= gap * course
        landmarks[span, 17:27, 1] -= brow * course[:, None]
    landmarks[:, 36:48, 1] += 0.01 * np.sin(np.arange(frames) / 40)[:, None]
    return landmarks.astype(np.float32), gap


def test_the_blink_is_found_and_returns_to_zero():
    landmarks, gap = blinking_face(400, [50, 120, 260, 330])
    assert blink_peaks(landmarks) == [50, 120, 260, 330]
    blink = mean_blink(landmarks)
    assert blink.dtype == np.float32
    np.testing.assert_array_equal(blink[[0, -1]], 0)
    lid = blink[:, 37, 1]
    assert lid.argmin() == 5
    assert lid.min() == pytest.approx(-10 * gap, rel=0.02)  # closes fully: idexp is ten times decimetres
    assert np.abs(np.diff(lid, prepend=0, append=0)).max() < 0.75 * abs(lid.min())
    still = [*range(36), *range(48, 68)]
    np.testing.assert_array_equal(blink[:, still], 0)


def test_brows_that_move_with_the_lids_belong_to_the_blink():
    landmarks, _ = blinking_face(400, [50, 120, 260, 330], brow=0.02)
    assert mean_blink(landmarks)[5, 20, 1] == pytest.approx(-0.2, rel=0.05)


def test_blinks_that_crowd_or_are_cut_off_are_left_out():
    landmarks, gap = blinking_face(300, [3, 100, 108, 200])
    blink = mean_blink(landmarks)
    assert blink[5, 38, 1] == pytest.approx(-10 * gap, rel=0.02)
    assert np.abs(blink[12:, 38, 1]).max() < 0.05


def test_a_face_without_blinks_is_refused():
    landmarks, _ = blinking_face(100, [])
    with pytest.raises(PerformanceError, match=r"landmarks: expected a blink"):
        mean_blink(landmarks)


def test_mays_blinks_are_all_found(may_truth):
    found = np.array(blink_peaks(may_truth["landmarks"]))
    assert len(found) == len(may_truth["blink_peak_frame"])
    assert np.abs(found - may_truth["blink_peak_frame"]).max() <= 2
    blink = mean_blink(may_truth["landmarks"][:7500])
    aperture = 0.817  # the median gap in idexp's tenths of decimetres: the lids meet
    assert blink[:, [37, 38, 43, 44], 1].min() < -0.85 * aperture
    np.testing.assert_array_equal(blink[[0, -1]], 0)
