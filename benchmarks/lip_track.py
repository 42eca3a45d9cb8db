"""A person's lips, followed through a recording: the 68 points by time, their opening and width by frame."""

from __future__ import annotations

import contextlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import BOOL, F32, F64
from models.time_base import FRAME_S
from preparation.arrays import Kind, read_npz
from preparation.errors import FileError

POINTS = 68
MAX_GAP_S = 0.1  # between pictures with a face: lips are interpolated over no more
_SCALE_S = 1.0  # a head comes nearer more slowly; a tracker's eyes tremble faster
_EARLY_S = 1e-4  # by which a rounded time stamp may lie after its frame's beginning
_EYES = (36, 45)  # the outer corners
_CORNERS = (60, 64)  # of the inner lips
_INNER_LIPS = ((61, 67), (62, 66), (63, 65))
_WAY_OUT = "see docs/benchmarks.md for what a track file holds"


class TrackError(FileError):
    """A track that cannot be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LipTrack:
    """The points of a face (ibug's 68) at moments, in rising order."""

    times_s: F64  # (T,) time stamps of the container, as FFmpeg tells them
    points: F32  # (T, 68, 2) in a picture or (T, 68, 3) in space, in any unit, any pose
    found: BOOL  # (T,): elsewhere there was no face, and points are meaningless


@dataclass(frozen=True, kw_only=True, eq=False)
class Lips:
    """Opening and width of a mouth in shares of the distance of the outer eye corners, frame by frame."""

    opening: F32  # (T,) mean distance of the inner lips at three places
    width: F32  # (T,) between the inner corners
    seen: BOOL  # (T,): elsewhere both are meaningless

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.opening)


def read_track(path: Path, *, start_s: float) -> LipTrack:
    """Returns the track in an .npz file.

    It holds `landmarks` (T, 68, 2 or 3) and their times: `times_s` (T,), time stamps of the recording's
    container, or `fps`, counted from `start_s`. `found` (T,) may say where there was a face. With `mean_face`
    (68, 3) landmarks are a speaker's, as `geneface-stream --landmarks` writes them: ten times the offset.

    Raises:
        TrackError: the file is absent or broken, or holds something else.
    """
    given = _names(path)
    timed = "times_s" in given or "fps" not in given
    kinds = {
        "landmarks": Kind((None, POINTS, None)),
        "times_s" if timed else "fps": Kind((None,) if timed else ()),
        **{name: kind for name, kind in _OPTIONAL.items() if name in given},
    }
    arrays = read_npz(path, kinds, TrackError, _WAY_OUT)
    points = arrays["landmarks"]
    if points.shape[2] not in (2, 3):
        raise TrackError(path, "landmarks", "points in two or three dimensions", points.shape[2], _WAY_OUT)
    if "mean_face" in arrays:
        if points.shape[2] != 3:
            raise TrackError(path, "landmarks", "three dimensions beside a mean_face", 2, _WAY_OUT)
        points = arrays["mean_face"] + points / 10
    if timed:
        times_s = arrays["times_s"].astype(np.float64)
    else:
        fps = float(arrays["fps"])
        if not fps > 0:
            raise TrackError(path, "fps", "more than 0", fps, _WAY_OUT)
        times_s = start_s + np.arange(len(points)) / fps
    found = arrays.get("found", np.ones(len(points)))
    for name, array in (("times_s", times_s), ("found", found)):
        if len(array) != len(points):
            raise TrackError(path, name, f"{len(points)} frames, as landmarks has", len(array), _WAY_OUT)
    if (np.diff(times_s) <= 0).any():
        raise TrackError(path, "times_s", "rising times", "one that is not after the one before", _WAY_OUT)
    track = LipTrack(times_s=times_s, points=points.astype(np.float32), found=found.astype(bool))
    if not (_distance(track.points[track.found], *_EYES) > 0).all():
        got = "eye corners in one place"
        raise TrackError(path, "landmarks", "the 68 points of a face (ibug's order)", got, _WAY_OUT)
    return track


_OPTIONAL = {"found": Kind((None,), whole=True), "mean_face": Kind((POINTS, 3))}


def _names(path: Path) -> frozenset[str]:
    """Returns the arrays of an .npz file; none of what is no such file."""
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    return frozenset()


def lips_of_track(track: LipTrack, frames: int, *, start_s: float) -> Lips:
    """Returns the lips at the beginnings of `frames` frames of 25 fps from `start_s` on.

    A video shows a picture from its time stamp on, ours frame i from i / 25 s on: so both are compared as
    they are seen. Between pictures lips are interpolated, over at most `MAX_GAP_S`.
    """
    times_s, points = track.times_s[track.found] - start_s, track.points[track.found]
    if len(times_s) < 2:
        nothing = np.zeros(frames, np.float32)
        return Lips(opening=nothing, width=nothing, seen=np.zeros(frames, bool))
    scale = _steady(times_s, _distance(points, *_EYES))
    moments_s = np.arange(frames) * FRAME_S
    before = np.searchsorted(times_s, moments_s + _EARLY_S, side="right") - 1
    after = np.searchsorted(times_s, moments_s - _EARLY_S)
    inside = (before >= 0) & (after < len(times_s))
    gap_s = times_s[after.clip(max=len(times_s) - 1)] - times_s[before.clip(min=0)]
    opening, width = (
        np.interp(moments_s, times_s, lips / scale).astype(np.float32) for lips in mouth_of(points)
    )
    return Lips(opening=opening, width=width, seen=inside & (gap_s <= MAX_GAP_S))


def lips_of_motion(landmarks: F32, mean_face: F32 | None) -> Lips:
    """Returns the lips of a speaker's motion, by the measures of a person's.

    Args:
        landmarks: (T, 204), ten times the offset in dm.
        mean_face: (68, 3) or (204,) in dm; None where the bundle has none.

    Raises:
        ValueError: there is no mean face.
    """
    if mean_face is None:
        raise ValueError("motion.mean_face: expected 68x3 numbers, got null; rebuild the bundle")
    face = mean_face.reshape(POINTS, 3)
    opening, width = mouth_of(face + landmarks.reshape(-1, POINTS, 3) / np.float32(10))
    scale = _distance(face, *_EYES)
    return Lips(opening=opening / scale, width=width / scale, seen=np.ones(len(opening), bool))


def mouth_of(points: F32) -> tuple[F32, F32]:
    """Returns opening and width (T,) of points (T, 68, 2 or 3), in their unit."""
    opening = np.mean([_distance(points, upper, lower) for upper, lower in _INNER_LIPS], axis=0)
    return opening, _distance(points, *_CORNERS)


def _distance(points: F32, one: int, other: int) -> F32:
    distance: F32 = np.linalg.norm(points[..., one, :] - points[..., other, :], axis=-1)
    return distance


def _steady(times_s: F64, values: F32) -> F64:
    """Returns the mean of values (n,) over the second around each."""
    first = np.searchsorted(times_s, times_s - _SCALE_S / 2)
    last = np.searchsorted(times_s, times_s + _SCALE_S / 2, side="right")
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    means: F64 = (sums[last] - sums[first]) / (last - first)
    return means
