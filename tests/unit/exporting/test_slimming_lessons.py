"""Lessons of a slim head: conditions as the live path has them, refusals in one line before any work."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import wide_speaker

from export.onnx.graphs import open_graph
from export.requests import SlimRequest
from export.students.slimming import conditions, mouth_reach, prepare, still_landmarks, with_blinks
from models.landmark_filter import LandmarkFilter
from models.speaker import load_speaker
from streaming.pipeline.landmarks import FrameWindows
from streaming.pipeline.mouth import project
from training.head_student import LESSONS_FILE, LessonsError, load_lessons


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return wide_speaker.write_wide_bundle(tmp_path_factory.mktemp("wide") / "Wide")


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return wide_speaker.write_speech(tmp_path_factory.mktemp("speech") / "talk.wav")


def request_of(bundle, speech, tmp_path, **changes):
    given = {"bundle": bundle, "out": tmp_path / "Slim", "hidden": 32, "speech": (speech,)}
    return SlimRequest(**{**given, **changes})


def refused(request):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the callers look at the text
        prepare(request, open_motion=wide_speaker.loudness_motion)
    assert "\n" not in str(caught.value)
    assert not request.work_folder.exists() or not list(request.work_folder.glob(".*"))
    return str(caught.value)


def test_landmarks_are_those_of_the_live_path(bundle):
    speaker = load_speaker(bundle)
    random = np.random.default_rng(0)
    landmarks = random.normal(0, 1.2, (120, 68, 3)).astype(np.float32)  # many beyond the clamp
    motion = speaker.motion
    live = LandmarkFilter(
        mean=motion.landmark_mean, std=motion.landmark_std, clamp_std=motion.clamp_std, ema=motion.ema
    )
    expected = np.stack([live.step(frame) for frame in landmarks])
    got = with_blinks(speaker, still_landmarks(speaker, landmarks))
    blinking = np.abs(got - expected).max((1, 2)) > 1e-3
    assert 3 <= blinking.sum() <= 2 * len(speaker.blinks)
    np.testing.assert_allclose(got[~blinking], expected[~blinking], atol=2e-6)
    start = int(blinking.argmax()) - 1  # a blink's first frame adds nothing
    blink = got[start : start + len(speaker.blinks)] - expected[start : start + len(speaker.blinks)]
    np.testing.assert_allclose(blink, speaker.blinks / motion.landmark_std, atol=2e-5)


@pytest.mark.parametrize("window", [(1, 0), (5, 2)])
def test_windows_are_those_of_the_live_path(tmp_path, window):
    width, ahead = window
    parts = wide_speaker.bundle_factory.tiny_parts(
        condition_window_frames=width, condition_lookahead_frames=ahead
    )
    speaker = wide_speaker.write_bundle(tmp_path / "Tiny", parts)
    track = np.random.default_rng(0).normal(size=(20, 68, 3)).astype(np.float32)
    windows = FrameWindows(window_frames=width, lookahead_frames=ahead)
    rows = [row for frame in track for row in windows.push(frame)] + list(windows.finish())
    session = open_graph(speaker.condition_onnx)
    expected = [session.run(None, {"window": row})[0] for row in rows]
    np.testing.assert_array_equal(conditions(speaker, track), expected)


def test_the_mouth_s_reach_holds_an_open_mouth(bundle):
    speaker = load_speaker(bundle)
    reach = mouth_reach(speaker)
    face = speaker.motion.mean_face + wide_speaker.bundle_factory.open_mouth() / 10
    for c2w in speaker.poses[::10]:
        box = project(reach, c2w, speaker.scene.camera)
        lips = project(face[48:68], c2w, speaker.scene.camera)
        assert (lips >= box.min(0)).all()
        assert (lips <= box.max(0)).all()
    without = dataclasses.replace(speaker, motion=dataclasses.replace(speaker.motion, mean_face=None))
    assert mouth_reach(without).shape == (0, 3)


def test_lessons_that_were_made_are_not_made_again(bundle, speech, tmp_path):
    request = request_of(bundle, speech, tmp_path)
    prepare(request, open_motion=wide_speaker.loudness_motion)
    lessons = load_lessons(request.work_folder / LESSONS_FILE)
    assert lessons.conditions.shape == (100, 8)
    assert lessons.conditions.std(0).max() > 0.01
    assert len(lessons.poses) == wide_speaker.POSES

    def must_not_open(_speaker):
        raise AssertionError("the motion was opened again")

    prepare(request, open_motion=must_not_open)
    other = wide_speaker.write_speech(tmp_path / "other.wav", seconds=5)
    message = refused(request_of(bundle, other, tmp_path))
    assert "got others" in message


def test_a_head_that_is_slim_already_is_refused(bundle, speech, tmp_path):
    message = refused(request_of(bundle, speech, tmp_path, hidden=64))
    assert message == "head.ambient_net: expected wider than the slim head's 64, got 48; it is slim already"
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_missing_or_too_little_are_refused(bundle, speech, tmp_path):
    assert "no such folder" in refused(request_of(tmp_path / "nowhere", speech, tmp_path))
    assert "none.wav: " in refused(request_of(bundle, tmp_path / "none.wav", tmp_path))
    short = wide_speaker.write_speech(tmp_path / "short.wav", seconds=1)
    message = refused(request_of(bundle, short, tmp_path))
    assert "at least 2 s of speech, got 1 s" in message
    (tmp_path / "Slim").mkdir()
    (tmp_path / "Slim" / "mine.txt").write_text("mine")
    assert "expected no such folder yet, got one that is no bundle" in refused(
        request_of(bundle, speech, tmp_path)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 48}, "hidden: expected 32 or 64, got 48"),
        ({"speech": ()}, "speech: expected at least one recording, got none"),
        ({"steps": 0}, "steps: expected 1 to 10000000, got 0"),
        ({"rays": 10}, "rays: expected 256 to 16777216, got 10"),
        ({"out": Path("Wide")}, "out: expected another folder than the bundle's, got Wide"),
    ],
)
def test_a_request_out_of_range_is_refused(changes, message):
    given = {"bundle": Path("Wide"), "out": Path("Slim"), "speech": (Path("talk.wav"),)}
    assert SlimRequest(**given).work_folder == Path("Slim.work")
    with pytest.raises(ValueError, match=message):
        SlimRequest(**{**given, **changes})


def test_a_corrupt_lesson_is_refused(bundle, speech, tmp_path):
    request = request_of(bundle, speech, tmp_path, work=tmp_path / "work")
    request.work_folder.mkdir()
    (request.work_folder / LESSONS_FILE).write_bytes(b"?")
    with pytest.raises(LessonsError, match="delete it to make them anew"):
        prepare(request, open_motion=wide_speaker.loudness_motion)
