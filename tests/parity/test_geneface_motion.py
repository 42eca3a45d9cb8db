"""motion.onnx of a GeneFace speaker against GeneFace's own numbers and against torch, at any length."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from causal_networks import unsettled
from geneface_checkpoint import child, read_checkpoint
from torch import nn

from export.geneface.motion import MAX_ERROR, GenefaceMotionChain, export_geneface_motion
from export.onnx.graphs import MAX_ROUNDING, open_graph
from export.onnx.torch_graph import ExportError
from models.audio2motion import Audio2Motion, Audio2MotionConfig, f0_to_coarse
from models.landmark_subspace import LandmarkSubspace
from models.postnet import PostNet, PostNetConfig

LENGTHS = (4, 8, 20, 48, 100, 252)  # video frames

SHALLOW = {
    "feature_dimension": 12,
    "condition_channels": 16,
    "latent_channels": 4,
    "hidden_channels": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "flow_layers": 1,
    "flow_couplings": 2,
}
SMALL = Audio2MotionConfig(**SHALLOW)
SMALL_PITCH = Audio2MotionConfig(**SHALLOW, pitch_channels=8)


@pytest.fixture(scope="module")
def case(shared_fixtures):
    with np.load(shared_fixtures / "postnet" / "io.npz") as file:
        return {key: file[key] for key in file}


@pytest.fixture(scope="module")
def networks(shared_fixtures):
    """Audio2Motion from inside PostNet's checkpoint, as the reference takes it, and PostNet."""
    state = read_checkpoint(shared_fixtures / "postnet" / "model_ckpt_steps_6000.ckpt.xz")
    audio2motion, postnet = Audio2Motion().eval(), PostNet().eval()
    audio2motion.load_state_dict(child(state["audio2motion_task"], "model"))
    postnet.load_state_dict(state["model"])
    return audio2motion, postnet


@pytest.fixture(scope="module")
def features(shared_fixtures):
    return np.load(shared_fixtures / "dataset" / "aud_hubert.npy")


@pytest.fixture(scope="module")
def exported(networks, features, tmp_path_factory):
    path = tmp_path_factory.mktemp("motion") / "motion.onnx"
    return export_geneface_motion(
        GenefaceMotionChain(*networks), path=path, features=features, float32_weights=True
    )


def test_report_says_what_was_written(exported):
    assert 0 < exported.largest_error <= MAX_ERROR
    assert exported.cases == 7  # five of noise; the recording of 43 features is long enough for two
    assert (exported.block_frames, exported.latent_channels, exported.takes_pitch) == (4, 16, False)
    assert exported.float16_change is None
    assert [file.name for file in exported.path.parent.iterdir()] == ["motion.onnx"]


def test_the_graph_gives_the_references_landmarks(exported, case):
    got = open_graph(exported.path).run(None, {"features": case["chain_hubert"], "latent": case["chain_z"]})[
        0
    ]
    # float32 sums in another order; a wrong pad or order shows above 1e-2
    np.testing.assert_allclose(got, case["chain_refine_lm3d"], rtol=0, atol=1e-4)
    assert np.abs(case["chain_refine_lm3d"] - case["chain_raw_lm3d"]).max() > 0.01  # PostNet does something


def test_graph_has_the_contracts_inputs_and_outputs(exported):
    session = open_graph(exported.path)
    shapes = {entry.name: entry.shape for entry in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "features": [1, "8*steps", 1024],
        "latent": [1, 16, "steps"],
        "landmarks": [1, "4*steps", 204],
    }
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not any("weight_g" in weight.name for weight in model.graph.initializer)  # norms are worked out


def feed_of(frames, config, *, seed=0):
    random = np.random.default_rng(seed)
    feed = {
        "features": random.normal(0, 0.5, (1, 2 * frames, config.feature_dimension)),
        "latent": random.normal(size=(1, config.latent_channels, frames // config.squeeze)),
    }
    if config.pitch_channels:
        feed["f0_hz"] = random.uniform(80, 500, (1, 2 * frames)) * random.integers(0, 2, (1, 2 * frames))
    return {name: value.astype(np.float32) for name, value in feed.items()}


def torch_says(audio2motion, postnet, feed, pitch_embed=None):
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    f0 = given.get("f0_hz")
    with torch.no_grad():
        landmarks = audio2motion.predict(given["features"], f0_hz=f0, z_prior=given["latent"])
        pitch = None if pitch_embed is None else pitch_embed(f0_to_coarse(f0[:, ::2]))
        return postnet(landmarks, pitch=pitch).numpy()


@pytest.mark.parametrize("frames", LENGTHS)
def test_any_length_says_what_torch_says(exported, networks, frames):
    feed = feed_of(frames, networks[0].config)
    got = open_graph(exported.path).run(None, feed)[0]
    assert got.shape == (1, frames, 204)
    np.testing.assert_allclose(got, torch_says(*networks, feed), rtol=0, atol=MAX_ERROR)


def test_only_even_features_enter(exported, networks):
    feed = feed_of(20, networks[0].config)
    other = {**feed, "features": feed["features"].copy()}
    other["features"][:, 1::2] = 0
    session = open_graph(exported.path)
    assert np.array_equal(session.run(None, feed)[0], session.run(None, other)[0])


@pytest.fixture(scope="module")
def pitch_networks():
    torch.manual_seed(0)
    return (
        unsettled(Audio2Motion(SMALL_PITCH), 1),
        unsettled(PostNet(PostNetConfig(pitch_channels=64)), 2),
        nn.Embedding(300, 64),
    )


@pytest.fixture(scope="module")
def exported_pitch(pitch_networks, tmp_path_factory):
    recording = feed_of(100, SMALL_PITCH, seed=7)
    return export_geneface_motion(
        GenefaceMotionChain(*pitch_networks),
        path=tmp_path_factory.mktemp("pitch") / "motion.onnx",
        features=recording["features"][0],
        f0_hz=recording["f0_hz"][0],
    )


@pytest.mark.parametrize("frames", [4, 20, 100])
def test_the_pitch_variant(exported_pitch, pitch_networks, frames):
    assert exported_pitch.takes_pitch
    assert exported_pitch.largest_error <= MAX_ERROR
    session = open_graph(exported_pitch.path)
    assert [entry.name for entry in session.get_inputs()] == ["features", "latent", "f0_hz"]
    feed = feed_of(frames, SMALL_PITCH)
    expected = torch_says(*pitch_networks[:2], feed, pitch_networks[2])
    got = session.run(None, feed)[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=MAX_ROUNDING)  # the weights are float16
    unvoiced = session.run(None, {**feed, "f0_hz": np.zeros_like(feed["f0_hz"])})[0]
    assert np.abs(unvoiced - expected).max() > 2 * MAX_ROUNDING


def test_float16_weights_are_small(exported_pitch, pitch_networks):
    numbers = sum(parameter.numel() for network in pitch_networks for parameter in network.parameters())
    assert exported_pitch.path.stat().st_size < 0.6 * 4 * numbers
    assert 0 < exported_pitch.float16_change <= MAX_ROUNDING


def test_networks_that_do_not_fit_together_are_refused(pitch_networks, tmp_path):
    audio2motion, postnet, embedding = pitch_networks
    path = tmp_path / "motion.onnx"
    with pytest.raises(ExportError, match="looks both ways, got a causal one"):
        export_geneface_motion(
            GenefaceMotionChain(Audio2Motion(Audio2MotionConfig.streaming()), PostNet()), path=path
        )
    with pytest.raises(ExportError, match=r"postnet: expected one that hears pitch, .* got none"):
        export_geneface_motion(GenefaceMotionChain(audio2motion, PostNet(), embedding), path=path)
    with pytest.raises(ExportError, match=r"pitch_embed: expected one that hears pitch, .* got none"):
        export_geneface_motion(GenefaceMotionChain(audio2motion, postnet), path=path)
    with pytest.raises(ExportError, match=r"postnet: expected none that hears pitch, .* does not, got one"):
        export_geneface_motion(GenefaceMotionChain(Audio2Motion(SMALL), postnet), path=path)
    assert not path.exists()


def test_the_projection_keeps_to_what_the_face_can_do(tmp_path):
    torch.manual_seed(0)
    ways = torch.randn(3, 204)  # a face that moves in three ways
    subspace = LandmarkSubspace.fit(torch.randn(200, 3) @ ways + 0.5)
    chain = GenefaceMotionChain(unsettled(Audio2Motion(SMALL), 1), unsettled(PostNet(), 2), subspace=subspace)
    report = export_geneface_motion(chain, path=tmp_path / "motion.onnx", float32_weights=True)
    assert report.largest_error <= MAX_ERROR
    moved = open_graph(report.path).run(None, feed_of(20, SMALL))[0][0] - subspace.mean.numpy()
    assert np.linalg.matrix_rank(moved, tol=1e-3) <= 3
    assert np.abs(moved).max() > 1e-2


def test_a_broken_network_leaves_no_file(tmp_path):
    torch.manual_seed(0)
    postnet = unsettled(PostNet())
    nn.init.constant_(postnet.block3[1].bias, float("nan"))
    with pytest.raises(ExportError, match="got nan"):
        export_geneface_motion(
            GenefaceMotionChain(Audio2Motion(SMALL), postnet), path=tmp_path / "motion.onnx"
        )
    assert not list(tmp_path.iterdir())
