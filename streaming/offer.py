"""What a peer offers, checked and made fit for aiortc before it sees it. Source: RFC 8866, RFC 8829."""

from __future__ import annotations

from dataclasses import dataclass

from aiortc.sdp import MediaDescription, SessionDescription

LARGEST_OFFER_BYTES = 64 * 1024
_MOST_MEDIA = 3  # sound, pictures, data
_MOST_CANDIDATES = 64


class OfferError(ValueError):
    """An offer that cannot be answered; the message is one line for the peer."""


class NotAcceptableError(OfferError):
    """An offer that is sound, but has nothing that both sides can do."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A checked offer."""

    sdp: str
    kinds: tuple[str, ...]  # "audio" and "video", in the order of their sections
    extensions: dict[str, dict[str, int]]  # header extensions by kind: URI to id

    @classmethod
    def parse(cls, text: str) -> Offer:
        """Returns a checked offer.

        Candidates that end in `.local` are left out: resolving them takes a second where it works at all, and
        the peer's own checks tell its address anyway. For the same reason the end of candidates is not
        believed: an offer without any still connects.

        Raises:
            OfferError: no SDP, or one that asks for what is not there.
            NotAcceptableError: it takes no pictures.
        """
        lines = text.replace("\r\n", "\n").split("\n")
        candidates = sum(line.startswith("a=candidate:") for line in lines)
        if candidates > _MOST_CANDIDATES:
            raise OfferError(f"sdp: expected at most {_MOST_CANDIDATES} candidates, got {candidates}")
        kept = [line for line in lines if not _is_left_out(line)]
        sdp = "\r\n".join(kept)
        try:
            description = SessionDescription.parse(sdp)
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
        kinds = tuple(section.kind for section in media if section.kind in ("audio", "video"))
        for kind in ("audio", "video"):
            if kinds.count(kind) > 1:
                raise OfferError(f"sdp: expected one section of {kind}, got {kinds.count(kind)}")
        for section in media:
            _check_section(section)
        bundled = next((group.items for group in description.group if group.semantic == "BUNDLE"), [])
        if len(media) > 1 and set(bundled) != {section.rtp.muxId for section in media}:
            raise OfferError("sdp: expected all sections in one BUNDLE group; use bundlePolicy max-bundle")
        video = next((section for section in media if section.kind == "video"), None)
        if video is None or video.direction not in ("recvonly", "sendrecv"):
            raise NotAcceptableError(
                "sdp: expected a section of video that receives, got none; add a recvonly video transceiver"
            )
        extensions = {
            section.kind: {e.uri: e.id for e in section.rtp.headerExtensions}
            for section in media
            if section.kind in ("audio", "video")
        }
        return cls(sdp=sdp, kinds=kinds, extensions=extensions)


def _is_left_out(line: str) -> bool:
    if line.startswith("a=end-of-candidates"):
        return True
    parts = line.split()
    return line.startswith("a=candidate:") and len(parts) > 4 and parts[4].endswith(".local")


def _check_section(section: MediaDescription) -> None:
    if section.kind not in ("audio", "video", "application"):
        raise OfferError(f"sdp: expected sections of audio, video or application, got {section.kind}")
    if section.ice is None or not section.ice.usernameFragment or not section.ice.password:
        raise OfferError(f"sdp: {section.kind}: expected ice-ufrag and ice-pwd, got none")
    if section.dtls is None or not section.dtls.fingerprints:
        raise OfferError(f"sdp: {section.kind}: expected a DTLS fingerprint, got none")
    if section.kind != "application" and not section.rtcp_mux:
        raise OfferError(f"sdp: {section.kind}: expected rtcp-mux, got none")
