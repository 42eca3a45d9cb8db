"""Of the masks alone: what stands behind the head, and the box that holds it."""

import numpy as np
import pytest
import tiny_speaker
import torch

from preparation.silhouettes import field_box, torso_plate
from preparation.speaker_set import NECK, SpeakerDataError, read_truth

FRAMES, SIZE_PX = 40, tiny_speaker.SIZE_PX


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaker")
    return read_truth(tiny_speaker.write_tiny_speaker(folder, frames=FRAMES))


@pytest.fixture(scope="module")
def drawn(truth):
    drawn = [tiny_speaker.draw(pose, 0.5) for pose in truth["c2w"]]
    pictures, labels = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    return pictures, labels


def box_of(labels, truth, **changes):
    camera = {"focal_px": tiny_speaker.FOCAL_PX, "cx_px": SIZE_PX / 2, "cy_px": SIZE_PX / 2}
    return field_box(labels, truth["landmarks"], truth["c2w"], **(camera | changes))


def test_the_box_holds_the_ball_and_is_filled_by_it(drawn, truth):
    box = box_of(drawn[1], truth)
    camera, aabb = box.camera, box.aabb
    theta = np.linspace(0, 2 * np.pi, 100)
    rim = np.stack((np.cos(theta), np.sin(theta), np.zeros(100)), -1) * tiny_speaker.RADIUS_DM
    field = rim[:, [1, 2, 0]] * camera.scale + np.array(camera.offset)
    assert (field > aabb[:3]).all()
    assert (field < aabb[3:]).all()
    assert np.abs(field[:, 0]).max() > 0.7  # the head fills the field
    assert np.abs(aabb).max() <= 1


def test_masks_that_do_not_match_the_poses_are_refused(drawn, truth):
    with pytest.raises(SpeakerDataError) as caught:
        box_of(drawn[1], truth, cx_px=10 * SIZE_PX)
    assert (caught.value.file, caught.value.field) == ("masks.mkv", "labels")


def test_landmarks_that_are_all_one_point_are_refused(drawn, truth):
    flat = truth | {"landmarks": np.zeros_like(truth["landmarks"])}
    with pytest.raises(SpeakerDataError) as caught:
        box_of(drawn[1], flat)
    assert (caught.value.file, caught.value.field) == ("truth.npz", "landmarks")


def test_the_plate_shows_the_torso_and_goes_on_under_the_head(drawn):
    pictures, labels = drawn
    background = torch.from_numpy(tiny_speaker.background())
    plate, alpha = torso_plate(pictures, labels, background)
    assert (plate[60, 32].int() - torch.tensor([40, 60, 150])).abs().max() <= 1
    assert alpha[60, 32] == 1
    assert (plate[40, 32].int() - torch.tensor([40, 60, 150])).abs().max() <= 1  # hidden in every frame
    assert alpha[5, 5] == 0
    assert (plate[5, 5] == background[5, 5]).all()


def test_the_plate_of_a_bare_head_is_the_background(drawn):
    pictures, labels = drawn
    background = torch.from_numpy(tiny_speaker.background())
    plate, alpha = torso_plate(pictures, torch.where(labels >= NECK, 0, labels), background)
    assert (plate == background).all()
    assert float(alpha.max()) == 0
