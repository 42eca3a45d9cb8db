"""Weights, grids and backgrounds as the CUDA kernel reads them, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.synthetic_scene import make_scene
from cuda_kernels.cuda_records import (
    WIDTHS,
    background_words,
    head_width,
    head_words,
    hidden_fragments,
    last_fragments,
    pack_scene,
    tile_count,
)
from cuda_kernels.folding import SceneError, pack_grid

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
        first, rows = scene.head.position_grid.offsets[number], int(grid.rows[number])
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


@pytest.mark.parametrize(("size", "tiles"), [((16, 8), (1, 1)), ((17, 8), (2, 2)), ((512, 512), (32, 2048))])
def test_tiles_cover_a_picture(size, tiles):
    assert tile_count(*size) == tiles
