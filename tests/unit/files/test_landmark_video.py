import av
import cv2
import numpy as np
import pytest
import stand_ins

from models.landmark_filter import EYES, MOUTH, POINTS
from streaming.errors import InputError
from streaming.files.audio_file import AudioFile
from streaming.files.landmark_video import SIZE_PX, LandmarkDrawing, LandmarkVideo, landmark_px, plain_face

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
STILL = np.zeros((POINTS, 3), np.float32)
FAR = 9.0  # decimetres from the middle: out of the picture


def face_with(*seen):
    """A mean face whose other points are all out of the picture; `seen` are point, x, y in dm."""
    face = np.full((POINTS, 3), FAR, np.float32)
    for point, x, y in seen:
        face[point] = x, y, 0
    return face


def inked(picture, colour):
    """Where a colour is, as (rows, columns)."""
    return np.nonzero((picture == np.array(colour, np.uint8)).all(-1))


def moved(landmarks, offset_dm):
    return landmarks + 10 * np.float32(offset_dm)


# Where the points lie -------------------------------------------------------------------------------


def test_a_point_lies_where_face_and_motion_put_it():
    face = face_with((30, 0.25, -0.5))
    landmarks = STILL.copy()
    landmarks[30] = 5.0, 2.5, 7.0  # ten times the offset
    assert tuple(landmark_px(landmarks, face)[30]) == (256 + 192, 256 - 64)
    several = landmark_px(np.stack([STILL, landmarks]), face)
    assert several.shape == (2, POINTS, 2)
    assert tuple(several[0, 30]) == (256 + 64, 256 - 128)


def test_a_point_that_is_higher_in_the_face_is_higher_in_the_picture():
    """What lies above the origin in head space lies in the upper half: the reference flips its picture."""
    rows, columns = inked(LandmarkDrawing(face_with((60, 0.25, 0.5))).draw(STILL), GREEN)
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (2 * (511 - 384), 2 * 320)


@pytest.mark.parametrize("point", [8, 30, 36, 47, 48, 67])
def test_a_point_is_the_disc_of_opencv(point):
    colour = RED if point in range(36, 48) else GREEN if point in range(48, 68) else BLUE
    expected = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    cv2.circle(expected, (300, 200), 3, colour, -1)
    expected = cv2.flip(expected, 0)
    picture = LandmarkDrawing(face_with((point, 44.5 / 256, -55.5 / 256))).draw(STILL)
    around = np.s_[311 - 4 : 311 + 5, 300 - 4 : 300 + 5]  # the number begins right of it
    np.testing.assert_array_equal(picture[around], expected[around])


def test_eyes_are_red_the_mouth_green_and_all_else_blue():
    spread = face_with(*((i, (i % 10 - 5) * 0.15, (i // 10 - 3) * 0.2) for i in range(POINTS)))
    picture = LandmarkDrawing(spread).draw(STILL)
    at = landmark_px(STILL, spread)
    seen = picture[SIZE_PX - 1 - at[:, 1], at[:, 0]]
    expected = np.full((POINTS, 3), BLUE)
    expected[EYES], expected[MOUTH] = RED, GREEN
    np.testing.assert_array_equal(seen, expected)
    assert tuple(picture[0, 0]) == WHITE


def test_later_points_lie_over_earlier_ones_and_numbers_over_all():
    same = LandmarkDrawing(face_with((3, 0, 0), (40, 0, 0), (50, 0, 0))).draw(STILL)
    assert tuple(same[255, 256]) == GREEN
    beside = LandmarkDrawing(face_with((8, 0, 0), (50, 8 / 256, 2 / 256))).draw(STILL)
    assert tuple(beside[251, 261]) == BLUE  # the upper left of the 8, within the disc of 50


# Numbers --------------------------------------------------------------------------------------------


GLYPHS = {
    "0": "###\n#.#\n#.#\n#.#\n###",
    "1": ".#.\n##.\n.#.\n.#.\n###",
    "2": "###\n..#\n###\n#..\n###",
    "3": "###\n..#\n###\n..#\n###",
    "4": "#.#\n#.#\n###\n..#\n..#",
    "5": "###\n#..\n###\n..#\n###",
    "6": "###\n#..\n###\n#.#\n###",
    "7": "###\n..#\n..#\n.#.\n.#.",
    "8": "###\n#.#\n###\n#.#\n###",
    "9": "###\n#.#\n###\n..#\n###",
}


def read(picture, point_column, point_row):
    """The number beside a point, read digit by digit; anything that is no digit ends it."""
    digits = ""
    for place in range(2):
        left = point_column + 5 + 4 * place
        box = (picture[point_row - 4 : point_row + 1, left : left + 3] == BLUE).all(-1)
        shape = "\n".join("".join("#" if dot else "." for dot in row) for row in box)
        digits += next((digit for digit, glyph in GLYPHS.items() if glyph == shape), "")
    return digits


def test_every_number_can_be_read_beside_its_point():
    for point in range(POINTS):
        picture = LandmarkDrawing(face_with((point, -0.5, 0.25))).draw(STILL)
        assert read(picture, 128, SIZE_PX - 1 - 320) == str(point)


# The edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [(-1, 0), (0.999, 0), (0, -1), (0, 0.999), (0.999, 0.999)])
def test_what_leaves_the_picture_is_cut_off(edge):
    """Nothing comes in again at the other side."""
    drawing = LandmarkDrawing(face_with((50, 0, 0)))
    middle = len(inked(drawing.draw(STILL), GREEN)[0])
    at_edge = drawing.draw(moved(STILL, (*edge, 0)))
    rows, columns = inked(at_edge, GREEN)
    assert 0 < len(rows) < middle
    x, y = 256 + 256 * edge[0], 511 - 256 - 256 * edge[1]
    assert max(np.abs(columns - x).max(), np.abs(rows - y).max()) <= 4
    blank = drawing.draw(moved(STILL, (FAR, -FAR, 0)))
    assert (blank == 255).all()


# Without a mean face --------------------------------------------------------------------------------


def test_the_plain_face_is_a_face():
    face = plain_face()
    assert face.shape == (POINTS, 3)
    np.testing.assert_allclose(face.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(face[16::-1, 0], -face[:17, 0], atol=1e-6)
    assert np.abs(face).max() < 0.8  # with its motion it stays within the picture
    x, y = face[:, 0], face[:, 1]
    assert y[8] < y[57] < y[66] <= y[62] < y[51] < y[33] < y[30] < y[27] < y[19]
    assert x[0] < x[17] < x[36] < x[39] < x[27] < x[42] < x[45] < x[26] < x[16]
    assert x[48] < x[60] < x[62] < x[64] < x[54]
    assert y[37] > y[41]  # upper lid, lower lid
    assert y[44] > y[46]
    assert y[62] - y[66] < 0.02


# The video ------------------------------------------------------------------------------------------


@pytest.fixture
def audio(tmp_path):
    """Three and a half frames of sound with a click at the third."""
    samples = np.zeros((7 * 320 * 3, 2), np.int16)  # 48 kHz stereo
    samples[2 * 1920 : 2 * 1920 + 60] = 25000
    return AudioFile(stand_ins.write_wav(tmp_path / "speech.wav", samples, 48000))


def test_the_video_shows_the_points_and_carries_the_sound(tmp_path, audio):
    path = tmp_path / "lm.mp4"
    rest, up = STILL, moved(STILL, (0, 0.125, 0))
    with LandmarkVideo(path, mean_face=face_with((50, 0, 0)), audio=audio, crf=10) as video:
        for landmarks in (rest, rest, up, rest):
            video.write(landmarks)
        assert not path.exists()
        size_bytes = video.complete()
        video.publish()
        assert size_bytes == path.stat().st_size
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == [0, 0.04, 0.08, 0.12]
    for frame, row in zip(frames, (255, 255, 223, 255), strict=True):
        picture = frame.to_ndarray(format="rgb24").astype(int)
        assert picture.shape == (SIZE_PX, SIZE_PX, 3)
        assert picture[0, 0].min() > 250
        rows, columns = np.nonzero(picture[..., 1] - picture[..., 0] > 100)  # green
        assert abs(rows.mean() - row) < 1
        assert abs(columns.mean() - 256) < 1
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    heard = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
    assert heard.shape[0] == 2
    assert heard.shape[1] >= 6720  # the rest of the sound too
    assert float(blocks[0].time) == pytest.approx(0, abs=1e-3)
    click_s = np.argmax(np.abs(heard[0]) > 0.3) / 48000
    assert click_s == pytest.approx(0.08, abs=0.003)  # AAC spreads a click over a few samples
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lm.mp4", "speech.wav"]


def test_without_a_mean_face_the_plain_one_moves(tmp_path, audio):
    shown = []
    for name, face in (("a.mkv", None), ("b.mkv", plain_face())):
        with LandmarkVideo(tmp_path / name, mean_face=face, audio=audio, crf=20) as video:
            video.write(moved(STILL, (0.1, 0, 0)))
            video.complete()
            video.publish()
        with av.open(str(tmp_path / name)) as container:
            shown.append(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    np.testing.assert_array_equal(shown[0], shown[1])
    assert (shown[0] < 128).any()


def test_leaving_without_commit_leaves_nothing(tmp_path, audio):
    with LandmarkVideo(tmp_path / "lm.mp4", mean_face=None, audio=audio, crf=20) as video:
        video.write(STILL)
        assert len(list(tmp_path.iterdir())) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_a_place_that_cannot_be_written_to_is_refused_by_its_own_flag(tmp_path, audio):
    with pytest.raises(InputError, match=r"--landmark-video, got \.gif"):
        LandmarkVideo(tmp_path / "lm.gif", mean_face=None, audio=audio, crf=20)
    with pytest.raises(InputError, match="--landmark-video"):
        LandmarkVideo(tmp_path / "no" / "lm.mp4", mean_face=None, audio=audio, crf=20)
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]
