"""Idle motion of a speaker: a seamless loop of head poses, and the mean blink.

Both are taken from the speaker's own video. Poses are handled as the head's motion before a fixed
camera: rotation of the head and translation of its origin, blended by slerp and lerp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cuda_kernels.arrays import F32, F64
from cuda_kernels.errors import InputError
from models.time_base import FRAME_RATE_HZ

BROWS = slice(17, 27)
EYES = slice(36, 48)
UPPER_AND_LOWER_LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))
CLOSED_SHARE = 0.55  # of their usual distance: lids less apart than that are those of a blink
BLINK_BEFORE_FRAMES, BLINK_AFTER_FRAMES = 5, 9  # of the closest lids; opening takes longer than closing
LEVER_DM = 1.0  # how far from its origin a turn of the head counts: where the face is


class PerformanceError(InputError):
    """Poses or landmarks from which no loop or no blink can be made."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Lengths and limits of the loop."""

    shortest_s: float = 24.0
    longest_s: float = 60.0
    blends_s: tuple[float, ...] = (1.0, 0.6, 1.6, 2.4)  # over which the end fades; the first that works
    calm_start_s: float = 8.0  # the loop begins where this long a stretch is the calmest
    percentile: float = 95.0  # steps at the seam stay below this percentile of the ordinary steps

    def __post_init__(self) -> None:
        """Checks the order of the lengths."""
        fits = all(0 < blend_s < self.shortest_s for blend_s in self.blends_s)
        if not (fits and self.blends_s and self.shortest_s <= self.longest_s):
            raise InputError(
                f"LoopSettings: expected 0 < blends_s < shortest_s <= longest_s, got {self.blends_s}, "
                f"{self.shortest_s}, {self.longest_s}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PoseLoop:
    """A closed path of poses: frame P - 1 is followed by frame 0 as any frame by the next."""

    poses: F32  # (P, 4, 4) c2w
    first_frame: int  # of the stretch in the video
    seam_frame: int  # where in `poses` the faded part begins
    blend_frames: int
    seam_step: float  # largest step in the faded part over the ordinary steps' percentile; <= 1
    seam_acceleration: float  # the same of the change of steps


@dataclass(frozen=True, kw_only=True)
class SeamMeasure:
    """The largest step and change of step, each over what is ordinary in the path it was taken from."""

    step: float
    acceleration: float


def pose_loop(c2w: F32, settings: LoopSettings | None = None) -> PoseLoop:
    """Returns the calmest loop of the allowed length whose seam is no rougher than the ordinary motion.

    Args:
        c2w: (T, 4, 4) the camera path of the video.
        settings: lengths and limits.

    Raises:
        PerformanceError: too few poses, or no stretch whose ends can be joined so smoothly.
    """
    settings = settings or LoopSettings()
    least = round((settings.shortest_s + min(settings.blends_s)) * FRAME_RATE_HZ) + 2
    if len(c2w) < least:
        raise PerformanceError(f"c2w: expected at least {least} poses, got {len(c2w)}; allow a shorter loop")
    w2c = np.linalg.inv(np.asarray(c2w, np.float64))  # (T, 4, 4) the head before the camera
    for blend_s in settings.blends_s:
        found = _calmest_join(w2c, settings, round(blend_s * FRAME_RATE_HZ))
        if found is not None:
            break
    else:
        raise PerformanceError(
            f"c2w: expected a stretch of {settings.shortest_s:g} to {settings.longest_s:g} s whose ends can "
            f"be joined within the {settings.percentile:g}th percentile of the ordinary steps, found none; "
            "allow other lengths or a longer fade"
        )
    loop = _faded(w2c[found.start : found.start + found.length], w2c[found.start - found.blend : found.start])
    shift = _calmest(_coordinates(loop), min(found.length, round(settings.calm_start_s * FRAME_RATE_HZ)))
    return PoseLoop(
        poses=np.roll(np.linalg.inv(loop), -shift, axis=0).astype(np.float32),
        first_frame=found.start,
        seam_frame=(found.length - found.blend - shift) % found.length,
        blend_frames=found.blend,
        seam_step=found.measure.step,
        seam_acceleration=found.measure.acceleration,
    )


@dataclass(frozen=True, kw_only=True)
class _Join:
    """A stretch whose last `blend` frames fade into those before its start."""

    start: int
    length: int
    blend: int
    measure: SeamMeasure


def _calmest_join(w2c: F64, settings: LoopSettings, blend: int) -> _Join | None:
    """Returns the smooth join whose stretch stays closest to the middle pose, or None if none is smooth."""
    path = _coordinates(w2c)  # (T, 6)
    ordinary = _ordinary(path, settings.percentile)
    calm = np.concatenate([[0.0], np.cumsum(np.sum((path - np.median(path, axis=0)) ** 2, axis=1))])
    longest = min(round(settings.longest_s * FRAME_RATE_HZ), len(w2c) - blend - 3)
    best: tuple[float, _Join] | None = None
    for start, length in _joins(path, round(settings.shortest_s * FRAME_RATE_HZ), longest, blend):
        restlessness = float(calm[start + length] - calm[start]) / length
        if best is not None and restlessness >= best[0]:
            continue
        # Two steps before and after the faded part belong to the seam too.
        tail = w2c[start + length - blend - 3 : start + length]
        around = np.concatenate([_faded(tail, w2c[start - blend : start]), w2c[start : start + 3]])
        measure = _seam(_coordinates(around), ordinary)
        if measure.step <= 1 and measure.acceleration <= 1:
            best = restlessness, _Join(start=start, length=length, blend=blend, measure=measure)
    return None if best is None else best[1]


def seam_measure(loop: F32, source: F32, *, percentile: float = 95.0) -> SeamMeasure:
    """Returns the largest step and acceleration at the seam of `loop` over the source's `percentile` of each.

    Args:
        loop: (P, 4, 4) c2w.
        source: (T, 4, 4) c2w, the path whose percentiles count as ordinary.
        percentile: of the source's steps.
    """
    path = _coordinates(np.linalg.inv(np.asarray(source, np.float64)))
    around = np.concatenate([loop[-2:], loop[:2]])
    ends = _coordinates(np.linalg.inv(np.asarray(around, np.float64)))
    return _seam(ends, _ordinary(path, percentile))


def _coordinates(w2c: F64) -> F64:
    """Returns (T, 6): rotation vector from the first pose times the lever, and translation, in decimetres."""
    turn = rotation_vectors(w2c[:, :3, :3] @ w2c[0, :3, :3].T)
    return np.concatenate([turn * LEVER_DM, w2c[:, :3, 3]], axis=1)


def rotation_vectors(rotations: F64) -> F64:
    """Returns the axis times the angle (T, 3), radians below pi, of (T, 3, 3) rotations."""
    sine = 0.5 * np.stack(
        [
            rotations[:, 2, 1] - rotations[:, 1, 2],
            rotations[:, 0, 2] - rotations[:, 2, 0],
            rotations[:, 1, 0] - rotations[:, 0, 1],
        ],
        axis=1,
    )  # (T, 3) axis * sin(angle)
    size = np.linalg.norm(sine, axis=1)
    cosine = 0.5 * (np.trace(rotations, axis1=1, axis2=2) - 1)
    angle = np.arctan2(size, cosine)
    factor = np.where(size > 1e-9, angle / np.maximum(size, 1e-9), 1.0)
    vectors: F64 = sine * factor[:, None]
    return vectors


def rotations_of(vectors: F64) -> F64:
    """Returns the rotations (T, 3, 3) of (T, 3) rotation vectors (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1)
    axis = vectors / np.maximum(angle, 1e-12)[:, None]
    cross = np.zeros((len(vectors), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    cross -= cross.transpose(0, 2, 1)
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    result: F64 = np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)
    return result


def _faded(stretch: F64, into: F64) -> F64:
    """Returns (T, 4, 4): the stretch, its last poses faded into the (B, 4, 4) that lead to its start."""
    blend = len(into)
    share = (np.arange(blend) + 1) / (blend + 1)
    share = share * share * share * (share * (6 * share - 15) + 10)  # smootherstep
    faded = stretch.copy()
    tail = faded[-blend:]
    turn = rotation_vectors(into[:, :3, :3] @ tail[:, :3, :3].transpose(0, 2, 1))
    tail[:, :3, :3] = rotations_of(share[:, None] * turn) @ tail[:, :3, :3]
    tail[:, :3, 3] += share[:, None] * (into[:, :3, 3] - tail[:, :3, 3])
    return faded


def _joins(path: F64, shortest: int, longest: int, blend: int, count: int = 8000) -> list[tuple[int, int]]:
    """Returns up to `count` (start, length) whose faded parts lie closest together, closest first.

    Close means that the `blend` frames before the start and those before the end differ little on average;
    speed is in it, since two stretches that stay close move alike.
    """
    found: list[tuple[float, int, int]] = []
    for length in range(shortest, longest + 1):
        distance = np.sum((path[length:] - path[:-length]) ** 2, axis=1)  # (T - length,)
        sums = np.concatenate([[0.0], np.cumsum(distance)])
        means = (sums[blend:] - sums[:-blend]) / blend  # of frames start - blend .. start - 1
        best = np.argsort(means)[:32]
        found += [(float(means[i]), int(i) + blend, length) for i in best]
    found.sort()
    return [(start, length) for _, start, length in found[:count]]


def _ordinary(path: F64, percentile: float) -> tuple[float, float]:
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    changes = np.linalg.norm(np.diff(path, 2, axis=0), axis=1)
    return float(np.percentile(steps, percentile)), float(np.percentile(changes, percentile))


def _seam(path: F64, ordinary: tuple[float, float]) -> SeamMeasure:
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1).max()
    changes = np.linalg.norm(np.diff(path, 2, axis=0), axis=1).max()
    # A head that never moves has no ordinary step; then any step is too much, and none is fine.
    return SeamMeasure(step=_ratio(steps, ordinary[0]), acceleration=_ratio(changes, ordinary[1]))


def _ratio(value: float, ordinary: float) -> float:
    return float(value / max(ordinary, 1e-9))


def _calmest(loop: F64, frames: int) -> int:
    """Returns the frame from which `frames` frames stay closest to the loop's middle pose."""
    distance = np.sum((loop - np.median(loop, axis=0)) ** 2, axis=1)
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([distance, distance]))])
    return int(np.argmin(sums[frames : frames + len(loop)] - sums[: len(loop)]))


def lid_apertures(landmarks: F32) -> F64:
    """Returns (T,) the mean gap between upper and lower lids of (T, 68, 3) landmarks, in their unit."""
    gaps = [
        np.linalg.norm(landmarks[:, above].astype(np.float64) - landmarks[:, below], axis=1)
        for above, below in UPPER_AND_LOWER_LIDS
    ]
    mean: F64 = np.mean(gaps, axis=0)
    return mean


def blink_peaks(landmarks: F32) -> list[int]:
    """Returns the frames at which the lids are closest, one for each blink in (T, 68, 3) landmarks."""
    aperture = lid_apertures(landmarks)
    closed = aperture < CLOSED_SHARE * np.median(aperture)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], closed, [False]]).astype(np.int8)))
    return [int(a + np.argmin(aperture[a:b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def mean_blink(landmarks: F32) -> F32:
    """Returns (F, 68, 3): what one blink adds to the landmarks, in idexp's unit; 0 at both ends.

    The blinks are aligned where the lids are closest and averaged, each relative to the open eye just
    around it. Only the eyes move, and the brows if they move with them.

    Args:
        landmarks: (T, 68, 3) head space, decimetres.

    Raises:
        PerformanceError: no blink stands alone long enough.
    """
    peaks = np.array(blink_peaks(landmarks))
    gathered = []
    for peak in peaks:
        first, last = int(peak) - BLINK_BEFORE_FRAMES, int(peak) + BLINK_AFTER_FRAMES
        alone = np.abs(peaks[peaks != peak] - peak).min(initial=1000) > last - first
        if not alone or first < 0 or last >= len(landmarks):
            continue
        stretch = landmarks[first : last + 1].astype(np.float64)
        ramp = np.linspace(0, 1, len(stretch))[:, None, None]
        gathered.append(10 * (stretch - (1 - ramp) * stretch[0] - ramp * stretch[-1]))
    if not gathered:
        raise PerformanceError(
            f"landmarks: expected a blink with {BLINK_BEFORE_FRAMES} frames before and {BLINK_AFTER_FRAMES} "
            f"after it, found none that stands alone among {len(peaks)}; is the video long enough?"
        )
    blinks = np.stack(gathered)  # (N, F, 68, 3)
    mean = blinks.mean(axis=0)
    template = np.zeros_like(mean)
    template[:, EYES] = mean[:, EYES]
    brows = mean[:, BROWS]
    error = blinks[:, :, BROWS].std(axis=0) / np.sqrt(len(blinks))
    deepest = np.abs(mean[:, EYES]).max()
    if np.abs(brows).max() > max(0.05 * deepest, 4 * float(error.max())):
        template[:, BROWS] = brows
    template[[0, -1]] = 0.0
    narrowed: F32 = template.astype(np.float32)
    return narrowed
