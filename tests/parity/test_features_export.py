"""features.onnx against the torch HuBERT that it was written from, at any length."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_hubert import random_hubert, small_hubert

from export.geneface.hubert import (
    MAX_ERROR,
    MAX_ROUNDING,
    export_features,
    normalised,
    offline_features,
)
from export.onnx.graphs import open_graph
from export.onnx.torch_graph import ExportError
from models.hubert import HubertConfig
from models.speaker_settings import feature_count
from preparation.media import read_pcm

TINY = HubertConfig(
    conv_channels=8, dimension=32, layers=1, heads=4, feed_forward=24, position_kernel=16, position_groups=4
)


@pytest.fixture(scope="module")
def speech(shared_folder):
    """A person's voice, (samples,) in [-1, 1]."""
    return (read_pcm(shared_folder / "speech" / "jfk.flac") / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def exported(speech, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.onnx"
    return export_features(small_hubert(), path=path, audio=speech)


@pytest.fixture(scope="module")
def session(exported):
    return open_graph(exported.path)


def test_report_says_what_was_written(exported):
    assert exported.cases == 12
    assert 0 < exported.largest_error <= MAX_ERROR * exported.largest_feature
    assert exported.largest_error < 1e-4  # two layers
    assert 0 < exported.float16_change <= MAX_ROUNDING * exported.largest_feature
    assert [file.name for file in exported.path.parent.iterdir()] == ["features.onnx"]  # weights inside


def test_graph_has_the_contracts_inputs_and_outputs(exported, session):
    (pcm,), (features,) = session.get_inputs(), session.get_outputs()
    assert (pcm.name, pcm.shape, pcm.type) == ("pcm", [1, "samples"], "tensor(float)")
    assert (features.name, features.shape[0], features.shape[2]) == ("features", 1, 1024)
    assert isinstance(features.shape[1], str)  # free
    model = onnx.load(exported.path)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.metadata_props
    assert not any("parametrizations" in weight.name for weight in model.graph.initializer)


@pytest.mark.parametrize("samples", [400, 719, 720, 3201, 16_000, 25_601, 48_123])
def test_any_length_says_what_torch_says(exported, session, speech, samples):
    sound = normalised(speech[:samples])[None]
    got = session.run(None, {"pcm": sound})[0]
    with torch.no_grad():
        expected = small_hubert().features(torch.from_numpy(sound)).numpy()
    assert got.shape == expected.shape == (1, feature_count(samples), 1024)
    # the weights are float16
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * exported.float16_change)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny network, exported with float32 weights, and what was said of it."""
    hubert = random_hubert(TINY)
    path = tmp_path_factory.mktemp("whole") / "features.onnx"
    return hubert, export_features(hubert, path=path, float32_weights=True)


def test_float32_weights_are_exact(whole):
    hubert, report = whole
    assert report.float16_change is None
    assert report.path.stat().st_size > 4 * sum(parameter.numel() for parameter in hubert.parameters())
    sound = normalised(np.random.default_rng(1).normal(0, 0.1, 9000).astype(np.float32))[None]
    got = open_graph(report.path).run(None, {"pcm": sound})[0]
    np.testing.assert_allclose(got, hubert.features(torch.from_numpy(sound)).numpy(), rtol=0, atol=1e-4)


def test_a_recording_is_heard_as_the_reference_hears_it(whole, speech):
    """Normalised as a whole, cut in clips of 1000 features, each encoded by torch alone."""
    hubert, report = whole
    session = open_graph(report.path)
    recording = np.tile(speech, 3)[: 16_000 * 21 + 77]
    got = offline_features(lambda sound: session.run(None, {"pcm": sound})[0], recording)
    sound = torch.from_numpy((recording - recording.mean()) / np.sqrt(recording.var() + 1e-7))[None]
    with torch.no_grad():
        expected = torch.cat([hubert(sound[:, :320_080]), hubert(sound[:, 320_000:])], dim=1)[0]
    assert got.shape == ((len(recording) - 80) // 320, 32)
    # the two normalisations round differently
    np.testing.assert_allclose(got, expected[: len(got)].numpy(), rtol=0, atol=1e-3)


def test_a_broken_network_leaves_no_file(tmp_path):
    broken = random_hubert(TINY)
    broken.encoder.encoder.transformer.layer_norm.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="got nan"):
        export_features(broken, path=tmp_path / "features.onnx")
    assert not list(tmp_path.iterdir())
