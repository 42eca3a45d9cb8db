from __future__ import annotations

import numpy as np
import pytest

from export.geneface.dataset import read_dataset, smooth_poses
from export.geneface.pickles import GenefaceFileError


def rotation(angle, axis=2):
    """A turn of `angle` about one axis, (3, 3)."""
    matrix, (a, b) = np.eye(3), [i for i in range(3) if i != axis]
    matrix[[a, b], [a, b]] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def pose(i):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0.1 * i)
    matrix[:3, 3] = (i, 0.5, 1)
    return matrix


def sample(i):
    landmarks = np.full((68, 3), i, np.float32)
    return {"idx": i, "c2w": pose(i), "idexp_lm3d": landmarks, "gt_img_fname": f"gt_imgs/{i}.jpg"}


def content():
    return {
        "train_samples": [sample(i) for i in range(8)],
        "val_samples": [sample(i) for i in range(8, 10)],
        "H": 6,
        "W": 6,
        "focal": 10.0,
        "cx": 3.0,
        "cy": 3.0,
        "bg_img": np.arange(108, dtype=np.uint8).reshape(6, 6, 3),
        "idexp_lm3d_mean": np.zeros((1, 68, 3), np.float32),
        "idexp_lm3d_std": np.ones((1, 68, 3), np.float32),
        "hubert": np.ones((20, 1024), np.float32),
        "f0": np.full(21, 100.0),
        "mel": np.zeros((19, 80), np.float32),
    }


def write(tmp_path, values):
    file = tmp_path / "trainval_dataset.npy"
    np.save(file, np.array(values, dtype=object))
    return file


def test_what_a_speaker_is_drawn_from(tmp_path):
    values = content()
    data = read_dataset(write(tmp_path, values))
    assert data.poses.shape == data.poses_smoothed.shape == (10, 4, 4)
    assert data.poses[:, 0, 3].tolist() == list(range(10))  # training's frames, then validation's
    assert data.landmarks[:, 0, 0].tolist() == list(range(10))
    assert (data.focal_px, data.cx_px, data.cy_px, data.image_size_px) == (10.0, 3.0, 3.0, 6)
    assert np.array_equal(data.background, values["bg_img"])
    assert data.landmark_mean.shape == data.landmark_std.shape == (68, 3)
    assert (data.hubert.shape, data.f0_hz.shape, data.mel.shape) == ((19, 1024), (19,), (19, 80))
    assert {array.dtype for array in (data.poses, data.landmarks, data.f0_hz)} == {np.dtype(np.float32)}
    data.landmarks[0] = 1  # a copy, not the file's read-only bytes


def test_sound_s_pitch_and_mel_may_be_absent(tmp_path):
    data = read_dataset(write(tmp_path, content() | {"f0": None, "mel": None}))
    assert data.f0_hz is data.mel is None
    assert len(data.hubert) == 20


def test_smoothing_averages_three_frames_to_each_side():
    poses = np.stack([pose(i) for i in range(10)])
    smoothed = smooth_poses(poses)
    assert smoothed[:, 0, 3] == pytest.approx([1.5, 2, 2.5, 3, 4, 5, 6, 6.5, 7, 7.5])
    angles = np.arctan2(smoothed[:, 1, 0], smoothed[:, 0, 0])  # about one axis the mean is that of the angles
    assert angles == pytest.approx(0.1 * smoothed[:, 0, 3])
    assert np.array_equal(poses, np.stack([pose(i) for i in range(10)]))


def test_the_mean_rotation_is_that_of_the_quaternions():
    """The largest eigenvector of the quaternions' outer products is what SciPy's Rotation.mean gives."""
    random = np.random.default_rng(3)
    poses = np.tile(np.eye(4), (4, 1, 1))
    quaternions = random.normal(size=(4, 4)) * 0.3 + (1, 0, 0, 0)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)

    def matrix(q):
        w, v = q[0], q[1:]
        cross = np.cross(np.eye(3), -v)
        return np.eye(3) + 2 * w * cross + 2 * cross @ cross

    poses[:, :3, :3] = [matrix(q) for q in quaternions]
    mean = np.linalg.eigh(quaternions.T @ quaternions)[1][:, -1]
    assert smooth_poses(poses)[0, :3, :3] == pytest.approx(matrix(mean), abs=1e-12)


def test_the_mean_of_opposed_rotations_is_a_rotation():
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3] = rotation(np.pi)
    for smoothed in smooth_poses(poses)[:, :3, :3]:
        assert np.linalg.det(smoothed) == pytest.approx(1)
        assert smoothed @ smoothed.T == pytest.approx(np.eye(3))


def changed_pose(change):
    def apply(values):
        matrix = pose(3)
        change(matrix)
        values["train_samples"][3]["c2w"] = matrix

    return apply


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("H"), "H: expected a number, got none"),
        (lambda v: v.update(H="6"), "H: expected a number, got str"),
        (lambda v: v.update(H=True), "H: expected a number, got bool"),
        (lambda v: v.update(W=8), "H, W: expected a square picture, got 6 by 8"),
        (lambda v: v.update(H=0, W=0), "H, W"),
        (lambda v: v.update(H=8, W=8), "bg_img: expected shape 8x8x3, got 6x6x3"),
        (lambda v: v.update(bg_img=np.zeros((6, 6, 4), np.uint8)), "bg_img: expected shape 6x6x3"),
        (lambda v: v.update(bg_img=np.zeros((6, 6, 3))), "bg_img: expected bytes, got float64"),
        (lambda v: v.update(bg_img=[1]), "bg_img: expected an array of 6x6x3, got list"),
        (lambda v: v.update(focal=0.0), "focal: expected above 0, got 0.0"),
        (lambda v: v.update(focal=float("nan")), "focal: expected a finite number"),
        (lambda v: v.update(focal=float("inf")), "focal: expected a finite number"),
        (lambda v: v.update(cx=7.0), "cx: expected within the picture"),
        (lambda v: v.update(cy=-1.0), "cy: expected within the picture"),
        (lambda v: v.update(train_samples=[]), "train_samples: expected a list of frames, got none"),
        (lambda v: v.update(val_samples={}), "val_samples: expected a list of frames"),
        (lambda v: v.update(val_samples=[3]), "val_samples[0]: expected a dict, got int"),
        (lambda v: v["val_samples"][1].pop("c2w"), "val_samples[1].c2w: expected an array of 4x4, got none"),
        (changed_pose(lambda m: m.__setitem__((0, 0), 2.0)), "train_samples[3].c2w: expected a rotation"),
        (changed_pose(lambda m: m.__setitem__((0, 0), np.nan)), "train_samples[3].c2w: expected finite"),
        (changed_pose(lambda m: m.__setitem__((3, 0), 1.0)), "train_samples[3].c2w: expected a rotation"),
        (changed_pose(lambda m: m[:, 0].__imul__(-1)), "train_samples[3].c2w: expected a rotation"),
        (lambda v: v["train_samples"][2].update(idexp_lm3d=np.zeros(204)), "train_samples[2].idexp_lm3d"),
        (lambda v: v["idexp_lm3d_std"].__setitem__((0, 5, 1), 0), "point 5"),
        (lambda v: v["idexp_lm3d_std"].__setitem__((0, 5, 1), -1), "idexp_lm3d_std"),
        (lambda v: v["idexp_lm3d_mean"].__setitem__((0, 5, 1), np.inf), "idexp_lm3d_mean: expected finite"),
        (lambda v: v.update(idexp_lm3d_mean=np.zeros((68, 3))), "idexp_lm3d_mean: expected shape 1x68x3"),
        (lambda v: v.update(hubert=np.ones((20, 768))), "hubert: expected shape anyx1024, got 20x768"),
        (lambda v: v.update(hubert=np.ones((0, 1024))), "hubert: expected shape"),
        (lambda v: v.update(hubert=np.full((20, 1024), np.nan)), "hubert: expected finite"),
        (
            lambda v: v.update(hubert=np.full((20, 1024), 1e300)),
            "hubert: expected finite numbers, in float32",
        ),
        (lambda v: v.update(f0=np.full(21, -1e300)), "f0: expected finite"),
        (lambda v: v.update(mel=np.full((19, 80), 1e39)), "mel: expected finite"),
        (lambda v: v.update(idexp_lm3d_mean=np.full((1, 68, 3), 1e300)), "idexp_lm3d_mean: expected finite"),
        (lambda v: v.update(idexp_lm3d_std=np.full((1, 68, 3), 1e300)), "idexp_lm3d_std: expected finite"),
        (
            lambda v: v["train_samples"][2].update(idexp_lm3d=np.full((68, 3), 1e300)),
            "train_samples[2].idexp_lm3d: expected finite",
        ),
        (changed_pose(lambda m: m.__setitem__((0, 3), 1e300)), "train_samples[3].c2w: expected finite"),
        (lambda v: v.update(f0=np.ones(40)), "hubert, f0, mel: expected as many frames each"),
        (lambda v: v.update(mel=np.ones((20, 80), bool)), "mel: expected numbers, got bool"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path, change, named):
    values = content()
    change(values)
    file = write(tmp_path, values)
    with pytest.raises(GenefaceFileError) as refusal:
        read_dataset(file)
    message = str(refusal.value)
    assert message.startswith(f"{file}: ")
    assert named in message
    assert message.endswith("; binarize the speaker's data again with GeneFace")
    assert "\n" not in message


def test_a_data_set_of_another_object_is_refused(tmp_path):
    holder = np.empty((), object)
    holder[()] = [1, 2]
    np.save(tmp_path / "list.npy", holder)
    with pytest.raises(GenefaceFileError, match="expected a dict, got list"):
        read_dataset(tmp_path / "list.npy")
