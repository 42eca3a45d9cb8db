"""`python -m preparation.face_mesh --video FILE --out FILE.npz`: a video's 68 landmarks.

The file holds `landmarks` (T, 68, 3) float32 in px of the upright picture (x right, y down, z away from the
viewer), `times_s` (T,) float64 and `found` (T,) bool; where no face was found, the landmarks are 0.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cuda_kernels.errors import InputError
from models.partial_files import atomic_write
from models.settings import BAD_INPUT, Parser, add_flags, escaped, flags_of, from_flags
from models.terminal import with_safe_streams

from .ibug import IBUG_POINTS
from .picture import contact_sheet
from .track import FaceTrack, TrackSettings, track_face

_PROGRAM = "python -m preparation.face_mesh"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (line on stderr), 1 else, or stopped by a signal."""
    return with_safe_streams(_PROGRAM, functools.partial(_run, argv))


def _parser() -> Parser:
    parser = Parser(prog=_PROGRAM, description="Tracks a video's face: 68 landmarks for each picture.")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE", help="the video")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the track, .npz")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a sheet to look at, .png")
    add_flags(parser, flags_of(TrackSettings).values())
    return parser


def _run(argv: Sequence[str] | None) -> int:
    given = vars(_parser().parse_args(argv))
    video, out, picture = given.pop("video"), given.pop("out"), given.pop("picture")
    try:
        track = track_face(video, from_flags(TrackSettings, given), keep=IBUG_POINTS)
        _write(video, track, out, picture)
    except (InputError, OSError) as error:
        print(f"{_PROGRAM}: {escaped(str(error))}", file=sys.stderr)
        return BAD_INPUT
    pictures, found = len(track.found), int(track.found.sum())
    print(f"{out}: {pictures} pictures, a face in {found}")
    return 0


def _write(video: Path, track: FaceTrack, out: Path, picture: Path | None) -> None:
    with atomic_write(out) as part, part.open("wb") as file:
        np.savez(file, landmarks=track.points, times_s=track.times_s, found=track.found)
    if picture is not None:
        sheet = contact_sheet(video, track)
        with atomic_write(picture) as part:
            part.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
