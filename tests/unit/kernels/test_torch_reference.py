"""The plain torch raymarcher against loops that say the same thing one number at a time."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from cuda_kernels.scene import Camera
from cuda_kernels.torch_reference import (
    Samples,
    camera_rays,
    composite,
    field_pose,
    image_coordinates,
    lattice_points,
    march,
    march_in_waves,
    morton_cells,
    morton_index,
    morton_of_volume,
    near_far,
    occupancy_volume,
    pack,
    pixel_centres,
    pose_vector,
    resize_by_area,
    sample_occupancy,
    step_length,
    unpack,
)
from models.density_grid import pack_bits


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- cameras


def test_field_pose_and_its_six_numbers():
    angles = torch.tensor([0.2, -0.4, 1.1], dtype=torch.float64)
    (ca, cb, cc), (sa, sb, sc) = angles.cos().tolist(), angles.sin().tolist()
    about_x = torch.tensor([[1, 0, 0], [0, ca, -sa], [0, sa, ca]], dtype=torch.float64)
    about_y = torch.tensor([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]], dtype=torch.float64)
    about_z = torch.tensor([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = about_x @ about_y @ about_z, torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(pose_vector(pose), torch.cat((angles, pose[:3, 3])))

    camera = Camera(focal_px=100, cx_px=8, cy_px=8, scale=0.5, offset=(0.1, 0.2, 0.3))
    got = field_pose(pose, camera)
    assert torch.equal(got[0, :3], pose[1, :3] * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(got[:3, 3], torch.tensor([1.1, 1.7, 0.8], dtype=torch.float64))
    torch.testing.assert_close(field_pose(pose[None], camera)[0], got)


def test_a_point_of_head_space_lies_on_the_ray_of_its_pixel():
    camera = Camera(focal_px=60, cx_px=16, cy_px=16, scale=0.4, offset=(0.05, -0.1, 0.2))
    c2w = torch.eye(4)
    c2w[:3, 3] = torch.tensor([0.3, -0.2, 9.0])
    pose = field_pose(c2w, camera)
    rays_o, rays_d = camera_rays(pose, camera, 32, 32)
    row, column, depth = 5, 20, 7.0
    local = torch.tensor(
        [(column + 0.5 - 16) / 60 * depth, -(row + 0.5 - 16) / 60 * depth, -depth, 1.0]
    )  # OpenGL axes: y up, looking along -z
    head = c2w @ local
    at = head[[1, 2, 0]] * camera.scale + torch.tensor(camera.offset)
    along = at - rays_o[row * 32 + column]
    torch.testing.assert_close(along / along.norm(), rays_d[row * 32 + column], rtol=0, atol=1e-6)


def test_a_smaller_picture_looks_through_the_middle_of_its_pixels():
    columns, rows = pixel_centres(2, 8)
    assert columns.tolist() == [2.0, 6.0, 2.0, 6.0]
    assert rows.tolist() == [2.0, 2.0, 6.0, 6.0]


def test_torso_coordinates_are_the_references_at_full_size():
    along = torch.arange(8) / 7 * 2 - 1
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    expected = torch.stack((rows, columns), -1).reshape(-1, 2)
    torch.testing.assert_close(image_coordinates(*pixel_centres(8, 8), 8), expected)


def test_rays_enter_and_leave_the_box_where_they_should():
    box = torch.tensor([-1.0, -0.5, -1.0, 1.0, 0.5, 1.0])
    origins = torch.tensor([[0.0, 2, 0], [0, 2, 0], [0, 0.2, 0], [3, 2, 0]])
    towards = torch.tensor([[0.0, -1, 0], [0, 1, 0], [0, -1, 0], [0, -1, 0]])
    near, far = near_far(origins, towards, box)
    largest = torch.finfo(torch.float32).max
    # Behind the camera there is a crossing too, but far lies before near and nothing is sampled.
    torch.testing.assert_close(near, torch.tensor([1.5, 0.05, 0.05, largest]))
    torch.testing.assert_close(far, torch.tensor([2.5, -1.5, 0.7, largest]))


# --- occupancy and march


def test_morton_round_trip_and_order():
    x, y, z = torch.randint(0, 512, (3, 200))
    index = morton_index(x, y, z)
    for got, expected in zip(morton_cells(index), (x, y, z), strict=True):
        assert torch.equal(got, expected)
    assert [int(morton_index(*torch.tensor(cell))) for cell in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == [1, 2, 4]
    assert torch.equal(morton_of_volume(8).sort().values, torch.arange(512))


def test_bits_to_volume():
    grid = torch.rand(1, 16**3)
    volume = occupancy_volume(pack_bits(grid, 0.5), 16)
    for cell in torch.randint(0, 16, (50, 3)):
        assert bool(volume[tuple(cell)]) == bool(grid[0, morton_index(*cell)] > 0.5)


def rays(count):
    origins = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 3
    towards = torch.nn.functional.normalize(torch.rand(count, 3) * 1.4 - 0.7 - origins, dim=-1)
    return origins, towards


def slow_march(origin, towards, near, far, occupancy, steps):
    size, t, found = occupancy.shape[0], near, []
    while t < far and len(found) < steps:
        p = np.clip(origin + t * towards, -1, 1)
        cell = tuple(np.clip((p + 1) / 2 * size, 0, size - 1).astype(int))
        if occupancy[cell]:
            found.append(t)
        t += 2 * math.sqrt(3) / size
    return found


@pytest.mark.parametrize("accumulate", [False, True])
def test_march_finds_what_a_loop_finds(accumulate):
    occupancy = torch.rand(32, 32, 32) < 0.2
    origins, towards = rays(200)
    box = torch.tensor([-1.0, -0.5, -1.0, 1.0, 0.5, 1.0])
    near, far = near_far(origins, towards, box)
    phase = torch.rand(200)
    points = lattice_points((-1, -0.5, -1, 1, 0.5, 1), 32)
    got = march(
        origins, towards, near, far, occupancy, points=points, max_steps=5, phase=phase, accumulate=accumulate
    )
    differ = 0
    for n in range(200):
        if float(near[n]) > 1e30:
            assert not got.mask[n].any()
            continue
        start = float(near[n]) + float(phase[n]) * step_length(32)
        expected = slow_march(
            origins[n].numpy().astype(np.float64), towards[n].numpy(), start, float(far[n]), occupancy, 5
        )
        found = got.t[n][got.mask[n]].tolist()
        differ += len(found) != len(expected) or not np.allclose(found, expected, atol=1e-5)
    assert differ <= 2  # a lattice point within rounding of a cell's face


def test_packed_samples_unpack_to_themselves():
    mask = torch.rand(7, 5) < 0.5
    values = torch.randn(7, 5, 3) * mask[..., None]
    free = pack(mask)
    fixed = pack(mask, 40)
    assert int(fixed.valid.sum()) == int(mask.sum())
    assert torch.equal(fixed.slots[fixed.valid], free.slots)
    for packed in (free, fixed):
        assert torch.equal(unpack(values.reshape(-1, 3)[packed.slots], packed, (7, 5)), values)


def test_packing_leaves_the_last_out_when_it_is_full():
    mask = torch.ones(4, 3, dtype=torch.bool)
    packed = pack(mask, 7)
    kept = unpack(torch.ones(7), packed, (4, 3))
    assert kept.reshape(-1).tolist() == [1.0] * 7 + [0.0] * 5


def test_composite_of_a_homogeneous_medium():
    steps, step, density = 16, 0.03, 7.0
    samples = Samples((torch.arange(steps) * step + 2.0)[None], torch.ones(1, steps, dtype=torch.bool))
    color = torch.tensor([0.2, 0.5, 0.9]).expand(1, steps, 3)
    drawn = composite(torch.full((1, steps), density), color, samples, step=step)
    covered = 1 - math.exp(-density * step * steps)
    torch.testing.assert_close(drawn.weights_sum, torch.tensor([covered]))
    torch.testing.assert_close(drawn.image, covered * color[:, 0])
    weights = [math.exp(-density * step * k) * (1 - math.exp(-density * step)) for k in range(steps)]
    depth = sum(w * (2.0 + (k + 1) * step) for k, w in enumerate(weights))
    torch.testing.assert_close(drawn.depth, torch.tensor([depth]))


def test_composite_stops_once_nothing_passes_and_skips_what_is_not_there():
    samples = Samples(torch.arange(4.0)[None], torch.tensor([[True, True, True, False]]))
    drawn = composite(
        torch.tensor([[3.0, 1e3, 5.0, 5.0]]), torch.ones(1, 4, 3), samples, step=1.0, stop_transmittance=1e-4
    )
    assert drawn.live.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(drawn.weights_sum, torch.tensor([1.0]))


def test_composite_gradients():
    samples = Samples(torch.arange(5.0).expand(3, 5).double(), torch.rand(3, 5) < 0.8)
    sigma = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    color = torch.rand(3, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, c: composite(s, c, samples, step=0.3)[:3], (sigma, color))


def test_waves_agree_with_one_pass_where_no_quirk_bites():
    occupancy = torch.zeros(32, 32, 32, dtype=torch.bool)
    occupancy[12:20, 12:20, 12:20] = True  # a ray has fewer samples here than a wave may ask for
    origins, towards = rays(300)
    box = torch.tensor([-1.0, -0.5, -1.0, 1.0, 0.5, 1.0])
    near, far = near_far(origins, towards, box)
    points = lattice_points((-1, -0.5, -1, 1, 0.5, 1), 32)

    def field(positions, _ray):
        return 2 + positions.sum(-1), torch.sigmoid(positions)

    drawn = march_in_waves(field, origins, towards, near, far, occupancy, points=points)
    samples = march(origins, towards, near, far, occupancy, points=points, accumulate=True)
    positions = (origins[:, None] + samples.t[..., None] * towards[:, None]).clamp(-1, 1)
    sigma, color = field(positions.reshape(-1, 3), None)
    whole = composite(sigma.view(300, 16), color.view(300, 16, 3), samples, step=step_length(32))
    assert drawn.schedule[0] == (300, 1)
    assert float(drawn.weights_sum.max()) > 0.5
    torch.testing.assert_close(drawn.image, whole.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.weights_sum, whole.weights_sum, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.depth, whole.depth, rtol=0, atol=1e-4)


# --- pictures


@pytest.mark.parametrize("size", [96, 100, 128, 192, 256])
def test_resize_by_area_is_opencvs(size):
    image = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
    expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    got = resize_by_area(torch.from_numpy(image), size)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_occupancy_is_read_row_first():
    occupancy = torch.zeros(5, 5)
    occupancy[1, 3] = 1.0
    at = torch.tensor([[-0.5, 0.5], [0.5, -0.5], [-0.25, 0.5]])
    torch.testing.assert_close(sample_occupancy(occupancy, at), torch.tensor([1.0, 0.0, 0.5]))
