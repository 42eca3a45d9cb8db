"""flite (Carnegie Mellon University): a program with English voices built from recordings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from models.time_base import SAMPLE_RATE_HZ

from ...media import read_pcm
from ...sounds import Phone
from ..phones import contiguous, from_festival, from_ipa, shifted, with_stress
from ..utterance import Utterance
from .espeak import lacks_espeak, library
from .voice import Params, Voice, VoiceError, lacks_program, run_engine

LATENCY_S = 0.007
_PITCH_HZ = {"slt": (145, 215), "rms": (85, 130), "awb": (105, 165), "kal16": (85, 130)}


class Flite(Voice):
    """One of flite's voices at 16 kHz: slt, rms, awb, kal16."""

    language = "en-us"
    licence = "BSD-like, Carnegie Mellon University"

    def __init__(self, voice: str) -> None:
        self._voice = voice
        self.name = f"flite-{voice}"
        if voice == "awb":
            self.language = "en-gb-scotland"

    def missing(self) -> str:  # noqa: D102 -- the interface's
        return lacks_program("flite", "flite") or lacks_espeak()

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {
            "stretch": round(float(rng.uniform(0.85, 1.2)), 3),
            "pitch": round(float(rng.uniform(*_PITCH_HZ[self._voice])), 1),
        }

    def speak(self, text: str, params: Params) -> Utterance:  # noqa: D102 -- the interface's
        with tempfile.TemporaryDirectory(prefix="geneface-") as folder:
            wav, words = Path(folder) / "a.wav", Path(folder) / "a.txt"
            words.write_text(text, encoding="utf-8")
            pitch_hz = params.get("pitch", np.mean(_PITCH_HZ[self._voice]))
            said = run_engine(
                [
                    *("flite", "-voice", self._voice, "-psdur", "-f", str(words), "-o", str(wav)),
                    *("--setf", f"duration_stretch={params.get('stretch', 1.0)}"),
                    *("--setf", f"int_f0_target_mean={pitch_hz}"),
                ]
            )
            pcm = read_pcm(wav)
        phones = shifted(parse_ends(said), LATENCY_S)
        phones = with_stress(phones, from_ipa(library().phonemes(text, self.language)))
        return Utterance(
            pcm=pcm,
            phones=contiguous(phones, len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )


def parse_ends(said: str) -> tuple[Phone, ...]:
    """Returns the phones of `name:end name:end ...`, each begun where the one before it ended.

    Raises:
        VoiceError: the text is something else.
    """
    phones: list[Phone] = []
    offset_s = start_s = 0.0
    try:
        for part in said.split():
            name, _, end = part.rpartition(":")
            end_s = offset_s + float(end)
            if end_s < start_s:  # flite counts each utterance from 0
                offset_s, end_s = start_s, start_s + float(end)
            phones.append((from_festival(name), start_s, end_s))
            start_s = end_s
    except (ValueError, KeyError):
        raise VoiceError(f"flite: expected phones with their ends, got {said[:60]!r}") from None
    if not phones:
        raise VoiceError("flite: expected phones with their ends, got nothing")
    return tuple(phones)
