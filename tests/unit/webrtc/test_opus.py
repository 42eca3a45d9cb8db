import av
import numpy as np
import pytest
from aiortc.codecs.opus import OpusEncoder as AiortcEncoder
from hypothesis import given
from hypothesis import strategies as st
from packet_patterns import packets, tone_payloads, voice

from streaming.errors import InputError
from streaming.webrtc import opus
from streaming.webrtc.opus import BLOCK_SAMPLES, OpusDecoder, OpusEncoder, OpusError, packet_samples


def blocks(seconds=2.0):
    return voice(seconds).reshape(-1, BLOCK_SAMPLES)


def test_libopus_comes_with_pyav():
    assert opus.load_libopus() is opus.load_libopus()


@pytest.mark.parametrize("path", ["/nowhere/libopus.so", np._core._multiarray_umath.__file__])
def test_without_libopus_there_is_no_codec(monkeypatch, path):
    monkeypatch.setattr(opus, "_libopus_paths", lambda: [path])
    monkeypatch.setattr(opus, "load_libopus", opus.load_libopus.__wrapped__)
    for codec in (OpusDecoder, OpusEncoder):
        with pytest.raises(InputError, match="libopus0"):
            codec()


def test_one_block_is_one_packet_and_comes_back():
    encoder, decoder = OpusEncoder(), OpusDecoder()
    sent = blocks()
    encoded = [encoder.encode(block) for block in sent]
    assert all(packet_samples(packet) == BLOCK_SAMPLES for packet in encoded)
    assert 20 < np.mean([len(packet) for packet in encoded]) < 160  # 48 kbit/s are 120 bytes
    heard = np.concatenate([decoder.decode(packet) for packet in encoded])
    assert heard.dtype == np.float32
    late = 312  # libopus' look-ahead at 48 kHz
    assert np.corrcoef(heard[late:], sent.reshape(-1)[:-late])[0, 1] > 0.85  # its high-pass turns the phase


@pytest.mark.parametrize("shape", [(959,), (1, 960), (0,)])
def test_a_block_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(960,\)"):
        OpusEncoder().encode(np.zeros(shape, np.float32))


def test_a_setting_that_the_codec_refuses_is_told(monkeypatch):
    monkeypatch.setattr(opus, "_COMPLEXITY", 11)
    with pytest.raises(OpusError, match="4010 to 11: invalid argument"):
        OpusEncoder()


@pytest.mark.parametrize("frame_ms", [2.5, 5, 10, 20, 40, 60])
def test_packets_of_every_length_are_mixed_down(frame_ms):
    samples = int(48 * frame_ms)
    encoded = tone_payloads(samples, 50, layout="stereo")
    decoder = OpusDecoder()
    decoded = [decoder.decode(packet) for packet in encoded]
    assert {packet_samples(packet) for packet in encoded} == {samples}
    assert {len(block) for block in decoded} == {samples}
    assert np.abs(np.concatenate(decoded)[2000:]).max() == pytest.approx(0.3, abs=0.05)


def test_packets_of_aiortc_are_decoded():
    encoder, decoder = AiortcEncoder(), OpusDecoder()
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = 48_000, 0
    payloads, _ = encoder.encode(frame)
    assert [decoder.decode(payload).shape for payload in payloads] == [(960,)]


@pytest.mark.parametrize(
    ("payload", "samples"),
    [
        (b"", 0),
        (b"\x08", 960),  # SILK, 20 ms
        (b"\x18\x00", 2880),  # SILK, 60 ms
        (b"\x60\x00", 480),  # hybrid, 10 ms
        (b"\x80\x00", 120),  # CELT, 2.5 ms
        (b"\x19\x00\x00", 5760),  # two of 60 ms
        (b"\xfb\x03\x00", 2880),  # three of 20 ms
        (b"\xfb", 0),  # says that a count follows
        (b"\xfb\x00", 0),
        (b"\xfb\x07", 0),  # 140 ms
    ],
)
def test_a_packet_tells_its_length(payload, samples):
    assert packet_samples(payload) == samples


def sides_payloads(left, right):
    """Returns packets of 20 ms, 96 kbit/s, of two sides (n,)."""
    codec = av.CodecContext.create("libopus", "w")
    codec.format, codec.layout, codec.sample_rate, codec.bit_rate = "flt", "stereo", 48_000, 96_000
    found = []
    for at in range(0, len(left), BLOCK_SAMPLES):
        block = np.stack([left[at : at + BLOCK_SAMPLES], right[at : at + BLOCK_SAMPLES]], axis=1)
        frame = av.AudioFrame.from_ndarray(
            block.astype(np.float32).reshape(1, -1), format="flt", layout="stereo"
        )
        frame.sample_rate, frame.pts = 48_000, at
        found += [bytes(packet) for packet in codec.encode(frame)]
    return found


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [(1, -1, 1.0), (0.6, -1, 1.0), (1, -0.8, 1.0), (1, 1, 1.0), (1, 0, 0.5), (0, 1, 0.5), (1, 0.5, 0.75)],
)
def test_stereo_is_its_mean_or_the_louder_side_where_the_mean_cancels(left, right, share):
    sound = voice(2.0)
    decoder = OpusDecoder()
    decoded = np.concatenate([decoder.decode(p) for p in sides_payloads(left * sound, right * sound)])
    spoken = slice(24_000, None)
    assert np.std(decoded[spoken]) == pytest.approx(share * np.std(sound[spoken]), rel=0.1)


def test_a_lost_packet_of_sides_that_cancel_is_concealed_by_the_louder():
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 48_000)
    decoder = OpusDecoder()
    for payload in sides_payloads(tone, -tone)[:25]:
        last = decoder.decode(payload)
    assert np.std(decoder.conceal(BLOCK_SAMPLES)) > 0.2 * np.std(last)


@given(st.binary(max_size=80))
def test_garbage_is_decoded_or_refused(payload):
    decoder = OpusDecoder()
    try:
        decoded = decoder.decode(payload)
    except OpusError:
        return
    assert decoded.shape == (packet_samples(payload),)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1


@pytest.mark.parametrize("payload", [b"", b"\xfb\x00", b"\x19\x00"])
def test_what_is_no_packet_is_refused(payload):
    with pytest.raises(OpusError, match="opus: "):
        OpusDecoder().decode(payload)


def decode_some(decoder, count=40):
    sent = packets(2.0)
    for packet in sent[:count]:
        last = decoder.decode(packet.payload)
    return sent[count:], last


def test_a_missing_packet_is_concealed_without_a_step():
    decoder = OpusDecoder()
    rest, last = decode_some(decoder)
    concealed = decoder.conceal(BLOCK_SAMPLES)
    back = decoder.decode(rest[1].payload)
    sound = np.concatenate([last, concealed, back])
    assert concealed.shape == (BLOCK_SAMPLES,)
    assert np.std(concealed) > 0.2 * np.std(last)
    assert np.abs(np.diff(sound, n=3)).max() < 0.045  # 0.038 when nothing is missing


def test_concealment_takes_any_length():
    decoder = OpusDecoder()
    assert [len(decoder.conceal(n)) for n in (0, 1, 120, 121, 960, 2000)] == [0, 1, 120, 121, 960, 2000]


def test_the_packet_after_repairs_the_one_that_is_missing():
    decoder, whole = OpusDecoder(), OpusDecoder()
    rest, _ = decode_some(decoder)
    decode_some(whole)
    original = whole.decode(rest[0].payload)
    recovered = decoder.recover(rest[1].payload, BLOCK_SAMPLES)
    assert recovered.shape == (BLOCK_SAMPLES,)
    assert np.corrcoef(recovered, original)[0, 1] > 0.9


def test_nothing_is_repaired_where_no_copy_is_carried():
    decoder = OpusDecoder()
    rest, _ = decode_some(decoder)
    assert decoder.recover(rest[1].payload, 480) is None  # not the length of the missing one
    celt = tone_payloads(BLOCK_SAMPLES, 10)[-1]
    assert celt[0] & 0x80
    assert decoder.recover(celt, BLOCK_SAMPLES) is None


def test_after_a_reset_nothing_is_left_of_before():
    decoder, fresh = OpusDecoder(), OpusDecoder()
    rest, _ = decode_some(decoder)
    decoder.reset()
    np.testing.assert_array_equal(decoder.decode(rest[0].payload), fresh.decode(rest[0].payload))
