"""What the training kernels and their torch twin are compared on, on whatever device.

Both compute in float32. Which cell a point lies in is rounded alike, so that only sums differ, by their
order: a few parts in 1e7 of the largest term, times how many there are.
"""

from __future__ import annotations

import torch

from cuda_kernels import torch_encodings, torch_kernels, torch_reference
from cuda_kernels.torch_reference import Marched, Packed, Rays, Samples, step_length
from models.encodings import GridConfig

ORDER = 2e-6  # of the largest number: what the order of up to some hundred terms changes
MANY = 2e-5  # likewise of thousands of terms in a row of the table, or of their cancelling
STEP = step_length(32)

GRIDS = {
    "3-D": ({}, 3),
    "2-D": ({}, 2),
    "geneface's": ({"levels": 16, "log2_rows": 16}, 3),
    "z, then y left out": ({"levels": 7, "log2_rows": 5, "desired_resolution": 900}, 3),
    "dense levels only": ({"levels": 2, "desired_resolution": 20, "log2_rows": 19}, 3),
    "five levels": ({"levels": 5}, 3),
    "hashed": ({"hashed": True}, 3),
    "hashed 2-D": ({"hashed": True, "log2_rows": 7}, 2),
    "smoothstep": ({"smoothstep": True}, 3),
    "small base": ({"base_resolution": 3, "levels": 9, "desired_resolution": 100}, 2),
}
SMALL_GRID = {"levels": 8, "log2_rows": 9, "desired_resolution": 300}


def close(got, expected, share):
    """Asserts that no number is further off than a share of the largest one."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if expected.numel():
        torch.testing.assert_close(got, expected, rtol=0, atol=share * float(expected.abs().max()) + 1e-30)


def points_in(count, dimensions, bound, device, seed=0):
    """(count, D): runs in one cell, points anywhere, on the faces, outside, not a number."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, dimensions, generator=generator) * 2 - 1) * bound
    start, along = x[: count // 2 : 16], torch.randn(x[: count // 2 : 16].shape, generator=generator)
    step = torch.arange(16)[:, None, None] * 0.01 * bound
    runs = (start + step * along).transpose(0, 1).reshape(-1, dimensions)  # like samples of a ray
    x[: count // 2] = runs[: count // 2].clamp(-bound, bound)
    faces = x[count // 2 : count // 2 + 8]
    faces[:, 0] = torch.tensor([bound, -bound] * 4)[: len(faces)]
    if count > 24:
        x[-4] = bound
        x[-5] = -bound
        x[-6, 0] = bound * 1.0001
        x[-7, -1] = -2 * bound
        x[-8, 0] = float("nan")
    return x.to(device)


def compare_encoding(changes, dimensions, device, *, count=480, bound=1.0, encode=torch_kernels.grid_encode):
    """Compares features and both gradients of a grid on a device."""
    config = GridConfig(**{**SMALL_GRID, **changes})
    layout = config.layout(dimensions)
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(layout.offsets[-1], config.features, generator=generator).to(device)
    upstream = torch.randn(count, config.width, generator=generator).to(device)
    upstream[::7] = 0.0  # of points that gave nothing
    x = points_in(count, dimensions, bound, device)
    results = []
    for function in (encode, torch_encodings.grid_encode):
        own_x, own_table = x.clone().requires_grad_(), table.clone().requires_grad_()
        features = function(own_x, own_table, layout, bound=bound)
        features.backward(upstream)
        results.append((features.detach(), own_table.grad, own_x.grad))
    (features, of_table, of_x), expected = results
    close(features, expected[0], ORDER)
    close(of_table, expected[1], MANY)
    finite = ~x.isnan().any(-1)
    close(of_x[finite], expected[2][finite], MANY)
    assert (of_x[~finite] == 0).all()
    return features, of_table, of_x


def rays_at(rays, device, *, seed=0, size=32, share=0.3, phase=False):
    """Arguments of a march of rays, of which some miss the box, some see nothing in it."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(rays, 3, generator=generator)
    origins = 2.5 * origins / origins.norm(dim=-1, keepdim=True)
    towards = torch.rand(rays, 3, generator=generator) * 1.6 - 0.8
    towards[::5] = origins[::5] * 2  # away from the box
    directions = towards - origins
    directions = directions / directions.norm(dim=-1, keepdim=True)
    aabb = torch.tensor([-1.0, -0.5, -1.0, 1.0, 0.5, 1.0])
    near, far = torch_reference.near_far(origins, directions, aabb)
    occupancy = torch.rand(size, size, size, generator=generator) < share
    occupancy[: size // 3] = False
    starts = torch.rand(rays, generator=generator) if phase else None
    places = (origins, directions, near, far, occupancy)
    moved = [tensor.to(device) for tensor in places]
    points = torch_reference.lattice_points(tuple(aabb.tolist()), size)
    return moved, {"points": points, "phase": None if starts is None else starts.to(device)}


def compare_march(device, *, capacity, rays=150, max_steps=6, bound=1.0, march=torch_kernels.march, **others):
    """Compares all that a march gives, bit for bit; the kernels' result."""
    places, settings = rays_at(rays, device, **others)
    settings |= {"max_steps": max_steps, "bound": bound, "capacity": capacity}
    got, expected = march(*places, **settings), torch_reference.march_packed(*places, **settings)
    pairs = zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True)
    for number, (one, other) in enumerate(pairs):
        assert one.dtype == other.dtype, number
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=lambda m, n=number: f"field {n}: {m}")
    return got


def some_samples(counts, capacity, device, *, max_steps, seed=0):
    """Samples of rays that have so many each, with room for `capacity` in all."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts, dtype=torch.int64)
    mask = torch.arange(max_steps) < counts[:, None]
    gaps = torch.randint(1, 5, mask.shape, generator=generator)
    t = (1.5 + torch.rand(len(counts), 1, generator=generator) + STEP * gaps.cumsum(1)) * mask
    t, mask = t.to(device), mask.to(device)
    ends = mask.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    packed = torch_reference.pack(mask, capacity)
    return Marched(
        samples=Samples(t, mask),
        packed=Packed(*packed),
        ray=packed.slots // max_steps,
        positions=torch.zeros(len(packed.slots), 3, device=device),
        fits=ends <= capacity,
        n_samples_needed=mask.sum(),
        ends=ends,
    )


def some_values(count, device, *, density=20.0, seed=0):
    """(count, 5) densities, some of them so high that nothing passes, colours and ambient numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 5, generator=generator)
    values[:, 0] = values[:, 0] ** 3 * density
    values[::17, 0] = 1e6
    return values.to(device)


SEEN = ("image", "weights_sum", "depth", "ambient", "spread")  # differentiable


def compare_composite(values, marched, *, stop=1e-4, composite=torch_kernels.composite_packed):
    """Compares what rays see, and the gradient of the values by all that is differentiable together."""
    generator = torch.Generator().manual_seed(2)
    results = []
    for function in (composite, torch_reference.composite_packed):
        own = values.clone().requires_grad_()
        rays = function(own, marched, step=STEP, stop_transmittance=stop)
        generator.manual_seed(2)
        loss = own.new_zeros(())
        for name in SEEN:
            seen = getattr(rays, name)
            loss = loss + (seen * torch.randn(seen.shape, generator=generator).to(seen.device)).sum()
        (gradient,) = torch.autograd.grad(loss, own)
        assert not any(fixed.requires_grad for fixed in (rays.centre, rays.weights, rays.live))
        results.append((rays, gradient))
    (rays, gradient), (expected, expected_gradient) = results
    assert torch.equal(rays.live, expected.live)
    for name in (*SEEN, "centre", "weights"):
        close(getattr(rays, name).detach(), getattr(expected, name).detach(), MANY)
    for column in range(5):  # densities' gradients are smaller than colours'
        close(gradient[:, column], expected_gradient[:, column], MANY)
    return Rays(*(seen.detach() for seen in rays)), gradient
