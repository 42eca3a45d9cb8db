"""SDP offers, parsed, checked and reduced to what aiortc takes. Source: RFC 8866, RFC 8843, RFC 9429."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiortc.codecs import CODECS
from aiortc.rtcicetransport import RTCIceCandidate
from aiortc.rtcpeerconnection import is_codec_compatible
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.sdp import DIRECTIONS, candidate_from_sdp, grouplines

from ..errors import InputError
from .dtls import FINGERPRINT_BYTES
from .ice import is_reachable

MAX_OFFER_BYTES = 64 * 1024
MAX_FORMATS = 128  # of a section: RTP has no more payload types
MAX_SECTIONS = 32
MAX_CANDIDATES = 16
_MAX_SSRCS = 3  # a stream, its retransmission, and one more that shows an excess
_OUR_CODECS = {"audio": ("opus",), "video": ("H264", "VP8")}
_WANTED = {
    "opus": "opus/48000/2",
    "H264": "H264 (packetization-mode=1, profile-level-id=42e01f or 42001f)",
    "VP8": "VP8",
}
_REVERSED = {"sendonly": "recvonly", "recvonly": "sendonly"}
_RTP = re.compile(r"(?:(?:UDP|TCP)/TLS/)?RTP/S?AVPF?")  # RFC 9429, 5.1.2
_SCTP = ("UDP/DTLS/SCTP", "TCP/DTLS/SCTP", "DTLS/SCTP")
_LINE_END = re.compile(r"\r\n|\r|\n")
_VISIBLE = re.compile(r"[ -~]*")
_MEDIA = re.compile(r"([!-.0-~]+) +([0-9]{1,5})(?:/[0-9]{1,5})? +([!-~]+)((?: +[!-~]+)+)")
_PAYLOAD_TYPE = re.compile(r"[0-9]{1,2}|1[01][0-9]|12[0-7]")
_DYNAMIC = range(96, 128)

# The form of each attribute that aiortc or we read, and how to write it. Others are ignored (RFC 8866, 5.13).
_ATTRIBUTES = {
    name: (re.compile(pattern), f"a={name}:{example}")
    for name, pattern, example in (
        (
            "candidate",
            r"[!-~]+ +[0-9]{1,3} +[!-~]+ +[0-9]{1,10} +[!-~]+ +[0-9]{1,10} +typ +[!-~]+"
            r"(?: +(?!rport )[!-~]+ +[!-~]+| +rport +[0-9]{1,5})*(?: +[!-~]+)?",
            "FOUNDATION COMPONENT udp PRIORITY ADDRESS PORT typ TYPE",
        ),
        ("extmap", rf"([0-9]{{1,5}})(?:/({'|'.join(DIRECTIONS)}))? +([!-~]+)(?: .*)?", "ID[/DIRECTION] URI"),
        ("fingerprint", r"([!-~]+) +([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2})*)", "sha-256 AB:CD:..."),
        ("fmtp", r"([!-~]+) +(.+)", "PAYLOAD_TYPE PARAMETERS"),
        ("group", r"[!-~]+(?: +[!-~]+)*", "BUNDLE MID MID"),
        ("ice-options", r".+", "OPTIONS"),
        # RFC 8839, 5.4: longer ones do not fit a connectivity check. Which characters is between the peers.
        ("ice-pwd", r"[!-~]{22,256}", "PASSWORD of 22 to 256 characters"),
        ("ice-ufrag", r"[!-~]{4,256}", "USERNAME of 4 to 256 characters"),
        ("max-message-size", r"[0-9]{1,20}", "BYTES"),
        ("mid", r"[!-~]{1,32}", "NAME of 1 to 32 characters"),
        ("msid", r".+", "STREAM TRACK"),
        ("msid-semantic", r".+", "WMS STREAM"),
        ("rtcp", r"[0-9]{1,5}(?: +IN +IP[46] +[!-~]+)?", "PORT"),
        ("rtcp-fb", r"(\*|[0-9]{1,3}) +([!-~]+(?: +[!-~]+)*)", "PAYLOAD_TYPE KIND"),
        ("rtpmap", r"([0-9]{1,3}) +([!-.0-~]+)/([0-9]{1,9})(?:/[!-~]+)?", "PAYLOAD_TYPE NAME/CLOCK_RATE"),
        ("sctp-port", r"[0-9]{1,5}", "PORT"),
        ("sctpmap", r"[0-9]{1,5} +[!-~]+(?: .*)?", "PORT webrtc-datachannel STREAMS"),
        ("setup", r"actpass|active|passive|holdconn", "actpass, active or passive"),
        ("ssrc", r"([0-9]{1,10}) +.+", "SSRC NAME:VALUE"),
        ("ssrc-group", r"[!-~]+(?: +[0-9]{1,10})*", "FID SSRC SSRC"),
    )
}


class OfferError(InputError):
    """An offer that cannot be answered; the message is one line for the peer."""


class NotAcceptableError(OfferError):
    """A valid offer without a codec or direction in common."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A media section as the answer has to repeat it."""

    kind: str
    profile: str
    formats: str
    mid: str | None
    accepted: bool
    idle: bool = False  # neither accepted nor rejected, for its transport is what all use
    codec_lines: tuple[str, ...] = ()  # of one that is not accepted
    extension_directions: tuple[tuple[int, str], ...] = ()  # of an accepted one: id, what the answer says


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A checked offer."""

    sdp: str  # of what is accepted, without candidates, and with one transport
    candidates: tuple[RTCIceCandidate, ...]  # of the one transport, as aiortc has them
    kinds: tuple[str, ...]  # "audio" and "video", in the order of their sections
    extensions: dict[str, dict[str, int]]  # header extensions that the peer takes, by kind: URI to id
    codecs: dict[str, tuple[str, ...]]  # ours that it takes, by kind
    offered: dict[str, str]  # what it offers, by kind, fit to be shown
    sections: tuple[Section, ...]  # all of them
    bundle: tuple[str, ...]  # the mids of what is accepted, the one whose transport counts first

    @classmethod
    def parse(cls, text: str) -> Offer:
        """Returns a checked offer.

        One section of a kind is accepted: of video the first that receives and has a codec of ours, of audio
        likewise, one that goes both ways before others, and data, which nobody reads. The rest is rejected in
        the answer, but for one that BUNDLE names first: it is answered as inactive, for Chromium refuses an
        answer without it.
        Everything goes by one transport, the one of the section that the BUNDLE group names first and that
        has one (RFC 8843, 7.3.1): its candidates, credentials and fingerprints count, no others.
        Candidates that end in `.local` are left out: resolving them takes a second where it works at all, and
        the peer's own checks tell its address anyway. For the same reason the end of candidates is not
        believed: an offer without any still connects. At most `MAX_CANDIDATES` are taken, see `is_reachable`.

        Raises:
            OfferError: no SDP, or one that asks for what is not there.
            NotAcceptableError: it takes no pictures, or has no codec in common.
        """
        session, sections = _read(text)
        groups = [
            a.value.split()[1:] for a in session if a.name == "group" and a.value.split()[0] == "BUNDLE"
        ]
        _check_mids(sections)
        accepted = _choose(sections, groups)
        bundle = _bundle(sections, accepted, groups)
        source = _transport_source(sections, accepted, bundle)
        idle = None if source in accepted else source
        transport = _transport_lines(source)
        for section in accepted:
            is_media = section.kind != "application"
            if is_media and not section.has_rtcp_mux and not source.has_rtcp_mux:  # IDENTICAL (RFC 8859)
                raise section.error("expected rtcp-mux, got none")
        mids = [section.mid for section in accepted]
        used = [*mids, *([idle.mid] if idle is not None else [])]
        head = ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0"]
        head += ["a=ice-lite"] if any(a.name == "ice-lite" for a in session) else []
        head += [f"a=group:BUNDLE {' '.join(mid for mid in bundle if mid in mids)}"] if bundle else []
        lines = [line for section in accepted for line in [*section.sdp_lines(), *transport]]
        media = [section for section in accepted if section.kind != "application"]
        offer = cls(
            sdp="\r\n".join([*head, *lines, ""]),
            candidates=_candidates(source),
            kinds=tuple(section.kind for section in media),
            extensions={s.kind: {uri: number for number, uri, _ in s.extensions} for s in media},
            codecs={section.kind: section.codecs.names for section in media},
            offered={section.kind: section.codecs.offered for section in media},
            sections=tuple(s.described(accepted=s in accepted, idle=s is idle) for s in sections),
            bundle=tuple(mid for mid in bundle if mid in used),
        )
        offer.check_codecs(_OUR_CODECS["video"])
        return offer

    def check_codecs(self, names: Iterable[str]) -> None:
        """Refuses an offer without a codec in common.

        Args:
            names: of video, those that we may send.

        Raises:
            NotAcceptableError: there is none.
        """
        wanted = {"audio": _OUR_CODECS["audio"], "video": tuple(names)}
        for kind in self.kinds:
            if not set(wanted[kind]) & set(self.codecs[kind]):
                expected = " or ".join(_WANTED[name] for name in wanted[kind])
                raise NotAcceptableError(f"sdp: expected {kind} as {expected}, got {self.offered[kind]}")

    def complete_answer(self, sdp: str) -> str:
        """Returns the answer with a section for each one of the offer, in its order and by its protocol.

        Args:
            sdp: an answer to `self.sdp`.
        """
        head, answered = grouplines(sdp)
        head = [line for line in head if not line.startswith("a=group:BUNDLE")]
        if self.bundle:
            head.append(f"a=group:BUNDLE {' '.join(self.bundle)}")
        _, port, _ = answered[0][0].split(" ", 2)
        transport = [line for line in answered[0] if line.startswith(_TRANSPORT)]
        way = [line for line in answered[0] if line.startswith(("a=candidate:", "a=end-of-candidates"))]
        lines = head
        following = iter(answered)
        for section in self.sections:
            if section.accepted:
                lines += _accepted_lines(section, next(following))
                continue
            lines += [
                f"m={section.kind} {port if section.idle else 0} {section.profile} {section.formats}",
                "c=IN IP4 0.0.0.0",
                "a=inactive",
                *([f"a=mid:{section.mid}"] if section.mid is not None else []),
            ]
            if section.kind in ("audio", "video"):  # some peers read a rejected section as any other
                lines += [*section.codec_lines, "a=rtcp-mux", *transport, *(way if section.idle else [])]
        return "\r\n".join([*lines, ""])


_TRANSPORT = ("a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:", "a=setup:")


def _accepted_lines(section: Section, lines: list[str]) -> list[str]:
    """Returns an answered section by the offer's protocol, with the directions of its header extensions."""
    kind, port, _, formats = lines[0].split(" ", 3)
    directions = dict(section.extension_directions)
    found = [f"{kind} {port} {section.profile} {formats}"]
    for line in lines[1:]:
        number, _, uri = line.removeprefix("a=extmap:").partition(" ")
        if line.startswith("a=extmap:") and int(number) in directions:
            line = f"a=extmap:{number}/{directions[int(number)]} {uri}"
        found.append(line)
    return found


# Reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attribute:
    line: int
    name: str
    value: str

    def match(self) -> re.Match[str]:
        """Returns the parts of the value of an attribute that was checked."""
        found = _ATTRIBUTES[self.name][0].fullmatch(self.value)
        assert found is not None
        return found


@dataclass(frozen=True)
class _Codecs:
    lines: tuple[str, ...]  # of those that are ours, for aiortc
    payload_types: tuple[int, ...]
    names: tuple[str, ...]
    offered: str


@dataclass(eq=False, kw_only=True)
class _OfferedSection:
    """One media section, with the session-level attributes that apply to it."""

    line: int
    kind: str
    port: int
    profile: str
    formats: list[str]
    session: list[_Attribute]
    own: list[_Attribute]
    _codecs: _Codecs | None = None

    def all(self, name: str) -> list[_Attribute]:
        """Returns its own attributes of a name."""
        return [attribute for attribute in self.own if attribute.name == name]

    def value(self, *names: str) -> str | None:
        """Returns the value of the last of its own attributes of these names, else of the session's."""
        for attributes in (self.own, self.session):
            for attribute in reversed(attributes):
                if attribute.name in names:
                    return attribute.value
        return None

    def error(self, message: str) -> OfferError:
        """Returns an error about the section as a whole."""
        return OfferError(f"sdp: line {self.line}, {_shown(self.kind, 20)}: {message}")

    @property
    def mid(self) -> str | None:
        """Its name."""
        named = self.all("mid")
        return named[-1].value if named else None

    @property
    def direction(self) -> str:
        """Its own direction, else the session's, else both ways (RFC 8866, 6.7)."""
        for attributes in (self.own, self.session):
            for attribute in reversed(attributes):
                if attribute.name in DIRECTIONS:
                    return attribute.name
        return "sendrecv"

    @property
    def has_rtcp_mux(self) -> bool:
        """Whether RTCP comes by the same port as RTP."""
        return any(attribute.name in ("rtcp-mux", "rtcp-mux-only") for attribute in self.own)

    @property
    def extensions(self) -> list[tuple[int, str, str]]:
        """The header extensions that the peer takes: id, URI, direction (RFC 8285, 5)."""
        found = []
        for attribute in (*self.session, *self.own):
            if attribute.name != "extmap":
                continue
            parts = attribute.match()
            number = int(parts[1])
            if 4096 <= number <= 4351:  # to be given another by who answers; left out
                continue
            if not 1 <= number <= 255:
                raise _refused(attribute, "ids of a=extmap from 1 to 255")
            direction = parts[2] or "sendrecv"
            if direction in ("sendrecv", "recvonly"):
                found.append((number, parts[3], direction))
        return found

    @property
    def codecs(self) -> _Codecs:
        """The codecs that it offers, and those in common."""
        if self._codecs is None:
            self._codecs = _read_codecs(self)
        return self._codecs

    def sdp_lines(self) -> list[str]:
        """Returns it for aiortc, without its transport."""
        mid = [f"a=mid:{self.mid}"] if self.mid is not None else []
        if self.kind == "application":
            port = _sctp_port(self)
            size = [f"a=max-message-size:{a.value}" for a in self.all("max-message-size")[-1:]]
            if self.profile == "DTLS/SCTP":
                sctpmap = f"a=sctpmap:{port} webrtc-datachannel 65535"
                return [f"m=application 9 DTLS/SCTP {port}", *mid, sctpmap, *size]
            return ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", *mid, f"a=sctp-port:{port}", *size]
        ssrcs: dict[int, None] = {}
        for attribute in self.all("ssrc"):
            ssrc = int(attribute.match()[1])
            if ssrc >= 1 << 32:
                raise _refused(attribute, "an SSRC of 32 bits")
            ssrcs[ssrc] = None
        formats = " ".join(map(str, self.codecs.payload_types)) or "0"
        return [
            f"m={self.kind} 9 UDP/TLS/RTP/SAVPF {formats}",
            *mid,
            f"a={self.direction}",
            "a=rtcp-mux",
            *self.codecs.lines,
            *(f"a=extmap:{number} {uri}" for number, uri, _ in self.extensions),
            *(f"a=ssrc:{ssrc} cname:-" for ssrc in list(ssrcs)[:_MAX_SSRCS]),
        ]

    def described(self, *, accepted: bool, idle: bool) -> Section:
        """Returns it for the answer."""
        codec_lines = [
            f"a={a.name}:{a.value}"
            for a in self.own
            if a.name in ("rtpmap", "fmtp") and _VISIBLE.fullmatch(a.value)
        ]
        is_media = self.kind in ("audio", "video")
        return Section(
            kind=self.kind,
            profile=self.profile,
            formats=" ".join(self.formats),
            mid=self.mid,
            accepted=accepted,
            idle=idle,
            codec_lines=tuple(codec_lines) if is_media and not accepted else (),
            extension_directions=tuple((n, _REVERSED[d]) for n, _, d in self.extensions if d in _REVERSED)
            if is_media and accepted
            else (),
        )


def _shown(text: str, length: int = 60) -> str:
    """Returns the beginning of a text, escaped to visible ASCII."""
    escaped = ascii(text[:length])[1:-1]
    return escaped[: 2 * length] + ("..." if len(text) > length else "")


def _refused(attribute: _Attribute, expected: str) -> OfferError:
    return _refused_line(attribute.line, f"a={attribute.name}:{attribute.value}", expected)


def _refused_line(number: int, text: str, expected: str) -> OfferError:
    return OfferError(f'sdp: line {number}: expected {expected}, got "{_shown(text)}"')


def _read(text: str) -> tuple[list[_Attribute], list[_OfferedSection]]:
    """Returns the session's attributes, and the sections, each line checked for its form."""
    lines = [line.rstrip() for line in _LINE_END.split(text)]
    count = sum(line.startswith("m=") for line in lines)
    if not count:
        raise OfferError("sdp: expected a section for audio and one for video, got none")
    if count > MAX_SECTIONS:
        raise OfferError(f"sdp: expected at most {MAX_SECTIONS} sections, got {count}")
    session: list[_Attribute] = []
    sections: list[_OfferedSection] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        kind, equals, value = line[:1], line[1:2], line[2:]
        if equals != "=" or not ("a" <= kind <= "z"):
            raise _refused_line(number, line, "a letter and =")
        if kind == "v" and value != "0":
            raise _refused_line(number, line, "v=0")
        if kind == "c" and not re.fullmatch(r"IN +IP[46] +[!-~]+", value):
            raise _refused_line(number, line, "c=IN IP4 ADDRESS")
        if kind == "m":
            sections.append(_read_media(number, value, session))
        if kind == "a":
            (sections[-1].own if sections else session).append(_read_attribute(number, value))
    return session, sections


def _read_media(number: int, value: str, session: list[_Attribute]) -> _OfferedSection:
    parts = _MEDIA.fullmatch(value)
    if parts is None or int(parts[2]) > 65535:
        raise _refused_line(number, f"m={value}", "m=KIND PORT PROTOCOL FORMATS")
    formats = parts[4].split(maxsplit=MAX_FORMATS)
    if len(formats) > MAX_FORMATS:
        raise _refused_line(number, f"m={value}", f"at most {MAX_FORMATS} formats")
    return _OfferedSection(
        line=number,
        kind=parts[1],
        port=int(parts[2]),
        profile=parts[3],
        formats=formats,
        session=session,
        own=[],
    )


def _read_attribute(number: int, text: str) -> _Attribute:
    name, colon, value = text.partition(":")
    value = value.strip()
    if not name:
        raise _refused_line(number, f"a={text}", "a=NAME or a=NAME:VALUE")
    if name in _ATTRIBUTES:
        form, expected = _ATTRIBUTES[name]
        if not form.fullmatch(value):
            raise _refused_line(number, f"a={name}{colon}{value}", expected)
    attribute = _Attribute(number, name, value)
    if name == "fingerprint":
        parts = attribute.match()
        length = FINGERPRINT_BYTES.get(parts[1].lower())
        if length is not None and len(parts[2]) != 3 * length - 1:
            raise _refused(attribute, f"{length} bytes of {parts[1].lower()}")
    return attribute


def _parameters(text: str) -> dict[str, str]:
    """Returns the parameters of an `a=fmtp` line; a name without a value has an empty one."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs if name.strip()}


def _read_codecs(section: _OfferedSection) -> _Codecs:
    described = {int(a.match()[1]): a.match() for a in section.all("rtpmap")}
    formats: dict[str, _Attribute] = {}
    parameters_of: dict[str, dict[str, str]] = {}
    for attribute in section.all("fmtp"):  # one payload type may have several: pages like to add one
        payload, text = attribute.match()[1], attribute.match()[2]
        formats.setdefault(payload, attribute)
        parameters_of.setdefault(payload, {}).update(_parameters(text))
    lines, names, shown, ours = [], [], [], []
    retransmissions = []
    for text in section.formats:
        if not _PAYLOAD_TYPE.fullmatch(text):
            raise section.error(f'expected payload types from 0 to 127, got "{_shown(text, 20)}"')
        payload_type = int(text)
        parts = described.get(payload_type)
        if parts is None:  # known by its number, and none of ours
            continue
        name, rate_hz = parts[2], int(parts[3])
        fmtp = formats.get(text)
        parameters = parameters_of.get(text, {})
        if name.lower() == "rtx":
            retransmissions.append((payload_type, rate_hz, fmtp, parameters))
            continue
        known = _find_codec(section.kind, name, rate_hz, payload_type, parameters)
        shown.append(_described(name, rate_hz, payload_type, parameters))
        if known is None or payload_type in ours:
            continue
        ours.append(payload_type)
        names.append(known.name)
        lines.append(
            f"a=rtpmap:{payload_type} {known.name}/{rate_hz}" + ("/2" if known.name == "opus" else "")
        )
        if known.name == "H264":
            profile = parameters.get("profile-level-id")
            profiles = [f"profile-level-id={profile}"] if profile else []
            lines.append(f"a=fmtp:{payload_type} {';'.join(['packetization-mode=1', *profiles])}")
    for payload_type, rate_hz, fmtp, parameters in retransmissions:
        repaired = parameters.get("apt", "")
        if fmtp is not None and not _PAYLOAD_TYPE.fullmatch(repaired):
            raise _refused(fmtp, f"a=fmtp:{payload_type} apt=PAYLOAD_TYPE")
        if (
            fmtp is not None
            and int(repaired) in ours
            and payload_type in _DYNAMIC
            and payload_type not in ours
        ):
            ours.append(payload_type)
            lines += [f"a=rtpmap:{payload_type} rtx/{rate_hz}", f"a=fmtp:{payload_type} apt={int(repaired)}"]
    for attribute in section.all("rtcp-fb"):
        parts = attribute.match()
        if parts[1] == "*" or int(parts[1]) in ours:
            lines.append(f"a=rtcp-fb:{parts[1]} {' '.join(parts[2].split())}")
    return _Codecs(
        lines=tuple(lines),
        payload_types=tuple(ours),
        names=tuple(dict.fromkeys(names)),
        offered=_shown(", ".join(dict.fromkeys(shown)), 160) or "none that is named",
    )


def _find_codec(
    kind: str, name: str, rate_hz: int, payload_type: int, parameters: dict[str, str]
) -> RTCRtpCodecParameters | None:
    """Returns the codec of ours that an offered one is, by aiortc's own comparison."""
    profile = parameters.get("profile-level-id", "42e01f")
    if payload_type not in _DYNAMIC or not re.fullmatch("[0-9A-Fa-f]{6}", profile):
        return None
    offered = RTCRtpCodecParameters(
        mimeType=f"{kind}/{name}", clockRate=rate_hz, payloadType=payload_type, parameters=dict(parameters)
    )
    return next(
        (c for c in CODECS[kind] if c.name in _OUR_CODECS[kind] and is_codec_compatible(c, offered)), None
    )


def _described(name: str, rate_hz: int, payload_type: int, parameters: dict[str, str]) -> str:
    details = []
    if name.upper() == "H264":
        details = [
            f"packetization-mode={parameters.get('packetization-mode') or '0 by default'}",
            f"profile-level-id={parameters.get('profile-level-id') or 'none'}",
        ]
    elif name.lower() == "opus" and rate_hz != 48000:
        details = [f"{rate_hz} Hz"]
    if payload_type not in _DYNAMIC and name.lower() in ("opus", "h264", "vp8"):
        details.append(f"payload type {payload_type}, not from 96 to 127")
    return f"{name} ({', '.join(details)})" if details else name


# Choosing ---------------------------------------------------------------------------------------------


def _check_mids(sections: Sequence[_OfferedSection]) -> None:
    seen: dict[str, int] = {}
    for section in sections:
        for attribute in section.all("mid")[-1:]:
            if attribute.value in seen:
                expected = f"another mid than that of line {seen[attribute.value]}, for BUNDLE names them"
                raise _refused(attribute, expected)
            seen[attribute.value] = attribute.line


def _is_usable(section: _OfferedSection, groups: Sequence[Sequence[str]]) -> bool:
    if section.port == 0 and not (section.all("bundle-only") and any(section.mid in g for g in groups)):
        return False  # rejected (RFC 3264, 6)
    if section.kind == "application":
        return section.profile in _SCTP and _sctp_port(section) is not None
    return section.kind in ("audio", "video") and _RTP.fullmatch(section.profile) is not None


def _choose(sections: Sequence[_OfferedSection], groups: Sequence[Sequence[str]]) -> list[_OfferedSection]:
    """Returns the sections to accept, in the order of the offer."""
    candidates = [section for section in sections if _is_usable(section, groups)]
    videos = [s for s in candidates if s.kind == "video" and s.direction in ("recvonly", "sendrecv")]
    if not videos:
        raise NotAcceptableError(
            "sdp: expected a section of video that receives, got none; add a recvonly video transceiver"
        )
    video = max(videos, key=lambda section: bool(section.codecs.names))
    audio = max(
        (section for section in candidates if section.kind == "audio" and section.direction != "inactive"),
        key=lambda s: (bool(s.codecs.names), s.direction == "sendrecv", s.direction == "sendonly"),
        default=None,
    )
    data = next((section for section in candidates if section.kind == "application"), None)
    return [section for section in sections if section in (audio, video, data)]


def _bundle(
    sections: Sequence[_OfferedSection],
    accepted: Sequence[_OfferedSection],
    groups: Sequence[Sequence[str]],
) -> Sequence[str]:
    """Returns the BUNDLE group that all accepted sections are in; none is needed for one section."""
    video = next(section for section in accepted if section.kind == "video")
    group = next((group for group in groups if video.mid in group), ())
    known = {section.mid for section in sections}
    is_whole = len(accepted) == 1 if not group else all(section.mid in group for section in accepted)
    if not set(group) <= known:
        strange = _shown(" ".join(mid for mid in group if mid not in known), 40)
        raise OfferError(
            f'sdp: expected BUNDLE to name mids of the offer, got "{strange}"; use bundlePolicy max-bundle'
        )
    if not is_whole:
        raise OfferError(
            "sdp: expected all sections in one BUNDLE group, got some or none; use bundlePolicy max-bundle"
        )
    return group


def _transport_source(
    sections: Sequence[_OfferedSection], accepted: Sequence[_OfferedSection], bundle: Sequence[str]
) -> _OfferedSection:
    """Returns the section whose transport all use: of a bundle the first that may stay and has one."""
    if not bundle:
        return accepted[0]
    by_mid = {section.mid: section for section in sections}
    staying = [
        section
        for section in (by_mid[mid] for mid in bundle)
        if section in accepted or (section.kind != "application" and _is_usable(section, (bundle,)))
    ]
    return next((section for section in staying if section.port != 0), accepted[0])


def _transport_lines(section: _OfferedSection) -> list[str]:
    username, password = section.value("ice-ufrag"), section.value("ice-pwd")
    if username is None or password is None:
        raise section.error("expected ice-ufrag and ice-pwd, got none")
    setup = section.value("setup")
    if setup is None or setup == "holdconn":
        raise section.error(f"expected a=setup:actpass, active or passive, got {setup or 'no setup'}")
    inherited = [attribute for attribute in section.session if attribute.name == "fingerprint"]
    fingerprints = [a.match() for a in section.all("fingerprint") or inherited]
    if not any(parts[1].lower() in FINGERPRINT_BYTES for parts in fingerprints):
        known = ", ".join(FINGERPRINT_BYTES)
        raise section.error(f"expected a DTLS fingerprint by one of {known}, got none")
    return [
        f"a=ice-ufrag:{username}",
        f"a=ice-pwd:{password}",
        *(f"a=fingerprint:{parts[1]} {parts[2]}" for parts in fingerprints),
        f"a=setup:{setup}",
    ]


def _sctp_port(section: _OfferedSection) -> int | None:
    """Returns the port of data, None where there is none that can be."""
    ports = section.all("sctp-port")
    text = section.formats[0] if section.profile == "DTLS/SCTP" else (ports[-1].value if ports else "")
    is_port = re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) < 65536
    return int(text) if is_port else None


def _candidates(section: _OfferedSection) -> tuple[RTCIceCandidate, ...]:
    """Returns the candidates that are worth a check, the most urgent ones."""
    found: dict[tuple[str, int], RTCIceCandidate] = {}
    for attribute in section.all("candidate"):
        candidate = candidate_from_sdp(attribute.value)
        if (
            candidate.component == 1  # RTP's; RTCP comes by the same
            and candidate.protocol.lower() == "udp"
            and candidate.type in ("host", "srflx", "relay")
            and 0 < candidate.port < 65536
            and is_reachable(candidate.ip)
        ):
            found.setdefault((candidate.ip, candidate.port), candidate)
    by_priority = sorted(found.values(), key=lambda candidate: -candidate.priority)
    return tuple(by_priority[:MAX_CANDIDATES])
