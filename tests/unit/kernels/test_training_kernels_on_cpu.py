"""The training kernels' own text, compiled as C++ and run on the CPU through torch, against the twin.

It shows that indexing, arithmetic and the way into torch are right; not that the GPU's instructions do what
the emulation does.
"""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from training_cases import (
    GRIDS,
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

from cuda_kernels import cuda_module, torch_encodings, torch_kernels, torch_launcher
from cuda_kernels.cuda_module import ARCHITECTURES, CudaUnavailableError
from models.encodings import GridConfig

CPU = torch.device("cpu")
LAYOUT = GridConfig(levels=4, log2_rows=8, desired_resolution=64).layout(2)


# --- grid encoding


@pytest.mark.parametrize(("changes", "dimensions"), GRIDS.values(), ids=GRIDS.keys())
def test_encoding(kernels, changes, dimensions):
    features, of_table, of_x = compare_encoding(changes, dimensions, CPU)
    assert min(float(a.abs().max()) for a in (features, of_table, of_x)) > 0
    assert {name.rsplit("_", 1)[0] for name in kernels.names} == {
        "encode",
        "encode_table_gradient",
        "encode_point_gradient",
    }


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_encoding_in_another_box(kernels, bound):
    compare_encoding({}, 3, CPU, bound=bound)


@pytest.mark.parametrize("count", [0, 1, 31, 33])
def test_encoding_of_few_points(kernels, count):
    compare_encoding({"levels": 5}, 2, CPU, count=count)


def test_points_outside_and_on_the_faces(kernels):
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0001, 0.0], [0.0, float("nan")], [0.0, -3.0]])
    table = torch.rand(LAYOUT.offsets[-1], 2) + 1
    features = torch_kernels.grid_encode(x, table, LAYOUT)
    assert (features[:2] >= 1).all()
    assert (features[2:] == 0).all()


def test_many_points_in_one_cell_are_all_counted(kernels):
    """All lanes of a warp add to the same rows: none may be lost, wherever the run begins and ends."""
    table = torch.zeros(LAYOUT.offsets[-1], 2, requires_grad=True)
    x = torch.full((77, 2), 0.3)
    torch_kernels.grid_encode(x, table, LAYOUT).sum().backward()
    assert float(table.grad.sum()) == pytest.approx(77 * LAYOUT.levels * 2, rel=1e-5)


def test_only_wanted_gradients_are_computed(kernels):
    table = torch.rand(LAYOUT.offsets[-1], 2, requires_grad=True)
    torch_kernels.grid_encode(points_in(40, 2, 1.0, CPU), table, LAYOUT).sum().backward()
    assert "encode_point_gradient_2d" not in kernels.names


@pytest.mark.parametrize(("features", "levels"), [(4, 3), (1, 3), (2, 17)])
def test_a_grid_that_the_kernels_do_not_know_is_the_twins(kernels, features, levels):
    layout = GridConfig(features=features, levels=levels).layout(2)
    x, table = points_in(20, 2, 1.0, CPU)[:10], torch.rand(layout.offsets[-1], features)
    got = torch_kernels.grid_encode(x, table, layout)
    torch.testing.assert_close(got, torch_encodings.grid_encode(x, table, layout))
    assert not kernels.names


def test_halves_are_encoded_in_float(kernels):
    x, table = points_in(40, 2, 1.0, CPU)[:20], torch.rand(LAYOUT.offsets[-1], 2)
    got = torch_kernels.grid_encode(x.bfloat16(), table.half(), LAYOUT)
    close(got, torch_encodings.grid_encode(x.bfloat16().float(), table.half().float(), LAYOUT), 1e-6)


# --- marching


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("capacity", [1000, None])
def test_march(kernels, capacity, phase):
    marched = compare_march(CPU, capacity=capacity, phase=phase)
    counts = marched.samples.mask.sum(1)
    assert counts.min() == 0
    assert counts.max() == 6
    assert marched.fits.all()


@pytest.mark.parametrize("capacity", [1, 100, 300])
def test_march_with_too_little_room(kernels, capacity):
    marched = compare_march(CPU, capacity=capacity)
    assert int(marched.n_samples_needed) > capacity
    assert marched.packed.valid.all()
    assert not marched.fits[-1]


def test_march_with_exactly_enough_room(kernels):
    wanted = int(compare_march(CPU, capacity=None).n_samples_needed)
    marched = compare_march(CPU, capacity=wanted)
    assert marched.fits.all()
    assert not compare_march(CPU, capacity=wanted - 1).fits.all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_march_through_nothing_and_through_everything(kernels, share):
    marched = compare_march(CPU, capacity=2000, share=share, max_steps=40)
    assert (int(marched.n_samples_needed) == 0) == (share == 0.0)


def test_march_in_a_smaller_cube(kernels):
    compare_march(CPU, capacity=900, bound=0.5)


def test_march_of_no_rays(kernels):
    places, settings = rays_at(0, CPU)
    settings |= {"max_steps": 4, "bound": 1.0}
    for capacity in (7, None):
        marched = torch_kernels.march(*places, **settings, capacity=capacity)
        assert int(marched.n_samples_needed) == 0
        assert marched.packed.slots.shape == (capacity or 0,)
        assert not marched.packed.valid.any()
        values = torch.rand(capacity or 0, 5, requires_grad=True)
        seen = torch_kernels.composite_packed(values, marched, step=STEP)
        seen.image.sum().backward()
        assert (values.grad == 0).all()


# --- compositing


COUNTS = [3, 0, 7, 1, 0, 7, 5, 2, 6, 7, 7, 4, 0] * 4


@pytest.mark.parametrize("density", [0.5, 20.0, 3000.0])
@pytest.mark.parametrize("capacity", [300, 120, 50])
def test_composite(kernels, capacity, density):
    marched = some_samples(COUNTS, capacity, CPU, max_steps=7)
    values = some_values(capacity, CPU, density=density)
    rays, gradient = compare_composite(values, marched)
    assert float(rays.weights_sum.max()) > 0.5
    assert (gradient[~marched.packed.valid] == 0).all()
    assert kernels.names == ["composite_rays", "composite_gradient"]


def test_composite_that_sees_all_or_stops_early(kernels):
    marched = some_samples(COUNTS, 300, CPU, max_steps=7)
    values = some_values(300, CPU, density=200.0)
    whole, _ = compare_composite(values, marched, stop=0.0)
    early, _ = compare_composite(values, marched, stop=0.5)
    assert int(early.live.sum()) < int(whole.live.sum())


def test_composite_of_rays_without_samples(kernels):
    marched = some_samples([0] * 40, 10, CPU, max_steps=3)
    rays, gradient = compare_composite(some_values(10, CPU), marched)
    assert (rays.image == 0).all()
    assert (gradient == 0).all()


def test_composite_of_infinite_density_is_finite(kernels):
    marched = some_samples([4] * 8, 32, CPU, max_steps=4)
    values = some_values(32, CPU)
    values[1::4, 0] = torch.inf
    own = values.requires_grad_()
    rays = torch_kernels.composite_packed(own, marched, step=STEP)
    (rays.image.sum() + rays.depth.sum() + rays.spread.sum()).backward()
    assert (rays.live <= 2).all()
    torch.testing.assert_close(rays.weights_sum.detach(), torch.ones(8))
    assert own.grad.isfinite().all()


def test_the_gradient_is_that_of_finite_differences(kernels):
    """Not against the twin: of the kernel itself, in float32 with a step that its rounding allows."""
    marched = some_samples([3, 2], 5, CPU, max_steps=3)
    values = torch.rand(5, 5, generator=torch.Generator().manual_seed(4)) + 0.2
    own = values.clone().requires_grad_()

    def loss(given):
        seen = torch_kernels.composite_packed(given, marched, step=STEP)
        return (
            (seen.image * torch.tensor([1.0, -2.0, 0.5])).sum() + 0.3 * seen.depth.sum() + seen.ambient.sum()
        )

    loss(own).backward()
    for i in range(5):
        for j in range(5):
            change = torch.zeros_like(values)
            change[i, j] = 0.05
            slope = float(loss(values + change) - loss(values - change)) / 0.1
            assert slope == pytest.approx(float(own.grad[i, j]), abs=2e-4)


# --- torch


def test_compiled_without_a_break(kernels):
    marched = some_samples([3, 0, 2], 8, CPU, max_steps=3)
    places, settings = rays_at(20, CPU)
    settings |= {"max_steps": 4, "bound": 1.0, "capacity": 60}

    def step(x, table, weight):
        features = torch_kernels.grid_encode(x, table, LAYOUT)
        values = torch.sigmoid(features @ weight)
        seen = torch_kernels.composite_packed(values, marched, step=STEP)
        found = torch_kernels.march(*places, **settings)
        return seen.image.sum() + seen.spread.sum(), found.positions

    x, weight = points_in(16, 2, 1.0, CPU)[:8], torch.rand(8, 5)
    table = torch.rand(LAYOUT.offsets[-1], 2)
    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        own = table.clone().requires_grad_()
        loss, positions = function(x, own, weight)
        loss.backward()
        results.append((loss.detach(), positions, own.grad))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected)


def test_operators_keep_torchs_rules(kernels):
    grid = (
        list(LAYOUT.offsets),
        LAYOUT.base_resolution,
        LAYOUT.log2_growth,
        LAYOUT.hashed,
        LAYOUT.smoothstep,
        1.0,
    )
    marched = some_samples([3, 0, 2], 8, CPU, max_steps=3)
    x, table = points_in(16, 2, 1.0, CPU)[:8], torch.rand(LAYOUT.offsets[-1], 2)
    values = some_values(8, CPU)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        torch_kernels._encode, (x.requires_grad_(), table.requires_grad_(), *grid), test_utils=checks
    )
    torch.library.opcheck(
        torch_kernels._composite,
        (values.requires_grad_(), marched.samples.t, marched.ends, STEP, 1e-4),
        test_utils=checks,
    )
    places, settings = rays_at(20, CPU)
    marching = (*places, settings["phase"], settings["points"], 4, 1.0)
    torch.library.opcheck(torch_kernels._march_rays, marching, test_utils=checks)
    t, _, counts = torch_kernels._march_rays(*marching)
    ends = counts.cumsum(0, dtype=torch.int32)
    torch.library.opcheck(torch_kernels._pack_samples, (*places[:2], t, ends, 4, 30, 1.0), test_utils=checks)


# --- refusals


def test_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch_launcher, "_launchers", {})
    assert not torch_launcher.usable(CPU)
    with pytest.raises(CudaUnavailableError, match="expected a CUDA device"):
        torch_kernels.grid_encode(torch.rand(3, 2), torch.rand(LAYOUT.offsets[-1], 2), LAYOUT)


def test_a_gpu_without_kernels_is_said_once(monkeypatch, caplog):
    def fails(number):
        raise CudaUnavailableError(f"GPU {number} is of another time")

    monkeypatch.setattr(torch_launcher, "_launchers", {})
    monkeypatch.setattr(torch_launcher, "_GpuLauncher", fails)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert not torch_launcher.usable(torch.device("cuda", 3))
        assert not torch_launcher.usable(torch.device("cuda", 3))
    assert [record.getMessage() for record in caplog.records] == [
        "the training kernels cannot run on cuda:3: GPU 3 is of another time"
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.rand(3, 3)}, r"x: expected shape \('any', 2\), got \(3, 3\)"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "x: expected floats, got torch.int64"),
        ({"table": torch.rand(5, 2)}, "table: expected shape"),
        (
            {"table": torch.rand(LAYOUT.offsets[-1], 2, device="meta")},
            "table: expected a tensor on cpu, got meta",
        ),
    ],
)
def test_what_does_not_fit_an_encoding_is_refused(kernels, change, match):
    given = {"x": torch.rand(3, 2), "table": torch.rand(LAYOUT.offsets[-1], 2)} | change
    with pytest.raises(ValueError, match=match):
        torch_kernels.grid_encode(given["x"], given["table"], LAYOUT)


@pytest.mark.parametrize(
    ("place", "tensor", "match"),
    [
        (0, torch.rand(20, 2), "rays_o: expected shape"),
        (2, torch.rand(19), "near: expected shape"),
        (4, torch.ones(8, 8, 4, dtype=torch.bool), "occupancy: expected shape"),
        (4, torch.ones(8, 8, 8), "occupancy: expected bool, got torch.float32"),
    ],
)
def test_what_does_not_fit_a_march_is_refused(kernels, place, tensor, match):
    places, settings = rays_at(20, CPU)
    places[place] = tensor
    with pytest.raises(ValueError, match=match):
        torch_kernels.march(*places, **settings, max_steps=4, bound=1.0, capacity=10)


def test_values_of_another_length_are_refused(kernels):
    marched = some_samples([3], 8, CPU, max_steps=3)
    with pytest.raises(ValueError, match=r"values: expected shape \(8, 5\), got \(7, 5\)"):
        torch_kernels.composite_packed(torch.rand(7, 5), marched, step=STEP)


# --- compiling


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_kernels_without_a_gpu(architecture, tmp_path, monkeypatch):
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("NVRTC is not installed: extra [cuda]")
    monkeypatch.setenv("GENEFACE_KERNEL_CACHE", str(tmp_path))
    code = cuda_module.training_code(architecture)
    assert code.startswith(b"\x7fELF")
    for name in ("encode_3d", "encode_table_gradient_2d", "march_rays", "composite_gradient"):
        assert name.encode() in code
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [code]
    monkeypatch.setattr(cuda_module, "compile_sources", None)  # what is kept is not made again
    assert cuda_module.training_code(architecture) == code
