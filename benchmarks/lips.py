"""A speaker's lips against a real person's: `python -m benchmarks.lips --video FILE | --folder DIR`.

The person's lips are followed through the pictures, the speaker's motion is that of the live path on the same
sound, and both are compared frame by frame as a viewer sees them: opening and width by Pearson's r at lags
of -6 to 6 frames (negative: the person's lips move first, the speaker is late), and whether the mouth closes
when the person's does. A clip that cannot be judged is left out with one line.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from cuda_kernels.arrays import I16
from cuda_kernels.errors import InputError
from models.pitch import f0_hz
from models.recording import open_recording
from models.settings import BAD_INPUT, Parser, escaped
from models.speaker import Speaker, load_speaker
from models.speaker_folders import find_speaker
from models.terminal import with_safe_streams
from models.time_base import FEATURE_RATE_HZ, FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ
from preparation.media import first_picture_s, read_pcm
from streaming.files.progress import Progress
from training.cli import missing_extra

from .json_file import write_json
from .lip_agreement import LAGS_FRAMES, Agreement, ByLag, agreement
from .lip_track import LipTrack, lips_of_motion, lips_of_track, read_track
from .live_motion import LiveMotion

PROGRAM = "python -m benchmarks.lips"
MIN_FRAMES = 4 * FRAME_RATE_HZ
MIN_VOICED_S = 1.0
MIN_SPREAD = 0.005  # of the opening, about half a millimetre: a tracker's noise on a picture
SIGN = "lag in frames of 40 ms; negative: the person's lips move first, the speaker is late"
_VIDEO = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mts", ".ts", ".webm"})
_SOUND = frozenset({".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"})  # beside a track
_PITCH_SAMPLES = 20 * SAMPLE_RATE_HZ  # at once: memory stays bounded
_MICROSECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A recording of a person who speaks."""

    name: str
    path: Path
    track: Path | None  # of the lips, in a file; None: they are followed here


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A clip and its figures."""

    clip: str
    seconds: float
    figures: Agreement


class Judge:
    """Compares one speaker with people."""

    def __init__(self, speaker: Speaker, *, quiet: bool = True) -> None:
        """Opens the speaker's networks; without `quiet` a bar is shown while lips are followed."""
        self._speaker = speaker
        self._quiet = quiet
        self._live = LiveMotion(speaker)

    def judge(self, clip: Clip) -> Judged:
        """Returns a clip's figures.

        Raises:
            InputError: it cannot be judged: no sound, no speech, no face, too few frames.
        """
        path = clip.path
        start_s = first_picture_s(path)
        pcm = read_pcm(path, start_s=start_s)
        pcm = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES]
        frames = len(pcm) // FRAME_SAMPLES
        if frames < MIN_FRAMES:
            raise _unusable(path, f"{MIN_FRAMES} frames of sound", f"{frames}", "give a longer one")
        voiced_s = _voiced_s(pcm)
        if voiced_s < MIN_VOICED_S:
            got = f"{voiced_s:.1f} s of voice"
            raise _unusable(path, f"speech, at least {MIN_VOICED_S:g} s of it voiced", got, "give speech")
        if clip.track is not None:
            track = read_track(clip.track, start_s=start_s or 0.0)
        else:
            track = track_lips(path, quiet=self._quiet)
        person = lips_of_track(track, frames, start_s=start_s or 0.0)
        if not track.found.any():
            raise _unusable(path, "a face", "none in any picture", "face the camera in good light")
        seen = int(person.seen.sum())
        if seen < MIN_FRAMES:
            got = f"{seen} of {frames}"
            raise _unusable(path, f"a face beside the sound in {MIN_FRAMES} frames", got, "give a longer one")
        if person.opening[person.seen].std() < MIN_SPREAD:
            raise _unusable(path, "lips that move", "a still mouth", "give a person who speaks")
        motion = self._live(np.multiply(pcm, 1 / 32768, dtype=np.float32))
        found = agreement(lips_of_motion(motion, self._speaker.motion.mean_face), person, pcm)
        return Judged(clip=clip.name, seconds=frames / FRAME_RATE_HZ, figures=found)


def _unusable(path: Path, expected: str, got: str, way_out: str) -> InputError:
    return InputError(file=escaped(str(path)), expected=expected, got=got, way_out=way_out)


def track_lips(video: Path, *, quiet: bool) -> LipTrack:
    """Returns the track of the face in a video, by the face mesh of preparation.

    Raises:
        InputError: the video shows no face, or what the mesh needs is not installed.
    """
    try:
        from preparation.face_mesh.ibug import IBUG_POINTS
        from preparation.face_mesh.track import track_face
    except ImportError as error:
        way_out = "or give a track: --track FILE.npz, with --folder NAME.npz beside its video"
        raise InputError(f"{missing_extra(error)}, {way_out}") from error
    track = track_face(video, keep=IBUG_POINTS, quiet=quiet)
    return LipTrack(times_s=track.times_s, points=track.points, found=track.found)


def _voiced_s(pcm: I16) -> float:
    pieces = range(0, len(pcm), _PITCH_SAMPLES)
    pitches = [f0_hz(pcm[at : at + _PITCH_SAMPLES].astype(np.float32)) for at in pieces]
    return sum(int((pitch > 0).sum()) for pitch in pitches) / FEATURE_RATE_HZ


def clips_in(folder: Path) -> list[Clip]:
    """Returns the videos of a folder and its sub-folders, and sound that has a track beside it, by name.

    Raises:
        InputError: there is none.
    """
    clips = []
    for path in sorted(folder.rglob("*")):
        track = path.with_suffix(".npz")
        beside = track if track.is_file() else None
        if path.suffix.lower() in (_VIDEO if beside is None else _VIDEO | _SOUND) and path.is_file():
            clips.append(Clip(name=escaped(str(path.relative_to(folder))), path=path, track=beside))
    if not clips:
        raise _unusable(folder, "a folder with videos", "none in it", "check --folder")
    return clips


def judge_all(
    judge: Judge, clips: Sequence[Clip], progress: Progress, left_out: Callable[[Clip, str], None]
) -> Iterator[Judged]:
    """Yields the figures of those clips that can be judged; `left_out` is told of the others, and why."""
    done = 0
    for clip in clips:
        try:
            yield judge.judge(clip)
        except InputError as error:
            progress.clear()
            left_out(clip, str(error))
        done += _frames(clip.path)
        progress.at(done)
    progress.clear()


def _frames(path: Path) -> int:
    """Returns about how many frames a recording has, by its header; 0 where that does not say."""
    try:
        with open_recording(path) as container:
            return round((container.duration or 0) * _MICROSECONDS * FRAME_RATE_HZ)
    except (av.FFmpegError, ValueError, OSError):
        return 0


def medians(judged: Sequence[Judged]) -> dict[str, Any]:
    """Returns the medians over clips; of lags also that farthest from 0, of r also each lag's."""
    found: dict[str, Any] = {}
    for name in ("opening", "width"):
        of_clips: list[ByLag] = [getattr(one.figures, name) for one in judged]
        lags = [one.best_lag_frames for one in of_clips if one.best_lag_frames is not None]
        found[name] = {
            "r_now": _median([one.r_now for one in of_clips]),
            "best_lag_frames": _median(lags),
            "farthest_lag_frames": max(lags, key=abs, default=None),
            "best_r": _median([one.best_r for one in of_clips]),
            "r": [_median(r) for r in zip(*(one.r for one in of_clips), strict=True)],
        }
    found["closure_auc"] = _median([one.figures.closure_auc for one in judged])
    for name in ("person_lead", "speaker_lead"):
        found[f"{name}_ms"] = _median([getattr(one.figures, name).lead_ms for one in judged])
    return found


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else None


def table(judged: Sequence[Judged]) -> str:
    """Returns a row a clip, medians last where there are several, and r by lag."""
    middle = medians(judged)
    opening, width = middle["opening"], middle["width"]
    lines = [
        ("", "", "opening", "best", "r", "width", "best", "r", "closed", "lips lead their sound, ms", ""),
        ("clip", "s", "r", "lag", "there", "r", "lag", "there", "AUC", "person", "speaker"),
    ]
    for one in judged:
        found = one.figures
        lines.append(
            (
                one.clip,
                f"{one.seconds:.0f}",
                *_cells(found.opening.r_now, found.opening.best_lag_frames, found.opening.best_r),
                *_cells(found.width.r_now, found.width.best_lag_frames, found.width.best_r),
                _number(found.closure_auc, ".2f"),
                _number(found.person_lead.lead_ms, "+.0f"),
                _number(found.speaker_lead.lead_ms, "+.0f"),
            )
        )
    if len(judged) > 1:
        farthest = (_number(part["farthest_lag_frames"], "+g") for part in (opening, width))
        lines += [
            ("farthest", "", "", next(farthest), "", "", next(farthest), "", "", "", ""),
            (
                f"median of {len(judged)}",
                "",
                *_cells(opening["r_now"], opening["best_lag_frames"], opening["best_r"]),
                *_cells(width["r_now"], width["best_lag_frames"], width["best_r"]),
                _number(middle["closure_auc"], ".2f"),
                _number(middle["person_lead_ms"], "+.0f"),
                _number(middle["speaker_lead_ms"], "+.0f"),
            ),
        ]
    by_lag = [
        ("r at lag", *(f"{lag:+d}" if lag else "0" for lag in LAGS_FRAMES)),
        ("opening", *(_number(r, ".2f") for r in opening["r"])),
        ("width", *(_number(r, ".2f") for r in width["r"])),
    ]
    return "\n".join([*_aligned(by_lag), "", *_aligned(lines), SIGN])


def _cells(r_now: float, lag: float | None, best_r: float) -> tuple[str, str, str]:
    return _number(r_now, ".2f"), _number(lag, "+g" if lag else "g"), _number(best_r, ".2f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:{form}}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def document(speaker: Speaker, judged: Sequence[Judged], left_out: Sequence[dict[str, str]]) -> Any:  # noqa: ANN401 - JSON
    """Returns the figures as JSON takes them."""
    clips = [
        {
            **dataclasses.asdict(one),
            "figures": {
                **dataclasses.asdict(one.figures),
                "closure_auc": _median([one.figures.closure_auc]),
            },
        }
        for one in judged
    ]
    return {
        "speaker": speaker.name,
        "sign": SIGN,
        "lags_frames": list(LAGS_FRAMES),
        "clips": clips,
        "medians": medians(judged),
        "left_out": list(left_out),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 judged, 2 bad input or no clip that can be judged."""
    return with_safe_streams(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--video", type=Path, help="a recording of a person who speaks")
    what.add_argument("--folder", type=Path, help="many of them; NAME.npz beside one is its track")
    parser.add_argument("--track", type=Path, help="with --video: the person's lips, .npz")
    parser.add_argument("--speaker", default="May", help="name or path of the bundle (default May)")
    parser.add_argument("--speakers-dir", type=Path, help="folder with more bundles")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_args(argv)
    if given.track is not None and given.folder is not None:
        parser.error("--track: expected beside --video; with --folder a track is NAME.npz beside its video")
    left_out: list[dict[str, str]] = []

    def leave_out(clip: Clip, why: str) -> None:
        left_out.append({"clip": clip.name, "why": why})
        print(f"{PROGRAM}: left out: {why}", file=sys.stderr)

    try:
        speaker = load_speaker(find_speaker(given.speaker, speakers_dir=given.speakers_dir))
        quiet = given.quiet or not sys.stderr.isatty()
        judge = Judge(speaker, quiet=quiet or given.folder is not None)
        if given.video is not None:
            name = escaped(given.video.name)
            judged = [judge.judge(Clip(name=name, path=given.video, track=given.track))]
        else:
            clips = clips_in(given.folder)
            progress = Progress(sum(_frames(clip.path) for clip in clips), quiet=quiet)
            judged = list(judge_all(judge, clips, progress, leave_out))
        if judged:
            write_json(given.json, document(speaker, judged, left_out))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    if judged:
        print(f"{speaker.name} on people's sound")
        print(table(judged))
    if left_out:
        print(f"left out: {len(left_out)} of {len(left_out) + len(judged)}")
    return 0 if judged else BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
