"""Phonetic class of each video frame, from a recording's phones or its loudness."""

from __future__ import annotations

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
_REST_MARGIN_S = 0.1  # the lips still move at a pause's ends
_REST_PAUSE_S = 0.3  # shorter pauses do not reach rest


class Sound(IntEnum):
    """Phonetic class of a frame, at its middle."""

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
    for label, start_s, end_s in phones:
        inside = (middle_s >= start_s) & (middle_s < end_s)
        if label in BILABIALS:
            sounds[inside] = Sound.BILABIAL
        elif label == PAUSE:
            sounds[inside] = Sound.PAUSE
            if end_s - start_s >= _REST_PAUSE_S:
                settled = (middle_s >= start_s + _REST_MARGIN_S) & (middle_s < end_s - _REST_MARGIN_S)
                sounds[settled] = Sound.REST
    return sounds


def quiet_frames(pcm: I16) -> BOOL:
    """Returns silence (T,) bool, 0.2 s around each frame 30 dB below loud ones, of samples (640 T,)."""
    level = np.sqrt(np.square(pcm.astype(np.float32).reshape(-1, FRAME_SAMPLES)).mean(axis=1))  # (T,)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(level, 2, mode="edge"), 5)  # (T, 5)
    quiet: BOOL = around.max(axis=1) < np.percentile(level, 95) * 10 ** (-30 / 20)
    return quiet
