from __future__ import annotations

import numpy as np
import pytest
import torch

from cuda_kernels.torch_reference import morton_index, morton_of_volume
from models.density_grid import (
    cell_positions,
    dilate,
    mean_density,
    pack_bits,
    updated,
    updated_torso,
)


def test_bits_are_packed_low_bit_first():
    grid = torch.tensor([[0.0, 2, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0]])
    assert pack_bits(grid, 1.0).tolist() == [2 + 128, 1]


def test_dilation_takes_the_six_neighbours():
    size = 8
    volume = torch.zeros(size, size, size)
    volume[3, 4, 0] = 5.0
    volume[7, 7, 7] = 2.0
    order = morton_of_volume(size)
    values = torch.empty(size**3).index_copy(0, order, volume.reshape(-1))
    got = dilate(values, size)[order].view(size, size, size)
    expected = torch.zeros(size, size, size)
    for x, y, z in ((3, 4, 0), (2, 4, 0), (4, 4, 0), (3, 3, 0), (3, 5, 0), (3, 4, 1)):
        expected[x, y, z] = 5.0
    for x, y, z in ((7, 7, 7), (6, 7, 7), (7, 6, 7), (7, 7, 6)):
        expected[x, y, z] = 2.0
    assert torch.equal(got, expected)


def test_cells_are_looked_at_inside_themselves():
    cells = torch.arange(16**3)
    centres = cell_positions(cells, 16, jitter=False)
    corner = morton_index(*(torch.tensor(v) for v in (0, 15, 7)))
    torch.testing.assert_close(centres[corner], torch.tensor([-15 / 16, 15 / 16, -1 / 16]))
    generator = torch.Generator().manual_seed(0)
    jittered = cell_positions(cells, 16, jitter=True, generator=generator)
    assert float((jittered - centres).abs().max()) <= 1 / 16
    assert float(jittered.abs().max()) <= 1


def test_an_update_forgets_slowly_and_keeps_marked_cells():
    size = 8
    grid = torch.full((1, size**3), 4.0)
    grid[0, 5] = -1.0
    got = updated(
        grid, lambda x: torch.full_like(x[:, 0], 1.0), size, decay=0.5, jitter=False, cells_at_once=100
    )
    assert float(got[0, 5]) == -1.0
    assert got[0, :5].tolist() == [2.0] * 5
    assert float(mean_density(got)) == pytest.approx(2 * (size**3 - 1) / size**3)


def test_the_torsos_grid_is_column_major_and_widened():
    size = 16

    def alpha(x):  # only at the lowest row, in the left half
        return ((x[:, 0] > 0.9) & (x[:, 1] < 0)).float()

    got = updated_torso(torch.zeros(size**2), alpha, size, jitter=False).view(size, size).T
    expected = np.zeros((size, size))
    expected[13:, :10] = 1.0  # two cells wider than [15:, :8]
    np.testing.assert_array_equal(got.numpy(), expected)
