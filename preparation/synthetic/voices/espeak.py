"""eSpeak NG through its library: formant synthesis in many languages, phones with exact times.

Only its sound is used. Source of the calls and events: `speak_lib.h` of eSpeak NG 1.51.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from typing import Any

import numpy as np

from cuda_kernels.arrays import F64
from models.time_base import SAMPLE_RATE_HZ

from ...sounds import PAUSE, Phone, base
from ..phones import contiguous, from_ipa, shifted, with_stress
from ..utterance import Utterance, to_pcm
from .voice import Params, Voice, VoiceError

LATENCY_S = 0.005
"""By how much the sound comes after its events."""
MAX_CLOSURE_S = 0.12
MAX_GLIDE_S = 0.06
_RETRIEVAL, _PHONEME_EVENTS, _PHONEME_IPA = 1, 1, 2
_UTF8, _IPA = 1, 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_PHONEME = 7
_VOICELESS_STOPS = frozenset({"p", "t", "k", "ch"})
_REFERENCES = ("", "f3", "m3", "klatt4", "f5")
_FILES = {"en-gb": "en"}
"""Languages whose voice has another name."""


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class EspeakLibrary:
    """The library, once a process: it has one voice and one callback at a time."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        self._library = ctypes.CDLL(name)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.rate_hz: int = self._library.espeak_Initialize(
            _RETRIEVAL, 0, None, _PHONEME_EVENTS | _PHONEME_IPA
        )
        if self.rate_hz <= 0:
            raise OSError("espeak_Initialize failed")
        self._sound: list[F64] = []
        self._events: list[tuple[str, int]] = []
        self._callback = _Callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, wave: Any, samples: int, events: Any) -> int:  # noqa: ANN401 -- ctypes' pointers
        if wave and samples:
            self._sound.append(np.ctypeslib.as_array(wave, (samples,)).astype(np.float64))
        number = 0
        while events[number].type:
            if events[number].type == _EVENT_PHONEME:
                sign = bytes(events[number].id.string).split(b"\0")[0].decode(errors="ignore")
                self._events.append((sign, events[number].sample))
            number += 1
        return 0

    def set_voice(self, name: str) -> None:
        """Chooses language and variant, `en-gb+f3`."""
        language, _, variant = name.partition("+")
        file = _FILES.get(language, language) + (f"+{variant}" if variant else "")
        if self._library.espeak_SetVoiceByName(file.encode()) != 0:
            raise VoiceError(f"{name}: expected a voice of espeak-ng, got another; see espeak-ng --voices")

    def synthesize(
        self, text: str, *, rate: int, pitch: int, pitch_range: int
    ) -> tuple[F64, list[tuple[str, int]]]:
        """Returns the sound in [-1, 1] and each phone in IPA with its first sample; silence is ''."""
        self._sound, self._events = [], []
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        sound = np.concatenate(self._sound) / 32_768 if self._sound else np.zeros(0)
        return sound, self._events

    def phonemes(self, text: str, voice: str) -> str:
        """Returns the IPA of a text by the rules of a voice, its stress included."""
        self.set_voice(voice)
        data = ctypes.c_char_p(text.encode())
        at = ctypes.pointer(data)
        parts = []
        while data.value:
            part: bytes | None = self._library.espeak_TextToPhonemes(at, _UTF8, _IPA)
            if part is None:
                break
            parts.append(part.decode(errors="ignore"))
        return " ".join(parts)


@functools.cache
def library() -> EspeakLibrary:
    """Returns the library of this process.

    Raises:
        VoiceError: it is not installed.
    """
    try:
        return EspeakLibrary()
    except OSError:
        raise VoiceError(f"espeak-ng: expected its library, found none; {_MISSING}") from None


_MISSING = "espeak-ng is not installed: apt-get install espeak-ng"


def lacks_espeak() -> str:
    """Returns how to get espeak-ng where it is not installed."""
    try:
        library()
    except VoiceError:
        return _MISSING
    return ""


class Espeak(Voice):
    """A language of espeak-ng in one of its variants, `espeak-en-gb+f3`."""

    licence = "espeak-ng is GPL-3.0-or-later; only the sound it makes is used"

    def __init__(self, language: str, variant: str = "") -> None:
        self.language = language
        self._voice = f"{language}+{variant}" if variant else language
        self.name = f"espeak-{self._voice}"

    def missing(self) -> str:  # noqa: D102 -- the interface's
        return lacks_espeak()

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {
            "rate": int(rng.integers(130, 200)),
            "pitch": int(rng.integers(20, 75)),
            "range": int(rng.integers(35, 75)),
        }

    def speak(self, text: str, params: Params) -> Utterance:  # noqa: D102 -- the interface's
        engine = library()
        engine.set_voice(self._voice)
        sound, events = engine.synthesize(
            text,
            rate=int(params.get("rate", 165)),
            pitch=int(params.get("pitch", 50)),
            pitch_range=int(params.get("range", 50)),
        )
        if not len(sound) or not any(from_ipa(sign) for sign, _ in events):
            raise VoiceError(
                f"{self.name}: expected a text of its language, got {text[:40]!r}, which it is silent about"
            )
        phones = phones_of_events(sound, events, engine.rate_hz)
        phones = with_stress(phones, from_ipa(engine.phonemes(text, self._voice)))
        pcm = to_pcm(sound, engine.rate_hz)
        return Utterance(
            pcm=pcm,
            phones=contiguous(shifted(phones, LATENCY_S), len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )


def phones_of_events(sound: F64, events: list[tuple[str, int]], rate_hz: int) -> tuple[Phone, ...]:
    """Returns the phones of the library's events, each up to the next.

    The event of a voiceless stop stands at its burst: it is moved back to where the silence before it begins.
    """
    phones: list[Phone] = []
    starts = [at for _, at in events] + [len(sound)]
    for number, (sign, start) in enumerate(events):
        stop = starts[number + 1]
        labels = from_ipa(sign)
        if not labels:
            # A glottal stop, a palatal glide or a short neutral vowel: part of what it follows.
            if phones and (sign or stop - start < MAX_GLIDE_S * rate_hz):
                label, start_s, _ = phones[-1]
                phones[-1] = (label, start_s, stop / rate_hz)
            else:
                phones.append((PAUSE, start / rate_hz, stop / rate_hz))
            continue
        if base(labels[0]) in _VOICELESS_STOPS and phones and phones[-1][0] != PAUSE:
            begins = _closure_start(sound, start, rate_hz)
            label, start_s, _ = phones[-1]
            begins_s = max(begins / rate_hz, start_s + 0.01)
            phones[-1] = (label, start_s, begins_s)
            start = min(round(begins_s * rate_hz), start)
        edges = np.linspace(start, stop, len(labels) + 1) / rate_hz
        phones += [(label, float(a), float(b)) for label, a, b in zip(labels, edges, edges[1:], strict=False)]
    return tuple(phones)


def _closure_start(sound: F64, burst: int, rate_hz: int) -> int:
    """Returns the first sample of the silence that ends at a burst, at most `MAX_CLOSURE_S` before it."""
    hop = rate_hz // 500
    quiet = 0.03 * float(np.abs(sound).max())
    at = burst
    while at - hop > max(0, burst - MAX_CLOSURE_S * rate_hz) and np.abs(sound[at - hop : at]).max() < quiet:
        at -= hop
    return at


def references(text: str, language: str) -> list[Utterance]:
    """Returns a text said by several variants, which a recording of it can be aligned with.

    Raises:
        VoiceError: espeak-ng is not installed, or does not say the text.
    """
    return [Espeak(language, variant).speak(text, {}) for variant in _REFERENCES]
