"""HuBERT loaded from its usual sources, exported to features.onnx, and run offline as GeneFace runs it."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from models.hubert import (
    CONV_KERNELS,
    CONV_STRIDES,
    HUBERT_NAME,
    Hubert,
    HubertConfig,
    HubertError,
    hubert_from_state,
)
from models.settings import show
from models.speaker_settings import FEATURE_SAMPLES
from models.time_base import FEATURE_HOP_SAMPLES, SAMPLE_RATE_HZ
from models.torchaudio_pair import import_torchaudio

from ..onnx.graphs import strip_metadata, to_float16_weights
from ..onnx.torch_graph import compare, refuse_if_wrong, write_graph
from ..regular_file import open_regular
from .pickles import read_torch

CLIP_FEATURES = 1000
"""GeneFace encodes a long recording in clips of 20 s, each as if nothing stood beside it."""
MIN_VARIANCE = 1e-7
MAX_ERROR = 1e-3
"""Of the graph, as a share of the largest feature: float32 through 24 layers; a wrong graph is off by 0.1."""
MAX_ROUNDING = 2e-2
"""Of the features by rounding the weights to float16, as a share of the largest feature."""
TRIED_SAMPLES = (FEATURE_SAMPLES, 1039, SAMPLE_RATE_HZ, 30721, 4 * SAMPLE_RATE_HZ)

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_WAY_OUT = f"give the folder of Hugging Face's {HUBERT_NAME} with config.json and model.safetensors"


# Sources --------------------------------------------------------------------------------------------


def load_hubert(source: Path | None, *, config: HubertConfig | None = None) -> Hubert:
    """Returns HuBERT with its weights.

    Args:
        source: A folder in Hugging Face's layout (`config.json` beside `model.safetensors` or
            `pytorch_model.bin`), a torchaudio `.pth` file, or None for torchaudio's own, which is downloaded
            once (1.3 GB) into torch's cache.
        config: The sizes of a `.pth` file's weights; hubert-large's if absent.

    Raises:
        HubertError: The source is missing or unusable; one line.
        GenefaceFileError: A torch file is broken or holds anything but weights; one line.
    """
    if source is None:
        return hubert_from_state(_downloaded(), HubertConfig(), source="HUBERT_ASR_LARGE")
    source = Path(source)
    if source.is_dir():
        config = _folder_config(source / "config.json")
        file = next((source / name for name in _WEIGHT_FILES if (source / name).is_file()), None)
        if file is None:
            raise HubertError(
                f"{source}: weights: expected {' or '.join(_WEIGHT_FILES)}, got neither; {_WAY_OUT}"
            )
        return hubert_from_state(_weights(file), config, source=str(file))
    if not source.is_file():
        raise HubertError(f"{source}: expected a folder or a file, got no such path; {_WAY_OUT}")
    return hubert_from_state(_weights(source), config or HubertConfig(), source=str(source))


def _downloaded() -> dict[str, Tensor]:
    try:
        network = import_torchaudio().pipelines.HUBERT_ASR_LARGE.get_model()
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise HubertError(
            f"HuBERT: expected to download torchaudio's HUBERT_ASR_LARGE, got {show(str(error))}; "
            f"go online once, or {_WAY_OUT}"
        ) from None
    state: dict[str, Tensor] = network.state_dict()
    return state


def _weights(file: Path) -> Mapping[str, Tensor]:
    try:
        state: object = load_file(file) if file.suffix == ".safetensors" else read_torch(file)
    except SafetensorError as error:
        raise HubertError(
            f"{file}: expected safetensors, got something else ({show(str(error))}); {_WAY_OUT}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise HubertError(f"{file}: expected weights by key, got {show(state)}; {_WAY_OUT}")
    return state


_FIXED = {
    "model_type": "hubert",
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
}
_ASSUMED = {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False, "layer_norm_eps": 1e-5}
"""What `config.json` must say; of the second, older files say nothing."""
_SIZES = {
    "conv_dim": "conv_channels",
    "hidden_size": "dimension",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "num_conv_pos_embeddings": "position_kernel",
    "num_conv_pos_embedding_groups": "position_groups",
}
_MAX_SIZE = 1 << 16
_MAX_CONFIG_BYTES = 1 << 20


def _folder_config(file: Path) -> HubertConfig:
    """Returns the sizes in a `config.json` whose other settings are HuBERT-large's."""

    def refused(key: str, expected: str, got: object) -> HubertError:
        return HubertError(f"{file}: {key}: expected {expected}, got {show(got)}; {_WAY_OUT}")

    try:
        with open_regular(file) as stream:
            document = json.loads(stream.read(_MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise HubertError(f"{file}: expected a file, got no such file; {_WAY_OUT}") from None
    except OSError as error:
        raise HubertError(f"{file}: expected a file, got {error.strerror}; {_WAY_OUT}") from None
    except (ValueError, RecursionError):
        raise HubertError(f"{file}: expected JSON, got something else; {_WAY_OUT}") from None
    if not isinstance(document, dict):
        raise refused("content", "an object", document)
    document = {**_ASSUMED, **document}
    for key, expected in {**_FIXED, **_ASSUMED}.items():
        if document.get(key) != expected:
            shown = str(expected) if isinstance(expected, list) else show(expected)
            raise refused(key, shown, document.get(key))
    channels = document.get("conv_dim")
    if not isinstance(channels, list) or not channels or channels != channels[:1] * len(CONV_KERNELS):
        raise refused("conv_dim", f"{len(CONV_KERNELS)} equal numbers", channels)
    bias = document.get("conv_bias")
    if not isinstance(bias, bool):
        raise refused("conv_bias", "true or false", bias)
    sizes: dict[str, int] = {}
    for key, name in _SIZES.items():
        size = channels[0] if key == "conv_dim" else document.get(key)
        if type(size) is not int or not 1 <= size <= _MAX_SIZE:
            raise refused(key, f"1 to {_MAX_SIZE}", size)
        sizes[name] = size
    try:
        return HubertConfig(conv_bias=bias, **sizes)
    except ValueError as error:
        raise HubertError(f"{file}: {error}; {_WAY_OUT}") from None


# The graph ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FeaturesExportReport:
    """features.onnx and its error against torch.

    Attributes:
        path: The graph.
        largest_error: Largest difference between the float32 graph and torch over all tried sounds.
        float16_change: Largest change of a feature by rounding the weights; None where they are float32.
        largest_feature: Of the tried sounds, to compare the two with.
        cases: How many sounds were tried.
    """

    path: Path
    largest_error: float
    float16_change: float | None
    largest_feature: float
    cases: int


def export_features(
    hubert: Hubert, *, path: Path, audio: F32 | None = None, float32_weights: bool = False
) -> FeaturesExportReport:
    """Writes features.onnx to `path` and returns its error against torch.

    The graph takes `pcm` (1, samples) of zero mean and unit variance and gives `features`
    (1, (samples - 400) // 320 + 1, dimension). `samples` is free, from 400 on.

    Args:
        hubert: The network.
        path: Where the graph goes; one file.
        audio: (n,) at 16 kHz to compare on, besides noise.
        float32_weights: Keep the weights as they are, twice the size.

    Raises:
        ExportError: The graph differs from its source.
        GraphError: Rounded weights change the features too much.
    """
    samples = torch.export.Dim("samples", min=FEATURE_SAMPLES, max=1 << 24)
    write_graph(
        hubert,
        (torch.zeros(1, 16123),),
        path,
        inputs=("pcm",),
        outputs=("features",),
        dynamic_shapes=({1: samples},),
    )
    content = strip_metadata(path.read_bytes())
    feeds = [{"pcm": sound[None]} for sound in _sounds_to_try(audio)]
    error, largest = compare(content, hubert, feeds)
    refuse_if_wrong(path, error, MAX_ERROR * largest)
    change = None
    if not float32_weights:
        small = to_float16_weights(content, feeds, largest_rounding=MAX_ROUNDING * largest)
        content, change = small.content, small.rounding
    path.write_bytes(content)
    return FeaturesExportReport(
        path=path,
        largest_error=error,
        float16_change=change,
        largest_feature=largest,
        cases=len(feeds),
    )


def _sounds_to_try(audio: F32 | None) -> list[F32]:
    random = np.random.default_rng(0)
    sounds = [random.normal(0, 0.1, samples).astype(np.float32) for samples in TRIED_SAMPLES]
    second = np.arange(SAMPLE_RATE_HZ)
    sounds += [np.zeros(len(second), np.float32), np.sin(0.1 * second).astype(np.float32)]
    if audio is not None:
        starts = np.linspace(0, max(0, len(audio) - max(TRIED_SAMPLES)), len(TRIED_SAMPLES)).astype(int)
        pieces = [audio[start : start + n] for start, n in zip(starts, TRIED_SAMPLES, strict=True)]
        sounds += [piece for piece in pieces if len(piece) >= FEATURE_SAMPLES]
    return [normalised(sound) for sound in sounds]


# Offline --------------------------------------------------------------------------------------------


def normalised(pcm: F32) -> F32:
    """Returns `pcm` (n,) with zero mean and unit variance, as HuBERT's own processor makes them."""
    wide = pcm.astype(np.float64)
    scaled: F32 = ((wide - wide.mean()) / np.sqrt(wide.var() + MIN_VARIANCE)).astype(np.float32)
    return scaled


def offline_features(run: Callable[[F32], F32], pcm: F32) -> F32:
    """Returns the features ((n - 80) // 320, dimension) of a whole recording, as GeneFace's preparation does.

    The whole recording is normalised, then encoded in clips of 1000 features, the remainder as its own clip;
    a remainder shorter than one feature is dropped. A feature missing for that is zero.

    Args:
        run: Features (1, Tx, dimension) of normalised sound (1, samples), Tx = (samples - 400) // 320 + 1.
        pcm: (n,) at 16 kHz, at least 400.
    """
    if len(pcm) < FEATURE_SAMPLES:
        raise InputError(
            f"offline_features: pcm: expected at least {FEATURE_SAMPLES} samples, got {len(pcm)}; pad it"
        )
    sound = normalised(pcm)
    features = np.concatenate([run(sound[None, start:end])[0] for start, end in clips(len(sound))])
    count = (len(pcm) - (FEATURE_SAMPLES - FEATURE_HOP_SAMPLES)) // FEATURE_HOP_SAMPLES
    missing = max(0, count - len(features))
    return np.pad(features[:count], ((0, missing), (0, 0)))


def clips(samples: int) -> Iterator[tuple[int, int]]:
    """Yields first sample and end of each clip that a recording of `samples` samples is encoded in."""
    hop = CLIP_FEATURES * FEATURE_HOP_SAMPLES
    for clip in range(samples // hop):
        yield clip * hop, min(samples, (clip + 1) * hop - FEATURE_HOP_SAMPLES + FEATURE_SAMPLES)
    rest = samples // hop * hop
    if samples - rest >= FEATURE_SAMPLES:
        yield rest, samples
