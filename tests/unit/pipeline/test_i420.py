"""What encoders get: BT.601 in limited range, exact; scaled as well as RGB would be; patched seamlessly."""

import cv2
import numpy as np
import pytest
import stand_ins

from streaming.pipeline.i420 import I420Converter, PatchBlender, to_rgb, video_frame

# ITU-R BT.601: luma and colour differences of R, G, B in [0, 1], limited range.
MATRIX = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
GREYS = [(level,) * 3 for level in (0, 1, 64, 127, 128, 200, 255)]
PRIMARIES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def bt601(rgb):
    return MATRIX @ (np.asarray(rgb, float) / 255)[..., None] + np.array([[16.0], [128.0], [128.0]])


def planes(i420):
    size = i420.shape[1]
    return i420[:size], *i420[size:].reshape(2, size // 2, size // 2)


def picture(size_px, pose=0.0):
    c2w = np.eye(4, dtype=np.float32)
    c2w[0, 2] = pose
    return stand_ins.StandInRaymarcher().render(c2w=c2w, condition=np.ones(8), size_px=size_px)


def converter(size_px):
    return I420Converter(width_px=size_px, height_px=size_px)


@pytest.mark.parametrize("from_px", [24, 64])
@pytest.mark.parametrize("rgb", [*GREYS, *PRIMARIES, (200, 120, 90)])
def test_flat_colours_land_on_their_exact_values(rgb, from_px):
    got = converter(64).convert(np.full((from_px, from_px, 3), rgb, np.uint8))
    assert got.shape == (96, 64)
    assert got.dtype == np.uint8
    for plane, exact in zip(planes(got), bt601(rgb).ravel(), strict=True):
        assert np.ptp(plane) == 0
        # Half a step for rounding; the rest is swscale's coefficients of 15 bits.
        assert abs(int(plane[0, 0]) - exact) < 0.6


def test_without_scaling_each_pixel_has_its_own_luma():
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    luma = planes(converter(64).convert(rgb))[0]
    assert np.abs(luma - bt601(rgb)[:, :, 0, 0]).max() < 0.6


def test_scaling_is_as_good_as_in_rgb():
    """Against OpenCV's cubic filter on RGB, then the matrix, on fine texture with hard edges in it."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    true = cv2.GaussianBlur(noise, (0, 0), 1.5)
    true[60:140, 80:200] //= 3
    small = cv2.resize(true, (128, 128), interpolation=cv2.INTER_AREA)
    exact = planes(converter(256).convert(true))
    ours = planes(converter(256).convert(small))
    in_rgb = planes(converter(256).convert(cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)))
    for got, other, plane in zip(ours, in_rgb, exact, strict=True):
        mine, theirs = (np.square(scaled.astype(float) - plane).mean() for scaled in (got, other))
        assert mine <= theirs * 10**0.02  # 0.2 dB
        assert abs(got.mean() - plane.mean()) < 0.1  # no shift of colour


def test_i420_converts_back_to_rgb():
    rgb = picture(128)
    assert np.abs(to_rgb(converter(128).convert(rgb)).astype(int) - rgb).max() <= 6  # chroma is halved
    for colour in [*GREYS, *PRIMARIES]:
        back = to_rgb(converter(16).convert(np.full((16, 16, 3), colour, np.uint8)))
        assert np.abs(back.astype(int) - colour).max() <= 2  # limited range has fewer steps


def test_a_frame_says_what_its_colours_mean():
    """Whoever converts it by its tags alone gets the colours back."""
    rgb = np.full((64, 64, 3), (200, 120, 90), np.uint8)
    frame = video_frame(converter(64).convert(rgb), 7)
    assert (frame.pts, frame.time) == (7, pytest.approx(7 / 25))
    assert (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 6, 6, 6)
    assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - rgb).max() <= 2


def test_the_same_bits_every_time():
    one, other = converter(256), converter(256)
    rgb = [picture(96, pose) for pose in (0.0, 0.5)]
    first = [one.convert(each) for each in rgb]
    for again in (other.convert(rgb[1]), one.convert(rgb[1])):
        assert np.array_equal(again, first[1])
    assert not np.array_equal(*first)


@pytest.mark.parametrize("box", [(10, 20, 40, 42), (0, 0, 30, 22), (34, 42, 64, 64)])
def test_a_patch_covers_its_place_in_every_plane(box):
    x0, y0, x1, y1 = box
    under = converter(64).convert(np.full((64, 64, 3), (20, 40, 200), np.uint8))
    patch = I420Converter(width_px=30, height_px=22).convert(np.full((22, 30, 3), (220, 90, 10), np.uint8))
    got = under.copy()
    PatchBlender(np.ones((22, 30), np.float32)).blend(got, patch, box)
    flat_patch = bt601((220, 90, 10)).ravel()
    for plane, before, exact, step in zip(planes(got), planes(under), flat_patch, (1, 2, 2), strict=True):
        inside = np.zeros(plane.shape, bool)
        inside[y0 // step : y1 // step, x0 // step : x1 // step] = True
        assert np.abs(plane[inside] - exact).max() < 0.6
        assert np.array_equal(plane[~inside], before[~inside])


def test_blending_is_the_weighted_mean_and_of_equals_the_same():
    random = np.random.default_rng(1)
    under, over = random.integers(0, 256, (2, 24, 16), np.uint8)
    mask = random.random((16, 16)).astype(np.float32)
    got, same = under.copy(), under.copy()
    PatchBlender(mask).blend(got, over, (0, 0, 16, 16))
    PatchBlender(mask).blend(same, under, (0, 0, 16, 16))
    assert np.array_equal(same, under)
    chroma_mask = mask.reshape(8, 2, 8, 2).mean((1, 3))
    for plane, a, b, weight in zip(
        planes(got), planes(under), planes(over), (mask, chroma_mask, chroma_mask), strict=True
    ):
        # Half a step for rounding, half a 256th of the difference for the weight.
        assert np.abs(plane - (a + weight * (b.astype(float) - a))).max() <= 1
