"""A face followed through a video: gaps, cuts, bystanders, jumps in time, turned and odd pictures."""

from dataclasses import replace

import av
import face_videos
import numpy as np
import pytest

from models.settings import SettingsError
from preparation.face_mesh import track
from preparation.face_mesh.ibug import IBUG_POINTS
from preparation.face_mesh.track import FaceTrackError, TrackSettings, track_face, upright_pictures
from preparation.media import MediaError

PLAIN = TrackSettings(smooth=False)
CORNERS = list(face_videos.CORNERS)


@pytest.fixture
def video(tmp_path):
    """Returns a function that writes a video of pictures and returns its path."""
    return lambda pictures, **how: face_videos.write(tmp_path / "v.mkv", pictures, **how)


def landmarks(path, settings=PLAIN):
    return track_face(path, settings, keep=IBUG_POINTS, quiet=True)


def errors_px(followed, number, places):
    return np.linalg.norm(followed.points[number, CORNERS, :2] - places, axis=1).max()


def wide(picture, left):
    """A picture 640 wide with a still in it."""
    return face_videos.placed(picture, width=640, height=256, left=left, top=0, side=256)


SETTINGS = [PLAIN, TrackSettings(), TrackSettings(crops=6), TrackSettings(crops=2, smooth=False)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "smooth", "6 crops", "2 crops"])
def test_points_times_and_size_of_each_picture(video, settings):
    path = video([face_videos.may("open")] * 3 + [face_videos.may("closed")] * 3)
    followed = landmarks(path, settings)
    np.testing.assert_allclose(followed.times_s, np.arange(6) / 25, atol=1e-3)  # a container may count in ms
    assert followed.found.all()
    assert followed.points.shape == (6, 68, 3)
    assert followed.size_px == (256, 256)
    for number, mouth in ((0, "open"), (5, "closed")):
        assert errors_px(followed, number, face_videos.PLACES_PX[mouth]) < face_videos.MAX_ERROR_PX


def test_all_478_points_come_without_a_choice(video):
    path = video([face_videos.may("open")] * 2)
    every = track_face(path, PLAIN, quiet=True)
    assert every.points.shape == (2, 478, 3)
    np.testing.assert_array_equal(every.points[:, IBUG_POINTS], landmarks(path).points)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=["plain", "smooth"])
def test_a_face_leaves_and_returns(video, settings):
    face, empty = face_videos.may("open"), face_videos.empty()
    followed = landmarks(video([empty, face, face, empty, empty, face]), settings)
    assert followed.found.tolist() == [False, True, True, False, False, True]
    assert not followed.points[[0, 3, 4]].any()
    for number in (1, 2, 5):
        assert errors_px(followed, number, face_videos.PLACES_PX["open"]) < face_videos.MAX_ERROR_PX


def test_a_video_without_a_face_is_one_line(video):
    path = video([face_videos.empty()] * 3)
    with pytest.raises(FaceTrackError) as caught:
        landmarks(path)
    assert (caught.value.file, caught.value.expected) == (str(path), "a face")
    assert caught.value.got == "none in 3 pictures"
    assert "\n" not in str(caught.value)


def test_a_cut_is_followed_and_not_smoothed_over(video):
    picture, places = face_videos.may("open"), face_videos.PLACES_PX["open"]
    path = video([wide(picture, 0)] * 4 + [wide(picture, 384)] * 4)
    followed = landmarks(path, TrackSettings())
    assert followed.found.all()
    for number, left in ((3, 0), (4, 384)):
        assert errors_px(followed, number, places + np.array([left, 0])) < face_videos.MAX_ERROR_PX


def test_of_several_faces_the_largest_is_kept_then_the_most_central(video):
    may, places = face_videos.may("open"), face_videos.PLACES_PX["open"]
    picture = wide(may, 0)
    picture[:160, 300:460] = face_videos.placed(may, width=160, height=160, left=0, top=0, side=160)
    assert errors_px(landmarks(video([picture])), 0, places) < face_videos.MAX_ERROR_PX
    equal = np.concatenate([may, may, may], axis=1)
    assert errors_px(landmarks(video([equal])), 0, places + np.array([256, 0])) < face_videos.MAX_ERROR_PX


def test_a_bystander_does_not_take_the_place_of_a_face_that_is_hidden_for_a_moment(video):
    may, places = face_videos.may("open"), face_videos.PLACES_PX["open"]
    both, other = np.concatenate([may, may], axis=1), np.concatenate([face_videos.empty(), may], axis=1)
    both[:, 256:] = face_videos.placed(may, width=256, height=256, left=20, top=20, side=200)
    other[:, 256:] = both[:, 256:]
    times_ms = [0, 40, 80, 900, 2000]
    followed = landmarks(video([both, both, other, other, other], times_ms=times_ms))
    np.testing.assert_allclose(followed.times_s, np.array(times_ms) / 1000)
    assert followed.found.tolist() == [True, True, False, False, True]
    assert errors_px(followed, 1, places) < face_videos.MAX_ERROR_PX
    assert followed.points[4, :, 0].min() > 256  # after a second it is another scene


def test_a_small_face_that_appears_is_searched_for_twice_a_second(video):
    empty = face_videos.placed(face_videos.empty(), width=1280, height=720, left=0, top=0, side=1)
    small = face_videos.placed(face_videos.may("open"), width=1280, height=720, left=900, top=300, side=140)
    times_ms = [0, 400, 600, 640]
    followed = landmarks(video([empty, small, small, small], times_ms=times_ms))
    assert followed.found.tolist() == [False, False, True, True]


def test_regions_tremble_less_when_smoothed(video):
    generator = np.random.default_rng(0)
    picture = face_videos.may("open")
    noisy = [
        np.clip(picture + generator.normal(0, 25, picture.shape), 0, 255).astype(np.uint8) for _ in range(12)
    ]
    path = video(noisy)

    def tremble(settings):
        return np.abs(np.diff(landmarks(path, settings).points[..., :2], n=2, axis=0)).mean()

    assert tremble(TrackSettings(crops=6)) < tremble(TrackSettings()) < tremble(PLAIN)


def test_a_turned_video_is_upright(tmp_path):
    turned = np.rot90(face_videos.may("open"))  # counter-clockwise
    path = face_videos.write(tmp_path / "v.mp4", [turned] * 2, codec="libx264", pixel_format="yuv444p")
    face_videos.turn_clockwise(path)
    assert errors_px(landmarks(path), 1, face_videos.PLACES_PX["open"]) < face_videos.MAX_ERROR_PX


def test_a_turned_picture_has_the_sides_of_an_upright_one(tmp_path):
    wide_picture = wide(face_videos.may("open"), 100)
    path = face_videos.write(tmp_path / "v.mp4", [wide_picture], codec="libx264", pixel_format="yuv444p")
    face_videos.turn_clockwise(path)
    ((picture, _),) = upright_pictures(path)
    assert picture.shape == (640, 256, 3)
    error = picture.astype(int) - np.rot90(wide_picture, -1)
    assert np.abs(error).mean() < 3  # x264 at its default quality


def test_pixels_that_are_not_square_are_widened(tmp_path):
    narrow = np.ascontiguousarray(face_videos.may("open")[:, ::2])
    path = face_videos.write(tmp_path / "v.mp4", [narrow] * 2, codec="libx264", pixel_format="yuv444p", sar=2)
    followed = landmarks(path)
    assert followed.size_px == (256, 256)
    assert errors_px(followed, 1, face_videos.PLACES_PX["open"]) < face_videos.MAX_ERROR_PX


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "gray", "yuv422p", "rgb48le"])
def test_other_pixel_formats_are_read(video, pixel_format):
    path = video([face_videos.may("open")], pixel_format=pixel_format)
    assert errors_px(landmarks(path), 0, face_videos.PLACES_PX["open"]) < face_videos.MAX_ERROR_PX


def test_odd_sides_are_read(video):
    path = video([face_videos.may("open")[:251, :253]])
    assert errors_px(landmarks(path), 0, face_videos.PLACES_PX["open"]) < face_videos.MAX_ERROR_PX


def frames(*pictures_and_times):
    """What stands in for decoded frames of those pictures."""
    made = []
    for picture, time_s in pictures_and_times:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if time_s is not None:
            frame.pts, frame.time_base = round(time_s * 1000), face_videos.MS
        made.append(frame)
    return made


@pytest.fixture
def decoded(monkeypatch, tmp_path):
    """Returns a function that lets frames come out of a file; it returns the file's path."""

    def decode(*pictures_and_times):
        monkeypatch.setattr(track, "video_frames", lambda path: iter(frames(*pictures_and_times)))
        return tmp_path / "v.mp4"

    return decode


def test_a_picture_that_goes_back_in_time_is_left_out(decoded):
    empty = face_videos.empty()
    path = decoded((empty, 0.0), (empty, 0.04), (empty, 0.04), (empty, 0.02), (empty, 0.08))
    assert [time_s for _, time_s in upright_pictures(path)] == [0.0, 0.04, 0.08]


def test_pictures_without_times_are_refused(decoded):
    with pytest.raises(FaceTrackError) as caught:
        list(upright_pictures(decoded((face_videos.empty(), None))))
    assert (caught.value.expected, caught.value.got) == ("a time for each", "none")


def test_pictures_that_change_in_size_are_refused_with_the_time(decoded):
    path = decoded((face_videos.empty(), 0.0), (face_videos.empty()[:200], 1.5))
    with pytest.raises(FaceTrackError) as caught:
        list(upright_pictures(path))
    assert caught.value.expected == "pictures of one size (256 x 256)"
    assert caught.value.got == "256 x 200 at 1.50 s"


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video at all")
    for name in ("a.mp4", "absent.mp4"):
        with pytest.raises(MediaError):
            landmarks(tmp_path / name)


@pytest.mark.parametrize("crops", [0, 7])
def test_a_number_of_crops_out_of_range_is_refused(crops):
    with pytest.raises(SettingsError, match="1 to 6"):
        replace(TrackSettings(), crops=crops)
