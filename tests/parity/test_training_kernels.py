"""The training kernels on a GPU against their torch twin there: values and gradients, in float32.

Tolerances and their reasons stand in training_cases.py. Marches agree bit for bit: both round each product
and each sum, one after the other.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from training_cases import (
    GRIDS,
    MANY,
    STEP,
    close,
    compare_composite,
    compare_encoding,
    compare_march,
    points_in,
    rays_at,
    some_samples,
    some_values,
)

from cuda_kernels import torch_encodings, torch_kernels, torch_launcher, torch_reference
from models.encodings import GridConfig

COUNTS = [3, 0, 7, 1, 0, 7, 5, 2, 6, 7, 7, 4, 0] * 200
BACKENDS = ["aot_eager", "inductor"]
# Of a whole step: an ambient coordinate that lies a rounding elsewhere is in another cell now and then, whose
# slope is another.
WHOLE = 2e-3


@pytest.fixture(autouse=True)
def _usable(gpu):
    assert torch_launcher.usable(gpu), "the reason stands in the log"


# --- grid encoding


@pytest.mark.parametrize(("changes", "dimensions"), GRIDS.values(), ids=GRIDS.keys())
def test_encoding(gpu, changes, dimensions):
    features, of_table, of_x = compare_encoding(changes, dimensions, gpu, count=20_000)
    assert min(float(a.abs().max()) for a in (features, of_table, of_x)) > 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_encoding_of_a_step_of_training(gpu, dimensions):
    changes = {"levels": 16, "log2_rows": 16, "desired_resolution": 2048}
    compare_encoding(changes, dimensions, gpu, count=300_000)


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_encoding_in_another_box(gpu, bound):
    compare_encoding({}, 3, gpu, bound=bound)


@pytest.mark.parametrize("count", [0, 1, 31, 33, 129])
def test_encoding_of_few_points(gpu, count):
    compare_encoding({"levels": 5}, 2, gpu, count=count)


def test_points_that_all_lie_in_one_cell(gpu):
    """As the ambient coordinates do before the first step."""
    layout = GridConfig(levels=16, log2_rows=16).layout(2)
    table = torch.zeros(layout.offsets[-1], 2, device=gpu, requires_grad=True)
    x = torch.full((100_001, 2), 0.3, device=gpu)
    torch_kernels.grid_encode(x, table, layout).sum().backward()
    # 3e4 floats of about 30 are summed into each of few rows.
    assert float(table.grad.double().sum()) == pytest.approx(100_001 * 32, rel=1e-3)


def test_what_is_not_contiguous(gpu):
    layout = GridConfig(levels=5).layout(2)
    x, table = points_in(64, 2, 1.0, gpu)[:32], torch.rand(2, layout.offsets[-1], device=gpu).T
    got = torch_kernels.grid_encode(x.T.contiguous().T, table, layout)
    close(got, torch_encodings.grid_encode(x, table.contiguous(), layout), MANY)


# --- marching and compositing


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("capacity", [1, 2_000, 30_000, None])
def test_march(gpu, capacity, phase):
    marched = compare_march(gpu, capacity=capacity, rays=5_000, phase=phase)
    assert marched.samples.mask.any()
    assert bool(marched.fits.all()) == (capacity is None or capacity >= int(marched.n_samples_needed))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_march_through_nothing_and_through_everything(gpu, share):
    compare_march(gpu, capacity=20_000, rays=500, share=share, max_steps=40, size=64)


@pytest.mark.parametrize("rays", [0, 1, 127, 129])
def test_march_of_few_rays(gpu, rays):
    if rays:
        compare_march(gpu, capacity=50, rays=rays)
        return
    places, settings = rays_at(0, gpu)
    marched = torch_kernels.march(*places, **settings, max_steps=4, bound=1.0, capacity=7)
    assert int(marched.n_samples_needed) == 0
    assert not marched.packed.valid.any()
    assert (marched.positions == 0).all()


@pytest.mark.parametrize("density", [0.5, 20.0, 3000.0])
@pytest.mark.parametrize("capacity", [12_000, 4_000, 50])
def test_composite(gpu, capacity, density):
    marched = some_samples(COUNTS, capacity, gpu, max_steps=7)
    rays, gradient = compare_composite(some_values(capacity, gpu, density=density), marched)
    assert float(rays.weights_sum.max()) > 0.5
    assert (gradient[~marched.packed.valid] == 0).all()


def test_composite_of_rays_without_samples(gpu):
    marched = some_samples([0] * 40, 10, gpu, max_steps=3)
    rays, gradient = compare_composite(some_values(10, gpu), marched)
    assert (rays.image == 0).all()
    assert (gradient == 0).all()


# --- in torch


class Step:
    """Rays through a small field of a grid in a grid, as the head's is: the loss of its weights."""

    def __init__(self, device, kernels=torch_kernels):
        generator = torch.Generator().manual_seed(3)
        self.kernels = kernels
        self.march = kernels.march if kernels is torch_kernels else kernels.march_packed
        self.layouts = [GridConfig(levels=6, log2_rows=10).layout(3), GridConfig(levels=4).layout(2)]
        sizes = [(layout.offsets[-1], 2) for layout in self.layouts] + [(2, 12), (5, 12 + 8)]
        self.weights = [
            (torch.randn(size, generator=generator) * 0.3).to(device).requires_grad_() for size in sizes
        ]
        self.places, self.settings = rays_at(400, device)
        self.settings |= {"max_steps": 6, "bound": 1.0, "capacity": 1500}

    def loss(self):
        """() of what the rays see."""
        first, second, to_ambient, to_values = self.weights
        marched = self.march(*self.places, **self.settings)
        where = self.kernels.grid_encode(marched.positions, first, self.layouts[0])
        ambient = torch.tanh(torch.nn.functional.linear(where, to_ambient).float())
        moved = self.kernels.grid_encode(ambient, second, self.layouts[1])
        out = torch.nn.functional.linear(torch.cat((where, moved), 1), to_values).float()
        values = torch.cat((out[:, :1].exp(), torch.sigmoid(out[:, 1:])), 1)
        seen = self.kernels.composite_packed(values, marched, step=STEP)
        lost = seen.image.square().sum(1) + (1 - seen.weights_sum) + 0.01 * seen.spread + 0.1 * seen.ambient
        return (lost * marched.fits).mean()

    def gradients(self, loss=None):
        """The loss and its gradients."""
        found = (self.loss if loss is None else loss)()
        return found.detach(), *torch.autograd.grad(found, self.weights)


def compare_steps(got, expected, share):
    for one, other in zip(got, expected, strict=True):
        assert float(other.abs().max()) > 0
        close(one, other, share)


def test_a_whole_step_is_the_twins(gpu):
    compare_steps(Step(gpu).gradients(), Step(gpu, torch_reference).gradients(), WHOLE)


def test_a_whole_step_under_autocast_is_the_twins(gpu):
    """Grids and compositing stay float32 on both sides; products, in bfloat16, round alike or one unit apart.

    A coordinate one unit of bfloat16 elsewhere, 2^-9, lies in another cell of the finer levels.
    """
    results = []
    for kernels in (torch_kernels, torch_reference):
        step = Step(gpu, kernels)
        with torch.autocast("cuda", torch.bfloat16):
            results.append(step.gradients())
        assert all(gradient.dtype is torch.float32 for gradient in results[-1])
    for got, expected in zip(*results, strict=True):
        apart = float((got - expected).norm() / expected.norm())
        assert apart < 0.02


# What inductor and triton warn of is not ours, such as that TF32 is off.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_step_is_the_plain_one(gpu, backend):
    if backend == "inductor" and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("inductor needs a C compiler")
    step = Step(gpu)
    compiled = torch.compile(step.loss, backend=backend, fullgraph=True)
    compare_steps(step.gradients(compiled), step.gradients(), WHOLE)


def test_a_step_in_a_graph_is_the_plain_one(gpu):
    step = Step(gpu)
    expected = step.gradients()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step.gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step.gradients()
    for tensor in got:
        tensor.fill_(7.0)
    graph.replay()
    compare_steps(got, expected, WHOLE)


def test_on_another_stream(gpu):
    step = Step(gpu)
    expected = step.gradients()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = step.gradients()
    side.synchronize()
    compare_steps(got, expected, WHOLE)
