"""New landmarks for a rendered speaker's sound: `geneface-prepare speaker-labels`.

May's video was drawn from other labels. What head and torso learn stays with it; PostNet learns how she
speaks from these: her sound and phones, the mouth moved by `articulation`, lids and brows as in the video.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from models.partial_files import atomic_write

from ..errors import FileError
from ..speaker_set import PHONES_FILE, SOUND_FILE, TRUTH_FILE, read_phones, read_sound
from .articulation import mouth_weights, move_tracks
from .rig import load_rig
from .styles import Style

MAY_STYLE = Style(smile=0.19)


def relabel(data: Path, out: Path, style: Style = MAY_STYLE) -> None:
    """Writes a speaker's folder with its sound, its phones and new `landmarks` in `truth.npz`.

    Raises:
        FileError: the folder lacks phones or morph weights.
    """
    truth = data / TRUTH_FILE
    with np.load(truth) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    for name in ("landmarks", "morph_weights", "morph_names"):
        if name not in held:
            raise FileError(
                truth, name, "an array, as a rendered speaker has", "none", "give a rendered speaker"
            )
    phones = read_phones(data)
    if phones is None:
        raise FileError(
            data / PHONES_FILE, "", "phones with times", "no such file", "give a rendered speaker"
        )
    frames = len(held["landmarks"])
    rig = load_rig()
    tracks = move_tracks(phones, read_sound(data, frames), frames=frames, style=style)
    columns = [str(name) for name in held["morph_names"]]
    moved = np.zeros((frames, 68, 3))
    for name, weights in mouth_weights(tracks, style).items():
        if name in rig.names:
            before = held["morph_weights"][:, columns.index(name)].astype(np.float64)
            moved += (weights - before)[:, None, None] * rig.morphs[rig.names.index(name)]
    held["landmarks"] = (held["landmarks"] + moved).astype(np.float32)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / TRUTH_FILE) as part, part.open("wb") as file:
        np.savez_compressed(file, **{name: held[name] for name in held if name != "morph_weights"})
    for name in (SOUND_FILE, PHONES_FILE):
        shutil.copyfile(data / name, out / name)
