"""The landmarks of a corpus's clips from their sound and phones: no pictures, and cheap to make anew."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import F32, F64, I64
from models.partial_files import atomic_write
from models.time_base import FRAME_SAMPLES

from ..corpus_set import COORDINATES, LANDMARKS_FILE
from .plan import ClipPlan
from .utterance import Utterance

COMPONENTS = 24
_LARGEST = 32_767

Label = Callable[[Utterance, int, np.random.Generator], F32]
"""Utterance, identity and a generator for the speaker's style to landmarks (frames, 68, 3) in dm."""


def landmarks_of(utterance: Utterance, identity: int, rng: np.random.Generator) -> F32:
    """Returns the landmarks (frames, 68, 3) in dm of an utterance, its speaker's style drawn from `rng`."""
    styles = importlib.import_module("preparation.synthetic.styles")
    articulation = importlib.import_module("preparation.synthetic.articulation")
    style = styles.Style.drawn(rng)
    frames = len(utterance.pcm) // FRAME_SAMPLES
    moved = articulation.articulate(utterance.phones, utterance.pcm, frames=frames, style=style)
    landmarks: F32 = moved.landmarks(identity)
    return landmarks


def load_rig() -> Any:  # noqa: ANN401 -- preparation.synthetic.rig.Rig
    """Returns the faces and their morphs."""
    return importlib.import_module("preparation.synthetic.rig").load_rig()


def write_landmarks(
    out: Path,
    clips: Sequence[tuple[ClipPlan, Callable[[], Utterance]]],
    faces: Mapping[str, F32],
    seed: int,
    label: Label = landmarks_of,
) -> None:
    """Writes `landmarks.npz` for clips in the order of the index.

    Args:
        out: the corpus's folder.
        clips: plans, and what gives the sound and phones of each.
        faces: `neutral` (identities, 68, 3) and `mean_face` (68, 3) in dm.
        seed: the corpus's.
        label: what makes landmarks.
    """
    offsets: list[F32] = []
    identities: list[I64] = []
    for plan, read in tqdm(clips, desc="landmarks", unit="clip"):
        landmarks = label(read(), plan.identity, plan.rng(seed, "style"))
        moved = landmarks - faces["neutral"][plan.identity]
        offsets.append(moved.reshape(len(moved), COORDINATES).astype(np.float32))
        identities.append(np.full(len(moved), plan.identity))
    arrays: dict[str, Any] = {**compressed(np.concatenate(offsets)), **faces}
    arrays["row_identity"] = np.concatenate(identities).astype(np.uint8)
    with atomic_write(out / LANDMARKS_FILE) as path:
        np.savez(path, **arrays)


def compressed(offsets: F32) -> dict[str, Any]:
    """Returns `coeff` (rows, K) int16, `scale` (K,) and `basis` (K, 204) of offsets (rows, 204)."""
    moments: F64 = offsets.T.astype(np.float64) @ offsets
    values, vectors = np.linalg.eigh(moments)
    largest = np.argsort(values)[::-1][: min(COMPONENTS, len(values))]
    basis = vectors[:, largest].T.astype(np.float32)
    # The sign of an eigenvector is anyone's: its largest part is positive.
    basis *= np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)])[:, None]
    coefficients = offsets @ basis.T
    scale = np.maximum(np.abs(coefficients).max(axis=0), 1e-6) / _LARGEST
    return {
        "coeff": np.rint(coefficients / scale).astype(np.int16),
        "scale": scale.astype(np.float32),
        "basis": basis,
    }
