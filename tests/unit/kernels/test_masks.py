"""Block masks: which pixels are drawn, how they fade into the plate, what another size needs."""

import numpy as np
import pytest
from composites import weights

from cuda_kernels.masks import BlockMask, block_count


def mask_of(size_px: int, *blocks: tuple[int, int]) -> BlockMask:
    covered = np.zeros((block_count(size_px),) * 2, bool)
    for row, column in blocks:
        covered[row, column] = True
    return BlockMask(size_px=size_px, covered=covered)


def random_mask(size_px: int, seed: int, share: float = 0.3) -> BlockMask:
    side = block_count(size_px)
    return BlockMask(size_px=size_px, covered=np.random.default_rng(seed).random((side, side)) < share)


def test_blocks_are_listed_row_by_row():
    assert mask_of(16, (2, 1), (0, 3)).blocks.tolist() == [[0, 3], [2, 1]]


def test_another_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match=r"expected \(5, 5\) bool for 18 px, got bool of shape \(4, 4\)"):
        BlockMask(size_px=18, covered=np.zeros((4, 4), bool))


@pytest.mark.parametrize("size_px", [16, 18, 64])
def test_nothing_beyond_the_mask_weighs_anything(size_px):
    mask = random_mask(size_px, seed=1)
    beyond = ~mask.pixels
    assert beyond.any()
    assert not weights(mask)[beyond].any()


def test_weights_are_whole_steps():
    steps = weights(random_mask(64, seed=2, share=0.8)) * 64
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert 0 < steps.max() <= 64


def test_inside_the_outermost_blocks_drawn_pixels_hide_the_plate():
    mask = mask_of(32, *[(row, column) for row in range(2, 6) for column in range(2, 6)])
    found = weights(mask)
    np.testing.assert_array_equal(found[12:20, 12:20], 1)
    assert (np.diff(found[16, 8:13]) > 0).all()  # rises from the mask's edge on
    np.testing.assert_array_equal(found, found[::-1, ::-1])


def test_nothing_fades_towards_the_edge_of_the_picture():
    mask = BlockMask(size_px=32, covered=np.ones((8, 8), bool))
    np.testing.assert_array_equal(weights(mask), 1)


@pytest.mark.parametrize("drawn_px", [128, 192, 256, 384, 500])
def test_another_size_has_all_that_a_cubic_filter_reads(drawn_px):
    seeds = np.argwhere(np.random.default_rng(3).random((125, 125)) < 0.01)
    mask = mask_of(512, *[(a + i, b + j) for a, b in seeds.tolist() for i in range(3) for j in range(3)])
    drawn = mask.at_size(drawn_px).pixels
    rows, columns = np.nonzero(weights(mask))
    assert len(rows)
    assert not drawn.all()
    at_row = np.floor((rows + 0.5) * drawn_px / 512 - 0.5).astype(int)
    at_column = np.floor((columns + 0.5) * drawn_px / 512 - 0.5).astype(int)
    for down in range(-1, 3):
        for right in range(-1, 3):
            row = np.clip(at_row + down, 0, drawn_px - 1)
            column = np.clip(at_column + right, 0, drawn_px - 1)
            assert drawn[row, column].all()


def test_its_own_size_is_itself():
    mask = random_mask(64, seed=4)
    assert mask.at_size(64) is mask
