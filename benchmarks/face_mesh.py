"""Tracked landmarks against the geometry behind a video: `python -m benchmarks.face_mesh --data DIR`.

The folder is a speaker's set whose `landmarks_2d` are exact, as a rendered speaker has them. Distances are in
px of the video. Mesh and geometry need not mean the same place by a landmark: *motion* is the error that is
left once each landmark's mean offset is taken out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, F64
from cuda_kernels.errors import InputError
from models.settings import BAD_INPUT
from preparation.face_mesh.ibug import IBUG_POINTS
from preparation.face_mesh.track import FaceTrack, TrackSettings, track_face
from preparation.speaker_set import VIDEO_FILE, read_truth

from .json_file import write_json

PARTS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "outer lips": slice(48, 60),
    "inner lips": slice(60, 68),
}
_EYES = [36, 45]  # outer corners


def _distance(ones: Sequence[int], others: Sequence[int]) -> Callable[[F32], F32]:
    """Returns what gives the mean distance (T,) between landmarks of (T, 68, 2)."""

    def measure(landmarks: F32) -> F32:
        distances: F32 = np.linalg.norm(landmarks[:, ones] - landmarks[:, others], axis=-1).mean(1)
        return distances

    return measure


MEASURES = {
    "opening": _distance([61, 62, 63], [67, 66, 65]),
    "width": _distance([60], [64]),
    "lids": _distance([37, 38, 43, 44], [41, 40, 47, 46]),
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well a track agrees with the geometry, over the pictures that show a face."""

    pictures: int
    found: float  # share of them
    eyes_px: float  # between the outer corners, the scale of all
    raw_px: dict[str, float]  # by part
    motion_px: dict[str, float]
    tremble_px: float  # mean second difference of the motion error
    correlation: dict[str, float]  # by measure


def compare(followed: FaceTrack, truth: F32) -> Figures:
    """Returns the figures of a track with the 68 landmarks against (T, 68, 2) of as many pictures or more."""
    found = followed.found
    landmarks, truth = followed.points[found][..., :2], truth[: len(found)][found]
    error: F64 = (landmarks - truth).astype(np.float64)
    motion = error - error.mean(0)
    raw, moved = np.linalg.norm(error, axis=-1), np.linalg.norm(motion, axis=-1)
    return Figures(
        pictures=len(found),
        found=float(found.mean()),
        eyes_px=float(np.linalg.norm(truth[:, _EYES[0]] - truth[:, _EYES[1]], axis=-1).mean()),
        raw_px={part: float(raw[:, at].mean()) for part, at in PARTS.items()},
        motion_px={part: float(moved[:, at].mean()) for part, at in PARTS.items()},
        tremble_px=float(np.linalg.norm(np.diff(motion, n=2, axis=0), axis=-1).mean()),
        correlation={
            name: float(np.corrcoef(measure(landmarks), measure(truth))[0, 1])
            for name, measure in MEASURES.items()
        },
    )


def measure(data: Path, settings: TrackSettings) -> tuple[Figures, float]:
    """Returns the figures of a set's video and the CPU time in s that its track took.

    Raises:
        InputError: the set lacks video or landmarks, or has fewer landmarks than pictures.
    """
    truth = read_truth(data, "landmarks_2d")["landmarks_2d"]
    start_s = time.process_time()
    followed = track_face(data / VIDEO_FILE, settings, keep=IBUG_POINTS)
    cpu_s = time.process_time() - start_s
    if len(followed.found) > len(truth):
        expected = f"{len(followed.found)} frames, as the video has"
        raise InputError(file=str(data), field="landmarks_2d", expected=expected, got=f"{len(truth)}")
    return compare(followed, truth), cpu_s


def table(figures: Figures, settings: TrackSettings, cpu_s: float) -> str:
    """Returns the figures as a table for people."""
    regions = "smoothed" if settings.smooth else "plain"
    lines = [
        f"{figures.pictures} pictures, a face in {figures.found:.1%}",
        f"  {figures.eyes_px:.0f} px between the eyes; crops {settings.crops}, {regions} regions",
        f"  {'':10}  raw px  motion px",
    ]
    lines += [f"  {part:10}  {figures.raw_px[part]:6.2f}  {figures.motion_px[part]:9.2f}" for part in PARTS]
    lines.append("  r " + ", ".join(f"{name} {r:.3f}" for name, r in figures.correlation.items()))
    lines.append(
        f"  tremble {figures.tremble_px:.2f} px; {figures.pictures / cpu_s:.1f} pictures a CPU second"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes JSON where asked, prints the table last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.face_mesh", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a speaker's set")
    parser.add_argument("--crops", type=int, default=1, help="of each picture (default: 1)")
    parser.add_argument("--no-smooth", action="store_true", help="one pass, regions as they come")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    try:
        settings = TrackSettings(crops=given.crops, smooth=not given.no_smooth)
        figures, cpu_s = measure(given.data, settings)
    except InputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    write_json(given.json, asdict(settings) | asdict(figures) | {"cpu_s": cpu_s})
    print(table(figures, settings, cpu_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
