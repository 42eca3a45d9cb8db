"""Density grids: the 3-D one of the head and the 2-D one of the torso.

The 3-D grid is stored in Z-order as `(1, size**3)` densities and `(size**3 / 8,)` packed bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from cuda_kernels.torch_reference import morton_cells, morton_of_volume


def cell_positions(
    cells: Tensor, size: int, *, bound: float = 1.0, jitter: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Returns a point (M, 3) in each cell of (M,) Z-order indices: its centre, or a random one."""
    half = bound / size
    corners = torch.stack(morton_cells(cells), -1).float()
    centres = (2 * corners / (size - 1) - 1) * (bound - half)
    if not jitter:
        return centres
    noise = torch.rand(centres.shape, device=cells.device, generator=generator)
    return centres + (2 * noise - 1) * half


def dilate(values: Tensor, size: int) -> Tensor:
    """Returns the maximum (size**3,) over each cell and its six neighbours, in Z-order."""
    order = morton_of_volume(size, device=values.device)
    volume = values[order].view(size, size, size)
    padded = F.pad(volume, (1, 1, 1, 1, 1, 1), value=-torch.inf)
    middle = slice(1, -1)
    largest = volume
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            at = tuple(side if a == axis else middle for a in range(3))
            largest = torch.maximum(largest, padded[at])
    return torch.empty_like(values).index_copy_(0, order, largest.reshape(-1))


def updated(
    grid: Tensor,
    density: Callable[[Tensor], Tensor],
    size: int,
    *,
    bound: float = 1.0,
    decay: float = 0.95,
    jitter: bool = True,
    cells_at_once: int = 1 << 18,
) -> Tensor:
    """Returns the grid (1, size**3) updated by one query of each cell; cells marked -1 stay so.

    Args:
        grid: (1, size**3) densities in Z-order.
        density: (M, 3) positions to (M,) densities.
        size: cells a side.
        bound: half the side of the cube.
        decay: factor of the old density.
        jitter: query a random point of each cell instead of its centre.
        cells_at_once: cells in one query.
    """
    found = [
        density(cell_positions(cells, size, bound=bound, jitter=jitter)).float()
        for cells in torch.split(torch.arange(size**3, device=grid.device), cells_at_once)
    ]
    new = dilate(torch.cat(found), size)
    return torch.where((grid >= 0) & (new >= 0), torch.maximum(grid * decay, new), grid)


def mean_density(grid: Tensor) -> Tensor:
    """Returns the mean over all cells, () float; cells marked -1 count as empty."""
    return grid.clamp(min=0).mean()


def pack_bits(grid: Tensor, threshold: Tensor | float) -> Tensor:
    """Returns the bitfield (cells / 8,) uint8 of a (1, cells) grid above the threshold, low bit first."""
    bits = (grid.reshape(-1, 8) > threshold).to(torch.uint8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=grid.device)
    return (bits * powers).sum(1, dtype=torch.uint8)


def updated_torso(
    grid: Tensor,
    alpha: Callable[[Tensor], Tensor],
    size: int,
    *,
    decay: float = 0.95,
    jitter: bool = True,
) -> Tensor:
    """Returns the torso's grid (size * size,), column-major, updated by one query of each cell.

    Args:
        grid: (size * size,) opacities; cell (row, column) is at column * size + row.
        alpha: (M, 2) row-first coordinates in [-1, 1] to (M,) opacities.
        size: cells a side.
        decay: factor of the old opacity.
        jitter: query a random point of each cell instead of its centre.
    """
    half = 1 / size
    along = torch.arange(size, device=grid.device, dtype=torch.float32)
    columns, rows = torch.meshgrid(along, along, indexing="ij")
    at = (2 * torch.stack((rows, columns), -1).reshape(-1, 2) / (size - 1) - 1) * (1 - half)
    if jitter:
        at = at + (2 * torch.rand(at.shape, device=grid.device) - 1) * half
    found = F.max_pool2d(alpha(at).float().view(1, 1, size, size), 5, stride=1, padding=2).reshape(-1)
    return torch.maximum(grid * decay, found)
