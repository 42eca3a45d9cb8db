"""A speech corpus on disk: `index.jsonl`, `landmarks.npz` and the sound files that the index names.

Time is 25 frames a second, frame i = samples [640 i, 640 (i + 1)) at 16 kHz. Landmarks are
`neutral[row_identity] + (coeff * scale) @ basis`, in decimetres of head space.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from cuda_kernels.arrays import F32, I16, I64
from models.partial_files import atomic_write
from models.settings import show
from models.time_base import FRAME_SAMPLES

from .arrays import Kind, read_npz
from .errors import FileError
from .sounds import PHONES, Phone, parse_phones

INDEX_FILE = "index.jsonl"
LANDMARKS_FILE = "landmarks.npz"
POINTS = 68
COORDINATES = 3 * POINTS
_WAY_OUT = "give the folder of a whole corpus"
_MEAN_FACE = Kind((POINTS, 3))
_KINDS = {
    "coeff": Kind((None, None)),
    "scale": Kind((None,)),
    "basis": Kind((None, COORDINATES)),
    "neutral": Kind((None, POINTS, 3)),
    "row_identity": Kind((None,), whole=True),
    "mean_face": _MEAN_FACE,
}
_TYPES: dict[str, tuple[type, int]] = {
    "id": (str, 0),
    "file": (str, 0),
    "start": (int, 0),
    "frames": (int, 1),
    "row0": (int, 0),
    "row1": (int, 0),
    "split": (str, 0),
    "kind": (str, 0),
}
"""What a line of the index holds, and the lowest number; beside it `samples`, optional `phones`, `voice`."""


class CorpusError(FileError):
    """A corpus folder that is not laid out as expected."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A piece of a sound file with the landmarks of its frames."""

    id: str
    file: str  # inside the corpus folder, or an absolute path
    start: int  # its first sample
    frames: int
    row0: int  # landmarks: rows [row0, row1)
    row1: int
    split: str  # train or val
    kind: str  # speech or another word
    phones: tuple[Phone, ...] = ()
    voice: str = ""  # who speaks, if the index says

    @property
    def samples(self) -> int:
        """The number of its samples."""
        return FRAME_SAMPLES * self.frames


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusSet:
    """A corpus: its clips and the landmarks of all their frames."""

    clips: tuple[Clip, ...]
    coeff: F32  # (rows, K), whole numbers of 16 bits
    scale: F32  # (K,)
    basis: F32  # (K, 204), dm
    neutral: F32  # (identities, 68, 3), dm
    row_identity: I64  # (rows,), into neutral
    mean_face: F32  # (68, 3), dm

    def motion(self) -> F32:
        """Returns ten times the offset of every row from its identity's neutral face, (rows, 204)."""
        motion = (self.coeff * self.scale) @ self.basis
        return np.multiply(motion, 10, dtype=np.float32)

    def neutral_offsets(self) -> F32:
        """Returns ten times the offset of every neutral face from the mean face, (identities, 204)."""
        return 10 * (self.neutral - self.mean_face).reshape(-1, COORDINATES)


def read_corpus_set(folder: Path) -> CorpusSet:
    """Returns a corpus without its sound; see `read_sound`.

    Raises:
        CorpusError: a file is absent or broken, a line or an array is not what the layout says, or the two
            files are not of one corpus.
    """
    clips = _read_index(folder / INDEX_FILE)
    path = folder / LANDMARKS_FILE
    arrays = read_npz(path, _KINDS, CorpusError, _WAY_OUT)
    rows, components = arrays["coeff"].shape
    identities = len(arrays["neutral"])
    for name, size in (("scale", components), ("basis", components), ("row_identity", rows)):
        if len(arrays[name]) != size:
            expected = f"{size} entries, as coeff is {rows} x {components}"
            raise CorpusError(path, name, expected, len(arrays[name]), _WAY_OUT)
    row_identity = arrays["row_identity"]
    if row_identity.min() < 0 or row_identity.max() >= identities:
        got = f"{row_identity.min()} to {row_identity.max()}"
        raise CorpusError(path, "row_identity", f"0 to {identities - 1}, into neutral", got, _WAY_OUT)
    for line, clip in clips:
        if clip.row1 > rows:
            raise CorpusError(
                folder / INDEX_FILE,
                f"line {line}: row1",
                f"{rows} or less, as {LANDMARKS_FILE} has rows",
                clip.row1,
                "the files are not of one corpus: copy it again",
            )
    return CorpusSet(clips=tuple(clip for _, clip in clips), **arrays)


def read_mean_face(path: Path) -> F32:
    """Returns the mean face (68, 3) in dm that an .npz file holds as `mean_face`.

    Raises:
        CorpusError: the file is absent or broken, or holds none.
    """
    way_out = f"give the {LANDMARKS_FILE} of a corpus"
    face: F32 = read_npz(path, {"mean_face": _MEAN_FACE}, CorpusError, way_out)["mean_face"]
    return face


def read_sound(folder: Path, clips: Sequence[Clip]) -> I16:
    """Returns the samples of some clips, concatenated; each file is decoded once.

    Raises:
        CorpusError: a file is absent, undecodable, or shorter than the index says.
    """
    from .media import MediaError, read_pcm  # PyAV, which landmarks do not need

    pieces: list[I16] = [np.zeros(0, np.int16)] * len(clips)
    for name in dict.fromkeys(clip.file for clip in clips):
        path, of_file = folder / name, [clip for clip in clips if clip.file == name]
        try:
            pcm = read_pcm(path)
        except MediaError as error:
            field = f"{error.field or 'file'} of clip {of_file[0].id}"
            raise CorpusError(path, field, error.expected, error.got, "copy the corpus again") from error
        for position, clip in enumerate(clips):
            if clip.file != name:
                continue
            end = clip.start + clip.samples
            if end > len(pcm):
                expected = f"{end} samples"
                raise CorpusError(path, f"clip {clip.id}", expected, len(pcm), "the file is cut short")
            pieces[position] = pcm[clip.start : end]
    return np.concatenate(pieces)


def write_corpus_set(folder: Path, corpus: CorpusSet) -> None:
    """Writes `index.jsonl` and `landmarks.npz`, each whole or not at all; the sound stays where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: getattr(corpus, name) for name in _KINDS}
    arrays["coeff"] = np.rint(arrays["coeff"]).astype(np.int16)
    identity = arrays["row_identity"]
    arrays["row_identity"] = identity.astype(np.min_scalar_type(identity.max()))
    rows = [{**dataclasses.asdict(clip), "samples": clip.samples} for clip in corpus.clips]
    with atomic_write(folder / LANDMARKS_FILE) as path:
        np.savez(path, **arrays)
    with atomic_write(folder / INDEX_FILE) as path:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _read_index(path: Path) -> list[tuple[int, Clip]]:
    """Returns the clips of an index, each with the number of its line."""
    if not path.is_file():
        raise CorpusError(path, "", "an index with a clip a line", "no such file", _WAY_OUT)
    try:
        # Not splitlines: a text in JSON may hold other breaks.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        got = f"what cannot be read ({error})"
        raise CorpusError(path, "", "an index in UTF-8", got, "save it as UTF-8") from error
    clips = []
    for number, text in enumerate(lines, start=1):
        line = text.lstrip("\ufeff").strip()
        if line:
            clips.append((number, _parse_clip(path, number, line)))
    if not clips:
        raise CorpusError(path, "", "a clip a line", "no line", _WAY_OUT)
    return clips


def _parse_clip(path: Path, number: int, line: str) -> Clip:
    def require(holds: bool, key: str, expected: str, got: object) -> None:
        if not holds:
            field = f"line {number}: {key}" if key else f"line {number}"
            raise CorpusError(path, field, expected, got, "write the index anew")

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        got = f"something else ({error}); is the file cut short?"
        raise CorpusError(path, f"line {number}", "a JSON object", got, "write the index anew") from error
    require(isinstance(row, dict), "", "a JSON object", show(row))
    for key, (kind, lowest) in _TYPES.items():
        require(key in row, key, "a value", "none: the key is missing")
        expected = "a text" if kind is str else f"a whole number from {lowest}"
        fits = type(row[key]) is kind and (kind is str or row[key] >= lowest)
        require(fits, key, expected, show(row[key]))
    clip = Clip(**{key: row[key] for key in _TYPES})
    require(row.get("samples") == clip.samples, "samples", f"{clip.samples}", show(row.get("samples")))
    end = clip.row0 + clip.frames
    require(clip.row1 == end, "row1", f"row0 and {clip.frames} frames, {end}", clip.row1)
    inside = PurePath(os.path.normpath(clip.file)).parts[:1] != ("..",)
    require(inside, "file", "a path inside the folder, or an absolute one", show(clip.file))
    try:
        phones = parse_phones(row.get("phones") or [])
    except ValueError as error:
        field = f"line {number}: phones"
        raise CorpusError(path, field, PHONES, error, "write the index anew") from None
    voice = row.get("voice", "")
    require(type(voice) is str, "voice", "a text", show(voice))
    return dataclasses.replace(clip, phones=phones, voice=voice)
