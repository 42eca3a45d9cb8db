"""Agreement of a student's motion with its teacher's on held-out speech."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import F32
from models.speaker_settings import MotionSettings
from models.time_base import FRAME_MS, FRAME_SAMPLES
from training.audio2motion import MM_PER_UNIT
from training.measures import aperture_mm, pearson, width_mm

from ..onnx.graphs import open_graph
from .teacher_corpus import Recording

MOUTH = slice(48, 68)
MAX_LAG_FRAMES = 10


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Figures over all frames of the held-out recordings."""

    frames: int
    aperture_r: float  # Pearson's, of the inner lips' aperture
    width_r: float  # of the distance of the mouth's corners
    open_share: float  # the aperture's spread over the teacher's: 1 where motion is as large
    rmse_mm: float  # of the 68 points' distances
    mouth_rmse_mm: float  # of the 20 mouth points'
    best_lag_frames: int  # at which the apertures correlate best; above 0: the student is late
    lookahead_ms: int  # later sound that a frame depends on
    ms_per_frame: float  # median of motion.onnx on one thread of this machine

    def figures(self) -> dict[str, float]:
        """Returns the figures as a bundle keeps them."""
        return {f"student.{name}": float(value) for name, value in dataclasses.asdict(self).items()}


def measure_agreement(
    motion_onnx: bytes, motion: MotionSettings, recordings: Sequence[Recording], mean_face: F32
) -> Agreement:
    """Returns the graph's agreement with the teacher's landmarks, run window by window as in a stream."""
    students, teachers, taken_ms = [], [], []
    for recording in tqdm(recordings, desc="agreement", unit="recording"):
        landmarks, ms = stream(motion_onnx, motion, recording.pcm())
        students.append(landmarks)
        teachers.append(recording.landmarks())
        taken_ms.append(ms)
    return compare(
        students,
        teachers,
        mean_face,
        lookahead_ms=FRAME_MS * motion.lookahead_frames,
        ms_per_frame=float(np.median(np.concatenate(taken_ms))),
    )


def stream(motion_onnx: bytes, motion: MotionSettings, pcm: F32) -> tuple[F32, F32]:
    """Returns landmarks (T, 204) of samples (640 T,) by the live path's windows, and each call's ms (T,).

    Padded with silence before the sound and, as at the end of a streamed recording, by reflection after it.
    """
    ahead = FRAME_SAMPLES * motion.lookahead_frames
    before = motion.window_samples - FRAME_SAMPLES - ahead
    padded = np.pad(np.pad(pcm, (0, ahead), mode="symmetric"), (before, 0))
    windows = np.lib.stride_tricks.sliding_window_view(padded, motion.window_samples)[::FRAME_SAMPLES]
    session = open_graph(motion_onnx)
    rows, taken_ms = [], []
    for window in windows:
        start_s = time.perf_counter()
        rows.append(session.run(["landmarks"], {"pcm": window[None]})[0][0])
        taken_ms.append(1000 * (time.perf_counter() - start_s))
    return np.stack(rows), np.array(taken_ms, np.float32)


def compare(
    students: Sequence[F32],
    teachers: Sequence[F32],
    mean_face: F32,
    *,
    lookahead_ms: int,
    ms_per_frame: float,
) -> Agreement:
    """Returns the figures of motions (T, 204), a student's and its teacher's of each recording."""
    student, teacher = np.concatenate(students), np.concatenate(teachers)
    distance_mm = MM_PER_UNIT * np.linalg.norm((student - teacher).reshape(-1, 68, 3), axis=2)  # (T, 68)
    student_mm, teacher_mm = aperture_mm(student, mean_face), aperture_mm(teacher, mean_face)
    return Agreement(
        frames=len(student),
        aperture_r=pearson(student_mm, teacher_mm),
        width_r=pearson(width_mm(student, mean_face), width_mm(teacher, mean_face)),
        open_share=float(student_mm.std() / max(float(teacher_mm.std()), 1e-6)),
        rmse_mm=_root_mean_square(distance_mm),
        mouth_rmse_mm=_root_mean_square(distance_mm[:, MOUTH]),
        best_lag_frames=_best_lag_frames(
            [aperture_mm(motion, mean_face) for motion in students],
            [aperture_mm(motion, mean_face) for motion in teachers],
        ),
        lookahead_ms=lookahead_ms,
        ms_per_frame=ms_per_frame,
    )


def _root_mean_square(values: F32) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _best_lag_frames(students: Sequence[F32], teachers: Sequence[F32]) -> int:
    """Returns by how many frames the student's curves (T,) are late; the smallest of equally good lags."""

    def agreement(lag: int) -> float:
        late, early = max(lag, 0), max(-lag, 0)
        moved = np.concatenate([curve[late : len(curve) - early] for curve in students])
        still = np.concatenate([curve[early : len(curve) - late] for curve in teachers])
        return pearson(moved, still)

    lags = sorted(range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1), key=abs)
    return max(lags, key=agreement)
