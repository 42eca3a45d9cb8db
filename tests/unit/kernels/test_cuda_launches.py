"""Launches of the CUDA renderer, several at once, on a stand-in driver: memory, order, failures, the end."""

from __future__ import annotations

import gc
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from composites import masks_of, random_plate
from patience import PATIENCE_S
from stand_in_driver import KERNEL_MS, StandInDriver

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels import cuda_module, cuda_raymarcher
from cuda_kernels.cpu_raymarcher import RenderInputError
from cuda_kernels.cuda_module import CudaError
from cuda_kernels.cuda_raymarcher import CudaRenderer, FrameRequest
from streaming.pipeline.gpu_renderer import GpuRaymarcher, GpuRenderer

SMALL = {"hidden": 16, "levels": 3, "log2_rows": 8, "condition": 8, "grid_size": 32, "image_size_px": 64}
KINDS = [SMALL, {**SMALL, "hidden": 64, "seed": 1}, {**SMALL, "with_torso": False}]


@pytest.fixture(scope="module")
def described():
    return [make_scene(**kind) for kind in KINDS]


@pytest.fixture
def driver(monkeypatch):
    driver = StandInDriver()
    monkeypatch.setattr(cuda_module, "import_extra", lambda name: driver)
    for module in (cuda_module, cuda_raymarcher):
        monkeypatch.setattr(module, "machine_code", lambda width, architecture: (None, b""))
    return driver


@pytest.fixture
def renderer(driver):
    """It is closed in the end, and nothing may be left."""
    renderer = CudaRenderer()
    yield renderer
    renderer.close()
    renderer.close()
    gc.collect()
    assert driver.left() == (0, 0, 0, 0)


@pytest.fixture
def scenes(renderer, described):
    return [renderer.load(scene) for scene in described]


def request(scenes, number, size_px=32, **options):
    scene = scenes[number % len(scenes)]
    return FrameRequest(
        scene=scene,
        c2w=make_pose(0.3 * math.sin(number), 0.1 * math.cos(number)),
        condition=make_condition(scene.scene, seed=number),
        size_px=size_px + 8 * (number % 3),
        i420=number % 2 == 1,
        **options,
    )


def copies(pictures):
    return [picture.copy() for picture in pictures]


def assert_same(pictures, expected):
    for picture, wanted in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(picture, wanted)


def test_frames_of_one_launch_equal_those_of_their_own(renderer, scenes):
    requests = [request(scenes, number) for number in range(13)]
    together = renderer.render(requests)
    assert [picture.shape for picture in together] == [one.shape for one in requests]
    assert len({picture.tobytes() for picture in together}) == 13
    for one, picture in zip(requests, together, strict=True):
        np.testing.assert_array_equal(renderer.render([one])[0], picture)
    region = replace(requests[0], region_px=(4, 8, 20, 30), out=np.zeros((22, 16, 3), np.uint8))
    assert renderer.render([region])[0] is region.out
    assert region.out.any()


@pytest.mark.parametrize("name", ["c2w", "condition"])
def test_numbers_that_are_finite_are_taken_however_large(scenes, name):
    one = request(scenes, 0)
    numbers = np.array(getattr(one, name), np.float32)
    numbers[-1] = 1e30  # its square is none
    replace(one, **{name: numbers}).check()
    for other in (np.nan, np.inf, -np.inf):
        numbers[-1] = other
        with pytest.raises(RenderInputError, match=f"{name}: expected .* got NaN or infinity"):
            replace(one, **{name: numbers}).check()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_launches_at_once_equal_launches_alone_in_whatever_order_they_are_collected(renderer, scenes, order):
    batches = [[request(scenes, 10 * batch + number) for number in range(4 + batch)] for batch in range(3)]
    alone = [renderer.render(batch) for batch in batches]
    for _ in range(3):
        launches = [renderer.submit(batch) for batch in batches]
        drawn = {place: renderer.collect(launches[place]) for place in order}
        for place in range(3):
            assert_same(drawn[place], alone[place])


def test_pictures_stay_while_they_are_referred_to_and_their_memory_is_used_again(renderer, scenes, driver):
    kept = renderer.collect(renderer.submit([request(scenes, number) for number in range(4)]))
    expected = copies(kept)
    for turn in range(1, 6):
        renderer.render([request(scenes, 100 * turn + number) for number in range(4)])
    assert_same(kept, expected)
    assert len(driver.pinned) == len(renderer._slots) + 2  # inputs, and two launches' pictures
    first = kept[0].ctypes.data
    del kept
    gc.collect()
    again = [renderer.collect(renderer.submit([request(scenes, number) for number in range(4)]))]
    again.append(renderer.collect(renderer.submit([request(scenes, number) for number in range(4)])))
    assert first in {pictures[0].ctypes.data for pictures in again}


def test_pictures_may_be_kept_of_full_buffers_as_long_as_few_are(renderer, scenes, driver, monkeypatch):
    monkeypatch.setattr(cuda_raymarcher, "_MAX_KEPT_BYTES", 3 << 20)
    monkeypatch.setattr(renderer._pinned, "_least", 1 << 18)
    large = [request(scenes[:1], number, size_px=512) for number in range(2)]  # most of 2 MiB
    few, kept = [request(scenes[:1], 0)], []

    def drawn(requests):
        pictures = renderer.collect(renderer.submit(requests))
        return pictures if renderer.may_keep else None

    assert drawn(few) is None
    for expected in (True, False, False):
        kept.append(drawn(large))
        assert (kept[-1] is not None) == expected
    kept.clear()
    gc.collect()
    assert drawn(large) is not None


def test_pictures_outlive_the_renderer(driver, described):
    renderer = CudaRenderer()
    scenes = [renderer.load(described[0])]
    pictures = renderer.collect(renderer.submit([request(scenes, 0), request(scenes, 1)]))
    expected = copies(pictures)
    renderer.close()
    assert_same(pictures, expected)
    assert driver.contexts == 1
    del pictures[0]
    assert driver.contexts == 1
    pictures.clear()
    gc.collect()
    assert driver.left() == (0, 0, 0, 0)


def test_a_launch_that_nobody_collects_keeps_its_memory_until_the_end(renderer, scenes, driver):
    requests = [request(scenes, number) for number in range(4)]
    renderer.submit(requests)
    gc.collect()
    expected = renderer.render(requests)
    assert_same(renderer.render(requests), expected)
    assert driver.kernels == 2 * 2  # two widths, twice: the first waits on its stream
    renderer.close()
    assert driver.kernels == 3 * 2


def test_a_fourth_launch_waits_for_one_to_be_collected(renderer, scenes):
    launches = [renderer.submit([request(scenes, number)]) for number in range(3)]
    fourth = ThreadPoolExecutor(1).submit(renderer.render, [request(scenes, 3)])
    assert len(renderer._in_flight) == 3
    for number, launch in enumerate(launches):
        assert_same(copies(renderer.collect(launch)), renderer.render([request(scenes, number)]))
    assert_same(fourth.result(PATIENCE_S), renderer.render([request(scenes, 3)]))


def test_who_waits_for_a_slot_hears_of_the_close(renderer, scenes):
    for number in range(3):
        renderer.submit([request(scenes, number)])
    fourth = ThreadPoolExecutor(1).submit(renderer.render, [request(scenes, 3)])
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        fourth.result(PATIENCE_S)


def test_a_launch_is_collected_once_and_only_while_open(renderer, scenes):
    launch = renderer.submit([request(scenes, 0)])
    renderer.collect(launch)
    with pytest.raises(RuntimeError, match="under way"):
        renderer.collect(launch)
    launch = renderer.submit([request(scenes, 0)])
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.collect(launch)


def test_a_scene_that_is_drawn_is_unloaded_once_it_is(renderer, scenes, described):
    requests = [request(scenes, number) for number in range(6)]
    alone = renderer.render(requests)
    launch = renderer.submit(requests)
    renderer.unload(scenes[0])
    replaced = renderer.load(described[0])  # may get the memory
    assert_same(renderer.collect(launch), alone)
    with pytest.raises(RenderInputError, match="scene: expected one that is loaded"):
        renderer.submit(requests)
    assert_same(renderer.render([replace(requests[0], scene=replaced)]), alone[:1])


def test_backgrounds_that_launches_under_way_need_stay(renderer, scenes):
    early = renderer.submit([request(scenes[:1], 0, size_px=16)])
    alone = {}
    for size_px in range(24, 24 + 8 * 8, 8):
        alone[size_px] = renderer.render([replace(request(scenes[:1], 0), size_px=size_px)])
    assert len(scenes[0]._backgrounds) <= 6
    renderer.collect(early)
    for size_px, pictures in alone.items():
        assert_same(renderer.render([replace(request(scenes[:1], 0), size_px=size_px)]), pictures)


def test_kernels_time_is_not_counted_twice(renderer, scenes):
    one = [request(scenes[:1], 0)]
    renderer.render(one)
    assert renderer.kernel_ms == KERNEL_MS
    first, second = renderer.submit(one), renderer.submit(one)
    while second.slot.begin.at_ms is None:  # its stream goes ahead and then waits for the other's kernel
        second.slot.stream.pending.pop(0)()
    spent_ms = []
    for launch in (first, second):
        renderer.collect(launch)
        spent_ms.append(renderer.kernel_ms)
    assert spent_ms == [KERNEL_MS, KERNEL_MS]
    assert (renderer.samples, renderer.samples_passed) == (1, 7)


@pytest.mark.parametrize("refused", ["cuMemcpyHtoDAsync", "cuLaunchKernel", "cuMemcpyDtoHAsync"])
def test_a_launch_that_is_refused_half_way_leaves_the_others_alone(renderer, scenes, driver, refused):
    requests = [request(scenes, number) for number in range(4)]
    alone = renderer.render(requests)
    first = renderer.submit(requests)
    for _ in range(5):  # more often than there are slots
        driver.refused.add(refused)
        with pytest.raises(CudaError, match=refused):
            renderer.submit(requests)
        driver.refused.clear()
    assert_same(renderer.collect(first), alone)
    assert_same(renderer.render(requests), alone)


def test_a_device_that_fails_fails_all_that_is_under_way(driver, described):
    renderer = CudaRenderer()
    scenes = [renderer.load(described[0])]
    launches = [renderer.submit([request(scenes, number)]) for number in range(2)]
    driver.broken = True
    for launch in launches:
        with pytest.raises(CudaError, match="cuEventSynchronize: expected success, got CUDA_ERROR_ILLEGAL"):
            renderer.collect(launch)
    with pytest.raises(CudaError):
        renderer.close()
    driver.broken = False


def test_sessions_through_both_renderers_get_their_own_pictures(driver, described):
    renderer = CudaRenderer()
    gpu = GpuRenderer(renderer, name="Stand-in")
    gpu.start()
    scenes = [gpu.load(scene) for scene in described]
    expected = {number: renderer.render([request(scenes, number)])[0] for number in range(60)}
    failures = []

    def session(first):
        try:
            for number in range(first, 60, 6):
                assert_same(gpu.draw([request(scenes, number)]), [expected[number]])
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=session, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    gpu.close()
    assert gpu.join(PATIENCE_S)
    gc.collect()
    assert driver.left() == (0, 0, 0, 0)


# --------------------------------------------------------------------------------------- plates
PLATE_PX = 32
MASKS = [*masks_of(PLATE_PX).values()]
PLATES = np.stack([random_plate(PLATE_PX, seed) for seed in range(len(MASKS))])


def over_plate(scenes, number, plate):
    return replace(request(scenes[:1], number), size_px=PLATE_PX, i420=True, plate=plate)


def test_frames_over_plates_share_a_launch_with_others(renderer, scenes):
    renderer.load_plates(scenes[0], PLATES, MASKS)
    requests = [request(scenes, number) for number in range(5)]
    requests += [over_plate(scenes, number, number % len(MASKS)) for number in range(9)]
    for one in requests:
        one.check()
    together = renderer.render(requests)
    for one, picture in zip(requests, together, strict=True):
        np.testing.assert_array_equal(renderer.render([one])[0], picture)
    assert len({picture.tobytes() for picture in together[5 : 5 + len(MASKS)]}) == len(MASKS)


def test_more_plates_than_kinds_of_frames_that_are_kept(renderer, scenes):
    count = 100
    masks = [MASKS[number % len(MASKS)] for number in range(count)]
    pictures = np.stack([random_plate(PLATE_PX, seed) for seed in range(count)])
    renderer.load_plates(scenes[0], pictures, masks)
    first = [copies(renderer.render([over_plate(scenes, 0, plate)])) for plate in range(count)]
    kept = dict(scenes[0]._kinds)
    for plate in range(count):
        assert_same(renderer.render([over_plate(scenes, 0, plate)]), first[plate])
    assert scenes[0]._kinds == kept


def test_a_second_round_of_masks_lies_over_the_same_plates(renderer, scenes):
    renderer.load_plates(scenes[0], PLATES, [*MASKS, *reversed(MASKS)])
    placed = scenes[0].plates.placed
    first, second = placed[: len(MASKS)], placed[len(MASKS) :]
    assert [plate.picture for plate in second] == [plate.picture for plate in first]
    assert [plate.block_count for plate in second] == [plate.block_count for plate in reversed(first)]
    last = 2 * len(MASKS) - 1
    over_plate(scenes, 0, last).check()
    with pytest.raises(RenderInputError, match=f"plate: expected 0 to {last}, got {last + 1}"):
        over_plate(scenes, 0, last + 1).check()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"plate": len(MASKS)}, "plate: expected 0 to 5, got 6"),
        ({"plate": -1}, "plate: expected 0 to 5, got -1"),
        ({"region_px": (0, 0, 8, 8)}, "plate: expected a whole picture as I420, got region_px"),
        ({"i420": False}, "plate: expected a whole picture as I420, got RGB"),
        ({"size_px": 40}, "size_px: expected 32 as the plate's, got 40"),
    ],
)
def test_a_frame_that_no_plate_lies_under_is_refused(renderer, scenes, changes, expected):
    wanted = over_plate(scenes, 0, 2)
    with pytest.raises(RenderInputError, match="plate: expected a scene whose plates are loaded"):
        wanted.check()
    renderer.load_plates(scenes[0], PLATES, MASKS)
    wanted.check()
    with pytest.raises(RenderInputError, match=expected):
        replace(wanted, **changes).check()


@pytest.mark.parametrize(
    ("pictures", "masks", "expected"),
    [
        (PLATES, MASKS[:-1], r"expected \(P, .*\) uint8 and P masks or a multiple, got uint8 .* and 5 masks"),
        (PLATES.astype(np.float32), MASKS, "got float32"),
        (PLATES[:, :-1], MASKS, "got uint8 of shape"),
        (PLATES[:0], [], r"got uint8 of shape \(0, 48, 32\) and 0 masks"),
        (PLATES, [], "and 0 masks"),
        (PLATES, [*MASKS[:-1], masks_of(36)["all"]], r"got 32 with masks of \[32, 36\]"),
        (np.zeros((1, 49, 33), np.uint8), [masks_of(33)["all"]], "one even size from 8 to 2048, got 33"),
    ],
)
def test_plates_that_do_not_fit_are_refused(renderer, scenes, driver, pictures, masks, expected):
    before = driver.left()
    with pytest.raises(RenderInputError, match=f"plates: .*{expected}"):
        renderer.load_plates(scenes[0], pictures, masks)
    assert driver.left() == before
    assert scenes[0].plates is None


def test_plates_are_loaded_once_and_only_for_a_loaded_scene(renderer, scenes):
    renderer.load_plates(scenes[0], PLATES, MASKS)
    with pytest.raises(RenderInputError, match="plates: expected a scene without"):
        renderer.load_plates(scenes[0], PLATES, MASKS)
    renderer.unload(scenes[1])
    with pytest.raises(RenderInputError, match="scene: expected one that is loaded"):
        renderer.load_plates(scenes[1], PLATES, MASKS)


@pytest.mark.parametrize(
    ("refused", "calls"),
    [("cuMemAlloc", 0), ("cuMemAlloc", 1), *(("cuMemcpyHtoDAsync", calls) for calls in (0, 1, 4))],
)
def test_plates_without_room_leave_nothing_and_the_scene_draws_on(
    renderer, scenes, driver, refused, calls, monkeypatch
):
    whole = replace(request(scenes[:1], 0), size_px=PLATE_PX)
    expected = copies(renderer.render([whole]))
    before, plain, made = driver.left(), renderer.device.call, []

    def call(name, *arguments):
        if name == refused:
            made.append(name)
            if len(made) > calls:
                driver.refused.add(refused)
        return plain(name, *arguments)

    monkeypatch.setattr(renderer.device, "call", call)
    with pytest.raises(CudaError, match=refused):
        renderer.load_plates(scenes[0], PLATES, MASKS)
    monkeypatch.undo()
    driver.refused.clear()
    assert driver.left() == before
    with pytest.raises(RenderInputError, match="plate: expected a scene whose plates are loaded"):
        over_plate(scenes, 0, 0).check()
    assert_same(renderer.render([whole]), expected)
    renderer.load_plates(scenes[0], PLATES, MASKS)


@pytest.mark.parametrize("end", ["unload", "close"])
def test_a_scene_that_goes_while_its_plates_come(renderer, scenes, driver, end):
    class Ending(np.ndarray):
        def __iter__(self):
            for number, picture in enumerate(np.asarray(self)):
                if number == 3:
                    renderer.unload(scenes[0]) if end == "unload" else renderer.close()
                yield picture

    with pytest.raises((RenderInputError, RuntimeError), match=r"loaded here|closed"):
        renderer.load_plates(scenes[0], PLATES.view(Ending), MASKS)
    renderer.close()
    assert driver.left() == (0, 0, 0, 0)


def test_a_raymarcher_gives_composites_once_its_plates_are_there(driver, described):
    renderer = CudaRenderer()
    gpu = GpuRenderer(renderer, name="Stand-in")
    gpu.start()
    raymarcher = GpuRaymarcher(gpu, described[0])
    given = {"c2w": make_pose(0.2), "condition": make_condition(described[0])}
    with pytest.raises(RenderInputError, match="plate: expected a scene whose plates are loaded"):
        raymarcher.render_composite(**given, number=0)
    raymarcher.load_plates(PLATES, MASKS)
    (wanted,) = renderer.render([over_plate([raymarcher._loaded], 0, 3)])
    np.testing.assert_array_equal(raymarcher.render_composite(**given, number=3), wanted)
    with pytest.raises(RenderInputError, match="plate: expected 0 to 5, got 6"):
        raymarcher.render_composite(**given, number=6)
    raymarcher.close()
    with pytest.raises(RenderInputError, match="scene: expected one that is loaded"):
        raymarcher.load_plates(PLATES, MASKS)
    gpu.close()
    assert gpu.join(PATIENCE_S)
    with pytest.raises(RuntimeError, match="closed"):
        gpu.load_plates(raymarcher._loaded, PLATES, MASKS)
    gc.collect()
    assert driver.left() == (0, 0, 0, 0)
