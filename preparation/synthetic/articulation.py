"""Phones with their times and sound to the movements of a mouth, as people move theirs.

Each phone has a target on nine tracks (jaw, lips apart, rounding, funnel, spread, closure, labiodental,
tongue up, tongue out) and pulls on each with a dominance that rises before it and falls after it; a track
is the dominance-weighted mean of the targets (Cohen and Massaro 1993, Modeling coarticulation in synthetic
visual speech). Closures are the exception: lips that close do close. Dominance is centred before the
phone's middle, since lips prepare a sound (Chandrasekaran et al. 2009, The natural statistics of
audiovisual speech; Schwartz and Savariaux 2014). The numbers were fitted to how talking people move, the
right-hand columns of `benchmarks.articulation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from cuda_kernels.arrays import F32, F64, I16
from cuda_kernels.errors import InputError
from models.settings import show
from models.time_base import FRAME_RATE_HZ, SAMPLE_RATE_HZ

from ..sounds import PAUSE, Phone, base
from .rig import load_rig
from .styles import Style

STEPS_PER_FRAME = 8  # tracks are evaluated at 200 Hz and averaged over each frame
MIN_REST_S = 0.35  # a pause from which on lips close; in shorter ones they stay parted
REST_ON_S, REST_OFF_S = 0.08, 0.18  # of such a pause, at its ends, in which they still or already move
FIRST_SHARE = 0.6  # of a diphthong's length, its first vowel
DIPHTHONGS = {
    "ay": ("aa", "ih"),
    "aw": ("aa", "uh"),
    "ey": ("eh", "ih"),
    "ow": ("ao", "uh"),
    "oy": ("ao", "ih"),
}
MAX_LEVEL_DB = 12.0
_BLOCK_STEPS = 2000  # evaluated at once: memory grows with this times the phones
_STRESSED_SHARE = 0.4  # of vowels: what a style adds to these it takes from the others


class Track(IntEnum):
    """Columns of the tracks."""

    JAW = 0
    OPEN = 1
    ROUND = 2
    FUNNEL = 3
    SPREAD = 4
    CLOSE = 5
    LABIODENTAL = 6
    TONGUE_UP = 7
    TONGUE_OUT = 8


LIPS, ROUNDING = (
    (Track.JAW, Track.OPEN, Track.TONGUE_UP, Track.TONGUE_OUT),
    (Track.ROUND, Track.FUNNEL, Track.SPREAD),
)
BARRING = (Track.CLOSE, Track.LABIODENTAL)


class Timing(NamedTuple):
    """When a phone pulls: its dominance is largest `lead_s` before its middle."""

    lead_s: float
    on_s: float  # how far it reaches before, beside half its length
    off_s: float  # and after
    weight: float = 1.0


class Target(NamedTuple):
    """Where a phone wants each track."""

    jaw: float = 0.0
    open: float = 0.0
    round: float = 0.0
    funnel: float = 0.0
    spread: float = 0.0
    close: float = 0.0
    labiodental: float = 0.0
    tongue_up: float = 0.0
    tongue_out: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Gesture:
    """A class of phones that lips make alike."""

    lips: Timing
    rounding: Timing
    targets: dict[str, Target]


GESTURES: dict[str, Gesture] = {
    "bilabial": Gesture(
        lips=Timing(0.080, 0.040, 0.034, 0.97),
        rounding=Timing(0.120, 0.053, 0.030, 1.06),
        targets={
            "b": Target(jaw=0.1, open=0.1, round=0.36, close=1),
            "p": Target(jaw=0.1, open=0.1, round=0.36, close=1),
            "m": Target(jaw=0.1, open=0.1, round=0.36, close=1),
        },
    ),
    "labiodental": Gesture(
        lips=Timing(0.098, 0.031, 0.027, 6.00),
        rounding=Timing(0.050, 0.049, 0.049, 0.48),
        targets={
            "f": Target(round=0.08, labiodental=1),
            "v": Target(round=0.07, labiodental=1),
        },
    ),
    "open": Gesture(
        lips=Timing(0.000, 0.035, 0.098, 2.12),
        rounding=Timing(0.099, 0.058, 0.047, 0.67),
        targets={
            "aa": Target(jaw=0.95, open=0.67, round=0.02, funnel=0.03),
            "ae": Target(jaw=0.92, open=0.72, round=0.02, funnel=0.03, spread=0.15),
            "ah": Target(jaw=0.75, open=0.6, round=0.02, funnel=0.03),
            "eh": Target(jaw=0.75, open=0.67, funnel=0.04, spread=0.1),
        },
    ),
    "front": Gesture(
        lips=Timing(0.069, 0.042, 0.038, 0.68),
        rounding=Timing(0.060, 0.059, 0.050, 0.84),
        targets={
            "ih": Target(jaw=0.3, open=0.47),
            "iy": Target(jaw=0.21, open=0.5, spread=0.08),
            "y": Target(jaw=0.19, open=0.41, spread=0.05),
        },
    ),
    "round": Gesture(
        lips=Timing(0.096, 0.052, 0.039, 1.31),
        rounding=Timing(0.068, 0.100, 0.073, 3.50),
        targets={
            "ao": Target(jaw=0.42, open=0.38, round=0.06),
            "uh": Target(jaw=0.15, open=0.24, round=0.22, funnel=0.04),
            "uw": Target(jaw=0.08, open=0.11, round=0.52, funnel=0.02),
            "w": Target(jaw=0.02, open=0.04, round=0.58),
        },
    ),
    "schwa": Gesture(
        lips=Timing(0.082, 0.039, 0.038, 0.46),
        rounding=Timing(0.068, 0.047, 0.049, 0.26),
        targets={
            "ax": Target(jaw=0.3, open=0.36, round=0.09, funnel=0.03),
        },
    ),
    "alveolar": Gesture(
        lips=Timing(0.135, 0.039, 0.031, 0.48),
        rounding=Timing(0.069, 0.049, 0.050, 0.26),
        targets={
            "t": Target(jaw=0.13, open=0.37, tongue_up=1),
            "n": Target(jaw=0.13, open=0.37, tongue_up=1),
            "d": Target(jaw=0.13, open=0.36, tongue_up=1),
            "l": Target(jaw=0.18, open=0.38, spread=0.02, tongue_up=1),
        },
    ),
    "sibilant": Gesture(
        lips=Timing(0.100, 0.041, 0.033, 0.69),
        rounding=Timing(0.068, 0.050, 0.050, 0.66),
        targets={
            "s": Target(jaw=0.13, open=0.58, spread=0.13),
            "z": Target(jaw=0.12, open=0.58, spread=0.13),
        },
    ),
    "postalveolar": Gesture(
        lips=Timing(0.102, 0.044, 0.033, 1.07),
        rounding=Timing(0.069, 0.057, 0.047, 0.91),
        targets={
            "sh": Target(open=0.24, round=0.23, funnel=0.39),
            "zh": Target(open=0.24, round=0.23, funnel=0.39),
            "jh": Target(open=0.24, round=0.23, funnel=0.39),
            "ch": Target(open=0.24, round=0.23, funnel=0.4),
            "r": Target(jaw=0.09, open=0.16, round=0.24, funnel=0.14),
            "er": Target(jaw=0.17, open=0.24, round=0.16, funnel=0.09),
        },
    ),
    "dental": Gesture(
        lips=Timing(0.102, 0.041, 0.034, 0.67),
        rounding=Timing(0.078, 0.049, 0.049, 0.35),
        targets={
            "th": Target(jaw=0.34, open=0.46, funnel=0.02, tongue_out=1),
            "dh": Target(jaw=0.35, open=0.46, funnel=0.03, tongue_out=1),
        },
    ),
    "velar": Gesture(
        lips=Timing(0.083, 0.040, 0.033, 0.62),
        rounding=Timing(0.071, 0.050, 0.050, 0.30),
        targets={
            "k": Target(jaw=0.33, open=0.47, round=0.05, funnel=0.05),
            "g": Target(jaw=0.33, open=0.47, round=0.05, funnel=0.04),
            "ng": Target(jaw=0.34, open=0.47, round=0.05, funnel=0.05),
            "hh": Target(jaw=0.38, open=0.46, round=0.05, funnel=0.04),
        },
    ),
}
"""Fitted; the classes are those of `benchmarks.articulation`."""
BARRED = Timing(0.078, 0.021, 0.015)
"""Of closures; the weight is of no use, the strongest counts."""
_PARTED = (Timing(0.07, 0.03, 0.03, 0.6), Timing(0.07, 0.03, 0.03, 0.3))
_RESTING = (Timing(0.0, 0.03, 0.03, 2.0), Timing(0.0, 0.03, 0.03))
_REST = Target(close=0.35, spread=0.15)
_GESTURE_OF = {phone: gesture for gesture in GESTURES.values() for phone in gesture.targets}
_VOWEL_TARGETS = frozenset(
    phone for name in ("open", "front", "round", "schwa") for phone in GESTURES[name].targets
) | {"er"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Articulation:
    """Morph weights of a mouth over time."""

    weights: F64  # (T, K), of the rig's morphs

    def landmarks(self, identity: int) -> F32:
        """Returns landmarks (T, 68, 3) in dm of head space of one of the rig's faces."""
        return load_rig().landmarks(self.weights, identity)


def articulate(phones: Sequence[Phone], pcm: I16, *, frames: int, style: Style) -> Articulation:
    """Returns how a speaker moves the mouth to say this; lids and brows rest, since no sound tells of them.

    Args:
        phones: From 0 to the clip's end without a gap.
        pcm: (640 frames,) or more at 16 kHz, for how loud each vowel is.
        frames: T.
        style: The speaker's habits.

    Raises:
        InputError: a phone is none of `sounds.PHONE_CLASSES`, or there is none.
    """
    tracks = move_tracks(phones, pcm, frames=frames, style=style)
    return Articulation(weights=weigh_morphs(tracks, load_rig().names, style))


def move_tracks(phones: Sequence[Phone], pcm: I16, *, frames: int, style: Style) -> F64:
    """Returns the tracks (frames, 9); see `articulate`."""
    pull = _pulls(phones, phone_levels_db(phones, pcm), style)
    time_s = (np.arange(frames * STEPS_PER_FRAME) + 0.5) / (FRAME_RATE_HZ * STEPS_PER_FRAME)  # (S,)
    blocks_s = np.array_split(time_s, len(time_s) // _BLOCK_STEPS + 1)
    tracks = np.concatenate([_tracks_at(block_s, pull) for block_s in blocks_s])  # (S, 9)
    gain = np.ones(len(Track))
    gain[[Track.JAW, Track.OPEN]] = style.opening
    gain[[Track.ROUND, Track.FUNNEL]] = style.rounding
    gain[Track.SPREAD] = style.spreading
    steps = (tracks * gain).reshape(frames, STEPS_PER_FRAME, len(Track))
    mean: F64 = steps.mean(axis=1)
    mean[:, BARRING] = (
        0.6 * steps[:, :, BARRING].max(axis=1) + 0.4 * mean[:, BARRING]
    )  # a short closure is whole
    return mean


def _tracks_at(time_s: F64, pull: _Pulls) -> F64:
    """Returns the tracks (S, 9) at some moments (S,)."""
    tracks = np.zeros((len(time_s), len(Track)))
    for group, columns in enumerate((LIPS, ROUNDING)):
        away = _away(time_s, pull, group)  # (S, N)
        dominance = pull.weight[:, group] * np.exp(-1.4 * away**2) + 1e-9
        dominance /= dominance.sum(axis=1, keepdims=True)
        tracks[:, columns] = dominance @ pull.target[:, columns]
    sealed = np.exp(-9 * np.maximum(_away(time_s, pull, 2) - 0.75, 0) ** 2)  # (S, N), flat about its centre
    for column in BARRING:
        tracks[:, column] = (sealed * pull.target[:, column]).max(axis=1)
    return tracks


def weigh_morphs(tracks: F64, names: Sequence[str], style: Style) -> F64:
    """Returns the weights (T, K) of the rig's morphs that make tracks (T, 9) visible."""
    weights = mouth_weights(tracks, style)
    lids = np.full(len(tracks), style.lids)
    weights |= {"eye-left-closure": lids, "eye-right-closure": lids}
    weights |= {"eye-left-slit": lids / 2, "eye-right-slit": lids / 2}
    at_rest = np.zeros(len(tracks))
    return np.stack([weights.get(name, at_rest) for name in names], axis=1)


def mouth_weights(tracks: F64, style: Style) -> dict[str, F64]:
    """Returns the weight (T,) of each morph of mouth and jaw, by name."""
    jaw, apart, rounding, funnel, spread, close, labiodental, tongue_up, tongue_out = tracks.T
    close, rounded = np.clip(close, 0, 1), np.clip(rounding, 0, 1)
    apart = apart * (1 - close) * (1 - 0.8 * rounded)
    opened = 0.40 * jaw
    spread = np.clip(spread + style.coupling * jaw, 0, 1.2)
    return {
        "mouth-open": opened,
        "lips-seal": opened * np.clip(close + 0.5 * rounding + 0.6 * labiodental, 0, 1),
        "lips-press": 0.4 * close,
        "mouth-compression": 0.22 * close**2,
        "lower-drop": 0.55 * apart * (1 - 0.8 * labiodental),
        "upper-raise": 0.45 * apart + 0.15 * labiodental * (1 - close),
        "mouth-pursing": 0.62 * rounding,
        "lip-funnel-up": 0.35 * rounding + 0.55 * funnel,
        "mouth-protusion": 0.22 * funnel,
        "mouth-retraction": 0.42 * spread * (1 - rounded),
        "mouth-upward-retraction": 0.14 * spread,
        "mouth-corner-puller": style.smile * (1 - 0.7 * rounding),
        "labiodental": labiodental * (1 - 0.92 * close),
        "tongue-up": 0.8 * tongue_up,
        "tongue-out": 0.7 * tongue_out,
    }


def phone_levels_db(phones: Sequence[Phone], pcm: I16) -> F64:
    """Returns how much louder each phone is than the clip's median one (N,), dB, within 12; pauses: 0."""
    levels = np.full(len(phones), np.nan)
    for row, (label, start_s, end_s) in enumerate(phones):
        first = round(start_s * SAMPLE_RATE_HZ)
        piece = pcm[first : max(round(end_s * SAMPLE_RATE_HZ), first + 1)].astype(np.float64)
        if label != PAUSE and len(piece):
            levels[row] = 10 * np.log10(np.square(piece).mean() + 1.0)
    if np.isnan(levels).all():
        return np.zeros(len(phones))
    louder: F64 = np.clip(np.nan_to_num(levels - np.nanmedian(levels)), -MAX_LEVEL_DB, MAX_LEVEL_DB)
    return louder


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pulls:
    """What pulls, N rows: phones, a diphthong's halves, pauses; timings for lips, rounding, closures."""

    middle_s: F64  # (N,)
    half_s: F64  # (N,)
    target: F64  # (N, 9)
    lead_s: F64  # (N, 3)
    on_s: F64  # (N, 3)
    off_s: F64  # (N, 3)
    weight: F64  # (N, 3)


def _away(time_s: F64, pull: _Pulls, group: int) -> F64:
    """Returns how far each moment (S,) is from each pull's centre, in its own reaches, (S, N)."""
    away_s = time_s[:, None] - (pull.middle_s - pull.lead_s[:, group])
    reach_s = np.where(away_s < 0, pull.on_s[:, group], pull.off_s[:, group]) + pull.half_s
    away: F64 = np.abs(away_s) / reach_s
    return away


def _pulls(phones: Sequence[Phone], levels_db: F64, style: Style) -> _Pulls:
    rows: list[tuple[float, float, Target, tuple[Timing, Timing]]] = []
    for (label, start_s, end_s), level_db in zip(phones, levels_db, strict=True):
        phone = base(label)
        if phone == PAUSE:
            if end_s - start_s < MIN_REST_S:
                parted = Target(jaw=0.3 * style.parted, open=0.8 * style.parted, spread=style.parted)
                rows.append((start_s, end_s, parted, _PARTED))
            else:
                rows.append((start_s + REST_ON_S, end_s - REST_OFF_S, _REST, _RESTING))
            continue
        turn_s = start_s + FIRST_SHARE * (end_s - start_s)
        vowels = DIPHTHONGS.get(phone)
        parts = [(phone, start_s, end_s)]
        if vowels is not None:
            parts = [(vowels[0], start_s, turn_s), (vowels[1], turn_s, end_s)]
        for part, first_s, last_s in parts:
            gesture = _GESTURE_OF.get(part)
            if gesture is None:
                known = ", ".join(sorted({*_GESTURE_OF, *DIPHTHONGS, PAUSE}))
                raise InputError(
                    f"phones: expected each one of {known}, got {show(label)} at {start_s:.2f} s; "
                    f"map it to what the lips do alike"
                )
            target = gesture.targets[part]
            if part in _VOWEL_TARGETS:
                stressed = label.endswith("1") - _STRESSED_SHARE
                more = style.loudness * level_db / 6 + style.stress * stressed
                target = target._replace(jaw=target.jaw * (1 + more), open=target.open * (1 + more / 2))
            rows.append((first_s, last_s, target, (gesture.lips, gesture.rounding)))
    if not rows:
        raise InputError("phones: expected one or more, got none; give the phones of the whole clip")
    timing = np.array([(*times, BARRED) for _, _, _, times in rows])  # (N, 3, 4)
    ends_s = np.array([row[:2] for row in rows])  # (N, 2)
    return _Pulls(
        middle_s=ends_s.mean(axis=1),
        half_s=(ends_s[:, 1] - ends_s[:, 0]) / 2,
        target=np.array([row[2] for row in rows]),
        lead_s=timing[..., 0] + style.lead_s,
        on_s=timing[..., 1] / style.pace,
        off_s=timing[..., 2] / style.pace,
        weight=timing[..., 3],
    )
