"""Where there is anything to see: the 3-D occupancy grid of the head and the 2-D one of the torso.

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
    """(M, 3) a point in each cell of (M,) Z-order indices: its centre, or a random one."""
    half = bound / size
    corners = torch.stack(morton_cells(cells), -1).float()
    centres = (2 * corners / (size - 1) - 1) * (bound - half)
    if not jitter:
        return centres
    noise = torch.rand(centres.shape, device=cells.device, generator=generator)
    return centres + (2 * noise - 1) * half


def dilate(values: Tensor, size: int) -> Tensor:
    """(size**3,) in Z-order: the largest of each cell and its six neighbours."""
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
    generator: torch.Generator | None = None,
    cells_at_once: int = 1 << 18,
) -> Tensor:
    """(1, size**3) the grid after looking at every cell once; cells marked -1 stay so.

    Args:
        grid: (1, size**3) densities in Z-order.
        density: (M, 3) positions to (M,) densities.
        size: cells a side.
        bound: half the side of the cube.
        decay: what is left of the old density.
        jitter: look at a random point of each cell instead of its centre.
        generator: for the jitter.
        cells_at_once: how many cells share the memory of one pass.
    """
    looks = [
        density(cell_positions(cells, size, bound=bound, jitter=jitter, generator=generator)).float()
        for cells in torch.split(torch.arange(size**3, device=grid.device), cells_at_once)
    ]
    new = dilate(torch.cat(looks), size)
    return torch.where((grid >= 0) & (new >= 0), torch.maximum(grid * decay, new), grid)


def mean_density(grid: Tensor) -> Tensor:
    """The mean over all cells, () float; unseen ones count as empty."""
    return grid.clamp(min=0).mean()


def pack_bits(grid: Tensor, threshold: Tensor | float) -> Tensor:
    """(cells / 8,) uint8: which cells of a (1, cells) grid are denser than the threshold, low bit first."""
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
    generator: torch.Generator | None = None,
) -> Tensor:
    """(size * size,) the torso's grid, column-major, after looking at every cell once.

    Args:
        grid: (size * size,) opacities; cell (row, column) is at column * size + row.
        alpha: (M, 2) row-first coordinates in [-1, 1] to (M,) opacities.
        size: cells a side.
        decay: what is left of the old opacity.
        jitter: look at a random point of each cell instead of its centre.
        generator: for the jitter.
    """
    half = 1 / size
    along = torch.arange(size, device=grid.device, dtype=torch.float32)
    columns, rows = torch.meshgrid(along, along, indexing="ij")
    at = (2 * torch.stack((rows, columns), -1).reshape(-1, 2) / (size - 1) - 1) * (1 - half)
    if jitter:
        at = at + (2 * torch.rand(at.shape, device=grid.device, generator=generator) - 1) * half
    look = F.max_pool2d(alpha(at).float().view(1, 1, size, size), 5, stride=1, padding=2).reshape(-1)
    return torch.maximum(grid * decay, look)
