"""`motion.onnx` and `syncnet.onnx` against the torch modules they were made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from causal_networks import motion_windows, unsettled
from torch import nn

from export.bundle.motion import (
    MAX_ERROR,
    ExportError,
    export_motion,
    export_syncnet,
    motion_window_frames,
)
from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.features import LogMel, LogMelConfig
from models.postnet import PostNet, PostNetConfig
from models.syncnet import SyncNet, SyncNetConfig
from models.time_base import FRAME_SAMPLES
from preparation.media import read_pcm
from streaming.pipeline.pcm_motion import PcmMotion


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return (
        unsettled(Audio2Motion(Audio2MotionConfig.streaming()), 1),
        unsettled(PostNet(PostNetConfig.streaming()), 2),
    )


@pytest.fixture(scope="module")
def speech(shared_folder):
    """A person's voice, (samples,) in [-1, 1]."""
    return (read_pcm(shared_folder / "speech" / "jfk.flac")[: 16000 * 8] / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def exported(networks, speech, tmp_path_factory):
    path = tmp_path_factory.mktemp("motion") / "motion.onnx"
    return export_motion(*networks, LogMel(), path=path, audio=speech)


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_report_says_what_was_written(exported, networks):
    least = motion_window_frames(*(network.config for network in networks))
    assert exported.window_frames == least == 44
    assert exported.window_samples == 640 * least + 192
    assert exported.lookahead_frames == 4
    assert exported.largest_error <= MAX_ERROR
    assert exported.cases == 20
    assert [file.name for file in exported.path.parent.iterdir()] == ["motion.onnx"]  # weights inside


def test_graph_has_the_contracts_inputs_and_outputs(exported):
    session = session_of(exported.path)
    (pcm,), (landmarks,) = session.get_inputs(), session.get_outputs()
    assert (pcm.name, pcm.shape, pcm.type) == ("pcm", [1, exported.window_samples], "tensor(float)")
    assert (landmarks.name, landmarks.shape, landmarks.type) == ("landmarks", [1, 204], "tensor(float)")
    assert {opset.domain for opset in onnx.load(exported.path).opset_import} == {""}


def test_windows_of_a_recording_say_what_the_whole_says(exported, networks, speech):
    """Frame by frame as a stream would, against one pass over silence and the recording."""
    audio2motion, postnet = networks
    session = session_of(exported.path)
    windows = motion_windows(
        speech,
        window_frames=exported.window_frames,
        lookahead_frames=exported.lookahead_frames,
        left_context_samples=192,
    )
    streamed = np.concatenate([session.run(None, {"pcm": window[None]})[0] for window in windows])
    lead = exported.window_frames
    padded = np.pad(speech, (FRAME_SAMPLES * lead, FRAME_SAMPLES * exported.lookahead_frames))
    with torch.no_grad():
        features = LogMel().causal(torch.from_numpy(padded)[None])
        whole = postnet(audio2motion.predict(features))[0, lead:].numpy()
    assert streamed.shape == whole.shape == (len(speech) // FRAME_SAMPLES, 204)
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=MAX_ERROR)
    assert np.ptp(whole, axis=0).max() > 0.01  # something moves


class Graph:
    """What a stream runs a network by."""

    def __init__(self, path):
        self.session = session_of(path)

    def run(self, inputs):
        return self.session.run(None, inputs)[0][0]


def test_a_stream_of_the_graph_knows_nothing_of_sound_after_160_ms(exported, speech):
    """Sound after a frame's end and its look-ahead changes no frame up to it; the last sample within does."""
    graph, frame = Graph(exported.path), 30
    first_later = FRAME_SAMPLES * (frame + 1) + 2560
    sound = speech[: FRAME_SAMPLES * 50]
    later, within = sound.copy(), sound.copy()
    later[first_later:] = 0.5
    within[first_later - 1] = 0.5

    def moved(pcm):
        stream = PcmMotion(
            graph, window_samples=exported.window_samples, lookahead_frames=exported.lookahead_frames
        )
        frames = [*stream.push(pcm), *stream.finish()]
        return np.stack([found.landmarks.copy() for found in frames])

    before, after, changed = moved(sound), moved(later), moved(within)
    assert len(before) == 50
    assert np.array_equal(before[: frame + 1], after[: frame + 1])
    assert np.array_equal(before[:frame], changed[:frame])
    assert not np.array_equal(before[frame], changed[frame])
    assert not np.array_equal(before[frame + 1], after[frame + 1])


def test_the_same_window_gives_the_same_bits(exported, speech):
    session = session_of(exported.path)
    window = speech[None, : exported.window_samples]
    first = session.run(None, {"pcm": window})[0]
    session.run(None, {"pcm": window[:, ::-1].copy()})
    assert np.array_equal(first, session.run(None, {"pcm": window})[0])


def test_runs_without_postnet(networks, tmp_path):
    report = export_motion(networks[0], None, LogMel(), path=tmp_path / "m.onnx")
    assert report.window_frames == networks[0].config.receptive_field_frames
    assert report.largest_error <= MAX_ERROR


def test_advanced_lips_are_those_of_a_moment_later(networks, exported, tmp_path):
    advanced = export_motion(*networks, LogMel(), path=tmp_path / "motion.onnx", advance_features=1)
    assert advanced.window_samples == exported.window_samples
    assert advanced.lookahead_frames == exported.lookahead_frames
    pcm = np.random.default_rng(3).normal(0, 0.1, exported.window_samples).astype(np.float32)
    pcm[-FRAME_SAMPLES:] = 0  # so that the newest feature, which is repeated, is what comes next
    later = np.concatenate([pcm[FRAME_SAMPLES // 2 :], np.zeros(FRAME_SAMPLES // 2, np.float32)])
    found = session_of(advanced.path).run(None, {"pcm": pcm[None]})[0]
    expected = session_of(exported.path).run(None, {"pcm": later[None]})[0]
    before = session_of(exported.path).run(None, {"pcm": pcm[None]})[0]
    assert np.abs(found - expected).max() < MAX_ERROR
    assert np.abs(found - before).max() > 100 * MAX_ERROR


def test_export_leaves_the_networks_as_they_were(networks, exported):
    audio2motion, _ = networks
    features = torch.zeros(1, 2 * 10, 80)
    with torch.no_grad():
        assert audio2motion.predict(features).shape == (1, 6, 204)
    assert any(key.endswith("weight_g") for key in audio2motion.state_dict())


def test_what_cannot_stream_is_refused(networks, tmp_path):
    audio2motion, postnet = networks
    path = tmp_path / "motion.onnx"
    with pytest.raises(ExportError, match="causal=True in both"):
        export_motion(audio2motion, PostNet(), LogMel(), path=path)
    with pytest.raises(ExportError, match="expected 80 numbers, got 40"):
        export_motion(audio2motion, postnet, LogMel(LogMelConfig(bands=40)), path=path)
    assert not path.exists()


def test_a_broken_network_leaves_no_file(networks, tmp_path):
    torch.manual_seed(0)
    broken = Audio2Motion(Audio2MotionConfig.streaming()).eval()
    nn.init.constant_(broken.vae.decoder.out_proj.bias, float("nan"))
    with pytest.raises(ExportError, match="got nan"):
        export_motion(broken, None, LogMel(), path=tmp_path / "motion.onnx")
    assert not list(tmp_path.iterdir())


def test_exported_embeddings_are_those_of_torch(tmp_path):
    torch.manual_seed(0)
    syncnet = unsettled(SyncNet(SyncNetConfig.streaming()), 3)
    report = export_syncnet(syncnet, path=tmp_path / "syncnet.onnx")
    assert report.largest_error <= MAX_ERROR
    session = session_of(report.path)
    assert [i.name for i in session.get_inputs()] == ["audio", "mouth"]
    assert [o.name for o in session.get_outputs()] == ["audio_embedding", "mouth_embedding"]
    audio, mouth = session.run(
        None, {"audio": np.zeros((5, 10, 80), np.float32), "mouth": np.ones((5, 5, 60), np.float32)}
    )
    assert audio.shape == mouth.shape == (5, 128)
