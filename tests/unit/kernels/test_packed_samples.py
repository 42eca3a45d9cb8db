"""Samples in one row, in plain torch, against loops over rays and samples."""

from __future__ import annotations

import math

import pytest
import torch
from training_cases import STEP, rays_at, some_samples, some_values

from cuda_kernels.torch_reference import composite_packed, march, march_packed, sample_positions

CPU = torch.device("cpu")
COUNTS = [3, 0, 5, 1, 0, 4]


def slow_composite(values, counts, t, capacity, stop):
    """What each ray sees, one sample at a time in float64."""
    rays, place = [], 0
    for n, count in enumerate(counts):
        optical, seen = 0.0, dict.fromkeys(("weights_sum", "depth", "ambient", "live"), 0.0)
        image, weights = [0.0] * 3, []
        for k in range(count):
            sigma, *color, ambient = values[place + k].tolist() if place + k < capacity else [0.0] * 5
            before = math.exp(-optical)
            if before < stop:
                break
            weight = (1 - math.exp(-sigma * STEP)) * before
            optical += sigma * STEP
            weights.append(weight)
            image = [a + weight * b for a, b in zip(image, color, strict=True)]
            seen["weights_sum"] += weight
            seen["depth"] += weight * (float(t[n, k]) + STEP)
            seen["ambient"] += ambient
            seen["live"] += 1
        deep = [(float(t[n, k]) - float(t[n, 0])) / STEP for k in range(len(weights))]
        centre = sum(w * d for w, d in zip(weights, deep, strict=True)) / max(seen["weights_sum"], 1e-5)
        spread = sum(w * (d - centre) ** 2 for w, d in zip(weights, deep, strict=True))
        rays.append({**seen, "image": image, "centre": centre, "spread": spread, "weights": weights})
        place += count
    return rays


@pytest.mark.parametrize("capacity", [20, 13, 7])
@pytest.mark.parametrize("stop", [0.0, 1e-4, 0.4])
def test_compositing_is_the_loop_over_samples(capacity, stop):
    marched = some_samples(COUNTS, capacity, CPU, max_steps=6)
    values = some_values(capacity, CPU)
    rays = composite_packed(values, marched, step=STEP, stop_transmittance=stop)
    expected = slow_composite(values, COUNTS, marched.samples.t, capacity, stop)
    place = 0
    for n, (count, ray) in enumerate(zip(COUNTS, expected, strict=True)):
        for name in ("image", "weights_sum", "depth", "ambient", "centre", "spread", "live"):
            got = getattr(rays, name)[n].double()
            torch.testing.assert_close(got, torch.tensor(ray[name]).double(), rtol=1e-4, atol=1e-5)
        own = torch.zeros(count)
        own[: len(ray["weights"])] = torch.tensor(ray["weights"])
        room = max(0, min(count, capacity - place))
        torch.testing.assert_close(rays.weights[place : place + room], own[:room], rtol=1e-4, atol=1e-6)
        place += count
    assert (rays.weights[sum(COUNTS) :] == 0).all()


def test_the_centre_is_a_constant_of_the_spreads_gradient():
    marched = some_samples([3], 3, CPU, max_steps=3)
    values = torch.tensor([[3.0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0], [4.0, 0, 0, 0, 0]])
    own = values.clone().requires_grad_()
    rays = composite_packed(own, marched, step=STEP)
    assert not rays.centre.requires_grad
    (gradient,) = torch.autograd.grad(rays.spread.sum(), own)
    deep = ((marched.samples.t - marched.samples.t[:, :1]) / STEP)[0]

    def spread(first_density):
        densities = torch.tensor([first_density, 2.0, 4.0], dtype=torch.float64) * STEP
        before = torch.exp(-torch.cat((torch.zeros(1).double(), densities.cumsum(0)[:-1])))
        weights = (1 - torch.exp(-densities)) * before
        return float((weights * (deep - float(rays.centre[0])) ** 2).sum())

    slope = (spread(3.0 + 1e-4) - spread(3.0 - 1e-4)) / 2e-4
    assert float(gradient[0, 0]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("capacity", [None, 400, 90])
def test_the_march_gives_the_row_of_what_each_ray_met(capacity):
    places, settings = rays_at(80, CPU, phase=True)
    marched = march_packed(*places, **settings, max_steps=5, bound=1.0, capacity=capacity)
    samples = march(*places, **settings, max_steps=5)
    everywhere = sample_positions(places[0], places[1], samples.t)
    place = 0
    for n in range(80):
        count = int(samples.mask[n].sum())
        end = place + count
        assert int(marched.ends[n]) == end
        assert bool(marched.fits[n]) == (capacity is None or end <= capacity)
        room = count if capacity is None else max(0, min(count, capacity - place))
        own = slice(place, place + room)
        assert (marched.ray[own] == n).all()
        assert marched.packed.valid[own].all()
        torch.testing.assert_close(marched.positions[own], everywhere[n, :room], rtol=0, atol=0)
        place = end
    assert int(marched.n_samples_needed) == place
    assert len(marched.packed.slots) == (place if capacity is None else capacity)
    assert not marched.packed.valid[place:].any()
