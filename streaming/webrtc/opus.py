"""Opus at 48 kHz mono, packet by packet: decoding with concealment and in-band repair, and encoding.

libopus is driven directly, because PyAV's wrapper offers neither concealment nor forward error correction
(RFC 6716, section 2.1.7). PyAV's wheels bring libopus along; PyAV built otherwise needs the system's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import weakref
from pathlib import Path
from typing import Any

import av
import numpy as np

from cuda_kernels.arrays import F32

from ..errors import InputError
from ..pipeline.downmix import Downmix

OPUS_RATE_HZ = 48_000
BLOCK_SAMPLES = 960  # 20 ms
MAX_PACKET_SAMPLES = 5760  # 120 ms, RFC 6716, section 3.2.5

_CHANNELS = 2
_GRAIN_SAMPLES = 120  # libopus conceals in multiples of 2.5 ms
_MAX_PACKET_BYTES = 1500
_BITRATE_BPS = 48_000  # average; the packets' sizes vary
_COMPLEXITY = 5  # of 0 (quick) to 10 (best)
_EXPECTED_LOSS_PERCENT = 5  # how much of the packets is spent on repair
_VOIP = 2048  # OPUS_APPLICATION_VOIP
_RESET_STATE = 4028
_SET_BITRATE = 4002
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS_PERC = 4014


class OpusError(ValueError):
    """A payload is no Opus packet, or the codec refuses what it was told."""


def packet_samples(payload: bytes) -> int:
    """Returns how many samples at 48 kHz a packet holds by its first bytes, 0 if it is no Opus packet.

    Source: RFC 6716, section 3.1 and 3.2.
    """
    if not payload:
        return 0
    configuration, code = payload[0] >> 3, payload[0] & 3
    if configuration < 12:
        frame_samples = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:
        frame_samples = (480, 960)[configuration & 1]
    else:
        frame_samples = (120, 240, 480, 960)[configuration & 3]
    frames = (1, 2, 2, payload[1] & 0x3F if len(payload) > 1 else 0)[code]
    samples = frames * frame_samples
    return samples if samples <= MAX_PACKET_SAMPLES else 0


class Libopus:
    """The functions of libopus that are used here, with their types."""

    def __init__(self, path: str) -> None:
        """Loads the library.

        Raises:
            OSError: it cannot be loaded.
            AttributeError: it is not libopus.
        """
        library = ctypes.CDLL(path)
        state, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32
        samples = ctypes.POINTER(ctypes.c_float)

        def function(name: str, returned: Any, *arguments: Any) -> Any:  # noqa: ANN401 - what ctypes gives
            found = getattr(library, name)
            found.restype, found.argtypes = returned, arguments
            return found

        self.decoder_create = function("opus_decoder_create", state, number, integer, ctypes.POINTER(integer))
        self.decoder_destroy = function("opus_decoder_destroy", None, state)
        # A variadic function: only the fixed arguments may be declared, or arm64 passes the rest wrongly.
        self.decoder_ctl = function("opus_decoder_ctl", integer, state, integer)
        self.decode_float = function(
            "opus_decode_float", integer, state, ctypes.c_char_p, number, samples, integer, integer
        )
        self.encoder_create = function(
            "opus_encoder_create", state, number, integer, integer, ctypes.POINTER(integer)
        )
        self.encoder_destroy = function("opus_encoder_destroy", None, state)
        self.encoder_ctl = function("opus_encoder_ctl", integer, state, integer)
        self.encode_float = function(
            "opus_encode_float", number, state, samples, integer, ctypes.c_char_p, number
        )
        self.strerror = function("opus_strerror", ctypes.c_char_p, integer)
        try:
            self._has_lbrr = function("opus_packet_has_lbrr", integer, ctypes.c_char_p, number)
        except AttributeError:  # an older libopus
            self._has_lbrr = None

    def has_inband_fec(self, payload: bytes) -> bool:
        """Returns whether a packet carries LBRR (in-band FEC) for its predecessor."""
        if payload[0] & 0x80:  # CELT only: it has no LBRR
            return False
        return self._has_lbrr is None or self._has_lbrr(payload, len(payload)) == 1

    def reason(self, code: int) -> str:
        """Returns what an error code means."""
        return str(self.strerror(code).decode())


def _libopus_paths() -> list[str]:
    package = Path(av.__file__).parent
    beside = [
        path
        for folder, pattern in (
            (package.parent / "av.libs", "*opus*"),
            (package / ".dylibs", "*opus*"),
        )
        for path in sorted(folder.glob(pattern))
    ]
    installed = ctypes.util.find_library("opus")
    return [str(path) for path in beside] + ([installed] if installed else [])


@functools.cache
def load_libopus() -> Libopus:
    """Returns libopus from beside PyAV or from the system.

    Raises:
        InputError: there is none.
    """
    for path in _libopus_paths():
        try:
            return Libopus(path)
        except (OSError, AttributeError):
            continue
    raise InputError(
        "libopus: expected it beside PyAV or on this system, got none; "
        "install it (on Debian: apt-get install libopus0)"
    )


class OpusDecoder:
    """Packets in, 48 kHz mono out; stereo is mixed down, or its louder side taken where the sides cancel.

    One stream, one thread at a time.
    """

    def __init__(self) -> None:
        """Sets the decoder up.

        Raises:
            InputError: there is no libopus.
        """
        self._library = library = load_libopus()
        code = ctypes.c_int()
        # Opened as mono, libopus would mix by itself, and sides that cancel would be silence.
        self._state = library.decoder_create(OPUS_RATE_HZ, _CHANNELS, ctypes.byref(code))
        if not self._state:
            raise OpusError(f"opus: no decoder: {library.reason(code.value)}")
        weakref.finalize(self, library.decoder_destroy, self._state)
        self._downmix = Downmix(OPUS_RATE_HZ)
        self._pcm = np.zeros((MAX_PACKET_SAMPLES, _CHANNELS), np.float32)
        self._pcm_at = self._pcm.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def decode(self, payload: bytes) -> F32:
        """Returns (n,) float32 in [-1, 1], as many samples as the packet holds.

        Raises:
            OpusError: the payload is no Opus packet.
        """
        expected = packet_samples(payload)
        if not expected:
            raise OpusError(f"opus: expected a packet, got {len(payload)} bytes that are none")
        samples = self._run(payload, MAX_PACKET_SAMPLES, repair=False)
        if len(samples) != expected:
            raise OpusError(f"opus: expected {expected} samples by the packet's head, got {len(samples)}")
        return samples

    def conceal(self, samples: int) -> F32:
        """Returns (samples,) float32 of packet loss concealment for a missing packet."""
        pieces: list[F32] = []
        left = samples
        while left > 0:
            whole = min(-(-left // _GRAIN_SAMPLES) * _GRAIN_SAMPLES, BLOCK_SAMPLES)
            pieces.append(self._run(None, whole, repair=False)[:left])
            left -= len(pieces[-1])
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def recover(self, next_payload: bytes, samples: int) -> F32 | None:
        """Returns the (samples,) float32 before `next_payload` from its in-band FEC, None if it has none.

        Call it before `next_payload` itself is decoded; `samples` is the length of that packet.
        """
        if packet_samples(next_payload) != samples or not self._library.has_inband_fec(next_payload):
            return None
        try:
            return self._run(next_payload, samples, repair=True)
        except OpusError:
            return None

    def reset(self) -> None:
        """Resets the decoder: the next packet is the first of another stream."""
        self._library.decoder_ctl(self._state, _RESET_STATE)

    def _run(self, payload: bytes | None, room_samples: int, *, repair: bool) -> F32:
        count = self._library.decode_float(
            self._state, payload, len(payload or b""), self._pcm_at, room_samples, int(repair)
        )
        if count < 0:
            raise OpusError(f"opus: {self._library.reason(count)}, {len(payload or b'')} bytes")
        return _bounded(_mono(self._pcm[:count].T, self._downmix))


def _bounded(samples: F32) -> F32:
    if not np.isfinite(samples).all():
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(samples, -1.0, 1.0)


def _mono(channels: F32, downmix: Downmix) -> F32:
    """Returns (n,) of its own memory for (channels, n)."""
    if len(channels) == 1 or np.array_equal(channels[0], channels[-1]):  # what was sent as mono
        return np.array(channels[0])
    return downmix.step(channels)


class OpusEncoder:
    """48 kHz mono in blocks of 20 ms, one packet out for each; each repairs the loss of the one before it."""

    def __init__(self) -> None:
        """Sets the encoder up.

        Raises:
            InputError: there is no libopus.
            OpusError: the codec refuses a setting.
        """
        self._library = library = load_libopus()
        code = ctypes.c_int()
        self._state = library.encoder_create(OPUS_RATE_HZ, 1, _VOIP, ctypes.byref(code))
        if not self._state:
            raise OpusError(f"opus: no encoder: {library.reason(code.value)}")
        weakref.finalize(self, library.encoder_destroy, self._state)
        for request, value in (
            (_SET_BITRATE, _BITRATE_BPS),
            (_SET_COMPLEXITY, _COMPLEXITY),
            (_SET_INBAND_FEC, 1),
            (_SET_PACKET_LOSS_PERC, _EXPECTED_LOSS_PERCENT),
        ):
            answer = library.encoder_ctl(self._state, request, ctypes.c_int32(value))
            if answer < 0:
                raise OpusError(f"opus: setting {request} to {value}: {library.reason(answer)}")
        self._packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)

    def encode(self, samples: F32) -> bytes:
        """Returns the packet for (960,) float32 in [-1, 1]."""
        if samples.shape != (BLOCK_SAMPLES,):
            raise ValueError(f"opus: expected ({BLOCK_SAMPLES},) samples, got {samples.shape}")
        samples = np.ascontiguousarray(samples, np.float32)
        count = self._library.encode_float(
            self._state,
            samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            BLOCK_SAMPLES,
            self._packet,
            _MAX_PACKET_BYTES,
        )
        if count < 0:
            raise OpusError(f"opus: {self._library.reason(count)}")
        return self._packet.raw[:count]
