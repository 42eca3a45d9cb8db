"""Landmarks of May's video against the geometry that it was drawn from."""

from __future__ import annotations

import av
import numpy as np
import pytest

from benchmarks.face_mesh import MEASURES, PARTS, compare
from preparation.face_mesh.ibug import IBUG_POINTS
from preparation.face_mesh.track import TrackSettings, track_face

FRAMES = 300
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


def test_the_face_is_found_in_every_frame_at_its_time(tracks):
    for followed in tracks[0].values():
        assert len(followed.times_s) >= FRAMES - 1  # frames that show later may be coded earlier
        assert followed.found.all()
        np.testing.assert_allclose(followed.times_s, np.arange(len(followed.times_s)) / 25, atol=1e-6)


@pytest.fixture(scope="module")
def figures(tracks):
    found, truth = tracks
    return {crops: compare(followed, truth) for crops, followed in found.items()}


@pytest.mark.parametrize("part", PARTS)
def test_landmarks_lie_as_far_from_the_geometry_as_the_original_s(figures, part):
    assert figures[1].raw_px[part] < SPREAD * RAW_PX[part]
    assert figures[1].motion_px[part] < SPREAD * MOTION_PX[part]


@pytest.mark.parametrize("measure", MEASURES)
def test_lips_and_lids_move_with_the_geometry_the_more_so_over_six_crops(figures, measure):
    one, six = (figures[crops].correlation[measure] for crops in (1, 6))
    assert one >= MIN_CORRELATION[measure]
    assert six > one


def test_six_crops_move_and_tremble_less_than_one_apart_from_the_geometry(figures):
    for part in ("brows", "eyes", "outer lips", "inner lips"):
        assert figures[6].motion_px[part] < 0.95 * figures[1].motion_px[part]
    assert figures[6].tremble_px < 0.75 * figures[1].tremble_px
