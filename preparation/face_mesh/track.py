"""A video's face, followed from picture to picture.

The first pass finds the face: each picture is searched where the face was in the one before, anew where none
is there. The second reads the points in regions that are smoothed over time, for a crop must not tremble with
what it shows. Several crops of a picture can be averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import BOOL, F32, F64, I64, U8
from models.recording import open_recording
from models.settings import Option, Range, check_ranges

from ..errors import FileError
from ..media import to_picture, video_frames
from .detector import Face, FaceDetector
from .mesh import Crop, FaceMesh, Region, crop, region_of_box, region_of_points
from .shipped import POINTS

MIN_FACE = 0.5  # the probability from which on a face counts as there
_SMOOTHING_S = 0.16  # standard deviation of the regions' Gaussian
_MAX_REACH = 100  # pictures on either side
_MAX_JUMP = 0.3  # of a region's side; beyond it is a cut, or another face
_MAX_RETURN = 0.5  # likewise, between a face and what may be the same one
_PATIENCE_S = 1.0  # how long a face that left is waited for
_SEARCH_S = 0.5  # between two searches for small faces, each a hundred looks
_BATCH = 6
# Of the crops after the plain one, shares of the side and radians: right, down, scale, turn, mirrored.
_VARIANTS = (
    (0.0, 0.0, 1.0, 0.0, False),
    (0.0, 0.0, 1.0, 0.0, True),
    (0.02, -0.02, 1.045, 0.05, False),
    (-0.02, -0.02, 1.045, -0.05, True),
    (-0.02, 0.02, 0.96, -0.05, False),
    (0.02, 0.02, 0.96, 0.05, True),
)


class FaceTrackError(FileError):
    """A video whose face cannot be tracked."""


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """How a face is tracked."""

    crops: Annotated[int, Range(1, len(_VARIANTS)), Option("crops of each picture to average")] = 1
    smooth: Annotated[bool, Option("smooth the regions over time, in a second pass")] = True

    def __post_init__(self) -> None:
        """Refuses what is out of range."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceTrack:
    """The points of the face in each picture of a video, upright as a player shows it."""

    times_s: F64  # (T,) on the video's clock, each later than the one before
    points: F32  # (T, K, 3) px: x right, y down, z away from the viewer; 0 where none was found
    found: BOOL  # (T,)
    size_px: tuple[int, int]  # width and height of the pictures


@dataclass(frozen=True, kw_only=True)
class _Sighting:
    """What the first pass saw in a picture."""

    time_s: float
    region: Region | None
    anew: bool  # found by the detector


def track_face(
    video: Path, settings: TrackSettings | None = None, *, keep: I64 | None = None, quiet: bool = False
) -> FaceTrack:
    """Returns the face's track in a video: that of the largest and most central one where there are several.

    Memory grows by the points alone: 5.7 kB a picture, 0.8 kB for 68 of them.

    Args:
        video: any file that FFmpeg decodes.
        settings: how.
        keep: numbers of the points to keep, see `ibug.IBUG_POINTS`; all 478 without it.
        quiet: without a progress bar.

    Raises:
        MediaError: the video is absent, broken or has no pictures.
        FaceTrackError: no picture shows a face.
    """
    settings = settings or TrackSettings()
    kept = np.arange(POINTS) if keep is None else keep
    mesh = FaceMesh()
    sightings: list[_Sighting] = []
    first: list[F32] = []  # the points, where one pass is enough
    once = settings.crops == 1 and not settings.smooth
    size_px = (0, 0)
    follower = _Follower(mesh)
    total, _ = _described(video)
    pictures = upright_pictures(video)
    for picture, time_s in tqdm(pictures, "face", total, unit="picture", mininterval=1.0, disable=quiet):
        size_px = (picture.shape[1], picture.shape[0])
        sighting, points = follower.look(picture, time_s)
        sightings.append(sighting)
        if once:
            first.append(points[kept])
    if not any(sighting.region for sighting in sightings):
        got = f"none in {len(sightings)} pictures"
        way_out = "give a video in which a face of 60 pixels or more looks at the camera"
        raise FaceTrackError(video, "pictures", "a face", got, way_out)
    times_s = np.array([sighting.time_s for sighting in sightings])
    if once:
        found = np.array([sighting.region is not None for sighting in sightings])
        return FaceTrack(times_s=times_s, points=np.stack(first), found=found, size_px=size_px)
    regions = _smoothed(sightings, times_s) if settings.smooth else [s.region for s in sightings]
    points, found = _read(video, mesh, regions, kept, settings.crops, quiet=quiet)
    return FaceTrack(times_s=times_s, points=points, found=found, size_px=size_px)


def upright_pictures(video: Path) -> Iterator[tuple[U8, float]]:
    """Yields a video's pictures (H, W, 3) RGB as a player shows them, and their times in s.

    They are turned by quarters as the container says, and widened or narrowed where pixels are not square;
    more than 8 bits are rounded. A picture whose time is not later than the one before is left out.

    Raises:
        MediaError: the video is absent, broken or has no pictures.
        FaceTrackError: its pictures have no times, or change in size.
    """
    _, aspect = _described(video)
    before_s, size = -np.inf, None
    for frame in video_frames(video):
        time_s = frame.time
        if time_s is None:
            raise FaceTrackError(video, "pictures", "a time for each", "none", "convert it to MP4 first")
        if time_s <= before_s:
            continue
        before_s = time_s
        picture = _upright(video, frame, aspect)
        if size not in (None, picture.shape):
            expected = f"pictures of one size ({size[1]} x {size[0]})"
            got = f"{picture.shape[1]} x {picture.shape[0]} at {time_s:.2f} s"
            raise FaceTrackError(video, "pictures", expected, got, "cut the video there")
        size = picture.shape
        yield picture, time_s


def _upright(video: Path, frame: av.VideoFrame, aspect: float) -> U8:
    picture = to_picture(video, frame, "rgb24")
    if aspect != 1:
        width = max(round(picture.shape[1] * aspect), 1)
        picture = cv2.resize(picture, (width, picture.shape[0])).astype(np.uint8, copy=False)
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _described(video: Path) -> tuple[int | None, float]:
    """Returns how many pictures there are, if the container says so, and a pixel's width over its height."""
    try:
        with open_recording(video) as container:
            stream = container.streams.video[0]
            pictures = stream.frames
            if not pictures and container.duration and stream.average_rate:
                pictures = round(container.duration / av.time_base * float(stream.average_rate))
            next(container.decode(stream), None)  # some codecs say it in the pictures
            return pictures or None, float(stream.sample_aspect_ratio or 1)
    except (av.FFmpegError, ValueError, OSError, IndexError):  # said where the pictures are read
        return None, 1.0


class _Follower:
    """Finds the face in one picture after another.

    Who was beside the face when it left does not take its place for `_PATIENCE_S`.
    """

    def __init__(self, mesh: FaceMesh) -> None:
        self._mesh = mesh
        self._detector = FaceDetector()
        self._region: Region | None = None  # where the face is, or was last
        self._seen_s = -np.inf
        self._picture: U8 | None = None  # the last one with it; None: it is lost
        self._bystanders: list[Region] = []
        self._next_search_s = -np.inf  # for small faces

    def look(self, picture: U8, time_s: float) -> tuple[_Sighting, F32]:
        """Returns where the face is, if anywhere, and its points (478, 3), then all 0."""
        points = None
        if self._picture is not None and self._region is not None:
            points = self._points(picture, self._region)
            if points is None:
                regions = map(_region, self._detector.detect(self._picture))
                self._bystanders = [region for region in regions if _jump(self._region, region) > _MAX_RETURN]
        elif time_s - self._seen_s > _PATIENCE_S:
            self._bystanders = []
        anew = points is None
        if points is None:
            points = self._search(picture, time_s)
        if points is None:
            self._picture = None
            return _Sighting(time_s=time_s, region=None, anew=False), np.zeros((POINTS, 3), np.float32)
        self._region, self._seen_s, self._picture = region_of_points(points), time_s, picture
        return _Sighting(time_s=time_s, region=self._region, anew=anew), points

    def _points(self, picture: U8, region: Region) -> F32 | None:
        points, face = self._mesh([crop(picture, region)])
        return points[0] if face[0] >= MIN_FACE else None

    def _search(self, picture: U8, time_s: float) -> F32 | None:
        """Returns the points of the largest and most central face that is no bystander."""
        size = np.array(picture.shape[1::-1])

        def weight(face: Face) -> float:
            return face.side_px * (1 - float(np.linalg.norm(face.centre / size - 0.5)))

        small = time_s >= self._next_search_s
        for faces in self._detector.search(picture, small=small):
            for face in sorted(faces, key=weight, reverse=True):
                region = _region(face)
                if any(_jump(bystander, region) <= _MAX_RETURN for bystander in self._bystanders):
                    continue
                points = self._points(picture, region)
                if points is not None:  # the box is a rough region
                    points = self._points(picture, region_of_points(points))
                if points is not None:
                    return points
        if small:
            self._next_search_s = time_s + _SEARCH_S
        return None


def _region(face: Face) -> Region:
    return region_of_box(face.box, face.keypoints[:2])


def _jump(before: Region, after: Region) -> float:
    """Returns how far a region moved or grew, as a share of its side."""
    shift = np.hypot(after.x_px - before.x_px, after.y_px - before.y_px)
    return float(max(shift, abs(after.side_px - before.side_px))) / before.side_px


def _smoothed(sightings: list[_Sighting], times_s: F64) -> list[Region | None]:
    """Returns the regions smoothed by a Gaussian over time, from one gap, cut or detection to the next."""
    step_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else _SMOOTHING_S
    width = _SMOOTHING_S / step_s
    reach = min(int(np.ceil(3 * width)), _MAX_REACH)
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / width))
    kernel /= kernel.sum()
    smoothed: list[Region | None] = [None] * len(sightings)
    for start, run in _runs(sightings):
        numbers = np.array([(r.x_px, r.y_px, np.log(r.side_px), r.angle_rad) for r in run])  # (n, 4)
        numbers[:, 3] = np.unwrap(numbers[:, 3])
        padded = np.pad(numbers, ((reach, reach), (0, 0)), mode="edge")
        columns = [np.convolve(column, kernel, mode="valid") for column in padded.T]
        for offset, (x, y, side, angle) in enumerate(zip(*columns, strict=True)):
            smoothed[start + offset] = Region(
                x_px=float(x), y_px=float(y), side_px=float(np.exp(side)), angle_rad=float(angle)
            )
    return smoothed


def _runs(sightings: list[_Sighting]) -> Iterator[tuple[int, list[Region]]]:
    """Yields the start and the regions of each stretch in which one face is followed."""
    run: list[Region] = []
    for number, sighting in enumerate(sightings):
        region = sighting.region
        if run and (region is None or sighting.anew or _jump(run[-1], region) > _MAX_JUMP):
            yield number - len(run), run
            run = []
        if region is not None:
            run.append(region)
    if run:
        yield len(sightings) - len(run), run


def _read(
    video: Path,
    mesh: FaceMesh,
    regions: list[Region | None],
    kept: I64,
    crops: int,
    *,
    quiet: bool,
) -> tuple[F32, BOOL]:
    """Returns the points (T, K, 3) and whether they were found (T,), each the mean over its crops."""
    points = np.zeros((len(regions), len(kept), 3), np.float32)
    found = np.zeros(len(regions), bool)
    waiting: list[tuple[int, list[Crop]]] = []

    def read() -> None:
        if not waiting:
            return
        numbers = [number for number, _ in waiting]
        every, face = mesh([piece for _, pieces in waiting for piece in pieces])
        found[numbers] = face.reshape(-1, crops).mean(1) >= MIN_FACE
        points[numbers] = every[:, kept].reshape(-1, crops, len(kept), 3).mean(1) * found[numbers, None, None]
        waiting.clear()

    pictures = zip(upright_pictures(video), regions, strict=True)
    bar = tqdm(pictures, "points", len(regions), unit="picture", mininterval=1.0, disable=quiet)
    for number, ((picture, _), region) in enumerate(bar):
        if region is None:
            continue
        waiting.append((number, [_variant(picture, region, *variant) for variant in _VARIANTS[:crops]]))
        if len(waiting) * crops >= _BATCH:
            read()
    read()
    return points, found


def _variant(
    picture: U8, region: Region, right: float, down: float, scale: float, turn_rad: float, mirrored: bool
) -> Crop:
    moved = region.moved(right=right, down=down, scale=scale, turn_rad=turn_rad)
    return crop(picture, moved, mirrored=mirrored)
