"""Lip sync and picture quality of a speaker: `python -m benchmarks.quality --speaker May --data DIR`.

DIR is laid out as a corpus (sound and landmarks of many faces) or as a speaker (video and its landmarks); its
validation split is measured. Sound goes through the bundle's motion.onnx in the live path's own windows, then
through its clamp and smoothing. Distances are relative to the resting face: the truth's, and the speaker's
own after silence.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cuda_kernels.arrays import F32
from models.onnx_runtime import load_onnxruntime
from models.speaker import Speaker, load_speaker
from models.speaker_folders import find_speaker
from preparation.corpus_set import INDEX_FILE
from preparation.speaker_set import TRUTH_FILE
from training.cli import missing_extra

from .json_file import write_json
from .lip_agreement import lead_of
from .lip_track import lips_of_motion
from .live_motion import LiveMotion

MOUTH = slice(3 * 48, 3 * 68)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    figure: float
    unit: str = ""
    target: float | None = None
    at_least: bool = True  # a target is a lower bound, or an upper one

    @property
    def verdict(self) -> str:
        """Pass, fail, or nothing where there is no target."""
        if self.target is None:
            return ""
        met = self.figure >= self.target if self.at_least else self.figure <= self.target
        return "pass" if met else "fail"


def motion_rows(
    speaker: Speaker, data: Path, *, max_clips: int | None = None
) -> tuple[list[Row], dict[str, Any]]:
    """Returns rows of motion and lip sync on the validation split of a folder, and all figures for a file."""
    try:
        import torch

        from models.features import LogMel
        from preparation.sounds import Sound
        from training.corpus import load_clips
        from training.corpus import load_speaker as load_speaker_folder
        from training.measures import compare_motion, measure_motion, measure_sync
    except ImportError as error:
        raise ValueError(missing_extra(error)) from error

    is_corpus = (data / INDEX_FILE).is_file()
    if is_corpus:
        clips = load_clips(data, "val", max_clips=max_clips)
    else:
        mean_face = speaker.motion.mean_face
        if mean_face is None:
            raise ValueError(
                f"{speaker.path}: motion.mean_face: expected 68x3 numbers, got null; rebuild the bundle"
            )
        clips = load_speaker_folder(data, torch.from_numpy(mean_face.reshape(204).copy())).validation
    live, mel = LiveMotion(speaker), LogMel()
    mean = clips.mean_face.numpy()
    predicted_rest = live.resting()
    sounds = clips.sounds.numpy()
    at_rest = sounds == Sound.REST
    common_rest = clips.rest.numpy()
    if not is_corpus and at_rest.any():
        common_rest = clips.offsets.numpy()[at_rest].mean(axis=0)
    sync = None if speaker.syncnet_onnx is None else SyncEmbeddings(speaker.syncnet_onnx)
    tracks, pairs, true_pairs = [], [], []
    leads_ms: tuple[list[float], list[float]] = ([], [])  # of the predicted and of the true lips
    started_s, frames = time.perf_counter(), 0
    for clip in range(len(clips)):
        pcm = clips.clip_pcm(clip).numpy()
        predicted = live(pcm)
        truth = clips.clip_offsets(clip).numpy() + (clips.rest.numpy() if is_corpus else 0)
        frames += len(truth)
        tracks.append(
            compare_motion(
                predicted,
                truth,
                sounds=clips.clip_sounds(clip).numpy(),
                mean_face=mean,
                predicted_rest=predicted_rest,
                true_rest=common_rest,
            )
        )
        if bool(clips.speech[clip]):
            for of_clips, motion in zip(leads_ms, (predicted, truth), strict=True):
                lead_ms = lead_of(lips_of_motion(motion, mean), (32768 * pcm).astype(np.int16)).lead_ms
                of_clips += [] if lead_ms is None else [lead_ms]
        if sync is not None and bool(clips.speech[clip]):
            with torch.no_grad():
                features = mel.causal(torch.from_numpy(pcm)[None])[0].numpy()
            audio, mouth = sync(features, predicted - predicted_rest)
            pairs.append((audio, mouth))
            true_pairs.append(sync(features, truth - common_rest))
    taken_s = time.perf_counter() - started_s
    found = measure_motion(tracks)
    rows = [
        Row(what="inner-lip aperture, Pearson r", figure=found.aperture_r, target=0.80),
        Row(what="mouth width, Pearson r", figure=found.width_r, target=0.70),
        Row(what="closed in b, p, m: AUC", figure=found.closure_auc, target=0.90),
        Row(what="  the same of the true motion", figure=found.closure_auc_of_truth),
        Row(what="aperture, mean absolute error", figure=found.aperture_error_mm, unit="mm"),
        Row(what="aperture above rest in b, p, m, median", figure=found.bilabial_gap_mm, unit="mm"),
        Row(what="  the same of the true motion", figure=found.bilabial_gap_true_mm, unit="mm"),
        Row(what="spread of the aperture, share of the true", figure=found.open_share),
        Row(what="aperture above rest in silence, p95", figure=found.silence_gap_mm, unit="mm"),
        Row(what="silence with the mouth closed (< 1.5 mm)", figure=100 * found.silence_closed, unit="%"),
    ]
    lead_ms, true_lead_ms = (float(np.median(of_clips)) if of_clips else None for of_clips in leads_ms)
    if lead_ms is not None:
        rows.append(Row(what="lips ahead of their sound, median", figure=lead_ms, unit="ms"))
    if true_lead_ms is not None:
        rows.append(Row(what="  the same of the true motion", figure=true_lead_ms, unit="ms"))
    figures: dict[str, Any] = {
        "motion": asdict(found),
        "lead_ms": lead_ms,
        "lead_ms_of_truth": true_lead_ms,
        "frames": frames,
        "measure_s": taken_s,
    }
    if sync is not None:
        of_predicted, of_truth = measure_sync(pairs), measure_sync(true_pairs)
        figures |= {"sync": asdict(of_predicted), "sync_of_truth": asdict(of_truth)}
        rows += [
            Row(
                what="2 s windows whose true offset wins",
                figure=100 * of_predicted.true_wins,
                unit="%",
                target=95.0,
            ),
            Row(what="  within one frame", figure=100 * of_predicted.near_wins, unit="%"),
            Row(what="  the same of the true motion", figure=100 * of_truth.true_wins, unit="%", target=95.0),
            Row(what="  windows", figure=float(of_predicted.windows)),
        ]
    return rows, figures


class SyncEmbeddings:
    """The bundle's SyncNet: embeddings of all five-frame windows of a clip."""

    def __init__(self, model: Path) -> None:
        """Opens the network."""
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, features: F32, offsets: F32) -> tuple[F32, F32]:
        """Returns embeddings of sound and mouth, (T - 4, E) each.

        Args:
            features: (2 T, 80), log-mel.
            offsets: (T, 204), landmarks less the face's own resting landmarks.
        """
        sound = np.lib.stride_tricks.sliding_window_view(features, 10, axis=0)[::2].transpose(0, 2, 1)
        mouth = np.lib.stride_tricks.sliding_window_view(offsets[:, MOUTH], 5, axis=0).transpose(0, 2, 1)
        audio, motion = self._session.run(
            ["audio_embedding", "mouth_embedding"],
            {"audio": np.ascontiguousarray(sound), "mouth": np.ascontiguousarray(mouth)},
        )
        return audio, motion


def picture_rows(speaker: Speaker, data: Path) -> tuple[list[Row], dict[str, Any]]:
    """Returns rows of the picture against the video's validation frames, and all figures for a file."""
    from .quality_picture import picture_quality  # what it imports is only needed here

    figures = picture_quality(speaker, data)
    targets = {"psnr_db": 30.0, "mouth_psnr_db": 27.0}
    rows = [
        Row(
            what=f"picture: {name.replace('_', ' ').removesuffix(' db')}",
            figure=value,
            unit="dB" if name.endswith("_db") else "",
            target=targets.get(name),
        )
        for name, value in figures.items()
    ]
    return rows, {"picture": figures}


def measure(
    speaker: Speaker, data: Path, *, max_clips: int | None = None, pictures: bool = True
) -> tuple[list[Row], dict[str, Any]]:
    """Returns all rows and figures of a folder.

    Raises:
        ValueError: the folder is neither a corpus nor a speaker.
    """
    is_corpus = (data / INDEX_FILE).is_file()
    if not is_corpus and not (data / TRUTH_FILE).is_file():
        raise ValueError(
            f"{data}: expected a corpus ({INDEX_FILE}) or a speaker ({TRUTH_FILE}), got neither; check --data"
        )
    rows, figures = motion_rows(speaker, data, max_clips=max_clips)
    if pictures and not is_corpus:
        more_rows, more_figures = picture_rows(speaker, data)
        rows, figures = rows + more_rows, figures | more_figures
    return rows, figures


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as aligned text, targets and verdicts beside the figures."""
    lines = [("what", "figure", "", "target", "")]
    for row in rows:
        sign = "" if row.target is None else (">= " if row.at_least else "<= ")
        target = "" if row.target is None else f"{sign}{row.target:g}"
        lines.append((row.what, f"{row.figure:.3f}", row.unit, target, row.verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    right = {1, 3}
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--speaker", default="May", help="name or path of the bundle (default May)")
    parser.add_argument("--speakers-dir", type=Path, help="folder with more bundles")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder laid out as a corpus or as a speaker"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--max-clips", type=int, help="measure at most so many clips of a corpus")
    parser.add_argument("--skip-pictures", action="store_true", help="measure motion and sync only")
    arguments = parser.parse_args(argv)
    data: Path = arguments.data
    try:
        speaker = load_speaker(find_speaker(arguments.speaker, speakers_dir=arguments.speakers_dir))
        rows, figures = measure(
            speaker, data, max_clips=arguments.max_clips, pictures=not arguments.skip_pictures
        )
        write_json(
            arguments.json,
            {
                "speaker": speaker.name,
                "data": str(data),
                "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
                **figures,
            },
        )
    except (ValueError, OSError) as error:
        print(f"benchmarks.quality: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{speaker.name} on {data}, validation split")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
