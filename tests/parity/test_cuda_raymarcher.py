"""The CUDA raymarcher against its torch twin on a GPU.

Weights, features and activations are halves: 11 bits, of which a picture's bytes show eight. What random
weights make of a rounding is larger than what trained ones do.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from composites import composite, masks_of, random_plate
from geneface_checkpoint import read_checkpoint
from pictures import psnr_db
from small_scene import SMALL

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.cpu_raymarcher import rgb_to_i420
from cuda_kernels.cuda_module import CudaError
from cuda_kernels.cuda_raymarcher import CudaRenderer, FrameRequest
from cuda_kernels.scene import Camera, Scene
from cuda_kernels.torch_reference import render_scene
from models.head import Head, HeadConfig
from models.torso import Torso, TorsoConfig

PSNR_DB = 45.0  # what the project asks of any kernel
LARGEST, MAX_SHARE = 6 / 255, 0.999  # likewise: of a pixel's difference, and of how many pixels
POISON = 201
WIDE = {"levels": 16, "log2_rows": 16, "condition": 64, "torso_hidden": 64}


@pytest.fixture(scope="module")
def renderer(gpu):
    renderer = CudaRenderer()
    yield renderer
    renderer.close()


def draw(renderer, loaded, **arguments):
    return renderer.render([FrameRequest(scene=loaded, **arguments)])[0]


def twin(scene, device, **arguments):
    return render_scene(scene, device=device, **arguments).cpu().numpy()


def compare(renderer, scene, size_px, *, gpu, c2w=None, condition=None, share=MAX_SHARE):
    """Draws and compares a picture."""
    c2w = make_pose(0.15, -0.1) if c2w is None else c2w
    condition = make_condition(scene) if condition is None else condition
    expected = twin(scene, gpu, c2w=c2w, condition=condition, size_px=size_px)
    loaded = renderer.load(scene)
    out = np.full((size_px, size_px, 3), POISON, np.uint8)
    got = draw(renderer, loaded, c2w=c2w, condition=condition, size_px=size_px, out=out)
    renderer.unload(loaded)
    assert got is out
    assert psnr_db(got / 255, expected) >= PSNR_DB
    apart = np.abs(got / 255.0 - expected).max(axis=-1)
    assert (apart <= LARGEST).mean() >= share


VARIANTS = {
    "plain": {},
    "one level": {"levels": 1, "torso_levels": 3},
    "odd widths": {"hidden": 19, "geometry": 7, "torso_hidden": 22, "condition": 3},
    "table smaller than a row of cells": {"log2_rows": 5, "levels": 6},
    "no torso": {"with_torso": False},
    "few steps": {"max_steps": 2},
    "other seed": {"seed": 5},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_draws_what_the_twin_draws(renderer, gpu, changes):
    compare(renderer, make_scene(**{**SMALL, **changes}), 96, gpu=gpu)


@pytest.mark.parametrize("levels", [12, 16])
@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_every_width(renderer, gpu, width, levels):
    scene = make_scene(hidden=width, **{**WIDE, "levels": levels})
    compare(renderer, scene, 256, gpu=gpu)
    assert renderer.samples_passed >= renderer.samples > 256 * 256


@pytest.mark.parametrize("size_px", [96, 100, 127, 256, 1024])
def test_every_size(renderer, gpu, size_px):
    compare(renderer, make_scene(**{**SMALL, "image_size_px": 512}), size_px, gpu=gpu)


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.6, 0.3), (-0.5, -0.4), (math.pi / 2, 0.0)])
def test_every_pose(renderer, gpu, yaw, pitch):
    """At zero angles the middle rays run along the axes: their slabs are infinite."""
    compare(renderer, make_scene(**SMALL), 97, gpu=gpu, c2w=make_pose(yaw, pitch))


def test_a_camera_inside_the_head(renderer, gpu):
    compare(renderer, make_scene(**SMALL), 64, gpu=gpu, c2w=np.eye(4, dtype=np.float32))


def test_a_camera_that_looks_away_sees_torso_and_background(renderer, gpu):
    c2w = make_pose()
    c2w[:3, 3] *= -1
    compare(renderer, make_scene(**SMALL), 64, gpu=gpu, c2w=c2w)
    assert renderer.samples == 0


def test_an_empty_grid_shows_no_head(renderer, gpu):
    scene = make_scene(**SMALL)
    empty = replace(scene.head, density_bitfield=np.zeros_like(scene.head.density_bitfield))
    compare(renderer, replace(scene, head=empty), 64, gpu=gpu)
    assert renderer.samples == 0


def test_a_full_grid_gives_every_ray_its_samples(renderer, gpu):
    scene = make_scene(**{**SMALL, "density": -20.0, "max_steps": 5})
    full = replace(scene.head, density_bitfield=np.full_like(scene.head.density_bitfield, 255))
    compare(renderer, replace(scene, head=full), 64, gpu=gpu, c2w=make_pose())
    assert renderer.samples == 5 * 64 * 64


def test_weights_that_overflow_a_half_in_between_give_no_nan(renderer):
    """What such a scene looks like has no meaning, but each byte comes from a number and repeats."""
    scene = make_scene(hidden=64, **WIDE)
    huge = tuple(weight * np.float32(3e3) for weight in scene.head.ambient_net)
    sigma_net = tuple(weight * np.float32(300) for weight in scene.head.sigma_net)
    loaded = renderer.load(replace(scene, head=replace(scene.head, ambient_net=huge, sigma_net=sigma_net)))
    arguments = {"c2w": make_pose(), "condition": make_condition(scene), "size_px": 128}
    first = draw(renderer, loaded, **arguments)
    np.testing.assert_array_equal(first, draw(renderer, loaded, **arguments))
    assert len(np.unique(first)) > 2
    renderer.unload(loaded)


# --------------------------------------------------------------------------------------- GeneFace's sizes
def geneface(folder):
    """(scene, c2w, condition) of the reference's frame 3: 128 wide, 16 levels, a 64-wide torso."""
    head = Head(HeadConfig()).eval()
    checkpoint = folder / "radnerf_render" / "head_model_ckpt_steps_250000.ckpt.xz"
    head.load_state_dict(read_checkpoint(checkpoint)["model"])
    torso = Torso(TorsoConfig()).eval()
    state = read_checkpoint(folder / "radnerf_torso" / "model_ckpt_steps_250000.ckpt.xz")["model"]
    torso.load_state_dict({key: value for key, value in state.items() if "torso" in key})
    with np.load(folder / "radnerf_torso" / "torso_frame3.npz") as case:
        bare = (case["bg_color"][0] * 255).round().astype(np.uint8).reshape(32, 32, 3)
        windows = torch.from_numpy(case["cond_wins"][:, 0][None])
    with np.load(folder / "radnerf_render" / "head_frame3.npz") as case:
        focal, _, cx, cy = (float(v) for v in case["intrinsics"])
        pose = case["pose_matrix"][0]
    with torch.no_grad():
        condition = head.encode_condition(windows)[0].numpy()
    camera = Camera(focal_px=focal, cx_px=cx, cy_px=cy)
    c2w = np.eye(4, dtype=np.float32)
    c2w[[1, 2, 0]] = pose[:3] * np.array([1, -1, -1, 1 / camera.scale], np.float32)
    scene = Scene(head=head.field(), torso=torso.field(), camera=camera, background=bare, image_size_px=32)
    return scene, c2w, condition


@pytest.mark.parametrize("size_px", [32, 96, 512])
def test_genefaces_own_sizes(renderer, gpu, shared_fixtures, size_px):
    scene, c2w, condition = geneface(shared_fixtures)
    # Untrained weights over fine grids: the reference's own half precision is 46 dB from its float there.
    compare(renderer, scene, size_px, gpu=gpu, c2w=c2w, condition=condition, share=0.98)
    assert renderer.samples > 0


def test_mays_pictures_are_the_twins(renderer, gpu):
    pytest.importorskip("av", reason="a bundle's background is read with PyAV")
    from onnxruntime import InferenceSession

    from models.speaker import load_speaker
    from models.speaker_folders import find_speaker

    speaker = load_speaker(find_speaker("May", speakers_dir=None))
    session = InferenceSession(str(speaker.condition_onnx), providers=["CPUExecutionProvider"])
    landmarks = np.random.default_rng(0).normal(size=session.get_inputs()[0].shape).astype(np.float32)
    condition = session.run(None, {session.get_inputs()[0].name: landmarks * np.float32(0.5)})[0].reshape(-1)
    for pose in speaker.poses[:: len(speaker.poses) // 3]:
        compare(renderer, speaker.scene, 512, gpu=gpu, c2w=pose, condition=condition)


# --------------------------------------------------------------------------------------- launches
@pytest.fixture(scope="module")
def speakers(renderer):
    """Loaded scenes of several sizes and widths."""
    kinds = [SMALL, {**SMALL, "seed": 3}, {**SMALL, "hidden": 64, "seed": 1}, {**SMALL, "with_torso": False}]
    return [renderer.load(make_scene(**kind)) for kind in kinds]


def requests_of(speakers, count, *, size_px=112):
    return [
        FrameRequest(
            scene=speakers[number % len(speakers)],
            c2w=make_pose(0.3 * math.sin(number), 0.1 * math.cos(number)),
            condition=make_condition(speakers[number % len(speakers)].scene, seed=number),
            size_px=size_px + 10 * (number % 3),
            i420=number % 5 == 4,
        )
        for number in range(count)
    ]


def test_frames_of_several_speakers_in_one_call_equal_calls_of_their_own(renderer, speakers):
    requests = requests_of(speakers, 32)
    for request, picture in zip(requests, renderer.render(requests), strict=True):
        np.testing.assert_array_equal(picture, renderer.render([request])[0])


def test_the_same_bits_every_time(renderer, speakers):
    request = replace(requests_of(speakers, 1)[0], size_px=150)
    expected = renderer.render([request])[0]
    for _ in range(5):
        np.testing.assert_array_equal(renderer.render([request])[0], expected)


@pytest.mark.parametrize(
    "region", [(0, 0, 150, 150), (0, 0, 1, 1), (149, 149, 150, 150), (37, 51, 118, 93), (5, 100, 150, 150)]
)
def test_a_region_is_the_crop_bit_for_bit(renderer, speakers, region):
    x0, y0, x1, y1 = region
    whole = replace(requests_of(speakers, 1)[0], size_px=150)
    part = replace(whole, region_px=region, out=np.full((y1 - y0, x1 - x0, 3), POISON, np.uint8))
    np.testing.assert_array_equal(renderer.render([part])[0], renderer.render([whole])[0][y0:y1, x0:x1])


@pytest.mark.parametrize("region", [None, (20, 34, 94, 120)])
def test_i420_is_the_conversion_of_the_rgb_picture(renderer, speakers, region):
    rgb = replace(requests_of(speakers, 1)[0], size_px=150, region_px=region)
    yuv = replace(rgb, i420=True)
    expected = rgb_to_i420(renderer.render([rgb])[0])
    yuv = replace(yuv, out=np.full(yuv.shape, POISON, np.uint8))
    np.testing.assert_array_equal(renderer.render([yuv])[0], expected)


def poison(renderer, byte):
    """Fills what pictures are drawn in and copied to."""
    for slot in renderer._slots:
        for memory in (slot.output, slot.scratch):
            renderer.device.call("cuMemsetD8", memory.address, byte, memory.size)
    renderer.device.call("cuCtxSynchronize")
    for address, size in renderer._pinned._free:
        ctypes.memset(address, byte, size)


@pytest.mark.parametrize("byte", [0, 255])
def test_launches_at_once_equal_launches_alone(renderer, speakers, byte):
    """Three are under way all the time, of one to 30 frames, whatever stood in their memory before."""
    batches = [requests_of(speakers, count) for count in (1, 30, 7, 16, 2, 24)]
    alone = [renderer.render(batch) for batch in batches]
    poison(renderer, byte)
    under_way = []

    def collect():
        number, launch = under_way.pop(0)
        for picture, expected in zip(renderer.collect(launch), alone[number], strict=True):
            np.testing.assert_array_equal(picture, expected)
        assert 0 <= renderer.kernel_ms < 1000

    for turn in range(30):
        if len(under_way) == 3:
            collect()
        under_way.append((turn % 6, renderer.submit(batches[turn % 6])))
    while under_way:
        collect()


def test_every_byte_is_written(renderer, speakers):
    """Each picture comes out the same whatever stood in its place on the device before."""
    pictures = []
    for byte in (0, 255):
        requests = requests_of(speakers, 8)
        for launch in [renderer.submit(requests) for _ in range(3)]:  # all slots are made
            renderer.collect(launch)
        poison(renderer, byte)
        pictures.append(renderer.render(requests))
    for first, second in zip(*pictures, strict=True):
        np.testing.assert_array_equal(first, second)


# --------------------------------------------------------------------------------------- plates
def with_plates(renderer, size_px, **changes):
    """(loaded scene, its plates, its masks) of SMALL with changes."""
    loaded, masks = renderer.load(make_scene(**{**SMALL, **changes})), [*masks_of(size_px).values()]
    plates = np.stack([random_plate(size_px, seed) for seed in range(len(masks))])
    renderer.load_plates(loaded, plates, masks)
    return loaded, plates, masks


def over_plate(loaded, size_px, plate, seed=0):
    return FrameRequest(
        scene=loaded,
        c2w=make_pose(0.2 * math.sin(seed), 0.1 * math.cos(seed)),
        condition=make_condition(loaded.scene, seed=seed),
        size_px=size_px,
        i420=True,
        plate=plate,
    )


def expected_of(renderer, request, plates, masks):
    (whole,) = renderer.render([replace(request, plate=None, i420=False, out=None)])
    return composite(plates[request.plate], whole, masks[request.plate])


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("size_px", [34, 150, 512])
def test_masks_over_plates_are_the_composites_of_whole_pictures(renderer, gpu, size_px, width):
    loaded, plates, masks = with_plates(renderer, size_px, hidden=width)
    for number in range(len(masks)):
        request = over_plate(loaded, size_px, number, seed=number)
        request = replace(request, out=np.full(request.shape, POISON, np.uint8))
        got = renderer.render([request])[0]
        np.testing.assert_array_equal(got, expected_of(renderer, request, plates, masks))
    renderer.unload(loaded)


@pytest.mark.parametrize("byte", [0, 255])
def test_plates_beside_whole_pictures_and_regions(renderer, speakers, byte):
    """Three launches under way, of all kinds of frames, whatever stood in their memory before."""
    plated = {size_px: with_plates(renderer, size_px, seed=size_px % 7) for size_px in (66, 112)}
    requests = requests_of(speakers, 15)
    requests += [replace(request, region_px=(6, 4, 98, 60)) for request in requests_of(speakers, 5)]
    for number in range(24):
        size_px = (66, 112)[number % 2]
        requests.append(over_plate(plated[size_px][0], size_px, number // 2 % 6, seed=number))
    requests = [requests[number] for number in np.random.default_rng(0).permutation(len(requests))]
    expected = [
        renderer.render([one])[0]
        if one.plate is None
        else expected_of(renderer, one, *plated[one.size_px][1:])
        for one in requests
    ]
    batches = [(requests[first::3], expected[first::3]) for first in range(3)]
    poison(renderer, byte)
    for _ in range(5):
        launches = [renderer.submit(wanted) for wanted, _ in batches]
        for launch, (_, pictures) in zip(launches, batches, strict=True):
            for got, picture in zip(renderer.collect(launch), pictures, strict=True):
                np.testing.assert_array_equal(got, picture)
    for loaded, *_ in plated.values():
        renderer.unload(loaded)


def free_bytes(renderer):
    renderer.device.make_current()
    return renderer.device.call("cuMemGetInfo")[0]


def test_plates_that_no_gpu_has_room_for_leave_nothing(renderer, gpu):
    loaded, count = renderer.load(make_scene(**SMALL)), 1 << 16
    masks = [masks_of(2048)["nothing"]] * count
    request = replace(over_plate(loaded, 64, None), i420=False)
    before, free = renderer.render([request])[0], free_bytes(renderer)
    pictures = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (count, 3072, 2048))  # of 412 GB
    with pytest.raises(CudaError, match="cuMemAlloc: expected success, got CUDA_ERROR_OUT_OF_MEMORY"):
        renderer.load_plates(loaded, pictures, masks)
    assert free_bytes(renderer) == free
    np.testing.assert_array_equal(renderer.render([request])[0], before)
    renderer.load_plates(loaded, random_plate(64)[None], [masks_of(64)["all"]])
    assert renderer.render([over_plate(loaded, 64, 0)])[0].any()
    renderer.unload(loaded)


def test_an_unloaded_scene_is_refused_and_the_renderer_lives_on(gpu):
    from cuda_kernels.cpu_raymarcher import RenderInputError

    renderer = CudaRenderer()
    first, second = (renderer.load(make_scene(**SMALL, seed=s)) for s in range(2))
    arguments = {"c2w": make_pose(), "condition": make_condition(first.scene), "size_px": 64}
    before = draw(renderer, second, **arguments)
    renderer.unload(first)
    renderer.unload(first)
    with pytest.raises(RenderInputError, match="scene: expected one that is loaded"):
        draw(renderer, first, **arguments)
    np.testing.assert_array_equal(draw(renderer, second, **arguments), before)
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        draw(renderer, second, **arguments)
