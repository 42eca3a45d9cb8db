"""HuBERT (Hsu et al., 2021), the speech encoder whose last hidden state GeneFace's Audio2Motion takes.

The network is torchaudio's, without the CTC head. GeneFace takes Hugging Face's
`facebook/hubert-large-ls960-ft`, which is `torchaudio.pipelines.HUBERT_ASR_LARGE`: the same weights under
other names, all of which `hubert_from_state` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations

from cuda_kernels.errors import InputError

from .settings import one_line
from .torchaudio_pair import import_torchaudio

HUBERT_NAME = "hubert-large-ls960-ft"
"""The features' name in a bundle."""
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)

_POSITION = "encoder.transformer.pos_conv_embed.conv"
_UNUSED = ("aux.", "lm_head.", "masked_spec_embed")  # the CTC head, and the embedding of masked sound
_RENAMED = {
    "feature_projection.": "encoder.feature_projection.",
    "encoder.layers.": "encoder.transformer.layers.",
    "encoder.layer_norm.": "encoder.transformer.layer_norm.",
    "encoder.pos_conv_embed.": "encoder.transformer.pos_conv_embed.",
}
"""Hugging Face's names of what torchaudio calls otherwise."""


class HubertError(InputError):
    """Weights or sizes that are no HuBERT's that we run: which file, which key, what was expected."""


@dataclass(frozen=True, kw_only=True)
class HubertConfig:
    """Sizes of HuBERT; the defaults are hubert-large's.

    Attributes:
        conv_channels: Channels of the seven convolutions over samples.
        conv_bias: They have biases: Hugging Face's files do, torchaudio's do not.
        dimension: Numbers in one 50 Hz feature.
        layers, heads, feed_forward: Of the transformer.
        position_kernel, position_groups: Of the positional convolution.
    """

    conv_channels: int = 512
    conv_bias: bool = False
    dimension: int = 1024
    layers: int = 24
    heads: int = 16
    feed_forward: int = 4096
    position_kernel: int = 128
    position_groups: int = 16

    def __post_init__(self) -> None:
        """Raises InputError where sizes contradict each other."""
        for name, parts in (("heads", self.heads), ("position_groups", self.position_groups)):
            if parts < 1 or self.dimension % parts:
                raise InputError(
                    f"HubertConfig: {name}: expected a divisor of dimension ({self.dimension}), got {parts}"
                )


class Hubert(nn.Module):
    """Samples to features, in evaluation mode, without weight norm."""

    def __init__(self, config: HubertConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HubertConfig()
        channels = config.conv_channels
        convolutions = [(channels, *sizes) for sizes in zip(CONV_KERNELS, CONV_STRIDES, strict=True)]
        self.encoder = import_torchaudio().models.wav2vec2_model(
            extractor_mode="layer_norm",
            extractor_conv_layer_config=convolutions,
            extractor_conv_bias=config.conv_bias,
            encoder_embed_dim=config.dimension,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=config.position_kernel,
            encoder_pos_conv_groups=config.position_groups,
            encoder_num_layers=config.layers,
            encoder_num_heads=config.heads,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=config.feed_forward,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=True,
            encoder_layer_drop=0.0,
            aux_num_out=None,
        )
        remove_parametrizations(self.encoder.get_submodule(_POSITION), "weight")
        self.eval()

    def features(self, pcm: Tensor) -> Tensor:
        """Returns (B, feature_count(samples), dimension), the last hidden state, its layer norm applied.

        Args:
            pcm: (B, samples) at 16 kHz, at least 400, of zero mean and unit variance: `normalised`.
        """
        features: Tensor = self.encoder(pcm)[0]  # (B, Tx, dimension)
        return features

    def forward(self, pcm: Tensor) -> Tensor:
        """Returns `features`."""
        return self.features(pcm)


def hubert_from_state(state: Mapping[str, Tensor], config: HubertConfig, *, source: str) -> Hubert:
    """Returns HuBERT with the weights of `state` under torchaudio's or Hugging Face's names.

    Args:
        state: Weights by key; `model.` or `hubert.` before every key is taken off, a CTC head is dropped.
        config: The sizes that the weights must have.
        source: Where they come from, for messages.

    Raises:
        HubertError: A key is missing, unknown or of another shape.
    """
    hubert = Hubert(config)
    left = _plain_weights(state, source)
    weights: dict[str, Tensor] = {}
    for key, parameter in hubert.encoder.state_dict().items():
        if key not in left:
            raise HubertError(f"{source}: {key}: expected weights, got none: the key is missing; {_WAY_OUT}")
        value = left.pop(key)
        if value.shape != parameter.shape:
            raise HubertError(
                f"{source}: {key}: expected shape {_shape(parameter)}, got {_shape(value)}; {_WAY_OUT}"
            )
        weights[key] = value.float()
    if left:
        key = one_line(min(left), 100)
        raise HubertError(f"{source}: {key}: expected only HuBERT's keys, got an unknown one; {_WAY_OUT}")
    hubert.encoder.load_state_dict(weights, assign=True)
    return hubert.requires_grad_(False)


_WAY_OUT = f"give the weights of {HUBERT_NAME}"


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single value"


def _plain_weights(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the weights under torchaudio's names, the position convolution's weight norm folded."""
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("hubert.").removeprefix("model.")
        if name.startswith(_UNUSED):
            continue
        for theirs, ours in _RENAMED.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        plain[name] = value
    for g_name, v_name in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        g, v = plain.pop(f"{_POSITION}.{g_name}", None), plain.pop(f"{_POSITION}.{v_name}", None)
        if g is None and v is None:
            continue
        if g is None or v is None:
            missing = g_name if g is None else v_name
            raise HubertError(
                f"{source}: {_POSITION}.{missing}: expected weights, got none: the key is missing; {_WAY_OUT}"
            )
        if v.ndim != 3 or g.shape != (1, 1, v.shape[2]):
            raise HubertError(
                f"{source}: {_POSITION}.{g_name}: expected shape 1x1xK beside {v_name} of ...xK, got "
                f"{_shape(g)} beside {_shape(v)}; {_WAY_OUT}"
            )
        v = v.float()
        plain[f"{_POSITION}.weight"] = v * (g.float() / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True))
    return plain
