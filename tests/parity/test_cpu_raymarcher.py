"""The CPU raymarcher against its torch twin, with sizes from tiny to GeneFace's own.

The kernel rounds to bytes, which alone leaves 58.9 dB; all else that differs is the order of float32 sums.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from geneface_checkpoint import read_checkpoint
from pictures import psnr_db
from small_scene import SMALL

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.masks import BlockMask
from cuda_kernels.scene import Camera, Grid, Scene
from cuda_kernels.torch_reference import render_scene
from models.head import Head, HeadConfig
from models.torso import Torso, TorsoConfig

PSNR_DB = 56.0  # of bytes against float: 58.9 dB if nothing else differs, less where a plain background
# lies half-way between two bytes
PSNR_GENEFACE_DB = 45.0  # untrained weights enlarge a rounding of 1e-7 in a position to 1e-2 in a feature


def compare(scene, size_px, *, psnr=PSNR_DB, yaw=0.15, pitch=-0.1):
    c2w, condition = make_pose(yaw, pitch), make_condition(scene)
    with torch.inference_mode():
        expected = render_scene(scene, c2w=c2w, condition=condition, size_px=size_px).numpy()
    got = CpuRaymarcher(scene).render(c2w=c2w, condition=condition, size_px=size_px)
    assert got.shape == (size_px, size_px, 3)
    assert got.dtype == np.uint8
    assert psnr_db(got / 255, expected) >= psnr
    # A head and a torso were drawn, not the background alone.
    bare = CpuRaymarcher(scene)._background(size_px)
    changed = (np.abs(expected - bare).max(axis=-1) > 0.02).mean()
    assert changed > 0.2


VARIANTS = {
    "plain": {},
    "hashed": {"hashed": True},
    "smoothstep": {"smoothstep": True},
    "hashed smoothstep": {"hashed": True, "smoothstep": True},
    "one feature": {"features": 1},
    "four features": {"features": 4},
    "odd widths": {"hidden": 19, "geometry": 7, "torso_hidden": 22, "condition": 3},
    "single layers": {"layers": (1, 1, 1), "torso_layers": (1, 1), "density": 0.0},
    "many layers": {"layers": (4, 5, 4), "torso_layers": (2, 5)},
    "one level": {"levels": 1, "torso_levels": 3},
    "table smaller than a row of cells": {"log2_rows": 5, "levels": 6},
    "no torso": {"with_torso": False},
    "few steps": {"max_steps": 2},
    "other seed": {"seed": 5},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_draws_what_the_twin_draws(changes):
    compare(make_scene(**{**SMALL, **changes}), 96)


def test_tables_whose_length_is_no_power_of_two():
    scene = make_scene(**SMALL)
    grids = []
    for grid in (scene.head.position_grid, scene.head.ambient_grid):
        rows = [min(rows, 1000) for rows in grid.layout.rows]
        layout = dataclasses.replace(grid.layout, offsets=(0, *itertools.accumulate(rows)))
        parts = [grid.table[a : a + n] for a, n in zip(grid.layout.offsets, rows, strict=False)]
        grids.append(Grid(table=np.concatenate(parts), layout=layout))
    head = dataclasses.replace(scene.head, position_grid=grids[0], ambient_grid=grids[1])
    compare(dataclasses.replace(scene, head=head), 96)


@pytest.mark.parametrize("size_px", [96, 100, 127, 128, 256])
def test_every_size(size_px):
    compare(make_scene(**SMALL), size_px)


def test_the_largest_size():
    compare(make_scene(**{**SMALL, "image_size_px": 512}), 512)


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.6, 0.3), (-0.5, -0.4), (math.pi / 2, 0.0)])
def test_every_pose(yaw, pitch):
    """At zero angles the middle rays run along the axes: their slabs are infinite."""
    compare(make_scene(**SMALL), 97, yaw=yaw, pitch=pitch)


def test_a_camera_inside_the_head():
    scene = make_scene(**SMALL)
    c2w, condition = np.eye(4, dtype=np.float32), make_condition(scene)
    expected = render_scene(scene, c2w=c2w, condition=condition, size_px=64).numpy()
    got = CpuRaymarcher(scene).render(c2w=c2w, condition=condition, size_px=64)
    assert psnr_db(got / 255, expected) >= PSNR_DB


def test_a_camera_that_looks_away_sees_torso_and_background():
    scene = make_scene(**SMALL)
    c2w, condition = make_pose(), make_condition(scene)
    c2w[:3, 3] *= -1
    raymarcher = CpuRaymarcher(scene)
    got = raymarcher.render(c2w=c2w, condition=condition, size_px=64)
    assert raymarcher.samples == 0
    expected = render_scene(scene, c2w=c2w, condition=condition, size_px=64).numpy()
    assert psnr_db(got / 255, expected) >= PSNR_DB


def test_an_empty_grid_shows_no_head():
    scene = make_scene(**SMALL)
    empty = dataclasses.replace(scene.head, density_bitfield=np.zeros_like(scene.head.density_bitfield))
    raymarcher = CpuRaymarcher(dataclasses.replace(scene, head=empty))
    raymarcher.render(c2w=make_pose(), condition=make_condition(scene), size_px=64)
    assert raymarcher.samples == 0


def test_a_full_grid_gives_every_ray_its_samples():
    scene = make_scene(**{**SMALL, "density": -20.0, "max_steps": 5})
    full = dataclasses.replace(scene.head, density_bitfield=np.full_like(scene.head.density_bitfield, 255))
    scene = dataclasses.replace(scene, head=full)
    raymarcher = CpuRaymarcher(scene)
    got = raymarcher.render(c2w=make_pose(), condition=make_condition(scene), size_px=64)
    assert raymarcher.samples == 5 * 64 * 64
    expected = render_scene(scene, c2w=make_pose(), condition=make_condition(scene), size_px=64).numpy()
    assert psnr_db(got / 255, expected) >= PSNR_DB


# --------------------------------------------------------------------------------------- GeneFace's sizes
@pytest.fixture(scope="module")
def geneface(shared_fixtures):
    """(scene, c2w, condition) of the reference's frame 3: 128 wide, 16 levels, a 64-wide torso."""
    folder = shared_fixtures / "radnerf_render"
    head = Head(HeadConfig()).eval()
    head.load_state_dict(read_checkpoint(folder / "head_model_ckpt_steps_250000.ckpt.xz")["model"])
    torso = Torso(TorsoConfig()).eval()
    state = read_checkpoint(shared_fixtures / "radnerf_torso" / "model_ckpt_steps_250000.ckpt.xz")["model"]
    torso.load_state_dict({key: value for key, value in state.items() if "torso" in key})
    with np.load(shared_fixtures / "radnerf_torso" / "torso_frame3.npz") as case:
        bare = (case["bg_color"][0] * 255).round().astype(np.uint8).reshape(32, 32, 3)
        windows = torch.from_numpy(case["cond_wins"][:, 0][None])
    with np.load(folder / "head_frame3.npz") as case:
        focal, _, cx, cy = (float(v) for v in case["intrinsics"])
        pose = case["pose_matrix"][0]
    with torch.no_grad():
        condition = head.encode_condition(windows)[0].numpy()
    camera = Camera(focal_px=focal, cx_px=cx, cy_px=cy)
    c2w = np.eye(4, dtype=np.float32)
    c2w[[1, 2, 0]] = pose[:3] * np.array([1, -1, -1, 1 / camera.scale], np.float32)
    scene = Scene(head=head.field(), torso=torso.field(), camera=camera, background=bare, image_size_px=32)
    return SimpleNamespace(scene=scene, c2w=c2w, condition=condition)


@pytest.mark.parametrize("size_px", [32, 96])
def test_genefaces_own_sizes(geneface, size_px):
    arguments = {"c2w": geneface.c2w, "condition": geneface.condition, "size_px": size_px}
    expected = render_scene(geneface.scene, **arguments).numpy()
    raymarcher = CpuRaymarcher(geneface.scene)
    got = raymarcher.render(**arguments)
    assert raymarcher.samples > 0
    assert psnr_db(got / 255, expected) >= PSNR_GENEFACE_DB


# --------------------------------------------------------------------------------------- one picture
@pytest.fixture(scope="module")
def drawn():
    scene = make_scene(**SMALL)
    raymarcher = CpuRaymarcher(scene)
    arguments = {"c2w": make_pose(0.2, 0.1), "condition": make_condition(scene)}
    return SimpleNamespace(
        raymarcher=raymarcher,
        scene=scene,
        arguments=arguments,
        image=raymarcher.render(**arguments, size_px=150),
    )


@pytest.mark.parametrize(
    "region", [(0, 0, 150, 150), (0, 0, 1, 1), (149, 149, 150, 150), (37, 51, 118, 93), (5, 100, 150, 150)]
)
def test_a_region_is_the_crop_bit_for_bit(drawn, region):
    x0, y0, x1, y1 = region
    got = drawn.raymarcher.render(**drawn.arguments, size_px=150, region_px=region)
    np.testing.assert_array_equal(got, drawn.image[y0:y1, x0:x1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time_and_with_any_number_of_threads(drawn, threads):
    raymarcher = CpuRaymarcher(drawn.scene, threads=threads)
    for _ in range(3):
        np.testing.assert_array_equal(raymarcher.render(**drawn.arguments, size_px=150), drawn.image)
    raymarcher.close()
    raymarcher.close()


def test_writes_into_the_callers_array(drawn):
    out = np.zeros((150, 150, 3), np.uint8)
    assert drawn.raymarcher.render(**drawn.arguments, size_px=150, out=out) is out
    np.testing.assert_array_equal(out, drawn.image)


def test_i420_is_opencvs_conversion(drawn):
    got = drawn.raymarcher.render_i420(**drawn.arguments, size_px=128)
    image = drawn.raymarcher.render(**drawn.arguments, size_px=128)
    # OpenCV takes chroma from one pixel of four, we from their mean: alike where the four are alike.
    mean = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).repeat(2, axis=0).repeat(2, axis=1)
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)[:128].astype(int)
    chroma = cv2.cvtColor(mean, cv2.COLOR_RGB2YUV_I420)[128:].astype(int)
    assert got.shape == (192, 128)
    assert np.abs(got[:128].astype(int) - luma).max() <= 1  # both round
    assert np.abs(got[128:].astype(int) - chroma).max() <= 1  # the mean was rounded before
    assert np.ptp(got[128:]) > 10
    back = cv2.cvtColor(got, cv2.COLOR_YUV2RGB_I420)
    assert np.abs(back.astype(int) - image)[:40].mean() < 2  # above the head


def test_i420_of_white_black_and_the_primaries():
    from cuda_kernels.cpu_raymarcher import rgb_to_i420

    for rgb in [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]:
        image = np.full((2, 2, 3), rgb, np.uint8)
        expected = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).ravel().astype(int)
        assert np.abs(rgb_to_i420(image).ravel().astype(int) - expected).max() <= 1


def test_the_twin_draws_a_mask_as_it_draws_the_whole():
    scene = make_scene(**SMALL)
    about = {"c2w": make_pose(0.15, -0.1), "condition": make_condition(scene), "size_px": 42}
    covered = np.random.default_rng(4).random((11, 11)) < 0.5
    mask = BlockMask(size_px=42, covered=covered)
    with torch.inference_mode():
        whole = render_scene(scene, **about).numpy()
        drawn = render_scene(scene, **about, mask=mask).numpy()
    assert not drawn[~mask.pixels].any()
    # Matrix products of another number of rows may add up in another order.
    np.testing.assert_allclose(drawn[mask.pixels], whole[mask.pixels], atol=2e-6)
