"""`geneface-export geneface | bundle | motion | distil | slim | plates | verify | seal | figures`."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuda_kernels.errors import InputError
from models.settings import BAD_INPUT, Parser, add_flags, escaped, flags_of, from_flags
from models.terminal import log_to_stderr, with_safe_streams
from training.cli import missing_extra

from .requests import (
    BundleRequest,
    DistillationRequest,
    GenefaceRequest,
    MotionRequest,
    PlatesRequest,
    SlimRequest,
)

if TYPE_CHECKING:
    from models.speaker import Speaker

    from .verification import Check


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input or usage (one line on stderr), 1 anything else."""
    return with_safe_streams("geneface-export", functools.partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(argv)
    # The ONNX exporter logs every rewrite at INFO.
    log_to_stderr(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        code: int = parsed.run(parsed)
    except ImportError as error:
        print(f"geneface-export: {missing_extra(error)}", file=sys.stderr)
        return BAD_INPUT
    except (InputError, OSError) as error:
        print(f"geneface-export {parsed.command}: {escaped(str(error))}", file=sys.stderr)
        return BAD_INPUT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="geneface-export", description="Makes and checks speaker bundles.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, request, run, what in (
        ("geneface", GenefaceRequest, _geneface, "import a speaker that was trained with GeneFace"),
        ("bundle", BundleRequest, _bundle, "make a bundle from networks of ours and the speaker's data"),
        ("motion", MotionRequest, _motion, "put other motion into a bundle: its head and torso stay"),
        ("distil", DistillationRequest, _distil, "distil an imported speaker's motion for CPUs"),
        ("slim", SlimRequest, _slim, "distil a wide head into a narrow one for CPUs"),
        ("plates", PlatesRequest, _plates, "make a bundle's plates anew: what speech does not change"),
    ):
        command = commands.add_parser(name, help=what)
        add_flags(command, flags_of(request).values())
        command.set_defaults(run=run, request=request)
    verify = commands.add_parser("verify", help="check a bundle again, without its sources")
    verify.add_argument("bundle", type=Path, help="the bundle's folder")
    verify.set_defaults(run=_verify)
    seal = commands.add_parser("seal", help="recompute hashes after a deliberate change by hand")
    seal.add_argument("bundle", type=Path, help="the bundle's folder")
    seal.set_defaults(run=_seal)
    figures = commands.add_parser("figures", help="put measured figures into bundle and model card")
    figures.add_argument("bundle", type=Path, help="the bundle's folder")
    figures.add_argument("files", type=Path, nargs="+", help="JSON files with numbers")
    figures.set_defaults(run=_figures)
    return parser


def _request(parsed: argparse.Namespace) -> Any:  # noqa: ANN401 -- of the command's own type
    """Returns the command's request."""
    flags = flags_of(parsed.request)
    return from_flags(parsed.request, {name: text for name, text in vars(parsed).items() if name in flags})


def _geneface(parsed: argparse.Namespace) -> int:
    from .geneface.importer import import_geneface

    request = _request(parsed)
    _print_made(_with_plates(import_geneface(request), request))
    return 0


def _bundle(parsed: argparse.Namespace) -> int:
    from .bundle.assembly import make_bundle

    request = _request(parsed)
    max_bytes = round(request.max_mb * 1e6)
    _print_made(_with_plates(make_bundle(request), request, max_bytes=max_bytes))
    return 0


def _motion(parsed: argparse.Namespace) -> int:
    from .bundle.new_motion import replace_motion

    request = _request(parsed)
    _print_made(_with_plates(replace_motion(request), request))
    return 0


def _distil(parsed: argparse.Namespace) -> int:
    from .students.distillation import StoppedError, distil

    request = _request(parsed)
    try:
        report = distil(request)
    except StoppedError as stopped:
        print(f"geneface-export distil: {escaped(str(stopped))}", file=sys.stderr)
        return 1
    print("\n".join(map(escaped, report.lines())))
    _with_plates(report.speaker, request)
    return 0


def _slim(parsed: argparse.Namespace) -> int:
    from .students.slimming import slim

    request = _request(parsed)
    report = slim(request)
    if report is None:
        print("geneface-export slim: stopped; the same command goes on", file=sys.stderr)
        return 1
    print(report.table())
    _with_plates(report.speaker, request)
    return 0


def _plates(parsed: argparse.Namespace) -> int:
    from .plates import add_plates

    request = _request(parsed)
    max_bytes = None if request.max_mb is None else round(request.max_mb * 1e6)
    _print_made(add_plates(request.bundle, speech=request.speech, max_bytes=max_bytes))
    return 0


def _with_plates(
    speaker: Speaker,
    request: BundleRequest | DistillationRequest | GenefaceRequest | MotionRequest | SlimRequest,
    *,
    max_bytes: int | None = None,
) -> Speaker:
    """Returns the speaker with plates, or without where none are asked for or, said in a line, can be."""
    if not request.plates:
        return speaker
    from .plates import add_plates

    try:
        return add_plates(speaker.path, max_bytes=max_bytes)
    except (InputError, OSError) as error:  # the bundle is whole
        print(escaped(f"geneface-export: {speaker.path}: goes without plates: {error}"), file=sys.stderr)
        return speaker


def _print_made(speaker: Speaker) -> None:
    """Prints the bundle and how each exported part compares with its source."""
    from .verification import stored_checks

    total = sum(record.size_bytes for record in speaker.settings.files.values())
    print(escaped(f"{speaker.path}: {speaker.name}, {total / 1e6:.1f} MB"))
    _print_checks(stored_checks(speaker))


def _verify(parsed: argparse.Namespace) -> int:
    from .verification import verify_bundle

    checks = verify_bundle(parsed.bundle)
    _print_checks(checks)
    if all(check.holds for check in checks):
        return 0
    failed = next(check for check in checks if not check.holds)
    message = (
        f"geneface-export verify: {parsed.bundle}: {failed.name}: got {failed.found}; rebuild the bundle"
    )
    print(escaped(message), file=sys.stderr)
    return BAD_INPUT


def _print_checks(checks: Sequence[Check]) -> None:
    names, found = (
        max(len(text) for text in texts) for texts in zip(*((c.name, c.found) for c in checks), strict=True)
    )
    for check in checks:
        limit = f"  {check.limit}" if check.limit else ""
        print(
            f"{check.name:{names}}  {check.found:{found}}{limit}{'' if check.holds else '  FAILED'}".rstrip()
        )


def _seal(parsed: argparse.Namespace) -> int:
    from .bundle.writer import seal

    print(escaped(f"{seal(parsed.bundle).path}: sealed"))
    return 0


def _figures(parsed: argparse.Namespace) -> int:
    from .bundle.assembly import read_figures
    from .bundle.writer import add_figures

    speaker = add_figures(parsed.bundle, read_figures(tuple(parsed.files)))
    print(escaped(f"{speaker.path}: {len(speaker.figures)} figures"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
