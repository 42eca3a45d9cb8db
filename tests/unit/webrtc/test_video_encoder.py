"""Both encoders, decoded again by others' code: pictures, keyframes, bitrates."""

import functools
import threading

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import h264_depayload
from aiortc.codecs.vpx import VpxPayloadDescriptor, vp8_depayload

from models.time_base import FRAME_RATE_HZ
from streaming.webrtc.video_encoder import (
    CODECS,
    KEYFRAME_FLOOR_FRAMES,
    MIN_BITRATE,
    BandwidthLimit,
    H264VideoEncoder,
    Vp8VideoEncoder,
)

SIZE_PX = 128
RATE = 600_000
BOTH = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
MAX_PAYLOAD_BYTES = 1310  # with RTP, SRTP, UDP and IP in front it still fits 1400


@functools.cache
def pictures(count, *, size_px=SIZE_PX, noise=6.0, seed=0):
    """Returns `count` I420 pictures of blocks that sway, under noise that is new each time."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.uniform(40, 215, (size_px // 8 + 6,) * 2), np.ones((8, 8)))
    found = []
    for number in range(count):
        dx, dy = (round(20 + 20 * np.sin(number * speed)) for speed in (0.2, 0.17))
        picture = np.full((size_px * 3 // 2, size_px), 110, np.uint8)
        luma = blocks[dy : dy + size_px, dx : dx + size_px] + noise * random.standard_normal((size_px,) * 2)
        picture[:size_px] = np.clip(luma, 16, 235)
        picture[size_px : size_px * 5 // 4, ::2] = 150
        found.append(picture)
    return found


def encoder_of(codec, *, size_px=SIZE_PX, bitrate=RATE):
    return codec.open(size_px=size_px, bitrate=bitrate)


def joined(codec, payloads):
    """Returns the bitstream that a receiver puts together."""
    depayload = {"H264": h264_depayload, "VP8": vp8_depayload}[codec.name]
    return b"".join(depayload(payload) for payload in payloads)


def is_keyframe(codec, payloads):
    data = joined(codec, payloads)
    return b"\x00\x00\x01\x65" in data if codec.name == "H264" else not data[0] & 1


def psnr(one, other):
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-3))


def decoder_of(codec):
    return av.CodecContext.create({"H264": "h264", "VP8": "vp8"}[codec.name], "r")


def decode(decoder, data):
    (frame,) = decoder.decode(av.Packet(data)) or (None,)
    return frame


def bits(encoder, frames, *, first=0):
    """Returns the bits of each picture."""
    return np.array(
        [8 * sum(map(len, encoder.encode(picture, first + number))) for number, picture in enumerate(frames)]
    )


def keyframes(codec, encoder, frames, *, first=0, wanted_at=()):
    found = []
    for number, picture in enumerate(frames, first):
        if number in wanted_at:
            encoder.want_keyframe()
        payloads = encoder.encode(picture, number)
        if payloads and is_keyframe(codec, payloads):
            found.append(number)
    return found


def test_h264_is_preferred_and_both_are_there():
    assert [(codec.name, codec.open) for codec in CODECS] == [
        ("H264", H264VideoEncoder),
        ("VP8", Vp8VideoEncoder),
    ]


# Pictures ---------------------------------------------------------------------------------------------


@BOTH
def test_encoded_pictures_decode_to_themselves(codec):
    encoder, decoder = encoder_of(codec, bitrate=2_000_000), decoder_of(codec)
    for number, picture in enumerate(pictures(20, noise=2.0)):
        frame = decode(decoder, joined(codec, encoder.encode(picture, number)))
        assert (frame.width, frame.height, frame.format.name) == (SIZE_PX, SIZE_PX, "yuv420p")
        back = frame.to_ndarray()
        assert psnr(back[:SIZE_PX], picture[:SIZE_PX]) > 33, number
        assert psnr(back[SIZE_PX:], picture[SIZE_PX:]) > 33, number


@BOTH
def test_each_picture_leaves_at_once_in_payloads_that_fit_a_packet(codec):
    encoder = encoder_of(codec, size_px=256, bitrate=3_000_000)
    for number, picture in enumerate(pictures(5, size_px=256, noise=40.0)):
        payloads = encoder.encode(picture, number)
        assert len(payloads) > 1
        assert max(map(len, payloads)) <= MAX_PAYLOAD_BYTES


@BOTH
def test_frame_numbers_may_skip_where_frames_were_too_late(codec):
    encoder, decoder = encoder_of(codec), decoder_of(codec)
    for number, picture in zip((0, 1, 5, 6, 60, 61), pictures(6), strict=True):
        frame = decode(decoder, joined(codec, encoder.encode(picture, number)))
        assert psnr(frame.to_ndarray()[:SIZE_PX], picture[:SIZE_PX]) > 24


def test_vp8_numbers_its_pictures_without_a_gap_and_wraps():
    encoder = Vp8VideoEncoder(size_px=64, bitrate=RATE)
    encoder._picture_id = 2**15 - 2
    ids = []
    for number, picture in enumerate(pictures(4, size_px=64)):
        parsed = {
            VpxPayloadDescriptor.parse(payload)[0].picture_id for payload in encoder.encode(picture, number)
        }
        assert len(parsed) == 1
        ids += parsed
    assert ids == [2**15 - 2, 2**15 - 1, 0, 1]


def test_h264_is_baseline_that_every_browser_takes():
    data = joined(CODECS[0], H264VideoEncoder(size_px=64, bitrate=RATE).encode(pictures(1, size_px=64)[0], 0))
    parameters = data[data.index(b"\x00\x00\x01\x67") + 4 :]
    profile, constraints, level = parameters[:3]
    assert (profile, level) == (66, 31)
    assert constraints & 0b0100_0000  # constrained baseline: of both profiles on offer


# Keyframes --------------------------------------------------------------------------------------------


@BOTH
def test_the_first_picture_stands_on_its_own_and_no_other_does_by_itself(codec):
    encoder = encoder_of(codec, size_px=64, bitrate=100_000)
    shots = pictures(75, size_px=64, seed=1), pictures(75, size_px=64, seed=2)
    frames = (*shots[0], *shots[1], *shots[0], *(255 - picture for picture in shots[1]))  # with hard cuts
    assert keyframes(codec, encoder, frames) == [0]


@BOTH
def test_a_keyframe_comes_when_asked_for(codec):
    encoder, decoder = encoder_of(codec), None
    for number, picture in enumerate(pictures(30)):
        if number == 20:
            encoder.want_keyframe()
            decoder = decoder_of(codec)  # one that saw nothing before
        data = joined(codec, encoder.encode(picture, number))
        if decoder is not None:
            frame = decode(decoder, data)
            assert psnr(frame.to_ndarray()[:SIZE_PX], picture[:SIZE_PX]) > 24, number


@BOTH
def test_keyframes_keep_their_distance_and_one_asked_for_meanwhile_is_not_forgotten(codec):
    frames = pictures(40, size_px=64)
    floor = KEYFRAME_FLOOR_FRAMES
    assert keyframes(codec, encoder_of(codec, size_px=64), frames, wanted_at=(3,)) == [0, floor]
    assert keyframes(codec, encoder_of(codec, size_px=64), frames, wanted_at=(floor,)) == [0, floor]
    assert keyframes(codec, encoder_of(codec, size_px=64), frames, wanted_at=(12, 13, 15)) == [0, 12, 20]
    every = keyframes(codec, encoder_of(codec, size_px=64), frames, wanted_at=range(40))
    assert every == list(range(0, 40, floor))


@BOTH
def test_the_distance_between_keyframes_counts_frames_that_were_left_out(codec):
    encoder, (first, second) = encoder_of(codec, size_px=64), pictures(2, size_px=64)
    assert is_keyframe(codec, encoder.encode(first, 100))
    encoder.want_keyframe()
    assert is_keyframe(codec, encoder.encode(second, 100 + KEYFRAME_FLOOR_FRAMES))


@BOTH
def test_another_thread_may_ask_for_a_keyframe(codec):
    encoder, frames = encoder_of(codec, size_px=64), pictures(40, size_px=64)
    assert keyframes(codec, encoder, frames[:20]) == [0]
    asker = threading.Thread(target=lambda: (encoder.want_keyframe(), encoder.limit_bitrate(RATE // 2)))
    asker.start()
    asker.join()
    assert min(keyframes(codec, encoder, frames[20:], first=20)) - 20 <= 2


# Bitrate ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("size_px", "bitrate"), [(128, 250_000), (256, 800_000)])
def test_a_moving_picture_takes_the_bitrate_it_was_given(codec, size_px, bitrate):
    spent = bits(
        encoder_of(codec, size_px=size_px, bitrate=bitrate), pictures(75, size_px=size_px, noise=12.0)
    )
    for begin in (25, 50):
        per_s = spent[begin : begin + FRAME_RATE_HZ].sum()
        assert 0.75 * bitrate < per_s < 1.25 * bitrate


@BOTH
def test_a_keyframe_does_not_block_the_line_for_long(codec):
    encoder = encoder_of(codec, size_px=256, bitrate=800_000)
    frames = pictures(75, size_px=256, noise=12.0)
    bits(encoder, frames[:40])
    encoder.want_keyframe()
    assert bits(encoder, frames[40:41], first=40)[0] < 0.4 * 800_000
    assert bits(encoder, frames[41:66], first=41).sum() < 1.3 * 800_000


def test_h264_follows_the_line_without_a_keyframe_and_without_a_new_encoder():
    encoder, frames = H264VideoEncoder(size_px=SIZE_PX, bitrate=RATE), pictures(175, noise=12.0)
    context, found, spent = encoder._context, [], []
    for number, picture in enumerate(frames):
        if number == 50:
            encoder.limit_bitrate(RATE // 3)
        if number == 125:
            encoder.limit_bitrate(10 * RATE)  # never above what it was opened with
        payloads = encoder.encode(picture, number)
        assert payloads  # it lowers the quality, not the frame rate
        spent.append(8 * sum(map(len, payloads)))
        found += [number] if is_keyframe(CODECS[0], payloads) else []
    per_s = [sum(spent[begin : begin + 25]) for begin in (25, 75, 100, 150)]
    assert found == [0]
    assert encoder._context is context
    assert per_s[0] == pytest.approx(RATE, rel=0.25)
    assert per_s[1] == pytest.approx(RATE / 3, rel=0.25)
    assert per_s[2] == pytest.approx(RATE / 3, rel=0.25)
    assert per_s[3] == pytest.approx(RATE, rel=0.25)


def test_h264_takes_small_changes_of_the_estimate_for_noise():
    encoder, frames = H264VideoEncoder(size_px=64, bitrate=RATE), pictures(3, size_px=64)
    encoder.limit_bitrate(round(0.95 * RATE))
    encoder.encode(frames[0], 0)
    encoder.limit_bitrate(round(0.9 * RATE))
    encoder.encode(frames[1], 1)
    assert encoder._context.bit_rate == RATE
    encoder.limit_bitrate(round(0.8 * RATE))
    encoder.encode(frames[2], 2)
    assert encoder._context.bit_rate == round(0.8 * RATE)


@BOTH
@pytest.mark.parametrize("share", [0.4, 0.75, 0.25])
def test_on_a_narrow_line_every_picture_is_sent_with_fewer_bits(codec, share):
    encoder, frames = encoder_of(codec), pictures(150, noise=12.0)
    bits(encoder, frames[:25])
    encoder.limit_bitrate(round(share * RATE))
    spent = bits(encoder, frames[25:], first=25)
    assert np.count_nonzero(spent) == len(spent)
    assert spent[25:].sum() / 4 == pytest.approx(share * RATE, rel=0.15)
    assert keyframes(codec, encoder, frames[:10], first=150) == []


def test_vp8_follows_the_line_up_again():
    encoder, frames = Vp8VideoEncoder(size_px=SIZE_PX, bitrate=RATE), pictures(200, noise=12.0)
    free = bits(encoder, frames[:50])[25:].sum()
    encoder.limit_bitrate(MIN_BITRATE)
    bits(encoder, frames[50:100], first=50)
    encoder.limit_bitrate(RATE)
    assert bits(encoder, frames[100:], first=100)[75:].sum() == pytest.approx(free, rel=0.15)


@BOTH
def test_a_keyframe_on_a_narrow_line_comes_at_once_and_takes_no_second_of_it(codec):
    encoder, frames = encoder_of(codec, bitrate=1_000_000), pictures(100, noise=12.0)
    bits(encoder, frames[:20])
    encoder.limit_bitrate(2 * MIN_BITRATE)
    bits(encoder, frames[20:75], first=20)
    encoder.want_keyframe()
    payloads = encoder.encode(frames[75], 75)
    assert is_keyframe(codec, payloads)
    assert 8 * sum(map(len, payloads)) < 2 * MIN_BITRATE / 2
    assert np.count_nonzero(bits(encoder, frames[76:], first=76)) >= 20


# A browser's estimate follows what it gets ---------------------------------------------------------------


class Browser:
    """What libwebrtc tells once a second: what came at first, then slowly up to half as much again.

    On a line that takes less it backs off below what came through.
    """

    GROWTH, BEYOND, BACK_OFF = 1.08, 1.5, 0.85

    def __init__(self, *, line=float("inf")):
        self.estimate, self.line = None, line

    def hears(self, rate):
        """Returns its estimate after a second in which it was sent `rate` bit/s."""
        if rate > self.line:
            self.estimate = self.BACK_OFF * self.line
        elif self.estimate is None:
            self.estimate = rate
        else:
            most = max(self.BEYOND * rate + 10_000, self.estimate)
            self.estimate = min(self.GROWTH * self.estimate + 1000, most)
        return round(self.estimate)


def swaying(number, *, size_px=64, noise=0.0):
    frames = pictures(40, size_px=size_px, noise=noise)
    at = number % 78
    return frames[at if at < 40 else 78 - at]


def call(encoder, browser, picture, *, seconds, every=1, first=0):
    """Returns the bits of each picture of a call; the browser tells its estimate each second."""
    spent, second = [], []
    for number in range(first, first + seconds * FRAME_RATE_HZ):
        if number % every == 0:
            second.append(8 * sum(map(len, encoder.encode(picture(number), number))))
        if number % FRAME_RATE_HZ == FRAME_RATE_HZ - 1:
            encoder.limit_bitrate(browser.hears(sum(second)))
            spent += second
            second = []
    return np.array(spent)


LINES = pytest.mark.parametrize("bitrate", [600_000, 1_200_000, 3_000_000, 6_000_000])


@BOTH
@LINES
def test_a_picture_that_needs_little_is_never_left_out(codec, bitrate):
    free = sum(bits(encoder_of(codec, size_px=64, bitrate=bitrate), map(swaying, range(250)))[225:])
    assert 0 < free < 2 / 3 * bitrate
    spent = call(encoder_of(codec, size_px=64, bitrate=bitrate), Browser(), swaying, seconds=30)
    assert np.count_nonzero(spent) == len(spent)
    assert spent[-250:].sum() / 10 > 0.7 * free


@BOTH
@LINES
def test_after_a_narrow_time_the_whole_bitrate_comes_back(codec, bitrate):
    encoder, browser = encoder_of(codec, size_px=64, bitrate=bitrate), Browser()
    before = call(encoder, browser, swaying, seconds=5)
    browser.line = before[25:].sum() / 16  # a quarter of what it took
    call(encoder, browser, swaying, seconds=5, first=125)
    browser.line = float("inf")
    after = call(encoder, browser, swaying, seconds=30, first=250)
    assert np.count_nonzero(after) == len(after)
    assert after[-50:].sum() / 2 > 0.7 * before[-25:].sum()


@BOTH
@pytest.mark.parametrize("every", [2, 4, 8])
def test_a_machine_that_draws_few_pictures_loses_none_of_them(codec, every):
    encoder = encoder_of(codec, size_px=64, bitrate=1_200_000)
    spent = call(encoder, Browser(), swaying, seconds=30, every=every)
    assert np.count_nonzero(spent) == len(spent)


@BOTH
def test_a_still_picture_may_begin_to_move_at_any_time(codec):
    encoder, browser = encoder_of(codec, bitrate=1_200_000), Browser()

    def still(number):
        return swaying(0, size_px=SIZE_PX)

    def moving(number):
        return swaying(number, size_px=SIZE_PX, noise=6.0)

    call(encoder, browser, still, seconds=10)
    spent = call(encoder, browser, moving, seconds=10, first=250)
    assert np.count_nonzero(spent) == len(spent)


# A line that is narrow in truth ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("bitrate", "longest_gap"), [(1_200_000, 3), (6_000_000, 20)])
def test_a_narrow_line_is_not_flooded(codec, bitrate, longest_gap):
    line = 250_000
    encoder, browser = encoder_of(codec, bitrate=bitrate), Browser(line=line)
    spent = call(encoder, browser, lambda number: swaying(number, size_px=SIZE_PX, noise=9.0), seconds=40)
    per_s = spent.reshape(-1, FRAME_RATE_HZ).sum(1)
    assert per_s[3:].mean() < line
    assert per_s[3:].mean() > 0.6 * line
    assert per_s[3:].max() < 1.5 * line
    assert np.diff(np.flatnonzero(spent)).max() <= longest_gap


def test_where_vp8_s_worst_quality_is_too_much_pictures_are_left_out_evenly():
    encoder = Vp8VideoEncoder(size_px=256, bitrate=1_200_000)
    frames = pictures(50, size_px=256, noise=90.0)
    encoder.limit_bitrate(MIN_BITRATE)
    late = bits(encoder, (frames[number % 50] for number in range(500)))[100:]
    assert late.sum() / 16 == pytest.approx(MIN_BITRATE, rel=0.1)
    gaps = np.diff(np.flatnonzero(late))
    assert gaps.max() <= FRAME_RATE_HZ
    assert np.percentile(gaps, 90) - np.percentile(gaps, 10) <= 2


@BOTH
def test_pictures_that_were_left_out_are_missed_by_no_decoder(codec):
    encoder, decoder = encoder_of(codec, size_px=256, bitrate=1_200_000), decoder_of(codec)
    encoder.limit_bitrate(MIN_BITRATE)
    frames, seen = pictures(50, size_px=256, noise=90.0), []
    for number in range(100):
        payloads = encoder.encode(frames[number % 50], number)
        if payloads:
            frame = decode(decoder, joined(codec, payloads))
            seen.append(psnr(frame.to_ndarray()[:256], frames[number % 50][:256]))
    assert len(seen) < 100
    assert min(seen) > 8


@BOTH
@pytest.mark.parametrize(
    ("asked", "taken"), [(0, MIN_BITRATE), (10_000, MIN_BITRATE), (300_000, 300_000), (10**12, RATE)]
)
def test_an_estimate_is_believed_within_bounds(codec, asked, taken):
    encoder = encoder_of(codec, size_px=64)
    encoder.limit_bitrate(asked)
    encoder.encode(pictures(1, size_px=64)[0], 0)
    assert encoder._bandwidth.bitrate == taken


@BOTH
def test_a_small_bitrate_is_not_raised_by_the_least(codec):
    encoder, (picture, other) = encoder_of(codec, size_px=64, bitrate=80_000), pictures(2, size_px=64)
    encoder.limit_bitrate(1)
    encoder.encode(picture, 0)
    assert encoder._bandwidth.bitrate == 80_000
    encoder.limit_bitrate(10_000_000)
    encoder.encode(other, 1)
    assert encoder._bandwidth.bitrate == 80_000


# What an estimate means -----------------------------------------------------------------------------------


def lines_bitrate(*, sent, told, bitrate=1_200_000):
    """Returns what a line is believed to take after `sent` and `told` bit/s, second for second."""
    line = BandwidthLimit(bitrate)
    for second, (rate, estimate) in enumerate(zip(sent, told, strict=True)):
        for number in range(second * FRAME_RATE_HZ, (second + 1) * FRAME_RATE_HZ):
            line.admits(number)
            line.add(number, rate // FRAME_RATE_HZ)
        if estimate is not None:
            line.tell(estimate)
    line.admits(len(sent) * FRAME_RATE_HZ)
    return line.bitrate


@pytest.mark.parametrize(
    ("sent", "told", "taken"),
    [
        ([300_000] * 4, [None, 290_000, 310_000, 330_000], 1_200_000),  # it follows what it gets
        (
            [300_000, 300_000, 900_000, 900_000, 900_000],
            [None, 400_000, 430_000, 470_000, 500_000],
            1_200_000,
        ),
        ([900_000] * 3, [None, None, 400_000], 400_000),  # the first already says less
        ([900_000] * 3, [None, 1_000_000, 500_000], 500_000),  # it falls
        (
            [300_000, 300_000, 900_000, 900_000, 900_000, 900_000],
            [None] + [400_000] * 5,
            400_000,
        ),  # not raised
        ([900_000] * 4, [None, 400_000, 600_000, 700_000], 700_000),  # narrow, it holds while it rises
        ([900_000] * 4, [None, 400_000, 900_000, 1_300_000], 1_200_000),  # until it allows for all
        ([900_000] * 2, [None, 1], MIN_BITRATE),
    ],
)
def test_an_estimate_counts_where_the_line_takes_no_more(sent, told, taken):
    assert lines_bitrate(sent=sent, told=told) == taken


def narrow_line(estimate=200_000):
    line = BandwidthLimit(1_200_000)
    line.tell(estimate)
    return line


def test_on_a_line_too_narrow_for_its_pictures_one_is_sent_each_second():
    line, sent = narrow_line(), []
    for number in range(250):
        if line.admits(number):
            line.add(number, 1_000_000)
            sent.append(number)
    assert sent == list(range(0, 250, FRAME_RATE_HZ))


def test_what_the_line_did_not_take_is_not_waited_for_without_end():
    line = narrow_line()
    for number in range(0, 250, 25):
        assert line.admits(number)
        line.add(number, 5_000_000)
    late = [number for number in range(250, 350) if line.admits(number)]
    assert late[0] <= 275
    line.admits(350)
    assert line.admits(351)


def test_silence_earns_no_credit():
    line = narrow_line()
    line.admits(0)
    assert line.admits(1000)
    line.add(1000, 110_000)
    assert not line.admits(1001)
