"""A teacher's landmarks over a folder of speech, as a corpus for training.

The teacher runs once over each recording; its landmarks are kept, so that a stopped run resumes with the next
recording. Pauses are found by loudness, and closed lips of the teacher during speech count as a bilabial:
training weighs both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import BOOL, F32, I16
from cuda_kernels.errors import InputError
from models.audio2motion import LANDMARK_DIMENSION
from models.partial_files import atomic_write
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES
from preparation.arrays import Kind, read_npy
from preparation.corpus_set import Clip, CorpusSet, write_corpus_set
from preparation.errors import FileError
from preparation.media import MediaError, read_pcm
from preparation.sounds import LIPS_LEAD_S, PAUSE, SPEECH, Phone, quiet_frames
from training.measures import aperture_mm

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
MIN_FRAMES = 2 * FRAME_RATE_HZ
MAX_CLIP_FRAMES = 750  # a validation holds sixteen clips at once
CUT_REACH_FRAMES = 50  # a recording is cut at its quietest frame within so many of an even cut
SILENT_RMS = 1e-3  # the loudest frame of a recording without speech, of full scale
_SAY_AGAIN = "delete it, and the teacher says it again"
CLOSED_SHARE = 0.1  # of the mouth's usual opening, that still counts as shut


class SpeechError(InputError):
    """Speech without enough to train on, or a teacher whose landmarks are unusable."""


class SavedLandmarksError(FileError):
    """The teacher's landmarks of an earlier run, damaged since."""


class Teacher(Protocol):
    """A speaker's motion over a whole recording."""

    def landmarks(self, pcm: F32, *, temperature: float | None = None) -> F32:
        """Returns (n // 640, 68, 3) landmarks in the speaker's domain of `pcm` (n,) in [-1, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording and the teacher's landmarks of it."""

    file: Path
    digest: str  # of its sound and its teacher
    saved: Path  # .npy of the landmarks, float32 (frames, 204)
    frames: int
    clips: tuple[Clip, ...]  # their rows count from 0

    def pcm(self) -> F32:
        """Returns its sound, (640 * frames,) in [-1, 1]."""
        whole = read_pcm(self.file)[: FRAME_SAMPLES * self.frames]
        return np.multiply(whole, 1 / 32768, dtype=np.float32)

    def landmarks(self) -> F32:
        """Returns the teacher's landmarks, (frames, 204)."""
        return read_npy(self.saved, Kind((self.frames, LANDMARK_DIMENSION)), SavedLandmarksError, _SAY_AGAIN)


@dataclass(frozen=True, kw_only=True)
class TeacherCorpus:
    """The corpus folder and what it was made from."""

    folder: Path
    train: tuple[Recording, ...]
    held_out: tuple[Recording, ...]
    left_out: tuple[str, ...]  # a line for each file that was not used: which, why

    @property
    def digest(self) -> str:
        """Identifies the corpus: recordings and teacher of each split."""
        splits = [[recording.digest for recording in split] for split in (self.train, self.held_out)]
        return hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16]

    @property
    def train_minutes(self) -> float:
        """Minutes of speech to train on."""
        return sum(recording.frames for recording in self.train) / FRAME_RATE_HZ / 60

    @property
    def held_out_minutes(self) -> float:
        """Minutes of speech held out."""
        return sum(recording.frames for recording in self.held_out) / FRAME_RATE_HZ / 60

    def train_landmarks(self) -> F32:
        """Returns the teacher's landmarks (rows, 204) over all training recordings."""
        return np.concatenate([recording.landmarks() for recording in self.train])


def make_teacher_corpus(
    speech: Path,
    work: Path,
    open_teacher: Callable[[], Teacher],
    *,
    identity: str,
    temperature: float,
    mean_face: F32,
) -> TeacherCorpus:
    """Returns the corpus `work/corpus` of every usable recording below `speech`, a tenth of it held out.

    Args:
        speech: Searched with its sub-folders; hidden files are passed over.
        work: The teacher's landmarks are kept in `work/teacher`.
        open_teacher: Called once, if some recording has no landmarks yet.
        identity: Identifies the teacher: landmarks of another are not reused.
        temperature: Of the teacher's noise.
        mean_face: (68, 3) dm, what the landmarks are offsets from.

    Raises:
        SpeechError: fewer than two usable recordings, or a teacher that gives no landmarks.
    """
    if not speech.is_dir():
        raise SpeechError(f"{speech}: expected a folder of recordings, found none; check --speech")
    saved = work / "teacher"
    saved.mkdir(parents=True, exist_ok=True)
    files = sorted(
        file
        for file in speech.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(speech).parts)
    )
    teacher: Teacher | None = None
    found: dict[str, Recording] = {}
    left_out: list[str] = []
    for file in tqdm(files, desc="teacher", unit="recording"):
        try:
            pcm = read_pcm(file)
            frames = len(pcm) // FRAME_SAMPLES
            pcm = pcm[: FRAME_SAMPLES * frames]
            digest = hashlib.sha256(f"{identity} {temperature} ".encode() + pcm.tobytes()).hexdigest()[:16]
            _require_speech(file, pcm, found.get(digest))
        except (MediaError, SpeechError) as error:
            left_out.append(str(error))
            log.warning("left out: %s", error)
            continue
        path = saved / f"{digest}.npy"
        if not path.is_file():
            teacher = teacher or open_teacher()
            sound = np.multiply(pcm, 1 / 32768, dtype=np.float32)
            landmarks = teacher.landmarks(sound, temperature=temperature)
            if landmarks.shape != (frames, 68, 3) or not np.isfinite(landmarks).all():
                raise SpeechError(
                    f"{file}: teacher: expected finite landmarks ({frames}, 68, 3), got "
                    f"{tuple(landmarks.shape)}; check the bundle with `geneface-export verify`"
                )
            rows = landmarks.reshape(frames, LANDMARK_DIMENSION).astype(np.float32)
            with atomic_write(path) as part:
                np.save(part, rows, allow_pickle=False)
        recording = Recording(file=file.resolve(), digest=digest, saved=path, frames=frames, clips=())
        clips = _clips(recording, pcm, mean_face)
        found[digest] = dataclasses.replace(recording, clips=tuple(clips))
    recordings = tuple(found.values())
    if len(recordings) < 2:
        raise SpeechError(
            f"{speech}: expected two or more recordings with speech, one to hold out, got {len(recordings)} "
            f"of {len(files)} files{f' ({left_out[0]})' if left_out else ''}; add some or cut one in two"
        )
    held_out = _held_out(recordings)
    corpus = TeacherCorpus(
        folder=work / "corpus",
        train=tuple(recording for recording in recordings if recording not in held_out),
        held_out=held_out,
        left_out=tuple(left_out),
    )
    _write_corpus(corpus, mean_face)
    return corpus


def _require_speech(file: Path, pcm: I16, twin: Recording | None) -> None:
    if len(pcm) < FRAME_SAMPLES * MIN_FRAMES:
        raise SpeechError(
            f"{file}: expected {MIN_FRAMES / FRAME_RATE_HZ:g} s of speech or more, "
            f"got {len(pcm) / FRAME_SAMPLES / FRAME_RATE_HZ:.2f} s"
        )
    if twin is not None:
        raise SpeechError(f"{file}: the same sound as {twin.file}")
    if not _level(pcm).max() > SILENT_RMS:
        raise SpeechError(f"{file}: expected speech, got silence")


def _level(pcm: I16) -> F32:
    """Returns how loud each frame is, (T,) rms of full scale, of samples (640 T,)."""
    frames = pcm.reshape(-1, FRAME_SAMPLES).astype(np.float32) / 32768
    level: F32 = np.sqrt(np.square(frames).mean(axis=1))
    return level


def _clips(recording: Recording, pcm: I16, mean_face: F32) -> list[Clip]:
    """Returns the clips of one recording, cut where it is quiet."""
    landmarks = recording.landmarks()
    quiet = quiet_frames(pcm)  # (T,)
    aperture = aperture_mm(landmarks, mean_face)
    low, high = np.percentile(aperture, [5, 95])
    shut = ~quiet & (aperture <= low + CLOSED_SHARE * (high - low))
    level, frames = _level(pcm), len(landmarks)
    count = -(-frames // MAX_CLIP_FRAMES)
    cuts = [0]
    for even in (frames * k // count for k in range(1, count)):
        first = even - CUT_REACH_FRAMES
        cuts.append(first + int(level[first : even + CUT_REACH_FRAMES].argmin()))
    cuts.append(frames)
    return [
        Clip(
            id=f"{recording.digest}-{number}",
            file=str(recording.file),
            start=FRAME_SAMPLES * first,
            frames=last - first,
            row0=first,
            row1=last,
            split="train",
            kind=SPEECH,
            # Shut lips are due before the sound that they are shut for.
            phones=(*_runs(PAUSE, quiet[first:last]), *_runs("b", shut[first:last], later_s=LIPS_LEAD_S)),
        )
        for number, (first, last) in enumerate(itertools.pairwise(cuts))
    ]


def _runs(label: str, where: BOOL, *, later_s: float = 0.0) -> list[Phone]:
    """Returns each run of true frames (T,) as a phone, so much later."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]]).astype(np.int8)))
    return [
        (label, int(first) / FRAME_RATE_HZ + later_s, int(last) / FRAME_RATE_HZ + later_s)
        for first, last in edges.reshape(-1, 2)
    ]


def _held_out(recordings: tuple[Recording, ...]) -> tuple[Recording, ...]:
    """Returns whole recordings of some tenth of the time, drawn by their digests; the shortest at least."""
    room = HELD_OUT_SHARE * sum(recording.frames for recording in recordings)
    held_out = []
    for recording in sorted(recordings, key=lambda recording: recording.digest):
        if recording.frames <= room:
            held_out.append(recording)
            room -= recording.frames
    return tuple(held_out) or (min(recordings, key=lambda recording: recording.frames),)


def _write_corpus(corpus: TeacherCorpus, mean_face: F32) -> None:
    """Writes the corpus: each coordinate its own component, 16 bits over its range."""
    clips: list[Clip] = []
    landmarks = []
    row = 0
    for split, recordings in (("train", corpus.train), ("val", corpus.held_out)):
        for recording in recordings:
            landmarks.append(recording.landmarks())
            for clip in recording.clips:
                clips.append(
                    dataclasses.replace(clip, split=split, row0=row + clip.row0, row1=row + clip.row1)
                )
            row += recording.frames
    motion = np.concatenate(landmarks)  # (rows, 204)
    middle = motion.mean(axis=0, dtype=np.float64).astype(np.float32)
    motion -= middle
    scale = np.maximum(np.abs(motion).max(axis=0), 1e-6) / 32767
    # Positions are in decimetres, landmarks ten times that.
    basis = np.divide(np.eye(LANDMARK_DIMENSION), 10, dtype=np.float32)
    write_corpus_set(
        corpus.folder,
        CorpusSet(
            clips=tuple(clips),
            coeff=np.round(motion / scale),
            scale=scale,
            basis=basis,
            neutral=(mean_face + middle.reshape(68, 3) / 10)[None],
            row_identity=np.zeros(len(motion), np.int64),
            mean_face=mean_face,
        ),
    )
