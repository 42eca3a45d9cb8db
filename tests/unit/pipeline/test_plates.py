"""A speaker's plates in memory: read once, in the background, within a bound, or gone without."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import plate_factory
import plate_files
import pytest
import stand_ins
from patience import PATIENCE_S

from cuda_kernels.compositing import compose_i420
from models.plates import PlateError
from models.speaker import load_speaker
from streaming.pipeline.pipeline import Pipeline
from streaming.pipeline.plates import MAX_DEFAULT_BYTES, PlateMasks, PlateMemory
from streaming.pipeline.renderers import make_renderer

NO_MEMORY = "there is no memory for them; free some, or go without with --plates-mb 0"
BROKEN = PlateError("plates.mkv", "frame 0", "a whole frame", "one that decodes in part")


def opened(speaker, *, limit_mb=100, say=pytest.fail, memory=None):
    return (memory or PlateMemory(limit_mb)).open(speaker, say=say)


@pytest.fixture
def plated(speaker):
    return plate_files.plated(speaker)


def test_the_plates_are_there_once_they_are_read(plated):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    size_px = plated.image_size_px
    assert np.array_equal(plates.pictures, plate_factory.pictures(size_px, len(plated.poses)))
    assert np.array_equal(plates.picture(7), plate_files.picture_of(7, size_px))
    assert plates.size_bytes == plated.plates.picture_bytes
    plates.close()
    assert (plates.picture(7), plates.ready, plates.size_bytes) == (None, False, 0)


def test_the_masks_are_there_before_the_pictures(speaker):
    gate = threading.Event()
    plated = plate_files.plated(speaker, gate=gate)
    plates = opened(plated)
    assert plates.masks.whole[3].share > 0
    assert (plates.ready, plates.picture(0)) == (False, None)
    assert not plates.wait(0)
    gate.set()
    assert plates.wait(PATIENCE_S)
    plates.close()


def test_closing_while_they_are_read_ends_the_reading(speaker):
    gate = threading.Event()
    plates = opened(plate_files.plated(speaker, gate=gate))
    closing = threading.Thread(target=plates.close)
    closing.start()
    gate.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not any(thread.name == "geneface-plates" for thread in threading.enumerate())
    assert plates.picture(0) is None


@pytest.mark.parametrize("at", [0, 20, 49])
@pytest.mark.parametrize("failure", [BROKEN, MemoryError()])
def test_a_reader_that_fails_is_told_in_one_line_and_gone_without(speaker, at, failure):
    said = []
    memory = PlateMemory(100)
    plates = opened(plate_files.plates_that_fail(speaker, failure, at), say=said.append, memory=memory)
    assert not plates.wait(PATIENCE_S)
    assert plates.failure == (str(failure) or NO_MEMORY)
    assert said == [f"{speaker.name} is drawn without plates: {plates.failure}"]
    assert plates.picture(0) is None
    assert memory.size_bytes == 0


def test_a_reader_that_fails_in_a_way_nobody_thought_of_is_logged(speaker, caplog):
    said = []
    broken = plate_files.plates_that_fail(speaker, ZeroDivisionError("by nought"), 3)
    plates = opened(broken, say=said.append)
    assert not plates.wait(PATIENCE_S)
    assert plates.failure == "reading them failed; the log says why"
    assert said == [f"{speaker.name} is drawn without plates: {plates.failure}"]
    [logged] = caplog.records
    assert logged.exc_info[0] is ZeroDivisionError


def test_masks_that_cannot_be_read_leave_the_plates_out(speaker):
    said = []
    broken = PlateError("plates.safetensors", "mask", "(50, 16, 2) U8", "(49, 16, 2) U8")
    assert opened(plate_files.plated(speaker, masks_fail=broken), say=said.append) is None
    assert said == [f"{speaker.name} is drawn without plates: {broken}"]


def test_a_speaker_without_plates_or_memory_of_none_has_none(speaker, plated):
    assert opened(speaker) is None
    assert opened(plated, limit_mb=0) is None
    assert plated.plates.read == 0


def test_speakers_share_the_bound(plated):
    taken = plated.plates.picture_bytes
    other = dataclasses.replace(plate_files.plated(plated), name="Other", path=plated.path / "other")
    memory, said = PlateMemory(None, free_bytes=lambda: 4 * taken + 4000), []
    first = opened(plated, memory=memory)
    assert memory.size_bytes == taken
    # The first took of what was free, and a quarter of all that was is the bound for both.
    memory._free_bytes = lambda: 3 * taken + 4000
    assert opened(other, memory=memory, say=said.append) is None
    assert said == [
        "Other is drawn without plates: expected at most 0 MB, got 2; free some memory, or give more with "
        "--plates-mb"
    ]
    first.close()
    assert memory.size_bytes == 0
    memory._free_bytes = lambda: 4 * taken + 4000
    opened(other, memory=memory).close()


def test_the_default_is_a_quarter_of_what_is_free_and_has_an_end(plated):
    taken, said = plated.plates.picture_bytes, []
    assert opened(plated, memory=PlateMemory(free_bytes=lambda: 4 * taken - 4), say=said.append) is None
    assert len(said) == 1
    for free in (4 * taken, None):
        opened(plated, memory=PlateMemory(free_bytes=lambda free=free: free)).close()
    plated.plates.poses = 1 + MAX_DEFAULT_BYTES // (taken // plated.plates.poses)
    assert opened(plated, memory=PlateMemory(free_bytes=lambda: 1 << 40), say=said.append) is None
    assert len(said) == 2


def test_who_opens_a_speaker_twice_shares_its_plates_until_both_are_closed(plated):
    memory = PlateMemory(100)
    one, other = opened(plated, memory=memory), opened(plated, memory=memory)
    assert one is other
    assert one.wait(PATIENCE_S)
    one.close()
    assert other.picture(0) is not None
    other.close()
    other.close()
    assert plated.plates.read == 1
    assert memory.size_bytes == 0


def test_a_bundle_that_was_replaced_meanwhile_has_its_own_plates(tmp_path):
    memory = PlateMemory(100)
    old = opened(plate_factory.write_plated_bundle(tmp_path / "Tiny"), memory=memory)
    new = opened(plate_factory.write_plated_bundle(tmp_path / "Tiny", image_size_px=96), memory=memory)
    assert new.wait(PATIENCE_S)
    assert new.pictures.shape == (plate_factory.POSES, 144, 96)
    again = opened(load_speaker(tmp_path / "Tiny"), memory=memory)
    assert again is new
    for plates in (old, new, again):
        plates.close()
    assert memory.size_bytes == 0


def test_plates_that_failed_are_tried_again_by_who_opens_them_next(speaker):
    memory, said = PlateMemory(100), []
    broken = plate_files.plates_that_fail(speaker, BROKEN, 3)
    first = opened(broken, memory=memory, say=said.append)
    assert not first.wait(PATIENCE_S)
    broken.plates.fail_at = None
    second = opened(broken, memory=memory)
    assert second.wait(PATIENCE_S)
    first.close()
    assert second.ready
    second.close()
    assert memory.size_bytes == 0


def test_masks_of_other_sizes_are_made_once(plated):
    masks = PlateMasks(plated.plates.masks())
    assert masks.at(4, plated.image_size_px) is masks.whole[4]
    smaller = masks.at(4, 96)
    assert smaller.size_px == 96
    assert masks.at(4, 96) is smaller
    assert masks.at(5, 96) is not smaller
    assert 0 < masks.share < 1


def test_the_pixels_drawn_at_a_size_are_those_of_its_masks(plated):
    masks = PlateMasks(plated.plates.masks())
    assert masks.pixels(128) == pytest.approx(16 * 16)  # 16 blocks of 4 x 4 px in each
    assert masks.pixels(96) > (96 / 128) ** 2 * masks.pixels(128)


# Frames over plates -----------------------------------------------------------------------------------


def about(speaker, pose):
    condition = np.linspace(0, 1, speaker.condition.size, dtype=np.float32)
    return {"c2w": speaker.poses[pose], "condition": condition, "pose": pose, "blinking": False}


@pytest.mark.parametrize("render_px", [128, 96])
def test_what_is_in_the_mask_is_drawn_and_laid_over_the_plate(plated, render_px):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    raymarcher = stand_ins.StandInRaymarcher()
    renderer = make_renderer(plated, raymarcher, render_px, plates)
    assert (renderer.render_px, renderer.output_px) == (render_px, 128)
    drawing = renderer.draw(**about(plated, 7))
    mask = plates.masks.at(7, render_px)
    assert raymarcher.masks == [mask]
    assert (drawing.drawn_px, drawing.drawn_share) == (render_px, mask.share)
    picture = drawing.finish()
    at = about(plated, 7)
    whole = stand_ins.StandInRaymarcher().render(c2w=at["c2w"], condition=at["condition"], size_px=render_px)
    expected = compose_i420(plates.picture(7), whole, plates.masks.whole[7])
    assert np.array_equal(picture, expected)
    assert not np.array_equal(picture, plates.picture(7))
    plates.close()
    assert np.array_equal(drawing.finish(), picture)  # what was drawn keeps its plate


def test_during_a_blink_its_own_mask_is_drawn(plated):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    raymarcher = stand_ins.StandInRaymarcher()
    renderer = make_renderer(plated, raymarcher, 128, plates)
    drawing = renderer.draw(**about(plated, 7) | {"blinking": True})
    blink = plates.masks.whole[len(plated.poses) + 7]
    assert raymarcher.masks == [blink]
    assert drawing.drawn_share == blink.share > plates.masks.whole[7].share
    plates.close()


def test_until_they_are_there_the_whole_is_drawn_at_about_the_same_cost(speaker):
    gate = threading.Event()
    plated = plate_files.plated(speaker, gate=gate)
    plates = opened(plated)
    raymarcher = stand_ins.StandInRaymarcher()
    renderer = make_renderer(plated, raymarcher, 128, plates)
    drawing = renderer.draw(**about(plated, 7))
    assert raymarcher.masks == [None]
    assert (drawing.drawn_px, drawing.drawn_share) == (128, 1.0)
    assert np.array_equal(
        drawing.finish(), make_renderer(plated, raymarcher, 128).draw(**about(plated, 7)).finish()
    )
    gate.set()
    assert plates.wait(PATIENCE_S)
    assert renderer.draw(**about(plated, 7)).drawn_share < 1
    plates.close()


def test_without_its_plates_a_large_picture_is_drawn_smaller(plated):
    large = dataclasses.replace(plated, image_size_px=512)
    large = plate_files.plated(large, gate=threading.Event())
    masks = PlateMasks(large.plates.masks())

    class NoPlates:
        def picture(self, pose):
            return None

    source = NoPlates()
    source.masks = masks
    raymarcher = stand_ins.StandInRaymarcher()
    drawing = make_renderer(large, raymarcher, 512, source).draw(**about(large, 0))
    assert drawing.drawn_px == 128  # 16 of 128 * 128 blocks are drawn: the smallest there is
    assert drawing.finish().shape == (768, 512)


def test_a_size_is_said_in_words(plated):
    plates = opened(plated)
    raymarcher = stand_ins.StandInRaymarcher()
    full, small = (make_renderer(plated, raymarcher, size, plates).describe() for size in (128, 96))
    share = f"{100 * plates.masks.share:.0f} %"
    assert full == f"draws {share} of 128 x 128 over plates"
    assert small == f"draws {share} of 96 x 96 over plates of 128 x 128"
    plates.close()


def run(speaker, renderer, *, chunk, change=None):
    pcm = stand_ins.speech_like(1.5).astype(np.float32) / 32768
    pictures = []
    with Pipeline(speaker, renderer) as pipeline:
        pipeline.start_feed(pcm[at : at + chunk] for at in range(0, len(pcm), chunk))
        for frame in pipeline:
            pictures.append(frame)
            if change is not None and frame.index == 5:
                pipeline.renderer = change
    return pictures


@pytest.mark.parametrize("render_px", [128, 96])
def test_recording_and_live_give_the_same_pictures(plated, render_px):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    recorded, live = (
        run(plated, make_renderer(plated, stand_ins.StandInRaymarcher(), render_px, plates), chunk=chunk)
        for chunk in (16000, 320)
    )
    assert len(recorded) == len(live) == 38
    for one, other in zip(recorded, live, strict=True):
        assert np.array_equal(one.picture, other.picture)
        assert one.drawn_share == other.drawn_share < 1
    plates.close()


def test_a_size_that_changes_while_frames_are_drawn_changes_what_is_drawn_alone(plated):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    raymarcher = stand_ins.StandInRaymarcher()
    full, small = (make_renderer(plated, raymarcher, size, plates) for size in (128, 96))
    changed = run(plated, full, chunk=320, change=small)
    at_full, at_small = (run(plated, renderer, chunk=320) for renderer in (full, small))
    assert {frame.render_px for frame in changed} == {128, 96}
    for frame in changed:
        expected = (at_full if frame.render_px == 128 else at_small)[frame.index]
        assert np.array_equal(frame.picture, expected.picture)
    plates.close()


def test_two_sessions_draw_over_the_same_plates(plated):
    plates = opened(plated)
    assert plates.wait(PATIENCE_S)
    renderers = [make_renderer(plated, stand_ins.StandInRaymarcher(), 128, plates) for _ in range(2)]
    pictures = []
    threads = [
        threading.Thread(target=lambda one=one: pictures.append(run(plated, one, chunk=640)))
        for one in renderers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    one, other = pictures
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(one, other, strict=True))
    assert plated.plates.read == 1
    plates.close()
