"""A peer connection: aiortc's, with our ICE, DTLS check, RTP sender and receiver in its place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription
from aiortc.rtcconfiguration import RTCBundlePolicy
from aiortc.rtcrtpparameters import RTCRtpCodecCapability, RTCRtpHeaderExtensionParameters
from aiortc.rtcrtpsender import RTCRtpSender

from .dtls import replace_certificate, replace_identity_check
from .ice import IceConnection, IceServer, replace_connection
from .media_schedule import SOUND_RATE_HZ, VIDEO_CLOCK_HZ, MediaSchedule
from .rtp_extensions import PLAYOUT_DELAY_URI
from .rtp_receiver import MicrophoneReceiver, OnPacket
from .rtp_sender import MediaSender
from .rtp_validation import OnMalformed, drop_malformed
from .sdp_offer import Offer, OfferError
from .video_encoder import CODECS, VideoCodec

log = logging.getLogger(__name__)

_CLOSE_S = 2.0
_ANSWER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """How peers are connected."""

    ice_servers: tuple[IceServer, ...] = ()
    port_range: tuple[int, int] | None = None
    codecs: tuple[VideoCodec, ...] = CODECS  # in order of preference


class Peer:
    """A WebRTC connection that receives a microphone and sends sound and video; for the event loop."""

    def __init__(
        self,
        settings: PeerSettings,
        schedule: MediaSchedule,
        *,
        on_packet: OnPacket,
        on_keyframe_wanted: Callable[[], None],
        on_bandwidth: Callable[[int], None],
        on_state: Callable[[str], None],
        on_malformed: OnMalformed = lambda _kind, _what: None,
    ) -> None:
        """Prepares a connection; `answer` makes it.

        Args:
            settings: how peers are connected.
            schedule: the session's clock, for sender reports.
            on_packet: told each packet of the microphone, see `MicrophoneReceiver`.
            on_keyframe_wanted: the peer lost a frame, or begins to receive.
            on_bandwidth: told the peer's bandwidth estimate (REMB), bit/s.
            on_state: told "connecting", "connected", "failed", "closed".
            on_malformed: told each packet that was dropped, see `drop_malformed`.
        """
        self._settings = settings
        self._schedule = schedule
        self._on_packet = on_packet
        self._on_keyframe_wanted = on_keyframe_wanted
        self._on_bandwidth = on_bandwidth
        # No third party is asked for our address: without servers given, aiortc would ask one.
        configuration = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self._connection = RTCPeerConnection(configuration)
        replace_certificate(self._connection)
        self._connection.on("connectionstatechange", lambda: on_state(self._connection.connectionState))
        self._on_state = on_state
        self._on_malformed = on_malformed
        self._ice: IceConnection | None = None
        self._closed = False
        self.sound: MediaSender | None = None
        self.video: MediaSender | None = None
        self.microphone: MicrophoneReceiver | None = None
        self.codec: VideoCodec = settings.codecs[0]

    @property
    def state(self) -> str:
        """The connection's state: "new", "connecting", "connected", "failed" or "closed"."""
        state: str = self._connection.connectionState
        return state

    @property
    def packets_received(self) -> int:
        """Packets of any kind received from the peer so far."""
        checks = self._ice.checks_received if self._ice is not None else 0
        for transceiver in self._connection.getTransceivers():
            for report in transceiver.receiver.transport._get_stats().values():
                received: int = report.packetsReceived
                return received + checks
        return checks

    async def answer(self, offer: Offer) -> str:
        """Returns the answer's SDP, all candidates in it.

        Raises:
            NotAcceptableError: no codec in common.
            OfferError: what aiortc cannot make sense of; the log says why.
            OSError: no UDP port, or closed meanwhile.
        """
        offer.check_codecs(codec.name for codec in self._settings.codecs)
        connection = self._connection
        stream_id = str(uuid.uuid4())
        transceivers: dict[str, RTCRtpTransceiver] = {}
        for kind in offer.kinds:
            direction = "sendrecv" if kind == "audio" else "sendonly"
            transceivers[kind] = self._add_transceiver(kind, direction, stream_id)
        dtls_transport = transceivers[offer.kinds[0]].receiver.transport
        replace_identity_check(dtls_transport)
        ice_transport = dtls_transport.transport
        self._ice = IceConnection(servers=self._settings.ice_servers, port_range=self._settings.port_range)
        replace_connection(ice_transport, self._ice)
        drop_malformed(transceivers[offer.kinds[0]].receiver.transport, self._on_malformed)
        try:
            async with asyncio.timeout(_ANSWER_S):
                await connection.setRemoteDescription(RTCSessionDescription(sdp=offer.sdp, type="offer"))
                self._agree(offer, transceivers)
                for candidate in offer.candidates:
                    await ice_transport.addRemoteCandidate(candidate)
                await connection.setLocalDescription(await connection.createAnswer())
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            self._check_open()
            log.debug("an offer that aiortc refused", exc_info=True)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            log.warning("an offer could not be applied: %s", ascii(reason))
            raise OfferError(
                "sdp: expected an offer that can be applied, got another; the server's log says why"
            ) from None
        self._check_open()
        sdp: str = connection.localDescription.sdp
        if "a=candidate:" not in sdp:
            if self._settings.port_range is None:
                raise OSError("no UDP port could be opened; the log says why")
            raise OSError("no UDP port is left in --udp-port-range; widen it, or end other sessions")
        return offer.complete_answer(sdp)

    async def aclose(self) -> None:
        """Ends the connection; a second time it does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError("the connection was closed before it was answered")

    def _add_transceiver(self, kind: str, direction: str, stream_id: str) -> RTCRtpTransceiver:
        transceiver = self._connection.addTransceiver(kind, direction)
        transport = transceiver.receiver.transport
        sender = MediaSender(
            kind,
            transport,
            stream_id=stream_id,
            clock_rate_hz=SOUND_RATE_HZ if kind == "audio" else VIDEO_CLOCK_HZ,
            ntp_at=self._schedule.ntp_at,
            on_keyframe_wanted=self._on_keyframe_wanted if kind == "video" else lambda: None,
            on_bandwidth=self._on_bandwidth if kind == "video" else lambda _: None,
            on_failure=lambda: self._on_state("failed"),
        )
        # The one transport is shared from the start. Unmarked, the first transceiver would have it stopped
        # where the offer's BUNDLE group begins with another section.
        transceiver._bundled = True
        # aiortc makes sender and receiver itself and has no place to hand in others.
        transceiver._RTCRtpTransceiver__sender = sender  # type: ignore[attr-defined]
        if kind == "audio":
            self.sound = sender
            self.microphone = MicrophoneReceiver(
                transport, report_ssrc=sender._ssrc, on_packet=self._on_packet
            )
            transceiver._RTCRtpTransceiver__receiver = self.microphone  # type: ignore[attr-defined]
            transceiver.setCodecPreferences(_capabilities("audio", ("opus",)))
        else:
            self.video = sender
            names = tuple(codec.name for codec in self._settings.codecs)
            transceiver.setCodecPreferences(_capabilities("video", names))
        return transceiver

    def _agree(self, offer: Offer, transceivers: dict[str, RTCRtpTransceiver]) -> None:
        video = transceivers["video"]
        name = video._codecs[0].name.upper()
        self.codec = next(codec for codec in self._settings.codecs if codec.name.upper() == name)
        delay_id = offer.extensions["video"].get(PLAYOUT_DELAY_URI)
        if delay_id is not None:
            video._headerExtensions.append(
                RTCRtpHeaderExtensionParameters(id=delay_id, uri=PLAYOUT_DELAY_URI)
            )
        if "audio" in transceivers:
            # Asks the peer for in-band FEC, RFC 7587, 6.1.
            transceivers["audio"]._codecs[0].parameters.update(minptime=10, useinbandfec=1)


def _capabilities(kind: str, names: tuple[str, ...]) -> list[RTCRtpCodecCapability]:
    """Returns aiortc's capabilities of the codecs, in the order of their names, then retransmission."""
    known = RTCRtpSender.getCapabilities(kind).codecs
    chosen = [
        codec for name in names for codec in known if codec.mimeType.lower() == f"{kind}/{name.lower()}"
    ]
    return chosen + [codec for codec in known if codec.mimeType.lower() == f"{kind}/rtx"]
