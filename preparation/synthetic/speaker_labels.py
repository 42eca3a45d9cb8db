"""New landmarks for a rendered speaker's sound: `geneface-prepare speaker-labels`.

May's video was drawn from other labels. What head and torso learn stays with it; PostNet learns how she
speaks from these: her sound and phones, the mouth moved by `articulation`, lids and brows as in the video.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from models.partial_files import atomic_write

from ..arrays import Kind, read_npz
from ..speaker_set import (
    PHONES_FILE,
    SOUND_FILE,
    TRUTH,
    TRUTH_FILE,
    SpeakerDataError,
    read_phones,
    read_sound,
)
from .articulation import mouth_weights, move_tracks
from .rig import load_rig
from .styles import Style

MAY_STYLE = Style(smile=0.19)
_KINDS = {"landmarks": TRUTH["landmarks"], "morph_weights": Kind((None, None))}
_RENDERED = "give the folder of a speaker that was rendered from morphs"


def relabel(data: Path, out: Path, style: Style = MAY_STYLE) -> None:
    """Writes the folder of a speaker without pictures: sound, phones, new `landmarks` in `truth.npz`.

    Raises:
        FileError: the folder lacks sound, phones or the weights of the rig's morphs, or is `out` itself.
        InputError: a phone is not known.
    """
    if out.resolve() == data.resolve():
        raise SpeakerDataError(out, "", "another folder than the speaker's", "the same", "give a new one")
    truth = data / TRUTH_FILE
    held = read_npz(truth, _KINDS, SpeakerDataError, _RENDERED)
    landmarks, weights = held["landmarks"], held["morph_weights"]  # (T, 68, 3), (T, M)
    frames = len(landmarks)
    if len(weights) != frames:
        expected = f"{frames} frames, as landmarks has"
        raise SpeakerDataError(truth, "morph_weights", expected, len(weights), _RENDERED)
    columns = _morph_names(truth, weights.shape[1])
    phones = read_phones(data)
    if phones is None:
        expected = "phones with their times"
        raise SpeakerDataError(data / PHONES_FILE, "", expected, "no such file", _RENDERED)
    rig = load_rig()
    tracks = move_tracks(phones, read_sound(data, frames), frames=frames, style=style)
    moved = np.zeros((frames, 68, 3))
    for name, wanted in mouth_weights(tracks, style).items():
        if name not in rig.names:
            continue
        if name not in columns:
            raise SpeakerDataError(truth, "morph_names", f"{name} among them", "others alone", _RENDERED)
        more = wanted - weights[:, columns.index(name)]
        moved += more[:, None, None] * rig.morphs[rig.names.index(name)]
    out.mkdir(parents=True, exist_ok=True)
    for name in (SOUND_FILE, PHONES_FILE):
        with atomic_write(out / name) as path:
            shutil.copyfile(data / name, path)
    with atomic_write(out / TRUTH_FILE) as path:
        np.savez(path, landmarks=(landmarks + moved).astype(np.float32))


def _morph_names(truth: Path, count: int) -> list[str]:
    """Returns the names of a speaker's `count` morphs."""
    try:
        with np.load(truth) as arrays:
            names = arrays["morph_names"]
    except (OSError, ValueError, KeyError):  # absent, or objects
        names = np.array([])
    if names.dtype.kind != "U" or names.shape != (count,):
        expected = f"{count} names, as morph_weights has columns"
        got = f"{' x '.join(map(str, names.shape))} of {names.dtype}" if names.size else "none"
        raise SpeakerDataError(truth, "morph_names", expected, got, _RENDERED)
    return [str(name) for name in names]
