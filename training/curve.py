"""Validation PSNR over training time, as a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from models.partial_files import atomic_write

from .loop import read_validations
from .pictures import write_picture

CURVE_FILE, PICTURE_FILE = "curve.csv", "curve.png"
_FIRST = ("psnr_whole_db", "psnr_head_db", "psnr_mouth_db", "psnr_torso_db")


def write_curve(out: Path) -> str | None:
    """Returns a training folder's PSNR over time as a table to print, None without validations.

    Writes `curve.csv` and `curve.png`. Minutes count training and validation, not loading the data.
    """
    rows = [row for row in read_validations(out) if "minutes" in row]
    names = _measures(rows)
    if not names:
        return None
    with atomic_write(out / CURVE_FILE) as part, part.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("minutes", "step", *names))
        writer.writerows([row.get(name, "") for name in ("minutes", "step", *names)] for row in rows)
    _draw(rows, names, out / PICTURE_FILE)
    return curve_table(rows)


def curve_table(rows: Sequence[dict[str, float]]) -> str:
    """Returns lines of minutes, step and PSNR in dB by region, one a validation."""
    names = _measures(rows)
    heads = ["minutes", "step", *(name.removesuffix("_db").replace("_", " ") for name in names)]
    lines = ["  ".join(f"{head:>10}" for head in heads)]
    for row in rows:
        cells = [f"{row['minutes']:.2f}", f"{row['step']:.0f}"]
        cells += [f"{row[name]:.2f}" if name in row else "-" for name in names]
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _measures(rows: Sequence[dict[str, float]]) -> list[str]:
    """Returns the names of the PSNRs, the whole picture's first."""
    found = {name for row in rows for name in row if name.startswith("psnr_") and name.endswith("_db")}
    return [name for name in _FIRST if name in found] + sorted(found - set(_FIRST))


def _draw(rows: Sequence[dict[str, float]], names: Sequence[str], path: Path) -> None:
    from .plots import draw_curves  # imports matplotlib, which is slow

    missing = float("nan")
    curves = {
        name.removeprefix("psnr_").removesuffix("_db"): [row.get(name, missing) for row in rows]
        for name in names
    }
    minutes = [row["minutes"] for row in rows]
    write_picture(path, draw_curves({"PSNR, dB": curves}, x=minutes, x_label="minutes"))
