"""Prebuilt cubins of the raymarcher for every width and architecture: `python -m cuda_kernels.build_cubins`.

Needs NVRTC (extra [cuda]), not a GPU. What it writes goes into the wheel; a test refuses kernels that are
older than their sources.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .cuda_module import (
    ARCHITECTURES,
    CUBINS,
    MANIFEST,
    Variant,
    compile_with_nvrtc,
    sources_digest,
    variant_for,
)
from .cuda_records import WIDTHS


def write_cubin(variant: Variant, folder: Path) -> int:
    """Compiles one variant into the folder and returns the file's size in bytes."""
    packed = lzma.compress(compile_with_nvrtc(variant), preset=9)
    (folder / variant.file_name).write_bytes(packed)
    return len(packed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles and writes all cubins; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="how many are compiled at once")
    options = parser.parse_args(arguments)
    variants = [variant_for(width, number) for number in ARCHITECTURES for width in WIDTHS]
    CUBINS.mkdir(exist_ok=True)
    for stale in [*CUBINS.glob("*.cubin.xz"), *CUBINS.glob(MANIFEST.name)]:
        stale.unlink()
    with ProcessPoolExecutor(max_workers=options.jobs) as pool:
        sizes = pool.map(write_cubin, variants, [CUBINS] * len(variants))
        for variant, size in zip(variants, sizes, strict=True):
            sys.stdout.write(f"{variant.file_name}: {size / 1024:.0f} KiB\n")
    # Written last: cubins without the manifest are ignored, so a stopped run leaves no incomplete set.
    MANIFEST.write_text(sources_digest() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
