"""Accuracy against look-ahead: `python -m benchmarks.lookahead --speaker BUNDLE --audio FILE [FILE ...]`.

For a speaker with a non-causal motion network on features: recordings are streamed with several look-aheads,
feature windows and motion windows, and the landmarks compared with offline inference
(`export.students.offline_motion`). A shorter look-ahead costs accuracy. Features are computed once for each
window length, so a run takes little more than those.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, F64
from models.speaker import Speaker, load_speaker
from models.speaker_folders import find_speaker
from models.speaker_settings import MotionSettings
from models.time_base import FRAME_MS, FRAME_RATE_HZ
from streaming.files.audio_file import AudioFile
from streaming.pipeline.engine_choice import EngineSettings
from streaming.pipeline.networks import SpeakerNetworks, open_networks
from streaming.pipeline.onnx_engine import Engine
from training.cli import missing_extra

from .json_file import write_json

LOOKAHEADS_MS = (80, 160, 320, 640, 1280)
FEATURE_WINDOWS_S = (1.28, 2.56, 5.12)
MOTION_WINDOWS_S = (2.56, 5.12)
MM_PER_UNIT = 10.0  # landmarks are ten times decimetres
MOUTH = slice(48, 68)
UPPER_LIP, LOWER_LIP = 62, 66  # inner, in the middle
TOLERATED_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting and its figures, over all frames of all recordings."""

    lookahead_ms: int  # that every frame has at least
    heard_s: float  # window of the feature network
    seen_s: float  # window of the motion network
    error_mm: float  # mean distance of the 20 mouth points from the offline ones
    error_p95_mm: float
    aperture_r: float  # Pearson's, of the inner lips' distance
    delay_ms: int  # sound that a picture waits for at most: what the bundle would declare
    ms_per_frame: float  # of both networks here


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of a run."""

    speaker: str
    device: str
    frames: int
    movement_mm: float  # mean distance of the offline mouth points from where they are on average
    rows: tuple[Row, ...]
    recommended: Row


def with_windows(
    motion: MotionSettings, *, lookahead_ms: int, heard_s: float, seen_s: float
) -> MotionSettings | None:
    """Returns the settings for a look-ahead and windows, None where the motion network's window is too short.

    Half of a feature window is kept, so that features are recomputed until centred in it.
    """
    of = motion.features
    assert of is not None  # `measure` refuses others
    heard_frames = max(round(heard_s * FRAME_RATE_HZ), of.hop_frames + 1)
    lookahead_frames = of.hop_frames - 1 + lookahead_ms // FRAME_MS
    seen_frames = round(seen_s * FRAME_RATE_HZ) // of.block_frames * of.block_frames
    if seen_frames < lookahead_frames + 1 + of.block_frames:
        return None
    features = dataclasses.replace(
        of, window_frames=heard_frames, kept_frames=max(heard_frames // 2, of.hop_frames)
    )
    return dataclasses.replace(
        motion,
        features=features,
        window_samples=features.window_samples,
        window_frames=seen_frames,
        lookahead_frames=lookahead_frames,
    )


class _Timed:
    """An engine that times its runs."""

    def __init__(self, engine: Engine) -> None:
        self.device = engine.device
        self._engine = engine
        self.took_ms: list[float] = []

    def run(self, inputs: Mapping[str, F32]) -> F32:
        start_s = time.perf_counter()
        output = self._engine.run(inputs)
        self.took_ms.append((time.perf_counter() - start_s) * 1000)
        return output


class _Memoised:
    """A feature network with memoised outputs: look-ahead and motion window do not change them."""

    def __init__(self, engine: Engine) -> None:
        self.device = engine.device
        self._engine = engine
        self._outputs: dict[bytes, F32] = {}

    def run(self, inputs: Mapping[str, F32]) -> F32:
        key = hashlib.blake2b(np.ascontiguousarray(inputs["pcm"]).tobytes()).digest()
        if key not in self._outputs:
            self._outputs[key] = self._engine.run(inputs)
        return self._outputs[key]


def stream(networks: SpeakerNetworks, motion: MotionSettings, pcm: F32) -> F32:
    """Returns landmarks (T, 68, 3) of a recording (n,) as they are streamed, before clamp and smoothing."""
    moving = networks.motion_stream(motion)
    frames = [moved.landmarks for part in (moving.push(pcm), moving.finish()) for moved in part]
    return np.stack(frames).reshape(-1, 68, 3)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A stream's mouth beside the offline one."""

    error_mm: F64  # (N, 20) distances of the points
    aperture_r: float  # 0 where one of them does not move
    movement_mm: F64  # (N, 20) how far the offline points are from where they are on average


def compare(streamed: Sequence[F32], offline: Sequence[F32]) -> Comparison:
    """Returns how the mouths of some recordings differ, over all their frames.

    Args:
        streamed: (T or more, 68, 3) of each recording.
        offline: (T, 68, 3) of each.
    """
    pairs = zip(streamed, offline, strict=True)
    got = np.concatenate([moved[: len(true)] for moved, true in pairs]).astype(np.float64)
    expected = np.concatenate(offline).astype(np.float64)
    apertures = [landmarks[:, UPPER_LIP, 1] - landmarks[:, LOWER_LIP, 1] for landmarks in (got, expected)]
    moves = min(float(np.std(aperture)) for aperture in apertures) > 0
    mouth = expected[:, MOUTH]
    return Comparison(
        error_mm=MM_PER_UNIT * np.linalg.norm(got[:, MOUTH] - mouth, axis=-1),
        aperture_r=float(np.corrcoef(apertures[0], apertures[1])[0, 1]) if moves else 0.0,
        movement_mm=MM_PER_UNIT * np.linalg.norm(mouth - mouth.mean(axis=0), axis=-1),
    )


def recommend(rows: Iterable[Row], movement_mm: float) -> Row:
    """Returns the row of the smallest delay, then of the least work, that is nearly as good as the best.

    That is: whose mean error is above the smallest of all by at most a tenth of how far the mouth moves.
    """
    rows = list(rows)
    tolerated_mm = min(row.error_mm for row in rows) + TOLERATED_SHARE * movement_mm
    return min(
        (row for row in rows if row.error_mm <= tolerated_mm),
        key=lambda row: (row.delay_ms, row.ms_per_frame),
    )


def measure(
    speaker: Speaker,
    recordings: Sequence[F32],
    *,
    lookaheads_ms: Sequence[int] = LOOKAHEADS_MS,
    heard_s: Sequence[float] = FEATURE_WINDOWS_S,
    seen_s: Sequence[float] = MOTION_WINDOWS_S,
    settings: EngineSettings | None = None,
) -> Figures:
    """Returns the figures of a speaker over recordings (n,), 16 kHz mono.

    Raises:
        ValueError: the speaker's motion network takes no features, or nothing can be measured.
    """
    try:
        from export.students.offline_motion import OfflineMotion
    except ImportError as error:
        raise ValueError(missing_extra(error)) from error

    of = speaker.motion.features
    if of is None:
        raise ValueError(
            f"{speaker.path}: motion.kind: expected features, got pcm: a causal network has one look-ahead, "
            "the one it was trained with; give an imported speaker"
        )
    offline = OfflineMotion(speaker)
    truth = [offline.landmarks(pcm) for pcm in recordings]
    if not sum(map(len, truth)):
        raise ValueError(f"expected recordings of {FRAME_MS} ms or longer, got none; check --audio")
    opened = open_networks(speaker, settings)
    assert opened.features is not None  # its motion takes features
    rows = []
    for window_s in heard_s:
        encoding = _Timed(opened.features)
        memoised = _Memoised(encoding)
        for lookahead_ms in lookaheads_ms:
            for motion_s in seen_s:
                motion = with_windows(
                    speaker.motion, lookahead_ms=lookahead_ms, heard_s=window_s, seen_s=motion_s
                )
                if motion is None:
                    continue
                moving = _Timed(opened.motion)
                networks = dataclasses.replace(opened, features=memoised, motion=moving)
                streamed = [stream(networks, motion, pcm) for pcm in recordings]
                compared = compare(streamed, truth)
                hop_ms = float(np.median(encoding.took_ms)) + float(np.median(moving.took_ms))
                rows.append(
                    Row(
                        lookahead_ms=lookahead_ms,
                        heard_s=window_s,
                        seen_s=motion_s,
                        error_mm=float(compared.error_mm.mean()),
                        error_p95_mm=float(np.percentile(compared.error_mm, 95)),
                        aperture_r=compared.aperture_r,
                        delay_ms=FRAME_MS * (motion.lookahead_frames + speaker.condition.lookahead_frames),
                        ms_per_frame=hop_ms / of.hop_frames,
                    )
                )
    if not rows:
        raise ValueError(
            "--motion-window: expected one longer than a look-ahead, got none; give 5.12, or leave it out"
        )
    movement_mm = float(compared.movement_mm.mean())
    return Figures(
        speaker=speaker.name,
        device=opened.describe() or "CPU",
        frames=sum(map(len, truth)),
        movement_mm=movement_mm,
        rows=tuple(rows),
        recommended=recommend(rows, movement_mm),
    )


def table(figures: Figures) -> str:
    """Returns the figures as text, the recommended row marked."""
    heads = ("look-ahead", "feature window", "motion window", "mouth error", "p95", "aperture r", "delay")
    lines = [(*heads, "takes", "")]
    lines += [
        (
            f"{row.lookahead_ms} ms",
            f"{row.heard_s:.2f} s",
            f"{row.seen_s:.2f} s",
            f"{row.error_mm:.2f} mm",
            f"{row.error_p95_mm:.2f} mm",
            f"{row.aperture_r:.3f}",
            f"{row.delay_ms} ms",
            f"{row.ms_per_frame:.1f} ms a frame",
            "<- recommended" if row == figures.recommended else "",
        )
        for row in figures.rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    rule = (
        f"recommended: the shortest delay, then the least work, whose mouth error is within "
        f"{TOLERATED_SHARE:.0%} of the mouth's own movement ({figures.movement_mm:.2f} mm) of the smallest"
    )
    return "\n".join([*(row.rstrip() for row in rows), rule])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookahead", description=__doc__)
    parser.add_argument("--speaker", required=True, help="name or path of a bundle that takes features")
    parser.add_argument("--speakers-dir", type=Path, help="folder with more bundles")
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="recordings of speech")
    parser.add_argument("--lookahead", type=int, nargs="+", default=LOOKAHEADS_MS, metavar="MS")
    parser.add_argument("--feature-window", type=float, nargs="+", default=FEATURE_WINDOWS_S, metavar="S")
    parser.add_argument("--motion-window", type=float, nargs="+", default=MOTION_WINDOWS_S, metavar="S")
    parser.add_argument("--engine", choices=("auto", "onnx", "tensorrt"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    try:
        speaker = load_speaker(find_speaker(arguments.speaker, speakers_dir=arguments.speakers_dir))
        recordings = [np.concatenate(list(AudioFile(path).speech())) for path in arguments.audio]
        figures = measure(
            speaker,
            recordings,
            lookaheads_ms=arguments.lookahead,
            heard_s=arguments.feature_window,
            seen_s=arguments.motion_window,
            settings=EngineSettings(engine=arguments.engine, device=arguments.device),
        )
        write_json(arguments.json, asdict(figures))
    except (ValueError, OSError) as error:
        print(f"benchmarks.lookahead: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(
        f"{figures.speaker} on {len(recordings)} recordings, {figures.frames / FRAME_RATE_HZ:.0f} s, "
        f"{figures.device}"
    )
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
