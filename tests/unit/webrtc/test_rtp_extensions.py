"""Header extensions as a receiver reads them."""

import pytest
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import HeaderExtensions, HeaderExtensionsMap, RtpPacket, unpack_header_extensions

from streaming.webrtc.rtp_extensions import PLAYOUT_DELAY_URI, ExtensionsMap

MID_URI = "urn:ietf:params:rtp-hdrext:sdes:mid"
LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
ONE_BYTE, TWO_BYTE = 0xBEDE, 0x1000


def parameters(**ids):
    uris = {"mid": MID_URI, "level": LEVEL_URI, "playout": PLAYOUT_DELAY_URI}
    return RTCRtpParameters(
        headerExtensions=[
            RTCRtpHeaderExtensionParameters(id=number, uri=uris[name]) for name, number in ids.items()
        ]
    )


def configured(max_delay_ms=200, **ids):
    extensions = ExtensionsMap(max_delay_ms=max_delay_ms)
    extensions.configure(parameters(**ids))
    return extensions


def test_no_extension_is_sent_that_was_not_agreed_on():
    assert configured().set(HeaderExtensions(mid="0")) == (0, b"")


def test_without_playout_delay_the_map_is_aiortc_s():
    values = HeaderExtensions(mid="video", audio_level=(False, 30))
    plain = HeaderExtensionsMap()
    plain.configure(parameters(mid=3, level=5))
    assert configured(mid=3, level=5).set(values) == plain.set(values)


def test_playout_delay_stands_beside_the_others():
    profile, value = configured(mid=3, playout=6).set(HeaderExtensions(mid="1"))
    assert profile == ONE_BYTE
    assert len(value) % 4 == 0
    assert unpack_header_extensions(profile, value) == [(3, b"1"), (6, bytes([0, 0, 20]))]


def test_playout_delay_stands_alone():
    profile, value = configured(playout=9).set(HeaderExtensions())
    assert unpack_header_extensions(profile, value) == [(9, bytes([0, 0, 20]))]


@pytest.mark.parametrize("number", [15, 16, 255])
def test_ids_beyond_one_nibble_take_the_two_byte_form(number):
    profile, value = configured(mid=3, playout=number).set(HeaderExtensions(mid="1"))
    assert profile == TWO_BYTE
    assert dict(unpack_header_extensions(profile, value)) == {3: b"1", number: bytes([0, 0, 20])}


@pytest.mark.parametrize(
    ("largest_ms", "units"),
    [(0, 0), (9, 0), (10, 1), (2559, 255), (2560, 256), (40_950, 4095), (10**6, 4095)],
)
def test_the_delay_is_12_bits_of_10_ms_and_the_smallest_is_none(largest_ms, units):
    _, value = configured(largest_ms, playout=1).set(HeaderExtensions())
    ((_, delay),) = unpack_header_extensions(ONE_BYTE, value)
    packed = int.from_bytes(delay, "big")
    assert (packed >> 12, packed & 0xFFF) == (0, units)


def test_a_packet_with_playout_delay_is_read_back_by_aiortc():
    extensions = configured(mid=3, level=4, playout=6)
    packet = RtpPacket(payload_type=97, payload=b"picture")
    packet.extensions = HeaderExtensions(mid="v", audio_level=(True, 12))
    back = RtpPacket.parse(packet.serialize(extensions), extensions)
    assert back.payload == b"picture"
    assert (back.extensions.mid, back.extensions.audio_level) == ("v", (True, 12))
