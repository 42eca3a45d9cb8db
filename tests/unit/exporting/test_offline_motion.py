"""A whole recording said at once: what goes into the networks, and that pieces make no difference."""

from __future__ import annotations

import numpy as np
import pytest
from bundle_factory import write_tiny_bundle
from causal_networks import motion_windows
from feature_bundle import REACH_FRAMES, write_feature_bundle

from export.geneface.hubert import normalised
from export.onnx.graphs import open_graph
from export.students import offline_motion
from export.students.offline_motion import OfflineMotion
from models.latent_noise import latent_noise
from models.pitch import f0_hz
from models.speaker import load_speaker


def voice(samples, seed=0):
    """A humming voice whose loudness and pitch change."""
    random = np.random.default_rng(seed)
    time_s = np.arange(samples) / 16000
    tone = np.sign(np.sin(2 * np.pi * (140 * time_s + 8 * np.sin(2 * time_s))))
    loud = 0.1 * (1 + np.sin(2 * np.pi * 1.3 * time_s))
    return (loud * tone + 0.01 * random.normal(size=samples)).astype(np.float32)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return load_speaker(write_feature_bundle(tmp_path_factory.mktemp("features") / "Two"))


@pytest.fixture(scope="module")
def pitch_speaker(tmp_path_factory):
    path = tmp_path_factory.mktemp("pitch") / "Pitch"
    return load_speaker(write_feature_bundle(path, hears_pitch=True, seed=3))


def in_one_go(speaker, pcm, *, temperature=1.0):
    """A recording shorter than a clip through the graphs by hand; (T, 68, 3)."""
    of = speaker.motion.features
    heard = open_graph(speaker.features_onnx).run(None, {"pcm": normalised(pcm)[None]})[0]
    heard = heard[:, : (len(pcm) - 80) // 320]
    steps = -(-heard.shape[1] // (2 * of.block_frames))
    length = 2 * of.block_frames * steps
    noise = latent_noise(seed=of.seed, first_step=0, steps=steps, channels=of.latent_channels)
    feed = {
        "features": np.pad(heard, ((0, 0), (0, length - heard.shape[1]), (0, 0))),
        "latent": np.float32(temperature) * noise,
    }
    if of.hears_pitch:
        pitch = f0_hz(pcm)[:length]
        feed["f0_hz"] = np.pad(pitch, (0, length - len(pitch)))[None]
    return open_graph(speaker.motion_onnx).run(None, feed)[0][0, : len(pcm) // 640].reshape(-1, 68, 3)


@pytest.mark.parametrize("samples", [640, 719, 720, 2560, 5120, 5199, 5200, 40_001])
def test_a_recording_of_any_length(speaker, samples):
    pcm = voice(samples)
    got = OfflineMotion(speaker).landmarks(pcm)
    assert got.dtype == np.float32
    assert got.shape == (samples // 640, 68, 3)
    np.testing.assert_allclose(got, in_one_go(speaker, pcm), rtol=0, atol=1e-5)  # on one core or all


def test_less_than_a_frame_is_no_frame(speaker):
    motion = OfflineMotion(speaker)
    assert motion.landmarks(np.zeros(639, np.float32)).shape == (0, 68, 3)
    assert motion.landmarks(np.zeros(0, np.float32)).shape == (0, 68, 3)


def test_the_temperature_scales_the_noise(speaker):
    pcm, motion = voice(32_000), OfflineMotion(speaker)
    own, cold, warm = motion.landmarks(pcm), motion.landmarks(pcm, temperature=0), motion.landmarks(pcm)
    assert np.array_equal(own, warm)
    np.testing.assert_allclose(own, motion.landmarks(pcm, temperature=1.0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(cold, in_one_go(speaker, pcm, temperature=0), rtol=0, atol=1e-5)
    assert np.abs(own - cold).max() > 0.01


def test_the_pitch_variant_takes_pitch(pitch_speaker):
    pcm = voice(48_000)
    got = OfflineMotion(pitch_speaker).landmarks(pcm)
    assert f0_hz(pcm).any()
    np.testing.assert_allclose(got, in_one_go(pitch_speaker, pcm), rtol=0, atol=1e-5)


def test_pitch_stands_at_its_time_across_clips(monkeypatch):
    monkeypatch.setattr(offline_motion, "f0_hz", lambda pcm: pcm[: len(pcm) - 599 : 320])
    pcm = np.arange(700_000, dtype=np.float32)
    got = offline_motion._pitch(pcm, 2200)
    known = (700_000 - 600) // 320 + 1
    np.testing.assert_array_equal(got[:known], pcm[::320][:known])
    assert known == 2186
    assert not got[known:].any()
    np.testing.assert_array_equal(offline_motion._pitch(pcm, 900), pcm[::320][:900])


@pytest.mark.parametrize("kind", ["speaker", "pitch_speaker"])
def test_motion_in_pieces_is_that_of_the_whole(kind, request, monkeypatch):
    speaker = request.getfixturevalue(kind)
    pcm, motion = voice(16_000 * 12 + 333), OfflineMotion(speaker)
    whole = motion.landmarks(pcm)
    monkeypatch.setattr(offline_motion, "PIECE_FRAMES", 50)  # no whole number of latent steps
    monkeypatch.setattr(offline_motion, "CONTEXT_FRAMES", REACH_FRAMES)
    np.testing.assert_allclose(motion.landmarks(pcm), whole, rtol=0, atol=1e-6)
    monkeypatch.setattr(offline_motion, "CONTEXT_FRAMES", 0)
    assert np.abs(motion.landmarks(pcm) - whole).max() > 1e-3  # what the context is for


def test_a_causal_speaker_says_what_a_stream_says(tmp_path):
    speaker = load_speaker(write_tiny_bundle(tmp_path / "Causal", window_frames=8, lookahead_frames=4))
    pcm = voice(640 * 20 + 100)
    got = OfflineMotion(speaker).landmarks(pcm, temperature=0.5)  # it has no latent
    assert got.shape == (20, 68, 3)
    windows = motion_windows(pcm, window_frames=8, lookahead_frames=4, left_context_samples=192)
    session = open_graph(speaker.motion_onnx)
    streamed = [session.run(None, {"pcm": window[None]})[0].reshape(68, 3) for window in windows]
    np.testing.assert_allclose(got[:15], streamed[:15], rtol=0, atol=1e-6)
    assert np.ptp(got, axis=0).max() > 0.1


def test_a_causal_speaker_hears_the_recordings_end_backwards(tmp_path):
    speaker = load_speaker(write_tiny_bundle(tmp_path / "Causal", window_frames=8, lookahead_frames=4))
    pcm = voice(640 * 6 + 100)
    heard = []
    motion = OfflineMotion(speaker)
    motion._motion = type("Heard", (), {"run": lambda _, __, feed: heard.append(feed["pcm"][0]) or [
        np.zeros((1, 204), np.float32)
    ]})()  # fmt: skip
    motion.landmarks(pcm)
    assert len(heard) == 6
    whole = np.concatenate([np.zeros(10_000, np.float32), pcm, pcm[::-1][: 640 * 10 - len(pcm)]])
    for frame, window in enumerate(heard):
        end = 10_000 + 640 * (frame + 5)
        np.testing.assert_array_equal(window, whole[end - 5312 : end])


def test_named_providers_are_used(speaker):
    motion = OfflineMotion(speaker, providers=["CPUExecutionProvider"])
    assert motion._motion.get_providers() == ["CPUExecutionProvider"]
    assert motion._features.get_providers() == ["CPUExecutionProvider"]
