"""Offers: what browsers write is understood, what cannot be answered is refused in one line."""

from __future__ import annotations

import re

import hypothesis
import hypothesis.strategies as st
import pytest
from aiortc.sdp import SessionDescription
from offers import BROWSERS, CHROME, FINGERPRINT, FIREFOX, SAFARI

from streaming.offer import NotAcceptableError, Offer, OfferError
from streaming.rtp_extensions import PLAYOUT_DELAY_URI

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
    """Returns the one line that an offer is refused with."""
    with pytest.raises(OfferError) as caught:
        Offer.parse(text)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith("sdp: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    return message


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


@pytest.mark.parametrize("direction", ["recvonly", "sendonly", "inactive"])
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


def test_so_do_the_credentials_of_all_sections():
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


@pytest.mark.parametrize("separator", ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_candidate_slips_by_where_the_parser_cuts_lines(separator):
    hidden = CANDIDATE.replace("192.0.2.9", "someone.LOCAL").strip()
    text = CHROME.replace("a=mid:0\n", f"a=mid:0\na=x:y{separator}{hidden}\n")
    offer = Offer.parse(text)
    assert ".local" not in offer.sdp.lower()
    assert [candidate.ip for candidate in offer.candidates] == ["192.0.2.7"]
    assert "candidates" in refusal(
        CHROME.replace("a=mid:0\n", f"a=mid:0{separator}" + separator.join([hidden] * 65) + "\n")
    )


@pytest.mark.parametrize("port", [0, 65536, 10**9])
def test_candidates_of_impossible_ports_are_left_out(port):
    text = CHROME.replace("a=mid:0\n", "a=mid:0\n" + CANDIDATE.replace(" 5000 ", f" {port} "))
    assert [candidate.port for candidate in Offer.parse(text).candidates] == [51472]


def test_64_candidates_are_enough():
    def offering(count):
        return without(CHROME, "a=candidate").replace("a=mid:0\n", "a=mid:0\n" + count * CANDIDATE)

    assert len(Offer.parse(offering(64)).candidates) == 64
    assert "at most 64 candidates, got 65" in refusal(offering(65))


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "\n", "hello", "v=0\r\n", "v=0\no=- 1 1 IN IP4 0.0.0.0\ns=-\nt=0 0\n", "{}"]
)
def test_no_section_at_all(text):
    assert "got none" in refusal(text)


@pytest.mark.parametrize(
    "change",
    [
        ("m=audio 51472 UDP", "m=audio sometime UDP"),
        ("a=rtpmap:96 VP8/90000", "a=rtpmap:ninety VP8/90000"),
        ("a=setup:actpass", "a=setup:perhaps"),
        ("a=mid:0", "a=mid"),
        ("c=IN IP4 192.0.2.7", "c=somewhere"),
        ("a=candidate:2 1 udp", "a=candidate:2"),
        ("a=extmap:1 ", "a=extmap:"),
        ("v=0", "v=zero"),
    ],
)
def test_what_does_not_parse(change):
    assert change[0] in CHROME
    refusal(CHROME.replace(*change))


@EACH
def test_no_bundle(text):
    assert "max-bundle" in refusal(without(text, "a=group"))
    assert "max-bundle" in refusal(re.sub(r"a=group:BUNDLE .*", "a=group:BUNDLE 0", text))
    assert "max-bundle" in refusal(re.sub(r"a=group:BUNDLE .*", "a=group:BUNDLE 0 1 2 3", text))


def test_sections_of_one_name():
    assert "BUNDLE" in refusal(CHROME.replace("a=mid:1", "a=mid:0"))
    assert "BUNDLE" in refusal(CHROME.replace("a=mid:1", "a=mid:0").replace("BUNDLE 0 1", "BUNDLE 0 0"))


@EACH
def test_no_rtcp_mux(text):
    assert "expected rtcp-mux" in refusal(without(text, "a=rtcp-mux"))


@EACH
def test_no_fingerprint(text):
    assert "expected a DTLS fingerprint" in refusal(without(text, "a=fingerprint"))
    assert "sha-256" in refusal(text.replace("sha-256", "sha-1"))
    assert "setup" in refusal(without(text, "a=setup"))


def test_a_fingerprint_of_an_unknown_kind_beside_a_known_one_is_fine():
    line = f"a=fingerprint:sha-256 {FINGERPRINT}\n"
    assert Offer.parse(CHROME.replace(line, f"a=fingerprint:sha-1 AB:CD\n{line}")).kinds


@EACH
def test_no_ice_credentials(text):
    assert "expected ice-ufrag and ice-pwd" in refusal(without(text, "a=ice-ufrag"))
    assert "expected ice-ufrag and ice-pwd" in refusal(without(text, "a=ice-pwd"))


@pytest.mark.parametrize(
    ("ufrag", "pwd"),
    [("abc", "p" * 22), ("abcd", "p" * 21), ("a" * 257, "p" * 22), ("abcd", "p" * 257), ("a bc", "p" * 22)],
)
def test_ice_credentials_that_fit_no_check(ufrag, pwd):
    text = re.sub(r"a=ice-ufrag:.*", f"a=ice-ufrag:{ufrag}", CHROME)
    assert "4 to 256" in refusal(re.sub(r"a=ice-pwd:.*", f"a=ice-pwd:{pwd}", text))


def test_too_many_sections():
    other = section_of(CHROME, "audio")
    assert "at most 3 sections, got 6" in refusal(CHROME + 4 * other)


@pytest.mark.parametrize("kind", ["audio", "video", "application"])
def test_two_of_a_kind(kind):
    text = FIREFOX if kind == "application" else CHROME
    again = re.sub(r"a=mid:.*", "a=mid:9", section_of(text, kind))
    text = without(text, "a=group") if kind != "application" else text.replace(section_of(text, "audio"), "")
    assert f"expected one section of {kind}, got 2" in refusal(text + again)


def test_a_section_of_another_kind():
    text = FIREFOX.replace("m=application", f"m={'message' * 30}")
    assert "audio, video or application" in refusal(text)


@pytest.mark.parametrize("port", ["", "a=sctp-port:0\n", "a=sctp-port:65536\n", f"a=sctp-port:{'9' * 300}\n"])
def test_data_without_a_port(port):
    assert "sctp-port" in refusal(FIREFOX.replace("a=sctp-port:5000\n", port))


@pytest.mark.parametrize("number", [0, 256, -1])
def test_extensions_of_impossible_numbers(number):
    assert "extmap" in refusal(CHROME.replace("a=extmap:5 ", f"a=extmap:{number} "))


def test_a_mid_that_fits_no_packet():
    assert "mid" in refusal(CHROME.replace("a=mid:1", f"a=mid:{'m' * 33}").replace("0 1", f"0 {'m' * 33}"))


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
def test_pictures_that_are_not_taken(direction):
    text = CHROME.replace("a=recvonly", f"a={direction}")
    assert "recvonly video transceiver" in refusal(text, NotAcceptableError)


def test_no_pictures():
    text = CHROME[: CHROME.index("m=video")].replace("BUNDLE 0 1", "BUNDLE 0")
    assert "recvonly video transceiver" in refusal(text, NotAcceptableError)


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
        SessionDescription.parse(offer.sdp)


@QUICK
@hypothesis.given(st.text(max_size=300))
def test_any_text(text):
    only_an_offer_error(text)


@QUICK
@hypothesis.given(st.lists(st.sampled_from(LINES) | st.text(max_size=30), max_size=60))
def test_any_lines(lines):
    only_an_offer_error("\n".join(lines))


@QUICK
@hypothesis.given(
    st.sampled_from(sorted(BROWSERS)),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 60), st.text(max_size=8)), max_size=4),
)
def test_browsers_offers_with_scratches(browser, scratches):
    lines = BROWSERS[browser].splitlines()
    for number, place, text in scratches:
        line = lines[number % len(lines)]
        lines[number % len(lines)] = line[:place] + text + line[place + len(text) :]
    only_an_offer_error("\n".join(lines))


@QUICK
@hypothesis.given(st.sampled_from(sorted(BROWSERS)), st.integers(0, 5000), st.integers(0, 400))
def test_browsers_offers_with_a_hole(browser, begin, length):
    text = BROWSERS[browser]
    only_an_offer_error(text[:begin] + text[begin + length :])


def test_a_text_as_long_as_may_come_is_dealt_with():
    only_an_offer_error("m=audio 9 UDP/TLS/RTP/SAVPF 0\n" * 2000)
    only_an_offer_error("a=" * 32_000)
    only_an_offer_error(CHROME + "a=ssrc:1 cname:x\n" * 3000)
