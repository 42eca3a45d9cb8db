"""Convolutions along time that either look both ways, as GeneFace's do, or only back, as a live stream needs.

Tensors are (B, channels, frames). A causal layer fills the missing past with zeros, so a sequence keeps its
length; inside `without_padding` it does not, and consumes its left context instead: a window as long as the
receptive field then gives the one last frame, by the same numbers and with about half of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def last_frames(x: Tensor, like: Tensor) -> Tensor:
    """Returns the newest frames of `x` (B, C, n), as many as `like` has; `x` itself where they are equal."""
    frames = like.shape[-1]
    return x if x.shape[-1] == frames else x[..., -frames:]


class TimeConv1d(nn.Conv1d):
    """Conv1d that yields frames / stride frames: symmetric padding, or all of it on the left where causal.

    Its keys are those of `nn.Conv1d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        causal: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0 if causal else (kernel - stride) // 2, bias=bias)
        self.causal = causal
        self.pads = True

    @property
    def left_context_frames(self) -> int:
        """Number of earlier frames that one output frame sees."""
        return self.kernel_size[0] - self.stride[0] if self.causal else int(self.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, frames / stride)."""
        if self.causal and self.pads:
            x = functional.pad(x, (self.left_context_frames, 0))
        return super().forward(x)


class WeightNormConv1d(nn.Module):
    """TimeConv1d of stride 1 whose weight is `weight_g * weight_v / |weight_v|`, the norm taken per output.

    Weight normalisation (Salimans and Kingma, 2016) under the key names of GeneFace's checkpoints.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, causal: bool = False) -> None:
        super().__init__()
        plain = nn.Conv1d(inputs, outputs, kernel)
        weight, bias = plain.weight.detach(), cast(Tensor, plain.bias).detach()
        self.bias = nn.Parameter(bias.clone())  # (outputs,)
        # (outputs, 1, 1)
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
        self.weight_v = nn.Parameter(weight.clone())  # (outputs, inputs, kernel)
        self.kernel = kernel
        self.causal = causal
        self.pads = True

    def weight(self) -> Tensor:
        """Returns the effective weight (outputs, inputs, kernel)."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)  # (outputs, 1, 1)
        weight: Tensor = self.weight_v * (self.weight_g / norm)
        return weight

    def plain(self) -> TimeConv1d:
        """Returns the same layer with its weight norm folded, for export."""
        outputs, inputs, kernel = self.weight_v.shape
        layer = TimeConv1d(inputs, outputs, kernel, causal=self.causal)
        layer.pads = self.pads
        layer.load_state_dict({"weight": self.weight().detach(), "bias": self.bias.detach()})
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, frames)."""
        if self.causal:
            if self.pads:
                x = functional.pad(x, (self.kernel - 1, 0))
            return functional.conv1d(x, self.weight(), self.bias)
        return functional.conv1d(x, self.weight(), self.bias, padding=(self.kernel - 1) // 2)


def plain_copy(module: nn.Module) -> nn.Module:
    """Returns a copy of `module` in evaluation mode with every weight norm folded."""
    copied = deepcopy(module).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WeightNormConv1d):
                setattr(parent, name, child.plain())
    return copied


@contextmanager
def without_padding(*modules: nn.Module) -> Iterator[None]:
    """Lets the causal layers of `modules` consume their left context instead of padding it, while entered."""
    layers = [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, TimeConv1d | WeightNormConv1d)
    ]
    before = [layer.pads for layer in layers]
    for layer in layers:
        layer.pads = False
    try:
        yield
    finally:
        for layer, pads in zip(layers, before, strict=True):
            layer.pads = pads
