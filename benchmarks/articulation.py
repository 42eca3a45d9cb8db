"""How a motion moves the mouth, beside how people do: `python -m benchmarks.articulation --data CORPUS`.

Or one motion file, as `geneface-stream --landmarks FILE.npz` writes it, with its sound: `python -m
benchmarks.articulation --motion FILE.npz --audio FILE`. Opening is the mean distance of the points 61-67,
62-66 and 63-65, width that of 60-64. Loudness is the dB of a frame's RMS. Frames in long silence count
nowhere: the people of the right-hand columns spoke without long pauses. Where phones have times, opening
and width, z-scored by clip, are averaged around their middles; the largest mean within 200 ms and its time
are printed.

People: 25 talking people, 408 s, tracked from video at 25 fps; by phone 7 more, 180 s, whose phones a
recogniser found, 28 to 46 ms after their middles, which is taken off here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cuda_kernels.arrays import BOOL, F32, F64, I16
from cuda_kernels.errors import InputError
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES
from preparation.arrays import Kind, read_npz
from preparation.corpus_set import CorpusSet, read_corpus_set, read_sound
from preparation.errors import FileError
from preparation.media import read_pcm
from preparation.sounds import SPEECH, Phone, base, quiet_frames

from .json_file import write_json
from .lip_track import mouth_of

LAGS = (-4, -2, 0, 2)
BANDS_HZ = (1, 2, 3, 4, 6, 8)
AROUND_S = np.arange(-0.26, 0.261, 0.02)
MAX_AWAY_S = 0.2
VOICED_DB = 25.0  # below a clip's loud frames
SPIKE_AFTER_MS = 37  # a recogniser's spike after the phone's middle, mean of 28 and 46
MIN_FRAMES = 50
_MOTION_KINDS = {"landmarks": Kind((None, 68, 3)), "mean_face": Kind((68, 3))}
PHONE_CLASSES = {
    "b p m": ("b", "p", "m"),
    "f v": ("f", "v"),
    "open vowels": ("aa", "ae", "ah", "ay", "aw"),
    "front vowels": ("ih", "iy", "eh", "ey", "y"),
    "round vowels, w": ("ao", "uw", "uh", "ow", "oy", "w"),
    "schwa": ("ax",),
    "t d n l": ("t", "d", "n", "l"),
    "s z": ("s", "z"),
    "sh ch j r": ("sh", "ch", "jh", "zh", "r"),
    "th": ("th", "dh"),
    "k g ng h": ("k", "g", "ng", "hh"),
}


class People(NamedTuple):
    """What people do by one statistic: the median, and the quartiles where they are known."""

    median: float
    quartiles: tuple[float, float] | None = None


_OPENING_BY_LAG, _WIDTH_BY_LAG = (0.04, 0.10, 0.05, -0.04), (-0.17, -0.19, -0.14, -0.09)
_OPENING_BELOW, _WIDTH_BELOW = (0.42, 0.65, 0.79, 0.88, 0.95, 0.97), (0.58, 0.83, 0.91, 0.95, 0.97, 0.98)
PEOPLE = {
    **{
        f"opening with loudness, lag {lag:+d}": People(r)
        for lag, r in zip(LAGS, _OPENING_BY_LAG, strict=True)
    },
    **{f"width with loudness, lag {lag:+d}": People(r) for lag, r in zip(LAGS, _WIDTH_BY_LAG, strict=True)},
    "opening with width": People(0.37, (0.27, 0.54)),
    **{f"opening below {hz} Hz": People(share) for hz, share in zip(BANDS_HZ, _OPENING_BELOW, strict=True)},
    **{f"width below {hz} Hz": People(share) for hz, share in zip(BANDS_HZ, _WIDTH_BELOW, strict=True)},
    "a frame's change, p95 over range": People(0.45, (0.37, 0.49)),
    "voiced frames nearly closed": People(0.14, (0.10, 0.19)),
    "std over mean of the opening": People(0.60, (0.54, 0.69)),
}
PEOPLE_BY_PHONE: dict[str, tuple[float, int, float, int]] = {
    "b p m": (-1.17, -100, -0.33, -160),
    "f v": (-0.53, -80, -0.43, 60),
    "open vowels": (0.89, -80, 0.25, -40),
    "front vowels": (0.26, -80, -0.16, -180),
    "round vowels, w": (-0.28, -140, -1.30, -80),
    "schwa": (0.25, -200, -0.29, -80),
    "t d n l": (0.26, -160, -0.16, 140),
    "s z": (0.32, -120, 0.19, -80),
    "sh ch j r": (-0.26, -100, -0.94, -80),
    "th": (0.29, -200, -0.35, 40),
    "k g ng h": (0.44, -100, -0.24, 20),
}
"""Opening's largest mean deviation and its time in ms from the spike, and the width's."""


def lagged_r(mouth: F64, sound: F64, lag: int) -> float:
    """Returns Pearson's r of the mouth `lag` frames after the sound, so below zero lips come first."""
    count = len(mouth)
    mouth, sound = mouth[max(0, lag) : count + min(0, lag)], sound[max(0, -lag) : count - max(0, lag)]
    if mouth.std() == 0 or sound.std() == 0:
        return float("nan")
    return float(np.corrcoef(mouth, sound)[0, 1])


def power_below(series: F64, bands_hz: Sequence[float]) -> list[float]:
    """Returns the share of a series' variance below each frequency."""
    power = np.abs(np.fft.rfft(series - series.mean())) ** 2
    hz = np.fft.rfftfreq(len(series), 1 / FRAME_RATE_HZ)
    return [float(power[hz <= band].sum() / max(power.sum(), 1e-12)) for band in bands_hz]


def clip_statistics(opening: F64, width: F64, pcm: I16) -> dict[str, float]:
    """Returns the statistics of one clip by name, as `PEOPLE` has them.

    Args:
        opening, width: (T,), in any unit.
        pcm: (640 T,) at 16 kHz.
    """
    loudness_db = frame_loudness_db(pcm)
    spoken = ~quiet_frames(pcm)
    opening, width, loudness_db = opening[spoken], width[spoken], loudness_db[spoken]
    low, high = np.percentile(opening, [5, 95])
    voiced = loudness_db > np.percentile(loudness_db, 95) - VOICED_DB
    found = {f"opening with loudness, lag {lag:+d}": lagged_r(opening, loudness_db, lag) for lag in LAGS}
    found |= {f"width with loudness, lag {lag:+d}": lagged_r(width, loudness_db, lag) for lag in LAGS}
    found["opening with width"] = lagged_r(opening, width, 0)
    for name, series in (("opening", opening), ("width", width)):
        shares = power_below(series, BANDS_HZ)
        found |= {f"{name} below {hz} Hz": share for hz, share in zip(BANDS_HZ, shares, strict=True)}
    change = float(np.percentile(np.abs(np.diff(opening)), 95))
    found["a frame's change, p95 over range"] = change / max(high - low, 1e-9)
    found["voiced frames nearly closed"] = float((opening[voiced] < low + 0.1 * (high - low)).mean())
    found["std over mean of the opening"] = float(opening.std() / max(opening.mean(), 1e-9))
    return found


def frame_loudness_db(pcm: I16) -> F64:
    """Returns the level of each frame (T,) in dB of samples (640 T,)."""
    power = np.square(pcm.astype(np.float64).reshape(-1, FRAME_SAMPLES)).mean(axis=1)  # (T,)
    level_db: F64 = 10 * np.log10(power + 1.0)
    return level_db


@dataclass(kw_only=True)
class PhoneMeans:
    """Opening and width around phones' middles, summed over clips."""

    opening: dict[str, list[F64]] = field(default_factory=dict)
    width: dict[str, list[F64]] = field(default_factory=dict)

    def add(self, opening: F64, width: F64, phones: Iterable[Phone], spoken: BOOL) -> None:
        """Adds a clip: (T,) each; means and deviations are those of its spoken frames."""
        opening_z = (opening - opening[spoken].mean()) / opening[spoken].std()
        width_z = (width - width[spoken].mean()) / width[spoken].std()
        middle_s = (np.arange(len(opening)) + 0.5) / FRAME_RATE_HZ
        classes = {phone: name for name, members in PHONE_CLASSES.items() for phone in members}
        for label, start_s, end_s in phones:
            name = classes.get(base(label))
            if name is None:
                continue
            at_s = (start_s + end_s) / 2 + AROUND_S
            self.opening.setdefault(name, []).append(np.interp(at_s, middle_s, opening_z))
            self.width.setdefault(name, []).append(np.interp(at_s, middle_s, width_z))

    def largest(self, name: str) -> tuple[int, float, int, float, int]:
        """Returns how many, and the largest mean of opening and width, each with its ms after the middle."""
        found: list[float] = []
        for series in (self.opening[name], self.width[name]):
            mean = np.where(np.abs(AROUND_S) <= MAX_AWAY_S + 1e-6, np.mean(series, axis=0), 0.0)
            best = int(np.argmax(np.abs(mean)))
            found += [float(mean[best]), round(1000 * float(AROUND_S[best]))]
        return len(self.opening[name]), found[0], int(found[1]), found[2], int(found[3])


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenClip:
    """A clip with speech."""

    landmarks: F32  # (T, 68, 2 or 3)
    pcm: I16  # (640 T,)
    phones: tuple[Phone, ...] = ()


def corpus_clips(
    folder: Path, *, split: str | None, voices: Sequence[str], max_clips: int | None
) -> list[SpokenClip]:
    """Returns the clips with speech of a corpus.

    Raises:
        FileError: the folder is no corpus, or holds none of them.
    """
    corpus: CorpusSet = read_corpus_set(folder)
    chosen = [
        clip
        for clip in corpus.clips
        if clip.kind == SPEECH
        and clip.frames >= MIN_FRAMES
        and (split is None or clip.split == split)
        and (not voices or clip.voice in voices)
    ][: max_clips or None]
    if not chosen:
        way_out = "choose another split or voice"
        raise FileError(
            folder, "clips", f"speech of {MIN_FRAMES} frames or more", "none that was asked for", way_out
        )
    pcm = read_sound(folder, chosen)
    neutral, moved = corpus.neutral, corpus.motion().reshape(-1, 68, 3) / 10
    clips, first = [], 0
    for clip in chosen:
        rows = slice(clip.row0, clip.row1)
        clips.append(
            SpokenClip(
                landmarks=(neutral[corpus.row_identity[rows]] + moved[rows]).astype(np.float32),
                pcm=pcm[first : first + clip.samples],
                phones=clip.phones,
            )
        )
        first += clip.samples
    return clips


def motion_clip(motion: Path, audio: Path) -> SpokenClip:
    """Returns the clip of a motion file and its sound.

    Args:
        motion: `landmarks` (T, 68, 3), ten times the offset from `mean_face` (68, 3), as `.npz`.
        audio: As long as it.

    Raises:
        FileError: one of them cannot be read, or they are too short.
    """
    pcm = read_pcm(audio)
    way_out = "give a file of geneface-stream --landmarks"
    arrays = read_npz(motion, _MOTION_KINDS, FileError, way_out)
    moved, mean_face = arrays["landmarks"], arrays["mean_face"]
    frames = min(len(moved), len(pcm) // FRAME_SAMPLES)
    if frames < MIN_FRAMES:
        raise FileError(
            motion,
            "landmarks",
            f"{MIN_FRAMES} frames or more, and as long a sound",
            frames,
            "give a longer one",
        )
    landmarks = (mean_face + moved[:frames] / 10).astype(np.float32)
    return SpokenClip(landmarks=landmarks, pcm=pcm[: FRAME_SAMPLES * frames])


def measure(clips: Sequence[SpokenClip]) -> tuple[dict[str, tuple[float, float, float]], PhoneMeans]:
    """Returns quartile, median and quartile of each statistic over the clips, and the means by phone.

    Clips with too little speech, or with a mouth that does not move, are left out.

    Raises:
        InputError: all are.
    """
    found: list[dict[str, float]] = []
    by_phone = PhoneMeans()
    for clip in clips:
        spoken = ~quiet_frames(clip.pcm)
        opening, width = (series.astype(np.float64) for series in mouth_of(clip.landmarks))
        if spoken.sum() < MIN_FRAMES // 2 or not (np.ptp(opening[spoken]) and np.ptp(width[spoken])):
            continue
        found.append(clip_statistics(opening, width, clip.pcm))
        by_phone.add(opening, width, clip.phones, spoken)
    if not found:
        raise InputError(
            field="clips",
            expected=f"{MIN_FRAMES // 2} frames or more of a mouth that moves while somebody speaks",
            got="none in any",
            way_out="give other ones",
        )
    names = list(found[0])
    low, median, high = np.nanpercentile(
        [[row[name] for name in names] for row in found], [25, 50, 75], axis=0
    )
    quartiles = {name: (float(low[n]), float(median[n]), float(high[n])) for n, name in enumerate(names)}
    return quartiles, by_phone


def table(quartiles: dict[str, tuple[float, float, float]], by_phone: PhoneMeans) -> str:
    """Returns both tables as text, people beside."""
    lines = [f"{'statistic':36} {'median':>7} {'quartiles':>15}   {'people':>7} {'quartiles':>15}"]
    for name, (low, median, high) in quartiles.items():
        people, theirs, verdict = PEOPLE[name], "", ""
        if people.quartiles is not None:
            lowest, highest = people.quartiles
            theirs = f"({lowest:.2f}, {highest:.2f})"
            verdict = "inside" if lowest <= median <= highest else "outside"
        ours = f"({low:.2f}, {high:.2f})"
        lines.append(
            f"{name:36} {median:7.2f} {ours:>15}   {people.median:7.2f} {theirs:>15} {verdict}".rstrip()
        )
    if by_phone.opening:
        lines += ["", f"{'phones':18} {'n':>6}  {'opening':>14} {'people':>14} {'width':>14} {'people':>14}"]
        for name, theirs_by_phone in PEOPLE_BY_PHONE.items():
            if name not in by_phone.opening:
                continue
            count, opening, opening_ms, width, width_ms = by_phone.largest(name)
            opening_p, opening_p_ms, width_p, width_p_ms = theirs_by_phone
            texts = [
                f"{value:+.2f} {ms:+5d} ms"
                for value, ms in (
                    (opening, opening_ms),
                    (opening_p, opening_p_ms + SPIKE_AFTER_MS),
                    (width, width_ms),
                    (width_p, width_p_ms + SPIKE_AFTER_MS),
                )
            ]
            lines.append(f"{name:18} {count:6d}  " + " ".join(f"{text:>14}" for text in texts))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.articulation", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a corpus")
    source.add_argument("--motion", type=Path, help="a file of geneface-stream --landmarks; needs --audio")
    parser.add_argument("--audio", type=Path, help="the sound of --motion")
    parser.add_argument("--split", choices=("train", "val"), help="of the corpus (both)")
    parser.add_argument("--voices", nargs="+", default=[], help="of the corpus (all)")
    parser.add_argument("--max-clips", type=int, help="measure at most so many clips")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    if (arguments.motion is None) != (arguments.audio is None):
        parser.error("--motion and --audio go together")
    try:
        if arguments.motion is not None:
            clips = [motion_clip(arguments.motion, arguments.audio)]
        else:
            clips = corpus_clips(
                arguments.data, split=arguments.split, voices=arguments.voices, max_clips=arguments.max_clips
            )
        quartiles, by_phone = measure(clips)
        write_json(
            arguments.json,
            {
                "clips": len(clips),
                "quartiles": quartiles,
                "phones": {name: by_phone.largest(name) for name in by_phone.opening},
            },
        )
    except (ValueError, OSError) as error:
        print(f"benchmarks.articulation: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{len(clips)} clips, {sum(len(clip.landmarks) for clip in clips) / FRAME_RATE_HZ / 60:.1f} min")
    print(table(quartiles, by_phone))
    return 0


if __name__ == "__main__":
    sys.exit(main())
