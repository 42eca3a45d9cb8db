"""What a peer offers, checked and made fit for aiortc before it sees it. Source: RFC 8866, RFC 8829."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiortc.rtcdtlstransport import X509_DIGEST_ALGORITHMS
from aiortc.rtcicetransport import RTCIceCandidate
from aiortc.sdp import MediaDescription, SessionDescription, grouplines

LARGEST_OFFER_BYTES = 64 * 1024
_MOST_MEDIA = 3  # sound, pictures, data
_MOST_CANDIDATES = 64
# RFC 8839, 5.4: longer ones do not fit a connectivity check. Which characters is between the peers.
_USERNAME = re.compile(r"[!-~]{4,256}")
_PASSWORD = re.compile(r"[!-~]{22,256}")
_MID = re.compile(r"[!-~]{0,32}")
_PORT = re.compile(r"[0-9]{1,5}")
_CREDENTIALS = ("a=ice-ufrag:", "a=ice-pwd:")


class OfferError(ValueError):
    """An offer that cannot be answered; the message is one line for the peer."""


class NotAcceptableError(OfferError):
    """An offer that is sound, but has nothing that both sides can do."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A checked offer."""

    sdp: str  # without candidates, and with one pair of ICE credentials
    candidates: tuple[RTCIceCandidate, ...]  # of the one transport, as aiortc has them
    kinds: tuple[str, ...]  # "audio" and "video", in the order of their sections
    extensions: dict[str, dict[str, int]]  # header extensions by kind: URI to id

    @classmethod
    def parse(cls, text: str) -> Offer:
        """Returns a checked offer.

        Everything goes by one transport, the one of the section that the BUNDLE group names first
        (RFC 8843, 7.2): its candidates and credentials count, those of the other sections do not.
        Candidates that end in `.local` are left out: resolving them takes a second where it works at all, and
        the peer's own checks tell its address anyway. For the same reason the end of candidates is not
        believed: an offer without any still connects.

        Raises:
            OfferError: no SDP, or one that asks for what is not there.
            NotAcceptableError: it takes no pictures.
        """
        lines = text.splitlines()  # as the parser cuts them
        candidates = sum(line.startswith("a=candidate:") for line in lines)
        if candidates > _MOST_CANDIDATES:
            raise OfferError(f"sdp: expected at most {_MOST_CANDIDATES} candidates, got {candidates}")
        try:
            description = SessionDescription.parse("\r\n".join(lines))
        except Exception as error:  # noqa: BLE001 - the parser meets garbage with whatever comes
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            raise OfferError(
                f"sdp: expected a session description, got one that does not parse ({reason})"
            ) from None
        media = description.media
        if not media:
            raise OfferError("sdp: expected a section for audio and one for video, got none")
        if len(media) > _MOST_MEDIA:
            raise OfferError(f"sdp: expected at most {_MOST_MEDIA} sections, got {len(media)}")
        kinds = [section.kind for section in media]
        for kind in ("audio", "video", "application"):
            if kinds.count(kind) > 1:
                raise OfferError(f"sdp: expected one section of {kind}, got {kinds.count(kind)}")
        for section in media:
            _check_section(section)
        mids = [section.rtp.muxId for section in media]
        groups = [[str(mid) for mid in g.items] for g in description.group if g.semantic == "BUNDLE"]
        bundled = groups[0] if groups else mids[:1]
        if len(set(mids)) < len(mids) or sorted(bundled) != sorted(mids):
            raise OfferError("sdp: expected all sections in one BUNDLE group; use bundlePolicy max-bundle")
        first = media[mids.index(bundled[0])]
        video = next((section for section in media if section.kind == "video"), None)
        if video is None or video.direction not in (None, "recvonly", "sendrecv"):
            raise NotAcceptableError(
                "sdp: expected a section of video that receives, got none; add a recvonly video transceiver"
            )
        extensions = {
            section.kind: {e.uri: e.id for e in section.rtp.headerExtensions}
            for section in media
            if section.kind in ("audio", "video")
        }
        return cls(
            sdp=_on_one_transport(lines, media, first),
            candidates=tuple(
                candidate
                for candidate in first.ice_candidates
                if candidate.component == 1  # RTP's; RTCP comes by the same
                and 0 < candidate.port < 65536
                and not candidate.ip.lower().endswith(".local")
            ),
            kinds=tuple(kind for kind in kinds if kind != "application"),
            extensions=extensions,
        )


def _on_one_transport(lines: list[str], media: list[MediaDescription], first: MediaDescription) -> str:
    """Returns the SDP with the ICE credentials of `first` in each section, and no candidates at all."""
    username, password = _credentials(first)
    head, sections = grouplines("\r\n".join(lines))
    left_out = (*_CREDENTIALS, "a=candidate:", "a=end-of-candidates")
    kept = [line for line in head if not line.startswith(left_out)]
    for section, described in zip(sections, media, strict=True):
        kept += [line for line in section if not line.startswith(left_out)]
        kept += [f"a=ice-ufrag:{username}", f"a=ice-pwd:{password}"]
        if described.direction is None:
            kept.append("a=sendrecv")  # RFC 8866, 6.7
    return "\r\n".join([*kept, ""])


def _credentials(section: MediaDescription) -> tuple[str, str]:
    ice = section.ice
    return (ice.usernameFragment or "", ice.password or "") if ice is not None else ("", "")


def _check_section(section: MediaDescription) -> None:
    if section.kind not in ("audio", "video", "application"):
        raise OfferError(f"sdp: expected sections of audio, video or application, got {section.kind[:20]}")
    mid: str | None = section.rtp.muxId
    if mid is None or not _MID.fullmatch(mid):
        raise OfferError(f"sdp: {section.kind}: expected a mid of at most 32 characters, got another")
    username, password = _credentials(section)
    if not username or not password:
        raise OfferError(f"sdp: {section.kind}: expected ice-ufrag and ice-pwd, got none")
    if not (_USERNAME.fullmatch(username) and _PASSWORD.fullmatch(password)):
        raise OfferError(
            f"sdp: {section.kind}: expected an ice-ufrag of 4 to 256 characters and an ice-pwd of 22 to 256, "
            f"got {len(username)} and {len(password)}"
        )
    if section.dtls is None:
        raise OfferError(f"sdp: {section.kind}: expected a DTLS fingerprint and setup, got no setup")
    if not any(f.algorithm.lower() in X509_DIGEST_ALGORITHMS for f in section.dtls.fingerprints):
        known = ", ".join(X509_DIGEST_ALGORITHMS)
        raise OfferError(f"sdp: {section.kind}: expected a DTLS fingerprint by one of {known}, got none")
    if section.kind != "application" and not section.rtcp_mux:
        raise OfferError(f"sdp: {section.kind}: expected rtcp-mux, got none")
    if section.kind == "application":
        port = section.fmt[0] if section.profile == "DTLS/SCTP" else section.sctp_port
        if not (_PORT.fullmatch(str(port)) and 0 < int(str(port)) < 65536):
            raise OfferError(f"sdp: application: expected an sctp-port from 1 to 65535, got {str(port)[:20]}")
    for extension in section.rtp.headerExtensions:
        if not 1 <= extension.id <= 255:
            raise OfferError(f"sdp: {section.kind}: expected ids of extmap from 1 to 255, got {extension.id}")
