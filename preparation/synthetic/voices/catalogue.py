"""All voices by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from . import prompts
from .espeak import Espeak
from .festival import Festival
from .flite import Flite
from .hibari import Hibari
from .piper import Piper
from .voice import Voice, VoiceError

ESPEAK_ENGLISH = (
    "en-us",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)
ESPEAK_OTHERS = ("de", "fr", "es", "it", "ru")
ESPEAK_VARIANTS = (
    *(
        "",
        "f1",
        "f2",
        "f3",
        "f4",
        "f5",
        "m1",
        "m2",
        "m3",
        "m4",
        "m5",
        "m6",
        "m7",
        "m8",
        "Andy",
        "Annie",
        "Alicia",
    ),
    *(
        "Diogo",
        "Gene",
        "Hugo",
        "Lee",
        "Marco",
        "Mario",
        "Michael",
        "Mike",
        "adam",
        "anika",
        "antonio",
        "aunty",
    ),
    *(
        "belinda",
        "benjamin",
        "boris",
        "caleb",
        "david",
        "ed",
        "edward",
        "john",
        "linda",
        "max",
        "michel",
        "miguel",
    ),
    *(
        "pablo",
        "paul",
        "pedro",
        "quincy",
        "rob",
        "robert",
        "sandro",
        "shelby",
        "steph",
        "travis",
        "victor",
        "zac",
    ),
)
ESPEAK_HELD_OUT = ("klatt", "klatt2", "klatt3", "klatt5", "klatt6")
"""Variants of another synthesiser (D. Klatt's), kept for validation."""
_ESPEAK = re.compile(r"espeak-(?P<language>[a-z0-9-]+)(\+(?P<variant>\w+))?")


def named_voices() -> dict[str, Voice]:
    """Returns the voices by name, but for espeak's, which are many; see `voice_named`."""
    voices: list[Voice] = [
        Piper(),
        Hibari(),
        Hibari(low=True),
        *(Flite(name) for name in ("slt", "rms", "awb", "kal16")),
        *(Festival(name) for name in ("cmu_us_slt_arctic_hts", "kal_diphone")),
        *(prompts.Prompts(language) for language in prompts.LANGUAGES),
    ]
    return {voice.name: voice for voice in voices}


@functools.cache
def voice_named(name: str) -> Voice:
    """Returns a voice, the same one at each call.

    Raises:
        VoiceError: there is none of this name.
    """
    if (match := _ESPEAK.fullmatch(name)) is not None:
        return Espeak(match["language"], match["variant"] or "")
    voices = named_voices()
    if name not in voices:
        raise VoiceError(
            f"voice: expected one of {', '.join(voices)} or espeak-LANGUAGE+VARIANT, got {name[:60]!r}"
        )
    return voices[name]


def missing(names: Iterable[str]) -> dict[str, str]:
    """Returns what some voices miss, a line for each of those that do."""
    lines = {name: voice_named(name).missing() for name in names}
    return {name: line for name, line in lines.items() if line}
