"""Landmarks of May's video against the geometry that it was drawn from."""

from __future__ import annotations

import av
import numpy as np
import pytest

from preparation.face_mesh.ibug import IBUG_POINTS
from preparation.face_mesh.track import TrackSettings, track_face

FRAMES = 300
PARTS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "outer lips": slice(48, 60),
    "inner lips": slice(60, 68),
}
# Measured over 2850 frames at 127 px between the eyes' outer corners, by MediaPipe's own runtime: where the
# mesh and the 3-D model define a landmark differently, and what is left once that constant offset is gone.
RAW_PX = {"jaw": 13.3, "brows": 8.1, "nose": 3.5, "eyes": 2.9, "outer lips": 4.4, "inner lips": 1.3}
MOTION_PX = {"jaw": 2.6, "brows": 1.3, "nose": 1.3, "eyes": 1.1, "outer lips": 1.1, "inner lips": 1.1}
SPREAD = 1.15  # of a stretch of 12 s about the whole
MIN_CORRELATION = {"opening": 0.95, "width": 0.97, "lids": 0.95}  # asked for of the whole video


@pytest.fixture(scope="module")
def beginning(shared_folder, tmp_path_factory):
    """The video's first frames, copied without coding them anew."""
    source = shared_folder / "may" / "speaker" / "video.mp4"
    if not source.is_file():
        pytest.skip(f"{source}: not there")
    path = tmp_path_factory.mktemp("may") / "beginning.mp4"
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        (video,) = whole.streams.video
        stream = out.add_stream_from_template(video)
        for packet in whole.demux(video):
            if packet.pts is None or packet.pts * packet.time_base >= FRAMES / 25:
                break
            packet.stream = stream
            out.mux(packet)
    return path


@pytest.fixture(scope="module")
def tracks(beginning, shared_folder):
    """Tracks by number of crops, and the truth (T, 68, 2), as long as them."""
    found = {n: track_face(beginning, TrackSettings(crops=n), keep=IBUG_POINTS, quiet=True) for n in (1, 6)}
    with np.load(shared_folder / "may" / "speaker" / "truth.npz") as truth:
        return found, truth["landmarks_2d"][: len(found[1].points)]


def distance(points, ones, others):
    return np.linalg.norm(points[:, ones] - points[:, others], axis=-1).mean(1)


def correlation(measure, followed, truth):
    return np.corrcoef(measure(followed.points[..., :2]), measure(truth))[0, 1]


MEASURES = {
    "opening": lambda points: distance(points, [61, 62, 63], [67, 66, 65]),
    "width": lambda points: distance(points, [60], [64]),
    "lids": lambda points: distance(points, [37, 38, 43, 44], [41, 40, 47, 46]),
}


def test_the_face_is_found_in_every_frame_at_its_time(tracks):
    for followed in tracks[0].values():
        assert len(followed.times_s) >= FRAMES - 1  # frames that show later may be coded earlier
        assert followed.found.all()
        np.testing.assert_allclose(followed.times_s, np.arange(len(followed.times_s)) / 25, atol=1e-6)


@pytest.mark.parametrize("part", PARTS)
def test_landmarks_lie_as_far_from_the_geometry_as_the_original_s(tracks, part):
    found, truth = tracks
    error = found[1].points[:, PARTS[part], :2] - truth[:, PARTS[part]]
    assert np.linalg.norm(error, axis=-1).mean() < SPREAD * RAW_PX[part]
    motion = error - error.mean(0)
    assert np.linalg.norm(motion, axis=-1).mean() < SPREAD * MOTION_PX[part]


@pytest.mark.parametrize("measure", MEASURES)
def test_lips_and_lids_move_with_the_geometry_the_more_so_over_six_crops(tracks, measure):
    found, truth = tracks
    one, six = (correlation(MEASURES[measure], found[n], truth) for n in (1, 6))
    assert one >= MIN_CORRELATION[measure]
    assert six > one


def test_six_crops_move_less_than_one_apart_from_the_geometry(tracks):
    found, truth = tracks
    motion = {}
    for crops, followed in found.items():
        error = followed.points[:, 17:, :2] - truth[:, 17:]
        motion[crops] = np.linalg.norm(error - error.mean(0), axis=-1).mean()
    assert motion[6] < 0.95 * motion[1]
