"""Recorded inputs and outputs of a speaker's networks before export, kept in the bundle to verify it.

A bundle's hashes prove that its files are intact; these cases, that another machine's runtime computes the
same from them, without the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cuda_kernels.arrays import F32, U8
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.scene import Scene
from models.bundle_files import RECORDED_CASES_FILE, BundleError
from models.speaker import Speaker
from training.audio2motion import MM_PER_UNIT

from .bundle.head import MIN_PSNR_DB, psnr_db
from .onnx.graphs import open_graph

PICTURES = "recorded_picture_psnr_db"

LIMITS: Mapping[str, tuple[float | None, float | None]] = {
    "recorded_features_error": (None, 2e-2),
    "recorded_landmarks_error": (None, 1e-4),
    "recorded_chain_error_mm": (None, 0.5),
    "recorded_condition_error": (None, 1e-5),
    PICTURES: (MIN_PSNR_DB, None),
}
"""Lowest and highest value of each error that `replay` returns.

Features are a share of the largest one, their weights held as float16. Landmarks are in their own unit, a
centimetre, from the same features. The chain goes from sound to landmarks, so it has both: half a millimetre
is what nobody sees.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedCases:
    """Each part's inputs and its source's outputs, on random and on real inputs.

    Attributes:
        features: `pcm` (1, n) normalised, and `features` (1, Tx, dimension).
        motion: motion.onnx's inputs, and `landmarks` (1, T, 204).
        chain: `pcm` (1, n) normalised, motion.onnx's other inputs, and `landmarks` (1, T, 204) of both.
        condition: `window` (window_frames, 204), and `condition` (size,).
        pictures: `c2w` (4, 4), `condition` (size,), and `picture` (S, S, 3) uint8 of the whole scene.
    """

    features: Sequence[Mapping[str, F32]]
    motion: Sequence[Mapping[str, F32]]
    chain: Sequence[Mapping[str, F32]]
    condition: Sequence[Mapping[str, F32]]
    pictures: Sequence[Mapping[str, F32 | U8]]

    def content(self) -> bytes:
        """Returns the cases as a safetensors file: PART.NUMBER.NAME."""
        content: bytes = save(
            {
                f"{part}.{number}.{name}": np.ascontiguousarray(array)
                for part in _PARTS
                for number, case in enumerate(getattr(self, part))
                for name, array in case.items()
            }
        )
        return content


_PARTS = {
    "features": ("pcm", "features"),
    "motion": ("landmarks",),
    "chain": ("pcm", "landmarks"),
    "condition": ("window", "condition"),
    "pictures": ("c2w", "condition", "picture"),
}
"""The arrays that every case of a part has."""
_MAX_NUMBER_DIGITS = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedParts:
    """The exported parts that the cases are run on: graphs as content or file."""

    features_onnx: bytes | Path
    motion_onnx: bytes | Path
    condition_onnx: bytes | Path
    scene: Scene


def read_cases(speaker: Speaker) -> RecordedCases | None:
    """Returns the cases in a speaker's bundle, None where it has none.

    Raises:
        BundleError: the file is no safetensors, or an array has another name or is missing.
    """
    if RECORDED_CASES_FILE not in speaker.settings.files:
        return None
    file = speaker.path / RECORDED_CASES_FILE
    try:
        arrays = load(file.read_bytes())
    except SafetensorError as error:
        raise BundleError(str(file), "content", "safetensors", f"something else ({error})") from None
    cases: dict[str, dict[int, dict[str, npt.NDArray[np.float32]]]] = {part: {} for part in _PARTS}
    for key, array in arrays.items():
        part, _, rest = key.partition(".")
        digits, _, name = rest.partition(".")
        is_number = digits.isdecimal() and len(digits) <= _MAX_NUMBER_DIGITS
        if part not in cases or not is_number or not name:
            raise BundleError(str(file), key[:80], "PART.NUMBER.NAME", "another key")
        cases[part].setdefault(int(digits), {})[name] = array
    for part, names in _PARTS.items():
        for number, case in cases[part].items():
            for name in names:
                if name not in case:
                    raise BundleError(str(file), f"{part}.{number}.{name}", "an array", "none")
    return RecordedCases(**{part: list(found.values()) for part, found in cases.items()})


def replay(cases: RecordedCases, parts: ExportedParts) -> dict[str, float]:
    """Returns the largest error of each exported part that has cases; see `LIMITS`."""
    errors: dict[str, float] = {}
    encoder = open_graph(parts.features_onnx, all_cores=True)
    motion = open_graph(parts.motion_onnx, all_cores=True)
    condition = open_graph(parts.condition_onnx)
    if cases.features:
        errors["recorded_features_error"] = _largest(
            np.abs(encoder.run(None, {"pcm": case["pcm"]})[0] - case["features"])
            / np.abs(case["features"]).max()
            for case in cases.features
        )
    if cases.motion:
        errors["recorded_landmarks_error"] = _largest(
            np.abs(motion.run(None, _without(case, "landmarks"))[0] - case["landmarks"])
            for case in cases.motion
        )
    if cases.chain:
        distances = []
        for case in cases.chain:
            encoded = encoder.run(None, {"pcm": case["pcm"]})[0]
            feed = _without(case, "landmarks", "pcm")
            feed["features"] = padded(encoded, 2 * case["landmarks"].shape[1])
            apart = (motion.run(None, feed)[0] - case["landmarks"]).reshape(-1, 3)
            distances.append(MM_PER_UNIT * np.linalg.norm(apart, axis=1))
        errors["recorded_chain_error_mm"] = _largest(distances)
    if cases.condition:
        errors["recorded_condition_error"] = _largest(
            np.abs(condition.run(None, {"window": case["window"]})[0] - case["condition"])
            for case in cases.condition
        )
    if cases.pictures:
        errors[PICTURES] = _picture_psnr_db(cases.pictures, parts.scene)
    return errors


def _picture_psnr_db(pictures: Sequence[Mapping[str, F32 | U8]], scene: Scene) -> float:
    raymarcher = CpuRaymarcher(scene)
    squares = []
    try:
        for seen in pictures:
            drawn = raymarcher.render(
                c2w=seen["c2w"].astype(np.float32),
                condition=seen["condition"].astype(np.float32),
                size_px=scene.image_size_px,
            )
            difference = (drawn.astype(np.float32) - seen["picture"]) / np.float32(255)
            squares.append(np.mean(difference**2))
    finally:
        raymarcher.close()
    return psnr_db(squares)


def padded(features: F32, steps: int) -> F32:
    """Returns (1, steps, dimension) features (1, Tx, dimension), zero beyond their end."""
    filled: F32 = np.pad(features[:, :steps], ((0, 0), (0, max(0, steps - features.shape[1])), (0, 0)))
    return filled


def _without(case: Mapping[str, F32], *names: str) -> dict[str, F32]:
    return {name: array for name, array in case.items() if name not in names}


def _largest(errors: Iterable[npt.NDArray[np.floating]]) -> float:
    return float(np.max([np.max(error) for error in errors]))  # NaN stays NaN
