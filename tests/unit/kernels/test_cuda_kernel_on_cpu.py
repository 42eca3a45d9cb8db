"""The CUDA kernel's own text, compiled as C++ and run on the CPU lane by lane, against the CPU raymarcher.

It shows that indexing, packing and arithmetic are right; not that the GPU's instructions do what the
emulation does, nor that warps do not race.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from composites import composite, masks_of, random_plate
from emulated_raymarcher import COMPILER, HostScene, compile_kernel, draw
from pictures import psnr_db
from small_scene import SMALL

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels import cuda_records
from cuda_kernels.cpu_raymarcher import CpuRaymarcher, rgb_to_i420

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

PSNR_DB = 50.0  # of bytes against bytes: halves are worth eleven bits
POSE = make_pose(0.15, -0.1)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compile_kernel(tmp_path_factory.mktemp("kernel"), 32)


@pytest.fixture(scope="module")
def scene():
    return make_scene(**SMALL)


def frame_of(scene, size_px=40, *, c2w=POSE, seed=0, **others):
    return {"c2w": c2w, "condition": make_condition(scene, seed), "size_px": size_px, **others}


def compare(kernel, scene, size_px=40, *, c2w=POSE):
    raymarcher = CpuRaymarcher(scene, threads=1)
    frame = frame_of(scene, size_px, c2w=c2w)
    expected = raymarcher.render(**frame)
    (got,), (samples, passed) = draw(kernel, [(HostScene(scene), frame)])
    assert psnr_db(got / 255, expected / 255) >= PSNR_DB
    # A ray on the edge of a cell may take another sample for a rounding in the last place.
    assert abs(samples - raymarcher.samples) <= 1 + 0.01 * raymarcher.samples
    assert passed >= samples
    return samples


VARIANTS = {
    "plain": {},
    "odd widths": {"hidden": 19, "geometry": 7, "torso_hidden": 22, "condition": 3},
    "as many levels as there may be": {"levels": 16, "torso_levels": 3},
    "z left out of most levels": {"levels": 6, "log2_rows": 5},
    "no torso": {"with_torso": False},
    "few steps": {"max_steps": 2},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_draws_what_the_cpu_raymarcher_draws(kernel, changes):
    assert compare(kernel, make_scene(**{**SMALL, **changes})) > 0


@pytest.mark.parametrize("size_px", [8, 33])
def test_pictures_that_no_tile_fits(kernel, scene, size_px):
    compare(kernel, scene, size_px)


@pytest.mark.parametrize("turn", [0.0, math.pi / 2])
def test_rays_along_the_axes(kernel, scene, turn):
    compare(kernel, scene, c2w=make_pose(turn))


def test_a_camera_that_looks_away_takes_no_samples(kernel, scene):
    c2w = POSE.copy()
    c2w[:3, 3] *= -1
    assert compare(kernel, scene, c2w=c2w) == 0


def test_the_widest_networks_with_weights_in_device_memory(tmp_path):
    kernel = compile_kernel(tmp_path, 128, in_shared=0)
    compare(kernel, make_scene(**{**SMALL, "hidden": 100, "torso_hidden": 64}), 16)


def test_a_ray_alone_has_eight_lanes_and_gives_the_same_bits(kernel, scene):
    host, sparse = HostScene(scene), []
    (whole,), _ = draw(kernel, [(host, frame_of(scene))])
    for x, y in [(20, 20), (17, 24), (25, 15)]:
        (part,), (samples, passed) = draw(
            kernel, [(host, frame_of(scene, region_px=(x, y, x + 1, y + 1)))], blocks=1
        )
        np.testing.assert_array_equal(part[0, 0], whole[y, x])
        assert passed == 32 * -(-samples // 8)
        sparse.append(samples)
    assert max(sparse) > 1  # some ray took samples ahead


@pytest.mark.parametrize("region_px", [(0, 0, 1, 1), (7, 5, 38, 31)])
def test_a_region_is_the_crop_bit_for_bit(kernel, scene, region_px):
    host, (x0, y0, x1, y1) = HostScene(scene), region_px
    (whole,), _ = draw(kernel, [(host, frame_of(scene))])
    (part,), _ = draw(kernel, [(host, frame_of(scene, region_px=region_px))])
    np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("region_px", [(0, 0, 40, 40), (6, 4, 38, 22)])
def test_i420_is_the_conversion_of_the_rgb_picture(kernel, scene, region_px):
    host = HostScene(scene)
    (rgb,), _ = draw(kernel, [(host, frame_of(scene, region_px=region_px))])
    (yuv,), _ = draw(kernel, [(host, frame_of(scene, region_px=region_px, i420=True))])
    np.testing.assert_array_equal(yuv, rgb_to_i420(rgb))


def over_plate(scene, size_px, mask, *, seed=0, **others):
    """A frame whose plate is noise."""
    plate = (random_plate(size_px, seed), mask)
    return frame_of(scene, size_px, seed=seed, i420=True, plate=plate, **others)


def expected_of(kernel, host, frame):
    """The composite of the frame's plate and what is drawn whole."""
    whole = {name: value for name, value in frame.items() if name not in ("plate", "i420")}
    (rgb,), _ = draw(kernel, [(host, whole)])
    return composite(frame["plate"][0], rgb, frame["plate"][1])


@pytest.mark.parametrize("size_px", [34, 40])
@pytest.mark.parametrize("name", masks_of(40))
def test_a_mask_over_a_plate_is_the_composite_of_the_whole_picture(kernel, scene, size_px, name):
    host, frame = HostScene(scene), over_plate(scene, size_px, masks_of(size_px)[name])
    (got,), _ = draw(kernel, [(host, frame)])
    np.testing.assert_array_equal(got, expected_of(kernel, host, frame))


def test_only_the_mask_is_marched(kernel, scene):
    host, masks = HostScene(scene), masks_of(40)
    samples = {}
    for name in ("nothing", "one block", "the middle", "all"):
        _, (samples[name], _) = draw(kernel, [(host, over_plate(scene, 40, masks[name]))])
    _, (whole, _) = draw(kernel, [(host, frame_of(scene))])
    assert samples["nothing"] == samples["one block"] == 0  # a block alone would show at no corner
    assert 0 < samples["the middle"] < samples["all"] == whole


def test_frames_of_several_scenes_in_one_launch_equal_launches_of_their_own(kernel, scene):
    other = make_scene(**{**SMALL, "seed": 3, "with_torso": False})
    hosts = [HostScene(scene), HostScene(other)]
    frames = [
        (hosts[n % 2], frame_of(hosts[n % 2].scene, 24 + 5 * n, seed=n, c2w=make_pose(0.1 * n)))
        for n in range(5)
    ]
    together, _ = draw(kernel, frames, blocks=3)
    for picture, frame in zip(together, frames, strict=True):
        np.testing.assert_array_equal(picture, draw(kernel, [frame])[0][0])


def test_plates_beside_whole_pictures_and_regions_in_one_launch(kernel, scene):
    other = make_scene(**{**SMALL, "seed": 3, "with_torso": False})
    hosts, masks = [HostScene(scene), HostScene(other)], [*masks_of(34).values()]
    frames = [
        (hosts[0], frame_of(scene, 33)),
        (hosts[1], over_plate(other, 34, masks[3], seed=1)),
        (hosts[0], over_plate(scene, 34, masks[0], seed=2)),
        (hosts[1], frame_of(other, region_px=(6, 4, 38, 22), i420=True)),
        (hosts[0], over_plate(scene, 34, masks[5], seed=3, c2w=make_pose(0.2))),
    ]
    together, _ = draw(kernel, frames, blocks=3)
    for picture, frame in zip(together, frames, strict=True):
        np.testing.assert_array_equal(picture, draw(kernel, [frame])[0][0])
        if "plate" in frame[1]:
            np.testing.assert_array_equal(picture, expected_of(kernel, *frame))


def test_activations_beyond_halves_give_no_nan(kernel, scene):
    """A pixel that is not a number would come out black; densities here are opaque, colours bright."""
    huge = tuple(weight * np.float32(2e3) for weight in scene.head.sigma_net[:-1])
    color = (scene.head.color_net[0], np.abs(scene.head.color_net[1]) * np.float32(1e3))
    head = replace(scene.head, sigma_net=(*huge, scene.head.sigma_net[-1]), color_net=color)
    dark = replace(scene, head=head, torso=None, background=np.zeros_like(scene.background))
    (got,), _ = draw(kernel, [(HostScene(dark), frame_of(dark))])
    middle = got[16:24, 16:24]
    assert (middle >= 127).all()  # the sigmoid of what is not negative


def test_records_are_those_of_the_kernel(kernel):
    records = ("LEVEL", "GRID", "SCENE", "FRAME", "WORK", "LAUNCH")
    for number, name in enumerate(records):
        assert getattr(cuda_records, name).itemsize == kernel.record_bytes(number), name
    assert cuda_records.FRAME.fields["out"][1] == kernel.frame_out_at()
