"""Multiresolution feature grids and the MLPs behind them, under the reference's key names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn

from cuda_kernels import torch_kernels
from cuda_kernels.arrays import F32
from cuda_kernels.scene import Grid, GridLayout
from cuda_kernels.torch_encodings import grid_constants, grid_encode

from .settings import Range, check_ranges, require


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Sizes of one feature grid; the defaults are GeneFace's."""

    levels: Annotated[int, Range(2, 32)] = 16
    features: Annotated[int, Range(1, 16)] = 2
    base_resolution: Annotated[int, Range(1, 2048)] = 16
    desired_resolution: int = 2048  # cells along a side on the finest level
    log2_rows: Annotated[int, Range(3, 19)] = 16  # the most table rows a level may have
    hashed: bool = False
    smoothstep: bool = False

    def __post_init__(self) -> None:
        """Raises SettingsError for sizes whose addresses leave 32 bits or whose levels are too few."""
        check_ranges(self)
        require(
            self.base_resolution <= self.desired_resolution <= 2048,
            "desired_resolution",
            f"{self.base_resolution} to 2048",
            self.desired_resolution,
        )

    @property
    def width(self) -> int:
        """Numbers that one position is encoded to."""
        return self.levels * self.features

    def layout(self, dimensions: int) -> GridLayout:
        """Returns the tables' layout."""
        return GridLayout.growing(
            dimensions=dimensions,
            levels=self.levels,
            base_resolution=self.base_resolution,
            desired_resolution=self.desired_resolution,
            log2_rows=self.log2_rows,
            hashed=self.hashed,
            smoothstep=self.smoothstep,
        )


class GridEncoder(nn.Module):
    """Multiresolution grid encoding of points of [-bound, bound]^D."""

    offsets: Tensor
    _scales: Tensor
    _addressing: Tensor

    def __init__(self, config: GridConfig, *, dimensions: int, bound: float = 1.0) -> None:
        """Tables start uniform in [-1e-4, 1e-4]."""
        super().__init__()
        self.config = config
        self.bound = bound
        self.kernels = False  # encode by the CUDA kernels instead of their twin in torch
        self.layout = config.layout(dimensions)
        self.width = config.width
        self.embeddings = nn.Parameter(torch.empty(self.layout.offsets[-1], config.features))
        nn.init.uniform_(self.embeddings, -1e-4, 1e-4)
        self.register_buffer("offsets", torch.tensor(self.layout.offsets, dtype=torch.int32))
        scales, addressing = grid_constants(self.layout)
        self.register_buffer("_scales", scales, persistent=False)
        self.register_buffer("_addressing", addressing, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, levels * features) of (N, D) positions, level-major."""
        if self.kernels:
            return torch_kernels.grid_encode(x, self.embeddings, self.layout, bound=self.bound)
        constants = (self._scales, self._addressing)
        return grid_encode(x, self.embeddings, self.layout, bound=self.bound, constants=constants)

    def grid(self) -> Grid:
        """Returns the grid as a raymarcher takes it."""
        return Grid(table=as_numpy(self.embeddings), layout=self.layout)


class _SharedRows(torch.autograd.Function):
    """index_select whose gradient is a matrix product instead of contended atomic adds."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        ctx.rows = table.shape[0]  # type: ignore[attr-defined]
        return table.index_select(0, row)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (row,), (grad,) = ctx.saved_tensors, grads  # type: ignore[attr-defined]
        rows = ctx.rows  # type: ignore[attr-defined]
        taken = torch.arange(rows, device=row.device)[:, None] == row  # (F, M)
        return taken.to(grad.dtype) @ grad, None


def shared_rows(table: Tensor, row: Tensor) -> Tensor:
    """Returns rows (M, W) of a small (F, W) table at (M,) indices; a single row is returned as (1, W)."""
    if table.shape[0] == 1:
        return table
    result: Tensor = _SharedRows.apply(table, row)  # type: ignore[no-untyped-call]
    return result


class Mlp(nn.Module):
    """Linear layers without bias, ReLU between them."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """Builds a layer for each pair of widths."""
        super().__init__()
        self.net = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, last width) of (N, first width)."""
        return self.after_first(F.linear(x, self.first))

    @property
    def first(self) -> Tensor:
        """The first layer's weight (outputs, inputs): callers multiply inputs shared by many rows once."""
        weight = self.net[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def after_first(self, hidden: Tensor) -> Tensor:
        """Returns (N, last width) of the first layer's (N, second width) output, before its ReLU."""
        for layer in list(self.net)[1:]:
            hidden = layer(F.relu(hidden))
        return hidden

    def weights(self) -> tuple[F32, ...]:
        """Returns the layers' matrices, (outputs, inputs) each."""
        return tuple(as_numpy(parameter) for parameter in self.parameters())


def as_numpy(tensor: Tensor) -> F32:
    """Returns a float32 copy on the host."""
    return tensor.detach().float().cpu().numpy().copy()
