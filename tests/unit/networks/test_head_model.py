"""The head and the torso as training uses them: streaming sizes, several frames in one step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cuda_kernels.scene import Camera, Scene
from cuda_kernels.torch_reference import (
    camera_rays,
    field_pose,
    image_coordinates,
    pixel_centres,
    pose_vector,
    render_scene,
)
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.torso import Torso, TorsoConfig

SIZE = 24


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(HeadConfig.streaming(), grid_size=32, codes=3, code_width=4)


@pytest.fixture
def head(config):
    torch.manual_seed(0)
    head = Head(config)
    with torch.no_grad():  # far from the start, so that every part matters
        head.position_embedder.embeddings.uniform_(-1, 1)
        head.ambient_embedder.embeddings.uniform_(-1, 1)
        head.update_density(torch.randn(1, 32), jitter=False)
        head.density_bitfield.random_(0, 256)
        head.refresh_occupancy()
    return head


def view(config, turn):
    camera = config.camera(focal_px=60.0, cx_px=12.0, cy_px=12.0)
    c2w = torch.eye(4)
    c2w[0, 0], c2w[0, 2], c2w[2, 0], c2w[2, 2] = np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)
    c2w[:3, 3] = c2w[:3, 2] * 0.75
    return c2w, camera


def rays_of(config, turn):
    c2w, camera = view(config, turn)
    return camera_rays(field_pose(c2w, camera), camera, SIZE, SIZE)


def test_rays_of_several_frames_in_one_step_are_each_frames_own(head, config):
    conditions, codes = torch.randn(3, 32), head.individual_embeddings.detach()
    origins, towards = zip(*(rays_of(config, turn) for turn in (-0.3, 0.0, 0.4)), strict=True)
    background = torch.rand(3 * SIZE * SIZE, 3)
    frame = torch.arange(3).repeat_interleave(SIZE * SIZE)
    shuffled = torch.randperm(len(frame))
    together = head(
        torch.cat(origins)[shuffled],
        torch.cat(towards)[shuffled],
        conditions,
        background[shuffled],
        frame=frame[shuffled],
        code=codes,
    )
    for n in range(3):
        own = slice(n * SIZE * SIZE, (n + 1) * SIZE * SIZE)
        alone = head(origins[n], towards[n], conditions[n : n + 1], background[own], code=codes[n : n + 1])
        mine = torch.empty_like(together.image).index_copy(0, shuffled, together.image)[own]
        # Another batch shape changes the order of sums; the random tables enlarge that.
        torch.testing.assert_close(mine, alone.image, rtol=0, atol=1e-3)


def test_every_parameter_learns(head, config):
    rays_o, rays_d = rays_of(config, 0.1)
    windows = torch.randn(2, 1, 204)
    drawn = head(
        rays_o,
        rays_d,
        head.encode_condition(windows),
        torch.rand(len(rays_o), 3),
        frame=torch.randint(0, 2, (len(rays_o),)),
        code=head.individual_embeddings[1:],
        phase=torch.rand(len(rays_o)),
        capacity=len(rays_o) * 10,
    )
    assert int(drawn.n_samples_needed) > 500
    (drawn.image.square().mean() + drawn.ambient.mean()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 0, name
    assert (head.individual_embeddings.grad[0] == 0).all()


def test_a_fixed_capacity_changes_nothing_while_it_suffices(head, config):
    rays_o, rays_d = rays_of(config, 0.1)
    condition, background = torch.randn(1, 32), torch.rand(len(rays_o), 3)
    free = head(rays_o, rays_d, condition, background)
    fixed = head(rays_o, rays_d, condition, background, capacity=int(free.n_samples_needed) + 5)
    torch.testing.assert_close(free.image, fixed.image, rtol=0, atol=1e-4)
    short = head(rays_o, rays_d, condition, background, capacity=int(free.n_samples_needed) // 2)
    assert int(short.n_samples_needed) == int(free.n_samples_needed)
    first = len(rays_o) // 4
    torch.testing.assert_close(short.image[:first], free.image[:first], rtol=0, atol=1e-4)
    assert torch.equal(short.image[-1], background[-1])


def test_an_empty_head_shows_the_background(config):
    rays_o, rays_d = rays_of(config, 0.0)
    background = torch.rand(len(rays_o), 3)
    drawn = Head(config)(rays_o, rays_d, torch.randn(1, 32), background)
    assert torch.equal(drawn.image, background)
    assert int(drawn.n_samples_needed) == 0


def test_occupancy_follows_a_loaded_state(head, config):
    other = Head(config)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.occupancy, head.occupancy)
    assert bool(head.occupancy.any())
    assert not bool(head.occupancy.all())


def test_the_twin_draws_head_and_torso_as_the_modules_do(head, config):
    torch.manual_seed(1)
    torso = Torso(dataclasses.replace(TorsoConfig.streaming(), grid_size=16))
    with torch.no_grad():
        torso.torso_embedder.embeddings.uniform_(-1, 1)
        torso.density_grid_torso.copy_((torch.rand(256) < 0.5).float() * 0.5)
    head.eval(), torso.eval()
    c2w, camera = view(config, 0.2)
    scene = Scene(
        head=head.field(),
        torso=torso.field(),
        camera=camera,
        background=np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
        image_size_px=SIZE,
    )
    condition = torch.randn(1, 32)
    with torch.no_grad():
        pose = field_pose(c2w, camera)
        coordinates = image_coordinates(*pixel_centres(SIZE, SIZE), SIZE)
        background = torch.from_numpy(scene.background).float().reshape(-1, 3) / 255
        behind = torso(coordinates, pose_vector(pose)[None], background)
        expected = head(*camera_rays(pose, camera, SIZE, SIZE), condition, behind.image).image.clamp(0, 1)
    assert float((behind.alpha > 0).float().mean()) > 0.3
    got = render_scene(scene, c2w=c2w, condition=condition[0], size_px=SIZE).reshape(-1, 3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)  # the modules split their first products
    bare = render_scene(dataclasses.replace(scene, torso=None), c2w=c2w, condition=condition[0], size_px=SIZE)
    assert float((bare.reshape(-1, 3) - expected).abs().max()) > 0.05


def test_torso_pixels_of_several_poses_in_one_step():
    torch.manual_seed(2)
    torso = Torso(TorsoConfig.streaming())
    poses, x, background = torch.randn(2, 6), torch.rand(50, 2) * 2 - 1, torch.rand(50, 3)
    torso.update_density(poses[:1])
    frame = torch.randint(0, 2, (50,))
    together = torso(x, poses, background, frame=frame)
    together.image.sum().backward()
    assert float(torso.torso_embedder.embeddings.grad.abs().sum()) > 0
    torso.eval()
    for n in range(2):
        alone = torso(x, poses[n : n + 1], background)
        torch.testing.assert_close(together.image[frame == n], alone.image[frame == n], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadConfig(bound=2.0), "bound: expected above 0 and at most 1, got 2.0"),
        (lambda: HeadConfig(aabb=(-1, -2, -1, 1, 1, 1)), "aabb: expected within ±1.0"),
        (lambda: HeadConfig(grid_size=100), "grid_size: expected a power of two from 8 to 512, got 100"),
        (lambda: GridConfig(levels=1), "levels: expected 2 to 32, got 1"),
        (lambda: GridConfig(log2_rows=24), "log2_rows: expected 3 to 19, got 24"),
        (lambda: GridConfig(desired_resolution=8), "desired_resolution: expected 16 to 2048, got 8"),
        (lambda: ConditionConfig(window_frames=0), "window_frames: expected 1 to 64, got 0"),
        (lambda: ConditionConfig(lookahead_frames=5), "lookahead_frames: expected 0 to 4, got 5"),
        (lambda: ConditionConfig(hidden=(32, 32, 64, -1)), "hidden: expected 1 to 1024, got -1"),
        (lambda: HeadConfig(layers_sigma=10**6), "layers_sigma: expected 1 to 16, got 1000000"),
        (lambda: HeadConfig(codes=-1), "codes: expected 1 to 200000, got -1"),
        (lambda: HeadConfig(aabb=(-1, float("nan"), -1, 1, 0.5, 1)), "aabb: expected within ±1.0"),
        (lambda: TorsoConfig(grid_size=10**6), "grid_size: expected 2 to 1024, got 1000000"),
        (lambda: TorsoConfig(shrink=float("nan")), "shrink: expected 0.05 to 1, got nan"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


def test_a_camera_of_the_heads_field():
    config = HeadConfig(camera_scale=0.5, camera_offset=(0.1, 0.2, 0.3))
    assert config.camera(focal_px=1.0, cx_px=2.0, cy_px=3.0) == Camera(
        focal_px=1.0, cx_px=2.0, cy_px=3.0, scale=0.5, offset=(0.1, 0.2, 0.3)
    )
