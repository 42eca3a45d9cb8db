"""A speaker's networks: opened by what the bundle says of them, and shared where they are the same."""

from __future__ import annotations

import dataclasses
import gc

import bundle_factory
import feature_bundle
import numpy as np
import pytest

from models.speaker import load_speaker
from streaming.pipeline import networks
from streaming.pipeline.engine_choice import EngineSettings
from streaming.pipeline.feature_motion import FeatureMotion
from streaming.pipeline.networks import SharedFeatures, SpeakerNetworks, network_specs, open_networks
from streaming.pipeline.onnx_engine import EngineError
from streaming.pipeline.pcm_motion import PcmMotion, frames_at_once


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Tiny"
    return load_speaker(bundle_factory.write_tiny_bundle(folder, image_size_px=64))


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Heard"
    return load_speaker(feature_bundle.write_feature_bundle(folder, image_size_px=64))


@pytest.fixture(scope="module")
def pitched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Pitched"
    return load_speaker(feature_bundle.write_feature_bundle(folder, image_size_px=64, hears_pitch=True))


class Engine:
    device = "CPU"

    def run(self, inputs):
        raise AssertionError


@pytest.fixture
def opened(monkeypatch):
    """What was opened: specs, settings."""
    calls = []

    def open_engine(network, settings, *, say):
        calls.append((network, settings))
        return Engine()

    monkeypatch.setattr(networks, "open_engine", open_engine)
    return calls


def test_a_network_that_hears_samples(tiny):
    specs = network_specs(tiny)
    assert specs.features is None
    assert dict(specs.motion.inputs) == {"pcm": (1, 8 * 640 + 192)}
    assert specs.motion.output_shape == (1, 204)
    assert dict(specs.condition.inputs) == {"window": (1, 204)}
    assert specs.condition.output_shape == (bundle_factory.CONDITION_SIZE,)
    assert frames_at_once(tiny.motion) == 1
    assert isinstance(open_networks(tiny).motion_stream(tiny.motion), PcmMotion)


def test_a_network_that_hears_features(heard):
    specs = network_specs(heard)
    assert dict(specs.features.inputs) == {"pcm": (1, 16 * 640)}
    assert specs.features.output_shape == (1, 31, 6)  # the 32nd would hear 80 samples more
    assert dict(specs.motion.inputs) == {"features": (1, 48, 6), "latent": (1, 3, 6)}
    assert specs.motion.output_shape == (1, 24, 204)
    assert frames_at_once(heard.motion) == 4
    assert isinstance(open_networks(heard).motion_stream(heard.motion), FeatureMotion)


def test_a_network_that_hears_features_and_pitch(pitched):
    specs = network_specs(pitched)
    assert specs.motion.inputs["f0_hz"] == (1, 48)
    assert open_networks(pitched).motion.run(specs.motion.zeros()).shape == (1, 24, 204)


def test_zeros_are_what_a_network_takes(heard):
    zeros = network_specs(heard).motion.zeros()
    assert {name: (values.shape, values.dtype) for name, values in zeros.items()} == {
        "features": ((1, 48, 6), np.float32),
        "latent": ((1, 3, 6), np.float32),
    }
    assert not any(values.any() for values in zeros.values())


def test_a_graph_that_does_not_fit_is_refused(heard):
    motion = dataclasses.replace(
        heard.motion, features=dataclasses.replace(heard.motion.features, dimension=7)
    )
    with pytest.raises(EngineError, match=r"features\.onnx: output 'features'"):
        open_networks(dataclasses.replace(heard, motion=motion))


def test_all_networks_are_opened_by_the_runtime_that_was_asked_for(heard, opened):
    settings = EngineSettings(engine="onnx", device="cpu")
    open_networks(heard, settings)
    assert [network.model.name for network, _ in opened] == ["features.onnx", "motion.onnx", "condition.onnx"]
    assert all(given is settings for _, given in opened)


def test_equal_feature_networks_are_opened_once(heard, pitched, opened):
    shared = SharedFeatures()
    one, two = open_networks(heard, shared=shared), open_networks(pitched, shared=shared)
    assert one.features is two.features
    assert [network.model.name for network, _ in opened].count("features.onnx") == 1
    assert open_networks(heard).features is not one.features  # nobody said that they may share


def test_another_window_is_another_network(heard, opened):
    features = dataclasses.replace(heard.motion.features, window_frames=20)
    motion = dataclasses.replace(heard.motion, features=features, window_samples=20 * 640)
    shared = SharedFeatures()
    one = open_networks(heard, shared=shared)
    other = open_networks(dataclasses.replace(heard, motion=motion), shared=shared)
    assert one.features is not other.features


def test_a_feature_network_goes_with_the_last_that_used_it(heard, opened):
    shared = SharedFeatures()
    one = open_networks(heard, shared=shared)
    two = open_networks(heard, shared=shared)
    del one
    gc.collect()
    three = open_networks(heard, shared=shared)
    assert three.features is two.features
    del two, three
    gc.collect()
    open_networks(heard, shared=shared)
    assert [network.model.name for network, _ in opened].count("features.onnx") == 2


def test_what_runs_which_network_is_said_where_it_is_not_the_cpu():
    cpu, gpu = Engine(), Engine()
    gpu.device = "A GPU (TensorRT fp16)"
    assert SpeakerNetworks(motion=cpu, condition=cpu, features=cpu).describe() == ""
    said = SpeakerNetworks(motion=gpu, condition=cpu, features=gpu).describe()
    assert said == "features and motion on A GPU (TensorRT fp16), condition on CPU"
