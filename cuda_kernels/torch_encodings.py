"""Input encodings in plain torch: multiresolution grids, spherical harmonics, frequencies.

Grid encoding after Müller et al. 2022 (instant-ngp), addressed as RAD-NeRF (Tang et al. 2022) does, so that
its trained weights mean the same here. Differentiable in training, the twins of the kernels' encodings.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .scene import GridLayout

HASH_PRIMES = (1, 2654435761, 805459861)


def grid_constants(layout: GridLayout, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns a layout's constants: scales (L,) float32, and (D + 3, L) int32 to address the levels by.

    Rows of the second: the strides of each axis, the levels' first rows, their rows and their masks. Modules
    keep both as buffers, others use a cache.
    """
    numbers = (*zip(*layout.strides, strict=True), layout.offsets[:-1], layout.rows, layout.masks)
    return (
        torch.tensor(layout.scales, dtype=torch.float32, device=device),
        torch.tensor(numbers, dtype=torch.int32, device=device),
    )


_cached_constants = lru_cache(maxsize=64)(grid_constants)


def grid_encode(
    x: Tensor,
    table: Tensor,
    layout: GridLayout,
    *,
    bound: float = 1.0,
    constants: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Returns (N, levels * features) interpolated features, level-major; zeros where x leaves the box.

    Differentiable in `x` and `table`; the gradient of the table is one atomic scatter per corner.

    Args:
        x: (N, D) positions in [-bound, bound].
        table: (rows, features).
        layout: how the table is addressed.
        bound: half the side of the box.
        constants: the layout's `grid_constants` on x's device; looked up in a cache if None.
    """
    if constants is None:
        constants = _cached_constants(layout, x.device)
    x01 = (x + bound) / (2 * bound)  # (N, D)
    inside = ((x01 >= 0) & (x01 <= 1)).all(-1, keepdim=True)  # (N, 1)
    x01 = torch.where(inside, x01, torch.zeros_like(x01))
    features = [_encode_levels(x01, table, layout, levels, constants) for levels in layout.groups]
    encoded = torch.cat(features, 1).flatten(1) if len(features) > 1 else features[0].flatten(1)
    return torch.where(inside, encoded, torch.zeros_like(encoded))  # (N, L * F)


def _encode_levels(
    x01: Tensor, table: Tensor, layout: GridLayout, levels: slice, constants: tuple[Tensor, Tensor]
) -> Tensor:
    """Returns (N, levels, features) of levels that are addressed alike."""
    axes, hashed = layout.axes[levels.start], layout.hashes[levels.start]
    scales = constants[0][levels].to(x01.dtype)
    *strides, first_rows, rows, masks = constants[1][:, levels].unbind()  # (L,) each
    address, weight = None, None
    for axis in range(axes):
        position = x01[:, axis, None] * scales + 0.5  # (N, L)
        corner = position.floor()
        fraction = position - corner
        if layout.smoothstep:
            fraction = fraction * fraction * (3 - 2 * fraction)
        step = _as_int32(HASH_PRIMES[axis]) if hashed else strides[axis]
        low = corner.to(torch.int32) * step
        terms = torch.stack((low, low + step), -1).unsqueeze(2)  # (N, L, 1, 2)
        parts = torch.stack((1 - fraction, fraction), -1).unsqueeze(2)
        if address is None or weight is None:
            address, weight = terms[:, :, 0], parts[:, :, 0]
        else:
            wide = address.unsqueeze(-1)
            address = (wide ^ terms if hashed else wide + terms).flatten(2)  # (N, L, corners)
            weight = (weight.unsqueeze(-1) * parts).flatten(2)
    assert address is not None
    assert weight is not None
    if all(layout.masks):
        address = address & masks[:, None]
    elif hashed:  # unsigned modulo: the hash may have its top bit set
        address = ((address.long() & 0xFFFFFFFF) % rows[:, None]).to(torch.int32)
    else:
        address = address % rows[:, None]
    address = address + first_rows[:, None]
    value = take_rows(table, address.reshape(-1)).reshape(*address.shape, table.shape[1])
    return (weight.unsqueeze(-1) * value).sum(2)


class _TakenRows(torch.autograd.Function):
    """index_select whose CPU gradient is scattered element by element: six times as fast as by rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = table.shape[0]  # type: ignore[attr-defined]
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), (grad,) = ctx.saved_tensors, grads  # type: ignore[attr-defined]
        rows, width = ctx.rows, grad.shape[1]  # type: ignore[attr-defined]
        if grad.is_cuda:
            return grad.new_zeros(rows, width).index_add_(0, index, grad), None
        places = index[:, None] * width + torch.arange(width, dtype=index.dtype)
        total = grad.new_zeros(rows * width).index_add_(0, places.reshape(-1), grad.reshape(-1))
        return total.view(rows, width), None


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Returns (M, F) rows of a (rows, F) table at (M,) indices; the gradient reaches the table alone."""
    result: Tensor = _TakenRows.apply(table, index)  # type: ignore[no-untyped-call]
    return result


def _as_int32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def spherical_harmonics(dirs: Tensor) -> Tensor:
    """Returns (N, 16) real spherical harmonics to degree 3, Condon-Shortley signs, of (N, 3) unit vectors."""
    x, y, z = dirs.unbind(-1)
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    return torch.stack(
        (
            torch.full_like(x, 0.28209479177387814),
            -0.48860251190291987 * y,
            0.48860251190291987 * z,
            -0.48860251190291987 * x,
            1.0925484305920792 * xy,
            -1.0925484305920792 * yz,
            0.94617469575755997 * zz - 0.31539156525251999,
            -1.0925484305920792 * xz,
            0.54627421529603959 * (xx - yy),
            0.59004358992664352 * y * (yy - 3 * xx),
            2.8906114426405538 * xy * z,
            0.45704579946446572 * y * (1 - 5 * zz),
            0.3731763325901154 * z * (5 * zz - 3),
            0.45704579946446572 * x * (1 - 5 * zz),
            1.4453057213202769 * z * (xx - yy),
            0.59004358992664352 * x * (3 * yy - xx),
        ),
        -1,
    )


def frequency_encode(x: Tensor, octaves: int) -> Tensor:
    """Returns (N, D + 2 * D * octaves): x, sin x, cos x, sin 2x, cos 2x, ... of (N, D)."""
    scaled = x.unsqueeze(-2) * (2.0 ** torch.arange(octaves, device=x.device, dtype=x.dtype))[:, None]
    waves = torch.stack((torch.sin(scaled), torch.sin(scaled + math.pi / 2)), -2)  # (N, octaves, 2, D)
    return torch.cat((x, waves.flatten(-3)), -1)


class _TruncatedExp(torch.autograd.Function):
    """exp whose gradient is clamped, so that one huge density does not make it infinite."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        grad: Tensor = grads[0] * x.clamp(-15, 15).exp()
        return grad


def truncated_exp(x: Tensor) -> Tensor:
    """Returns exp(x), its gradient taken at x clamped to [-15, 15]."""
    result: Tensor = _TruncatedExp.apply(x)  # type: ignore[no-untyped-call]
    return result
