"""How well one mouth follows another, and how far a mouth leads its own sound. Plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import BOOL, F32, F64, I16
from models.time_base import FRAME_MS, FRAME_SAMPLES, SAMPLE_RATE_HZ
from preparation.sounds import quiet_frames
from training.measures import area_under_curve, pearson

from .lip_track import Lips

MAX_LAG_FRAMES = 6
LAGS_FRAMES = range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
CLOSED_SHARE = 0.1  # of the range from the 5th to the 95th percentile of a person's opening
MIN_LEAD_R = 0.3  # below it, or of fewer frames, a lead is chance
MIN_LEAD_FRAMES = 75
_BANDS = 24
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0
_FLOOR_DB = 40.0  # below a band's mean power all is silence
_RIDGE = 0.1  # of the features' variance
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class ByLag:
    """Pearson's r of a speaker's mouth with a person's, `LAGS_FRAMES` frames later.

    Frame t of the speaker's is held against frame t + lag of the person's: a negative lag says that the
    person's lips move first, so that the speaker is late.
    """

    r: tuple[float, ...]

    @property
    def r_now(self) -> float:
        """As both are, at lag 0."""
        return self.r[MAX_LAG_FRAMES]

    @property
    def best_lag_frames(self) -> int | None:
        """The lag of the largest r; None where no r is above 0."""
        return LAGS_FRAMES[int(np.argmax(self.r))] if self.best_r > 0 else None

    @property
    def best_r(self) -> float:
        """The largest r."""
        return max(self.r)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far a mouth is ahead of its own sound."""

    lead_ms: float | None  # positive: the lips move first; None: too little of it follows the sound to say
    r: float  # of the opening with the best guess from the sound, at that lead


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A speaker's mouth against a person's on the person's sound."""

    frames: int  # in which the person's face was seen
    opening: ByLag
    width: ByLag
    closure_auc: float  # frames of speech in which the person's mouth is shut, by the speaker's opening
    closed_frames: int
    person_lead: Lead
    speaker_lead: Lead


def agreement(speaker: Lips, person: Lips, pcm: I16) -> Agreement:
    """Returns how well a speaker follows a person, both (T,) frames on the same samples (640 T,)."""
    low, high = np.percentile(person.opening[person.seen], (5, 95))
    spoken = person.seen & ~quiet_frames(pcm)
    closed = person.opening < low + CLOSED_SHARE * (high - low)
    return Agreement(
        frames=int(person.seen.sum()),
        opening=ByLag(r=_r_by_lag(speaker.opening, person.opening, person.seen)),
        width=ByLag(r=_r_by_lag(speaker.width, person.width, person.seen)),
        closure_auc=area_under_curve(-speaker.opening[spoken], closed[spoken]),
        closed_frames=int(closed[spoken].sum()),
        person_lead=lead_of(person, pcm),
        speaker_lead=lead_of(speaker, pcm),
    )


def lead_of(lips: Lips, pcm: I16) -> Lead:
    """Returns how far lips (T,) are ahead of their own sound (640 T,), without anybody else's.

    At each lag a ridge regression guesses the opening from the spectrum of a single frame's samples, on
    frames that it was not fitted to; the lead is where the guess is best, by a parabola between frames.
    """
    if lips.seen.sum() < MIN_LEAD_FRAMES:
        return Lead(lead_ms=None, r=0.0)
    spectrum = _spectrum(pcm)
    r = [
        _guess_r(spectrum[of_sound], lips.opening[of_lips], lips.seen[of_lips])
        for of_lips, of_sound in map(_overlap, LAGS_FRAMES)
    ]
    best = int(np.argmax(r))
    if r[best] < MIN_LEAD_R or not 0 < best < len(r) - 1:
        return Lead(lead_ms=None, r=r[best])
    before, at, after = r[best - 1 : best + 2]
    top = 0.5 * (before - after) / min(before - 2 * at + after, -1e-9)
    return Lead(lead_ms=FRAME_MS * (LAGS_FRAMES[best] + float(np.clip(top, -0.5, 0.5))), r=at)


def _r_by_lag(speaker: F32, person: F32, seen: BOOL) -> tuple[float, ...]:
    found = []
    for of_speaker, of_person in map(_overlap, LAGS_FRAMES):
        both = seen[of_person]
        found.append(pearson(speaker[of_speaker][both], person[of_person][both]))
    return tuple(found)


def _overlap(lag: int) -> tuple[slice, slice]:
    """Returns the frames t of one series, and those t + lag of another as long, that both have."""
    if lag >= 0:
        return slice(0, -lag or None), slice(lag, None)
    return slice(-lag, None), slice(0, lag)


def _guess_r(features: F64, values: F32, known: BOOL) -> float:
    """Returns the correlation of values (n,) with what features (n, F) tell of them, by cross-validation."""
    features, values = features[known], values[known]
    fold = np.arange(len(values)) * _FOLDS // max(len(values), 1)  # runs: neighbours are alike
    guess = np.zeros(len(values))
    for held_out in range(_FOLDS):
        fitted = fold != held_out
        mean, std = features[fitted].mean(axis=0), features[fitted].std(axis=0) + 1e-9
        x, y = (features[fitted] - mean) / std, values[fitted] - values[fitted].mean()
        weights = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
        guess[~fitted] = (features[~fitted] - mean) / std @ weights + values[fitted].mean()
    return pearson(guess.astype(np.float32), values)


def _spectrum(pcm: I16) -> F64:
    """Returns the log power (T, bands) of each frame's own samples, in bands of equal width in mel."""
    frames = pcm.reshape(-1, FRAME_SAMPLES) * np.hanning(FRAME_SAMPLES)
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = _mel(np.arange(len(power[0])) * SAMPLE_RATE_HZ / FRAME_SAMPLES)
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), _BANDS + 2)
    distance = np.abs(mel - edges[1:-1, None]) / (edges[1] - edges[0])
    bands = power @ np.clip(1 - distance, 0, None).T  # (T, bands)
    floor = bands.mean(axis=0) * 10 ** (-_FLOOR_DB / 10) + 1e-9
    found: F64 = np.log(bands + floor)
    return found


def _mel(hz: npt.ArrayLike) -> F64:
    mel: F64 = 2595 * np.log10(1 + np.asarray(hz, np.float64) / 700)
    return mel
