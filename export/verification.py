"""Verification of a finished bundle by itself: every check that can be rerun without its sources."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.torch_reference import render_scene
from models.bundle_files import RECORDED_CASES_FILE, BundleError
from models.speaker import Speaker, load_speaker
from models.time_base import SAMPLE_RATE_HZ

from . import recorded_cases
from .bundle.head import MIN_PSNR_DB, psnr_db
from .bundle.pose_loop import seam_measure
from .onnx.graphs import MAX_ROUNDING, open_graph
from .plates import MIN_PLATES_PSNR_DB, PSNR, worst_psnr_db
from .recorded_cases import replay
from .students.offline_motion import OfflineMotion

STORED_LIMITS: dict[str, tuple[float | None, float | None]] = {
    "hubert_against_dataset": (None, 0.1),
    "features_largest_error": (None, 1e-3),
    "features_float16_change": (None, 2e-2),
    "motion_largest_error": (None, 1e-4),
    "condition_largest_error": (None, 1e-5),
    "syncnet_largest_error": (None, 1e-4),
    "motion_float16_change": (None, MAX_ROUNDING),
    "syncnet_float16_change": (None, MAX_ROUNDING),
    "float16_psnr_db": (MIN_PSNR_DB, None),
    "raymarcher_psnr_db": (MIN_PSNR_DB, None),
    "loop_seam_step": (None, 1.0),
    "loop_seam_acceleration": (None, 1.0),
    PSNR: (MIN_PLATES_PSNR_DB, None),
    **recorded_cases.LIMITS,
}
"""Lowest and highest value of each figure that the export stored."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: what was found, its limit, and whether it holds."""

    name: str
    found: str
    holds: bool
    limit: str = ""


def verify_bundle(path: Path, *, size_px: int = 192, poses: int = 2) -> list[Check]:
    """Returns every check in order, after those of loading the bundle.

    Raises:
        BundleError: the bundle cannot be read, or a network does not take or give what speaker.json says.
    """
    speaker = load_speaker(path)
    checks = [Check(name="sizes, hashes, shapes, ranges", found="as speaker.json says", holds=True)]
    checks += stored_checks(speaker)
    cases = recorded_cases.read_cases(speaker)
    if cases is not None:
        if speaker.features_onnx is None:  # only an imported speaker has recorded cases
            file = str(path / RECORDED_CASES_FILE)
            raise BundleError(file, "file", "none, as motion.features is null", "one")
        parts = recorded_cases.ExportedParts(
            features_onnx=speaker.features_onnx,
            motion_onnx=speaker.motion_onnx,
            condition_onnx=speaker.condition_onnx,
            scene=speaker.scene,
        )
        checks += [_check(f"{name}, here", name, value) for name, value in replay(cases, parts).items()]
    landmarks = _in_silence(speaker)
    normalized = (landmarks - speaker.motion.landmark_mean) / speaker.motion.landmark_std
    largest = float(np.abs(normalized).max())
    # Silence must give a face within the speaker's range.
    checks.append(Check(name="face in silence, deviations", found=f"{largest:.3g}", holds=bool(largest < 10)))
    frame = np.clip(normalized, -speaker.motion.clamp_std, speaker.motion.clamp_std).reshape(1, 204)
    window = np.repeat(frame.astype(np.float32), speaker.condition.window_frames, axis=0)
    condition = _run(speaker.condition_onnx, "window", window, ("condition", (speaker.condition.size,)))
    seam = seam_measure(speaker.poses, speaker.poses, percentile=100.0)
    checks.append(
        Check(
            name="step over the loop's seam, of the largest",
            found=f"{seam.step:.3g}, its change {seam.acceleration:.3g}",
            holds=len(speaker.poses) < 4 or (seam.step <= 1.001 and seam.acceleration <= 1.01),
        )
    )
    closeness_db = _raymarcher_psnr_db(speaker, condition, size_px, poses)
    checks.append(
        Check(
            name=f"CPU raymarcher against torch, {size_px} px",
            found=f"{closeness_db:.1f} dB",
            holds=closeness_db >= MIN_PSNR_DB,
        )
    )
    if speaker.plates is not None:
        with closing(CpuRaymarcher(speaker.scene)) as raymarcher:
            worst_db = worst_psnr_db(
                raymarcher,
                speaker.poses,
                speaker.plates.pictures(),
                speaker.plates.masks(),
                condition[None],
                np.zeros(1, bool),
                frames=poses,
            )
        checks.append(_check("plates against pictures drawn whole, here", PSNR, worst_db))
    return checks


def stored_checks(speaker: Speaker) -> list[Check]:
    """Returns what was measured when the speaker was exported, each with its limit."""
    return [_check(f"{name}, at export", name, value) for name, value in speaker.verification.items()]


def _check(title: str, name: str, value: float) -> Check:
    low, high = STORED_LIMITS.get(name, (None, None))
    limit = "" if low is None else f">= {low:g}"
    limit = limit if high is None else f"<= {high:g}"
    holds = (low is None or value >= low) and (high is None or value <= high)
    return Check(name=title, found=f"{value:.4g}", holds=holds, limit=limit)


def _in_silence(speaker: Speaker) -> F32:
    """Returns the landmarks (68, 3) that silence gives."""
    if speaker.motion.features is None:
        silence = np.zeros((1, speaker.motion.window_samples), np.float32)
        landmarks = _run(speaker.motion_onnx, "pcm", silence, ("landmarks", (1, 204))).reshape(1, 68, 3)
    else:
        two_seconds = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
        landmarks = OfflineMotion(speaker).landmarks(two_seconds, temperature=0.0)
    face: F32 = landmarks[len(landmarks) // 2]
    return face


def _run(file: Path, source: str, value: F32, target: tuple[str, tuple[int, ...]]) -> F32:
    name, shape = target
    try:
        result: F32 = open_graph(file, silent=True).run([name], {source: value})[0]
    except Exception as error:  # noqa: BLE001 -- onnxruntime's errors share no narrower class
        reason = " ".join(str(error).split())[:160]
        expected = f"a graph from {source} {value.shape} to {name} {shape}"
        raise BundleError(str(file), "graph", expected, reason) from None
    if result.shape != shape or not np.isfinite(result).all():
        raise BundleError(str(file), name, f"finite numbers of shape {shape}", f"shape {result.shape}")
    return result


def _raymarcher_psnr_db(speaker: Speaker, condition: F32, size_px: int, poses: int) -> float:
    squares = []
    with closing(CpuRaymarcher(speaker.scene)) as raymarcher:
        for frame in np.linspace(0, len(speaker.poses) - 1, poses).astype(int):
            c2w = speaker.poses[frame]
            truth = render_scene(speaker.scene, c2w=c2w, condition=condition, size_px=size_px).numpy()
            drawn = raymarcher.render(c2w=c2w, condition=condition, size_px=size_px)
            squares.append(np.mean((drawn / np.float32(255) - truth) ** 2))
    return psnr_db(squares)
