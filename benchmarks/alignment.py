"""How well words are aligned: synthesisers' own phone times against those that alignment finds.

`python -m benchmarks.alignment` has each voice that is installed and knows its phones' times say a few texts,
aligns the sound as if it were a recording, and compares where phones begin. It then aligns each sound with
another one's text: that must be refused.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.partial_files import atomic_write
from preparation.sounds import PAUSE, Phone, base
from preparation.synthetic.alignment import align, fits
from preparation.synthetic.texts import draw_text
from preparation.synthetic.voices.catalogue import voice_named
from preparation.synthetic.voices.espeak import references

VOICES = (
    "flite-slt",
    "flite-rms",
    "flite-kal16",
    "festival-slt-hts",
    "festival-kal",
    "piper-joe",
    "hibari-heart",
)
_LANGUAGE = "en-us"


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far the phones of one voice are from its own times."""

    voice: str
    phones: int
    median_ms: float
    percentile_90_ms: float
    lag_ms: float  # median, positive: found too late
    taken: float  # share of right texts that are believed
    refused: float  # share of wrong texts that are not


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each voice; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voices", nargs="+", default=VOICES, metavar="VOICE")
    parser.add_argument("--texts", type=int, default=12, help="how many each says (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(argv)
    rows = []
    print(f"{'voice':20}{'phones':>8}{'median ms':>11}{'90 % ms':>9}{'lag ms':>8}{'taken':>8}{'refused':>9}")
    for name in given.voices:
        if line := voice_named(name).missing():
            print(f"{name:20} {line}")
            continue
        row = measure(name, given.texts)
        rows.append(asdict(row))
        print(
            f"{name:20}{row.phones:8}{row.median_ms:11.1f}{row.percentile_90_ms:9.1f}{row.lag_ms:8.1f}"
            f"{row.taken:8.2f}{row.refused:9.2f}",
            flush=True,
        )
    if given.json:
        with atomic_write(given.json) as path:
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


def measure(name: str, texts: int) -> Errors:
    """Returns the errors of one voice over some texts."""
    voice = voice_named(name)
    language = _LANGUAGE if voice.language.startswith("en") else voice.language
    rng = np.random.default_rng(1)
    said = [draw_text(language, rng) for _ in range(texts)]
    errors_s: list[float] = []
    taken = refused = 0
    for number, text in enumerate(said):
        spoken = voice.speak(text, voice.draw(rng))
        found = align(spoken.pcm, references(text, language))
        taken += fits(found)
        refused += not fits(align(spoken.pcm, references(said[(number + 1) % texts], language)))
        errors_s += [theirs[1] - own[1] for own, theirs in paired(spoken.phones, found.phones)]
    error_ms = 1000 * np.array(errors_s)
    return Errors(
        voice=name,
        phones=len(error_ms),
        median_ms=float(np.median(np.abs(error_ms))),
        percentile_90_ms=float(np.percentile(np.abs(error_ms), 90)),
        lag_ms=float(np.median(error_ms)),
        taken=taken / texts,
        refused=refused / texts,
    )


def paired(own: Sequence[Phone], found: Sequence[Phone]) -> Iterator[tuple[Phone, Phone]]:
    """Yields the phones that two sequences have in common, in order; pauses do not count."""
    first = [phone for phone in own if phone[0] != PAUSE]
    second = [phone for phone in found if phone[0] != PAUSE]
    matcher = difflib.SequenceMatcher(
        None, [base(phone[0]) for phone in first], [base(phone[0]) for phone in second], autojunk=False
    )
    for block in matcher.get_matching_blocks():
        yield from zip(
            first[block.a : block.a + block.size], second[block.b : block.b + block.size], strict=True
        )


if __name__ == "__main__":
    sys.exit(main())
