"""A tiny bundle of kind "features", as an imported speaker has it: `import feature_bundle` in any test.

`features.onnx` is the energy of a few filters in each feature's 400 samples, and a little of the whole
window's mean, as a transformer's features depend on all it hears. `motion.onnx` looks four frames both ways,
hears its latent, and the pitch where the bundle says so. All else is `bundle_factory`'s.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from bundle_factory import open_mouth, tiny_parts
from onnx import TensorProto, helper, numpy_helper

from export.bundle.writer import BundleParts, write_bundle
from models.speaker_settings import FeatureSettings

FILTERS_HZ = (120, 180, 300, 500, 730, 1500)
DIMENSION = len(FILTERS_HZ)
LATENT_CHANNELS = 3
REACH_FRAMES = 4  # that the motion network looks each way
FEATURE_SAMPLES, FEATURE_STEP_SAMPLES = 400, 320


def write_feature_bundle(path: Path, **changes) -> Path:
    """Returns the bundle folder `path`, written from `feature_parts(**changes)`."""
    write_bundle(path, feature_parts(**changes))
    return path


def feature_parts(
    *,
    seed: int = 0,
    window_frames: int = 24,
    lookahead_frames: int = 9,
    heard_frames: int = 16,
    kept_frames: int = 10,
    hop_frames: int = 4,
    block_frames: int = 4,
    temperature: float = 1.0,
    hears_pitch: bool = False,
    **changes,
) -> BundleParts:
    """Returns the parts of the bundle; the same seed gives the same bytes.

    Args:
        seed: of the weights.
        window_frames: that one call of motion.onnx sees.
        lookahead_frames: that a frame waits for at most.
        heard_frames: that one call of features.onnx hears.
        kept_frames, hop_frames, block_frames, temperature, hears_pitch: see `FeatureSettings`.
        changes: for `bundle_factory.tiny_parts`.
    """
    parts = tiny_parts(seed=seed, **changes)
    features = FeatureSettings(
        name="tiny-energy",
        dimension=DIMENSION,
        window_frames=heard_frames,
        kept_frames=kept_frames,
        hop_frames=hop_frames,
        block_frames=block_frames,
        latent_channels=LATENT_CHANNELS,
        temperature=temperature,
        seed=seed,
        hears_pitch=hears_pitch,
    )
    motion = dataclasses.replace(
        parts.motion,
        kind="features",
        features=features,
        window_samples=features.window_samples,
        window_frames=window_frames,
        lookahead_frames=lookahead_frames,
    )
    random = np.random.default_rng([seed, 0xFEA])
    return dataclasses.replace(
        parts,
        motion=motion,
        features_onnx=energy_features_onnx(random),
        motion_onnx=two_way_motion_onnx(features, random),
    )


def energy_features_onnx(random: np.random.Generator) -> bytes:
    """Returns features.onnx: `pcm` (1, samples) to `features` (1, (samples - 400) // 320 + 1, DIMENSION)."""
    time_s = np.arange(FEATURE_SAMPLES) / 16000
    waves = 2 * np.pi * np.outer(FILTERS_HZ, time_s) + random.uniform(0, 6, (DIMENSION, 1))
    filters = np.cos(waves) * np.hanning(FEATURE_SAMPLES) / 60
    constants = {
        "channel": np.array([1], np.int64),
        "filters": filters[:, None].astype(np.float32),
        "share": np.float32(0.1).reshape(1, 1, 1),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["pcm", "channel"], ["sound"]),
        helper.make_node("Conv", ["sound", "filters"], ["filtered"], strides=[FEATURE_STEP_SAMPLES]),
        helper.make_node("Mul", ["filtered", "filtered"], ["energy"]),
        helper.make_node("ReduceMean", ["energy"], ["mean"], axes=[2], keepdims=1),
        helper.make_node("Mul", ["mean", "share"], ["context"]),
        helper.make_node("Add", ["energy", "context"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["features"], perm=[0, 2, 1]),
    ]
    return _model(nodes, constants, {"pcm": (1, "samples")}, ("features", (1, "steps", DIMENSION)))


def two_way_motion_onnx(features: FeatureSettings, random: np.random.Generator) -> bytes:
    """Returns motion.onnx: the mouth opens with the features around a frame, sways with the latent."""
    block, channels = features.block_frames, features.latent_channels
    width = 2 * REACH_FRAMES + 1
    smile = np.zeros((68, 3), np.float32)
    smile[48:68, 0] = random.normal(0, 0.2, 20)
    kernel = np.abs(random.normal(0, 0.04, (2, features.dimension, width)))
    kernel[:, :, REACH_FRAMES] += 0.08
    constants = {
        "start": np.array([0], np.int64),
        "end": np.array([2**62], np.int64),
        "axis": np.array([1], np.int64),
        "step": np.array([2], np.int64),
        "kernel": kernel.astype(np.float32),
        "spread": random.normal(0, 0.05, (channels, 2, block)).astype(np.float32),
        "open": np.stack([open_mouth(), smile]).reshape(1, 2, 204),
    }
    nodes = [
        helper.make_node("Slice", ["features", "start", "end", "axis", "step"], ["even"]),
        helper.make_node("Transpose", ["even"], ["by_channel"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["by_channel", "kernel"], ["heard"], pads=[REACH_FRAMES, REACH_FRAMES]),
        helper.make_node("ConvTranspose", ["latent", "spread"], ["sway"], strides=[block]),
        helper.make_node("Add", ["heard", "sway"], ["moved"]),
        helper.make_node("Tanh", ["voiced" if features.hears_pitch else "moved"], ["bounded"]),
        helper.make_node("Transpose", ["bounded"], ["opening"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["opening", "open"], ["landmarks"]),
    ]
    inputs = {
        "features": (1, "steps", features.dimension),
        "latent": (1, channels, "blocks"),
    }
    if features.hears_pitch:
        inputs["f0_hz"] = (1, "steps")
        constants["per_hz"] = np.float32(1e-3)
        nodes[5:5] = [
            helper.make_node("Slice", ["f0_hz", "start", "end", "axis", "step"], ["even_f0"]),
            helper.make_node("Mul", ["even_f0", "per_hz"], ["pitch"]),
            helper.make_node("Unsqueeze", ["pitch", "axis"], ["pitch_row"]),
            helper.make_node("Add", ["moved", "pitch_row"], ["voiced"]),
        ]
    return _model(nodes, constants, inputs, ("landmarks", (1, "frames", 204)))


def _model(nodes, constants, inputs, output) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
