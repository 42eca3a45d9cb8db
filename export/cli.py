"""`geneface-export bundle | verify | seal | figures`: makes and checks speaker bundles."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from training.cli import Flag, add_flag, missing_extra

from .request import BundleRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input or usage (one line on stderr), 1 anything else."""
    parsed = _parser().parse_args(argv)
    # The ONNX exporter tells every rewrite at INFO.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        code: int = parsed.run(parsed)
    except ImportError as error:
        print(f"geneface-export: {missing_extra(error)}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"geneface-export {parsed.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geneface-export", description="Makes and checks speaker bundles.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bundle = commands.add_parser(
        "bundle",
        help="make a bundle from trained networks and the speaker's data",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = typing.get_type_hints(BundleRequest)
    for entry in dataclasses.fields(BundleRequest):
        flag = Flag(
            name=entry.name, kind=hints[entry.name], default=entry.default, help=entry.metadata["help"]
        )
        add_flag(bundle, flag)
    bundle.set_defaults(run=_bundle)
    verify = commands.add_parser("verify", help="check a bundle again, without its sources")
    verify.add_argument("bundle", type=Path, help="the bundle's folder")
    verify.set_defaults(run=_verify)
    seal = commands.add_parser("seal", help="make hashes true again after a change by hand that is meant")
    seal.add_argument("bundle", type=Path, help="the bundle's folder")
    seal.set_defaults(run=_seal)
    figures = commands.add_parser("figures", help="put measured figures into bundle and model card")
    figures.add_argument("bundle", type=Path, help="the bundle's folder")
    figures.add_argument("files", type=Path, nargs="+", help="JSON files with numbers")
    figures.set_defaults(run=_figures)
    return parser


def _bundle(parsed: argparse.Namespace) -> int:
    from .assembly import make_bundle

    values = {entry.name: getattr(parsed, entry.name) for entry in dataclasses.fields(BundleRequest)}
    values["figures"] = tuple(values["figures"])
    speaker = make_bundle(BundleRequest(**values))
    total = sum(record.size_bytes for record in speaker.settings.files.values())
    print(f"{speaker.path}: {speaker.name}, {total / 1e6:.1f} MB")
    for name, value in speaker.verification.items():
        print(f"  {name:28} {value:.4g}")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from .verification import verify_bundle

    checks = verify_bundle(parsed.bundle)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.name:{width}}  {check.found}{'' if check.holds else '  FAILED'}")
    if all(check.holds for check in checks):
        return 0
    failed = next(check for check in checks if not check.holds)
    message = (
        f"geneface-export verify: {parsed.bundle}: {failed.name}: got {failed.found}; rebuild the bundle"
    )
    print(message, file=sys.stderr)
    return 2


def _seal(parsed: argparse.Namespace) -> int:
    from .bundle import seal

    print(f"{seal(parsed.bundle).path}: sealed")
    return 0


def _figures(parsed: argparse.Namespace) -> int:
    from .assembly import read_figures
    from .bundle import add_figures

    speaker = add_figures(parsed.bundle, read_figures(tuple(parsed.files)))
    print(f"{speaker.path}: {len(speaker.figures)} figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
