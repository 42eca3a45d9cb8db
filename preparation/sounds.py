"""Phonetic class of each video frame, from a recording's phones or its loudness."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import IntEnum

import numpy as np

from cuda_kernels.arrays import BOOL, I16, U8
from models.settings import show
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES

Phone = tuple[str, float, float]
"""A label, its start and its end in s."""
PHONES = "a list of [label, start in s, end in s]"
BILABIALS = frozenset({"b", "p", "m"})
PAUSE = "pau"
MAX_TIME_S = 10**9
SPEECH = "speech"
"""The `kind` of a clip with speech."""
CONSONANTS = (
    *("b", "p", "m", "f", "v", "th", "dh", "t", "d", "n", "l", "s", "z", "sh", "zh", "ch", "jh"),
    *("k", "g", "ng", "r", "w", "y", "hh"),
)
VOWELS = (
    *("aa", "ae", "ah", "ax", "ao", "eh", "er", "ih", "iy", "uh", "uw"),
    *("ay", "aw", "ey", "ow", "oy"),
)
PHONE_CLASSES = (PAUSE, *CONSONANTS, *VOWELS)
"""ARPAbet without stress; a phone's class is its place here."""
UNKNOWN_PHONE = 255
"""The class of what no phone of these covers."""
PHONES_PER_FRAME = 2
"""Phones are told apart at 50 Hz: many last less than a frame."""
LIPS_LEAD_S = 0.08
"""How early lips are where a sound needs them: people's, by 40 to 90 ms (`benchmarks.articulation`)."""
_REST_ON_S, _REST_OFF_S = 0.15, 0.20  # at a pause's ends the lips still, or already, move
_REST_PAUSE_S = 0.39  # shorter pauses do not reach rest


class Sound(IntEnum):
    """Phonetic class of a frame: what its lips are for, `LIPS_LEAD_S` after its middle."""

    OTHER = 0
    BILABIAL = 1
    PAUSE = 2
    REST = 3  # well inside a long pause, or no speech in the clip at all


def parse_phones(value: object) -> tuple[Phone, ...]:
    """Returns the phones of a JSON value, `PHONES`.

    Raises:
        ValueError: it holds something else; the message says what, in a few words.
    """
    if not isinstance(value, list):
        raise ValueError(show(value))
    phones = []
    for phone in value:
        if not isinstance(phone, list) or [type(part) for part in phone[:1]] != [str] or len(phone) != 3:
            raise ValueError(show(phone))
        if not all(type(time_s) in (int, float) and abs(time_s) < MAX_TIME_S for time_s in phone[1:]):
            raise ValueError(f"{show(phone[0])} at another time")
        phones.append((phone[0], phone[1], phone[2]))
    return tuple(phones)


def classify_frames(frames: int, phones: Iterable[Phone], kind: str) -> U8:
    """Returns the `Sound` of each frame (frames,) of a clip with these phones; no speech is all rest."""
    if kind != SPEECH:
        return np.full(frames, Sound.REST, np.uint8)
    sounds = np.full(frames, Sound.OTHER, np.uint8)
    middle_s = (np.arange(frames) + 0.5) / FRAME_RATE_HZ
    meant_s = np.minimum(middle_s + LIPS_LEAD_S, (frames - 0.5) / FRAME_RATE_HZ)  # no sound follows the last
    for label, start_s, end_s in phones:
        inside = (meant_s >= start_s) & (meant_s < end_s)
        if label in BILABIALS:
            sounds[inside] = Sound.BILABIAL
        elif label == PAUSE:
            sounds[inside] = Sound.PAUSE
            if end_s - start_s >= _REST_PAUSE_S:
                settled = (middle_s >= start_s + _REST_ON_S) & (middle_s < end_s - _REST_OFF_S)
                sounds[settled] = Sound.REST
    return sounds


def base(label: str) -> str:
    """Returns a phone's label without its digit of stress."""
    return label.rstrip("012")


def classify_phones(frames: int, phones: Iterable[Phone], kind: str) -> U8:
    """Returns the place in `PHONE_CLASSES` at the middle of each half frame, (frames, 2); no speech is pause.

    Where no phone is, or one that is not among them, it is `UNKNOWN_PHONE`. A vowel may end in its stress, a
    digit.
    """
    if kind != SPEECH:
        return np.full((frames, PHONES_PER_FRAME), PHONE_CLASSES.index(PAUSE), np.uint8)
    classes = np.full(PHONES_PER_FRAME * frames, UNKNOWN_PHONE, np.uint8)
    rate_hz = PHONES_PER_FRAME * FRAME_RATE_HZ
    for label, start_s, end_s in phones:
        bare = base(label)
        if bare in PHONE_CLASSES:
            first, last = (max(0, math.ceil(rate_hz * time_s - 0.5)) for time_s in (start_s, end_s))
            classes[first:last] = PHONE_CLASSES.index(bare)
    return classes.reshape(frames, PHONES_PER_FRAME)


def quiet_frames(pcm: I16) -> BOOL:
    """Returns silence (T,) bool, 0.2 s around each frame 30 dB below loud ones, of samples (640 T,)."""
    level = np.sqrt(np.square(pcm.astype(np.float32).reshape(-1, FRAME_SAMPLES)).mean(axis=1))  # (T,)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(level, 2, mode="edge"), 5)  # (T, 5)
    quiet: BOOL = around.max(axis=1) < np.percentile(level, 95) * 10 ** (-30 / 20)
    return quiet
