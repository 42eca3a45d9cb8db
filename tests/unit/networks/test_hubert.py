"""HuBERT against its equations in plain torch, and its weights under every name that they go by."""

from __future__ import annotations

import pytest
import torch
from small_hubert import hugging_face_state, random_hubert
from torch.nn import functional

from models.hubert import (
    CONV_STRIDES,
    Hubert,
    HubertConfig,
    HubertError,
    hubert_from_state,
)
from models.speaker_settings import feature_count

TINY = HubertConfig(
    conv_channels=8, dimension=32, layers=2, heads=4, feed_forward=24, position_kernel=16, position_groups=4
)


@pytest.fixture(scope="module")
def hubert():
    return random_hubert(TINY)


def reference(weights, pcm, config):
    """The published network, layer norms first, step by step; (1, Tx, dimension)."""

    def norm(x, name):
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5
        )

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = pcm[:, None]
    for layer, stride in enumerate(CONV_STRIDES):
        name = f"feature_extractor.conv_layers.{layer}"
        x = functional.conv1d(
            x, weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias"), stride=stride
        )
        x = functional.gelu(norm(x.transpose(1, 2), f"{name}.layer_norm")).transpose(1, 2)
    x = x.transpose(1, 2)
    x = linear(
        norm(x, "encoder.feature_projection.layer_norm"), "encoder.feature_projection.projection"
    )  # (1, Tx, D)
    name, half = "encoder.transformer.pos_conv_embed.conv", config.position_kernel // 2
    place = functional.conv1d(
        functional.pad(x.transpose(1, 2), (half, half - 1)),
        weights[f"{name}.weight"],
        weights[f"{name}.bias"],
        groups=config.position_groups,
    )
    x = x + functional.gelu(place).transpose(1, 2)
    for layer in range(config.layers):
        name = f"encoder.transformer.layers.{layer}"
        y = norm(x, f"{name}.layer_norm")
        query, key, value = (
            linear(y, f"{name}.attention.{part}_proj").unflatten(-1, (config.heads, -1)) for part in "qkv"
        )
        score = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), value).flatten(2)
        x = x + linear(mixed, f"{name}.attention.out_proj")
        y = norm(x, f"{name}.final_layer_norm")
        y = functional.gelu(linear(y, f"{name}.feed_forward.intermediate_dense"))
        x = x + linear(y, f"{name}.feed_forward.output_dense")
    return norm(x, "encoder.transformer.layer_norm")


@pytest.mark.parametrize("samples", [400, 719, 720, 5000])
@pytest.mark.parametrize("conv_bias", [False, True])
def test_features_are_the_equations(samples, conv_bias):
    config = HubertConfig(**{**vars(TINY), "conv_bias": conv_bias})
    network = random_hubert(config)
    pcm = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    features = network.features(pcm)
    assert features.shape == (1, feature_count(samples), 32)
    # float32 in another order through two layers
    torch.testing.assert_close(
        features, reference(network.encoder.state_dict(), pcm, config), rtol=0, atol=2e-5
    )
    assert features.std() > 0.1
    torch.testing.assert_close(network(pcm), features, rtol=0, atol=0)


def test_defaults_are_hubert_large():
    config = HubertConfig()
    assert (config.dimension, config.layers, config.heads, config.conv_bias) == (1024, 24, 16, False)
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in Hubert().parameters())
    assert (
        numbers == 315_433_984
    )  # 128 fewer than stored: the norms of the position convolution are worked out


def test_feature_count_is_the_contracts():
    assert [feature_count(n) for n in (0, 399, 400, 719, 720, 16000)] == [0, 0, 1, 1, 2, 49]


@pytest.mark.parametrize("prefix", ["", "hubert."])
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_hugging_faces_names_give_the_same_features(hubert, prefix, spelling):
    state = {prefix + key: value for key, value in hugging_face_state(hubert, spelling=spelling).items()}
    state |= {"lm_head.weight": torch.zeros(32, 32), f"{prefix}masked_spec_embed": torch.zeros(32)}
    pcm = torch.randn(2, 4000)
    # the weight norm is worked out anew
    torch.testing.assert_close(
        hubert_from_state(state, TINY, source="x").features(pcm), hubert.features(pcm), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("prefix", ["", "model."])
def test_torchaudios_names_give_the_same_features(hubert, prefix):
    state = {prefix + key: value for key, value in hubert.encoder.state_dict().items()}
    state |= {f"{prefix}aux.weight": torch.zeros(29, 32), f"{prefix}aux.bias": torch.zeros(29)}
    pcm = torch.randn(1, 4000)
    loaded = hubert_from_state(state, TINY, source="x")
    assert torch.equal(loaded.features(pcm), hubert.features(pcm))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_half_precision_weights_become_float32(hubert):
    state = {key: value.half() for key, value in hugging_face_state(hubert).items()}
    loaded = hubert_from_state(state, TINY, source="x")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def refusal(state, **changes):
    with pytest.raises(HubertError) as caught:
        hubert_from_state(state, HubertConfig(**{**vars(TINY), **changes}), source="weights.bin")
    message = str(caught.value)
    assert message.startswith("weights.bin: ")
    assert "\n" not in message
    assert message.endswith("give the weights of hubert-large-ls960-ft")
    return message


def test_a_missing_key_is_named(hubert):
    state = hugging_face_state(hubert)
    del state["encoder.layers.1.attention.k_proj.bias"]
    assert "encoder.transformer.layers.1.attention.k_proj.bias: expected weights, got none" in refusal(state)


def test_a_key_of_another_shape_is_named(hubert):
    state = hugging_face_state(hubert)
    state["feature_projection.projection.weight"] = torch.zeros(32, 9)
    assert "encoder.feature_projection.projection.weight: expected shape 32x8, got 32x9" in refusal(state)


def test_an_unknown_key_is_named(hubert):
    state = {**hugging_face_state(hubert), "encoder.layers.2.rel_pos_embed.weight": torch.zeros(3)}
    assert "encoder.transformer.layers.2.rel_pos_embed.weight: expected only HuBERT's keys" in refusal(state)


def test_biases_must_be_where_they_are_said_to_be(hubert):
    assert "conv_layers.0.conv.bias: expected weights, got none" in refusal(
        hugging_face_state(hubert), conv_bias=True
    )


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_half_a_weight_norm_is_refused(hubert, spelling):
    state = hugging_face_state(hubert, spelling=spelling)
    g = next(key for key in state if key.endswith(("weight_g", "original0")))
    without = {key: value for key, value in state.items() if key != g}
    name = g.rsplit("conv.", 1)[1]
    assert f"pos_conv_embed.conv.{name}: expected weights, got none" in refusal(without)
    assert f"{name}: expected shape 1x1xK" in refusal({**state, g: torch.ones(32, 1, 1)})


@pytest.mark.parametrize(("field", "value"), [("heads", 5), ("position_groups", 3), ("heads", 0)])
def test_sizes_that_do_not_divide_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field}: expected a divisor of dimension \(1024\), got {value}"):
        HubertConfig(**{field: value})
