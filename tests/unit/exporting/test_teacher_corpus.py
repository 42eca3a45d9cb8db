"""A teacher's motion over a folder of speech: said once, split by recording, what cannot be used named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from bundle_factory import schematic_face
from tiny_corpus import opening_of, sound_of, write_wav
from tiny_teacher import FRAMES, RECORDINGS, LoudnessTeacher, write_speech

from export.students.teacher_corpus import SavedLandmarksError, SpeechError, make_teacher_corpus
from preparation.sounds import Sound
from training.corpus import load_corpus

FACE = schematic_face()


def make(speech, work, teacher=None, **changes):
    teacher = LoudnessTeacher() if teacher is None else teacher
    given = {"identity": "teacher 1", "temperature": 0.0, "mean_face": FACE} | changes
    return make_teacher_corpus(speech, work, lambda: teacher, **given)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("data") / "speech")


@pytest.fixture(scope="module")
def made(speech, tmp_path_factory):
    return make(speech, tmp_path_factory.mktemp("work"))


def test_training_reads_what_the_teacher_said(made):
    loaded = load_corpus(made.folder)
    recordings = {"train": made.train, "validation": made.held_out}
    for split, said in recordings.items():
        clips = getattr(loaded, split)
        assert len(clips) == len(said)
        for clip, recording in enumerate(said):
            landmarks = (clips.clip_offsets(clip) + clips.rest).numpy()
            np.testing.assert_allclose(landmarks, recording.landmarks(), rtol=0, atol=1e-3)  # 0.01 mm
            assert np.array_equal(clips.clip_pcm(clip).numpy(), recording.pcm())
    assert np.ptp(made.train_landmarks(), axis=0).max() > 0.5
    assert np.array_equal(loaded.train.mean_face.numpy(), FACE.reshape(204))


def test_whole_recordings_are_held_out(made):
    assert len(made.held_out) == 1
    assert len(made.train) == RECORDINGS - 1
    assert not {recording.file for recording in made.train} & {recording.file for recording in made.held_out}
    assert made.train_minutes == pytest.approx((RECORDINGS - 1) * FRAMES / 1500)
    assert made.held_out_minutes == pytest.approx(FRAMES / 1500)


def test_a_tenth_is_held_out_where_recordings_are_many(tmp_path):
    made = make(write_speech(tmp_path / "speech", recordings=21, frames=55), tmp_path / "work")
    assert len(made.held_out) == 2


def test_pauses_and_closures_are_known(made):
    clips = load_corpus(made.folder).train
    for clip in range(len(clips)):
        sounds, offsets = clips.clip_sounds(clip).numpy(), clips.clip_offsets(clip).numpy()
        opening = -offsets.reshape(-1, 68, 3)[:, 66, 1]
        # Sound begins in frame 19: 0 to 16 are quiet, 0.68 s, and rest has middles from 0.15 to 0.48.
        assert np.flatnonzero(sounds == Sound.REST).tolist() == list(range(4, 12))
        assert (sounds == Sound.BILABIAL).any()  # every second, the loudness falls to nothing for 3 frames
        assert opening[sounds == Sound.BILABIAL].max() < 0.2
        assert opening[sounds == Sound.OTHER].max() > 0.5


def test_a_recording_is_said_once(speech, tmp_path):
    made = make(speech, tmp_path)
    again = LoudnessTeacher()
    assert make(speech, tmp_path, again).digest == made.digest
    assert again.said == 0
    made.train[0].saved.unlink()  # as if the first run had been stopped before it
    make(speech, tmp_path, again)
    assert again.said == 1
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    "landmarks",
    [np.array([None]), np.zeros((FRAMES - 1, 204), np.float32), np.full((FRAMES, 204), np.nan, np.float32)],
    ids=["an object array", "another length", "not finite"],
)
def test_landmarks_broken_since_they_were_said_are_refused(speech, tmp_path, landmarks):
    file = make(speech, tmp_path).train[0].saved
    np.save(file, landmarks)
    with pytest.raises(SavedLandmarksError, match="delete it, and the teacher says it again") as caught:
        make(speech, tmp_path)
    assert caught.value.file == str(file)


def test_a_recording_that_was_half_said_is_not_kept(speech, tmp_path):
    class Stopped(LoudnessTeacher):
        def landmarks(self, pcm, *, temperature=None):
            if self.said == 2:
                raise KeyboardInterrupt
            return super().landmarks(pcm, temperature=temperature)

    with pytest.raises(KeyboardInterrupt):
        make(speech, tmp_path, Stopped())
    assert len(list((tmp_path / "teacher").iterdir())) == 2
    rest = LoudnessTeacher()
    make(speech, tmp_path, rest)
    assert rest.said == RECORDINGS - 2


@pytest.mark.parametrize("change", [{"identity": "teacher 2"}, {"temperature": 0.5}])
def test_another_teachers_words_are_not_taken(speech, tmp_path, change):
    first = make(speech, tmp_path)
    other = LoudnessTeacher()
    second = make(speech, tmp_path, other, **change)
    assert other.said == RECORDINGS
    assert other.temperatures[0] == change.get("temperature", 0.0)
    assert first.digest != second.digest


def test_files_without_speech_are_named_and_left_out(speech, tmp_path, caplog):
    folder = tmp_path / "speech"
    shutil.copytree(speech, folder / "some" / "where")
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(40))
    (folder / "empty.flac").write_bytes(b"")
    (folder / "notes.txt").write_text("not a recording")
    (folder / ".hidden").write_text("passed over")
    write_wav(folder / "silent.wav", np.zeros(64000))
    write_wav(folder / "short.wav", sound_of(opening_of(1, 30), 200))
    shutil.copy(speech / "1.wav", folder / "twin.wav")
    made = make(folder, tmp_path / "work")
    assert len(made.train) + len(made.held_out) == RECORDINGS
    reasons = {line.partition(":")[0].rpartition("/")[2]: line for line in made.left_out}
    assert set(reasons) == {"broken.wav", "empty.flac", "notes.txt", "silent.wav", "short.wav", "twin.wav"}
    assert "expected speech, got silence" in reasons["silent.wav"]
    assert "expected 2 s of speech or more, got 1.20 s" in reasons["short.wav"]
    assert "the same sound as" in reasons["twin.wav"]
    assert all("\n" not in line for line in made.left_out)
    assert "silent.wav" in caplog.text


def test_a_folder_with_too_little_is_one_clear_line(speech, tmp_path):
    with pytest.raises(SpeechError, match="expected a folder of recordings, found none"):
        make(tmp_path / "nowhere", tmp_path / "work")
    folder = tmp_path / "speech"
    folder.mkdir()
    with pytest.raises(SpeechError, match="got 0 of 0"):
        make(folder, tmp_path / "work")
    shutil.copy(speech / "0.wav", folder)
    (folder / "empty.wav").touch()
    with pytest.raises(SpeechError, match=r"got 1 of 2 files \(.*empty.wav: "):
        make(folder, tmp_path / "work")


@pytest.mark.parametrize(
    "landmarks", [np.zeros((FRAMES, 204), np.float32), np.full((FRAMES, 68, 3), np.nan, np.float32)]
)
def test_a_teacher_that_says_something_else_is_refused(speech, tmp_path, landmarks):
    class Wrong(LoudnessTeacher):
        def landmarks(self, pcm, *, temperature=None):
            return landmarks

    with pytest.raises(SpeechError, match=r"0\.wav: teacher: expected finite landmarks \(200, 68, 3\), got"):
        make(speech, tmp_path, Wrong())
    assert not list((tmp_path / "teacher").iterdir())


def test_long_recordings_are_cut_where_it_is_quiet(tmp_path):
    folder = tmp_path / "speech"
    write_speech(folder, recordings=1)
    frames = 1600
    opening = 0.5 + 0.3 * np.sin(np.arange(frames))
    opening[[520, 1090]] = 0.0  # near a third and two thirds
    write_wav(folder / "long.wav", sound_of(opening, 150))
    made = make(folder, tmp_path / "work")
    index = [json.loads(line) for line in (made.folder / "index.jsonl").read_text().splitlines()]
    cuts = [row["start"] // 640 for row in index if row["file"].endswith("long.wav")]
    assert cuts == [0, 520, 1090]
    assert sum(row["frames"] for row in index) == FRAMES + frames
    assert index[-1]["row1"] == FRAMES + frames
