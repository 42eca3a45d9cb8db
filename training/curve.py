"""How close a training came over its minutes: what its validations found, as a table and a picture."""

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
    """The closeness over the minutes of training in a folder, as a table to print; None where there is none.

    Writes `curve.csv` and `curve.png` beside the validations, which a resumed run goes on with. A minute is
    one of the training itself, its validations with it; loading the data is not in it.
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
    """Lines of minutes, step and PSNR in dB by region, one for each validation."""
    names = _measures(rows)
    heads = ["minutes", "step", *(name.removesuffix("_db").replace("_", " ") for name in names)]
    lines = ["  ".join(f"{head:>10}" for head in heads)]
    for row in rows:
        cells = [f"{row['minutes']:.2f}", f"{row['step']:.0f}"]
        cells += [f"{row[name]:.2f}" if name in row else "-" for name in names]
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _measures(rows: Sequence[dict[str, float]]) -> list[str]:
    """Which PSNRs there are, the whole picture's first."""
    found = {name for row in rows for name in row if name.startswith("psnr_") and name.endswith("_db")}
    return [name for name in _FIRST if name in found] + sorted(found - set(_FIRST))


def _draw(rows: Sequence[dict[str, float]], names: Sequence[str], path: Path) -> None:
    from .plots import draw_curves  # matplotlib: slow to import, and needed only here

    missing = float("nan")
    curves = {
        name.removeprefix("psnr_").removesuffix("_db"): [row.get(name, missing) for row in rows]
        for name in names
    }
    minutes = [row["minutes"] for row in rows]
    write_picture(path, draw_curves({"PSNR, dB": curves}, x=minutes, x_label="minutes"))
