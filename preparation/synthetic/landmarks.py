"""The landmarks of a corpus's clips from their sound and phones: no pictures, and cheap to make anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import F64
from models.partial_files import atomic_write
from models.time_base import FRAME_SAMPLES

from ..corpus_set import COORDINATES, LANDMARKS_FILE
from .articulation import articulate
from .plan import ClipPlan
from .rig import load_rig
from .styles import Style
from .utterance import Utterance

_LARGEST = 32_767


def weights_of(utterance: Utterance, rng: np.random.Generator) -> F64:
    """Returns the weights (frames, K) of the rig's morphs for an utterance, its style drawn from `rng`."""
    frames = len(utterance.pcm) // FRAME_SAMPLES
    return articulate(utterance.phones, utterance.pcm, frames=frames, style=Style.drawn(rng)).weights


def write_landmarks(out: Path, clips: Sequence[tuple[ClipPlan, Callable[[], Utterance]]], seed: int) -> None:
    """Writes `landmarks.npz` for clips in the order of the index: morph weights, by the rig's morphs.

    Args:
        out: the corpus's folder.
        clips: plans, and what gives the sound and phones of each.
        seed: the corpus's.
    """
    rig = load_rig()
    bar = tqdm(clips, desc="landmarks", unit="clip")
    by_clip = [weights_of(read(), plan.rng(seed, "style")) for plan, read in bar]
    weights = np.concatenate(by_clip)  # (rows, K)
    scale = (np.maximum(np.abs(weights).max(axis=0), 1e-6) / _LARGEST).astype(np.float32)
    identities = [plan.identity for plan, _ in clips]
    with atomic_write(out / LANDMARKS_FILE) as path:
        np.savez(
            path,
            coeff=np.rint(weights / scale).clip(-_LARGEST, _LARGEST).astype(np.int16),
            scale=scale,
            basis=rig.morphs.reshape(-1, COORDINATES),
            neutral=rig.neutral,
            mean_face=rig.mean_face,
            row_identity=np.repeat(identities, [len(rows) for rows in by_clip]).astype(np.uint8),
        )
