"""HuBERT from the places where people keep it, and a whole recording heard as the reference hears it."""

from __future__ import annotations

import json
import urllib.error

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from small_hubert import hugging_face_config, hugging_face_state, random_hubert

from export.geneface.hubert import clips, load_hubert, normalised, offline_features
from export.geneface.pickles import GenefaceFileError
from models.hubert import HubertConfig, HubertError
from models.speaker_settings import feature_count

TINY = HubertConfig(
    conv_channels=8,
    conv_bias=True,
    dimension=32,
    layers=1,
    heads=4,
    feed_forward=24,
    position_kernel=16,
    position_groups=4,
)
PCM = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hubert():
    return random_hubert(TINY)


def write_folder(folder, hubert, *, weights="model.safetensors", spelling="new", prefix="", **changes):
    folder.mkdir(exist_ok=True)
    config = {**hugging_face_config(hubert.config), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    state = {prefix + key: value for key, value in hugging_face_state(hubert, spelling=spelling).items()}
    state = {key: value.contiguous() for key, value in state.items()}
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_a_hugging_face_folder(hubert, tmp_path, weights, spelling):
    folder = write_folder(tmp_path, hubert, weights=weights, spelling=spelling, prefix="hubert.")
    loaded = load_hubert(folder)
    assert loaded.config == TINY
    # the weight norm is worked out anew
    torch.testing.assert_close(loaded.features(PCM), hubert.features(PCM), rtol=0, atol=1e-5)


def test_safetensors_go_before_the_pickle(hubert, tmp_path):
    write_folder(tmp_path, hubert)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert load_hubert(tmp_path).config == TINY


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torchaudio_file(hubert, tmp_path, legacy):
    file = tmp_path / "hubert.pth"
    state = {**hubert.encoder.state_dict(), "aux.weight": torch.zeros(32, 32), "aux.bias": torch.zeros(32)}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(load_hubert(file, config=TINY).features(PCM), hubert.features(PCM))
    with pytest.raises(HubertError, match=r"conv_layers\.0\.layer_norm\.weight: expected shape 512, got 8"):
        load_hubert(file)


def test_torchaudios_own_is_fetched(hubert, monkeypatch):
    """Its bundle gives the network inside a wrapper that normalises: `model.` stands before each key."""

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = hubert.encoder

    def get_model(_):
        return Wrapper()

    monkeypatch.setattr(type(torchaudio.pipelines.HUBERT_ASR_LARGE), "get_model", get_model)
    monkeypatch.setattr("export.geneface.hubert.HubertConfig", lambda: TINY)
    assert torch.equal(load_hubert(None).features(PCM), hubert.features(PCM))


def refusal(*args, error=HubertError, **kwargs):
    with pytest.raises(error) as caught:
        load_hubert(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_offline_says_the_way_out(monkeypatch):
    def get_model(_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(type(torchaudio.pipelines.HUBERT_ASR_LARGE), "get_model", get_model)
    message = refusal(None)
    assert "Name or service not known" in message
    assert "hubert-large-ls960-ft" in message


def test_what_is_not_there_is_refused(hubert, tmp_path):
    assert "got no such path" in refusal(tmp_path / "absent")
    assert "config.json: expected a file, got no such file" in refusal(tmp_path)
    write_folder(tmp_path, hubert)
    (tmp_path / "model.safetensors").unlink()
    assert "expected model.safetensors or pytorch_model.bin, got neither" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "wav2vec2"}, 'model_type: expected "hubert", got "wav2vec2"'),
        ({"do_stable_layer_norm": False}, "do_stable_layer_norm: expected true, got false"),
        ({"feat_extract_norm": "group"}, 'feat_extract_norm: expected "layer", got "group"'),
        ({"hidden_act": "relu"}, 'hidden_act: expected "gelu", got "relu"'),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: expected 1e-05, got 1e-06"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "conv_stride: expected [5, 2, 2, 2, 2, 2, 2], got a list"),
        ({"conv_dim": [8] * 6}, "conv_dim: expected 7 equal numbers, got a list of 6"),
        ({"conv_dim": [8] * 6 + [9]}, "conv_dim: expected 7 equal numbers"),
        ({"conv_dim": []}, "conv_dim: expected 7 equal numbers"),
        ({"conv_bias": None}, "conv_bias: expected true or false, got null"),
        ({"hidden_size": "32"}, 'hidden_size: expected 1 to 65536, got "32"'),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected 1 to 65536, got 0"),
        ({"num_attention_heads": 5}, "heads: expected a divisor of dimension (32), got 5"),
    ],
)
def test_a_config_of_another_network_is_refused(hubert, tmp_path, change, message):
    assert message in refusal(write_folder(tmp_path, hubert, **change))


def test_a_config_that_is_none_is_refused(hubert, tmp_path):
    write_folder(tmp_path, hubert)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: expected JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "content: expected an object, got a list of 0" in refusal(tmp_path)


def test_weights_that_are_none_are_refused(hubert, tmp_path):
    write_folder(tmp_path, hubert)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert "expected safetensors, got something else" in refusal(tmp_path)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "list.pth: expected weights by key, got a list of 1" in refusal(tmp_path / "list.pth")
    (tmp_path / "hostile.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "hostile.pth" in refusal(tmp_path / "hostile.pth", error=GenefaceFileError)


def test_normalised_has_zero_mean_and_unit_variance():
    sound = np.random.default_rng(0).normal(0.3, 0.02, 50_000).astype(np.float32)
    got = normalised(sound)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (sound - sound.mean()) / sound.std(), atol=1e-3)
    assert not normalised(np.full(800, 0.5, np.float32)).any()  # nothing is divided by zero


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (399, []),
        (400, [(0, 400)]),
        (319_999, [(0, 319_999)]),
        (320_000, [(0, 320_000)]),
        (320_080, [(0, 320_080)]),
        (320_399, [(0, 320_080)]),
        (320_400, [(0, 320_080), (320_000, 320_400)]),
        (640_010, [(0, 320_080), (320_000, 640_010)]),
        (700_000, [(0, 320_080), (320_000, 640_080), (640_000, 700_000)]),
    ],
)
def test_a_long_sound_is_cut_into_overlapping_clips(samples, expected):
    assert list(clips(samples)) == expected


def where_heard(sound):
    """Stands for features.onnx: two numbers of each feature, its first and its last sample."""
    count = feature_count(sound.shape[1])
    first = 320 * np.arange(count)
    return np.stack([sound[0, first], sound[0, first + 399]], -1)[None]


@pytest.mark.parametrize(
    "samples",
    [400, 640, 719, 720, 319_999, 320_000, 320_079, 320_080, 320_399, 320_400, 320_720, 640_079, 960_500],
)
def test_offline_features_of_any_length_stand_at_their_time(samples):
    sound = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    features = offline_features(where_heard, sound)
    count = (samples - 80) // 320
    assert features.shape == (count, 2)
    heard = normalised(sound)
    first = 320 * np.arange(count)
    np.testing.assert_array_equal(features, np.stack([heard[first], heard[first + 399]], -1))


def test_a_clip_hears_nothing_of_its_neighbours():
    heard = []

    def run(sound):
        heard.append(sound.shape)
        return np.full((1, feature_count(sound.shape[1]), 3), len(heard), np.float32)

    features = offline_features(run, np.random.default_rng(0).normal(0, 0.1, 650_000).astype(np.float32))
    assert heard == [(1, 320_080), (1, 320_080), (1, 10_000)]
    assert np.unique(features[:1000]) == 1
    assert np.unique(features[1000:2000]) == 2
    assert np.unique(features[2000:]) == 3


def test_a_feature_that_no_clip_gives_is_zero():
    features = offline_features(lambda sound: where_heard(sound)[:, :-1] + 5, np.zeros(16_000, np.float32))
    assert features.shape == (49, 2)
    assert features[:-1].all()
    assert not features[-1].any()


def test_a_sound_shorter_than_a_feature_is_refused():
    with pytest.raises(ValueError, match="at least 400 samples, got 399"):
        offline_features(where_heard, np.zeros(399, np.float32))
