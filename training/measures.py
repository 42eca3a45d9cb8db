"""Metrics of speech-driven motion: correlation, lip closure, stillness in silence, lip sync. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32
from models.time_base import FRAME_RATE_HZ
from preparation.sounds import Sound

SYNC_WINDOW_FRAMES = 2 * FRAME_RATE_HZ
SYNC_LARGEST_OFFSET = 15  # frames, to both sides
SYNC_HOP_FRAMES = FRAME_RATE_HZ
MAX_LAG_FRAMES = 6


def aperture_mm(landmarks: F32, mean_face: F32) -> F32:
    """Returns the inner-lip aperture in mm (T,): point 62 of the upper lip above point 66 of the lower.

    It is signed: where lips are pressed together, the upper point lies below the lower.

    Args:
        landmarks: (T, 204), ten times the offset in dm.
        mean_face: (204,), dm.
    """
    points = _positions_mm(landmarks, mean_face)
    aperture: F32 = points[:, 62, 1] - points[:, 66, 1]
    return aperture


def width_mm(landmarks: F32, mean_face: F32) -> F32:
    """Returns the mouth width in mm (T,): the distance of the corners, points 48 and 54."""
    points = _positions_mm(landmarks, mean_face)
    width: F32 = np.linalg.norm(points[:, 48] - points[:, 54], axis=-1)
    return width


def _positions_mm(landmarks: F32, mean_face: F32) -> F32:
    """Returns head-space positions (T, 68, 3) in mm; one unit of landmarks is a tenth of a decimetre."""
    positions: F32 = 10 * (10 * mean_face.reshape(204) + landmarks).reshape(-1, 68, 3)
    return positions


def pearson(x: F32, y: F32) -> float:
    """Returns Pearson's correlation of two series, 0 where one of them is constant."""
    x, y = x - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / norm) if norm > 0 else 0.0


def best_lag_ms(pairs: Sequence[tuple[F32, F32]]) -> float:
    """Returns by how much the first series of each pair (T,) are later than the second, at 25 Hz, in ms.

    It is the lag, up to `MAX_LAG_FRAMES` to both sides, with the highest correlation over all pairs, refined
    by the parabola through it and its neighbours. NaN where every pair is too short.
    """
    reach = MAX_LAG_FRAMES
    pairs = [pair for pair in pairs if len(pair[0]) > 2 * reach + 1]
    if not pairs:
        return float("nan")
    true = np.concatenate([second[reach:-reach] for _, second in pairs])
    found = np.array(
        [
            pearson(np.concatenate([x[reach + lag : len(x) - reach + lag] for x, _ in pairs]), true)
            for lag in range(-reach, reach + 1)
        ]
    )
    best = int(np.argmax(found))
    offset = 0.0
    if 0 < best < 2 * reach:
        before, here, after = found[best - 1 : best + 2]
        bend = before - 2 * here + after
        offset = 0.5 * float(before - after) / float(bend) if bend < 0 else 0.0
    return 1000 / FRAME_RATE_HZ * (best - reach + offset)


def area_under_curve(scores: F32, positive: npt.NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve, ties counting half; NaN without both classes."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # mean rank of ties, from 1
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True, kw_only=True)
class MotionTrack:
    """One clip's motion and its ground truth, each relative to its own resting face."""

    predicted_aperture_mm: F32  # (T,)
    predicted_width_mm: F32  # (T,)
    true_aperture_mm: F32  # (T,)
    true_width_mm: F32  # (T,)
    sounds: npt.NDArray[np.uint8]  # (T,) `Sound` of each frame


def compare_motion(
    predicted: F32,
    true: F32,
    *,
    sounds: npt.NDArray[np.uint8],
    mean_face: F32,
    predicted_rest: F32,
    true_rest: F32,
) -> MotionTrack:
    """Returns the mouths of two motions (T, 204), each less its own resting face's (204,)."""
    return MotionTrack(
        predicted_aperture_mm=aperture_mm(predicted, mean_face) - aperture_mm(predicted_rest, mean_face),
        predicted_width_mm=width_mm(predicted, mean_face) - width_mm(predicted_rest, mean_face),
        true_aperture_mm=aperture_mm(true, mean_face) - aperture_mm(true_rest, mean_face),
        true_width_mm=width_mm(true, mean_face) - width_mm(true_rest, mean_face),
        sounds=sounds,
    )


@dataclass(frozen=True, kw_only=True)
class MotionMeasures:
    """Metrics over all frames of all tracks."""

    frames: int
    aperture_r: float
    width_r: float
    aperture_lag_ms: float  # of the best correlation, positive where the predicted motion is late
    width_lag_ms: float
    closure_auc: float  # bilabial frames against other speech, by the predicted aperture
    closure_auc_of_truth: float  # the same by the true aperture: the ceiling
    aperture_error_mm: float  # mean absolute
    bilabial_gap_mm: float  # median predicted aperture above rest in b, p, m
    bilabial_gap_true_mm: float
    open_share: float  # std of the predicted aperture over that of the true one
    silence_gap_mm: float  # 95th percentile of the predicted aperture above rest where nobody speaks
    silence_closed: float  # share of such frames within 1.5 mm of rest


def measure_motion(tracks: Sequence[MotionTrack]) -> MotionMeasures:
    """Returns metrics pooled over the tracks' frames."""

    def pooled(name: str) -> npt.NDArray[np.float32]:
        return np.concatenate([getattr(track, name) for track in tracks])

    predicted, true, sounds = pooled("predicted_aperture_mm"), pooled("true_aperture_mm"), pooled("sounds")
    bilabial, rest = sounds == Sound.BILABIAL, sounds == Sound.REST
    spoken = bilabial | (sounds == Sound.OTHER)
    nothing = np.full(1, np.nan, np.float32)
    return MotionMeasures(
        frames=len(predicted),
        aperture_r=pearson(predicted, true),
        width_r=pearson(pooled("predicted_width_mm"), pooled("true_width_mm")),
        aperture_lag_ms=best_lag_ms(
            [(track.predicted_aperture_mm, track.true_aperture_mm) for track in tracks]
        ),
        width_lag_ms=best_lag_ms([(track.predicted_width_mm, track.true_width_mm) for track in tracks]),
        closure_auc=area_under_curve(-predicted[spoken], bilabial[spoken]),
        closure_auc_of_truth=area_under_curve(-true[spoken], bilabial[spoken]),
        aperture_error_mm=float(np.abs(predicted - true).mean()),
        bilabial_gap_mm=float(np.median(predicted[bilabial] if bilabial.any() else nothing)),
        bilabial_gap_true_mm=float(np.median(true[bilabial] if bilabial.any() else nothing)),
        open_share=float(predicted.std() / max(float(true.std()), 1e-6)),
        silence_gap_mm=float(np.percentile(predicted[rest] if rest.any() else nothing, 95)),
        silence_closed=float((predicted[rest] < 1.5).mean()) if rest.any() else float("nan"),
    )


@dataclass(frozen=True, kw_only=True)
class SyncMeasures:
    """Audio-visual offset by SyncNet, over windows of 2 s."""

    windows: int
    true_wins: float  # share of windows whose true offset scores strictly highest
    near_wins: float  # share whose best offset is at most one frame off
    confidence: float  # mean cosine at the true offset less the mean over the others


def measure_sync(pairs: Sequence[tuple[F32, F32]]) -> SyncMeasures:
    """Returns sync metrics of clips, each (audio embeddings (N, E), mouth embeddings (N, E)).

    Row i embeds the five frames from frame i. Cosines are averaged over 2 s at offsets of -15 to 15 frames.
    """
    rows_needed = SYNC_WINDOW_FRAMES - 4  # windows of five frames within 2 s
    reach = SYNC_LARGEST_OFFSET
    best, confidence = [], []
    for audio, mouth in pairs:
        count = len(mouth)
        if count < rows_needed + 2 * reach:
            continue
        middle = slice(reach, count - reach)
        cosines = np.stack(
            [
                (mouth[middle] * audio[reach + d : count - reach + d]).sum(-1)
                for d in range(-reach, reach + 1)
            ],
            axis=1,
        )  # (N - 2 reach, offsets)
        for start in range(0, len(cosines) - rows_needed + 1, SYNC_HOP_FRAMES):
            mean = cosines[start : start + rows_needed].mean(axis=0)  # (offsets,)
            others = np.delete(mean, reach)
            wins = mean[reach] > others.max()
            best.append(0 if wins else int(np.argmax(mean)) - reach or (reach + 1))
            confidence.append(float(mean[reach] - others.mean()))
    found = np.array(best)
    if not len(found):
        return SyncMeasures(
            windows=0, true_wins=float("nan"), near_wins=float("nan"), confidence=float("nan")
        )
    return SyncMeasures(
        windows=len(found),
        true_wins=float((found == 0).mean()),
        near_wins=float((np.abs(found) <= 1).mean()),
        confidence=float(np.mean(confidence)),
    )
