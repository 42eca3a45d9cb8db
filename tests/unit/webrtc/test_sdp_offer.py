"""Offers: what browsers write is understood, what cannot be answered is refused in one line."""

from __future__ import annotations

import re

import hypothesis
import hypothesis.strategies as st
import pytest
import refusals
from aiortc.sdp import SessionDescription
from offers import BROWSERS, CHROME, FINGERPRINT, FIREFOX, SAFARI

from streaming.webrtc import sdp_offer
from streaming.webrtc.rtp_extensions import PLAYOUT_DELAY_URI
from streaming.webrtc.sdp_offer import MAX_CANDIDATES, MAX_SECTIONS, NotAcceptableError, Offer, OfferError

EACH = pytest.mark.parametrize("text", BROWSERS.values(), ids=BROWSERS)
CANDIDATE = "a=candidate:1 1 udp 2113937151 192.0.2.9 5000 typ host\n"


def without(text, *beginnings):
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(beginnings))


def section_of(text, kind):
    """Returns one section's text."""
    return next(part for part in re.split(r"(?m)^(?=m=)", text) if part.startswith(f"m={kind}"))


def sections_seen(offer):
    """Returns what aiortc will see, by kind."""
    return {section.kind: section for section in SessionDescription.parse(offer.sdp).media}


def refusal(text, error=OfferError):
    """Returns the parts of the one line that an offer is refused with."""
    with pytest.raises(OfferError) as caught:
        Offer.parse(text)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    assert message.startswith("sdp: ")
    return refusals.parts(message)


def no_pictures(text):
    """Whether an offer is refused for its lack of a section to send pictures in."""
    parts = "sdp", "a section of video that receives", "none", "add a recvonly video transceiver"
    return refusal(text, NotAcceptableError) == parts


# What is understood -----------------------------------------------------------------------------------


@EACH
def test_browsers_offers_are_accepted(text):
    offer = Offer.parse(text)
    assert set(offer.kinds) == {"audio", "video"}
    assert set(sections_seen(offer)) == {section.kind for section in SessionDescription.parse(text).media}


def test_the_order_of_the_sections_is_kept():
    assert Offer.parse(CHROME).kinds == ("audio", "video")
    assert Offer.parse(SAFARI).kinds == ("video", "audio")
    assert list(sections_seen(Offer.parse(FIREFOX))) == ["audio", "video", "application"]


def test_header_extensions_are_told_by_kind():
    chrome, firefox, safari = (Offer.parse(text).extensions for text in (CHROME, FIREFOX, SAFARI))
    assert chrome["video"][PLAYOUT_DELAY_URI] == 5
    assert PLAYOUT_DELAY_URI not in chrome["audio"]
    assert firefox["video"][PLAYOUT_DELAY_URI] == 8
    assert PLAYOUT_DELAY_URI not in safari["video"]


@EACH
@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
def test_any_line_ending_will_do(text, ending):
    offer = Offer.parse(text.replace("\n", ending))
    assert offer == Offer.parse(text)
    assert offer.sdp.count("\n") == offer.sdp.count("\r\n") > 20


def test_pictures_alone_are_enough():
    head = SAFARI[: SAFARI.index("m=video")]
    offer = Offer.parse(without(head, "a=group") + section_of(SAFARI, "video"))
    assert offer.kinds == ("video",)


def test_a_section_without_a_direction_goes_both_ways():
    offer = Offer.parse(without(SAFARI, "a=sendrecv"))
    assert {section.direction for section in sections_seen(offer).values()} == {"sendrecv"}


@pytest.mark.parametrize("direction", ["recvonly", "sendonly"])
def test_a_direction_is_left_as_it_is(direction):
    sound = section_of(CHROME, "audio")
    offer = Offer.parse(CHROME.replace(sound, sound.replace("a=sendrecv", f"a={direction}")))
    assert {kind: s.direction for kind, s in sections_seen(offer).items()} == {
        "audio": direction,
        "video": "recvonly",
    }


# One transport ----------------------------------------------------------------------------------------


def test_candidates_come_from_the_section_that_the_bundle_names_first():
    offer = Offer.parse(FIREFOX)
    udp = [c for c in offer.candidates if c.protocol.lower() == "udp"]
    assert [(c.ip, c.port, c.component) for c in udp] == [("192.0.2.8", 40001, 1)]
    turned = Offer.parse(FIREFOX.replace("BUNDLE 0 1 2", "BUNDLE 1 0 2"))
    assert [(c.ip, c.port) for c in turned.candidates] == [("192.0.2.8", 40003)]


def test_credentials_of_all_sections_come_from_the_one_that_the_bundle_names_first():
    for group, expected in (("0 1 2", "aaaa1111"), ("1 2 0", "bbbb2222"), ("2 0 1", "cccc3333")):
        seen = sections_seen(Offer.parse(FIREFOX.replace("BUNDLE 0 1 2", f"BUNDLE {group}")))
        assert {section.ice.usernameFragment for section in seen.values()} == {expected}
        assert len({section.ice.password for section in seen.values()}) == 1


def test_credentials_that_stand_once_for_all_count_everywhere():
    head, rest = CHROME.split("m=audio", 1)
    rest = without(f"m=audio{rest}", "a=ice-ufrag", "a=ice-pwd")
    offer = Offer.parse(f"{head}a=ice-ufrag:once\na=ice-pwd:{'p' * 24}\n{rest}")
    assert {section.ice.usernameFragment for section in sections_seen(offer).values()} == {"once"}


def test_local_names_are_left_out_and_the_end_is_not_believed():
    offer = Offer.parse(CHROME.replace("a=rtcp-rsize\n", "a=end-of-candidates\n"))
    assert [candidate.ip for candidate in offer.candidates] == ["192.0.2.7"]
    assert ".local" not in offer.sdp
    for section in sections_seen(offer).values():
        assert section.ice_candidates == []
        assert not section.ice_candidates_complete


@pytest.mark.parametrize("separator", ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_lines_end_where_rfc_8866_says_and_nowhere_else(separator):
    """aiortc would cut them there, and find a candidate."""
    text = CHROME.replace("a=mid:0\n", f"a=mid:0\na=x:y{separator}{CANDIDATE}")
    offer = Offer.parse(text)
    assert "a=candidate" not in offer.sdp
    assert [candidate.ip for candidate in offer.candidates] == ["192.0.2.7"]


@pytest.mark.parametrize("port", [0, 65536, 10**9])
def test_candidates_of_impossible_ports_are_left_out(port):
    text = CHROME.replace("a=mid:0\n", "a=mid:0\n" + CANDIDATE.replace(" 5000 ", f" {port} "))
    assert [candidate.port for candidate in Offer.parse(text).candidates] == [51472]


def test_candidates_of_another_protocol_component_or_type_are_left_out():
    for change in (
        (" udp ", " tcp "),
        ("1 1 udp", "1 2 udp"),
        ("typ host", "typ prflx"),
        ("typ host", "typ x"),
    ):
        text = CHROME.replace("a=mid:0\n", "a=mid:0\n" + CANDIDATE.replace(*change))
        assert [candidate.port for candidate in Offer.parse(text).candidates] == [51472]


def test_at_most_16_candidates_are_taken_the_most_urgent_ones():
    lines = [
        f"a=candidate:1 1 udp {number} 192.0.2.{1 + number % 250} {5000 + number} typ host\n"
        for number in range(300)
    ]
    text = without(CHROME, "a=candidate").replace("a=mid:0\n", "a=mid:0\n" + "".join(lines))
    found = Offer.parse(text).candidates
    assert [candidate.port for candidate in found] == [5299 - number for number in range(MAX_CANDIDATES)]
    assert MAX_CANDIDATES == 16


def test_a_candidate_said_twice_is_one():
    text = CHROME.replace("a=mid:0\n", "a=mid:0\n" + 20 * CANDIDATE)
    assert [candidate.port for candidate in Offer.parse(text).candidates] == [5000, 51472]


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "240.0.0.1",
        "224.0.0.251",
        "239.1.2.3",
        "169.254.1.1",
        "169.254.169.254",
        "::",
        "ff02::1",
        "ff05::2",
        "fe80::1",
        "fe80::1%eth0",
        "fe80::1%25eth0",
        "2001:db8::1%1",
        "fec0::1",
        "::ffff:192.0.2.9",
        "::ffff:127.0.0.1",
        "::ffff:169.254.1.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::224.0.0.1",
        "2002:7f00:1::1",
        "2002:e000:1::1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "192.0.2.09",
        "example.org",
        "someone.local",
        "SOMEONE.LOCAL",
        "localhost",
        "192.0.2.7/24",
        "[2001:db8::1]",
    ],
)
def test_addresses_that_are_no_peer_s_are_left_out(host):
    text = CHROME.replace("a=mid:0\n", "a=mid:0\n" + CANDIDATE.replace("192.0.2.9", host))
    assert [candidate.ip for candidate in Offer.parse(text).candidates] == ["192.0.2.7"]


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "192.168.1.7", "100.64.0.1", "203.0.113.9", "2001:db8::7", "fd00::7", "127.0.0.1", "::1"],
)
def test_addresses_that_may_be_a_peer_s_are_taken(host):
    text = without(CHROME, "a=candidate").replace(
        "a=mid:0\n", "a=mid:0\n" + CANDIDATE.replace("192.0.2.9", host)
    )
    assert [candidate.ip for candidate in Offer.parse(text).candidates] == [host]


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "\n", "hello", "v=0\r\n", "v=0\no=- 1 1 IN IP4 0.0.0.0\ns=-\nt=0 0\n", "{}"]
)
def test_an_offer_without_sections_is_refused(text):
    assert refusal(text)[:3] == ("sdp", "a section for audio and one for video", "none")


# Each: a line of the offer, what stands there instead.
MALFORMED = [
    ("m=audio 51472 UDP", "m=audio sometime UDP"),
    ("m=audio 51472 UDP", "m=audio 65536 UDP"),
    ("m=audio 51472 UDP", "m=audio\u0663 51472 UDP"),
    ("m=audio 51472 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110", "m=audio"),
    ("m=audio 51472 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110", "m=audio 51472 UDP/TLS/RTP/SAVPF"),
    ("m=audio 51472 UDP/TLS/RTP/SAVPF 111 63", "m=audio 51472 UDP/TLS/RTP/SAVPF 111 x"),
    ("m=audio 51472 UDP/TLS/RTP/SAVPF 111 63", "m=audio 51472 UDP/TLS/RTP/SAVPF 111 128"),
    ("m=audio 51472 UDP/TLS/RTP/SAVPF 111 63", f"m=audio 51472 UDP/TLS/RTP/SAVPF 111 {'9' * 5000}"),
    ("a=rtpmap:96 VP8/90000", "a=rtpmap:ninety VP8/90000"),
    ("a=rtpmap:96 VP8/90000", "a=rtpmap:96"),
    ("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP8"),
    ("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP8/fast"),
    ("a=rtpmap:96 VP8/90000", f"a=rtpmap:96 VP8/{'9' * 5000}"),
    ("a=rtpmap:96 VP8/90000", "a=rtpmap:\u0669\u0666 VP8/90000"),
    ("a=fmtp:97 apt=96", "a=fmtp:97"),
    ("a=fmtp:97 apt=96", "a=fmtp:97 apt"),
    ("a=fmtp:97 apt=96", "a=fmtp:97 apt=x"),
    ("a=fmtp:97 apt=96", f"a=fmtp:97 apt={'9' * 5000}"),
    ("a=rtcp-fb:96 nack pli", "a=rtcp-fb:96"),
    ("a=rtcp-fb:96 nack pli", "a=rtcp-fb:nack pli"),
    ("a=setup:actpass", "a=setup:perhaps"),
    ("a=setup:actpass", "a=setup:ACTPASS"),
    ("a=mid:0", "a=mid:two words"),
    ("c=IN IP4 192.0.2.7", "c=somewhere"),
    ("c=IN IP4 192.0.2.7", "c="),
    ("a=candidate:2 1 udp", "a=candidate:2"),
    ("a=candidate:2 1 udp", "a=candidate:2 one udp"),
    ("192.0.2.7 51472 typ srflx", "192.0.2.7 51472 srflx"),
    ("a=rtcp-rsize", "a="),
    ("192.0.2.7 51472 typ srflx raddr 0.0.0.0 rport 0", "192.0.2.7 51472 typ srflx raddr 0.0.0.0 rport x"),
    ("a=candidate:2 1 udp 1677729535", f"a=candidate:2 1 udp {'9' * 5000}"),
    ("a=extmap:1 ", "a=extmap:"),
    ("a=extmap:1 ", "a=extmap:one "),
    ("a=extmap:1 ", "a=extmap:1/2/3 "),
    ("a=extmap:1 ", "a=extmap:1/up "),
    ("a=extmap:1 ", f"a=extmap:{'9' * 5000} "),
    ("a=ssrc:3570614608 cname:4TOk42mSjXCkVIa6", "a=ssrc:mine cname:x"),
    ("a=ssrc:3570614608 cname:4TOk42mSjXCkVIa6", "a=ssrc:1"),
    ("a=ssrc:3570614608 cname:4TOk42mSjXCkVIa6", "a=ssrc:4294967296 cname:x"),
    (f"a=fingerprint:sha-256 {FINGERPRINT}", "a=fingerprint:sha-256"),
    (f"a=fingerprint:sha-256 {FINGERPRINT}", "a=fingerprint:sha-256 AB:CD"),
    (f"a=fingerprint:sha-256 {FINGERPRINT}", f"a=fingerprint:sha-512 {FINGERPRINT}"),
    (f"a=fingerprint:sha-256 {FINGERPRINT}", f"a=fingerprint:sha-256 {FINGERPRINT.replace('A', 'X')}"),
    ("a=rtcp:9 IN IP4 0.0.0.0", "a=rtcp:port"),
    ("a=group:BUNDLE 0 1", "a=group:"),
    ("v=0", "v=zero"),
    ("v=0", "v=1"),
    ("s=-", "s"),
    ("s=-", " s=-"),
    ("s=-", "S=-"),
    ("s=-", "\ufeffs=-"),
    ("a=rtcp-rsize", "what is this"),
    ("a=rtcp-rsize", "\x00\x1b[31m"),
]


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("change", MALFORMED)
def test_a_line_that_does_not_parse_is_named_with_its_number(change, ending):
    assert change[0] in CHROME
    text = CHROME.replace(*change, 1)
    number = next(
        n for n, (a, b) in enumerate(zip(CHROME.split("\n"), text.split("\n"), strict=True), 1) if a != b
    )
    said = refusal(text.replace("\n", ending))
    kind = ", audio" if "payload types" in said.expected else ""
    assert said.where == f"sdp: line {number}{kind}"
    message = " ".join(said)
    assert message.isprintable()
    assert message.isascii()
    assert not re.search("Error|Traceback|None|invalid literal|object", message)


@pytest.mark.parametrize("ending", ["", ":", ": "])
@pytest.mark.parametrize("name", [name for name in sorted(sdp_offer._ATTRIBUTES) if name != "msid-semantic"])
@pytest.mark.parametrize(
    "place", ["a=msid-semantic: WMS 0e6e2b7d\n", "a=rtcp-rsize\n", "a=ssrc:3570614608 cname:"]
)
def test_an_attribute_without_its_value_is_named_with_its_number(name, ending, place):
    """RFC 8866, 5.13: who defines an attribute says whether it has a value."""
    before = CHROME[: CHROME.index(place)]
    said = refusal(f"{before}a={name}{ending}\n{CHROME[len(before) :]}")
    got = f"a={name}{ending}".strip()
    assert (said.where, said.got) == (f"sdp: line {before.count(chr(10)) + 1}", f'"{got}"')
    assert said.expected.startswith(f"a={name}:")


@EACH
@pytest.mark.parametrize(
    ("lack", "expected", "got"),
    [
        ("a=group", "all sections in one BUNDLE group", "some or none"),
        ("a=rtcp-mux", "rtcp-mux", "none"),
        ("a=fingerprint", "a DTLS fingerprint by one of sha-256, sha-384, sha-512", "none"),
        ("a=setup", "a=setup:actpass, active or passive", "no setup"),
        ("a=ice-ufrag", "ice-ufrag and ice-pwd", "none"),
        ("a=ice-pwd", "ice-ufrag and ice-pwd", "none"),
    ],
)
def test_an_offer_that_lacks_what_each_needs_is_refused(text, lack, expected, got):
    assert refusal(without(text, lack))[1:3] == (expected, got)


@EACH
def test_a_fingerprint_of_an_unknown_kind_alone_is_none(text):
    assert refusal(text.replace("sha-256", "sha-1"))[1:] == refusal(without(text, "a=fingerprint"))[1:]


@EACH
def test_a_bundle_of_some_sections_or_of_more_is_refused(text):
    some = refusal(re.sub(r"a=group:BUNDLE .*", "a=group:BUNDLE 0", text))
    assert some == refusal(without(text, "a=group"))
    more = refusal(re.sub(r"a=group:BUNDLE .*", "a=group:BUNDLE 0 1 2 3", text))
    assert some.way_out == more.way_out == "use bundlePolicy max-bundle"


@pytest.mark.parametrize(
    ("text", "where", "expected", "got"),
    [
        (
            CHROME.replace("a=mid:1", "a=mid:0").replace("BUNDLE 0 1", bundle),
            "sdp: line 46",
            "another mid than that of line 18, for BUNDLE names them",
            '"a=mid:0"',
        )
        for bundle in ("BUNDLE 0 1", "BUNDLE 0 0")
    ]
    + [
        (
            CHROME + (MAX_SECTIONS - 1) * section_of(CHROME, "audio"),
            "sdp",
            f"at most {MAX_SECTIONS} sections",
            f"{MAX_SECTIONS + 1}",
        ),
        (
            CHROME.replace(" 111", " 111" + " 96" * 20_000, 1),
            "sdp: line 8",
            "at most 128 formats",
            '"m=audio 51472 UDP/TLS/RTP/SAVPF 111 96',
        ),
        (
            CHROME.replace("BUNDLE 0 1", "BUNDLE 0 1 nobody"),
            "sdp",
            "BUNDLE to name mids of the offer",
            '"nobody"',
        ),
        (
            CHROME.replace("a=mid:1", f"a=mid:{'m' * 33}").replace("0 1", f"0 {'m' * 33}"),
            "sdp: line 46",
            "a=mid:NAME of 1 to 32 characters",
            f'"a=mid:{"m" * 33}"',
        ),
        *(
            (
                CHROME.replace("a=extmap:5 ", f"a=extmap:{number} "),
                "sdp: line 49",
                "a=extmap:ID[/DIRECTION] URI" if number < 0 else "ids of a=extmap from 1 to 255",
                f'"a=extmap:{number} ',
            )
            for number in (0, 256, 4095, 4352, -1)
        ),
    ],
    ids=lambda value: value if len(value) < 60 else "",
)
def test_more_than_there_may_be_is_refused_by_its_place(text, where, expected, got):
    said = refusal(text)
    assert said[:2] == (where, expected)
    assert said.got.startswith(got)


def test_a_fingerprint_of_an_unknown_kind_beside_a_known_one_is_fine():
    line = f"a=fingerprint:sha-256 {FINGERPRINT}\n"
    assert Offer.parse(CHROME.replace(line, f"a=fingerprint:sha-1 AB:CD\n{line}")).kinds


@pytest.mark.parametrize(
    ("ufrag", "pwd"),
    [("abc", "p" * 22), ("abcd", "p" * 21), ("a" * 257, "p" * 22), ("abcd", "p" * 257), ("a bc", "p" * 22)],
)
def test_ice_credentials_that_fit_no_check_are_refused(ufrag, pwd):
    text = re.sub(r"a=ice-ufrag:.*", f"a=ice-ufrag:{ufrag}", CHROME)
    said = refusal(re.sub(r"a=ice-pwd:.*", f"a=ice-pwd:{pwd}", text))
    name = "ice-pwd" if ufrag == "abcd" else "ice-ufrag"
    line = next(n for n, line in enumerate(CHROME.splitlines(), 1) if line.startswith(f"a={name}"))
    assert said.where == f"sdp: line {line}"
    assert said.expected.startswith(f"a={name}:")
    assert said.expected.endswith(f" of {22 if name == 'ice-pwd' else 4} to 256 characters")


@pytest.mark.parametrize("port", ["", "a=sctp-port:0\n", "a=sctp-port:65536\n"])
def test_data_without_a_port_is_rejected_alone(port):
    offer = Offer.parse(FIREFOX.replace("a=sctp-port:5000\n", port))
    assert [section.kind for section in offer.sections if not section.accepted] == ["application"]
    assert offer.kinds == Offer.parse(FIREFOX).kinds


def test_several_lines_of_parameters_are_one_set():
    line = next(line for line in CHROME.splitlines() if "packetization-mode=1" in line and "42e01f" in line)
    payload = line.split(":")[1].split(" ")[0]
    more = f"a=fmtp:{payload} x-google-min-bitrate=1000"
    for lines in (f"{line}\n{more}", f"{more}\n{line}"):
        found = Offer.parse(CHROME.replace(line, lines))
        assert found.codecs == Offer.parse(CHROME).codecs


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
def test_an_offer_that_takes_no_pictures_is_refused(direction):
    text = CHROME.replace("a=recvonly", f"a={direction}")
    assert no_pictures(text)


def test_an_offer_without_pictures_is_refused():
    text = CHROME[: CHROME.index("m=video")].replace("BUNDLE 0 1", "BUNDLE 0")
    assert no_pictures(text)


# What RFC 8866 leaves to who writes it -----------------------------------------------------------------


@EACH
@pytest.mark.parametrize("space", [" ", "\t", "  \t "])
def test_spaces_at_a_line_s_end_do_no_harm(text, space):
    assert Offer.parse(text.replace("\n", f"{space}\r\n")) == Offer.parse(text)


def test_empty_lines_and_letters_that_nobody_knows_do_no_harm():
    assert Offer.parse(CHROME.replace("s=-\n", "s=-\n\nx=1\ne=who@example.org\n") + "\n\n") == Offer.parse(
        CHROME
    )


@pytest.mark.parametrize("direction", ["recvonly", "sendrecv"])
def test_a_direction_of_the_session_goes_for_sections_without_their_own(direction):
    text = without(CHROME, "a=sendrecv", "a=recvonly").replace("t=0 0\n", f"t=0 0\na={direction}\n")
    assert {section.direction for section in sections_seen(Offer.parse(text)).values()} == {direction}
    own = Offer.parse(text.replace("a=mid:0\n", "a=mid:0\na=sendonly\n"))
    assert {kind: s.direction for kind, s in sections_seen(own).items()} == {
        "audio": "sendonly",
        "video": direction,
    }


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
def test_an_offer_whose_session_takes_no_pictures_is_refused(direction):
    text = without(CHROME, "a=sendrecv", "a=recvonly").replace("t=0 0\n", f"t=0 0\na={direction}\n")
    assert no_pictures(text)


def test_header_extensions_may_have_attributes_and_a_direction():
    """RFC 8285, 5."""
    text = CHROME.replace(
        "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level", "a=extmap:1 urn:a vad=on x=1 y"
    )
    text = text.replace(
        "a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay", "a=extmap:5/sendonly urn:b z"
    )
    text = text.replace("a=extmap:14 urn:ietf:params:rtp-hdrext:toffset", "a=extmap:14/recvonly urn:c z")
    offer = Offer.parse(text)
    assert offer.extensions["audio"]["urn:a"] == 1
    assert "urn:b" not in offer.extensions["video"]  # it would not take it
    assert offer.extensions["video"]["urn:c"] == 14


def test_header_extensions_of_the_session_and_those_without_a_number_yet():
    text = CHROME.replace("t=0 0\n", "t=0 0\na=extmap:9 urn:all\n").replace("a=extmap:14 ", "a=extmap:4100 ")
    extensions = Offer.parse(text).extensions
    assert extensions["audio"]["urn:all"] == extensions["video"]["urn:all"] == 9
    assert "urn:ietf:params:rtp-hdrext:toffset" not in extensions["video"]


def test_spaces_between_the_parameters_of_a_codec():
    text = CHROME.replace(
        "a=fmtp:109 level-asymmetry-allowed=1;packetization-mode=1;", "a=fmtp:109 Packetization-Mode=1 ; "
    )
    text = without(text, "a=rtpmap:103").replace("profile-level-id=42e01f", "profile-level-id=42E01F")
    assert Offer.parse(text).codecs["video"] == ("VP8", "H264")


def test_a_static_codec_needs_no_rtpmap():
    text = without(CHROME, "a=rtpmap:0 ", "a=rtpmap:9 ").replace("a=rtpmap:8 ", "a=fmtp:0 x=1\na=rtpmap:8 ")
    assert Offer.parse(text).codecs == {"audio": ("opus",), "video": ("VP8", "H264")}


def test_codecs_count_in_the_order_of_the_section_and_only_if_it_has_them():
    assert Offer.parse(CHROME.replace("96 97 103", "103 97 96")).codecs["video"] == ("H264", "VP8")
    assert Offer.parse(CHROME.replace("SAVPF 96 97 103 104 109", "SAVPF 97 103 104 109")).codecs["video"] == (
        "H264",
    )


def test_a_fingerprint_of_the_section_stands_for_that_of_the_session():
    """RFC 8122, 5."""
    head, rest = CHROME.split("m=audio", 1)
    other = ":".join(["CD"] * 32)
    offer = Offer.parse(f"{head}a=fingerprint:sha-256 {other}\nm=audio{rest}")
    for section in sections_seen(offer).values():
        assert [f.value for f in section.dtls.fingerprints] == [FINGERPRINT]


# Bundle-only ------------------------------------------------------------------------------------------

TRANSPORT = ("a=ice-", "a=fingerprint", "a=setup", "a=candidate", "a=rtcp-mux", "a=rtcp:")


def bundle_only(text, *, of):
    """Returns an offer with a section as RFC 8843, 7.2.1, has it: port 0, and no transport."""
    section = section_of(text, of)
    bare = without(re.sub(r"^(m=\w+) \d+", r"\1 0", section), *TRANSPORT) + "a=bundle-only\n"
    return text.replace(section, bare)


@pytest.mark.parametrize("text", [CHROME, FIREFOX], ids=["Chrome", "Firefox"])
def test_a_bundle_only_section_has_the_transport_of_the_first(text):
    assert sections_seen(Offer.parse(bundle_only(text, of="video")))["video"].ice.usernameFragment in (
        "h9jP",
        "aaaa1111",
    )
    offer = Offer.parse(bundle_only(text, of="video"))
    whole = Offer.parse(text)
    assert (offer.sdp, offer.candidates, offer.kinds) == (whole.sdp, whole.candidates, whole.kinds)
    assert all(section.accepted for section in offer.sections)


def test_a_bundle_only_section_named_first_has_no_transport_to_give():
    offer = Offer.parse(bundle_only(CHROME.replace("BUNDLE 0 1", "BUNDLE 1 0"), of="video"))
    assert [candidate.ip for candidate in offer.candidates] == ["192.0.2.7"]


def test_bundle_only_outside_of_a_bundle_is_rejected():
    text = bundle_only(CHROME, of="video").replace("BUNDLE 0 1", "BUNDLE 0")
    assert no_pictures(text)


def test_an_offer_whose_sections_all_are_bundle_only_is_refused():
    text = bundle_only(bundle_only(CHROME, of="video"), of="audio")
    assert refusal(text)[1:3] == ("ice-ufrag and ice-pwd", "none")


# What is rejected -------------------------------------------------------------------------------------


def again(text, kind, mid, *changes, port=9):
    """Returns the section of a kind once more."""
    section = re.sub(r"a=mid:.*", f"a=mid:{mid}", section_of(text, kind))
    section = re.sub(r"^(m=\w+) \d+", rf"\1 {port}", section)
    for change in changes:
        assert change[0] in section
        section = section.replace(*change)
    return section


def with_sections(text, *sections, first=False):
    """Returns an offer with further sections, all in its BUNDLE group."""
    mids = " ".join(re.findall(r"a=mid:(\S+)", "".join(sections)))
    head, rest = text[: text.index("m=")], text[text.index("m=") :]
    head = re.sub(r"(a=group:BUNDLE .*)", rf"a=group:BUNDLE {mids} \1" if first else rf"\1 {mids}", head)
    head = re.sub(r" a=group:BUNDLE", "", head)
    return head + ("".join(sections) + rest if first else rest + "".join(sections))


def accepted_mids(text):
    return [section.mid for section in Offer.parse(text).sections if section.accepted]


RELAY = "m=message 2855 TCP/MSRP *\na=mid:9\na=path:msrp://192.0.2.7:2855/x;tcp\na=sendrecv\n"


@pytest.mark.parametrize(
    "section",
    [
        again(CHROME, "video", 9, ("a=recvonly", "a=inactive")),
        again(CHROME, "video", 9, ("a=recvonly", "a=sendonly")),
        again(CHROME, "video", 9, port=0),
        again(CHROME, "audio", 9, ("a=sendrecv", "a=inactive")),
        again(CHROME, "audio", 9, port=0),
        again(CHROME, "audio", 9, ("UDP/TLS/RTP/SAVPF", "UDP/DTLS/BFCP")),
        RELAY,
        RELAY.replace("message", "text"),
        RELAY.replace("message", "m" * 200),
        RELAY.replace("message 2855 TCP/MSRP *", "application 9 UDP/BFCP *"),
        RELAY.replace("message 2855", "image 0"),
    ],
)
def test_unwanted_sections_are_rejected_and_the_rest_goes_on(section):
    text = with_sections(CHROME, section)
    offer = Offer.parse(text)
    assert [described.mid for described in offer.sections] == ["0", "1", "9"]
    assert accepted_mids(text) == ["0", "1"]
    assert offer.bundle == ("0", "1")
    assert list(sections_seen(offer)) == ["audio", "video"]
    assert offer.candidates == Offer.parse(CHROME).candidates
    assert offer.sdp == Offer.parse(CHROME).sdp


@pytest.mark.parametrize(
    "section",
    [
        again(CHROME, "video", 9, port=0),
        again(CHROME, "audio", 9, ("UDP/TLS/RTP/SAVPF", "UDP/DTLS/BFCP")),
        RELAY,
        RELAY.replace("message 2855 TCP/MSRP *", "application 9 UDP/BFCP *"),
    ],
)
def test_an_unwanted_section_is_rejected_though_the_bundle_names_it_first(section):
    offer = Offer.parse(with_sections(CHROME, section, first=True))
    assert [(described.accepted, described.idle) for described in offer.sections] == [
        (False, False),
        (True, False),
        (True, False),
    ]
    assert offer.bundle == ("0", "1")
    assert offer.sdp == Offer.parse(CHROME).sdp


@pytest.mark.parametrize("change", [("a=recvonly", "a=inactive"), ("a=recvonly", "a=sendonly")])
def test_the_section_whose_transport_all_use_is_not_rejected(change):
    """RFC 8843, 7.3, lets it be; Chromium does not."""
    section = again(CHROME, "video", 9, change).replace("h9jP", "tag1")
    offer = Offer.parse(with_sections(CHROME, section, first=True))
    assert [(described.accepted, described.idle) for described in offer.sections] == [
        (False, True),
        (True, False),
        (True, False),
    ]
    assert offer.bundle == ("9", "0", "1")
    assert offer.kinds == ("audio", "video")
    assert {s.ice.usernameFragment for s in sections_seen(offer).values()} == {"tag1"}
    assert offer.candidates == ()


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_the_first_of_two_sections_alike_is_taken(kind):
    assert accepted_mids(with_sections(CHROME, again(CHROME, kind, 9))) == ["0", "1"]
    found = accepted_mids(with_sections(CHROME, again(CHROME, kind, 9), first=True))
    assert found == (["9", "1"] if kind == "audio" else ["9", "0"])


def test_the_video_that_receives_is_taken_and_the_one_with_a_codec():
    camera = again(CHROME, "video", 9, ("a=recvonly", "a=sendonly"))
    assert accepted_mids(with_sections(CHROME, camera, first=True)) == ["0", "1"]
    other = again(CHROME, "video", 9, ("VP8/", "VP9/"), ("H264/", "H265/"))
    assert accepted_mids(with_sections(CHROME, other, first=True)) == ["0", "1"]


def test_the_sound_that_goes_both_ways_is_taken():
    down = again(CHROME, "audio", 9, ("a=sendrecv", "a=recvonly"))
    up = again(CHROME, "audio", 8, ("a=sendrecv", "a=sendonly"))
    assert accepted_mids(with_sections(CHROME, down, up, first=True)) == ["0", "1"]
    alone = CHROME.replace(section_of(CHROME, "audio"), "").replace("BUNDLE 0 1", "BUNDLE 1")
    assert accepted_mids(with_sections(alone, down, up, first=True)) == ["8", "1"]


def test_the_second_section_of_data_is_rejected():
    other = again(FIREFOX, "application", 9)
    assert accepted_mids(with_sections(FIREFOX, other)) == ["0", "1", "2"]


def test_inactive_sound_is_rejected_unless_all_need_its_transport():
    sound = section_of(CHROME, "audio")
    text = CHROME.replace(sound, sound.replace("a=sendrecv", "a=inactive"))
    for offered, idle in (
        (text, True),
        (text.replace("BUNDLE 0 1", "BUNDLE 1 0"), False),
        (bundle_only(text, of="video"), True),
        (bundle_only(text, of="video").replace("BUNDLE 0 1", "BUNDLE 1 0"), True),
    ):
        offer = Offer.parse(offered)
        assert [(s.accepted, s.idle) for s in offer.sections] == [(False, idle), (True, False)]
        assert offer.kinds == ("video",)


def test_sections_outside_of_the_bundle_may_be_rejected_but_not_used():
    outside = CHROME + again(CHROME, "video", 9)
    assert accepted_mids(outside) == ["0", "1"]


# Codecs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmtp", "got"),
    [
        ("", "H264 (packetization-mode=0 by default, profile-level-id=none)"),
        (
            "packetization-mode=0;profile-level-id=42e01f",
            "H264 (packetization-mode=0, profile-level-id=42e01f)",
        ),
        ("profile-level-id=42e01f", "H264 (packetization-mode=0 by default, profile-level-id=42e01f)"),
        (
            "packetization-mode=1;profile-level-id=640c1f",
            "H264 (packetization-mode=1, profile-level-id=640c1f)",
        ),
        (
            "packetization-mode=1;profile-level-id=4d001f",
            "H264 (packetization-mode=1, profile-level-id=4d001f)",
        ),
        (
            "packetization-mode=x;profile-level-id=42e01f",
            "H264 (packetization-mode=x, profile-level-id=42e01f)",
        ),
        (
            "packetization-mode;profile-level-id=42e01f",
            "H264 (packetization-mode=0 by default, profile-level-id=42e01f)",
        ),
        (
            "packetization-mode=1;profile-level-id=42e01fgg",
            "H264 (packetization-mode=1, profile-level-id=42e01fgg)",
        ),
        ("packetization-mode=1;profile-level-id=42", "H264 (packetization-mode=1, profile-level-id=42)"),
        (f"packetization-mode={'9' * 5000};profile-level-id=42e01f", "H264 (packetization-mode=999"),
    ],
)
def test_which_h264_is_wanted_is_said(fmtp, got):
    video = "m=video 9 UDP/TLS/RTP/SAVPF 96\na=mid:1\na=recvonly\na=rtpmap:96 H264/90000\n"
    video += f"a=fmtp:96 {fmtp}\n" if fmtp else ""
    with pytest.raises(NotAcceptableError) as caught:
        Offer.parse(CHROME.replace(section_of(CHROME, "video"), video))
    wanted = "H264 (packetization-mode=1, profile-level-id=42e01f or 42001f) or VP8"
    assert str(caught.value).startswith(f"sdp: expected video as {wanted}, got {got}")
    assert len(str(caught.value)) < 500


def test_other_codecs_and_those_that_we_may_not_send():
    offer = Offer.parse(without(CHROME, "a=rtpmap:103", "a=rtpmap:109"))
    offer.check_codecs(["H264", "VP8"])
    with pytest.raises(NotAcceptableError, match=r"expected video as H264 \(.*\), got VP8, AV1$"):
        offer.check_codecs(["H264"])
    with pytest.raises(
        NotAcceptableError, match="expected audio as opus/48000/2, got speex, red, G722, PCMU"
    ):
        Offer.parse(CHROME.replace("opus/48000/2", "speex/16000"))
    offer = Offer.parse(CHROME.replace("96 97", "40 97").replace("rtpmap:96 VP8", "rtpmap:40 VP8"))
    assert offer.codecs["video"] == ("H264",)
    assert "VP8 (payload type 40, not from 96 to 127)" in offer.offered["video"]


# Garbage ----------------------------------------------------------------------------------------------

LINES = tuple(sorted({line for text in BROWSERS.values() for line in text.splitlines()}))
QUICK = hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)


def only_an_offer_error(text):
    try:
        offer = Offer.parse(text)
    except OfferError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - most texts raise none
        assert len(str(error)) < 300  # noqa: PT017
    else:
        assert "video" in offer.kinds
        assert "a=candidate" not in offer.sdp
        seen = SessionDescription.parse(offer.sdp)
        assert [s.kind for s in seen.media if s.kind != "application"] == list(offer.kinds)
        assert len(offer.candidates) <= MAX_CANDIDATES


@QUICK
@hypothesis.given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused(text):
    only_an_offer_error(text)


@QUICK
@hypothesis.given(st.lists(st.sampled_from(LINES) | st.text(max_size=30), max_size=60))
def test_any_lines_are_parsed_or_refused(lines):
    only_an_offer_error("\n".join(lines))


@QUICK
@hypothesis.given(
    st.sampled_from(sorted(BROWSERS)),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 60), st.text(max_size=8)), max_size=4),
)
def test_browsers_offers_with_scratches_are_parsed_or_refused(browser, scratches):
    lines = BROWSERS[browser].splitlines()
    for number, place, text in scratches:
        line = lines[number % len(lines)]
        lines[number % len(lines)] = line[:place] + text + line[place + len(text) :]
    only_an_offer_error("\n".join(lines))


@QUICK
@hypothesis.given(st.sampled_from(sorted(BROWSERS)), st.integers(0, 5000), st.integers(0, 400))
def test_browsers_offers_with_a_hole_are_parsed_or_refused(browser, begin, length):
    text = BROWSERS[browser]
    only_an_offer_error(text[:begin] + text[begin + length :])


@pytest.mark.parametrize("browser", sorted(BROWSERS))
def test_browsers_offers_with_lines_gone_doubled_or_cut_are_parsed_or_refused(browser):
    lines = BROWSERS[browser].splitlines()
    for number, line in enumerate(lines):
        before, after = lines[:number], lines[number + 1 :]
        short = [
            line[:2],
            line.partition(":")[0],
            f"{line.partition(':')[0]}:",
            line.rpartition(" ")[0],
            line[:-1],
        ]
        odd = [re.sub(r"\d+", n, line) for n in ("x", "-1", "9" * 5000, "", "1.5", "\u0663", "0x1f")]
        for changed in ([], [line, line], *([each] for each in short + odd)):
            only_an_offer_error("\n".join([*before, *changed, *after]))
        only_an_offer_error("\n".join(before))


def test_the_longest_text_that_may_come_is_parsed_or_refused():
    only_an_offer_error("m=audio 9 UDP/TLS/RTP/SAVPF 0\n" * 2000)
    only_an_offer_error("a=" * 32_000)
    only_an_offer_error(CHROME + "a=ssrc:1 cname:x\n" * 3000)
