"""Festival (University of Edinburgh, Carnegie Mellon University): an HMM voice and a diphone voice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from models.time_base import SAMPLE_RATE_HZ

from ...media import read_pcm
from ...sounds import VOWELS, Phone
from ..phones import contiguous, from_festival, shifted
from ..utterance import Utterance
from .voice import Params, Voice, VoiceError, lacks_program, run_engine

LATENCY_S = {"cmu_us_slt_arctic_hts": 0.010, "kal_diphone": 0.017}
_PACKAGES = {"cmu_us_slt_arctic_hts": "festvox-us-slt-hts", "kal_diphone": "festvox-kallpc16k"}
_FOLDER = Path("/usr/share/festival/voices")
_NAMES = {"cmu_us_slt_arctic_hts": "festival-slt-hts", "kal_diphone": "festival-kal"}
_SCHEME = """(voice_{voice})
(Parameter.set 'Duration_Stretch {stretch})
{pitch}
(set! utt (Utterance Text "{text}"))
(utt.synth utt)
(mapcar
  (lambda (s)
    (format t "phone %s %s %s\\n" (item.name s) (item.feat s 'segment_end)
      (item.feat s "R:SylStructure.parent.stress")))
  (utt.relation.items utt 'Segment))
(utt.save.wave utt "{wav}" 'riff)
"""


class Festival(Voice):
    """One of festival's voices: cmu_us_slt_arctic_hts, kal_diphone."""

    language = "en-us"
    licence = "permissive, Carnegie Mellon University and University of Edinburgh"

    def __init__(self, voice: str) -> None:
        self._voice = voice
        self.name = _NAMES[voice]

    def missing(self) -> str:  # noqa: D102 -- the interface's
        package = _PACKAGES[self._voice]
        if line := lacks_program("festival", f"festival {package}"):
            return line
        found = any(_FOLDER.glob(f"*/{self._voice}"))
        return "" if found else f"{self.name} is not installed: apt-get install {package}"

    def draw(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: D102 -- the interface's
        return {
            "stretch": round(float(rng.uniform(0.85, 1.2)), 3),
            "pitch": round(float(rng.uniform(85, 130)), 1),
        }

    def speak(self, text: str, params: Params) -> Utterance:  # noqa: D102 -- the interface's
        pitch = float(params.get("pitch", 105))
        with tempfile.TemporaryDirectory(prefix="geneface-") as folder:
            wav, script = Path(folder) / "a.wav", Path(folder) / "a.scm"
            script.write_text(
                _SCHEME.format(
                    voice=self._voice,
                    stretch=params.get("stretch", 1.0),
                    pitch=f"(set! int_lr_params '((target_f0_mean {pitch}) (target_f0_std 14)"
                    " (model_f0_mean 170) (model_f0_std 34)))",
                    text=text.replace("\\", " ").replace('"', " "),
                    wav=wav,
                ),
                encoding="utf-8",
            )
            said = run_engine(["festival", "-b", str(script)])
            pcm = read_pcm(wav)
        phones = shifted(parse_segments(said), LATENCY_S[self._voice])
        return Utterance(
            pcm=pcm,
            phones=contiguous(phones, len(pcm) / SAMPLE_RATE_HZ),
            voice=self.name,
            language=self.language,
            text=text,
        )


def parse_segments(said: str) -> tuple[Phone, ...]:
    """Returns the phones of lines `phone NAME END STRESS`.

    Raises:
        VoiceError: there is no such line, or one of another kind.
    """
    phones: list[Phone] = []
    start_s = 0.0
    try:
        for line in said.splitlines():
            if not line.startswith("phone "):
                continue
            _, name, end, stress = line.split()
            label = from_festival(name)
            if label in VOWELS and stress == "1":
                label += "1"
            phones.append((label, start_s, float(end)))
            start_s = float(end)
    except (ValueError, KeyError):
        raise VoiceError(f"festival: expected a phone, its end and stress, got {line[:60]!r}") from None
    if not phones:
        raise VoiceError("festival: expected phones with their ends, got none")
    return tuple(phones)
