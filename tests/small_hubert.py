"""A small HuBERT of hubert-large's make with random weights: `import small_hubert` in any test.

Features have the true width, 1024, rate and framing; depth and the inner widths are small.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from export.geneface.hubert import export_features
from models.hubert import CONV_KERNELS, CONV_STRIDES, Hubert, HubertConfig

SMALL = HubertConfig(conv_channels=32, layers=2, heads=8, feed_forward=512)


@cache
def small_hubert() -> Hubert:
    """Returns the network, the same weights at each call; do not change them."""
    return random_hubert(SMALL)


def random_hubert(config: HubertConfig, *, seed: int = 0) -> Hubert:
    """Returns a HuBERT in which every weight does something; features of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    hubert = Hubert(config)
    for name, parameter in hubert.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data.normal_(centre, 0.1, generator=generator)
        else:
            inputs = parameter[0].numel()
            parameter.data.normal_(0, 1.5 / inputs**0.5, generator=generator)
    return hubert.requires_grad_(False)


def small_features_onnx(path: Path) -> Path:
    """Returns `path`, written as a bundle's features.onnx of the small network."""
    export_features(small_hubert(), path=path)
    return path


def hugging_face_state(hubert: Hubert, *, spelling: str = "new") -> dict[str, torch.Tensor]:
    """Returns the weights under Hugging Face's names, the weight norm in its "old" or "new" spelling."""
    state = {}
    for key, value in hubert.encoder.state_dict().items():
        name = key.replace("encoder.feature_projection.", "feature_projection.")
        name = name.replace("encoder.transformer.", "encoder.")
        if name == "encoder.pos_conv_embed.conv.weight":
            g = torch.linalg.vector_norm(value, dim=(0, 1), keepdim=True)
            names = {"old": ("weight_g", "weight_v"), "new": ("original0", "original1")}[spelling]
            place = "encoder.pos_conv_embed.conv." + ("" if spelling == "old" else "parametrizations.weight.")
            state |= {place + names[0]: g, place + names[1]: 3 * value}  # v of any length
        else:
            state[name] = value
    return state


def hugging_face_config(config: HubertConfig) -> dict[str, object]:
    """Returns what such a folder's config.json says."""
    return {
        "model_type": "hubert",
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "conv_kernel": list(CONV_KERNELS),
        "conv_stride": list(CONV_STRIDES),
        "conv_dim": [config.conv_channels] * len(CONV_KERNELS),
        "conv_bias": config.conv_bias,
        "hidden_size": config.dimension,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
    }
