"""A student learns from a stand-in teacher over tones: agreement, resuming, the bundle, what is refused."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch
from bundle_factory import tiny_parts
from feature_bundle import feature_parts
from tiny_corpus import opening_of, sound_of, write_wav
from tiny_teacher import LoudnessTeacher, write_speech

from cuda_kernels.errors import InputError
from export.bundle.writer import write_bundle
from export.requests import DistillationRequest
from export.students import distillation
from export.students.agreement import compare, stream
from export.students.distillation import DistillationError, StoppedError, distil
from export.students.offline_motion import OfflineMotion
from export.verification import verify_bundle
from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.bundle_files import RECORDED_CASES_FILE
from models.features import LogMel
from models.speaker import load_speaker
from training.audio2motion import Audio2MotionSettings
from training.loop import checkpoints, load_checkpoint

STEPS = 40


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """A higher rate and shorter crops: the rate rises over three hundred steps, of which these are forty."""
    quick = functools.partial(Audio2MotionSettings, learning_rate=4e-3, frames=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "Audio2MotionSettings", quick)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a teacher's bundle and with speech."""
    place = tmp_path_factory.mktemp("distillation")
    parts = tiny_parts(image_size_px=64)
    write_bundle(
        place / "Tiny",
        dataclasses.replace(
            parts,
            verification={"motion_largest_error": 0.5, "condition_largest_error": 1e-7},
            figures={"psnr_db": 31.5, "student.aperture_r": 0.1},
        ),
    )
    write_speech(place / "speech")
    return place


def request(place, out, **changes):
    given = {
        "bundle": place / "Tiny",
        "speech": place / "speech",
        "out": out,
        "steps": STEPS,
        "batch": 4,
    }
    return DistillationRequest(**(given | changes))


@pytest.fixture(scope="module")
def report(place):
    return distil(request(place, place / "Small"), teacher=LoudnessTeacher())


def test_the_student_agrees_with_its_teacher_and_an_untrained_one_does_not(report):
    found = report.agreement
    assert found.aperture_r > 0.85
    assert found.width_r > 0.85
    assert found.best_lag_frames == 0
    assert found.lookahead_ms == 160
    assert found.ms_per_frame > 0
    torch.manual_seed(0)
    untrained = Audio2Motion(Audio2MotionConfig.streaming()).eval()
    (recording,) = report.corpus.held_out
    sound = torch.from_numpy(np.pad(recording.pcm(), (0, 640 * 4)))[None]
    with torch.no_grad():
        said = untrained.predict(LogMel().causal(sound))[0].numpy()
    mean_face = report.speaker.motion.mean_face
    before = compare([said], [recording.landmarks()], mean_face, lookahead_ms=160, ms_per_frame=1.0)
    assert before.aperture_r < 0.5 * found.aperture_r
    assert before.mouth_rmse_mm > found.mouth_rmse_mm


def test_the_bundle_hears_sound_and_keeps_all_but_the_motion(place, report):
    teacher, student = load_speaker(place / "Tiny"), load_speaker(place / "Small")
    assert student.motion.kind == "pcm"
    assert student.motion.features is None
    assert student.motion.lookahead_frames == 4
    assert student.motion.window_samples == 640 * student.motion.window_frames + 192
    assert np.array_equal(student.motion.landmark_std, teacher.motion.landmark_std)
    for name in ("condition.onnx", "head.safetensors", "torso.safetensors", "poses.safetensors"):
        assert (student.path / name).read_bytes() == (teacher.path / name).read_bytes()
    assert np.array_equal(student.scene.background, teacher.scene.background)
    assert (student.name, student.licence) == (teacher.name, teacher.licence)
    assert student.origin.consent == teacher.origin.consent
    assert "40 steps of `geneface-export distil`" in student.origin.recipe
    assert student.verification["condition_largest_error"] == pytest.approx(1e-7)
    assert student.verification["motion_largest_error"] < 1e-4
    assert student.figures["teacher.psnr_db"] == 31.5
    assert student.figures["student.aperture_r"] == pytest.approx(report.agreement.aperture_r)
    assert "teacher.student.aperture_r" not in student.figures
    assert all(check.holds for check in verify_bundle(place / "Small", size_px=32, poses=1))


def test_the_card_says_what_was_learnt_and_holds_the_teachers(report):
    card = (report.speaker.path / "MODEL_CARD.md").read_text()
    assert "## The teacher" in card
    assert "### Tiny" in card
    assert "| audio2motion | 40 |" in card
    assert "minutes of speech in 3 recordings" in card
    assert str(report.corpus.folder) not in card
    assert any("r" in line and f"{report.agreement.aperture_r:.3f}" in line for line in report.lines())


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(place, report):
    out, teacher = place / "Parts", LoudnessTeacher()
    with pytest.raises(StoppedError, match="step 1 of 40"):
        distil(request(place, out, max_minutes=1e-9), teacher=teacher)
    assert not out.exists()
    said = teacher.said
    distil(request(place, out), teacher=teacher)
    assert teacher.said == said
    whole, parts = (
        load_checkpoint(place / f"{name}.work" / "student-160ms" / f"checkpoint_{STEPS:08d}.pt")["state"]
        for name in ("Small", "Parts")
    )
    for key, value in whole["live"].items():
        assert torch.equal(value, parts["live"][key]), key
    one, other = ((place / bundle / "motion.onnx").read_bytes() for bundle in ("Small", "Parts"))
    assert one == other


def test_other_speech_does_not_go_on_in_an_old_training(place, tmp_path):
    folder = tmp_path / "speech"
    shutil.copytree(place / "speech", folder)
    asked = request(place, tmp_path / "Small", speech=folder, max_minutes=1e-9)
    with pytest.raises(StoppedError):
        distil(asked, teacher=LoudnessTeacher())
    write_wav(folder / "new.wav", sound_of(opening_of(9, 100), 190))
    for _ in range(2):  # asking again does not wear the refusal down
        with pytest.raises(
            DistillationError, match="expected the teacher and the recordings that its training"
        ):
            distil(asked, teacher=LoudnessTeacher())
    other = dataclasses.replace(asked, lookahead_ms=80)  # another student, from the same teacher's words
    with pytest.raises(StoppedError):
        distil(other, teacher=LoudnessTeacher())
    assert list(checkpoints(tmp_path / "Small.work" / "student-80ms")) == [1]


def test_a_student_out_of_step_is_not_written(place, report, tmp_path, monkeypatch):
    late = dataclasses.replace(report.agreement, best_lag_frames=2)
    monkeypatch.setattr(distillation, "measure_agreement", lambda *_: late)
    asked = request(place, tmp_path / "Late", work=place / "Small.work")
    with pytest.raises(DistillationError, match="student: best lag: expected 0 frames, got 2"):
        distil(asked, teacher=LoudnessTeacher())
    assert not list(tmp_path.iterdir())


def test_bad_inputs_are_refused_before_any_work(place, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "letter.txt").write_text("keep me")
    teacher = LoudnessTeacher()
    with pytest.raises(InputError, match="got one that is no bundle"):
        distil(request(place, occupied), teacher=teacher)
    with pytest.raises(InputError, match="--device: expected cpu or cuda, got 'abacus'"):
        distil(request(place, tmp_path / "a", device="abacus"), teacher=teacher)
    with pytest.raises(ValueError, match="expected a folder of recordings"):
        distil(request(place, tmp_path / "b", speech=tmp_path / "nowhere"), teacher=teacher)
    with pytest.raises(ValueError, match="no such folder"):
        distil(request(place, tmp_path / "c", bundle=tmp_path / "nobody"), teacher=teacher)
    assert teacher.said == 0
    assert [path.name for path in occupied.iterdir()] == ["letter.txt"]


def test_a_speaker_that_hears_features_becomes_one_that_hears_sound(tmp_path):
    """An imported speaker, which has no mean face, taught by its own offline motion."""
    parts = feature_parts(image_size_px=64)
    imported = dataclasses.replace(
        parts,
        motion=dataclasses.replace(parts.motion, mean_face=None),
        recorded_cases=b"from features to landmarks",
        verification={"recorded_chain_error_mm": 0.1, "recorded_condition_error": 0.0},
    )
    speaker = write_bundle(tmp_path / "Wide", imported)
    assert speaker.motion.kind == "features"
    write_speech(tmp_path / "speech", voices=1)
    report = distil(request(tmp_path, tmp_path / "Small", bundle=tmp_path / "Wide", steps=60))
    student = load_speaker(tmp_path / "Small")
    assert (student.motion.kind, student.motion.features) == ("pcm", None)
    assert student.motion.lookahead_frames == 4
    assert student.motion.mean_face is None
    assert not {"features.onnx", RECORDED_CASES_FILE} & set(student.settings.files)
    assert set(student.verification) == {
        "recorded_condition_error",
        "motion_largest_error",
        "motion_float16_change",
    }
    assert not (student.path / "features.onnx").exists()
    assert "what tiny-energy, Audio2Motion and PostNet made of" in student.origin.recipe
    assert report.agreement.aperture_r > 0.6
    assert report.agreement.best_lag_frames == 0
    (recording,) = report.corpus.held_out
    offline = OfflineMotion(speaker).landmarks(recording.pcm(), temperature=0.0)
    assert np.array_equal(recording.landmarks(), offline.reshape(-1, 204))
    again = OfflineMotion(student).landmarks(recording.pcm()).reshape(-1, 204)
    streamed, _ = stream(student.motion_onnx.read_bytes(), student.motion, recording.pcm())
    np.testing.assert_allclose(again, streamed, rtol=0, atol=1e-5)
