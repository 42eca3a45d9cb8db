"""Drawn pixels over a plate: against arithmetic with floats, at the edges, scaled up."""

import numpy as np
import pytest
from composites import weights

from cuda_kernels.compositing import compose_i420, rgb_to_i420
from cuda_kernels.masks import BlockMask, block_count


def random_picture(size_px, seed):
    return np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), np.uint8)


def a_mask(size_px, seed=0, share=0.85):
    side = block_count(size_px)
    return BlockMask(size_px=size_px, covered=np.random.default_rng(seed).random((side, side)) < share)


def planes(picture):
    size = picture.shape[1]
    chroma = picture[size:].reshape(2, size // 2, size // 2)
    return picture[:size].astype(float), chroma.astype(float)


@pytest.mark.parametrize("size_px", [16, 18, 64])
def test_drawn_pixels_fade_into_the_plate(size_px):
    plate, drawn = rgb_to_i420(random_picture(size_px, 1)), random_picture(size_px, 2)
    mask = a_mask(size_px)
    composite = compose_i420(plate, drawn, mask)
    shown = weights(mask)
    halved = shown.reshape(size_px // 2, 2, -1, 2).mean((1, 3))
    (luma, chroma), (under, under_chroma) = planes(rgb_to_i420(drawn)), planes(plate)
    got_luma, got_chroma = planes(composite)
    np.testing.assert_array_equal(got_luma, np.floor(luma * shown + under * (1 - shown) + 0.5))
    np.testing.assert_array_equal(got_chroma, np.floor(chroma * halved + under_chroma * (1 - halved) + 0.5))
    assert 0 < shown.mean() < 1


def test_a_full_mask_is_the_drawing_and_an_empty_one_the_plate():
    plate, drawn = rgb_to_i420(random_picture(32, 1)), random_picture(32, 2)
    for covered, expected in ((True, rgb_to_i420(drawn)), (False, plate)):
        mask = BlockMask(size_px=32, covered=np.full((8, 8), covered))
        np.testing.assert_array_equal(compose_i420(plate, drawn, mask), expected)


def test_the_plate_stays_as_it_was():
    plate = rgb_to_i420(random_picture(32, 1))
    before = plate.copy()
    compose_i420(plate, random_picture(32, 2), a_mask(32))
    np.testing.assert_array_equal(plate, before)


@pytest.mark.parametrize("drawn_px", [12, 16, 24])
def test_a_smaller_drawing_is_scaled_up(drawn_px):
    def ramp(size_px):  # a cubic filter leaves a slope as it is
        at = (np.arange(size_px) + 0.5) / size_px
        return np.repeat((20 + 200 * (at[:, None] + at) / 2)[..., None], 3, -1)

    mask = BlockMask(size_px=64, covered=np.ones((16, 16), bool))
    plate = np.zeros((96, 64), np.uint8)
    composite = compose_i420(plate, np.rint(ramp(drawn_px)).astype(np.uint8), mask)
    expected = rgb_to_i420(np.rint(ramp(64)).astype(np.uint8))
    inner = np.s_[12:52, 12:52]
    assert np.abs(composite[inner].astype(int) - expected[inner]).max() <= 2


def test_scaling_reads_only_what_the_mask_of_that_size_covers():
    seeds = np.argwhere(np.random.default_rng(5).random((32, 32)) < 0.02)
    covered = np.zeros((32, 32), bool)
    for row, column in seeds.tolist():
        covered[row : row + 3, column : column + 3] = True
    mask = BlockMask(size_px=128, covered=covered)
    plate, drawn = rgb_to_i420(random_picture(128, 1)), random_picture(48, 2)
    needed = mask.at_size(48).pixels
    assert not needed.all()
    other = np.where(needed[..., None], drawn, np.uint8(255) - drawn)
    composite = compose_i420(plate, drawn, mask)
    np.testing.assert_array_equal(composite, compose_i420(plate, other, mask))
    assert (composite != plate).any()


def test_a_plate_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"plate: expected one of 32 px, got shape \(24, 16\)"):
        compose_i420(np.zeros((24, 16), np.uint8), random_picture(32, 1), a_mask(32))
