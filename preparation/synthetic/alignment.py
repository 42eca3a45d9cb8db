"""Phones with times of a recording whose words are known: synthesis and dynamic time warping.

espeak-ng says the text with exact times; its cepstra are warped onto the recording's, and its phones go
along. The method is that of aeneas (A. Pettarin); here pauses are taken out of both before, and put back as
the recording has them, and several voices are asked, whose median holds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuda_kernels.arrays import BOOL, F32, F64, I16, I64
from cuda_kernels.errors import InputError
from models.time_base import SAMPLE_RATE_HZ

from ..sounds import PAUSE, Phone, base
from .phones import contiguous
from .utterance import Utterance

HOP_SAMPLES = 80
HOP_S = HOP_SAMPLES / SAMPLE_RATE_HZ
MAX_COST = 1.16
MAX_SPREAD_S = 0.02
"""Above them a transcript does not fit its recording; see `benchmarks.alignment`."""
_MAX_APART_S = 0.1  # borders further apart count as this far
MIN_SILENCE_S = 0.13
"""A shorter silence may be a stop's closure."""
_SETTLED_FRAMES = 10
_MIN_PEAK = 100
_KEPT_S = 0.02
_SILENCE_DB = 36.0
_SIZE, _BANDS, _CEPSTRA = 400, 40, 13
_TRANSFORM = 512
_FLOOR_DB = -70.0
_STEPS = 4
_STEP_COSTS = (0.25, 0.0, 0.1, 0.3)
_STOPS = frozenset(["p", "b", "t", "d", "k", "g", "ch", "jh"])


class AlignmentError(InputError):
    """A transcript that does not fit its recording."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The phones of a recording and how well they fit."""

    phones: tuple[Phone, ...]
    cost: float  # mean distance per frame; see MAX_COST
    spread_s: float  # mean distance of one voice's borders from the median of all; see MAX_SPREAD_S


def fits(found: Alignment) -> bool:
    """Returns whether the words may be believed to be the recording's."""
    return found.cost <= MAX_COST and found.spread_s <= MAX_SPREAD_S


def align(pcm: I16, references: Sequence[Utterance]) -> Alignment:
    """Returns the phones of a recording after other voices that say the same.

    Those whose phones are not the first one's are left out.

    Raises:
        AlignmentError: the recording is silent, or far too short for its text.
    """
    if not len(pcm) or np.abs(pcm.astype(np.int32)).max() < _MIN_PEAK:
        raise AlignmentError(f"{references[0].text[:40]!r}: expected a recording of it, got silence")
    silent = silences(pcm)
    kept = np.flatnonzero(~silent)
    labels = [label for label, _, _ in references[0].phones if label != PAUSE]
    recorded = _normalized(cepstra(pcm)[kept])
    borders, costs = [], []
    for reference in references:
        own = [phone for phone in reference.phones if phone[0] != PAUSE]
        if [label for label, _, _ in own] != labels:
            continue
        spoken, edges = _without_pauses(reference)
        path, cost = _warp(recorded, spoken)
        borders.append(np.searchsorted(path, edges))
        costs.append(cost)
    if not costs:
        raise AlignmentError(
            f"{references[0].text[:40]!r}: expected a longer recording of it; the words do not fit"
        )
    middle = np.median(borders, axis=0)
    border = middle.round().astype(np.int64)
    spread_s = float(np.minimum(np.abs(borders - middle) * HOP_S, _MAX_APART_S).mean())
    phones = _put_back(labels, border, kept, len(silent))
    whole = contiguous(settle_pauses(phones, pcm), len(pcm) / SAMPLE_RATE_HZ)
    return Alignment(phones=whole, cost=float(np.median(costs)), spread_s=spread_s)


def cepstra(pcm: I16) -> F64:
    """Returns mel cepstra and their slopes (frames, 26), one each 5 ms; value j is about sample 80 j + 40."""
    spectra = _mel_db(pcm)
    coefficients = spectra @ _cosines()
    slopes = np.gradient(coefficients, axis=0) if len(coefficients) > 1 else np.zeros_like(coefficients)
    kernel = np.ones(5) / 5
    slopes = np.stack([np.convolve(column, kernel, mode="same") for column in slopes.T], axis=1)
    return np.concatenate([coefficients, 4 * slopes], axis=1)


def levels_db(pcm: I16) -> F64:
    """Returns the level (frames,) in dB of the 10 ms around each 5 ms."""
    sound = np.pad(pcm.astype(np.float64), HOP_SAMPLES // 2 + HOP_SAMPLES)
    power = np.add.reduceat(sound**2, np.arange(0, len(sound), HOP_SAMPLES // 2))
    frames = -(-len(pcm) // HOP_SAMPLES)
    first = 2 * np.arange(frames) + 2
    total = sum(power[np.minimum(first + k, len(power) - 1)] for k in range(4))
    return 10 * np.log10(np.asarray(total) / (2 * HOP_SAMPLES) + 1.0)


def silence_from_db(levels: F64) -> float:
    """Returns the level below which there is silence, between the sound's floor and its speech."""
    loud, floor = np.percentile(levels, 95), np.percentile(levels, 3)
    return float(max(loud - _SILENCE_DB, min(floor + 9.0, loud - 24.0)))


def silences(pcm: I16) -> BOOL:
    """Returns which frames of 5 ms lie well inside a silence of at least `MIN_SILENCE_S`."""
    levels = levels_db(pcm)
    quiet = levels < silence_from_db(levels)
    silent = np.zeros(len(quiet), np.bool_)
    keep = round(_KEPT_S / HOP_S)
    for start, stop in _runs(quiet):
        outer = start == 0 or stop == len(quiet)
        if outer or stop - start >= MIN_SILENCE_S / HOP_S:
            first, last = start + keep * (start > 0), stop - keep * (stop < len(quiet))
            silent[first : max(first, last)] = True
    return silent


def settle_pauses(phones: Sequence[Phone], pcm: I16) -> tuple[Phone, ...]:
    """Returns phones whose pauses begin and end where the sound does.

    A pause's edge moves to the nearest place where the level crosses into silence, a stop's closure spared.
    """
    levels = levels_db(pcm)
    quiet = levels < silence_from_db(levels)
    settled = list(phones)
    for number, (label, start_s, end_s) in enumerate(settled):
        if label != PAUSE:
            continue
        if number:
            before, begin_s, _ = settled[number - 1]
            last = _silence_start(quiet, begin_s + 0.03, end_s, start_s)
            if last is not None:
                spared_s = 0.03 if base(before) in _STOPS else 0.0
                start_s = min(max(last + spared_s, begin_s + 0.03), end_s)
                settled[number - 1] = (before, begin_s, start_s)
        if number + 1 < len(settled):
            after, _, stop_s = settled[number + 1]
            first = _silence_end(quiet, start_s, stop_s - 0.03, end_s)
            if first is not None:
                spared_s = 0.06 if base(after) in _STOPS else 0.01
                end_s = max(min(first - spared_s, stop_s - 0.03), start_s)
                settled[number + 1] = (after, end_s, stop_s)
        settled[number] = (PAUSE, start_s, end_s)
    return tuple(settled)


def _silence_start(quiet: BOOL, from_s: float, to_s: float, edge_s: float) -> float | None:
    """Returns where the silence of 50 ms begins that is the first to reach beyond an edge."""
    first, last = round(from_s / HOP_S), round(to_s / HOP_S)
    for start, stop in _runs(quiet[first:last]):
        long = stop - start >= _SETTLED_FRAMES or first + stop >= last
        if long and (first + stop) * HOP_S >= edge_s:
            return (first + start) * HOP_S
    return None


def _silence_end(quiet: BOOL, from_s: float, to_s: float, edge_s: float) -> float | None:
    """Returns where the silence of 50 ms ends that is the last to begin before an edge."""
    first, last = round(from_s / HOP_S), round(to_s / HOP_S)
    for start, stop in reversed(_runs(quiet[first:last])):
        long = stop - start >= _SETTLED_FRAMES and first + stop < len(quiet)
        if long and (first + start) * HOP_S <= edge_s:
            return (first + stop) * HOP_S
    return None


def _runs(mask: BOOL) -> list[tuple[int, int]]:
    """Returns the first and the end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _without_pauses(reference: Utterance) -> tuple[F32, I64]:
    """Returns the frames of a reference's speech and the first one of each phone, and the end."""
    features = cepstra(reference.pcm)
    pieces, edges, total = [], [], 0
    for label, start_s, end_s in reference.phones:
        if label == PAUSE:
            continue
        first, last = round(start_s / HOP_S), min(round(end_s / HOP_S), len(features))
        last = max(last, first + 1)
        edges.append(total)
        total += last - first
        pieces.append(features[first:last])
    return _normalized(np.concatenate(pieces)), np.array([*edges, total])


def _normalized(features: F64) -> F32:
    """Returns features without their mean, each as large as another."""
    spread = features.std(axis=0) + 1e-3
    even: F32 = ((features - features.mean(axis=0)) / spread).astype(np.float32)
    return even


def _warp(recorded: F32, spoken: F32) -> tuple[I64, float]:
    """Returns the frame of `spoken` for each of `recorded` (n,), never falling, and the mean cost.

    A frame may stay or go on by up to three.
    """
    n, m = len(recorded), len(spoken)
    squares = (recorded**2).sum(1)[:, None] + (spoken**2).sum(1)[None] - 2 * recorded @ spoken.T
    distance = np.sqrt(np.maximum(squares, 0) / recorded.shape[1])  # (n, m)
    total = np.full(m + _STEPS - 1, np.inf)
    total[_STEPS - 1] = distance[0, 0]
    steps = np.zeros((n, m), np.int8)
    for row in range(1, n):
        options = np.stack(
            [total[_STEPS - 1 - step : m + _STEPS - 1 - step] + _STEP_COSTS[step] for step in range(_STEPS)]
        )
        steps[row] = options.argmin(axis=0)
        total[_STEPS - 1 :] = options.min(axis=0) + distance[row]
    path = np.zeros(n, np.int64)
    at = m - 1
    if not np.isfinite(total[-1]):
        return np.linspace(0, m - 1, n).astype(np.int64), float("inf")
    for row in range(n - 1, -1, -1):
        path[row] = at
        at -= int(steps[row, at])
    return path, float(distance[np.arange(n), path].mean())


def _put_back(labels: Sequence[str], border: I64, kept: I64, frames: int) -> list[Phone]:
    """Returns phones with the recording's pauses between them.

    Args:
        labels: of the phones.
        border: first kept frame of each phone, and the end (phones + 1,).
        kept: the recording's frames that are not silent.
        frames: how many it has.
    """
    phones: list[Phone] = []
    for number, label in enumerate(labels):
        inside = kept[border[number] : border[number + 1]]
        if not len(inside):
            at = kept[min(border[number], len(kept) - 1)] * HOP_S
            phones.append((label, at, at))
            continue
        gaps = np.flatnonzero(np.diff(inside) > 1)
        # A pause inside a phone: the larger part of the phone is the phone.
        parts = np.split(inside, gaps + 1)
        part = max(parts, key=len)
        phones.append((label, part[0] * HOP_S, (part[-1] + 1) * HOP_S))
    return [phone for phone in _stretched(phones) if phone[2] <= frames * HOP_S]


def _stretched(phones: Sequence[Phone]) -> list[Phone]:
    """Returns phones that each last at least 10 ms, the neighbour giving way."""
    out: list[Phone] = []
    for label, start_s, end_s in phones:
        start_s = max(start_s, out[-1][2] if out else 0.0)
        out.append((label, start_s, max(end_s, start_s + 0.01)))
    return out


def _mel_db(pcm: I16) -> F64:
    frames = -(-len(pcm) // HOP_SAMPLES)
    sound = pcm.astype(np.float64) / 32_768
    sound = np.append(sound[:1], sound[1:] - 0.97 * sound[:-1])
    before = _SIZE // 2 - HOP_SAMPLES // 2
    padded = np.pad(sound, (before, _SIZE + HOP_SAMPLES))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SIZE)[::HOP_SAMPLES][:frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(_SIZE), _TRANSFORM)) ** 2
    mel = 10 * np.log10(power @ _filters() + 1e-10)
    floor = max(_FLOOR_DB, float(mel.max()) - 60)
    audible: F64 = np.maximum(mel, floor)
    return audible


@functools.cache
def _filters() -> F64:
    """Returns triangular mel filters (257, 40) from 80 to 7600 Hz."""
    top = 2595 * np.log10(1 + 7600 / 700)
    bottom = 2595 * np.log10(1 + 80 / 700)
    edges_hz = 700 * (10 ** (np.linspace(bottom, top, _BANDS + 2) / 2595) - 1)
    bins_hz = np.arange(_TRANSFORM // 2 + 1) * SAMPLE_RATE_HZ / _TRANSFORM
    rise = (bins_hz[:, None] - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    fall = (edges_hz[2:] - bins_hz[:, None]) / np.diff(edges_hz)[1:]
    filters: F64 = np.maximum(0, np.minimum(rise, fall))
    return filters


@functools.cache
def _cosines() -> F64:
    """Returns the cosine transform (40, 13), scaled to unit length."""
    k = np.arange(_CEPSTRA)
    rows = np.cos(np.pi / _BANDS * (np.arange(_BANDS)[:, None] + 0.5) * k)
    scaled: F64 = rows * np.sqrt(2 / _BANDS)
    return scaled
