"""The voice of the package hibari-tts: a network that gives spectra, which the package makes sound."""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from functools import cached_property
from typing import Any

import numpy as np

from models.time_base import SAMPLE_RATE_HZ

from ..phones import contiguous, shifted
from ..utterance import Utterance, to_pcm
from .neural import TimedGraph, phones_of_signs
from .voice import Params, Voice, VoiceError

LATENCY_S = -0.05
"""The sound comes before its durations tell: by alignment 45 ms, by sibilants 80, by stops 45."""
_STEP_S = 0.025
_PAD = "_"
_LETTERS = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "Q": "əʊ", "W": "aʊ", "Y": "ɔɪ", "T": "ɾ"}
"""Diphthongs and the flap, which its alphabet writes as capitals."""


class Hibari(Voice):
    """The American English voice that the package brings, with its pitch and size as parameters."""

    language = "en-us"
    licence = "Apache-2.0"

    def __init__(self, *, low: bool = False) -> None:
        """Takes the voice as it is, or as a large speaker with a low voice: `hibari-low`."""
        self.name = "hibari-low" if low else "hibari-heart"
        self._low = low

    def missing(self) -> str:  # noqa: D102 -- the interface's
        for module, package in (("hibari", "hibari-tts==0.2.1"), ("onnx", "onnx")):
            if importlib.util.find_spec(module) is None:
                return f"{self.name} needs {module}: pip install {package}"
        return ""

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {
            "stretch": round(float(rng.uniform(0.85, 1.2)), 3),
            "size": round(float(rng.uniform(*(1.16, 1.22) if self._low else (0.9, 1.06))), 3),
            "pitch": round(float(rng.uniform(*(0.62, 0.75) if self._low else (0.85, 1.12))), 3),
            "seed": int(rng.integers(1 << 31)),
        }

    @cached_property
    def _engine(self) -> Any:  # noqa: ANN401 -- the package's
        try:
            return importlib.import_module("hibari").Hibari()
        except ImportError:
            raise VoiceError(f"{self.name}: {self.missing()}") from None

    @cached_property
    def _graph(self) -> TimedGraph:
        return TimedGraph(self._engine.model_path)

    def speak(self, text: str, params: Params) -> Utterance:  # noqa: D102 -- the interface's
        rng = np.random.default_rng([int(params.get("seed", 0)), zlib.crc32(text.encode())])
        size = float(params.get("size", 1.0))
        signs: list[str] = []
        sounds, lasts_s = [], []
        synth = importlib.import_module("hibari.dsp").synth
        vocabulary = self._engine.vocab
        # The size stretches, too.
        speed = np.array([size / float(params.get("stretch", 1.0))], np.float32)
        for sentence in self._engine.phonemize(text):
            own = [sign for sign in sentence if sign in vocabulary]
            ids = np.array([[0, *(vocabulary[sign] for sign in own), 0]], np.int64)
            *spectra, f0, steps = self._graph.run({"ids": ids, "speed": speed})
            f0 = f0 * np.float32(params.get("pitch", 1.0))
            sound = synth(*(spectrum[0] for spectrum in spectra), f0[0], rng)
            sounds.append(sound.astype(np.float64))
            signs += [_PAD, *(_LETTERS.get(sign, sign) for sign in own), _PAD]
            lasts_s += [float(step) * _STEP_S * size for step in steps.reshape(-1)]
        if len(signs) != len(lasts_s):
            raise VoiceError(
                f"{self.name}: expected a duration for each of {len(signs)} signs, got {len(lasts_s)}"
            )
        pcm = to_pcm(np.concatenate(sounds), self._engine.sample_rate / size)
        phones = phones_of_signs(signs, lasts_s)
        return Utterance(
            pcm=pcm,
            phones=contiguous(shifted(phones, LATENCY_S * size), len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )
