"""The twin's encodings against loops in float64: grids, spherical harmonics, frequencies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cuda_kernels.scene import GridLayout
from cuda_kernels.torch_encodings import frequency_encode, grid_encode, spherical_harmonics, truncated_exp
from models.encodings import GridConfig

PRIMES = (1, 2654435761, 805459861)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- grid encoding


def slow_encode(x, table, layout, bound):
    """One point, one level, one corner at a time, in float64."""
    out = np.zeros((len(x), layout.levels * table.shape[1]))
    for n, point in enumerate((x + bound) / (2 * bound)):
        if (point < 0).any() or (point > 1).any():
            continue
        for level in range(layout.levels):
            first, rows = layout.offsets[level], layout.offsets[level + 1] - layout.offsets[level]
            power = np.float32(2.0 ** float(np.float32(level) * np.float32(layout.log2_growth)))
            scale = float(power * np.float32(layout.base_resolution) - np.float32(1))
            side = math.ceil(scale) + 2
            position = point * scale + 0.5
            cell = np.floor(position)
            share = position - cell
            if layout.smoothstep:
                share = share * share * (3 - 2 * share)
            for corner in itertools.product((0, 1), repeat=layout.dimensions):
                weight, address, stride, hashed = 1.0, 0, 1, 0
                for axis, bit in enumerate(corner):
                    weight *= share[axis] if bit else 1 - share[axis]
                    here = int(cell[axis]) + bit
                    hashed ^= (here * PRIMES[axis]) & 0xFFFFFFFF
                    if stride <= rows:
                        address += here * stride
                        stride *= side
                if layout.hashed and stride > rows:
                    address = hashed
                width = table.shape[1]
                out[n, level * width : (level + 1) * width] += weight * table[first + address % rows]
    return out


LAYOUTS = [
    GridConfig(levels=5, desired_resolution=200, log2_rows=9, hashed=hashed, smoothstep=smoothstep).layout(
        dim
    )
    for hashed in (False, True)
    for smoothstep in (False, True)
    for dim in (2, 3)
]
ODD = GridLayout(dimensions=2, offsets=(0, 296, 696, 1096), log2_growth=1.5)  # rows that no bit mask wraps
ODD_HASHED = GridLayout(dimensions=3, offsets=(0, 296, 696, 1096), log2_growth=1.5, hashed=True)


@pytest.mark.parametrize("layout", [*LAYOUTS, ODD, ODD_HASHED])
def test_grid_values(layout):
    x = (torch.rand(60, layout.dimensions, dtype=torch.float64) * 2.2 - 1.1) * 0.7  # some lie outside
    table = torch.randn(layout.offsets[-1], 2, dtype=torch.float64)
    got = grid_encode(x, table, layout, bound=0.7)
    np.testing.assert_allclose(got, slow_encode(x.numpy(), table.numpy(), layout, 0.7), rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grid_gradients(layout):
    x = torch.rand(4, layout.dimensions, dtype=torch.float64) * 1.8 - 0.9
    table = torch.randn(layout.offsets[-1], 2, dtype=torch.float64)
    touched = (grid_encode_rows(x, layout)).unique()[:40]

    def of(x, rows):
        return grid_encode(x, table.index_copy(0, touched, rows), layout)

    inputs = (x.requires_grad_(), table[touched].clone().requires_grad_())
    assert torch.autograd.gradcheck(of, inputs, eps=1e-7, atol=1e-5)


def grid_encode_rows(x, layout):
    """The rows that some points look at: those that get a gradient."""
    table = torch.zeros(layout.offsets[-1], 2, dtype=torch.float64, requires_grad=True)
    grid_encode(x, table, layout).sum().backward()
    return table.grad[:, 0].nonzero().squeeze(1)


def test_outside_the_box_nothing_is_seen_and_nothing_learnt():
    layout = LAYOUTS[1]
    x = torch.tensor([[0.0, 0.0, 1.01], [torch.nan, 0.0, 0.0]], requires_grad=True)
    table = torch.ones(layout.offsets[-1], 2, requires_grad=True)
    encoded = grid_encode(x, table, layout)
    assert (encoded == 0).all()
    encoded.sum().backward()
    assert (table.grad == 0).all()
    assert (x.grad[0] == 0).all()


def test_rows_of_the_references_tables():
    assert GridConfig().layout(3).offsets[-1] == 903_480
    assert GridConfig().layout(2).offsets[-1] == 555_520


def test_fine_levels_leave_the_last_axis_out():
    layout = GridConfig().layout(3)
    assert layout.axes == (3,) * 9 + (2,) * 7
    assert layout.groups == (slice(0, 9), slice(9, 16))


# --- other encodings


def test_spherical_harmonics_are_orthonormal():
    z = torch.linspace(-1, 1, 401, dtype=torch.float64)
    angle = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
    z, angle = (v.reshape(-1) for v in torch.meshgrid((z[1:] + z[:-1]) / 2, angle, indexing="ij"))
    ring = (1 - z * z).sqrt()
    values = spherical_harmonics(torch.stack((ring * angle.cos(), ring * angle.sin(), z), -1))
    products = values.T @ values * (4 * math.pi / len(z))
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-4)


def test_frequencies_lie_in_the_references_order():
    x = torch.tensor([[0.3, -0.7]])
    expected = torch.cat((x, x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()), 1)
    torch.testing.assert_close(frequency_encode(x, 2), expected, rtol=0, atol=1e-6)


def test_a_huge_density_has_a_finite_gradient():
    x = torch.tensor([0.5, 80.0, 200.0], requires_grad=True)
    truncated_exp(x)[:2].sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(0.5), math.exp(15.0), 0.0]))
