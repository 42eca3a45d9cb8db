"""RTP header extensions that aiortc does not know: playout-delay."""

from __future__ import annotations

from aiortc import rtp
from aiortc.rtcrtpparameters import RTCRtpParameters

PLAYOUT_DELAY_URI = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
_UNIT_MS = 10
_MAX_VALUE = (1 << 12) - 1


class ExtensionsMap(rtp.HeaderExtensionsMap):
    """aiortc's map of header extensions, with the playout-delay limits of the receiver.

    A smallest delay of zero asks Chromium to show pictures as they come. Source: libwebrtc,
    docs/native-code/rtp-hdrext/playout-delay.
    """

    def __init__(self, *, max_delay_ms: int) -> None:
        super().__init__()
        largest = min(max_delay_ms // _UNIT_MS, _MAX_VALUE)
        self._value = largest.to_bytes(3, "big")  # 12 bits smallest, here 0, and 12 bits largest
        self._playout_delay_id: int | None = None

    def configure(self, parameters: RTCRtpParameters) -> None:
        """Takes the ids that were negotiated."""
        super().configure(parameters)
        for extension in parameters.headerExtensions:
            if extension.uri == PLAYOUT_DELAY_URI:
                self._playout_delay_id = extension.id

    def set(self, values: rtp.HeaderExtensions) -> tuple[int, bytes]:
        """Returns the extensions' profile and bytes."""
        profile, value = super().set(values)
        if self._playout_delay_id is None:
            return profile, value
        known = rtp.unpack_header_extensions(profile, value)
        packed: tuple[int, bytes] = rtp.pack_header_extensions(
            [*known, (self._playout_delay_id, self._value)]
        )
        return packed
