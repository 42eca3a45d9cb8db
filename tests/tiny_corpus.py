"""A corpus and a speaker folder of a few seconds, made of tones: louder means a wider open mouth."""

import json
import wave
from pathlib import Path

import numpy as np

from preparation.corpus_set import Clip, CorpusSet, write_corpus_set
from preparation.sounds import Phone

FRAMES = 110
VOICES = ("low", "low+thin", "", "high")
CLIPS = 4  # three of speech in two splits, one silent


def write_wav(path: Path, pcm: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(pcm.astype("<i2").tobytes())


def opening_of(seed: int, frames: int = FRAMES) -> np.ndarray:
    """0 to 1 a frame, shut for the first 20 frames and at every `b`."""
    rng = np.random.default_rng(seed)
    opening = np.clip(np.convolve(rng.random(frames + 4), np.ones(5) / 5, "valid") * 2 - 0.5, 0, 1)
    opening[:20] = 0
    for start in range(30, frames - 4, 25):
        opening[start : start + 3] = 0
    return opening


def sound_of(opening: np.ndarray, hz: float) -> np.ndarray:
    time_s = np.arange(640 * len(opening)) / 16000
    loudness = np.interp(np.arange(len(time_s)) / 640 - 0.5, np.arange(len(opening)), opening)
    tone = np.sin(2 * np.pi * hz * time_s) + 0.5 * np.sin(4 * np.pi * hz * time_s)
    return np.round(12000 * loudness * tone / 1.5).astype(np.int16)


def phones_of(frames: int = FRAMES) -> tuple[Phone, ...]:
    phones: list[Phone] = [("pau", 0.0, 0.8)]
    end_s = 0.8
    for start in range(30, frames - 4, 25):
        phones += [("aa", end_s, start / 25), ("b", start / 25, (start + 3) / 25)]
        end_s = (start + 3) / 25
    return (*phones, ("aa", end_s, frames / 25))


def make_corpus(folder: Path) -> Path:
    """A corpus folder of four clips by two identities."""
    (folder / "audio").mkdir(parents=True)
    neutral = np.random.default_rng(5).normal(0, 0.02, (2, 68, 3)).astype(np.float32)
    face = np.random.default_rng(6).normal(0, 0.5, (68, 3)).astype(np.float32)
    face[62], face[66] = [0, 0.01, 0], [0, -0.01, 0]
    basis = np.zeros((2, 204), np.float32)
    basis[0].reshape(68, 3)[66, 1] = -1  # the lower lip goes down
    basis[0].reshape(68, 3)[48:60, 1] = -0.5
    basis[1].reshape(68, 3)[[48, 54], 0] = [-1, 1]  # the corners go apart
    coefficients, sound, clips = [], [], []
    for clip in range(CLIPS):
        silent = clip == 2
        opening = np.zeros(FRAMES) if silent else opening_of(clip)
        smile = 0.3 * (clip % 2)  # the second identity's own resting mouth
        coefficients.append(np.stack([1000 * opening, 300 * opening + 1000 * smile], axis=1))
        clips.append(
            Clip(
                id=f"c{clip}",
                file="audio/tones.wav",
                start=640 * FRAMES * clip,
                frames=FRAMES,
                row0=FRAMES * clip,
                row1=FRAMES * (clip + 1),
                split="val" if clip == 3 else "train",
                kind="silence" if silent else "speech",
                phones=() if silent else phones_of(),
                voice=VOICES[clip],
            )
        )
        sound.append(sound_of(opening, 180.0 + 40 * clip))
    write_wav(folder / "audio" / "tones.wav", np.concatenate(sound))
    corpus = CorpusSet(
        clips=tuple(clips),
        coeff=np.concatenate(coefficients).astype(np.int16),
        scale=np.array([1e-4, 1e-4], np.float32),
        basis=basis,
        neutral=neutral + face,
        row_identity=np.repeat(np.arange(CLIPS) % 2, FRAMES),
        mean_face=face,
    )
    write_corpus_set(folder, corpus)
    return folder


def make_speaker(folder: Path, corpus: Path, *, frames: int = 550) -> Path:
    """A speaker folder without video: `audio.flac` (a wav by content), `truth.npz`, `phones.json`."""
    folder.mkdir(parents=True)
    opening = opening_of(9, frames)
    write_wav(folder / "audio.flac", sound_of(opening, 200.0))
    with np.load(corpus / "landmarks.npz") as file:
        face, basis = file["mean_face"], file["basis"]
    motion = (0.12 * opening[:, None] * basis[0]).reshape(-1, 68, 3)
    np.savez(folder / "truth.npz", landmarks=(face + 0.05 + motion).astype(np.float32))
    (folder / "phones.json").write_text(json.dumps({"phones": phones_of(frames)}))
    return folder
