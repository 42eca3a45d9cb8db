"""The 68 landmarks of a face as a linear function of morph weights.

`rig.npz` was fitted to the ground truth of May, a synthetic character (geometry CC0 1.0), whose renderer
is linear in its morphs: the fit leaves 1e-5 mm, and the motion of fourteen more faces made with the same
morphs lies within 0.006 mm (RMS) of their span. So the landmarks of any phones need no pictures. `fit_rig`
made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, F64

RIG_FILE = Path(__file__).with_name("rig.npz")
_MIN_STD = 1e-4  # of a morph's weight over the speaker's frames; below it nothing can be told of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Rig:
    """Morphs and neutral faces."""

    names: tuple[str, ...]  # K morphs
    morphs: F32  # (K, 68, 3) dm for a weight of 1
    neutral: F32  # (identities, 68, 3) dm of head space; the last one is May's
    mean_face: F32  # (68, 3) dm

    def landmarks(self, weights: F64, identity: int) -> F32:
        """Returns landmarks (T, 68, 3) in dm of morph weights (T, K)."""
        moved = np.tensordot(weights, self.morphs, axes=1)  # (T, 68, 3)
        landmarks: F32 = (self.neutral[identity] + moved).astype(np.float32)
        return landmarks


@cache
def load_rig() -> Rig:
    """Returns the rig that comes with the package."""
    with np.load(RIG_FILE) as arrays:
        return Rig(
            names=tuple(str(name) for name in arrays["names"]),
            morphs=arrays["morphs"],
            neutral=arrays["neutral"],
            mean_face=arrays["mean_face"],
        )


def fit_rig(truth: Path, corpus_landmarks: Path) -> dict[str, F32]:
    """Returns the arrays of `rig.npz`, by least squares on frames whose morph weights are known.

    Args:
        truth: A speaker's `truth.npz` with `landmarks` (T, 68, 3), `morph_weights` (T, 39), `morph_names`.
        corpus_landmarks: A `landmarks.npz` with `neutral` faces and the `mean_face`.
    """
    with np.load(truth) as arrays:
        weights, names = arrays["morph_weights"].astype(np.float64), arrays["morph_names"]
        landmarks = arrays["landmarks"].reshape(len(weights), -1).astype(np.float64)
    with np.load(corpus_landmarks) as arrays:
        neutral, mean_face = arrays["neutral"], arrays["mean_face"]
    moving = weights.std(axis=0) > _MIN_STD
    with_rest = np.concatenate([weights[:, moving], np.ones((len(weights), 1))], axis=1)
    solved = np.linalg.lstsq(with_rest, landmarks, rcond=1e-9)[0].astype(np.float32)  # (K + 1, 204)
    return {
        "names": names[moving],
        "morphs": solved[:-1].reshape(-1, 68, 3),
        "neutral": np.concatenate([neutral, solved[-1].reshape(1, 68, 3)]),
        "mean_face": mean_face,
    }
