"""Faces in pictures, of any size and place, once each."""

import face_videos
import numpy as np
import pytest

from preparation.face_mesh.detector import FaceDetector


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def test_a_face_is_found_once_around_its_eyes_and_mouth(detector):
    (face,) = detector.detect(face_videos.may("open"))
    places = face_videos.PLACES_PX["open"]
    assert face.score > 0.5
    assert (face.box[:2] < places.min(0)).all()
    assert (face.box[2:] > places.max(0)).all()
    eyes = face.keypoints[:2]
    assert eyes[0, 0] < eyes[1, 0]
    assert np.abs(eyes.mean(0) - places[:2].mean(0)).max() < 8


@pytest.mark.parametrize("shape", [(256, 256, 3), (90, 400, 3), (1, 1, 3)])
def test_a_blank_picture_shows_none(detector, shape):
    assert detector.detect(np.full(shape, 127, np.uint8)) == []


def test_noise_shows_none(detector):
    assert detector.detect(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)) == []


def test_of_two_faces_both_are_found(detector):
    both = np.concatenate([face_videos.may("open"), face_videos.may("closed")], axis=1)
    middles = sorted(face.centre[0] for face in detector.detect(both))
    assert len(middles) == 2
    assert abs(middles[0] - 128) < 30
    assert abs(middles[1] - 384) < 30


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1280, 720), (720, 1280)])
def test_a_small_face_is_found_where_the_whole_picture_shows_none(detector, width, height):
    left, top = width // 2 + 60, height // 3
    picture = face_videos.placed(
        face_videos.may("open"), width=width, height=height, left=left, top=top, side=140
    )
    (face,) = detector.detect(picture)  # of some 60 px
    expected = np.array([left, top]) + 140 / 256 * face_videos.PLACES_PX["open"].mean(0)
    assert np.abs(face.centre - expected).max() < 12
    assert 40 < face.side_px < 90
