"""Figures of a track against a geometry that is known, and one line for a set that is none."""

import json

import face_videos
import numpy as np
import pytest

from benchmarks import face_mesh
from preparation.face_mesh.track import FaceTrack

RNG = np.random.default_rng(0)


def track(landmarks, found=None):
    found = np.ones(len(landmarks), bool) if found is None else found
    points = np.concatenate([landmarks, np.zeros_like(landmarks[..., :1])], axis=2).astype(np.float32)
    times_s = np.arange(len(landmarks)) / 25
    return FaceTrack(times_s=times_s, points=points * found[:, None, None], found=found, size_px=(512, 512))


def test_a_constant_offset_is_no_motion():
    truth = RNG.normal(250, 50, (40, 68, 2)).astype(np.float32)
    offset = np.zeros((68, 2))
    offset[face_mesh.PARTS["jaw"]] = (3, 4)
    figures = face_mesh.compare(track(truth + offset), truth)
    assert figures.raw_px["jaw"] == pytest.approx(5, rel=1e-3)
    assert figures.raw_px["eyes"] == 0
    assert max(figures.motion_px.values()) < 1e-4
    assert figures.correlation == pytest.approx({"opening": 1, "width": 1, "lids": 1})


def test_pictures_without_a_face_do_not_count():
    truth = RNG.normal(250, 50, (40, 68, 2)).astype(np.float32)
    figures = face_mesh.compare(track(truth, found=np.arange(40) % 4 > 0), truth)
    assert (figures.pictures, figures.found) == (40, 0.75)
    assert max(figures.raw_px.values()) == 0


def test_noise_shows_as_motion_tremble_and_lower_correlation():
    truth = np.cumsum(RNG.normal(0, 1, (400, 68, 2)), axis=0)
    noisy = truth + RNG.normal(0, 2, truth.shape)
    figures = face_mesh.compare(track(noisy), truth.astype(np.float32))
    mean = 2 * np.sqrt(np.pi / 2)  # of a vector of two such numbers
    assert figures.motion_px["jaw"] == pytest.approx(mean, rel=0.05)
    assert figures.tremble_px == pytest.approx(mean * np.sqrt(6), rel=0.05)
    assert 0.5 < figures.correlation["width"] < 1


def test_a_set_is_measured_and_the_table_printed_last(tmp_path, capsys):
    face_videos.write(
        tmp_path / "video.mp4", [face_videos.may("open"), face_videos.may("closed")] * 2, codec="libx264"
    )
    truth = RNG.normal(128, 20, (4, 68, 2)).astype(np.float32)
    np.savez(tmp_path / "truth.npz", landmarks_2d=truth)
    assert face_mesh.main(["--data", str(tmp_path), "--no-smooth", "--json", str(tmp_path / "f.json")]) == 0
    assert "4 pictures, a face in 100.0%" in capsys.readouterr().out
    written = json.loads((tmp_path / "f.json").read_text())
    assert (written["crops"], written["smooth"], written["pictures"]) == (1, False, 4)
    np.savez(tmp_path / "truth.npz", landmarks_2d=truth[:3])
    assert face_mesh.main(["--data", str(tmp_path), "--no-smooth"]) == 2
    assert "expected 4 frames, as the video has, got 3" in capsys.readouterr().err


def test_a_folder_without_a_set_is_one_line(tmp_path, capsys):
    assert face_mesh.main(["--data", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
