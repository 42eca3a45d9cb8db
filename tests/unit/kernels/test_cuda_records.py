"""Weights, grids and backgrounds as the CUDA kernel reads them, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from composites import masks_of, weights

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.cuda_records import (
    FRAME,
    WIDTHS,
    PlacedPlate,
    background_words,
    block_words,
    fill_frames,
    frame_template,
    head_width,
    head_words,
    hidden_fragments,
    last_fragments,
    pack_scene,
)
from cuda_kernels.folding import SceneError, field_pose, pack_grid

SMALL = {"hidden": 16, "levels": 5, "log2_rows": 10, "condition": 8, "grid_size": 32, "image_size_px": 64}
RANDOM = np.random.default_rng(0)


def halves(words):
    return words.view(np.float16)


def test_a_hidden_layers_fragments_hold_each_weight_where_its_lane_reads_it():
    weight = RANDOM.normal(size=(32, 48)).astype(np.float16).astype(np.float32)
    fragments = halves(hidden_fragments("w", weight)).reshape(2, 3, 32, 2, 2, 2)
    for out in range(32):
        for column in range(48):
            lane = 4 * (out % 8) + column % 8 // 2
            got = fragments[out // 16, column // 16, lane, out % 16 // 8, column % 16 // 8, column % 2]
            assert got == weight[out, column]


def test_a_last_layers_fragments_are_padded_with_zeros():
    weight = RANDOM.normal(size=(3, 32)).astype(np.float16).astype(np.float32)
    fragments = halves(last_fragments("w", weight)).reshape(2, 32, 2, 2)
    for out in range(8):
        for column in range(32):
            got = fragments[column // 16, 4 * (out % 8) + column % 8 // 2, column % 16 // 8, column % 2]
            assert got == (weight[out, column] if out < 3 else 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_head_has_as_many_words_as_the_kernel_copies(width):
    scene = make_scene(**{**SMALL, "hidden": width})
    macs = (32 + width + 8) * width + (64 + width + 8) * width + (width + 16 + 8) * width
    assert head_width(scene.head) == width
    assert head_words(scene.head, width).size * 2 == macs


def test_each_cell_holds_its_four_rows():
    scene = make_scene(**{**SMALL, "log2_rows": 9})
    packed, grid = pack_scene(scene), pack_grid(scene.head.position_grid)
    level = packed.record["position"]["level"]
    cells = halves(packed.arrays["position_cells"]).reshape(-1, 4, 2)
    table = scene.head.position_grid.table.astype(np.float16)
    for number in range(5):
        first, rows = scene.head.position_grid.layout.offsets[number], int(grid.rows[number])
        stride, mask = int(grid.stride_y[number]), int(grid.mask[number])
        for row in range(0, rows - 1 - (stride if mask == 0xFFFFFFFF else 0), 7):
            cell = cells[level[number]["start"] + row]
            above = (row + stride) & mask
            for place, wanted in enumerate((row, row + 1, above, (above + 1) % rows)):
                np.testing.assert_array_equal(cell[place], table[first + wanted])


def test_what_the_kernel_is_not_built_for_is_refused_with_the_way_out():
    refused = {
        "levels": ({"levels": 17}, "at most 16 levels"),
        "features": ({"features": 4}, "two features a level"),
        "hashed": ({"hashed": True, "log2_rows": 6}, "tiled"),
        "smoothstep": ({"smoothstep": True}, "linear"),
        "layers": ({"layers": (3, 4, 2)}, "3 layers, got 4"),
        "width": ({"hidden": 129}, "at most 128, got 129"),
        "torso": ({"torso_hidden": 65}, "at most 64, got 65"),
    }
    for name, (changes, expected) in refused.items():
        with pytest.raises(SceneError, match=expected) as error:
            pack_scene(make_scene(**{**SMALL, **changes}))
        assert "CPU raymarcher" in str(error.value), name


def test_weights_that_no_half_holds_are_refused():
    scene = make_scene(**SMALL)
    first, *others = scene.head.ambient_net
    first = first.copy()
    first[0, 0] = 7e4
    with pytest.raises(SceneError, match=r"head.ambient_net\[0\]: expected at most 65504, got 7e\+04"):
        pack_scene(replace(scene, head=replace(scene.head, ambient_net=(first, *others))))


def test_a_background_is_sixteen_bits_a_colour():
    picture = np.array([[[0, 0.5, 1], [1, 0.25, 0]], [[2, -1, 0], [0, 0, 1]]], np.float32)
    words = background_words(picture)
    np.testing.assert_array_equal(words[0, 0], [0, 32768, 65535, 0])
    np.testing.assert_array_equal(words[1, 0], [65535, 0, 0, 0])


@pytest.mark.parametrize("name", masks_of(42))
def test_the_words_of_a_mask_give_its_weights_again(name):
    """Bilinear between the corners of each block, and nothing elsewhere."""
    mask = masks_of(42)[name]
    side, along = len(mask.covered), (np.arange(4) + 0.5) / 4
    found = np.zeros((4 * side, 4 * side))
    for word in block_words(mask).tolist():
        column, row, corners = word & 0xFFF, (word >> 12) & 0xFFF, word >> 24
        assert corners
        at = [(corners >> number) & 1 for number in range(4)]
        upper, lower = (at[2 * y] * (1 - along) + at[2 * y + 1] * along for y in range(2))
        block = np.outer(1 - along, upper) + np.outer(along, lower)
        found[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = block
    np.testing.assert_array_equal(found[:42, :42], weights(mask))


# --------------------------------------------------------------------------------------- frames
INPUTS = ("pose", "ambient_bias", "deform_bias", "canonical_bias")


def filled(scene, count, at_once):
    """(N,) of FRAME, so many filled at a time."""
    described, frames = make_scene(**scene), np.zeros(count, FRAME)
    packed = pack_scene(described)
    c2w = np.stack([make_pose(0.4 * np.sin(n), 0.3 * np.cos(n)).astype(np.float64) for n in range(count)])
    conditions = np.stack([make_condition(described, seed=n) for n in range(count)])
    for first in range(0, count, at_once):
        own = slice(first, first + at_once)
        fill_frames(frames[own], packed, c2w=c2w[own], conditions=conditions[own])
    return packed, c2w, conditions, frames


@pytest.mark.parametrize(
    "scene", [{**SMALL, "hidden": 64, "torso_hidden": 64}, {**SMALL, "with_torso": False}]
)
def test_a_frame_has_the_numbers_of_its_pose_and_condition(scene):
    packed, c2w, conditions, frames = filled(scene, 9, 9)
    for number, frame in enumerate(frames):
        pose = field_pose(c2w[number], packed.camera)
        np.testing.assert_array_equal(frame["pose"], pose.reshape(12).astype(np.float32))
        weights = packed.head.condition_weights
        # float32 sums of eight products in another order
        np.testing.assert_allclose(
            frame["ambient_bias"][: len(weights)], weights @ conditions[number], rtol=1e-5, atol=1e-6
        )
        assert not frame["ambient_bias"][len(weights) :].any()
        if packed.torso is None:
            assert not frame["deform_bias"].any()
            assert not frame["canonical_bias"].any()
        else:
            for name, biases in zip(INPUTS[2:], packed.torso.biases(pose), strict=True):
                rows = min(len(biases), len(frame[name]))
                np.testing.assert_allclose(frame[name][:rows], biases[:rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("at_once", [1, 2, 5, 16])
def test_a_frame_is_the_same_bit_for_bit_however_many_are_filled_at_once(at_once):
    scene = {**SMALL, "hidden": 128, "torso_hidden": 64, "condition": 64}
    together, apart = filled(scene, 33, 33)[-1], filled(scene, 33, at_once)[-1]
    for name in INPUTS:
        np.testing.assert_array_equal(together[name], apart[name])


def test_frames_of_a_kind_have_their_region_and_camera_in_common():
    scene = pack_scene(make_scene(**SMALL))
    frame = frame_template(scene, size_px=128, region_px=(8, 16, 40, 33), i420=False, background=77)
    assert [int(frame[name]) for name in ("x0", "y0", "width", "height", "size_px")] == [8, 16, 32, 17, 128]
    assert [int(frame[name]) for name in ("blocks_across", "block_count", "chunks")] == [8, 40, 20]
    assert (int(frame["background"]), int(frame["plate"]), int(frame["blocks"])) == (77, 0, 0)
    assert frame["focal_px"] == np.float32(scene.camera.focal_px * 2)
    assert (frame["pixel_px"], frame["i420"]) == (0.5, 0)


@pytest.mark.parametrize(("block_count", "chunks"), [(0, 1), (1, 1), (2, 1), (3, 2), (16384, 8192)])
def test_frames_of_a_plate_have_the_chunks_of_its_blocks(block_count, chunks):
    """One that has no block still has a chunk, whose warp copies the plate."""
    frame = frame_template(
        pack_scene(make_scene(**SMALL)),
        size_px=64,
        region_px=(0, 0, 64, 64),
        i420=True,
        background=77,
        plate=PlacedPlate(picture=5, blocks=6, block_count=block_count),
    )
    got = [int(frame[name]) for name in ("plate", "blocks", "block_count", "chunks", "width")]
    assert got == [5, 6, block_count, chunks, 64]
