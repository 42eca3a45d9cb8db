"""A speaker's folder comes in whole, and the field's box holds the head."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny_speaker
import torch

from cuda_kernels.torch_reference import field_pose
from preparation.corpus_set import CorpusError
from preparation.speaker_set import HEAD, NECK, SpeakerDataError
from training.fields import rays_of
from training.ray_sampler import (
    SamplingShares,
    at_edge,
    composite_target,
    figure_box,
    ground_truth_at,
    sample_pixels,
    true_background,
    visible_behind,
)
from training.speaker_data import STD_FLOOR, load_speaker_data, window_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_speaker.write_tiny_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="module")
def data(folder):
    return load_speaker_data(folder, device=CPU)


def test_frames_labels_and_split_are_the_videos(data):
    assert data.pictures.shape == (44, 64, 64, 3)
    assert data.train_frames == 40
    picture, labels = tiny_speaker.draw(data.c2w[7].numpy(), 0.5 + 0.5 * np.sin(7))
    np.testing.assert_array_equal(data.labels[7].numpy(), labels)
    assert np.abs(data.pictures[7].numpy().astype(int) - picture).max() <= 1


def test_landmarks_are_normalised_and_still_points_stay_small(data):
    values = data.landmarks_normalized.view(44, 68, 3)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
    assert data.landmark_std.min() == pytest.approx(STD_FLOOR)
    moving = values[:, 57, 1]
    assert float(moving.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_a_limit_on_the_frames_spreads_them(folder):
    some = load_speaker_data(folder, device=CPU, frames=22)
    assert some.frame_index.tolist() == list(range(0, 44, 2))
    assert some.train_frames == 20


def test_windows_hold_the_edge_row():
    np.testing.assert_array_equal(
        window_rows(np.array([0, 3, 9]), 10, 5, 2), [[0, 0, 0, 1, 2], [1, 2, 3, 4, 5], [7, 8, 9, 9, 9]]
    )
    with pytest.raises(ValueError, match="lookahead_frames"):
        window_rows(np.array([0]), 10, 2, 2)


def test_rays_through_landmarks_meet_them(data):
    # The one convention that must hold: pixel of a landmark -> ray -> passes the landmark in field space.
    poses = field_pose(data.c2w, data.box.camera)
    frames = torch.tensor([3, 20])
    points = data.landmarks_2d[frames]
    pixels = ground_truth_at(data, frames, points[..., 1].long(), points[..., 0].long())
    exact = dataclasses.replace(pixels, rows=points[..., 1] - 0.5, columns=points[..., 0] - 0.5)
    rays_o, rays_d, frame = rays_of(exact, poses, data.box.camera)
    std, mean = torch.from_numpy(data.landmark_std), torch.from_numpy(data.landmark_mean)
    offsets = data.landmarks_normalized[frames].view(2, 68, 3) * std + mean
    head = torch.from_numpy(data.mean_face) + offsets / 10
    field = head[..., [1, 2, 0]] * data.box.camera.scale + torch.tensor(data.box.camera.offset)
    toward = field.reshape(-1, 3) - rays_o
    distance = (toward - (toward * rays_d).sum(-1, keepdim=True) * rays_d).norm(dim=-1)
    assert frame.tolist() == [0] * 68 + [1] * 68
    assert float(distance.max()) < 2e-3 * data.box.camera.scale


def test_pixels_are_chosen_where_the_picture_is_hard(data):
    torch.manual_seed(0)
    box = figure_box(data.labels)
    chosen = sample_pixels(data, box, frames=6, pixels=200, shares=SamplingShares(mouth=0.2, eyes=0.1))
    assert chosen.rows.shape == (6, 200)
    assert chosen.frames.max() < data.train_frames
    at = (chosen.frames[:, None], chosen.rows, chosen.columns)
    assert (chosen.labels == data.labels[at]).all()
    np.testing.assert_allclose(chosen.truth, data.pictures[at].float() / 255)
    figure = chosen.labels[:, :140]
    uniform = (data.labels[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]] == HEAD).float().mean()
    assert (figure == HEAD).float().mean() > uniform - 0.05
    assert chosen.edge[:, :140].float().mean() > 1.5 * at_edge(data.labels, *_everywhere(data)).float().mean()
    mouth = data.landmarks_2d[chosen.frames, 48:68]
    assert (chosen.rows[:, 140:180] >= mouth[..., 1].amin(1, keepdim=True) - 6).all()
    assert (chosen.rows[:, 140:180] <= mouth[..., 1].amax(1, keepdim=True) + 6).all()


def _everywhere(data):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return torch.tensor([0]), rows.reshape(1, -1), columns.reshape(1, -1)


def test_behind_all_but_the_edge_stands_a_random_colour(data):
    torch.manual_seed(0)
    pixels = sample_pixels(data, figure_box(data.labels), frames=4, pixels=300, shares=SamplingShares())
    scene = composite_target(data, pixels)
    inside = (pixels.labels == HEAD) & ~pixels.edge
    outside = (pixels.labels != HEAD) & ~pixels.edge
    assert torch.equal(scene.target[inside], pixels.truth[inside])
    assert torch.equal(scene.target[outside], scene.behind[outside])
    assert not torch.allclose(scene.behind[outside], pixels.truth[outside], atol=0.1)
    assert torch.equal(scene.behind[pixels.edge], true_background(data, pixels)[pixels.edge])
    assert torch.equal(scene.target[pixels.edge], pixels.truth[pixels.edge])


def test_at_the_edge_some_pixels_are_treated_like_all_others(data):
    torch.manual_seed(0)
    pixels = sample_pixels(data, figure_box(data.labels), frames=4, pixels=300, shares=SamplingShares())
    none, half, every = (composite_target(data, pixels, edge_random_share=share) for share in (0.0, 0.5, 1.0))
    bare = pixels.edge & (pixels.labels != HEAD)
    kept = [
        float((scene.target[bare] == pixels.truth[bare]).all(-1).float().mean())
        for scene in (none, half, every)
    ]
    assert kept[0] == 1
    assert 0.35 < kept[1] < 0.65
    assert kept[2] < 0.01


def test_a_frame_without_its_head_keeps_its_torso(data):
    truth = data.pictures[0].float() / 255
    behind = visible_behind(data, data.labels[0], truth)
    torso = data.labels[0] >= NECK
    assert torch.equal(behind[torso], truth[torso])
    assert torch.equal(behind[0, 0], data.background[0, 0].float() / 255)


def test_the_mean_face_is_the_one_named_or_the_corpuss_or_the_sets_own(folder, tmp_path):
    speaker = shutil.copytree(folder, tmp_path / "speaker")
    own = load_speaker_data(speaker, device=CPU).mean_face
    (tmp_path / "corpus").mkdir()
    for path, face in ((tmp_path / "corpus" / "landmarks.npz", own + 1), (tmp_path / "face.npz", own + 2)):
        np.savez(path, mean_face=face)
    np.testing.assert_array_equal(load_speaker_data(speaker, device=CPU).mean_face, own + 1)
    named = load_speaker_data(speaker, device=CPU, mean_face=tmp_path / "face.npz").mean_face
    np.testing.assert_array_equal(named, own + 2)
    with pytest.raises(CorpusError) as caught:
        load_speaker_data(speaker, device=CPU, mean_face=tmp_path / "nowhere.npz")
    assert (caught.value.file, caught.value.got) == (str(tmp_path / "nowhere.npz"), "no such file")


def test_too_few_frames_to_split_are_refused(folder):
    with pytest.raises(SpeakerDataError) as caught:
        load_speaker_data(folder, device=CPU, frames=1)
    assert (caught.value.file, caught.value.field, caught.value.got) == (str(folder), "frames", "1")
