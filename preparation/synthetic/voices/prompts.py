"""Real speakers: the prompts of Asterisk's core sounds, whose phones come by alignment.

The recordings are Debian's packages asterisk-core-sounds-LANGUAGE-g722. What numbers, letters, days and
months say follows from their names. What others say was written down by us in `transcripts/` (`name: text` a
line), where alignment decides line by line whether it is right. For English it is the list that belongs to
Asterisk's core sounds, which neither we nor Debian's package bring: `core-sounds-en.txt`, in the speaker's
folder or in `transcripts/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from models.time_base import SAMPLE_RATE_HZ

from ...media import read_pcm
from ..alignment import AlignmentError, align, fits
from ..phones import contiguous
from ..utterance import Utterance
from .espeak import lacks_espeak, references
from .voice import Params, Voice, VoiceError

SOUNDS = Path("/usr/share/asterisk/sounds")
TRANSCRIPTS = Path(__file__).with_name("transcripts")
_SPEAKERS = {
    "en": ("en_US_f_Allison", "en-us", "CC-BY-SA-3.0, Allison Smith"),
    "es": ("es_MX_f_Allison", "es-419", "CC-BY-SA-3.0, Allison Smith"),
    "fr": ("fr_CA_f_June", "fr", "CC-BY-SA-3.0, June Wallack"),
    "it": ("it_IT_m_Carlo", "it", "CC-BY-3.0, Carlo Flora"),
    "ru": ("ru_RU_f_IvrvoiceRU", "ru", "CC-BY-3.0, Maxim Topal"),
}
LANGUAGES = tuple(_SPEAKERS)
MAX_RECORDING_S = 20.0
_BYTES_PER_S = 8000  # of G.722
_DAYS = {
    "en": "Sunday Monday Tuesday Wednesday Thursday Friday Saturday",
    "es": "domingo lunes martes miércoles jueves viernes sábado",
    "fr": "dimanche lundi mardi mercredi jeudi vendredi samedi",
    "it": "domenica lunedì martedì mercoledì giovedì venerdì sabato",
    "ru": "воскресенье понедельник вторник среда четверг пятница суббота",
}
_MONTHS = {
    "en": "January February March April May June July August September October November December",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
}
_SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa "
    "quebec romeo sierra tango uniform victor whiskey x-ray yankee zulu"
)
_ASIDE = re.compile(r"[\[(<].*?[\])>]|\*|#")
_LINE = re.compile(r"^(?P<name>[\w./-]+?)(?:\.wav)?:\s*(?P<text>.+)$")


class Prompts(Voice):
    """One speaker of Asterisk's core sounds, `asterisk-fr`."""

    def __init__(self, language: str, sounds: Path = SOUNDS) -> None:
        folder, self.language, self.licence = _SPEAKERS[language]
        self.name = f"asterisk-{language}"
        self._short = language
        self._folder = sounds / folder

    def missing(self) -> str:  # noqa: D102 -- the interface's
        if not self._folder.is_dir():
            return f"{self.name} is not installed: apt-get install asterisk-core-sounds-{self._short}-g722"
        *_, last = listings = self._listings()
        if not any(listing.is_file() for listing in listings):
            source = f"{last.name} of Asterisk's core sounds ({self.licence})"
            return f"{self.name} lacks what its prompts say: put {source} into {last.parent}"
        return lacks_espeak()

    def _listings(self) -> tuple[Path, ...]:
        """Returns where it may stand what the recordings say."""
        return tuple(folder / f"core-sounds-{self._short}.txt" for folder in (TRANSCRIPTS, self._folder))

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {}

    @cached_property
    def _recordings(self) -> Mapping[str, str]:
        """The name of the recording that says a text."""
        told = [(text, name) for name, text in _known(self._short).items()]
        for listing in self._listings():
            lines = listing.read_text(encoding="utf-8", errors="replace") if listing.is_file() else ""
            for match in filter(None, map(_LINE.match, lines.splitlines())):
                told.append((_ASIDE.sub(" ", match["text"]).replace("...", " ").strip(), match["name"]))
        said: dict[str, str] = {}
        for text, name in told:
            if text and self._is_spoken(name):
                said.setdefault(text, name)
        return said

    def _is_spoken(self, name: str) -> bool:
        path = self._folder / f"{name}.g722"
        return path.is_file() and path.stat().st_size <= MAX_RECORDING_S * _BYTES_PER_S

    def texts(self) -> Sequence[str]:  # noqa: D102 -- the interface's
        return tuple(self._recordings)

    def speak(self, text: str, params: Params) -> Utterance:
        """Returns the recording of a text.

        Raises:
            VoiceError: there is none, or espeak-ng is not installed.
            AlignmentError: it says something else.
        """
        name = self._recordings.get(text)
        if name is None:
            raise VoiceError(f"{self.name}: expected a text that it recorded, got {text[:40]!r}; see texts()")
        pcm = read_pcm(self._folder / f"{name}.g722")
        found = align(pcm, references(text, self.language))
        if not fits(found):
            raise AlignmentError(
                f"{self.name}: {name}: expected a recording of {text[:40]!r}, "
                f"got another (cost {found.cost:.2f}, spread {1000 * found.spread_s:.0f} ms)"
            )
        return Utterance(
            pcm=pcm,
            phones=contiguous(found.phones, len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )


def _known(language: str) -> dict[str, str]:
    """Returns what the recordings say whose names tell."""
    said = {f"digits/{number}": str(number) for number in [*range(21), *range(30, 100, 10)]}
    said |= {f"digits/day-{day}": word for day, word in enumerate(_DAYS[language].split())}
    said |= {f"digits/mon-{month}": word for month, word in enumerate(_MONTHS[language].split())}
    said |= {f"phonetic/{word[0]}_p": word for word in _SPELLING.split() if language in ("en", "fr")}
    if language != "ru":
        said |= {f"letters/{letter}": letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz"}
    return said
