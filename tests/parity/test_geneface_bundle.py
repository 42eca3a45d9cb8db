"""A bundle imported from GeneFace's own files: verified, streamed like May, refused where it must be."""

from __future__ import annotations

import dataclasses
import json
import shutil
import wave

import numpy as np
import pytest
from geneface_checkpoint import write_checkpoints
from safetensors.torch import save_file
from small_hubert import SMALL, hugging_face_config, hugging_face_state, small_hubert

from export import recorded_cases
from export.cli import main
from export.geneface.dataset import read_dataset
from export.geneface.importer import GenefaceImportError, import_geneface
from export.geneface.pickles import GenefaceFileError
from export.requests import GenefaceRequest
from export.students.offline_motion import OfflineMotion
from export.verification import verify_bundle
from models.speaker import load_speaker
from streaming.pipeline.networks import open_networks
from streaming.pipeline.pipeline import Pipeline
from streaming.pipeline.renderers import make_renderer, open_cpu_raymarcher

SECONDS = 3


@pytest.fixture(scope="module")
def sources(shared_fixtures, tmp_path_factory):
    """What `geneface-export geneface` is given: the parity cases' files and a small HuBERT."""
    root = tmp_path_factory.mktemp("geneface")
    hubert = root / "hubert"
    hubert.mkdir()
    state = {key: value.contiguous() for key, value in hugging_face_state(small_hubert()).items()}
    save_file(state, hubert / "model.safetensors")
    (hubert / "config.json").write_text(json.dumps(hugging_face_config(SMALL)))
    return {
        "checkpoints": write_checkpoints(shared_fixtures, root / "checkpoints"),
        "data": shared_fixtures / "dataset" / "trainval_dataset.npy",
        "speaker": "May",
        "hubert": hubert,
    }


@pytest.fixture(scope="module")
def speaker(sources, tmp_path_factory):
    return import_geneface(GenefaceRequest(**sources, out=tmp_path_factory.mktemp("bundles") / "May"))


@pytest.fixture(scope="module")
def speech():
    random = np.random.default_rng(0)
    loudness = 0.1 + 0.1 * np.sin(np.arange(16000 * SECONDS) / 900)
    return (loudness * random.normal(0, 0.3, 16000 * SECONDS)).astype(np.float32)


def test_every_part_is_within_its_limit_of_its_source(speaker):
    found = speaker.verification
    assert found["recorded_landmarks_error"] <= 1e-4
    assert found["recorded_picture_psnr_db"] >= 45
    assert recorded_cases.LIMITS.keys() <= found.keys()
    assert {"features_largest_error", "motion_largest_error", "condition_largest_error"} <= found.keys()


def test_what_the_bundle_says_of_itself(speaker, sources):
    data = read_dataset(sources["data"])
    motion = speaker.motion
    assert motion.kind == "features"
    assert (motion.lookahead_frames, motion.features.hop_frames) == (8 + 1, 2)
    np.testing.assert_array_equal(motion.landmark_mean, data.landmark_mean)
    np.testing.assert_array_equal(motion.landmark_std, data.landmark_std)
    assert speaker.condition.window_frames == 5
    assert not speaker.synthetic
    assert "nobody stated" in speaker.origin.consent
    assert speaker.scene.torso is not None
    np.testing.assert_array_equal(speaker.scene.background, data.background)
    assert "the only one" in (speaker.path / "MODEL_CARD.md").read_text()


def test_the_head_s_path_is_the_video_s_in_decimetres_there_and_back(speaker, sources):
    data = read_dataset(sources["data"])  # 22 frames: too short for a loop
    frames = len(data.poses)
    assert len(speaker.poses) == 2 * frames - 2
    np.testing.assert_array_equal(speaker.poses[frames], speaker.poses[frames - 2])
    np.testing.assert_allclose(speaker.poses[:frames, :3, 3], 10 * data.poses_smoothed[:, :3, 3], rtol=1e-6)
    assert speaker.scene.camera.scale == pytest.approx(0.4)


def test_an_imported_speaker_streams_through_the_pipeline(speaker, speech):
    raymarcher = open_cpu_raymarcher(speaker, threads=1)
    try:
        renderer = make_renderer(speaker, raymarcher, speaker.image_size_px)
        pipeline = Pipeline(speaker, renderer, networks=open_networks(speaker))
        with pipeline:
            pipeline.start_feed(speech[at : at + 320] for at in range(0, len(speech), 320))
            frames = list(pipeline)
    finally:
        raymarcher.close()
    assert [frame.index for frame in frames] == list(range(25 * SECONDS))
    moved = np.stack([frame.landmarks for frame in frames])
    assert np.isfinite(moved).all()
    assert (moved.std(axis=0) > 0).mean() > 0.5
    assert len({frame.picture.tobytes() for frame in frames}) > len(frames) // 2


def test_an_imported_speaker_moves_offline_as_long_as_the_sound(speaker, speech):
    landmarks = OfflineMotion(speaker).landmarks(speech)
    assert landmarks.shape == (25 * SECONDS, 68, 3)
    assert np.isfinite(landmarks).all()


def test_verify_runs_the_recorded_cases_again(speaker):
    checks = {check.name: check for check in verify_bundle(speaker.path)}
    for name in recorded_cases.LIMITS:
        assert checks[f"{name}, here"].holds, checks[f"{name}, here"]


def test_verify_sees_a_network_that_answers_otherwise(speaker, sources, tmp_path):
    cases = recorded_cases.read_cases(speaker)
    parts = recorded_cases.ExportedParts(
        features_onnx=speaker.features_onnx,
        motion_onnx=speaker.motion_onnx,
        condition_onnx=speaker.condition_onnx,
        scene=speaker.scene,
    )
    wrong = dataclasses.replace(
        cases,
        motion=[{**case, "landmarks": case["landmarks"] + np.float32(1e-3)} for case in cases.motion],
        pictures=[{**case, "picture": 255 - case["picture"]} for case in cases.pictures],
    )
    found = recorded_cases.replay(wrong, parts)
    assert found["recorded_landmarks_error"] == pytest.approx(1e-3, rel=0.01)
    assert found["recorded_picture_psnr_db"] < 45
    assert found["recorded_features_error"] <= 2e-2


def test_the_command_imports_a_head_alone_and_prints_the_table(sources, tmp_path, capsys):
    out = tmp_path / "Head"
    origin = tmp_path / "origin.json"
    stated = {
        "subject": "a made-up face", "consent": "none needed", "data": "parity cases", "recipe": "random",
        "synthetic": True, "licence": "CC0",
    }  # fmt: skip
    origin.write_text(json.dumps(stated))
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(sources["checkpoints"] / "May", checkpoints / "May")
    shutil.rmtree(checkpoints / "May" / "lm3d_radnerf_torso")
    arguments = {
        **sources,
        "checkpoints": checkpoints,
        "out": out,
        "name": "Head only",
        "origin": origin,
        "check_poses": 1,
    }
    code = main(["geneface", *(f"--{key.replace('_', '-')}={value}" for key, value in arguments.items())])
    printed = capsys.readouterr().out
    assert code == 0
    made = load_speaker(out)
    assert made.scene.torso is None
    assert made.name == "Head only"
    assert (made.origin.subject, made.licence, made.synthetic) == ("a made-up face", "CC0", True)
    assert "recorded_picture_psnr_db, at export" in printed
    assert ">= 45" in printed


def test_sound_of_another_encoder_is_refused_and_nothing_is_written(sources, tmp_path, speech):
    data = read_dataset(sources["data"])
    samples = np.resize(speech, 320 * len(data.hubert) + 80)
    sound = tmp_path / "aud.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    out = tmp_path / "May"
    with pytest.raises(GenefaceImportError, match=r"hubert: expected features of --audio within 0\.1"):
        import_geneface(GenefaceRequest(**sources, out=out, audio=sound))
    assert not out.exists()


def test_another_speaker_s_name_is_refused(sources, tmp_path):
    out = tmp_path / "Obama"
    with pytest.raises(GenefaceFileError, match="Obama"):
        import_geneface(GenefaceRequest(**{**sources, "speaker": "Obama"}, out=out))
    assert not out.exists()
